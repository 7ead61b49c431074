"""The four laws through a running Triton: a tiny stream whose answers depend on everything it heard so far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.launcher import Server
from tests import tiny_models
from tests.laws import laws
from tests.laws.laws import Answer, Pcm, State
from tests.serving.test_streams_served import Chunk, send
from tests.tiny_models import LISTEN_CHUNK

QUICK = settings(max_examples=15, deadline=None, derandomize=True)


class TritonStreaming:
    """Streams of a served model as the laws see them. The state is on the server; here it is the stream's id."""

    def __init__(
        self, client: triton_grpc.InferenceServerClient, model: str, chunk_samples: int = LISTEN_CHUNK
    ) -> None:
        self._client, self._model, self.chunk_samples = client, model, chunk_samples
        self._ids, self._started = itertools.count(1_000_000), set[int]()
        whole = tiny_models.listen(time="time").graph
        self._whole = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])

    def initial_state(self, batch: int) -> State:
        return (np.array([[next(self._ids)] for _ in range(batch)]),)

    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]:
        ids = [int(row[0]) for row in state[0]]
        chunks = [
            Chunk(stream, samples, int(length), start=stream not in self._started)
            for stream, samples, (length,) in zip(ids, pcm, lengths, strict=True)
        ]
        self._started.update(ids)
        answers = send(self._client, self._model, chunks)
        for answer in answers:
            assert isinstance(answer, dict), answer
        return Answer(*(np.concatenate([answer[name] for answer in answers]) for name in Answer._fields)), state

    def hang_up(self) -> None:
        """End all streams, so that their slots are free for the next ones."""
        silence = np.zeros(self.chunk_samples, np.int16)
        for answer in send(self._client, self._model, [Chunk(stream, silence, end=True) for stream in self._started]):
            assert isinstance(answer, dict), answer
        self._started.clear()

    def offline(self, pcm: Pcm, lengths: NDArray[np.int32]) -> Answer:
        states = {"state_sum": np.zeros((len(pcm), 1), np.int64), "state_level": np.zeros((len(pcm), 16), np.float32)}
        return Answer(*self._whole.run(list(Answer._fields), {"pcm": pcm, "lengths": lengths, **states}))


@pytest.fixture(scope="module", params=["listen", "listen_direct"])
def model(triton: Server, request: pytest.FixtureRequest) -> Iterator[TritonStreaming]:
    with closing(triton_grpc.InferenceServerClient(triton.grpc)) as client:
        yield TritonStreaming(client, request.param)


def audio(length: int, seed: int) -> Pcm:
    return np.random.default_rng((seed, length)).integers(-9999, 9999, length, np.int16)


lengths = st.integers(0, 100)
seeds = st.integers(0, 10_000)


@QUICK
@given(sizes=st.lists(lengths, min_size=1, max_size=4), seed=seeds, padding=st.integers(1, 40))
def test_chunked_is_offline_and_padding_changes_nothing(
    model: TritonStreaming, sizes: list[int], seed: int, padding: int
) -> None:
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference = laws.chunked_is_offline(model, model, streams, 0.0, garbage=audio(padding, seed + 99))
    model.hang_up()
    assert (difference.log_probs, difference.tokens, difference.near_ties) == (0.0, 0, 0)


@QUICK
@given(size=lengths, seed=seeds, after=st.integers(1, 50))
def test_the_future_does_not_change_the_past(model: TritonStreaming, size: int, seed: int, after: int) -> None:
    difference = laws.past_is_unchanged(model, model, audio(size, seed), audio(after, seed + 1), 0.0)
    model.hang_up()
    assert (difference.log_probs, difference.tokens, difference.near_ties) == (0.0, 0, 0)


@QUICK
@given(data=st.data(), sizes=st.lists(lengths, min_size=2, max_size=5), seed=seeds)
def test_neighbours_do_not_matter(model: TritonStreaming, data: st.DataObject, sizes: list[int], seed: int) -> None:
    company = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=len(sizes), unique=True)
    rounds = data.draw(st.lists(company, max_size=16))
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference, _ = laws.neighbours_do_not_matter(model, streams, rounds, 0.0)
    model.hang_up()
    assert (difference.log_probs, difference.tokens, difference.near_ties) == (0.0, 0, 0)
