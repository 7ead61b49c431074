"""The sign of life of one worker: counters in a small file of shared memory, which the launcher reads as it likes.

    heartbeat = Heartbeat.of_worker(model="speech", instance="speech_0_0")
    heartbeat.begin()                   # of every execute
    heartbeat.end(streams=17)
    heartbeat.close()                   # an orderly end: the file goes

A thread counts ``beats`` four times a second, whatever the worker does: they stop when the process is stopped or dead,
or when something holds Python's lock for good. ``begun`` and ``ended`` count executions: one that hangs shows as a
``begun`` that is never ``ended``, while a worker with a long queue goes from one to the next.

Four unsigned 64-bit numbers, little-endian: beats, begun, ended, streams; then JSON: model, instance.
``serving/heartbeats.py`` reads them. Without the launcher there is no file, and the numbers go nowhere.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading

ENVIRONMENT = "SEQSERVE_COUNTERS"  # begins the files' names; what it is and the worker's process id follow
EVERY_S = 0.25

_NUMBERS = struct.Struct("<4Q")
_NUMBER = struct.Struct("<Q")
_BEATS, _BEGUN, _ENDED, _STREAMS = range(0, _NUMBERS.size, _NUMBER.size)


class Heartbeat:
    """Of the worker ``about`` says it is. path: of the file; empty for none."""

    def __init__(self, path: str, about: dict[str, str]) -> None:
        self._path = path
        self._begun = 0
        text = json.dumps(about).encode()
        self._memory: mmap.mmap | bytearray = bytearray(_NUMBERS.size)
        if not path:
            return
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
            file.write(bytes(self._memory) + text)
            file.flush()
            self._memory = mmap.mmap(file.fileno(), 0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def of_worker(cls, model: str, instance: str) -> Heartbeat:
        """This process's."""
        prefix = os.environ.get(ENVIRONMENT)
        return cls(f"{prefix}beat_{os.getpid()}" if prefix else "", {"model": model, "instance": instance})

    def begin(self) -> None:
        """An execution begins."""
        self._begun += 1
        _NUMBER.pack_into(self._memory, _BEGUN, self._begun)

    def end(self, streams: int) -> None:
        """It is over; ``streams`` are open now."""
        _NUMBER.pack_into(self._memory, _STREAMS, streams)
        _NUMBER.pack_into(self._memory, _ENDED, self._begun)

    def close(self) -> None:
        """The worker ends as it was asked to."""
        if self._path:
            os.unlink(self._path)
            self._closing.set()
            self._thread.join()
            self._path = ""

    def _beat(self) -> None:
        beats = 0
        while not self._closing.wait(EVERY_S):
            beats += 1
            _NUMBER.pack_into(self._memory, _BEATS, beats)
