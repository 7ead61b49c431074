"""What the model remembers of each stream between two requests: its state tensors, in preallocated arrays.

One array for each state tensor, one row of it (a slot) for each stream. A run gathers the rows of its streams and, if
it succeeded, scatters the new ones; nothing is written before, so a failed run leaves every stream as it was.

    streams = Streams(states, limit=512, idle_s=10.0, batch=64)
    slots = [streams.enter("call-7", start=True), streams.enter(8, start=False)]
    arrays = streams.gather(slots, fresh=[0])     # row 0 begins: it gets the initial state, zeros
    streams.scatter(slots, next_arrays)
    streams.leave("call-7")

A stream ends by END. One that never sends it is forgotten after ``expiry_s``, which is longer than Triton's own idle
limit, or earlier, but never within that limit, when a new stream needs its slot. So memory is bounded by ``limit``,
and a stream beyond it is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_contract import Tensor

Array = npt.NDArray[Any]
Id = int | str

_FIRST_SLOTS = 16


class UnknownStream(LookupError):
    """A request without START for a stream that is not there."""


class TooManyStreams(RuntimeError):
    """A START for which there is no slot."""


@dataclass
class _Stream:
    slot: int
    used_at: float


class Streams:
    """The streams of one instance.

    states: without the batch axis. limit: streams held at once. idle_s: after which Triton forgets a silent stream.
    batch: the most rows of a run, 0 for states without a batch axis. clock: seconds, never set back. event: told what
    happens to which stream (``stream_metrics.EVENTS``).
    """

    def __init__(
        self,
        states: Sequence[Tensor],
        limit: int,
        idle_s: float,
        batch: int,
        clock: Callable[[], float] = time.monotonic,
        event: Callable[[str, Id], None] = lambda what, stream: None,
    ) -> None:
        self.limit, self.idle_s, self.expiry_s = limit, idle_s, 2 * idle_s + 1.0
        self._clock = clock
        self._event = event
        self._streams: dict[Id, _Stream] = {}  # the longest silent first
        slots = min(limit, _FIRST_SLOTS)
        self._arrays = [np.zeros((slots, *state.shape), state.dtype) for state in states]
        self._gathered = [np.zeros((max(1, batch), *state.shape), state.dtype) for state in states]
        self._free = list(range(slots))[::-1]
        self._batched = batch > 0

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def slots(self) -> int:
        """How many streams the arrays have room for; doubled when needed, up to ``limit``."""
        return len(self._free) + len(self._streams)

    def enter(self, stream: Id, start: bool) -> int:
        """The stream's slot, for one more request. ``start`` makes a new stream, in place of one of the same id.

        Raises UnknownStream, or TooManyStreams if every slot belongs to a stream that may still go on.
        """
        now = self._clock()
        known = self._streams.pop(stream, None)
        if known is None:
            if not start:
                self._event("unknown", stream)
                raise UnknownStream(
                    f"no such stream: {stream!r} was never started, has ended, or was idle for more than "
                    f"{self.idle_s:g} s; begin it with START"
                )
            known = _Stream(self._new_slot(stream, now), now)
        elif start:
            self._event("replaced", stream)
        if start:
            self._event("started", stream)
        known.used_at = now
        self._streams[stream] = known
        return known.slot

    @property
    def state_bytes(self) -> int:
        """Memory that the states have."""
        return sum(array.nbytes for array in self._arrays)

    def leave(self, stream: Id, why: str = "ended") -> None:
        """Free the stream's slot, if it has one."""
        known = self._streams.pop(stream, None)
        if known is not None:
            self._free.append(known.slot)
            self._event(why, stream)

    def expire(self) -> None:
        """Forget the streams that have been silent for more than ``expiry_s``."""
        if self._streams:
            self._forget_before(self._clock() - self.expiry_s, "expired")

    def gather(self, slots: Sequence[int], fresh: Sequence[int]) -> list[Array]:
        """Every state's rows for a run, in the order of ``slots``; those at the places ``fresh`` are zeros.

        The arrays are valid until the next call.
        """
        rows = np.fromiter(slots, np.intp, len(slots))
        states = []
        for array, room in zip(self._arrays, self._gathered, strict=True):
            out = room[: len(rows)] if len(rows) <= len(room) else np.empty((len(rows), *room.shape[1:]), room.dtype)
            np.take(array, rows, axis=0, out=out, mode="clip")  # "raise" would go through a copy
            out[list(fresh)] = 0
            states.append(out if self._batched else out[0])
        return states

    def scatter(self, slots: Sequence[int], states: Sequence[Array]) -> None:
        """Keep the rows that a run returned; raises RuntimeError, before any change, if their shapes are wrong."""
        for array, state in zip(self._arrays, states, strict=True):
            wanted = (len(slots), *array.shape[1:]) if self._batched else array.shape[1:]
            if state.shape != wanted:
                raise RuntimeError(f"the model returned a state of shape {list(state.shape)} for {list(wanted)}")
        rows = np.fromiter(slots, np.intp, len(slots))
        for array, state in zip(self._arrays, states, strict=True):
            array[rows] = state

    def _new_slot(self, stream: Id, now: float) -> int:
        if not self._free and self.slots < self.limit:
            self._grow()
        if not self._free:
            self._forget_before(now - self.idle_s, "evicted")
        if not self._free:
            self._event("refused", stream)
            raise TooManyStreams(
                f"no room for another stream: {self.limit} are open and none was idle for more than {self.idle_s:g} s; "
                "try again later, or raise the model's max_streams"
            )
        return self._free.pop()

    def _grow(self) -> None:
        have = self.slots
        more = min(have, self.limit - have)
        self._arrays = [np.concatenate([array, np.zeros_like(array[:more])]) for array in self._arrays]
        self._free.extend(reversed(range(have, have + more)))

    def _forget_before(self, moment: float, why: str) -> None:
        while self._streams:
            stream, oldest = next(iter(self._streams.items()))
            if oldest.used_at >= moment:
                return
            self.leave(stream, why)
