"""Whether a stream's request has waited beyond its deadline, so that nobody wants its answer any more.

The client says by its own clock when it sent the request (parameter ``sent_us``), and how long it will wait (Triton's
``timeout``, microseconds). Clocks of two machines differ, so the age of a request is counted from the quickest that
its stream has sent: what it took longer than that one is time that it waited. So a stream's first request, which has
nothing to be compared with, is never too late, and neither is a request without those two.
"""

from __future__ import annotations

import json
from typing import Any

SENT = "sent_us"


class TooLate(RuntimeError):
    """The deadline passed while the request waited; it must not be run."""


class Deadlines:
    """The deadlines of one instance's streams, by slot."""

    def __init__(self) -> None:
        self._quickest_us: dict[int, int] = {}  # what the clocks differ by, and the way here

    def check(self, slot: int, starts: bool, ends: bool, request: Any, now_us: int) -> None:
        """Raise TooLate for a request that is. One that ends its stream is not: it would end without its last words."""
        timeout_us = request.timeout()
        sent_us = json.loads(request.parameters() or "{}").get(SENT) if timeout_us else None
        if not isinstance(sent_us, int):
            if starts:
                self._quickest_us.pop(slot, None)
            return
        took_us = now_us - sent_us
        quickest_us = took_us if starts else min(took_us, self._quickest_us.get(slot, took_us))
        self._quickest_us[slot] = quickest_us
        waited_us = took_us - quickest_us
        if waited_us > timeout_us and not ends:
            raise TooLate(
                f"the deadline of {timeout_us / 1e6:g} s has passed: the request waited {waited_us / 1e6:.3g} s and "
                "was not run; its stream is as it was, so send it again, or slower"
            )
