"""The sentence on made-up profiles, one for each rule; sums by operator and layer; whose layer a node is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.profiler.machine import Level, Machine
from optimize.profiler.profile import TOP, Part, Profile, layer_of
from optimize.profiler.usual import deducted, usual
from optimize.profiler.verdict import verdict

MACHINE = Machine((Level("L2", 1 << 20, 100.0), Level("memory", 1 << 40, 10.0)), 100.0, 400.0)
LSTM = Part(
    "/lstm/LSTM", "DynamicQuantizeLSTM", "lstm/LSTM", 0.31, macs=5e7, limit_ms=0.18, arithmetic_ms=0.18, low=True
)


def profile(*parts: Part, outside: float = 0.0, **changed: object) -> Profile:
    ms = sum(part.ms for part in parts) + outside
    made = Profile("student_onnx_int8", "onnxruntime", "int8", 1, 100, ms, ms, ms, 0.0, outside, 800_000, list(parts))
    return replace(made, **changed)  # type: ignore[arg-type]


def small(count: int) -> list[Part]:
    return [Part(f"/x/Add_{i}", "Add", "x", ms=0.002, limit_ms=1e-5) for i in range(count)]


RULES = [
    (
        profile(LSTM, replace(LSTM, name="/lstm/LSTM_1"), *small(4)),
        "99 % of the time is in the 2 DynamicQuantizeLSTM, at 58 % of the machine's int8 rate: bound by arithmetic of "
        "one step at a time; try narrower layers",
    ),
    (
        profile(
            replace(LSTM, operator="LSTM", low=False, arithmetic_ms=0.01), weight_bytes=8_000_000, precision="fp32"
        ),
        "100 % of the time is in the LSTM, at 58 % of the bandwidth of what holds them (the weights of 8.0 MB exceed "
        "the L2): bound by memory; try to quantise, or a batch",
    ),
    (
        profile(replace(LSTM, limit_ms=0.02, arithmetic_ms=0.02)),
        "100 % of the time is in the DynamicQuantizeLSTM, at 6 % of the machine's limit: bound by one step waiting for "
        "another; try a batch, or fewer steps",
    ),
    (
        profile(replace(LSTM, operator="MatMul", limit_ms=0.02, arithmetic_ms=0.02)),
        "products too small to fill its arithmetic units; try a batch, or wider and fewer layers",
    ),
    (
        profile(*small(48), replace(LSTM, ms=0.05)),
        "66 % of the time is in 48 calls that each take under 3 µs: overhead of small operators; try to fuse them",
    ),
    (profile(LSTM, outside=0.9, call_ms=0.9), "74 % of the time is in no operator, it is the runtime's own"),
    (profile(LSTM, outside=0.9, call_ms=0.01), "a call without work explains 1 %: the machine had other work"),
    (profile(LSTM, outside=0.9, runtime="torch"), "it is Python's and torch's: overhead; try ONNX Runtime"),
    (profile(Part("t", "Transpose", "x", ms=1.0, limit_ms=0.1)), "which multiply nothing: try to fuse them"),
    (profile(Part("t", "Transpose", "x", ms=1.0, limit_ms=0.9)), "90 % of the bandwidth: bound by moving activations"),
]


@pytest.mark.parametrize(("made", "said"), RULES)
def test_the_sentence_follows_the_rules(made: Profile, said: str) -> None:
    assert said in verdict(made, MACHINE)


def test_a_batch_is_named_with_what_it_gains_or_not_at_all() -> None:
    slow = profile(replace(LSTM, limit_ms=0.02, arithmetic_ms=0.02))
    batched = replace(slow, batch=16, ms=8 * slow.ms)
    assert "a batch (of 16: 2.0 times as many items a second)" in verdict(slow, MACHINE, batched)
    assert "batches of 16 gain nothing" in verdict(slow, MACHINE, replace(batched, ms=16 * slow.ms))


def test_a_profile_of_nothing_has_a_sentence_too() -> None:
    assert verdict(profile(), MACHINE)


def test_sums_by_operator_and_by_layer() -> None:
    made = profile(LSTM, *small(3), Part("/y/Add", "Add", "y", ms=1.0, macs=5.0))
    kinds = {part.operator: part for part in made.by_operator()}
    assert list(kinds) == ["Add", "DynamicQuantizeLSTM"]  # the longest first
    assert (kinds["Add"].nodes, kinds["Add"].calls, kinds["Add"].macs) == (4, 4, 5)
    assert [(part.layer, part.nodes) for part in made.by_layer()] == [("y", 1), ("lstm/LSTM", 1), ("x", 3)]
    assert made.summary().by_operator() == made.by_operator()


@pytest.mark.parametrize(
    ("names", "layer"),
    [
        (["/blocks.0/attention/MatMul/MatMulIntegerToFloat_1"], "blocks.0/attention"),
        (["/lstm/LSTM_1/DynamicQuantizeLSTM_3"], "lstm/LSTM_1"),
        (["/front_end/MatMul/MatmulTransposeFusion/"], "front_end"),
        (["SkipLayerNormalization", "/layers.0/Add_output_0"], "layers.0"),
        (["ReorderInput", "reorder_token_0", "/blocks.1/convolution/Conv"], "blocks.1/convolution"),
        (["/Sub", "/Sub_output_0"], TOP),
        ([""], TOP),
    ],
)
def test_the_layer_is_the_modules_path(names: list[str], layer: str) -> None:
    assert layer_of(*names) == layer


def test_the_fastest_quarter_of_every_request_counts() -> None:
    assert usual([1, 10, 100, 50, 2, 20, 3, 30], requests=2) == (1 + 10) / 2
    assert usual([4.0], requests=1) == 4


TIMES = st.dictionaries(st.integers(0, 9), st.floats(0, 1e4), min_size=1)


@given(TIMES, st.floats(0, 1e5))
def test_deducting_leaves_what_may_be_left_and_never_less_than_nothing(us: dict[int, float], most: float) -> None:
    left, each = deducted(us, dict.fromkeys(us, 2.0), most)
    assert sum(left.values()) <= most * (1 + 1e-6) + 1e-6
    assert all(0 <= left[key] <= us[key] for key in us)
    assert 0 <= each <= 5
    if sum(us.values()) <= most:
        assert (left, each) == (us, 0)


def test_what_is_too_much_comes_off_every_call_alike() -> None:
    left, each = deducted({0: 10.0, 1: 21.0, 2: 0.5}, {0: 1, 1: 2, 2: 1}, most_us=25.0)
    assert each == pytest.approx(2)
    assert left == pytest.approx({0: 8, 1: 17, 2: 0})


def test_a_level_is_the_nearest_that_holds_it() -> None:
    assert [MACHINE.level(size).name for size in (0, 1 << 20, (1 << 20) + 1, 1 << 50)] == [
        "L2",
        "L2",
        "memory",
        "memory",
    ]
    assert MACHINE.moving_s(1e9, 1) == pytest.approx(0.01)
    assert MACHINE.moving_s(1e9, 1 << 30) == pytest.approx(0.1)
    assert MACHINE.multiplying_s(1e9, low=True) == pytest.approx(MACHINE.multiplying_s(1e9, low=False) / 4)
