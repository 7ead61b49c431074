"""Watches the workers of a server, and replaces those that died or hang.

    watchman = Watchman(Heartbeats(server_id), reload)       # reload(model, attempt): None, or what went wrong
    watchman.start()

Triton 24.10 neither notices that a worker is gone nor replaces it: it goes on to call itself ready and answers every
request with an error. So a worker is lost when

* its process has ended;
* it has not beaten for 2 s, though none of its threads wants the processor: stopped, or stuck;
* it has been in one and the same execution for ``run_limit_s``.

What counts is what the worker has done between two looks, not what a clock says, so a machine that slept, or is far
too busy, loses nobody; and a worker with a queue that never ends goes from one execution to the next. What is left of
a lost worker is killed, and its model is reloaded, at once the first time and ever less often, but for ever, when that
does not help. A model is reloaded as a whole: its other instances lose their streams too; other models do not notice.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serving.heartbeats import Heartbeat, Heartbeats
from serving.running import start_time

LOOK_EVERY_S = 0.25
SILENT_LOOKS = 8
RUN_LIMIT_S = 60.0
LONGEST_PAUSE_S = 30.0  # between two attempts to reload a model
STEADY_S = 10.0  # a model whose workers live that long has recovered

_FIRST_PAUSE_S = 0.5
_MOVING = frozenset("RD")  # states of a thread that has the processor or wants it, or waits for the disk

_log = logging.getLogger(__name__)


class Unloaded(Exception):
    """Raised by ``reload`` where nobody wants the model any more."""


@dataclass
class Losses:
    """What happened to one model's workers. attempts: to reload it, failed ones included."""

    lost: int = 0
    attempts: int = 0
    reloaded: int = 0


@dataclass
class _Worker:
    """What was seen of one: since how many looks it has not beaten, and been in the same execution."""

    heartbeat: Heartbeat
    started: int | None
    silent: int = 0
    stuck: int = 0


@dataclass
class _Recovery:
    """How a model fares: attempts in a row that did not help for long, and looks since the last one that seemed to."""

    failures: int = 0
    steady_looks: int = 0
    under_way: bool = False
    lost_again: bool = False


class Watchman:
    """See the module. reload: has Triton load a model anew, or raises Unloaded; in a thread for each; attempt: 1, .."""

    def __init__(
        self, heartbeats: Heartbeats, reload: Callable[[str, int], str | None], run_limit_s: float = RUN_LIMIT_S
    ) -> None:
        self.losses: dict[str, Losses] = {}
        self._heartbeats = heartbeats
        self._reload = reload
        self._stuck_looks = max(run_limit_s / LOOK_EVERY_S, SILENT_LOOKS)
        self._workers: dict[int, _Worker] = {}
        self._recoveries: dict[str, _Recovery] = {}
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchman", daemon=True)

    @property
    def recovering(self) -> list[str]:
        """The models that wait for their workers now."""
        return sorted(model for model, recovery in list(self._recoveries.items()) if recovery.under_way)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a reload that is under way is left to itself."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once at every worker, and begin to replace those that are lost."""
        heartbeats = {heartbeat.pid: heartbeat for heartbeat in self._heartbeats.read()}
        for pid in self._workers.keys() - heartbeats.keys():  # it was asked to end
            del self._workers[pid]
        lost: dict[str, list[_Worker]] = {}
        for heartbeat in heartbeats.values():
            worker = self._seen(heartbeat)
            cause = self._fault(worker)
            if cause:
                _log.warning(
                    "worker_lost model=%s instance=%s pid=%d cause=%s streams=%d",
                    *(heartbeat.model, heartbeat.instance, heartbeat.pid, cause, heartbeat.streams),
                )
                lost.setdefault(heartbeat.model, []).append(worker)
        for model, workers in lost.items():
            self._replace(model, workers)
        for recovery in self._recoveries.values():
            recovery.steady_looks = 0 if recovery.under_way else recovery.steady_looks + 1
            if recovery.steady_looks * LOOK_EVERY_S > STEADY_S:
                recovery.failures = 0

    def _seen(self, heartbeat: Heartbeat) -> _Worker:
        worker = self._workers.get(heartbeat.pid)
        if worker is None:
            worker = self._workers[heartbeat.pid] = _Worker(heartbeat, start_time(heartbeat.pid))
            return worker
        before, worker.heartbeat = worker.heartbeat, heartbeat
        worker.silent = worker.silent + 1 if heartbeat.beats == before.beats else 0
        worker.stuck = worker.stuck + 1 if heartbeat.busy and heartbeat.begun == before.begun else 0
        return worker

    def _fault(self, worker: _Worker) -> str:
        """Why the worker is lost; empty while it is not."""
        pid = worker.heartbeat.pid
        if worker.started is None or start_time(pid) != worker.started:
            return "died"
        if worker.silent >= SILENT_LOOKS and (worker.silent >= self._stuck_looks or not _moves(pid)):
            return "stopped"
        return "hangs" if worker.stuck >= self._stuck_looks else ""

    def _replace(self, model: str, workers: list[_Worker]) -> None:
        for worker in workers:
            pid = worker.heartbeat.pid
            if worker.started is not None and start_time(pid) == worker.started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._heartbeats.forget(pid)
            del self._workers[pid]
        self.losses.setdefault(model, Losses()).lost += len(workers)
        recovery = self._recoveries.setdefault(model, _Recovery())
        with self._turn:
            recovery.lost_again, idle, recovery.under_way = True, not recovery.under_way, True
        if idle:
            name = f"recovery of {model}"
            threading.Thread(target=self._recover, args=(model, recovery), name=name, daemon=True).start()

    def _recover(self, model: str, recovery: _Recovery) -> None:
        losses, attempt = self.losses[model], 0
        while not self._stopping.wait(_pause_s(recovery.failures)):
            attempt += 1
            losses.attempts += 1
            recovery.failures += 1  # until its workers have lived for a while
            recovery.lost_again = False
            reason, wanted = None, True
            try:
                reason = self._reload(model, attempt)
            except Unloaded:
                wanted = False
            except Exception as error:  # whatever it is, somebody has to try again
                reason = repr(error)
            with self._turn:
                recovery.under_way = reason is not None or recovery.lost_again
            if not recovery.under_way:
                losses.reloaded += wanted
                _log.warning("model_%s model=%s attempt=%d", "reloaded" if wanted else "unloaded", model, attempt)
                return
            _log.warning(
                "reload_failed model=%s attempt=%d next_s=%g reason=%r",
                *(model, attempt, _pause_s(recovery.failures), reason or "its worker died at once"),
            )

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:
                _log.exception("could not look at the workers; looking again")


def _pause_s(failures: int) -> float:
    return min(_FIRST_PAUSE_S * 2.0 ** (failures - 1), LONGEST_PAUSE_S) if failures else 0.0


def _moves(pid: int) -> bool:
    """Whether any thread of the process has the processor, wants it, or waits for the disk."""
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[0] in _MOVING:
                return True
    return False
