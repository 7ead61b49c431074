"""Requests of streams, sorted into rounds that may each be one run.

A run may hold one request of each stream, since the next one needs the state that the run returns. Triton's `oldest`
and `direct` strategies have one in flight for each stream, so there is one round; should there be more, order is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from streams import Id

START, END = 1, 2  # flags of a request, as in tritonserver.h


class Turn(NamedTuple):
    """A request's part in its stream; place: among the requests of the call."""

    place: int
    stream: Id
    starts: bool
    ends: bool


def rounds(requests: Sequence[Any], ready: str | None) -> tuple[list[list[Turn]], list[int]]:
    """The rounds, and the places of the fillers: what strategy `direct` puts into empty slots.

    ready: the control input that tells fillers, if the model has one.
    """
    found: list[list[Turn]] = []
    fillers = []
    seen: dict[Id, int] = {}
    for place, request in enumerate(requests):
        stream, flags = request.correlation_id(), request.flags()
        if _is_filler(request, stream, ready):
            fillers.append(place)
            continue
        earlier = seen.get(stream, 0)
        seen[stream] = earlier + 1
        if earlier == len(found):
            found.append([])
        found[earlier].append(Turn(place, stream, bool(flags & START), bool(flags & END)))
    return found, fillers


def _is_filler(request: Any, stream: Id, ready: str | None) -> bool:
    """Triton refuses requests whose id is 0 or empty, so such a one is its own."""
    if not stream:
        return True
    return ready is not None and any(
        tensor.name() == ready and not tensor.as_numpy().any() for tensor in request.inputs()
    )
