"""Who counts as lost and who does not, look by look, with real processes; and how often a reload is tried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from serving import watchman
from serving.heartbeats import Heartbeat, Heartbeats
from serving.running import start_time
from serving.watchman import SILENT_LOOKS, Watchman
from tests.serving.test_launcher import eventually


class Scene(Heartbeats):
    """Workers that are processes of the test's, with heartbeats that the test writes."""

    def __init__(self) -> None:
        super().__init__("scene")
        self.written: dict[int, Heartbeat] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.reloads: list[tuple[str, int]] = []
        self.failures = 0

    def worker(self, model: str, program: str = "input()") -> int:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        self.processes.append(process)
        self.written[process.pid] = Heartbeat(process.pid, model, f"{model}_0_0", 0, 0, 0, 3)
        return process.pid

    def says(self, pid: int, **numbers: Any) -> None:
        self.written[pid] = replace(self.written[pid], **numbers)

    def read(self) -> list[Heartbeat]:
        return list(self.written.values())

    def forget(self, pid: int) -> None:
        del self.written[pid]

    def reload(self, model: str, attempt: int) -> str | None:
        self.reloads.append((model, attempt))
        self.failures -= 1
        return "no memory" if self.failures >= 0 else None


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for process in scene.processes:
        process.kill()
        process.communicate()


def looks(man: Watchman, scene: Scene, count: int, *beating: int, busy: int = 0) -> None:
    """busy: goes from one execution to the next with every look."""
    for number in range(1, count + 1):
        for pid in beating:
            scene.says(pid, beats=scene.written[pid].beats + 1)
        if busy:
            scene.says(busy, begun=number, ended=number - 1)
        man.look()


def ended(pid: int) -> None:
    eventually(lambda: start_time(pid) is None)


def reloaded(scene: Scene, times: int) -> None:
    eventually(lambda: len(scene.reloads) == times)


def test_a_worker_that_died(scene: Scene) -> None:
    man = Watchman(scene, scene.reload)
    dying, other = scene.worker("speech"), scene.worker("other")
    looks(man, scene, 3, dying, other)
    os.kill(dying, signal.SIGKILL)
    ended(dying)
    looks(man, scene, 1, other)
    eventually(lambda: man.recovering == [])
    assert scene.reloads == [("speech", 1)]
    assert list(scene.written) == [other]
    assert man.losses["speech"] == watchman.Losses(lost=1, attempts=1, reloaded=1)
    looks(man, scene, 3, other)
    assert len(scene.reloads) == 1


def test_a_stopped_worker_is_killed_after_its_silence(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    man = Watchman(scene, scene.reload)
    stopped, other = scene.worker("speech"), scene.worker("other")
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: not watchman._moves(stopped))
    looks(man, scene, SILENT_LOOKS, other)
    assert start_time(stopped) is not None
    looks(man, scene, 1, other)
    ended(stopped)
    eventually(lambda: scene.reloads == [("speech", 1)])
    assert start_time(other) is not None
    said = f"worker_lost model=speech instance=speech_0_0 pid={stopped} cause=stopped streams=3"
    assert said in [record.getMessage() for record in caplog.records]


def test_a_worker_that_has_too_little_of_the_machine_is_not_stopped(scene: Scene) -> None:
    """It does not beat, but it runs, or would if it could: only the limit of an execution ends it."""
    man = Watchman(scene, scene.reload, run_limit_s=10.0)
    pid = scene.worker("speech", "while True: pass")
    eventually(lambda: watchman._moves(pid))
    looks(man, scene, 40)
    assert scene.reloads == []
    looks(man, scene, 1)
    eventually(lambda: scene.reloads == [("speech", 1)])


def test_a_worker_that_hangs_in_an_execution(scene: Scene) -> None:
    man = Watchman(scene, scene.reload, run_limit_s=10.0)
    hanging = scene.worker("speech")
    scene.says(hanging, begun=7, ended=6)
    looks(man, scene, 40, hanging)
    assert start_time(hanging) is not None
    looks(man, scene, 1, hanging)
    ended(hanging)


def test_a_full_but_moving_worker_is_never_lost(scene: Scene) -> None:
    man = Watchman(scene, scene.reload, run_limit_s=3.0)
    pid = scene.worker("speech")
    looks(man, scene, 2000, pid, busy=pid)
    assert scene.reloads == []
    assert start_time(pid) is not None


def test_a_worker_that_was_asked_to_end_is_no_loss(scene: Scene) -> None:
    man = Watchman(scene, scene.reload)
    pid = scene.worker("speech")
    looks(man, scene, 3, pid)
    scene.forget(pid)
    os.kill(pid, signal.SIGKILL)
    looks(man, scene, 3)
    assert man.losses == {}


def test_it_tries_again_ever_less_often_and_no_worker_is_lost_twice(scene: Scene, monkeypatch: Any) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(watchman, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(watchman, "LONGEST_PAUSE_S", 0.008)
    pause_s = watchman._pause_s

    def noted(failures: int) -> float:
        pauses.append(pause_s(failures))
        return pauses[-1]

    monkeypatch.setattr(watchman, "_pause_s", noted)
    man = Watchman(scene, scene.reload)
    scene.failures = 6
    dying = scene.worker("speech")
    looks(man, scene, 1, dying)
    os.kill(dying, signal.SIGKILL)
    ended(dying)
    looks(man, scene, 5)
    eventually(lambda: man.recovering == [])
    assert scene.reloads == [("speech", attempt) for attempt in range(1, 8)]
    assert sorted(set(pauses)) == [0.0, 0.001, 0.002, 0.004, 0.008]
    assert man.losses["speech"] == watchman.Losses(lost=1, attempts=7, reloaded=1)


def test_a_model_that_dies_as_soon_as_it_is_back_is_not_reloaded_at_once(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr(watchman, "_FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(watchman, "LONGEST_PAUSE_S", 1000.0)
    man = Watchman(scene, scene.reload)
    for _ in range(2):
        pid = scene.worker("speech")
        looks(man, scene, 1, pid)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        looks(man, scene, 1)
        reloaded(scene, 1)
    assert man.recovering == ["speech"]
    man.stop()
    eventually(lambda: man.losses["speech"].attempts == 1)


def test_a_model_that_was_steady_for_a_while_is(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr(watchman, "_FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(watchman, "LONGEST_PAUSE_S", 1000.0)
    man = Watchman(scene, scene.reload)
    for times in (1, 2):
        pid = scene.worker("speech")
        looks(man, scene, int(watchman.STEADY_S / watchman.LOOK_EVERY_S) + 2, pid)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        looks(man, scene, 1)
        reloaded(scene, times)
        eventually(lambda: man.recovering == [])


def test_a_worker_that_dies_before_its_reload_is_over_is_not_forgotten(scene: Scene) -> None:
    """And neither does a reload that raises end the recovery."""
    man: Watchman

    def reload(model: str, attempt: int) -> str | None:
        scene.reloads.append((model, attempt))
        if attempt == 1:
            pid = scene.worker(model)
            looks(man, scene, 1, pid)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            looks(man, scene, 1)
        if attempt == 2:
            raise ValueError("not today")
        return None

    man = Watchman(scene, reload)
    pid = scene.worker("speech")
    looks(man, scene, 1, pid)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    looks(man, scene, 1)
    eventually(lambda: man.recovering == [])
    assert scene.reloads == [("speech", 1), ("speech", 2), ("speech", 3)]
    assert man.losses["speech"] == watchman.Losses(lost=2, attempts=3, reloaded=1)
    assert scene.written == {}


def test_a_model_that_somebody_has_unloaded_is_left_alone(scene: Scene) -> None:
    def reload(model: str, attempt: int) -> str | None:
        scene.reload(model, attempt)
        raise watchman.Unloaded

    man = Watchman(scene, reload)
    pid = scene.worker("speech")
    looks(man, scene, 1, pid)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    looks(man, scene, 1)
    reloaded(scene, 1)
    eventually(lambda: man.recovering == [])
    assert man.losses["speech"] == watchman.Losses(lost=1, attempts=1, reloaded=0)


def test_looking_goes_on_after_a_look_that_failed(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr(watchman, "LOOK_EVERY_S", 0.1)  # 8 of them without a beat, and a worker counts as stopped
    failures = iter([OSError("no memory"), ValueError("odd")])
    read = scene.read

    def fails_first() -> list[Heartbeat]:
        for error in failures:
            raise error
        return read()

    monkeypatch.setattr(scene, "read", fails_first)
    man = Watchman(scene, scene.reload)
    man.start()
    pid = scene.worker("speech")
    eventually(lambda: pid in man._workers)
    os.kill(pid, signal.SIGKILL)
    reloaded(scene, 1)
    man.stop()
    man.stop()
