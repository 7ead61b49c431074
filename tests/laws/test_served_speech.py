"""The four laws for speech encoders in int8, as a running Triton serves them: the same bits as in this process.

Forty streams of different ages share the server; what each of them hears is what it hears alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

import clients
from optimize import onnx_export
from optimize.specs import ServingSpec
from optimize.triton_config import to_config, to_text
from serving.config import ServerConfig
from serving.launcher import Server
from tests.laws import laws
from tests.laws.test_onnx_laws import INT8_TOLERANCE, OnnxStreaming
from tests.laws.test_torch_laws import audio, lengths, seeds
from tests.laws.test_triton_laws import TritonStreaming
from tests.serving.test_streams_served import Chunk, send

QUICK = settings(max_examples=8, deadline=None, derandomize=True)
SERVED = {
    "speech": ("conformer", 8),
    "speech_chunk_160": ("conformer", 4),
    "speech_gru": ("gru", 8),
    "speech_lstm": ("lstm", 8),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("model_repository")
    for name, (kind, chunk) in SERVED.items():
        stage = OnnxStreaming(kind, chunk, "int8")
        folder = repository / name
        onnx_export.save(stage.graph, folder / "1" / "model.onnx")
        (folder / "config.pbtxt").write_text(
            to_text(to_config(stage.named(name), ServingSpec(max_streams=128, idle_us=60_000_000)))
        )
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


class Served(TritonStreaming):
    """A served encoder, and the same in process, whole and in chunks."""

    def __init__(self, client: triton_grpc.InferenceServerClient, name: str) -> None:
        self.in_process = OnnxStreaming(*SERVED[name], "int8")
        super().__init__(client, name, self.in_process.chunk_samples)
        self.offline = self.in_process.offline  # type: ignore[method-assign]


@pytest.fixture(scope="module", params=SERVED)
def model(server: Server, request: pytest.FixtureRequest) -> Iterator[Served]:
    with closing(triton_grpc.InferenceServerClient(server.grpc)) as client:
        yield Served(client, request.param)


@QUICK
@given(sizes=st.lists(lengths, min_size=1, max_size=4), seed=seeds, padding=st.integers(0, 12_000))
def test_chunked_is_offline_and_padding_changes_nothing(
    model: Served, sizes: list[int], seed: int, padding: int
) -> None:
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference = laws.chunked_is_offline(model, model, streams, INT8_TOLERANCE, garbage=audio(padding, seed + 99))
    model.hang_up()
    assert difference.log_probs <= INT8_TOLERANCE
    assert difference.tokens == 0


@QUICK
@given(size=lengths, seed=seeds, after=st.integers(1, 12_000))
def test_the_future_does_not_change_the_past(model: Served, size: int, seed: int, after: int) -> None:
    difference = laws.past_is_unchanged(model, model, audio(size, seed), audio(after, seed + 1), INT8_TOLERANCE)
    model.hang_up()
    assert difference.log_probs <= INT8_TOLERANCE
    assert difference.tokens == 0


def test_forty_streams_of_all_ages_do_not_matter_to_each_other(model: Served) -> None:
    random = np.random.default_rng(3)
    streams = [audio(int(size), seed) for seed, size in enumerate(random.integers(0, 24_000, 40))]
    rounds = [
        random.permutation(40)[: random.integers(1, 41)].tolist() for _ in range(12)
    ]  # who joins late has chunks left when the others are gone
    difference, _ = laws.neighbours_do_not_matter(model, streams, rounds, 0.0)
    model.hang_up()
    assert (difference.log_probs, difference.tokens, difference.near_ties) == (0.0, 0, 0)
    alone, _ = laws.stream(model.in_process, streams[0])
    served, _ = laws.stream(model, streams[0])
    model.hang_up()
    np.testing.assert_array_equal(served.log_probs, alone.log_probs)
    np.testing.assert_array_equal(served.tokens, alone.tokens)


SILENCE = np.zeros(8 * 640, np.int16)


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (SILENCE.astype(np.float32), "pcm"),  # the wrong type
        (SILENCE[:-1], "pcm"),  # a chunk too short, as of another rate
        (np.zeros(9 * 640, np.int16), "pcm"),  # too long
        (SILENCE[:0], "pcm"),  # none
    ],
    ids=["float", "short", "long", "none"],
)
def test_a_bad_chunk_is_refused_and_the_stream_goes_on(server: Server, pcm: NDArray[Any], words: str) -> None:
    sound = audio(2 * len(SILENCE), 1)
    in_process = OnnxStreaming(*SERVED["speech"], "int8")
    alone, _ = laws.stream(in_process, sound)
    with closing(triton_grpc.InferenceServerClient(server.grpc)) as client:
        chunks = [Chunk(7, sound[: len(SILENCE)], len(SILENCE), start=True), Chunk(7, pcm, len(SILENCE))]
        chunks.append(Chunk(7, sound[len(SILENCE) :], len(SILENCE), end=True))
        first, error, last = (send(client, "speech", [chunk])[0] for chunk in chunks)
    assert isinstance(error, InferenceServerException)
    assert words in str(error)
    np.testing.assert_array_equal(np.concatenate([first["log_probs"], last["log_probs"]], 1), alone.log_probs)


def test_an_empty_chunk_says_nothing_and_a_stranger_is_told(server: Server) -> None:
    with closing(triton_grpc.InferenceServerClient(server.grpc)) as client:
        (stranger,) = send(client, "speech", [Chunk(8, SILENCE, len(SILENCE))])  # no START
        assert isinstance(stranger, InferenceServerException)
        assert "must specify the START flag" in str(stranger)
        (empty,) = send(client, "speech", [Chunk(8, SILENCE, 0, start=True, end=True)])
        assert empty["output_lengths"].item() == 0
        assert not empty["tokens"].any()
        (late,) = send(client, "speech", [Chunk(8, SILENCE, len(SILENCE))])  # after END
        assert isinstance(late, InferenceServerException)
        assert "must specify the START flag" in str(late)


def test_a_second_start_begins_again(server: Server) -> None:
    """Whoever starts an id that is taken has a stream of their own from there on: nothing of before is in it."""
    sound = audio(len(SILENCE), 2)
    alone, _ = laws.stream(OnnxStreaming(*SERVED["speech"], "int8"), sound)
    with closing(triton_grpc.InferenceServerClient(server.grpc)) as client:
        send(client, "speech", [Chunk(9, audio(len(SILENCE), 3), len(SILENCE), start=True)])
        (again,) = send(client, "speech", [Chunk(9, sound, len(SILENCE), start=True, end=True)])
    np.testing.assert_array_equal(again["log_probs"], alone.log_probs)


def test_bare_chunks_of_a_session(server: Server) -> None:
    """As in the README: samples in, the last chunk short; the same bits as in process."""
    sound = audio(2 * len(SILENCE) + 999, 4)
    alone, _ = laws.stream(OnnxStreaming(*SERVED["speech"], "int8"), sound)
    with clients.connect(server.grpc) as client, client.stream("speech") as session:
        first, second = (session.send(sound[start:][: len(SILENCE)]) for start in (0, len(SILENCE)))
        last = session.finish(sound[2 * len(SILENCE) :])
    found = np.concatenate([answer.outputs["log_probs"] for answer in (first, second, last)], axis=1)
    heard = alone.log_probs.shape[1]
    np.testing.assert_array_equal(found[:, :heard], alone.log_probs)
    assert last.outputs["output_lengths"].item() == heard - 16
