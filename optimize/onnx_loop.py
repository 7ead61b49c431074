"""A looping network to one graph: what comes before the loop, an ONNX Loop around its own step, what comes after.

    inputs -> begin -> Loop(position, carried; fixed) -> finish -> outputs

The three functions of ``models.looping`` are exported one by one and put together. What a step looks at and what it
multiplies by stays outside the body, which reads it from there: nothing is copied from step to step, and a weight that
both sides use is there once. The Loop ends as soon as the network says that nothing goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper
from torch import Tensor, nn

from optimize.models.looping import Looping, flat, shaped
from optimize.tracing import traced

LOOP = "loop"
_BEGIN, _STEP, _FINISH = "begin", "step", "finish"
_POSITION, _RUNS, _GOES_ON = "position", "runs", "goes_on"

Axes = Mapping[str, Mapping[int, str]]


def export_loop(
    network: Looping,
    examples: Sequence[Sequence[Tensor]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes,
    opset_version: int,
) -> ModelProto:
    """The graph of ``network``. axes: the dynamic ones of inputs and outputs.

    examples: two, whose dynamic axes all differ in size; whatever differs inside is dynamic too.
    """
    network = network.eval()
    with torch.inference_mode():
        (fixed, carried), other = (network.begin(*example) for example in examples)
    fixed_names = [f"fixed_{number}" for number in range(len(flat(fixed)))]
    first_names = [f"first_{number}" for number in range(len(flat(carried)))]
    carried_names = [f"carried_{number}" for number in range(len(first_names))]
    next_names = [f"next_{number}" for number in range(len(first_names))]
    last_names = [f"last_{number}" for number in range(len(first_names))]
    inside = _differing([*flat(fixed), *flat(carried)], flat(other), _sizes(examples, inputs, axes))

    def dynamic(*groups: Sequence[str]) -> dict[str, dict[int, str]]:
        """The axes of groups of names, the first of them for what is fixed, all others for what is carried."""
        named = dict(zip(groups[0], inside, strict=False))
        for group in groups[1:]:
            named |= zip(group, inside[len(fixed_names) :], strict=True)
        return named

    begin = traced(
        _Begin(network),
        examples[0],
        inputs,
        [*fixed_names, *first_names],
        {**{name: axes[name] for name in inputs}, **dynamic(fixed_names, first_names)},
        opset_version,
    )
    step = traced(
        _Step(network, carried, fixed),
        [torch.tensor(0), *flat(carried), *flat(fixed)],
        [_POSITION, *carried_names, *fixed_names],
        [_GOES_ON, *next_names],
        dynamic(fixed_names, carried_names, next_names),
        opset_version,
    )
    finish = traced(
        _Finish(network, carried),
        flat(carried),
        last_names,
        outputs,
        {**{name: axes[name] for name in outputs}, **dynamic((), last_names)},
        opset_version,
    )
    return _composed(begin, step, finish, first_names, last_names, network.most_steps)


class _Begin(nn.Module):
    def __init__(self, network: Looping) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(self.network.begin(*inputs)))


class _Step(nn.Module):
    def __init__(self, network: Looping, carried: Any, fixed: Any) -> None:
        super().__init__()
        self.network, self.carried, self.fixed = network, carried, fixed

    def forward(self, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        carried, fixed = shaped(self.carried, given), shaped(self.fixed, given)
        carried, goes_on = self.network.repeat(position, carried, fixed)
        return goes_on, *flat(carried)


class _Finish(nn.Module):
    def __init__(self, network: Looping, carried: Any) -> None:
        super().__init__()
        self.network, self.carried = network, carried

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.network.finish(shaped(self.carried, iter(tensors)))


def _sizes(examples: Sequence[Sequence[Tensor]], inputs: Sequence[str], axes: Axes) -> dict[tuple[int, int], str]:
    """The names of dynamic axes by their sizes in both examples."""
    return {
        (first.shape[at], second.shape[at]): axis
        for name, first, second in zip(inputs, *examples, strict=True)
        for at, axis in axes[name].items()
    }


def _differing(
    tensors: Sequence[Tensor], others: Sequence[Tensor], known: Mapping[tuple[int, int], str]
) -> list[dict[int, str]]:
    """Of each tensor, the axes whose size depends on the example; the same name for the same sizes."""
    return [
        {
            at: known.get(sizes, f"size_{sizes[0]}")
            for at, sizes in enumerate(zip(tensor.shape, other.shape, strict=True))
            if sizes[0] != sizes[1]
        }
        for tensor, other in zip(tensors, others, strict=True)
    ]


def _composed(
    begin: ModelProto,
    step: ModelProto,
    finish: ModelProto,
    firsts: Sequence[str],
    lasts: Sequence[str],
    most_steps: int,
) -> ModelProto:
    weights: dict[tuple[Any, ...], TensorProto] = {}
    parts = {
        name: _joined_to(weights, part.graph, f"/{name}", keep)
        for name, part, keep in (
            (_BEGIN, begin, {value.name for value in (*begin.graph.input, *begin.graph.output)}),
            (_STEP, step, {value.name for value in begin.graph.output}),
            (_FINISH, finish, {value.name for value in (*finish.graph.input, *finish.graph.output)}),
        )
    }
    body, fixed = parts[_STEP], {value.name for value in begin.graph.output}
    carried = [value for value in body.input if value.name not in fixed]
    del body.input[:]
    body.input.extend([carried[0], helper.make_tensor_value_info(f"/{_STEP}/{_RUNS}", TensorProto.BOOL, [])])
    body.input.extend(carried[1:])
    del body.initializer[:]
    most, true = f"/{LOOP}/most_steps", f"/{LOOP}/true"
    loop = helper.make_node("Loop", [most, true, *firsts], list(lasts), name=f"/{LOOP}", body=body)
    constants = [
        helper.make_tensor(most, TensorProto.INT64, [], [most_steps]),
        helper.make_tensor(true, TensorProto.BOOL, [], [True]),
    ]
    graph = helper.make_graph(
        [*parts[_BEGIN].node, loop, *parts[_FINISH].node],
        begin.graph.name,
        list(begin.graph.input),
        list(finish.graph.output),
        [*weights.values(), *constants],
        value_info=[*begin.graph.output, *finish.graph.input],
    )
    model = helper.make_model(graph, opset_imports=begin.opset_import, ir_version=begin.ir_version)
    inferred: ModelProto = onnx.shape_inference.infer_shapes(model)
    return inferred


def _joined_to(
    weights: dict[tuple[Any, ...], TensorProto], graph: GraphProto, prefix: str, keep: set[str]
) -> GraphProto:
    """A copy whose values and nodes have names of their own but for those to keep; equal initializers are shared."""
    names = {name: name for name in ("", *keep)}
    for tensor in graph.initializer:
        content = (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        if content not in weights:
            weights[content] = TensorProto.FromString(tensor.SerializeToString())
            weights[content].name = tensor.name if "::" not in tensor.name else f"{prefix}/{tensor.name}"
        names[tensor.name] = weights[content].name
    return _renamed(graph, prefix, names)


def _renamed(graph: GraphProto, prefix: str, names: Mapping[str, str]) -> GraphProto:
    """A copy of the graph and of the bodies in it; what ``names`` does not know gets the prefix."""
    copy: GraphProto = GraphProto.FromString(graph.SerializeToString())
    copy.name = f"{prefix}/{graph.name}"

    def name(old: str) -> str:
        return names.get(old, f"{prefix}/{old.removeprefix('/')}")

    for value in (*copy.input, *copy.output, *copy.value_info):
        value.name = name(value.name)
    for tensor in copy.initializer:
        tensor.name = name(tensor.name)
    for node in copy.node:
        node.name = name(node.name)
        node.input[:] = [name(each) for each in node.input]
        node.output[:] = [name(each) for each in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                attribute.g.CopyFrom(_renamed(attribute.g, prefix, names))
    return copy
