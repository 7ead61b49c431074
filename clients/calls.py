"""The vocabulary between client and transport: one dataclass for each thing a Triton server is asked.

A transport carries a call to the server and brings back plain Python: it knows a protocol and nothing of models. The
client decides what to ask and in what order: it knows models and nothing of protocols. Anything with ``send`` and
``close`` is a transport, so tests put a scripted one in its place; with ``stream`` it also carries sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from clients.errors import ClientError
from clients.signature import Array


@dataclass(frozen=True)
class Live:
    """Is a server there at all? Reply: bool."""


@dataclass(frozen=True)
class Ready:
    """Does it serve this model (empty: every model it was told to)? Reply: bool."""

    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class Metadata:
    """Names, datatypes and shapes of a model's tensors. Reply: dict, as in the KServe v2 protocol."""

    model: str
    version: str


@dataclass(frozen=True)
class Config:
    """A model's configuration. Reply: dict, the fields of config.pbtxt."""

    model: str
    version: str


@dataclass(frozen=True)
class Statistics:
    """What runs there. Reply: list of dict, one for each version of each loaded model."""


@dataclass(frozen=True)
class Infer:
    """Run the model once. Reply: Answer."""

    model: str
    version: str
    inputs: Mapping[str, Array]


Call = Live | Ready | Metadata | Config | Statistics | Infer


@dataclass(frozen=True)
class Chunk:
    """Run the model once, on the state that a sequence of requests left behind. Goes over a stream; see Reply.

    request: the id under which the reply comes back. sequence: which state, never 0. start: reset the state first.
    end: let go of it afterwards. deadline_s: after which the server need not run it any more.
    """

    model: str
    version: str
    inputs: Mapping[str, Array]
    request: str
    sequence: int
    start: bool
    end: bool
    deadline_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """The outputs by name, and the version that gave them. The arrays are read-only views of what was received."""

    outputs: Mapping[str, Array]
    model: str
    version: str

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


@dataclass(frozen=True)
class Reply:
    """What came back for the chunk with that request id: its answer, or why it got none."""

    request: str
    said: Answer | ClientError


class Transport(Protocol):
    """Carries calls. ``send`` raises nothing but ClientError, and takes at most ``deadline_s`` seconds."""

    address: str

    def send(self, call: Call, deadline_s: float) -> Any: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    address: str

    async def send(self, call: Call, deadline_s: float) -> Any: ...

    async def close(self) -> None: ...


class Stream(Protocol):
    """Carries the chunks of one session, and its replies in the order of the chunks.

    ``put`` returns at once. ``take`` waits for the next reply at most ``deadline_s`` seconds and then raises
    DeadlineExceeded, after which it may be called again; any other ClientError that it raises is the stream's end.
    """

    def put(self, chunk: Chunk) -> None: ...

    def take(self, deadline_s: float) -> Reply: ...

    def close(self) -> None: ...


class AsyncStream(Protocol):
    """The same, awaited."""

    def put(self, chunk: Chunk) -> None: ...

    async def take(self, deadline_s: float) -> Reply: ...

    async def close(self) -> None: ...


@runtime_checkable
class StreamTransport(Protocol):
    """A transport that can also open streams, any number at a time. Opening one does not wait for the server."""

    def stream(self) -> Stream: ...


@runtime_checkable
class AsyncStreamTransport(Protocol):
    """The same on asyncio."""

    def stream(self) -> AsyncStream: ...


def check_deadlines(*deadlines_s: float) -> None:
    """Raises ClientError for one that no request could meet."""
    for deadline_s in deadlines_s:
        if not deadline_s > 0:
            raise ClientError(f"a deadline of {deadline_s:g} s: expected more than 0")


def subject(call: Call | Chunk) -> str:
    """The call's object, for messages: the model, or the server as a whole."""
    model = getattr(call, "model", "")
    return f"model '{model}'" if model else "the server"
