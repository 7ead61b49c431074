"""What one worker counts of its streams and its runs, in a small file of shared memory; and their log.

    metrics = StreamMetrics.of_worker("speech", "1", "speech_0_0", pb_utils.Logger)
    metrics.event("started", "call-7")
    metrics.ran(rows=16)                # of every run
    metrics.holds(streams=17, room=1024, state_bytes=1 << 20)

Counting costs a microsecond or two. ``serving/worker_metrics.py`` makes a page for Prometheus of it. Not Triton's
own custom metrics: each count would be a message to the server and back (36 us), what a killed worker had set would
stay for ever, and when a model is reloaded, the old worker takes away the metrics that the new one shares with it.

With SEQSERVE_STREAM_LOG=1 every event is a line in Triton's log, too:

    {"event": "started", "stream": "call-7", "model": "speech", "version": "1", "worker": "speech_0_0"}

The file: unsigned 64-bit numbers, little-endian, in the order of ``NUMBERS``; then JSON: model, version, worker.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from bisect import bisect_left
from typing import Any

from heartbeat import ENVIRONMENT

LOG_ENVIRONMENT = "SEQSERVE_STREAM_LOG"
CANARY = "seqserve-canary"  # the stream of a probe's question (``serving/canary.py``), which is nobody's

# started = those open + replaced (by a START of the same id) + ended + failed (to begin) + expired + evicted (to make
# room). unknown: continued, but not there. refused: no room. late: after its deadline.
EVENTS = ("started", "replaced", "ended", "failed", "expired", "evicted", "unknown", "refused", "late")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)  # upper bounds of the histogram's buckets, the last being without
NUMBERS = (
    "streams", "room", "state_bytes", "rows_sum",
    *EVENTS,
    *(f"rows_{bound}" for bound in ROWS), "rows_inf",
)  # fmt: skip

_NUMBER = struct.Struct("<Q")
_HELD = struct.Struct("<3Q")  # streams, room, state_bytes
_PLACE = {name: index * _NUMBER.size for index, name in enumerate(NUMBERS)}
_BUCKETS = [_PLACE[f"rows_{bound}"] for bound in ROWS] + [_PLACE["rows_inf"]]


class StreamMetrics:
    """Of the worker ``about`` says it is. path: of the file; empty for none. logger: pb_utils.Logger, or None."""

    def __init__(self, path: str, about: dict[str, str], logger: Any = None) -> None:
        self._about = about
        self._logger = logger
        self._path = path
        self._memory: mmap.mmap | bytearray = bytearray(len(NUMBERS) * _NUMBER.size)
        if path:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
                file.write(bytes(self._memory) + json.dumps(about).encode())
                file.flush()
                self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def of_worker(cls, model: str, version: str, worker: str, logger: Any) -> StreamMetrics:
        """This process's, beside its heartbeat."""
        prefix = os.environ.get(ENVIRONMENT)
        path = f"{prefix}count_{os.getpid()}" if prefix else ""
        logs = os.environ.get(LOG_ENVIRONMENT, "0") not in ("", "0")
        return cls(path, {"model": model, "version": version, "worker": worker}, logger if logs else None)

    def event(self, what: str, stream: int | str) -> None:
        """One of ``EVENTS`` happened to ``stream``. What a probe asks is neither counted nor logged."""
        if stream == CANARY:
            return
        self._add(_PLACE[what], 1)
        if self._logger is not None:
            self._logger.log_info(json.dumps({"event": what, "stream": stream, **self._about}))

    def ran(self, rows: int) -> None:
        """A run was done, of so many rows."""
        self._add(_BUCKETS[bisect_left(ROWS, rows)], 1)
        self._add(_PLACE["rows_sum"], rows)

    def holds(self, streams: int, room: int, state_bytes: int) -> None:
        """So many streams are open, of at most ``room``; their states have so much memory."""
        _HELD.pack_into(self._memory, _PLACE["streams"], streams, room, state_bytes)

    def close(self) -> None:
        """The worker ends as it was asked to; the file of one that did not stays, and tells so."""
        if self._path:
            os.unlink(self._path)
            self._path = ""

    def _add(self, place: int, more: int) -> None:
        _NUMBER.pack_into(self._memory, place, _NUMBER.unpack_from(self._memory, place)[0] + more)
