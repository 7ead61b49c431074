"""The workers' signs of life, read from shared memory; ``backends/onnxruntime/heartbeat.py`` writes them.

Their files are named like the server's other shared memory, so they go with it (``leftovers.py``).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from serving.leftovers import SHARED_MEMORY

ENVIRONMENT = "SEQSERVE_COUNTERS"  # tells the workers how the names of their files begin

_NUMBERS = struct.Struct("<4Q")


@dataclass(frozen=True)
class Heartbeat:
    """What a worker said last.

    beats: go up while it can say anything at all. begun, ended: executions. streams: how many it holds; 0 for a model
    without.
    """

    pid: int
    model: str
    instance: str
    beats: int
    begun: int
    ended: int
    streams: int

    @property
    def busy(self) -> bool:
        """Whether an execution is under way."""
        return self.begun > self.ended


class Heartbeats:
    """Those of one server's workers. server_id: the name of its workspace."""

    def __init__(self, server_id: str) -> None:
        self._prefix = f"{server_id}_beat_"

    def read(self) -> list[Heartbeat]:
        """Of every worker that has begun to serve and was not asked to end, be it alive or not."""
        found = []
        for path in SHARED_MEMORY.glob(f"{self._prefix}*"):
            try:
                content = path.read_bytes()
                numbers, about = _NUMBERS.unpack_from(content), json.loads(content[_NUMBERS.size :])
                pid = int(path.name.rpartition("_")[2])
            except (OSError, ValueError, struct.error):  # it ends, or has not said everything yet
                continue
            found.append(Heartbeat(pid, about["model"], about["instance"], *numbers))
        return found

    def forget(self, pid: int) -> None:
        """Remove what a dead worker has left."""
        (SHARED_MEMORY / f"{self._prefix}{pid}").unlink(missing_ok=True)
