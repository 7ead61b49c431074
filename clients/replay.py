"""Sending a lost stream's chunks again, to a new stream, so that its session goes on as if nothing had happened.

    with client.stream("speech", replay=True) as session: ...
    with client.stream("speech", replay=Replay(chunks=100, deadline_s=10)) as session: ...

The state is made of every chunk since START, so all of them are kept, up to a bound, and sent again when the stream is
lost: its worker or its server died, or it paused for too long. Their answers were given already and are dropped; the
last one's is returned. A batch-invariant model gives the same answers to the bit; of any other they are as close as
two runs in different company are to each other. Beyond the bound the session is lost with its stream, and says so: a
part of the past would give wrong answers. So is one whose model version the server no longer has.

A replay is a conversation (see ``clients.conversation``): a generator that the two kinds of session drive.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from clients.calls import Answer, Chunk, Reply
from clients.errors import (
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    ModelNotFound,
    ModelNotReady,
    ServerUnavailable,
    SessionLost,
)
from clients.ledger import Ledger

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
# Of a server that is not there yet, or gone again.
_PASSING = (ConnectionLost, DeadlineExceeded, ModelNotFound, ModelNotReady, ServerUnavailable, SessionLost)


@dataclass(frozen=True)
class Replay:
    """chunks: the most to keep; each takes what its arrays take (320 ms of speech: 10 KB). deadline_s: how much longer
    a call may take that has to wait for the server and send everything again."""

    chunks: int = 2000
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        if self.chunks < 1 or not self.deadline_s > 0:
            raise ClientError(f"{self}: expected at least 1 chunk and more than 0 s")

    @classmethod
    def of(cls, wanted: bool | Replay) -> Replay | None:
        """What ``replay=`` means: False is none, True the usual one."""
        return wanted if isinstance(wanted, Replay) else cls() if wanted else None


@dataclass(frozen=True)
class Reopen:
    """Leave the stream for a new one, and ask for the version of the model. Reply: Signature."""

    version: str


@dataclass(frozen=True)
class Ask:
    """Send a chunk and take what comes. Reply: Reply."""

    chunk: Chunk
    deadline_s: float


@dataclass(frozen=True)
class Wait:
    """Reply: None."""

    seconds: float


class _Hopeless(Exception):
    """Waiting would not help."""


Step = Reopen | Ask | Wait


def repeat(ledger: Ledger, lost: SessionLost, replay: Replay | None) -> Generator[Step, Any, Answer]:
    """Begin again until the chunk that is owed an answer has one. Raises ``lost`` where that cannot be."""
    if replay is None or not ledger.repeatable():
        raise lost
    end_s, pause_s = time.monotonic() + replay.deadline_s, _FIRST_PAUSE_S
    while True:
        try:
            signature = yield Reopen(ledger.signature.version)
            if signature != ledger.signature:
                raise _Hopeless(f"version {signature.version} of the model is another one now")
            *past, owed = ledger.repeated()
            for chunk in past:
                reply: Reply = yield Ask(chunk, _left_s(end_s))
                if isinstance(reply.said, _PASSING) or reply.request != chunk.request:
                    raise ConnectionLost(str(reply.said))
                if isinstance(reply.said, ClientError):
                    raise _Hopeless(f"what was answered once is refused now: {reply.said}")
            reply = yield Ask(owed, _left_s(end_s))
            if isinstance(reply.said, _PASSING):  # to the ledger it would be refused, and so no longer owed
                raise ConnectionLost(str(reply.said))
            return ledger.received(reply)
        except _Hopeless as error:
            raise ledger.given_up(lost, str(error)) from None
        except _PASSING as error:
            if ledger.closed or not ledger.repeatable() or time.monotonic() + pause_s > end_s:
                raise ledger.given_up(lost, str(error)) from None
        yield Wait(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _left_s(end_s: float) -> float:
    return max(end_s - time.monotonic(), 0.001)
