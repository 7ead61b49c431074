"""Requests to stop: the first lets the work in hand finish, the second ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Counts SIGINT (Ctrl-C), SIGTERM and SIGHUP; only for the main thread."""

    def __init__(self) -> None:
        self._count = 0
        self._last = 0

    def any(self) -> bool:
        """Whether somebody asked to stop."""
        return self._count > 0

    @property
    def exit_status(self) -> int:
        """0 after an orderly stop, 128 + signal number when somebody insisted."""
        return 0 if self._count < 2 else 128 + self._last

    @contextmanager
    def handled(self, insist: Callable[[], None]) -> Iterator[None]:
        """Catch the signals inside the block; ``insist`` runs at the second one and at every later one."""

        def handler(number: int, frame: FrameType | None) -> None:
            self._count += 1
            self._last = number
            if self._count > 1:
                insist()

        before = {number: signal.signal(number, handler) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)
