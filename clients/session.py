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
    NotRun                        what ``receive`` may find then: the server saw the deadline pass before the chunk's
                                  turn came, and dropped it; the state has not moved, and the chunk may be sent again.
                                  First and last chunks are run however late they are
    SessionLost                   the state is gone; open a new session. ``answered`` answers stand. With ``replay``
                                  (``clients.replay``) the session mends itself and raises this only where it cannot
    TooManyStreams                the model has as many streams as it may: the first chunk may be sent again
    ServerUnavailable             nobody was there to begin with: open a new session later. Or the server has too much
                                  to do: the session is open, and the chunk may be sent again

One chunk is under way at a time. A session may pass from thread to thread but not be used by two at once, which is
refused; ``close`` may be called by any. Different sessions of one client are independent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from clients.calls import (
    Answer,
    AsyncStream,
    AsyncStreamTransport,
    Stream,
    StreamTransport,
    check_deadlines,
)
from clients.errors import ClientError, SessionLost
from clients.ledger import Ledger
from clients.replay import Ask, Reopen, Replay, Step, Wait, repeat
from clients.signature import Array, Signature

T = TypeVar("T")


class Session:
    """See the module; made by ``Client.stream`` and open inside ``with``."""

    def __init__(
        self,
        address: str,
        describe: Callable[[str], Signature],
        transport: StreamTransport,
        deadline_s: float,
        replay: Replay | None = None,
    ) -> None:
        self._address = address
        self._describe = describe
        self._transport = transport
        self._deadline_s = deadline_s
        self._replay = replay
        self._opened: tuple[Ledger, Stream] | None = None

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
            ledger = Ledger(self._address, self._describe(""), _kept(self._replay))
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
            stream.put(ledger.sent(inputs, end, deadline_s))
            return self._take(ledger, stream, deadline_s)

    def _take(self, ledger: Ledger, stream: Stream, deadline_s: float) -> Answer:
        ledger.check_owed()
        try:
            try:
                reply = stream.take(deadline_s)
            except ClientError as error:
                raise ledger.ended(error) from None
            return ledger.received(reply)
        except SessionLost as lost:
            return self._begin_again(ledger, lost)

    def _begin_again(self, ledger: Ledger, lost: SessionLost) -> Answer:
        conversation = repeat(ledger, lost, self._replay)
        try:
            step = next(conversation)
            while True:
                try:
                    reply = self._make(step)
                except ClientError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(reply)
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer
        except ClientError:
            raise
        except BaseException:  # between two streams: neither has the whole past
            ledger.given_up(lost, "it was interrupted")
            raise

    def _make(self, step: Step) -> Any:
        ledger, stream = _opened(self._opened)
        match step:
            case Wait(seconds):
                time.sleep(seconds)
                return None
            case Ask(chunk, deadline_s):
                stream.put(chunk)
                return stream.take(deadline_s)
            case Reopen(version):
                stream.close()
                stream = self._transport.stream()
                self._opened = ledger, stream
                if ledger.closed:  # by another thread, which saw only the old stream
                    stream.close()
                return self._describe(version)

    def _checked(self, deadline_s: float | None) -> float:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        return deadline_s


class AsyncSession:
    """``Session`` with ``await`` and ``async with``; made by ``AsyncClient.stream``."""

    def __init__(
        self,
        address: str,
        describe: Callable[[str], Awaitable[Signature]],
        transport: AsyncStreamTransport,
        deadline_s: float,
        replay: Replay | None = None,
    ) -> None:
        self._address = address
        self._describe = describe
        self._transport = transport
        self._deadline_s = deadline_s
        self._replay = replay
        self._opened: tuple[Ledger, AsyncStream] | None = None

    @property
    def signature(self) -> Signature:
        """See ``Session.signature``."""
        return _opened(self._opened)[0].signature

    @property
    def answered(self) -> int:
        """See ``Session.answered``."""
        return _opened(self._opened)[0].answered

    async def send(self, inputs: Mapping[str, Array] | Array, *, deadline_s: float | None = None) -> Answer:
        """See ``Session.send``. A cancelled wait leaves the answer to ``receive``; a cancelled replay loses the
        session."""
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
            ledger = Ledger(self._address, await self._describe(""), _kept(self._replay))
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
            stream.put(ledger.sent(inputs, end, deadline_s))
            return await self._take(ledger, stream, deadline_s)

    async def _take(self, ledger: Ledger, stream: AsyncStream, deadline_s: float) -> Answer:
        ledger.check_owed()
        try:
            try:
                reply = await stream.take(deadline_s)
            except ClientError as error:
                raise ledger.ended(error) from None
            return ledger.received(reply)
        except SessionLost as lost:
            return await self._begin_again(ledger, lost)

    async def _begin_again(self, ledger: Ledger, lost: SessionLost) -> Answer:
        conversation = repeat(ledger, lost, self._replay)
        try:
            step = next(conversation)
            while True:
                try:
                    reply = await self._make(step)
                except ClientError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(reply)
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer
        except ClientError:
            raise
        except BaseException:  # between two streams: neither has the whole past
            ledger.given_up(lost, "it was interrupted")
            raise

    async def _make(self, step: Step) -> Any:
        ledger, stream = _opened(self._opened)
        match step:
            case Wait(seconds):
                await asyncio.sleep(seconds)
                return None
            case Ask(chunk, deadline_s):
                stream.put(chunk)
                return await stream.take(deadline_s)
            case Reopen(version):
                await stream.close()
                stream = self._transport.stream()
                self._opened = ledger, stream
                if ledger.closed:
                    await stream.close()
                return await self._describe(version)

    def _checked(self, deadline_s: float | None) -> float:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        return deadline_s


def needs_grpc(address: str) -> ClientError:
    """For a client whose transport has no streams."""
    return ClientError(f"{address}: streaming sessions need gRPC; connect with protocol='grpc', usually to port 8001")


def _opened(opened: T | None) -> T:
    if opened is None:
        raise ClientError("the session is not open; use it inside 'with client.stream(...) as session'")
    return opened


def _kept(replay: Replay | None) -> int:
    return replay.chunks if replay is not None else 0


def _check_unopened(opened: object) -> None:
    if opened is not None:
        raise ClientError("a session is for one stream; call stream(...) again for another")
