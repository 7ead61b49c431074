"""Chaos at small scale: faults against a real server, wrong answers that are planted, and what fails the verdict."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import clients
from clients.signature import Signature, Tensor
from loadtest import audio
from loadtest.census import Census
from loadtest.chaos import Chaos, ChaosConfig, Injected, run, schedule, summary, to_json
from loadtest.checked import Tally, prepare, talk
from loadtest.faults import ANSWER_S, FAULTS, Scene, WrongAnswer, garbage, kill_client
from optimize.errors import UserError
from optimize.specs import ServingSpec
from serving.launcher import Server
from tests import tiny_models
from tests.loadtest.conftest import CHUNK
from tests.loadtest.test_streams import published

OUTPUTS = ("log_probs", "tokens", "level", "output_lengths")  # `rows` says who shared the run
LIKE_BEFORE = Census(3, 100_000_000, 90, 60, 4, 1_000_000)
RIGHT = Tally(answers=100, finished=10, interruptions_s=[2.0, 5.0], refused={"TooManyStreams": 1})
SEEN = Chaos(ChaosConfig(), "1", 60.0, RIGHT, [Injected("kill_worker", 1.0, "done")], 0, LIKE_BEFORE, LIKE_BEFORE)

SIGNATURE = Signature("m", "1", (Tensor("x", "FP32", (-1, 4)), Tensor("n", "INT32", (-1, 1))), (), 8, 1.0)


def write(repository: Path) -> None:
    tiny_models.listen("speech", ServingSpec(max_streams=64, idle_us=1_000_000), time=CHUNK).write(repository)
    tiny_models.double().write(repository)


@pytest.mark.parametrize("replay", [True, False])
def test_a_server_that_is_broken(tmp_path: Path, replay: bool) -> None:
    write(tmp_path)
    faults = ("reuse_ids", "kill_worker", "send_garbage", "send_noise", "kill_client", "kill_server")
    seen = run(
        ChaosConfig(tmp_path, streams=12, minutes=0.3, every_s=0.5, outputs=OUTPUTS, replay=replay, shm_mb=1,
                    faults=faults[:3] if replay else faults)
    )  # fmt: skip
    verdicts = {verdict.what: verdict.passed for verdict in seen.verdicts(100.0, 120.0)}
    assert all(verdicts.values()), f"{verdicts}\n{summary(seen)}"
    done = [fault.name for fault in seen.faults]
    assert done[:3] == ["send_garbage", "reuse_ids", "kill_worker"], "the first is the warm-up"
    assert seen.faults[1].said == "the second began from zeros"
    assert "SIGKILL to worker" in seen.faults[2].said
    assert seen.tally.interruptions_s, "a killed worker holds its streams up"
    assert (seen.tally.lost == 0) == replay
    assert json.loads(to_json(seen, seen.verdicts(2.0, 60.0)))["tally"]["wrong"] == 0


def test_garbage_that_is_answered_at_once_is_part_of_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(scene: Scene) -> str:
        raise WrongAnswer("answered")

    write(tmp_path)
    monkeypatch.setitem(FAULTS, "send_garbage", answered)
    seen = run(ChaosConfig(tmp_path, streams=2, minutes=0.001, outputs=OUTPUTS, faults=("send_garbage",)))
    assert [fault.wrong for fault in seen.faults] == [True] * len(seen.faults) != []


def test_a_client_that_ends_before_its_stream_is_not_waited_for() -> None:
    scene = SimpleNamespace(hosted=SimpleNamespace(grpc="127.0.0.1:1"), signature=SIGNATURE, chunk={})
    begin_s = time.monotonic()
    assert kill_client(cast(Scene, scene)) == "killed a client that had no stream"
    assert time.monotonic() - begin_s < ANSWER_S / 2


def test_a_wrong_answer_is_found(streaming: Server, tmp_path: Path) -> None:
    """The server's model is another than the one that it is held against; its `tokens` are counted otherwise."""

    async def listened(onnx: Path) -> Tally:
        async with await clients.aio.connect(streaming.grpc) as client:
            signature = await client.signature("speech")
            utterances = prepare(signature, onnx, audio.bursts(), 3, ["tokens"])
            tally, over = Tally(), asyncio.Event()
            speaking = asyncio.create_task(talk(client, "speech", utterances, tally, over, seed=1))
            while tally.finished < 5:
                await asyncio.sleep(0.01)
            over.set()
            await speaking
            return tally

    right = asyncio.run(listened(published(tmp_path)))
    assert (right.wrong, right.examples) == (0, [])
    wrong = asyncio.run(listened(published(tmp_path, offset=1)))
    assert wrong.wrong > 0
    assert "tokens differ" in wrong.examples[0]


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda seen: seen, ""),
        (lambda seen: replace(seen, tally=replace(RIGHT, wrong=1)), "wrong answers"),
        (lambda seen: replace(seen, tally=replace(RIGHT, unreported=1)), "sessions that ended without being told so"),
        (lambda seen: replace(seen, tally=replace(RIGHT, lost=1)), "sessions lost in spite of replay"),
        (lambda seen: replace(seen, tally=replace(RIGHT, finished=0)), "right sessions"),
        (lambda seen: replace(seen, tally=replace(RIGHT, interruptions_s=[61.0])), "slowest recovery"),
        (lambda seen: replace(seen, faults=[Injected("send_garbage", 1.0, "answered", True)]),
         "faults answered that must be refused"),
        (lambda seen: replace(seen, after=replace(LIKE_BEFORE, processes=4)), "processes at the end"),
        (lambda seen: replace(seen, after=replace(LIKE_BEFORE, memory_bytes=103_000_000)),
         "growth of the server's memory"),
        (lambda seen: replace(seen, after=replace(LIKE_BEFORE, shared_files=7)), "shared memory files at the end"),
        (lambda seen: replace(seen, left_behind=["process 7"]), "left behind"),
    ],
)  # fmt: skip
def test_limits(change: Callable[[Chaos], Chaos], failing: str) -> None:
    verdicts = change(SEEN).verdicts(2.0, 60.0)
    assert [verdict.what for verdict in verdicts if not verdict.passed] == ([failing] if failing else [])


def test_lost_sessions_are_right_without_replay() -> None:
    seen = replace(SEEN, config=ChaosConfig(replay=False), tally=replace(RIGHT, lost=7))
    assert all(verdict.passed for verdict in seen.verdicts(2.0, 60.0))
    assert "7 lost and told so" in summary(seen)


def test_the_schedule_is_seeded_and_begins_with_each_once() -> None:
    first, again = ([name for name, _ in zip(schedule(ChaosConfig(seed=5)), range(40), strict=False)] for _ in "12")
    assert first == again
    assert first[: len(FAULTS)] == list(FAULTS)


def test_garbage_has_one_fault_each() -> None:
    whats = [what for what, _, _ in garbage(SIGNATURE)]
    assert len(whats) == len(set(whats)) == 14
    assert {"nan in 'x'", "inf in 'x'", "a byte too few in 'n'", "no sequence id", "no START", "2 rows"} <= set(whats)


def test_an_unknown_fault() -> None:
    with pytest.raises(UserError, match="fault 'flood' is unknown; choose from drop_ends, "):
        run(ChaosConfig(faults=("flood",)))
