"""A sound graph passes every guard; each guard finds its planted fault, names the place and says what to do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from optimize.quantize import guards
from optimize.quantize.guards import GUARDS, GuardError, Subject, find, require
from optimize.quantize.method import Profile
from optimize.quantize.plan import Choice
from tests.optimize.quantize.graphs import CONTRIB, Arrays, bytes_, floats, graph, loop_body, model, node

K, HIDDEN = 16, 16
X = {"x": ("batch", "time", K)}
Y = {"y": ("batch", "time", K)}
VNNI = ("avx2", "avx512_vnni")
NO_VNNI = ("avx2",)
INT8 = Choice("MatMul", "static", "measured: faster")
FP32 = Choice("GRU", "fp32", "measured: slower")

WEIGHTS: Arrays = {
    "W": bytes_(K, K),
    "V": floats(K, K),
    "s": np.float32(0.05),
    "zu": np.uint8(128),
    "zi": np.int8(0),
    "three": np.array(3),
}
STATIC = [node("QuantizeLinear", "x s zu", "q"), node("MatMulIntegerToFloat", "q W s s zu", "y", CONTRIB)]


def int8(nodes: Sequence[NodeProto] = (), weights: Arrays | None = None, **changed: Any) -> ModelProto:
    """A sound int8 model, x to y by static scales, and more nodes beside it."""
    return model([*STATIC, *nodes], changed.get("inputs", X), changed.get("outputs", Y), {**WEIGHTS, **(weights or {})})


def gru(name: str = "gru", **attributes: Any) -> list[NodeProto]:
    attributes = {"hidden_size": HIDDEN, "linear_before_reset": 1, **attributes}
    return [node("Transpose", "x", "xt", perm=[1, 0, 2]), node("GRU", "xt GW GR", "g", name=name, **attributes)]


GRU_WEIGHTS: Arrays = {"GW": floats(1, 3 * HIDDEN, K), "GR": floats(1, 3 * HIDDEN, HIDDEN)}


def in_scan(product: NodeProto) -> list[NodeProto]:
    body = graph(
        [product, node("Identity", "x_t", "y_t")],
        {"h": (K, K), "x_t": ("time", K)},
        {"h_next": (K, K), "y_t": ("time", K)},
    )
    return [node("Scan", "V x", "last kept", body=body, num_scan_inputs=1, name="scan")]


def states(shape: tuple[int | str, ...] = ("batch", K), named: str = "next_state_h") -> ModelProto:
    """A second input and output, which are a state if so named."""
    return int8(
        [node("Identity", "state_h", named)],
        inputs={**X, "state_h": ("batch", K)},
        outputs={**Y, named: shape},
    )


def swapped_by_name() -> ModelProto:
    """state_a, state_ab against next_state_a_, next_state_a: the sorted lists pair a with a and ab with a_."""
    return int8(
        [node("Identity", "state_a", "next_state_a"), node("Identity", "state_ab", "next_state_a_")],
        inputs={**X, "state_a": ("batch", K), "state_ab": ("batch", K)},
        outputs={**Y, "next_state_a": ("batch", K), "next_state_a_": ("batch", K)},
    )


def newer(opset: int = 17, ir: int = 8) -> ModelProto:
    found = int8()
    found.opset_import[0].version, found.ir_version = opset, ir
    return found


def renamed_axis(index: int, size: int) -> ModelProto:
    found = int8()
    found.graph.output[0].type.tensor_type.shape.dim[index].dim_value = size
    return found


def frozen_to(steps: int) -> ModelProto:
    """An output whose time axis is declared to be the request's, but cut or repeated to a constant."""
    nodes = [node("Slice", "y from to one", "cut")]
    weights = {"from": np.array([0]), "to": np.array([steps]), "one": np.array([1])}
    return int8(nodes, weights, outputs={**Y, "cut": ("batch", "time", K)})


def reshaped_to(steps: int) -> ModelProto:
    nodes = [node("Reshape", "y shape", "cut")]
    return int8(nodes, {"shape": np.array([-1, steps, K])}, outputs={**Y, "cut": ("rows", steps, K)})


def loud(weights: NDArray[np.int8]) -> ModelProto:
    return int8(weights={"W": weights, "s": np.float32(0.01), "zu": np.uint8(0)})


REQUEST: dict[str, NDArray[np.generic]] = {"x": np.abs(floats(2, 5, K)) + 1}
BEFORE = model([node("MatMul", "x W", "y", name="product")], X, Y, {"W": floats(K, K)})


def done() -> ModelProto:
    """The plan for ``BEFORE`` carried out, the new node named as rewrites name it."""
    found = int8()
    found.graph.node[1].name = "product/MatMulIntegerToFloat_0"
    return found


@dataclass(frozen=True)
class Planted:
    """A fault that ``guard`` finds in ``faulty`` at ``node``, and the like of it that is none."""

    guard: str
    faulty: Subject
    sound: Subject
    node: str
    says: str


def claimed(model: ModelProto, profile: Profile | None = "throughput", **fields: Any) -> Subject:
    return Subject(model, profile, **{"isa": VNNI, **fields})


PLANTED = [
    Planted(
        "undone plan",
        claimed(int8(), before=BEFORE, choices={"product": INT8}),
        claimed(done(), before=BEFORE, choices={"product": INT8}),
        "product",
        "--retune",
    ),
    Planted(
        "unquantised recurrence",
        claimed(int8(gru(), GRU_WEIGHTS)),
        claimed(int8(gru(), GRU_WEIGHTS), choices={"gru": FP32}),
        "gru",
        "nothing says why",
    ),
    Planted(
        "unquantised recurrence",
        claimed(int8(gru(), GRU_WEIGHTS), None, choices={"gru": Choice("GRU", "scan", "")}),
        claimed(int8(gru(), GRU_WEIGHTS), None),
        "gru",
        "quantise it",
    ),
    Planted(
        "hidden RNN weights",
        claimed(
            int8([node("Identity", "hidden", "GW"), *gru()], {"hidden": GRU_WEIGHTS["GW"], "GR": GRU_WEIGHTS["GR"]})
        ),
        claimed(int8(gru(), GRU_WEIGHTS)),
        "gru",
        "no initializers",
    ),
    Planted(
        "GRU flavour",
        claimed(int8(gru(linear_before_reset=0), GRU_WEIGHTS)),
        claimed(int8(gru(), GRU_WEIGHTS)),
        "gru",
        "linear_before_reset is not 1",
    ),
    Planted(
        "RNN layout", claimed(int8(gru(layout=1), GRU_WEIGHTS)), claimed(int8(gru(), GRU_WEIGHTS)), "gru", "layout=1"
    ),
    Planted("state pairs", claimed(swapped_by_name()), claimed(states()), "state_ab", "next_state_a_"),
    Planted("state pairs", claimed(states(named="h_next")), claimed(states()), "", "not as many"),
    Planted("state pairs", claimed(states(("batch", 1, K))), claimed(states()), "state_h", "next_state_h"),
    Planted("runtime limits", claimed(newer(opset=22)), claimed(newer(opset=21)), "", "opset 22"),
    Planted("runtime limits", claimed(newer(ir=11)), claimed(newer(ir=10)), "", "IR version 11"),
    Planted(
        "runtime limits",
        claimed(int8([node("GatherBlockQuantized", "V three s", "unknown", CONTRIB)])),
        claimed(int8()),
        "",
        "GatherBlockQuantized",
    ),
    Planted(
        "MatMulNBits width",
        claimed(
            int8([node("MatMulNBits", "x B s", "n", CONTRIB, K=K, N=K, bits=8, block_size=16)], {"B": bytes_(K, 1, 16)})
        ),
        claimed(
            int8([node("MatMulNBits", "x B s", "n", CONTRIB, K=K, N=K, bits=4, block_size=16)], {"B": bytes_(K, 1, 8)})
        ),
        "",
        "MatMulNBits 'n'",
    ),
    Planted(
        "unpacked weights",
        claimed(int8([node("DequantizeLinear", "W s zi", "Wf"), node("MatMul", "x Wf", "m")])),
        claimed(int8()),
        "m",
        "multiplies in fp32",
    ),
    Planted(
        "fp32 bodies",
        claimed(int8(in_scan(node("MatMul", "h V", "h_next")))),
        claimed(int8(in_scan(node("MatMul", "h V", "h_next"))), choices={"h_next": Choice("MatMul", "fp32", "slower")}),
        "h_next",
        "Scan 'scan'",
    ),
    Planted(
        "fp32 bodies",
        claimed(
            int8(
                [
                    node(
                        "Loop",
                        "three - x",
                        "l",
                        body=loop_body([node("MatMul", "h V", "h_next")], carried=X["x"]),
                        name="loop",
                    )
                ]
            )
        ),
        claimed(int8([node("MatMul", "x V", "m")])),
        "h_next",
        "Loop 'loop'",
    ),
    Planted(
        "batch dependence",
        claimed(int8(in_scan(node("DynamicQuantizeMatMul", "h W s", "h_next", CONTRIB))), "invariant"),
        claimed(int8(in_scan(node("DynamicQuantizeMatMul", "h W s", "h_next", CONTRIB))), "throughput"),
        "h_next",
        "per-row",
    ),
    Planted("frozen batch", claimed(renamed_axis(0, 2)), claimed(renamed_axis(2, K)), "y", "frozen at 2"),
    Planted(
        "frozen inside", claimed(frozen_to(16)), claimed(frozen_to(1000)), "cut", "size 16 where the request's is 24"
    ),
    Planted("frozen inside", claimed(reshaped_to(5)), claimed(reshaped_to(8)), "", "does not run"),
    Planted("frozen inside", claimed(reshaped_to(16)), claimed(reshaped_to(4)), "", "does not run"),
    Planted(
        "frozen inside",
        claimed(frozen_to(5), requests=[{"x": floats(1, 5, K)}, {"x": floats(1, 6, K)}]),
        claimed(frozen_to(6), requests=[{"x": floats(1, 5, K)}, {"x": floats(1, 6, K)}]),
        "cut",
        "size 5 where the request's is 6",
    ),
    Planted(
        "vector width",
        claimed(
            int8([node("Concat", "x x x one", "wide", axis=2), node("Log", "wide", "log")], {"one": floats(3, 24, 1)}),
            "invariant",
        ),
        claimed(int8([node("Concat", "x x x", "wide", axis=2), node("Log", "wide", "log")]), "invariant"),
        "log",
        "last axis of 49",
    ),
    Planted(
        "saturating products",
        claimed(loud(np.full((K, K), 127, np.int8)), requests=[REQUEST], isa=NO_VNNI),
        claimed(loud(np.full((K, K), 127, np.int8)), requests=[REQUEST]),
        "y",
        "reduce_range",
    ),
    Planted(
        "saturating products",
        claimed(loud(np.full((K, K), 127, np.int8)), requests=[REQUEST], isa=("avx2", "avx512f")),
        claimed(loud(np.full((K, K), 64, np.int8)), requests=[REQUEST], isa=NO_VNNI),
        "y",
        "100.0%",
    ),
    Planted(
        "saturable products",
        claimed(loud(np.full((K, K), 127, np.int8)), isa=NO_VNNI),
        claimed(loud(np.full((K, K), 64, np.int8)), isa=NO_VNNI),
        "y",
        "not tried on requests",
    ),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.guard)
def test_a_planted_fault_is_found(planted: Planted) -> None:
    found = find(planted.faulty, [planted.guard])
    assert {finding.fault.node for finding in found} == {planted.node}
    assert planted.says in str(found[0])
    assert all(planted.guard in str(finding) and planted.node in str(finding) for finding in found)
    assert find(planted.sound, [planted.guard]) == []


def test_every_guard_has_a_planted_fault() -> None:
    assert {guard.name for guard in GUARDS} == {planted.guard for planted in PLANTED}
    assert all(guard.why for guard in GUARDS)


@pytest.mark.parametrize("profile", ["invariant", None])
def test_a_sound_graph_passes_all_guards(profile: Profile | None) -> None:
    assert find(claimed(int8(), profile)) == []
    assert require(done(), before=BEFORE, choices={"product": INT8}, profile=profile, isa=VNNI) == []


def test_findings_are_an_error_that_names_guard_and_node() -> None:
    with pytest.raises(GuardError, match="unquantised recurrence 'gru'") as error:
        require(int8(gru(linear_before_reset=0), GRU_WEIGHTS), profile="throughput", isa=VNNI)
    assert {finding.guard for finding in error.value.findings} == {"unquantised recurrence", "GRU flavour"}


def test_warnings_are_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (finding,) = require(loud(np.full((K, K), 127, np.int8)), profile="throughput", isa=NO_VNNI)
    assert finding.warning
    assert "saturable products 'y'" in caplog.text


def test_this_machine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = replace(claimed(loud(np.full((K, K), 127, np.int8))), isa=None)
    for isa, found in ((VNNI, 0), (NO_VNNI, 1)):
        monkeypatch.setattr(guards, "environment", lambda threads, isa=isa: {"isa": isa})
        assert len(find(subject, ["saturable products"])) == found
