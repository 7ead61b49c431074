"""Models from elsewhere, published into a running Triton and streamed: every answer is the original file's to the bit.

The expected answers are made here from the file as it was given, its states carried by hand in its own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import clients
from optimize.adopt import Options, adopt
from optimize.adopt.asked import Asked
from serving.config import ServerConfig
from serving.launcher import Server
from tests import foreign_models, tiny_models

Array = NDArray[Any]
States = dict[str, tuple[str, tuple[int, ...]]]
STREAMS, CHUNKS = 3, 6


class Original:
    """One stream of the file itself. states: input names to output names, each with its shape for one row."""

    def __init__(self, path: Path, states: States) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._pairs = {name: after for name, (after, _) in states.items()}
        self._state: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, (_, shape) in states.items()}

    def step(self, inputs: dict[str, Array]) -> dict[str, Array]:
        answer = dict(zip(self._names, self._session.run(self._names, inputs | self._state), strict=True))
        self._state = {name: answer[after] for name, after in self._pairs.items()}
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Triton that was started before any of these models was there."""
    repository = tmp_path_factory.mktemp("model_repository")
    tiny_models.double().write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


def _random(stream: int, chunk: int, *shape: int) -> Array:
    return np.random.default_rng((stream, chunk)).normal(size=shape).astype(np.float32)


def _stream_all(
    server: Server,
    model: str,
    originals: list[Original],
    ask: Callable[[int, int], tuple[dict[str, Array], dict[str, Array]]],
    expect: Callable[[dict[str, Array]], dict[str, Array]],
) -> None:
    """All streams, their chunks in turn, the last stream beginning when the first is half through.

    ask: what chunk a stream sends, as the server and as the file takes it. expect: the file's answer as served.
    """
    late = CHUNKS // 2 * (np.arange(STREAMS) == STREAMS - 1)
    with ExitStack() as stack:
        client = stack.enter_context(clients.connect(server.grpc, protocol="grpc"))
        sessions = [stack.enter_context(client.stream(model)) for _ in originals]
        for turn in range(CHUNKS + CHUNKS // 2):
            for stream, session in enumerate(sessions):
                if not 0 <= (chunk := turn - int(late[stream])) < CHUNKS:
                    continue
                served, own = ask(stream, chunk)
                outputs = (session.finish if chunk == CHUNKS - 1 else session.send)(served).outputs
                expected = expect(originals[stream].step(own))
                assert outputs.keys() == expected.keys()
                for name, array in expected.items():
                    np.testing.assert_array_equal(outputs[name], array, f"stream {stream}, chunk {chunk}: {name}")


def test_a_time_major_lstm(server: Server, tmp_path: Path) -> None:
    path = foreign_models.lstm(tmp_path / "speaker.onnx")
    asked = Asked(("h0.in:h0.out", "C_prev:C_next"), chunk=("8",))
    published = adopt(path, None, asked, Options(tmp_path / "a", Path(server.record.repository)))
    assert published.spec.name == "speaker"
    states: States = {"h0.in": ("h0.out", (2, 1, 16)), "C_prev": ("C_next", (2, 1, 16))}

    def ask(stream: int, chunk: int) -> tuple[dict[str, Array], dict[str, Array]]:
        x = _random(stream, chunk, 8, 1, 5)
        return {"x": x.transpose(1, 0, 2)}, {"X": x}

    _stream_all(
        server,
        "speaker",
        [Original(path, states) for _ in range(STREAMS)],
        ask,
        lambda answer: {"logits_out": answer["Logits/out"].transpose(1, 0, 2)},
    )


def test_a_gru(server: Server, tmp_path: Path) -> None:
    path = foreign_models.gru(tmp_path / "gru.onnx")
    adopt(
        path,
        "tagger",
        Asked(("state:state_out",), chunk=("4",)),
        Options(tmp_path / "a", Path(server.record.repository)),
    )

    def ask(stream: int, chunk: int) -> tuple[dict[str, Array], dict[str, Array]]:
        features, gain = _random(stream, chunk, 1, 6, 4), np.array([1 + stream], np.float32)
        return {"features": features, "gain": gain[:, None]}, {"features": features, "gain": gain}

    _stream_all(
        server,
        "tagger",
        [Original(path, {"state": ("state_out", (1, 1, 16))}) for _ in range(STREAMS)],
        ask,
        lambda answer: {"y": answer["y"], "level": answer["level"][:, None]},
    )


def test_a_detector_with_a_rate_and_a_tail_and_then_another_rate(server: Server, tmp_path: Path) -> None:
    path = foreign_models.detector(tmp_path / "detector.onnx")
    states: States = {"state": ("stateN", (2, 1, 16)), "context": ("contextN", (1, 8))}
    for version, rate in enumerate((16000, 8000), 1):
        asked = Asked(("state:stateN", "context:contextN"), constants=(f"sr={rate}",))
        adopted = adopt(path, None, asked, Options(tmp_path / "a", Path(server.record.repository)))
        assert adopted.published.version == version

        def ask(stream: int, chunk: int, rate: int = rate) -> tuple[dict[str, Array], dict[str, Array]]:
            samples = _random(stream, chunk, 1, 64)
            return {"input": samples}, {"input": samples, "sr": np.array(rate)}

        _stream_all(
            server,
            "detector",
            [Original(path, states) for _ in range(STREAMS)],
            ask,
            lambda answer: {"output": answer["output"]},
        )
