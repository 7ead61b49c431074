"""A correct pair passes; every rule finds its planted fault, names it and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize import target_runtime
from optimize.specs import ModelSpec, ServingSpec, StateSpec, TensorSpec
from optimize.triton_config import to_config
from optimize.validator import RULES, Effect, UnfitModelError, check, validate

SPEC = ModelSpec(
    name="counter",
    inputs=(TensorSpec("x", "float32", (4,)),),
    outputs=(TensorSpec("y", "float32", (4,)),),
    states=(StateSpec("sum", "float32", (4,)), StateSpec("seen", "float32", (4,))),
    max_batch=8,
)


@dataclass
class Pair:
    """A configuration and a model that fit each other, until a fault is planted in one of them.

    The model: next_state_sum = y = state_sum + x, next_state_seen = state_seen + 1.
    """

    config: Any = field(default_factory=lambda: to_config(SPEC, ServingSpec()))
    model: ModelProto = field(default_factory=lambda: _model(SPEC, _accumulate()))

    @property
    def states(self) -> Any:
        return self.config.sequence_batching.state


def _accumulate() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", ["state_sum", "x"], ["next_state_sum"]),
        helper.make_node("Identity", ["next_state_sum"], ["y"]),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Add", ["state_seen", "one"], ["next_state_seen"]),
    ]


def _model(spec: ModelSpec, nodes: list[onnx.NodeProto]) -> ModelProto:
    def port(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        spec.name,
        [port(t.name, t.shape) for t in spec.inputs] + [port(s.input_name, s.shape) for s in spec.states],
        [port(t.name, t.shape) for t in spec.outputs] + [port(s.output_name, s.shape) for s in spec.states],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _stateless() -> Pair:
    spec = ModelSpec("twice", inputs=SPEC.inputs, outputs=SPEC.outputs, max_batch=8)
    return Pair(to_config(spec, ServingSpec()), _model(spec, [helper.make_node("Add", ["x", "x"], ["y"])]))


def _insert(pair: Pair, op_type: str, domain: str = "com.microsoft", **attributes: Any) -> onnx.NodeProto:
    """An operator beside the others; only its being there matters to the rules."""
    node = helper.make_node(op_type, ["x"], [f"{op_type}_out"], domain=domain, name="planted", **attributes)
    pair.model.graph.node.append(node)
    return node


def _hide_in_loop(pair: Pair, op_type: str) -> None:
    """The same operator inside the body of a Loop, where a glance over the graph's nodes misses it."""
    body = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["q", "s", "z"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )
    pair.model.graph.node.append(helper.make_node("Constant", [], ["trips"], value_int=2))
    pair.model.graph.node.append(helper.make_node("Loop", ["trips", ""], [], body=body))


def _fix_batch(pair: Pair) -> None:
    pair.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _list_as_input(pair: Pair) -> None:
    pair.config.input.add(name="state_sum", data_type=pair.states[0].data_type, dims=[4])


def _swap_by_name(pair: Pair) -> None:
    """Suffixes instead of prefixes, as in server issue 8586: inputs a, a_len; outputs a_len_next, a_next."""
    renamed = {"state_sum": "a", "next_state_sum": "a_next", "state_seen": "a_len", "next_state_seen": "a_len_next"}
    for node in pair.model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for port in (*pair.model.graph.input, *pair.model.graph.output):
        port.name = renamed.get(port.name, port.name)
    for state in pair.states:
        state.input_name, state.output_name = renamed[state.input_name], renamed[state.output_name]


def _control(pair: Pair, **control: object) -> None:
    pair.config.sequence_batching.control_input.add(name="START").control.add(kind=0, **control)


def _control_of_wrong_shape(pair: Pair) -> None:
    pair.model.graph.input.append(helper.make_tensor_value_info("START", TensorProto.FLOAT, ["batch", 2]))
    _control(pair, fp32_false_true=[0, 1])


def _direct(pair: Pair) -> None:
    pair.config.sequence_batching.direct.SetInParent()


def _direct_with(op_type: str) -> Callable[[Pair], None]:
    def plant(pair: Pair) -> None:
        _direct(pair)
        _insert(pair, op_type)

    return plant


def _direct_with_hidden(pair: Pair) -> None:
    _direct(pair)
    _hide_in_loop(pair, "DynamicQuantizeLinear")


def _warm_up(pair: Pair) -> None:
    pair.config.model_warmup.add(name="zeros", batch_size=1)


def _without_zeros(pair: Pair) -> None:
    pair.states[0].initial_state[0].zero_data = False


def _set(path: str, value: object) -> Callable[[Pair], None]:
    """Set one field, e.g. "config.output.0.name"."""

    def plant(pair: Pair) -> None:
        *parents, last = path.split(".")
        target: Any = pair
        for name in parents:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return plant


FAULTS: list[tuple[str, Effect, str, Callable[[Pair], object]]] = [
    ("ir_version", Effect.REJECTED, "IR version 11", _set("model.ir_version", 11)),
    ("opset", Effect.REJECTED, "opset 22 of 'ai.onnx'", _set("model.opset_import.0.version", 22)),
    ("opset", Effect.REJECTED, "opset 2 of 'com.microsoft'", _set("model.opset_import.1.version", 2)),
    (
        "operators",
        Effect.REJECTED,
        "com.microsoft.GatherBlockQuantized",
        lambda p: _insert(p, "GatherBlockQuantized"),
    ),
    ("operators", Effect.REJECTED, "my.own.Relu", lambda p: _insert(p, "Relu", "my.own")),
    (
        "matmul_bits",
        Effect.REJECTED,
        "'planted' has weights of [8] bits",
        lambda p: _insert(p, "MatMulNBits", bits=8),
    ),
    ("backend", Effect.REJECTED, "backend is 'python'", _set("config.backend", "python")),
    ("backend", Effect.REJECTED, "platform 'tensorrt_plan'", _set("config.platform", "tensorrt_plan")),
    (
        "undeclared_input",
        Effect.REJECTED,
        "'x' is not declared: add it under input",
        lambda p: p.config.input.pop(),
    ),
    ("undeclared_input", Effect.REJECTED, "add it under sequence_batching.state", lambda p: p.states.pop()),
    ("unknown_input", Effect.REJECTED, "'audio' is declared", _set("config.input.0.name", "audio")),
    ("unknown_input", Effect.REJECTED, "'state_x' is declared", _set("states.0.input_name", "state_x")),
    ("unknown_output", Effect.REJECTED, "'text' is declared", _set("config.output.0.name", "text")),
    ("data_types", Effect.REJECTED, "'x' is declared TYPE_FP16", _set("config.input.0.data_type", 10)),
    ("data_types", Effect.REJECTED, "output 'y' is declared TYPE_INT64", _set("config.output.0.data_type", 9)),
    ("dims", Effect.REJECTED, "input 'x' has dims [5], the model [4]", _set("config.input.0.dims.0", 5)),
    ("dims", Effect.REJECTED, "input 'x' has dims [-1]", _set("config.input.0.dims.0", -1)),
    ("dims", Effect.REJECTED, "output 'y' has dims [-1], the model [4]", _set("config.output.0.dims.0", -1)),
    ("dims", Effect.REJECTED, "has dims [4], the model [-1, 4]", _set("config.max_batch_size", 0)),
    ("dynamic_batch", Effect.REJECTED, "'x' has shape [1, 4]", _fix_batch),
    ("optional_input", Effect.REJECTED, "make it required", _set("config.input.0.optional", True)),
    ("parameters", Effect.REJECTED, "'two'", lambda p: _parameter(p, "inter_op_thread_count", "two")),
    ("response_cache", Effect.REJECTED, "turn it off", _set("config.response_cache.enable", True)),
    ("control_input", Effect.REJECTED, "the model lacks it", lambda p: _control(p, fp32_false_true=[0, 1])),
    ("control_input", Effect.REJECTED, "make it TYPE_FP32 [-1, 1]", _control_of_wrong_shape),
    ("state_as_input", Effect.REJECTED, "list it only as a state", _list_as_input),
    ("state_output", Effect.FAILS, "'next_state_x' is none of", _set("states.0.output_name", "next_state_x")),
    ("state_type", Effect.FAILS, "'state_sum' is declared TYPE_FP16", _set("states.0.data_type", 10)),
    ("state_dims", Effect.FAILS, "has dims [-1]: give it a fixed capacity", _set("states.0.dims.0", -1)),
    ("state_dims", Effect.FAILS, "has dims [8], the model [4] per row", _set("states.0.dims.0", 8)),
    ("state_dims", Effect.FAILS, "has dims [1, 4]", lambda p: p.states[0].dims.insert(0, 1)),
    ("warmup", Effect.FAILS, "drop it", _warm_up),
    (
        "initial_state",
        Effect.WRONG,
        "'state_sum' needs one initial_state",
        lambda p: p.states[0].initial_state.pop(),
    ),
    ("initial_state", Effect.WRONG, "with zero_data: true", _without_zeros),
    ("initial_state", Effect.WRONG, "its own type and dims", _set("states.0.initial_state.0.dims.0", 2)),
    ("state_order", Effect.WRONG, "name them state_<what> and next_state_<what>", _swap_by_name),
    ("direct_batch", Effect.WRONG, "'direct' with DynamicQuantizeLSTM", _direct_with("DynamicQuantizeLSTM")),
    ("direct_batch", Effect.WRONG, "'direct' with DynamicQuantizeMatMul", _direct_with("DynamicQuantizeMatMul")),
    ("direct_batch", Effect.WRONG, "'direct' with DynamicQuantizeLinear", _direct_with_hidden),
    ("instance_group", Effect.UNMEANT, "write count and kind", lambda p: p.config.instance_group.pop()),
    ("thread_count", Effect.UNMEANT, "write it", lambda p: p.config.parameters.pop("intra_op_thread_count")),
    (
        "idle_limit",
        Effect.UNMEANT,
        "pauses for 1 s",
        _set("config.sequence_batching.max_sequence_idle_microseconds", 0),
    ),
]


def _parameter(pair: Pair, key: str, value: str) -> None:
    pair.config.parameters[key].string_value = value


def _save(pair: Pair, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(pair.model, path)
    return path


@pytest.mark.parametrize("strategy", ["oldest", "direct"])
def test_a_correct_stateful_pair_passes(tmp_path: Path, strategy: str) -> None:
    pair = Pair()
    if strategy == "direct":
        _direct(pair)
    assert validate(pair.config, _save(pair, tmp_path)) == []


def test_a_correct_stateless_pair_passes(tmp_path: Path) -> None:
    pair = _stateless()
    check(pair.config, _save(pair, tmp_path))


def test_a_declared_control_that_the_model_has_passes(tmp_path: Path) -> None:
    pair = Pair()
    pair.model.graph.input.append(helper.make_tensor_value_info("START", TensorProto.FLOAT, ["batch", 1]))
    _control(pair, fp32_false_true=[0, 1])
    assert validate(pair.config, _save(pair, tmp_path)) == []


@pytest.mark.parametrize("op_type", ["DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_quantised_operators_pass_with_oldest(tmp_path: Path, op_type: str) -> None:
    pair = Pair()
    _insert(pair, op_type)
    assert validate(pair.config, _save(pair, tmp_path)) == []


def test_an_input_may_be_declared_narrower_than_the_model_takes_it(tmp_path: Path) -> None:
    pair = _stateless()
    for port in (pair.model.graph.input[0], pair.model.graph.output[0]):
        port.type.tensor_type.shape.dim[1].dim_param = "width"
    pair.config.output[0].dims[0] = -1
    assert validate(pair.config, _save(pair, tmp_path)) == []


@pytest.mark.parametrize(
    ("rule", "effect", "words", "plant"), FAULTS, ids=[f"{fault[0]}-{fault[2]}" for fault in FAULTS]
)
def test_a_planted_fault_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    effect: Effect,
    words: str,
    plant: Callable[[Pair], None],
) -> None:
    # The rules are under test here, not onnx's own checker, which some of the planted models would not pass.
    monkeypatch.setattr(onnx.checker, "check_model", lambda path: None)
    pair = Pair()
    plant(pair)
    problems = validate(pair.config, _save(pair, tmp_path))
    found = [problem for problem in problems if problem.rule == rule]
    assert found, f"found only {[problem.rule for problem in problems]}"
    assert found[0].effect == effect
    assert words in found[0].message


@pytest.mark.parametrize("size", [0, 9])
def test_a_preferred_batch_outside_the_batch_is_found(tmp_path: Path, size: int) -> None:
    for pair, scheduler in ((_stateless(), "dynamic_batching"), (Pair(), "sequence_batching.oldest")):
        section: Any = pair.config
        for name in scheduler.split("."):
            section = getattr(section, name)
        section.preferred_batch_size.append(size)
        assert [problem.rule for problem in validate(pair.config, _save(pair, tmp_path))] == ["preferred_batch"]


def test_every_rule_has_a_planted_fault() -> None:
    planted = {rule for rule, *_ in FAULTS} | {"preferred_batch"}
    assert planted == {rule.__name__ for rule, _ in RULES}


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None], ids=["empty", "text", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    [problem] = validate(Pair().config, path)
    assert problem.rule == "sound_file"
    assert str(path) in problem.message


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = _save(Pair(), tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    [problem] = validate(Pair().config, path)
    assert problem.rule == "sound_file"


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    pair = _stateless()
    pair.model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "weight"))
    pair.model.graph.node[0].input[1] = "weight"
    path = tmp_path / "model.onnx"
    onnx.save(pair.model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert validate(pair.config, path) == []
    (tmp_path / "weights.bin").unlink()
    [problem] = validate(pair.config, path)
    assert "weights.bin" in problem.message


def test_check_lists_everything_and_names_the_image(tmp_path: Path) -> None:
    pair = Pair()
    pair.config.backend = "python"
    pair.config.instance_group.pop()
    with pytest.raises(UnfitModelError) as caught:
        check(pair.config, _save(pair, tmp_path))
    assert [problem.rule for problem in caught.value.problems] == ["backend", "instance_group"]
    assert target_runtime.IMAGE in str(caught.value)
    assert "'counter'" in str(caught.value)
