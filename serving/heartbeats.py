"""The workers' signs of life, read from shared memory; ``backends/onnxruntime/heartbeat.py`` writes them.

Their files are named like the server's other shared memory, so they go with it (``leftovers.py``).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "SEQSERVE_HEARTBEATS"  # tells the workers the prefix of their files

_SHARED_MEMORY = Path("/dev/shm")
_NUMBERS = struct.Struct("<5Q")


@dataclass(frozen=True)
class Heartbeat:
    """What a worker said last.

    beats: go up while it can say anything at all. begun, ended: executions. streams: how many it holds, of at most
    ``room``; 0 for a model without.
    """

    pid: int
    model: str
    version: str
    instance: str
    beats: int
    begun: int
    ended: int
    streams: int
    room: int

    @property
    def busy(self) -> bool:
        """Whether an execution is under way."""
        return self.begun > self.ended


class Heartbeats:
    """Those of one server's workers. server_id: the name of its workspace."""

    def __init__(self, server_id: str) -> None:
        self.prefix = f"{_SHARED_MEMORY / server_id}_beat_"

    def read(self) -> list[Heartbeat]:
        """Of every worker that has begun to serve and was not asked to end, be it alive or not."""
        found = []
        for path in self._folder.glob(f"{Path(self.prefix).name}*"):
            try:
                content = path.read_bytes()
                numbers, about = _NUMBERS.unpack_from(content), json.loads(content[_NUMBERS.size :])
                pid = int(path.name.rpartition("_")[2])
            except (OSError, ValueError, struct.error):  # it ends, or has not said everything yet
                continue
            found.append(Heartbeat(pid, about["model"], about["version"], about["instance"], *numbers))
        return found

    def forget(self, pid: int) -> None:
        """Remove what a dead worker has left."""
        Path(f"{self.prefix}{pid}").unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return Path(self.prefix).parent
