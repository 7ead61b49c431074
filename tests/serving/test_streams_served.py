"""Streams through a real Triton: many at once, of every age, each bit for bit what it is alone in process."""

from __future__ import annotations

import functools
import random
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving.launcher import Server
from tests import tiny_models
from tests.serving.test_served import inputs
from tests.tiny_models import LISTEN_CHUNK

MODEL = tiny_models.listen()
OUTPUTS = [tensor.name for tensor in MODEL.spec.outputs]
ANSWERS = [name for name in OUTPUTS if name != "rows"]
Answer = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Chunk:
    """One request of a stream."""

    stream: int | str
    pcm: npt.NDArray[Any]
    length: int = LISTEN_CHUNK
    start: bool = False
    end: bool = False

    @property
    def arrays(self) -> Answer:
        return {"pcm": self.pcm[None], "lengths": np.array([[self.length]], np.int32)}


@pytest.fixture(scope="module")
def client(triton: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with closing(triton_grpc.InferenceServerClient(triton.grpc)) as client:
        yield client


def send(client: triton_grpc.InferenceServerClient, model: str, chunks: Sequence[Chunk]) -> list[Any]:
    """The answers (by name) or errors, all chunks in flight at once."""
    answers: list[Future[Any]] = [Future() for _ in chunks]
    for chunk, answer in zip(chunks, answers, strict=True):
        client.async_infer(
            model,
            inputs(**chunk.arrays),
            lambda result, error, answer=answer: answer.set_result(error or result),
            sequence_id=chunk.stream,
            sequence_start=chunk.start,
            sequence_end=chunk.end,
            client_timeout=60,
        )
    results = [answer.result(60) for answer in answers]
    return [
        result
        if isinstance(result, InferenceServerException)
        else {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
        for result in results
    ]


def level(client: triton_grpc.InferenceServerClient, model: str, chunk: Chunk) -> float:
    (answer,) = send(client, model, [chunk])
    if isinstance(answer, InferenceServerException):
        raise answer
    return float(answer["level"][0, 15])


@functools.cache
def in_process() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL.graph.SerializeToString(), providers=["CPUExecutionProvider"])


def alone(chunks: Sequence[Chunk]) -> list[Answer]:
    """The same chunks as the only stream of an ONNX Runtime session."""
    session = in_process()
    states: Answer = {state.input_name: np.zeros((1, *state.shape), state.dtype) for state in MODEL.spec.states}
    answers = []
    for chunk in chunks:
        found = dict(zip(MODEL.spec.output_names, session.run(None, {**chunk.arrays, **states}), strict=True))
        states = {state.input_name: found[state.output_name] for state in MODEL.spec.states}
        answers.append({name: found[name] for name in OUTPUTS})
    return answers


def constant(stream: int | str, value: int, control: str = "") -> Chunk:
    return Chunk(stream, np.full(LISTEN_CHUNK, value, np.int16), start="S" in control, end="E" in control)


def levels(*values: int) -> list[float]:
    return [float(answer["level"][0, 15]) for answer in alone([constant(1, value) for value in values])]


@pytest.mark.parametrize("model", ["listen", "listen_direct", "listen_direct_with_controls"])
def test_32_interleaved_streams_are_what_each_is_alone(client: triton_grpc.InferenceServerClient, model: str) -> None:
    """Streams of 1 to 8 chunks that begin at any time; half their names are numbers, half are words."""
    draw, values = random.Random(5), np.random.default_rng(5)
    streams: list[list[Chunk]] = []
    for index in range(32):
        count = draw.randint(1, 8)
        streams.append(
            [
                Chunk(
                    1000 + index if index % 2 else f"{model}-{index}",
                    values.integers(-9999, 9999, LISTEN_CHUNK, np.int16),
                    draw.randint(1, LISTEN_CHUNK) if place == count - 1 else LISTEN_CHUNK,
                    place == 0,
                    place == count - 1,
                )
                for place in range(count)
            ]
        )
    answers: list[list[Answer]] = [[] for _ in streams]
    while waiting := [index for index, stream in enumerate(streams) if len(answers[index]) < len(stream)]:
        together = draw.sample(waiting, draw.randint(1, len(waiting)))
        sent = send(client, model, [streams[index][len(answers[index])] for index in together])
        for index, answer in zip(together, sent, strict=True):
            assert isinstance(answer, dict), answer
            answers[index].append(answer)
    for stream, found in zip(streams, answers, strict=True):
        for answer, expected in zip(found, alone(stream), strict=True):
            assert list(answer) == OUTPUTS
            for name in ANSWERS:
                np.testing.assert_array_equal(answer[name], expected[name])


def test_openings_that_streams_share_are_what_each_is_alone(
    client: triton_grpc.InferenceServerClient, triton: Server
) -> None:
    """24 streams, 4 at a time, that begin alike, part at any chunk, and of which some chunks are cut short."""
    draw, values = random.Random(7), np.random.default_rng(7)
    opening = [values.integers(-9999, 9999, LISTEN_CHUNK, np.int16) for _ in range(3)]
    for _ in range(6):
        streams = []
        for index in range(4):
            own = [values.integers(-9999, 9999, LISTEN_CHUNK, np.int16) for _ in range(3)]
            pcm = [*opening[: draw.randint(1, 3)], *own]
            lengths = [LISTEN_CHUNK, *(draw.choice((LISTEN_CHUNK, LISTEN_CHUNK, 5)) for _ in pcm[1:])]
            streams.append(
                [Chunk(500 + index, *of, place == 0) for place, of in enumerate(zip(pcm, lengths, strict=True))]
            )
        longest = max(map(len, streams))
        for place in range(longest):
            there = [stream for stream in streams if place < len(stream)]
            answers = send(client, "listen_openings", [stream[place] for stream in there])
            for stream, answer in zip(there, answers, strict=True):
                assert isinstance(answer, dict), answer
                expected = alone(stream[: place + 1])[-1]
                for name in ANSWERS:
                    np.testing.assert_array_equal(answer[name], expected[name])
    time.sleep(1.1)  # counters are published once a second, with the next request
    level(client, "listen_openings", constant(500, 1, "SE"))
    with urllib.request.urlopen(f"http://{triton.metrics}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    wanted = 'onnxruntime_opening_chunks_total{known="yes",model="listen_openings",version="1"} '
    (hits,) = [float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)]
    assert hits >= 20


def test_streams_that_come_together_are_one_run(client: triton_grpc.InferenceServerClient) -> None:
    first = send(client, "listen_of_four", [constant(stream, stream, "S") for stream in (1, 2, 3, 4)])
    last = send(client, "listen_of_four", [constant(stream, 9, "E") for stream in (4, 2, 1, 3)])
    assert [answer["rows"].item() for answer in (*first, *last)] == [4] * 8
    assert [answer["level"][0, 15] for answer in last] == [levels(stream, 9)[1] for stream in (4, 2, 1, 3)]


def test_a_bad_request_of_a_batch_changes_no_stream(client: triton_grpc.InferenceServerClient) -> None:
    send(client, "listen_of_four", [constant(stream, stream, "S") for stream in (5, 6, 7, 8)])
    bad = Chunk(6, np.full(LISTEN_CHUNK, 9, np.int16), length=9999)
    second = send(client, "listen_of_four", [constant(5, 9), bad, constant(7, 9), constant(8, 9)])
    assert isinstance(second[1], InferenceServerException)
    assert "the model failed" in second[1].message()
    last = send(client, "listen_of_four", [constant(stream, 3, "E") for stream in (5, 6, 7, 8)])
    expected = [levels(5, 9, 3)[-1], levels(6, 3)[-1], levels(7, 9, 3)[-1], levels(8, 9, 3)[-1]]
    assert [answer["level"][0, 15] for answer in last] == expected


@pytest.mark.parametrize("model", ["listen", "listen_direct"])
def test_a_missing_end_and_a_reused_id(client: triton_grpc.InferenceServerClient, model: str) -> None:
    assert level(client, model, constant(77, 5, "S")) == levels(5)[0]
    assert level(client, model, constant(77, 6, "S")) == levels(6)[0]
    assert level(client, model, constant(77, 7, "E")) == levels(6, 7)[1]
    assert level(client, model, constant(77, 8, "SE")) == levels(8)[0]


@pytest.mark.parametrize("model", ["listen", "listen_direct"])
def test_who_was_not_started_or_has_ended_is_told(client: triton_grpc.InferenceServerClient, model: str) -> None:
    for stream in (4711, "nobody"):
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            level(client, model, constant(stream, 5))
        level(client, model, constant(stream, 5, "S"))
        level(client, model, constant(stream, 5, "E"))
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            level(client, model, constant(stream, 5))
    with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
        level(client, model, constant(0, 5, "S"))


def test_after_a_start_that_failed_there_is_no_stream(client: triton_grpc.InferenceServerClient) -> None:
    """Triton believes in the stream, the backend does not."""
    with pytest.raises(InferenceServerException, match="the model failed"):
        level(client, "listen", Chunk(88, np.ones(LISTEN_CHUNK, np.int16), length=9999, start=True))
    with pytest.raises(InferenceServerException, match="no such stream: 88 was never started") as caught:
        level(client, "listen", constant(88, 5))
    assert "NOT_FOUND" in caught.value.status()
    assert level(client, "listen", constant(88, 5, "SE")) == levels(5)[0]


def test_wrong_tensors_are_told_and_the_stream_goes_on(client: triton_grpc.InferenceServerClient) -> None:
    level(client, "listen", constant(99, 5, "S"))
    for pcm in (np.ones(15, np.int16), np.ones(17, np.int16), np.ones(0, np.int16), np.ones(16, np.float32)):
        with pytest.raises(InferenceServerException, match=r"unexpected shape|data-type is 'FP32'"):
            level(client, "listen", Chunk(99, pcm))
    assert level(client, "listen", constant(99, 6, "E")) == levels(5, 6)[1]


def test_a_silent_stream_is_lost_not_mixed_up(client: triton_grpc.InferenceServerClient) -> None:
    level(client, "listen_briefly", constant(1, 5, "S"))
    time.sleep(0.8)  # its limit is 0.3 s
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        level(client, "listen_briefly", constant(1, 6))
    assert level(client, "listen_briefly", constant(1, 6, "SE")) == levels(6)[0]


def test_abandoned_streams_give_their_slots_back(client: triton_grpc.InferenceServerClient) -> None:
    """Five times as many as there are slots, one after the other and none with an END; a slot is free after 0.3 s."""
    end_s = time.monotonic() + 60
    for stream in range(1, 301):
        while not isinstance(answer := send(client, "listen_briefly", [constant(stream, stream, "S")])[0], dict):
            assert "no room for another stream: 64 are open" in answer.message()
            assert time.monotonic() < end_s
            time.sleep(0.01)
        assert answer["level"][0, 15] == levels(stream)[0]
    time.sleep(0.5)
    assert level(client, "listen_briefly", constant(1, 5, "SE")) == levels(5)[0]
