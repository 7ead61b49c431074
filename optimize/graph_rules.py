"""What exporters get wrong without a word, and what the target runtime lacks: rules on the graph alone.

A rule takes a model and yields a ``Fault`` for each place where it is broken. ``optimize.onnx_export.check`` refuses an
export that breaks one, ``optimize.quantize.guards`` asks again of whatever is about to be served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx import ModelProto, ValueInfoProto
from tritonclient.grpc import model_config_pb2 as pb

from optimize import triton_rules
from optimize.onnx_interface import interface
from optimize.specs import NEXT_STATE_PREFIX, STATE_PREFIX

RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Fault:
    """node: where, "" for the graph as a whole. problem: what is wrong there. advice: what to do."""

    node: str
    problem: str
    advice: str


Rule = Callable[[ModelProto], Iterator[Fault]]


def hidden_weights(model: ModelProto) -> Iterator[Fault]:
    """onnxruntime 18671: weights behind Slice and Concat are silently not quantised."""
    for node in _recurrent(model):
        if not all(value is not None and value.is_initializer() for value in node.inputs[1:3]):
            yield Fault(
                str(node.name),
                f"{node.op_type}: its weights are no initializers, so nothing can quantise it",
                "export with dynamo=False, or fold the constants first",
            )


def gru_flavour(model: ModelProto) -> Iterator[Fault]:
    """onnxscript 2852: without the attribute a GRU computes another cell than torch's."""
    for node in _recurrent(model):
        if node.op_type == "GRU" and _attribute(node, "linear_before_reset") != 1:
            yield Fault(
                str(node.name),
                "GRU: linear_before_reset is not 1, which computes another cell than torch's",
                "export with dynamo=False; if the network really is of that kind, write it in plain operators",
            )


def rnn_layout(model: ModelProto) -> Iterator[Fault]:
    for node in _recurrent(model):
        if _attribute(node, "layout") != 0:
            yield Fault(
                str(node.name),
                f"{node.op_type}: layout=1, which ONNX Runtime refuses",
                "put Transpose nodes around it and leave out the attribute",
            )


def runtime_limits(model: ModelProto) -> Iterator[Fault]:
    """IR version, operator sets and operators that the target runtime does not know."""
    for rule in (triton_rules.ir_version, triton_rules.opset, triton_rules.operators):
        yield from _of_triton(rule, model)


def matmul_bits(model: ModelProto) -> Iterator[Fault]:
    """MatMulNBits of another number of bits than the target runtime has."""
    yield from _of_triton(triton_rules.matmul_bits, model)


def state_pairs(model: ModelProto) -> Iterator[Fault]:
    """Triton pairs states by their position in two sorted lists of names (server issue 8586)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        v.name: _port(v) for v in model.graph.input if v.name.startswith(STATE_PREFIX) and v.name not in constants
    }
    outputs = {v.name: _port(v) for v in model.graph.output if v.name.startswith(NEXT_STATE_PREFIX)}
    advice = f"name every state {STATE_PREFIX}<what> and {NEXT_STATE_PREFIX}<what>, of one type and shape"
    if len(inputs) != len(outputs):
        yield Fault("", f"state inputs {sorted(inputs)}, but state outputs {sorted(outputs)}: not as many", advice)
    for before, after in zip(sorted(inputs), sorted(outputs), strict=False):
        if before.removeprefix(STATE_PREFIX) != after.removeprefix(NEXT_STATE_PREFIX):
            yield Fault(before, f"state '{before}' is paired with '{after}', as the sorted names fall", advice)
        elif inputs[before] != outputs[after]:
            yield Fault(before, f"state '{before}' is {inputs[before]}, but '{after}' is {outputs[after]}", advice)


RULES: tuple[Rule, ...] = (hidden_weights, gru_flavour, rnn_layout, runtime_limits, matmul_bits, state_pairs)


def _of_triton(rule: Callable[..., Iterator[str]], model: ModelProto) -> Iterator[Fault]:
    """A rule that also needs a configuration, of which these use nothing."""
    for message in rule(pb.ModelConfig(), interface(model)):
        problem, _, advice = message.rpartition(": ")
        yield Fault("", problem, advice)


def _recurrent(model: ModelProto) -> Iterator[ir.Node]:
    graph = ir.serde.deserialize_model(model).graph
    return (node for node in graph.all_nodes() if node.op_type in RECURRENT)


def _attribute(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _port(value: ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
