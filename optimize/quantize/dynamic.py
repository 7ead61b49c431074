"""Dynamic int8: weights are stored in eight bits, activations are scaled as they come.

    y = x W   becomes   y = (q(x) - z) q(W) * s_x * s_W,   s_x and z taken from the tensor that has just arrived

by onnxruntime.quantization, which covers LSTM, MatMul and Gemm; for a GRU it has no operator and says nothing. Here
whatever was asked for and not done is an error. One activation scale serves the whole batch tensor, so an answer
depends a little on who shares the batch: ``verify`` measures how much, and the model card says so.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from optimize.benchmark import Candidate, measure, onnx_candidate
from optimize.data.dataset import Split
from optimize.errors import UserError
from optimize.onnx_export import save
from optimize.quantize.plan import Choice, Plan, weighted_operators

OPERATORS = ("LSTM", "MatMul", "Gemm")
_BECOMES = {"LSTM": "DynamicQuantizeLSTM", "MatMul": "MatMulInteger", "Gemm": "MatMulInteger"}
_WORTH = 0.98  # int8 must save at least 2 % of the whole model's time, else the operator stays as it is


class QuantizationError(UserError):
    """An operator that the plan asks for was not quantised."""


def quantize(model: ModelProto, plan: Plan) -> ModelProto:
    """Quantise just the operators that the plan lists as int8, and prove that it happened.

    Raises QuantizationError when the operators of the result are not the ones that the plan asks for.
    """
    wanted = [node for node, choice in plan.items() if choice.precision == "int8"]
    logging.getLogger("root").addFilter(_no_preprocessing_hint)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                save(model, Path(folder) / "fp32.onnx"),
                path,
                op_types_to_quantize=sorted({plan[node].operator for node in wanted} | {"MatMul"}),
                # the tool rewrites every Gemm as MatMul and Add before it looks at operators and names
                nodes_to_quantize=wanted + [f"{node}_MatMul" for node in wanted if plan[node].operator == "Gemm"],
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            quantized = onnx.load(path)
    finally:
        logging.getLogger("root").removeFilter(_no_preprocessing_hint)
    expected = Counter(_BECOMES[plan[node].operator] for node in wanted)
    found = Counter(node.op_type for node in quantized.graph.node if node.op_type in set(_BECOMES.values()))
    if found != expected:
        raise QuantizationError(
            f"quantisation asked for {dict(expected)}, but the graph has {dict(found)}: some weights stayed in fp32; "
            "check that the weights are initializers of the graph, or list the operator as fp32 in the plan"
        )
    return quantized


def measure_plan(model: ModelProto, requests: Split, rounds: int = 150) -> Plan:
    """Decide operator by operator: int8 where it makes the whole model faster, fp32 where it does not.

    Every operator is tried in fp32 beside the model with all of them in int8, interleaved, one thread, batch of 1.
    """
    operators = weighted_operators(model)
    quantizable = [node for node, operator in operators.items() if operator in OPERATORS]
    if not quantizable:
        return {node: _not_covered(operator) for node, operator in operators.items()}
    everything = {node: Choice(operators[node], "int8", "") for node in quantizable}
    p50: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        candidates: list[Candidate] = []
        for index, left_out in enumerate(["", *quantizable]):
            plan = {node: choice for node, choice in everything.items() if node != left_out}
            path = save(quantize(model, plan) if plan else model, Path(folder) / f"{index}.onnx")
            candidates.append(onnx_candidate(left_out, path, "int8", 0))
        for name, measured in measure(candidates, requests, rounds).items():
            p50[name] = measured.latency_ms.p50
    chosen: Plan = {}
    for node, operator in operators.items():
        if node not in p50:
            chosen[node] = _not_covered(operator)
            continue
        ratio = p50[""] / p50[node]
        time = f"{abs(1 - ratio) * 100:.1f} % {'less' if ratio < 1 else 'more'} time"
        if ratio <= _WORTH:
            chosen[node] = Choice(operator, "int8", f"measured: with it in int8 the model takes {time}")
        else:
            reason = f"measured: with it in int8 the model takes {time}, not worth the error"
            chosen[node] = Choice(operator, "fp32", reason)
    return chosen


def _not_covered(operator: str) -> Choice:
    return Choice(operator, "fp32", f"ONNX Runtime has no dynamically quantised {operator}")


def _no_preprocessing_hint(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Quantization parameters for", "Please consider to run pre-processing"))
