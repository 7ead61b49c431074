"""The backend's execute for models with states, in process: one run for many streams, and what a fault leaves."""

from __future__ import annotations

import functools
import random
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.specs import ServingSpec
from tests import tiny_models
from tests.serving.fake_pb_utils import InferenceRequest, InferenceResponse, Logger, Tensor, TritonError
from tests.serving.test_backend import Recorder, error_of, loaded

MODEL = tiny_models.listen()
OUTPUTS = [tensor.name for tensor in MODEL.spec.outputs]


class Instance:
    """A loaded instance with a clock that only the test turns."""

    def __init__(self, backend: ModuleType, tmp_path: Path) -> None:
        Logger.warnings.clear()
        self.model = loaded(backend, tmp_path, tiny_models.listen(serving=ServingSpec(max_streams=8)))
        assert Logger.warnings == []  # the warm-up ran
        self.now = 0.0
        self.model._streams._clock = lambda: self.now

    @property
    def runs(self) -> list[int]:
        recorder = self.model._session
        assert isinstance(recorder, Recorder)
        return recorder.runs

    def execute(self, *requests: InferenceRequest) -> list[InferenceResponse]:
        responses: list[InferenceResponse] = self.model.execute(requests)
        assert len(responses) == len(requests)
        return responses

    def level(self, request: InferenceRequest) -> float:
        (response,) = self.execute(request)
        return level(response)


@pytest.fixture
def instance(backend: ModuleType, tmp_path: Path) -> Instance:
    return Instance(backend, tmp_path)


def level(response: InferenceResponse) -> float:
    return float(response.arrays()["level"][0, 15])


def ask(stream: int | str, value: int, control: str = "", length: int = 16) -> InferenceRequest:
    """One chunk; the states are there as Triton sends them with every request: the initial ones, here nonsense."""
    arrays = {
        "pcm": np.full((1, 16), value, np.int16),
        "lengths": np.array([[length]], np.int32),
        "state_sum": np.array([[999]]),
        "state_level": np.full((1, 16), 999, np.float32),
    }
    return InferenceRequest(arrays, OUTPUTS, stream, "S" in control, "E" in control)


@functools.cache
def in_process() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL.graph.SerializeToString(), providers=["CPUExecutionProvider"])


def alone(*values: int) -> list[float]:
    """The levels that a stream of constant chunks gives, in process and by itself."""
    session = in_process()
    states, levels = {"state_sum": np.zeros((1, 1), np.int64), "state_level": np.zeros((1, 16), np.float32)}, []
    for value in values:
        feed = {"pcm": np.full((1, 16), value, np.int16), "lengths": np.array([[16]], np.int32), **states}
        found = session.run(["level", "next_state_sum", "next_state_level"], feed)
        levels.append(float(found[0][0, 15]))
        states = {"state_sum": found[1], "state_level": found[2]}
    return levels


def test_streams_share_runs_and_not_states(instance: Instance) -> None:
    instance.execute(ask("a", 1, "S"), ask(8, 2, "S"))
    instance.execute(ask(8, 3), ask("c", 7, "S"), ask("a", 4))
    responses = instance.execute(ask("a", 5), ask("c", 8), ask(8, 6))
    assert instance.runs == [2, 3, 3]
    assert [level(response) for response in responses] == [alone(1, 4, 5)[-1], alone(7, 8)[-1], alone(2, 3, 6)[-1]]
    for response in responses:
        assert list(response.arrays()) == OUTPUTS  # no states among them
        np.testing.assert_array_equal(response.arrays()["rows"], [[3]])


def test_start_on_a_live_stream_begins_again(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"))
    assert instance.level(ask(1, 3, "S")) == alone(3)[0]
    assert instance.level(ask(1, 4)) == alone(3, 4)[1]


def test_a_reused_id_knows_nothing(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"), ask(2, 5, "S"))
    instance.execute(ask(1, 5, "E"))
    assert instance.level(ask(1, 3, "S")) == alone(3)[0]
    assert instance.level(ask(2, 3)) == alone(5, 3)[1]


@pytest.mark.parametrize("control", ["", "E"])
def test_a_stream_that_is_not_there_is_refused_alone(instance: Instance, control: str) -> None:
    good, bad = instance.execute(ask(1, 5, "S"), ask("who", 5, control))
    assert error_of(bad).code == TritonError.NOT_FOUND
    assert "no such stream: 'who' was never started" in error_of(bad).message
    assert level(good) == alone(5)[0]


def test_after_end_there_is_no_stream(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"))
    assert instance.level(ask(1, 3, "E")) == alone(5, 3)[1]
    (late,) = instance.execute(ask(1, 4))
    assert error_of(late).code == TritonError.NOT_FOUND
    assert len(instance.model._streams) == 0


def test_a_stream_of_one_request_leaves_nothing(instance: Instance) -> None:
    assert instance.level(ask(1, 3, "SE")) == alone(3)[0]
    assert len(instance.model._streams) == 0


def test_requests_of_one_stream_in_one_call_are_answered_in_order(instance: Instance) -> None:
    responses = instance.execute(ask(1, 1, "S"), ask(2, 9, "S"), ask(1, 2), ask(1, 3, "E"), ask(1, 4, "S"), ask(2, 8))
    found = [level(response) for response in responses]
    first, second = alone(1, 2, 3), alone(9, 8)
    assert found == [first[0], second[0], first[1], first[2], alone(4)[0], second[1]]
    assert instance.runs == [2, 2, 1, 1]


def broken(request: InferenceRequest, **arrays: Any) -> InferenceRequest:
    request.arrays |= arrays
    return request


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pcm": np.ones((1, 16), np.float32)}, "input 'pcm': expected int16, got float32"),
        ({"pcm": np.ones((1, 15), np.int16)}, "input 'pcm': expected shape [batch, 16], got [1, 15]"),
        ({"pcm": np.ones((0, 16), np.int16)}, "input 'pcm': shape [0, 16] holds nothing"),
        (
            {"pcm": np.ones((2, 16), np.int16), "lengths": np.full((2, 1), 16, np.int32)},
            "expected 1 row, as a stream has, got 2",
        ),
        ({"lengths": np.array([[9999]], np.int32)}, "the model failed: "),
    ],
)
def test_a_bad_request_does_not_touch_its_stream(instance: Instance, arrays: dict[str, Any], message: str) -> None:
    instance.execute(ask(1, 5, "S"), ask(2, 6, "S"))
    bad, good = instance.execute(broken(ask(1, 4), **arrays), ask(2, 4))
    assert error_of(bad).message.startswith(message)
    assert level(good) == alone(6, 4)[1]
    assert instance.level(ask(1, 3)) == alone(5, 3)[1]


@pytest.mark.parametrize("length", [17, 9999])
def test_a_start_that_fails_starts_nothing(instance: Instance, length: int) -> None:
    instance.execute(ask(1, 5, "S"))
    request = ask(1, 4, "S", length=length)
    if length == 17:
        request.arrays["pcm"] = np.ones((1, 17), np.int16)
    (bad,) = instance.execute(request)
    assert bad.error is not None
    (late,) = instance.execute(ask(1, 4))
    assert error_of(late).code == TritonError.NOT_FOUND


def test_an_end_that_fails_ends_nevertheless(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"))
    (bad,) = instance.execute(ask(1, 5, "E", length=9999))
    assert bad.error is not None
    assert len(instance.model._streams) == 0


def test_the_guilty_one_of_a_failed_run_is_found_and_all_states_are_right(instance: Instance) -> None:
    instance.execute(*(ask(stream, stream, "S") for stream in (1, 2, 3)))
    first, bad, last = instance.execute(ask(1, 7), ask(2, 7, length=9999), ask(3, 7, "E"))
    assert error_of(bad).code == TritonError.INTERNAL
    assert instance.runs == [3, 3, 1, 1, 1]
    assert [level(first), level(last)] == [alone(1, 7)[1], alone(3, 7)[1]]
    again, next_one = instance.execute(ask(2, 7), ask(1, 8))
    assert [level(again), level(next_one)] == [alone(2, 7)[1], alone(1, 7, 8)[2]]


def test_a_start_above_the_limit_is_refused_at_once(instance: Instance) -> None:
    started = instance.execute(*(ask(stream, stream, "S") for stream in range(1, 10)))
    assert [response.error is None for response in started] == [True] * 8 + [False]
    assert error_of(started[8]).code == TritonError.UNAVAILABLE
    assert "8 are open" in error_of(started[8]).message
    assert "raise the model's max_streams" in error_of(started[8]).message
    instance.execute(ask(1, 1, "E"))
    assert instance.level(ask(9, 3, "S")) == alone(3)[0]
    assert instance.level(ask(8, 3)) == alone(8, 3)[1]


def test_silent_streams_are_forgotten_after_triton_forgot_them(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"), ask(2, 5, "S"))
    instance.now += 20.9
    assert instance.level(ask(1, 3)) == alone(5, 3)[1]
    instance.now += 0.2
    (late,) = instance.execute(ask(2, 3))
    assert error_of(late).code == TritonError.NOT_FOUND


def test_bad_requests_are_no_silence(instance: Instance) -> None:
    """Triton counts them, too, so a stream must not expire here while Triton keeps it."""
    instance.execute(ask(1, 5, "S"))
    for _ in range(5):
        instance.now += 9.0
        instance.execute(broken(ask(1, 4), pcm=np.ones((1, 15), np.int16)))
    assert instance.level(ask(1, 3)) == alone(5, 3)[1]


def test_a_request_beyond_its_deadline_is_not_run_and_may_come_again(instance: Instance) -> None:
    now_us = time.monotonic_ns() // 1000
    instance.execute(ask(1, 5, "S"), ask(2, 5, "S"))
    instance.execute(due(ask(1, 6), now_us), ask(2, 6))
    late, good = instance.execute(due(ask(1, 7), now_us - 10**9), ask(2, 7))
    assert error_of(late).code == TritonError.UNAVAILABLE
    assert error_of(late).message.startswith("the deadline of 10 s has passed: the request waited 1e+03 s and was not")
    assert level(good) == alone(5, 6, 7)[2]
    assert instance.runs == [2, 2, 1]
    assert instance.level(due(ask(1, 7), now_us)) == alone(5, 6, 7)[2]
    assert instance.level(due(ask(1, 8, "E"), now_us - 10**9)) == alone(5, 6, 7, 8)[3]


def due(request: InferenceRequest, sent_us: int) -> InferenceRequest:
    request.timeout_us, request.parameters_json = 10_000_000, f'{{"sent_us": {sent_us}}}'
    return request


def test_fillers_are_answered_and_take_no_part(instance: Instance) -> None:
    responses = instance.execute(ask(1, 5, "S"), ask(0, 9), ask(2, 6, "S"), ask("", 9))
    assert instance.runs == [2]
    assert [list(response.arrays()) for response in responses] == [OUTPUTS, [], OUTPUTS, []]


def test_a_filler_that_only_its_ready_control_tells(instance: Instance) -> None:
    instance.model._ready = "READY"
    first, filler = ask(1, 5, "S"), ask(2, 9)
    first.arrays["READY"], filler.arrays["READY"] = np.array([[1]], np.int32), np.array([[0]], np.int32)
    responses = instance.execute(first, filler)
    assert [list(response.arrays()) for response in responses] == [OUTPUTS, []]


def test_a_client_cannot_set_the_state(instance: Instance) -> None:
    instance.execute(ask(1, 5, "S"))
    request = broken(ask(1, 3), state_level=np.full((1, 16), np.nan, np.float32))
    assert instance.level(request) == alone(5, 3)[1]


def test_lengths_pass_through(instance: Instance) -> None:
    request = ask(1, 5, "S", length=3)
    (response,) = instance.execute(request)
    assert response.arrays()["output_lengths"].item() == 3
    assert isinstance(response.output_tensors[0], Tensor)


def test_random_calls_against_streams_that_are_alone(instance: Instance) -> None:
    """Calls of up to 6 requests of 5 streams: starts, ends, faults, several of one stream, unknown ones."""
    draw = random.Random(11)
    heard = dict[int, list[int]]()
    wrong_shape, fails = {"pcm": np.ones((1, 15), np.int16)}, {"lengths": np.array([[9999]], np.int32)}
    outcomes = {"answered": 0, "refused": 0}
    for _ in range(300):
        requests, expected = list[InferenceRequest](), list[float | None]()
        for _ in range(draw.randint(1, 6)):
            stream, value = draw.randint(1, 5), draw.randint(-99, 99)
            control = draw.choice(["", "", "", "", "S", "S", "E", "SE"])
            fault: dict[str, Any] = draw.choice([{}, {}, {}, {}, wrong_shape, fails])
            requests.append(broken(ask(stream, value, control), **fault))
            before = [] if "S" in control else heard.get(stream)
            if before is not None and not fault:
                heard[stream] = [*before, value]
            elif "S" in control:
                heard.pop(stream, None)
            expected.append(None if fault or before is None else alone(*heard[stream])[-1])
            if "E" in control:
                heard.pop(stream, None)
        for response, answer in zip(instance.execute(*requests), expected, strict=True):
            assert (None if response.error else level(response)) == answer
            outcomes["refused" if response.error else "answered"] += 1
        assert len(instance.model._streams) == len(heard)
    assert min(outcomes.values()) > 200
