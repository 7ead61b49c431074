"""Sessions: one stream of chunks to a model that remembers its past, over one bidirectional gRPC stream.

    with client.stream("speech") as session:
        for chunk in chunks[:-1]:  # int16 (samples,)
            answer = session.send(chunk)
        answer = session.finish(chunks[-1])  # may be shorter

``send`` returns the answer for just that chunk, ``finish`` sends the last one and lets the server free the stream.
A bare array is the model's one input; several have names: ``send({"pcm": pcm, "hint": hint})``, with a batch axis each,
which is 1: a session is one stream. Leaving ``with`` without ``finish`` sends nothing
more; the server then forgets the stream when its idle limit (``Signature.idle_limit_s``) has passed. The same limit
ends a session that pauses for longer.

What each error means to the session:

    InvalidRequest, ServerError   this chunk was refused, or failed: the session is open, and the chunk may be mended
                                  and sent again. After a ServerError whether the state has moved is for the server's
                                  log to say. A last chunk that the server refused may have ended the stream there;
                                  sending it again then is a SessionLost
    DeadlineExceeded              the answer is only late. ``receive`` waits for it anew; until it is there nothing
                                  more can be sent, so no answer is ever missed
    SessionLost                   the state is gone; open a new session. ``answered`` answers stand
    ServerUnavailable             nobody was there to begin with: open a new session later. Or the server has too much
                                  to do: the session is open, and the chunk may be sent again

One chunk is under way at a time. A session may pass from thread to thread but not be used by two at once, which is
refused; ``close`` may be called by any. Different sessions of one client are independent.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from clients.calls import (
    Answer,
    AsyncStream,
    AsyncStreamTransport,
    Chunk,
    Reply,
    Stream,
    StreamTransport,
    check_deadlines,
)
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

T = TypeVar("T")


class Session:
    """See the module; made by ``Client.stream`` and open inside ``with``."""

    def __init__(
        self, address: str, describe: Callable[[], Signature], transport: StreamTransport, deadline_s: float
    ) -> None:
        self._address = address
        self._describe = describe
        self._transport = transport
        self._deadline_s = deadline_s
        self._opened: tuple[_Ledger, Stream] | None = None

    @property
    def signature(self) -> Signature:
        """What the model takes and gives, and how long it remembers a silent stream."""
        return _opened(self._opened)[0].signature

    @property
    def answered(self) -> int:
        """How many chunks have been answered."""
        return _opened(self._opened)[0].answered

    def send(self, inputs: Mapping[str, Array] | Array, *, deadline_s: float | None = None) -> Answer:
        """The answer for the next chunk. inputs: an array, or by name with a batch axis of 1. See the module."""
        return self._ask(inputs, False, deadline_s)

    def finish(self, inputs: Mapping[str, Array] | Array, *, deadline_s: float | None = None) -> Answer:
        """The same for the last chunk; the server then forgets the stream, and nothing more can be sent."""
        return self._ask(inputs, True, deadline_s)

    def receive(self, *, deadline_s: float | None = None) -> Answer:
        """The answer that did not come within its chunk's deadline; waits for it anew."""
        ledger, stream = _opened(self._opened)
        with ledger.turn():
            return self._take(ledger, stream, self._checked(deadline_s))

    def close(self) -> None:
        """Close the stream. What is under way then ends with a ClientError; a second call does nothing."""
        if self._opened is not None and self._opened[0].close():
            self._opened[1].close()

    def __enter__(self) -> Self:
        _check_unopened(self._opened)
        stream = self._transport.stream()  # connects while the server is asked for the model
        try:
            ledger = _Ledger(self._address, self._describe())
        except BaseException:
            stream.close()
            raise
        self._opened = ledger, stream
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, inputs: Mapping[str, Array] | Array, end: bool, deadline_s: float | None) -> Answer:
        ledger, stream = _opened(self._opened)
        with ledger.turn():
            deadline_s = self._checked(deadline_s)
            stream.put(ledger.sent(inputs, end))
            return self._take(ledger, stream, deadline_s)

    def _take(self, ledger: _Ledger, stream: Stream, deadline_s: float) -> Answer:
        ledger.check_owed()
        try:
            reply = stream.take(deadline_s)
        except ClientError as error:
            raise ledger.ended(error) from None
        return ledger.received(reply)

    def _checked(self, deadline_s: float | None) -> float:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        return deadline_s


class AsyncSession:
    """``Session`` with ``await`` and ``async with``; made by ``AsyncClient.stream``."""

    def __init__(
        self,
        address: str,
        describe: Callable[[], Awaitable[Signature]],
        transport: AsyncStreamTransport,
        deadline_s: float,
    ) -> None:
        self._address = address
        self._describe = describe
        self._transport = transport
        self._deadline_s = deadline_s
        self._opened: tuple[_Ledger, AsyncStream] | None = None

    @property
    def signature(self) -> Signature:
        """See ``Session.signature``."""
        return _opened(self._opened)[0].signature

    @property
    def answered(self) -> int:
        """See ``Session.answered``."""
        return _opened(self._opened)[0].answered

    async def send(self, inputs: Mapping[str, Array] | Array, *, deadline_s: float | None = None) -> Answer:
        """See ``Session.send``. A cancelled wait leaves the answer to ``receive``."""
        return await self._ask(inputs, False, deadline_s)

    async def finish(self, inputs: Mapping[str, Array] | Array, *, deadline_s: float | None = None) -> Answer:
        """See ``Session.finish``."""
        return await self._ask(inputs, True, deadline_s)

    async def receive(self, *, deadline_s: float | None = None) -> Answer:
        """See ``Session.receive``."""
        ledger, stream = _opened(self._opened)
        with ledger.turn():
            return await self._take(ledger, stream, self._checked(deadline_s))

    async def close(self) -> None:
        """See ``Session.close``."""
        if self._opened is not None and self._opened[0].close():
            await self._opened[1].close()

    async def __aenter__(self) -> Self:
        _check_unopened(self._opened)
        stream = self._transport.stream()
        try:
            ledger = _Ledger(self._address, await self._describe())
        except BaseException:
            await stream.close()
            raise
        self._opened = ledger, stream
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, inputs: Mapping[str, Array] | Array, end: bool, deadline_s: float | None) -> Answer:
        ledger, stream = _opened(self._opened)
        with ledger.turn():
            deadline_s = self._checked(deadline_s)
            stream.put(ledger.sent(inputs, end))
            return await self._take(ledger, stream, deadline_s)

    async def _take(self, ledger: _Ledger, stream: AsyncStream, deadline_s: float) -> Answer:
        ledger.check_owed()
        try:
            reply = await stream.take(deadline_s)
        except ClientError as error:
            raise ledger.ended(error) from None
        return ledger.received(reply)

    def _checked(self, deadline_s: float | None) -> float:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        return deadline_s


def needs_grpc(address: str) -> ClientError:
    """For a client whose transport has no streams."""
    return ClientError(f"{address}: streaming sessions need gRPC; connect with protocol='grpc', usually to port 8001")


@dataclass
class _Ledger:
    """What was sent and answered, and what may come next: the rules of a session, free of input and output.

    START goes with every chunk until one has been answered: a first chunk that the server refused has started nothing,
    or a state without a past, which START resets.
    """

    address: str
    signature: Signature
    sequence: int = field(default_factory=lambda: 1 + secrets.randbelow(2**63 - 1))
    answered: int = 0
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

    def sent(self, inputs: Mapping[str, Array] | Array, end: bool) -> Chunk:
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
        self._sent += 1
        request, model, version = f"{self.sequence}-{self._sent}", self.signature.model, self.signature.version
        self._owed = Chunk(model, version, checked, request, self.sequence, start=self.answered == 0, end=end)
        return self._owed

    def check_owed(self) -> None:
        """Raise ClientError unless an answer is to come."""
        self._check_open()
        if self._owed is None:
            raise ClientError(f"{self._name()}: every chunk has been answered; send another one first")

    def received(self, reply: Reply) -> Answer:
        """The answer to the chunk that is owed one. Raises what the server said instead of it."""
        chunk, self._owed = self._owed, None
        assert chunk is not None
        if reply.request != chunk.request:
            raise self._lost(f"the answer to request '{reply.request}' came where '{chunk.request}' was asked")
        match reply.said:
            case SessionLost() as error:
                raise self._lost(str(error))
            case ModelNotFound() | ModelNotReady() as error if self.answered:  # its version went, and the state with it
                raise self._lost(str(error))
            case ClientError() as error:
                raise error
            case answer:
                self.signature.check_answer(answer.outputs, 1)
                self.answered += 1
                if chunk.end and not self._over:  # another thread may have closed it meanwhile
                    self._over = "is finished"
                return answer

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

    def close(self) -> bool:
        """False if it was closed before."""
        if self._over == "was closed":
            return False
        self._over = "was closed"
        return True

    def _lost(self, why: str) -> SessionLost:
        self._over = "was lost"
        return SessionLost(
            f"{self._name()} is lost after {self.answered} answered chunks: {why.rstrip('.')}. The server keeps a "
            f"silent stream {self.signature.idle_limit_s:g} s and none through a restart; open a new one with "
            f"stream('{self.signature.model}') and begin with what was not answered",
            self.answered,
        )

    def _check_open(self) -> None:
        if self._over:
            raise ClientError(
                f"{self._name()} {self._over}; open a new one with stream('{self.signature.model}') to send more"
            )

    def _name(self) -> str:
        return f"stream {self.sequence} of model '{self.signature.model}' at {self.address}"


def _opened(opened: T | None) -> T:
    if opened is None:
        raise ClientError("the session is not open; use it inside 'with client.stream(...) as session'")
    return opened


def _check_unopened(opened: object) -> None:
    if opened is not None:
        raise ClientError("a session is for one stream; call stream(...) again for another")
