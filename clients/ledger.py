"""What a session sent and what was answered, and what may come next: its rules, free of input and output."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from clients.calls import Answer, Chunk, Reply
from clients.chunk import named
from clients.errors import (
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    SessionLost,
)
from clients.signature import Array, Signature


def draw_sequence() -> int:
    """A stream's id, which must be its own."""
    return 1 + secrets.randbelow(2**63 - 1)


@dataclass
class Ledger:
    """The books of one session. keep: how many answered chunks to keep, so that they can be sent again.

    START goes with every chunk until one has been answered: a first chunk that the server refused has started nothing,
    or a state without a past, which START resets.
    """

    address: str
    signature: Signature
    keep: int = 0
    sequence: int = field(default_factory=draw_sequence)
    answered: int = 0
    _kept: list[Chunk] = field(default_factory=list)
    _sent: int = 0
    _owed: Chunk | None = None
    _over: str = ""
    _in_use: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.signature.idle_limit_s is None:
            raise InvalidRequest(
                f"model '{self.signature.model}' at {self.address} keeps no state between requests, so there is "
                "nothing to stream; ask it with infer()"
            )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held while a chunk is sent and awaited. Raises ClientError if someone else holds it."""
        if not self._in_use.acquire(blocking=False):
            raise ClientError(f"{self._name()} is in use by another thread or task; give each stream its own session")
        try:
            yield
        finally:
            self._in_use.release()

    def sent(self, inputs: Mapping[str, Array] | Array, end: bool, deadline_s: float) -> Chunk:
        """The chunk to send next. Raises InvalidRequest for inputs that the model cannot take."""
        self._check_open()
        if self._owed is not None:
            raise ClientError(
                f"{self._name()}: chunk {self.answered + 1} is still unanswered; take its answer with receive() before "
                "sending more"
            )
        checked = self.signature.checked(named(self.signature, inputs))
        rows = self.signature.rows(checked)
        if rows not in (1, None):
            raise InvalidRequest(
                f"{self._name()} is one stream, so every input has 1 row, but {rows} came; open one session for each"
            )
        if self.keep:  # the caller may fill the same array with the next chunk
            checked = {name: array.copy() for name, array in checked.items()}
        model, version, start = self.signature.model, self.signature.version, self.answered == 0
        self._owed = Chunk(model, version, checked, self._request(), self.sequence, start, end, deadline_s)
        return self._owed

    def check_owed(self) -> None:
        """Raise ClientError unless an answer is to come."""
        self._check_open()
        if self._owed is None:
            raise ClientError(f"{self._name()}: every chunk has been answered; send another one first")

    def received(self, reply: Reply) -> Answer:
        """The answer to the chunk that is owed one. Raises what the server said instead of it."""
        chunk = self._owed
        assert chunk is not None
        if reply.request != chunk.request:
            raise self._lost(f"the answer to request '{reply.request}' came where '{chunk.request}' was asked")
        match reply.said:
            case SessionLost() as error:
                raise self._lost(str(error))
            case ModelNotFound() | ModelNotReady() as error if self.answered:  # its version went, and the state with it
                raise self._lost(str(error))
        self._owed = None
        if isinstance(reply.said, ClientError):
            raise reply.said
        self.signature.check_answer(reply.said.outputs, 1)
        self._answered(chunk)
        return reply.said

    def ended(self, error: ClientError) -> ClientError:
        """What to raise where no reply came: the answer is late, or the stream has ended with that error."""
        if self._over:  # closed meanwhile, by another thread or task
            return ClientError(f"{self._name()} {self._over} before chunk {self.answered + 1} was answered")
        if isinstance(error, DeadlineExceeded):
            return DeadlineExceeded(f"{error}; receive() waits for chunk {self.answered + 1} anew")
        if self.answered or isinstance(error, ConnectionLost):
            return self._lost(str(error))
        self._over = "never opened"
        return error

    def repeatable(self) -> bool:
        """Whether all that was answered is kept, and a chunk waits for its answer."""
        return self.keep > 0 and len(self._kept) == self.answered and self._owed is not None and not self.closed

    def repeated(self) -> list[Chunk]:
        """All that was answered, and what was not, as the chunks of a new stream; unless closed, the session is open
        again."""
        assert self._owed is not None
        self._over, self.sequence = self._over if self.closed else "", draw_sequence()
        chunks = [
            replace(chunk, request=self._request(), sequence=self.sequence, start=not place, deadline_s=None)
            for place, chunk in enumerate([*self._kept, self._owed])
        ]
        self._owed = chunks[-1]
        return chunks

    def given_up(self, lost: SessionLost, why: str) -> SessionLost:
        """What to raise where sending everything again did not help."""
        self._over, self._owed = self._over or "was lost", None
        return SessionLost(f"{lost}. It was not mended by sending all chunks again: {why}", self.answered)

    @property
    def closed(self) -> bool:
        """Whether the session was closed by the caller."""
        return self._over == "was closed"

    def close(self) -> bool:
        """False if it was closed before."""
        if self.closed:
            return False
        self._over = "was closed"
        return True

    def _answered(self, chunk: Chunk) -> None:
        if len(self._kept) == self.answered < self.keep:
            self._kept.append(chunk)
        else:
            self._kept.clear()  # a part of the past is no past
        self.answered += 1
        if chunk.end and not self._over:  # another thread may have closed it meanwhile
            self._over = "is finished"

    def _lost(self, why: str) -> SessionLost:
        if not self.closed:
            self._over = "was lost"
        unkept = f"; of its chunks only {self.keep} could be kept for a replay" if 0 < self.keep < self.answered else ""
        return SessionLost(
            f"{self._name()} is lost after {self.answered} answered chunks: {why.rstrip('.')}. The server keeps a "
            f"silent stream {self.signature.idle_limit_s:g} s and none through a restart{unkept}; open a new one with "
            f"stream('{self.signature.model}') and begin with what was not answered",
            self.answered,
        )

    def _request(self) -> str:
        """A new request's id."""
        self._sent += 1
        return f"{self.sequence}-{self._sent}"

    def _check_open(self) -> None:
        if self._over:
            raise ClientError(
                f"{self._name()} {self._over}; open a new one with stream('{self.signature.model}') to send more"
            )

    def _name(self) -> str:
        return f"stream {self.sequence} of model '{self.signature.model}' at {self.address}"
