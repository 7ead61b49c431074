"""Runs trials against a server, one after the other, each from a clean start.

with Prober("127.0.0.1:8001", "speech", load, goal, processes=1) as prober:
    trial = prober.run(200, seconds=5.0)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from loadtest.fleet import Fleet
from loadtest.load import Load, clock_s
from loadtest.processes import Usage, server_pid
from loadtest.search import Finding
from loadtest.server_statistics import ServerStatistics
from loadtest.trial import Goal, Trial, judge

WARM_UP_S = 1.0  # of a trial; or two chunks, if they are longer


class Prober:
    """See the module. idle_limit_s: after which the server forgets streams that could not be ended. show: called
    with every trial."""

    def __init__(
        self,
        address: str,
        model: str,
        load: Load,
        goal: Goal,
        processes: int,
        idle_limit_s: float = 0.0,
        show: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        self.trials: list[Trial] = []
        self._goal = goal
        self._idle_limit_s = idle_limit_s
        self._show = show
        self._pid = server_pid(address)
        self._statistics = ServerStatistics(address, model)
        self._fleet = Fleet(address, load, processes)

    def run(self, level: int, seconds: float, confirms: bool = False) -> Trial:
        """Measure for so long at that level."""
        warm_up_s = max(WARM_UP_S, 2 * (self._goal.period_s or 0.0))
        with self._fleet.opened(level):
            from_s = self._fleet.start(warm_up_s + seconds) + warm_up_s
            time.sleep(max(from_s - clock_s(), 0.0))
            before, used_s, begin_s = self._statistics.read(), self._cpu_s(), clock_s()
            parts = self._fleet.collect()
            work, busy_s, wall_s = self._statistics.read().since(before), self._cpu_s() - used_s, clock_s() - begin_s
        cores = None if self._pid is None else busy_s / wall_s
        trial = judge(level, confirms, self._goal, parts, from_s, max(seconds, wall_s), work, cores)
        self.trials.append(trial)
        self._show(trial)
        if self._fleet.left_open:
            time.sleep(1.1 * self._idle_limit_s)
        return trial

    def finding(self, level: int, seconds: float, confirms: bool = False) -> Finding:
        """The same for a search."""
        return self.run(level, seconds, confirms).finding

    def close(self) -> None:
        self._fleet.close()
        self._statistics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cpu_s(self) -> float:
        return 0.0 if self._pid is None else Usage.of(self._pid).cpu_s
