"""How streams often begin, and what the model answers then: a bounded cache of answers and states.

Many live streams begin with the same bytes: digital silence, a greeting, hold music. While everything that a stream has
brought since START is known from others, its answer and its next state are taken from here instead of a run.

    openings = Openings(limit_bytes=64 << 20)
    step = openings.step(slot, starts, arrays)       # None: the stream has left the known paths
    if step and step.known:                          # its answer and its next state
        openings.follow(slot, step)
    else:
        ...                                          # run the model
        if step:
            openings.keep(slot, step, outputs, states, row)

The key of a step is a hash of the stream's whole past, each request's tensors with their shapes. The same past gives
the same state, so what is served is what a run would have given, to the bit if the model is batch-invariant (and if it
is not, as close as two runs in different company are to each other): switch it on for such models only.

A path is learnt chunk by chunk. A chunk that nobody brought before is only noted, and its stream leaves the known
paths for good; when a second stream brings it after the same past, it is kept, and that stream goes on. So an opening
of n chunks takes about n streams to learn, and a stream like no other costs one hash in its whole life.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DEPTH = 64  # chunks of a path: recordings that are replayed from end to end must not push out the openings
_NOTED = 8192  # chunks brought once
_OVERHEAD_BYTES = 512  # of an entry, beside its arrays


class Known(NamedTuple):
    """What one run gave to one stream, as arrays of one row."""

    outputs: list[Array]
    states: list[Array]


class Step(NamedTuple):
    """One request of a stream on a known path; key: of the path with this request, depth: its chunks."""

    key: bytes
    depth: int
    known: Known | None
    brought_before: bool


class Openings:
    """The openings of one instance.

    limit_bytes: of the arrays that are kept; the longest unused go first. hits, misses: steps with and without a known
    answer; steps of streams beyond their opening count as neither.
    """

    def __init__(self, limit_bytes: int, depth: int = DEPTH) -> None:
        self.limit_bytes, self.depth = limit_bytes, depth
        self.bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[bytes, Known] = OrderedDict()
        self._noted: OrderedDict[bytes, None] = OrderedDict()
        self._paths: dict[int, tuple[bytes, int]] = {}  # slot -> key and depth; none for a stream that left them

    def __len__(self) -> int:
        return len(self._kept)

    def step(self, slot: int, starts: bool, arrays: Sequence[Array]) -> Step | None:
        """Where this request leads its stream, which does not move yet: the request may still fail."""
        path = (b"", 0) if starts else self._paths.get(slot)
        if path is None:
            return None
        key, depth = _key(path[0], arrays), path[1] + 1
        known = self._kept.get(key)
        if known is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return Step(key, depth, known, True)
        self.misses += 1
        before = key in self._noted
        if not before:
            self._noted[key] = None
            if len(self._noted) > _NOTED:
                self._noted.popitem(last=False)
        return Step(key, depth, None, before)

    def follow(self, slot: int, step: Step) -> None:
        """The stream has been answered with what is known; its state must be set to that, too."""
        self._go(slot, step, stays=True)

    def keep(self, slot: int, step: Step, outputs: Sequence[Array], states: Sequence[Array], row: int | None) -> None:
        """The stream has been answered by a run. row: its row of the arrays, None if they have no batch axis."""
        stays = step.key in self._kept
        if step.brought_before and not stays:
            known = Known([_own(array, row) for array in outputs], [_own(array, row) for array in states])
            stays = self._store(step.key, known)
        self._go(slot, step, stays)

    def _go(self, slot: int, step: Step, stays: bool) -> None:
        if stays and step.depth < self.depth:
            self._paths[slot] = (step.key, step.depth)
        else:
            self._paths.pop(slot, None)

    def _store(self, key: bytes, known: Known) -> bool:
        size = _bytes(known)
        if size > self.limit_bytes:
            return False
        self._noted.pop(key, None)
        self._kept[key] = known
        self.bytes += size
        while self.bytes > self.limit_bytes:
            self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return True


def _key(before: bytes, arrays: Sequence[Array]) -> bytes:
    """Cryptographic, since clients choose the arrays and whoever made two pasts collide would hear another's answer."""
    shapes = repr([array.shape for array in arrays]).encode()  # says where one array's bytes end and the next begin
    key = blake2b(before + shapes, digest_size=32)
    for array in arrays:
        key.update(np.ascontiguousarray(array).data)
    return key.digest()


def _own(array: Array, row: int | None) -> Array:
    """A copy, so that neither the run's whole batch is held nor anybody writes to it."""
    return (array if row is None else array[row : row + 1]).copy()


def _bytes(known: Known) -> int:
    return _OVERHEAD_BYTES + sum(array.nbytes for arrays in known for array in arrays)
