"""What a server on this machine holds: processes, memory, descriptors, threads, shared memory; and whether that grows.

census = Census.of(pid, ["seqserve-server-4f"])
growth_percent(times_s, [each.memory_bytes for each in censuses])
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from loadtest.processes import tree

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Census:
    """memory_bytes: proportional, what processes share is counted once. shared_bytes: of files in /dev/shm, as far as
    they were written to."""

    processes: int
    memory_bytes: int
    descriptors: int
    threads: int
    shared_files: int
    shared_bytes: int

    @classmethod
    def of(cls, pid: int, prefixes: Iterable[str] = ()) -> Census:
        """Of ``pid`` and its descendants. prefixes: of the names of their shared memory."""
        processes = memory_bytes = descriptors = threads = 0
        for member in tree(pid):
            folder = Path(f"/proc/{member}")
            with suppress(OSError, StopIteration):  # it has just ended
                lines = (folder / "smaps_rollup").read_text().splitlines()
                memory_bytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
                descriptors += len(list((folder / "fd").iterdir()))
                threads += len(list((folder / "task").iterdir()))
                processes += 1
        shared = shared_files(prefixes)
        return cls(processes, memory_bytes, descriptors, threads, len(shared), sum(map(_bytes, shared)))


def shared_files(prefixes: Iterable[str]) -> list[Path]:
    """The files of /dev/shm that belong to servers of those names."""
    return [path for prefix in prefixes for path in SHARED_MEMORY.glob(f"{prefix}*")]


def growth_percent(times_s: ArrayLike, values: ArrayLike) -> float:
    """What the values grow by from the first to the last time, by the median of all slopes (Theil and Sen), of their
    median: a leak shows though they jump, and a single jump is none. 0 for fewer than two."""
    x, y = np.asarray(times_s, float), np.asarray(values, float)
    if len(y) < 2:
        return 0.0
    first, second = np.triu_indices(len(x), 1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return 100 * slope * float(x[-1] - x[0]) / max(float(np.median(y)), 1e-9)


def _bytes(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0
