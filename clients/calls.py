"""The vocabulary between client and transport: one dataclass for each thing a Triton server is asked.

A transport carries a call to the server and brings back plain Python: it knows a protocol and nothing of models. The
client decides what to ask and in what order: it knows models and nothing of protocols. Anything with ``send`` and
``close`` is a transport, so tests put a scripted one in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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
class Answer:
    """The outputs by name, and the version that gave them. The arrays are read-only views of what was received."""

    outputs: Mapping[str, Array]
    model: str
    version: str

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


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


def subject(call: Call) -> str:
    """The call's object, for messages: the model, or the server as a whole."""
    model = getattr(call, "model", "")
    return f"model '{model}'" if model else "the server"
