"""Long streams and abandoned ones, on a small scale against a real Triton; limits on figures that are made up."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import clients
from loadtest import abandonment, audio, continuous
from loadtest.abandonment import Abandonment
from loadtest.chunks import ChunkShape
from loadtest.continuous import LAG_CHUNKS, Continuous
from loadtest.flatness import Trend
from loadtest.streams import summary
from optimize.errors import UserError
from serving.launcher import Server
from tests import tiny_models
from tests.loadtest.conftest import CHUNK, SLOTS

ROOT = Path(__file__).parents[2]
MINUTES = 0.1  # 60 chunks of 100 ms


def listened(
    server: Server, onnx_file: Path | None = None, output: str = "tokens", minutes: float = MINUTES
) -> Continuous:
    return asyncio.run(continuous.run(server.grpc, "speech", minutes, audio.bursts(), output=output, onnx=onnx_file))


def published(folder: Path, offset: int = 0) -> Path:
    """The served model; or one whose thousandths, and so its tokens, are counted from elsewhere."""
    graph = tiny_models.listen("speech", time=CHUNK).graph
    (thousand,) = [entry for entry in graph.graph.initializer if entry.name == "thousand"]
    thousand.CopyFrom(onnx.numpy_helper.from_array(np.asarray(np.int64(1000 + offset)), "thousand"))
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx"


def test_a_long_stream_is_what_a_younger_one_is(streaming: Server) -> None:
    seen = listened(streaming)
    assert (seen.chunks, seen.differing, seen.first_difference) == (60, 0, None)
    assert seen.reference == f"a stream that began {LAG_CHUNKS} chunks later"
    assert seen.audio_s == pytest.approx(6.0)
    assert seen.memory_bytes is not None
    assert seen.memory_bytes.first > 0


def test_a_long_stream_is_what_the_published_model_is_in_process(streaming: Server, tmp_path: Path) -> None:
    seen = listened(streaming, published(tmp_path))
    assert (seen.chunks, seen.differing) == (60, 0)


def test_another_model_is_noticed(streaming: Server, tmp_path: Path) -> None:
    seen = listened(streaming, published(tmp_path, offset=1))
    assert seen.differing > 10
    assert seen.first_difference is not None
    assert not seen.verdicts(100.0, 100.0)[0].passed


@pytest.mark.parametrize(
    ("output", "minutes", "words"), [("words", 1.0, "has no output 'words'; it has"), ("tokens", 0.01, "too short")]
)
def test_what_cannot_be_listened_to(streaming: Server, output: str, minutes: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        listened(streaming, output=output, minutes=minutes)


def test_200_abandoned_streams_give_their_slots_back(streaming: Server) -> None:
    seen = asyncio.run(abandonment.run(streaming.grpc, "briefly", 200, audio.bursts()))
    assert (seen.failed, seen.first_failure) == (0, "")
    assert seen.abandoned == {"cancelled": 67, "disconnected": 67, "silent": 66}
    assert (seen.slots, seen.idle_limit_s, seen.started_at_once) == (SLOTS, 0.2, SLOTS)
    assert seen.memory_bytes is not None
    assert [verdict.passed for verdict in seen.verdicts(1000.0)] == [True, True, True]


def test_slots_that_do_not_come_back_are_noticed(streaming: Server) -> None:
    """Streams that go on for the whole time hold three of the slots, as a leak would."""

    async def with_a_leak() -> int:
        async with await clients.aio.connect(streaming.grpc) as client:
            shape = ChunkShape.of(await client.signature("briefly"))
            chunk = shape.inputs(np.ones(CHUNK, np.int16))

            async def leak() -> None:
                async with client.stream("briefly") as session:
                    while not over.is_set():
                        await session.send(chunk)
                        await asyncio.sleep(0.02)

            over = asyncio.Event()
            leaks = [asyncio.create_task(leak()) for _ in range(3)]
            await asyncio.sleep(0.1)
            started = await abandonment.start_at_once(client, "briefly", chunk, SLOTS, 0.2, deadline_s=1.5)
            over.set()
            await asyncio.gather(*leaks)
            return started

    assert asyncio.run(with_a_leak()) == SLOTS - 3


LISTENED = Continuous("speech", "1", "another", "tokens", 100, 10.0, 1.0, 0, None, Trend(1.0, 1.2), Trend(100.0, 101.0))
ABANDONED = Abandonment("speech", "1", 16, 0.2, {"cancelled": 5}, 0, "", 3.0, 16, 9.0, Trend(100.0, 101.0))


@pytest.mark.parametrize(
    ("seen", "passed"),
    [
        (LISTENED, [True, True, True]),
        (replace(LISTENED, differing=1, first_difference=7), [False, True, True]),
        (replace(LISTENED, chunk_ms=Trend(1.0, 1.3)), [True, False, True]),
        (replace(LISTENED, memory_bytes=Trend(100.0, 103.0)), [True, True, False]),
        (replace(LISTENED, memory_bytes=None), [True, True]),
        (ABANDONED, [True, True, True]),
        (replace(ABANDONED, failed=1, first_failure="no slot"), [False, True, True]),
        (replace(ABANDONED, started_at_once=15), [True, False, True]),
        (replace(ABANDONED, memory_bytes=Trend(100.0, 103.0)), [True, True, False]),
        (replace(ABANDONED, memory_bytes=None), [True, True]),
    ],
)
def test_limits(seen: Continuous | Abandonment, passed: list[bool]) -> None:
    assert [verdict.passed for verdict in seen.verdicts(2.0)] == passed
    assert ("not checked" in summary(seen)) == (seen.memory_bytes is None)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.streams", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command(streaming: Server, tmp_path: Path) -> None:
    generous = ["--address", streaming.grpc, "--max-growth-percent", "1000", "--max-time-ratio", "1000"]
    path = tmp_path / "result.json"
    run = command("--continuous", str(MINUTES), *generous, "--json", str(path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "60 chunks, 0.1 min of audio" in run.stdout
    content = json.loads(path.read_text())
    assert [limit["passed"] for limit in content["limits"]] == [True] * 3
    run = command("--abandon", "5", "--model", "briefly", *generous)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 cancelled, 2 disconnected, 1 silent, 0 failed" in run.stdout


def test_a_broken_limit(streaming: Server) -> None:
    run = command("--continuous", str(MINUTES), "--address", streaming.grpc, "--max-time-ratio", "0.001")
    assert run.returncode == 1
    assert "FAILED  speech: time of a chunk" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--continuous", "--model", "double"], "keeps no state"),
        (["--abandon", "--model", "nothing"], "unknown model"),
        (["--continuous", "--onnx", "/no/such.onnx"], "cannot be loaded by ONNX Runtime"),
    ],
)
def test_mistakes_are_one_line(streaming: Server, arguments: list[str], words: str) -> None:
    run = command("--address", streaming.grpc, *arguments)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert words in run.stderr


def test_one_of_the_two_must_be_chosen() -> None:
    assert command().returncode == 2
    assert command("--continuous", "1", "--abandon", "2").returncode == 2
