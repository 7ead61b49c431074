"""What the client asks and in what order, free of input and output, written once for sync and async.

A conversation is a generator: it yields a call, is sent the reply (or thrown the error), and returns the result. The
two drivers, ``Client`` and ``AsyncClient``, only carry the calls to a transport. Asking for a forecast:

    Metadata -> Config -> Infer        the first time
    Infer                              from then on: the description is kept

The description is fetched anew when the server may have changed the model behind it: the answer came from another
version, the server refused what the description allows, or the description refuses what the caller gives.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from clients.calls import Answer, Call, Config, Infer, Live, Metadata, Ready, Statistics
from clients.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    ServerUnavailable,
)
from clients.signature import Array, Signature

T = TypeVar("T")
Conversation = Generator[Call, Any, T]


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model that the server has loaded, and how many rows it has answered since."""

    model: str
    version: str
    inferences: int


class Conversations:
    """The conversations of one client, with what it has learned of the server's models."""

    def __init__(self) -> None:
        self._signatures: dict[tuple[str, str], Signature] = {}

    def hello(self, address: str, deadline_s: float) -> Conversation[None]:
        """Fail early, and clearly, where no server answers."""
        try:
            live = yield Live()
        except DeadlineExceeded:
            raise ServerUnavailable(
                f"no Triton server answers at {address} within {deadline_s:.3g} s; is that address right, and its "
                "machine up? 'python -m serving' starts a server here"
            ) from None
        if live:
            return
        why = "see that server's log"
        try:
            yield Statistics()  # over HTTP, the words of a refusal come only with the other calls
        except ClientError as error:
            why = str(error)
        raise ServerUnavailable(f"{address} does not answer as a live Triton server; {why}")

    def ready(self, model: str, version: str) -> Conversation[bool]:
        return bool((yield Ready(model, version)))

    def models(self) -> Conversation[list[ModelVersion]]:
        """Read from the statistics: unlike the repository index they are open to every client."""
        entries = yield Statistics()
        return sorted(
            (ModelVersion(entry["name"], entry["version"], int(entry.get("inference_count", 0))) for entry in entries),
            key=lambda entry: (entry.model, int(entry.version)),
        )

    def signature(self, model: str, version: str) -> Conversation[Signature]:
        """The server's description of a model, asked for once."""
        return self._signatures.get((model, version)) or (yield from self._describe(model, version))

    def described(self, model: str, version: str) -> Conversation[Signature]:
        """The server's description of a model as it is now, for a session that will hold to its version."""
        return (yield from self._describe(model, version))

    def infer(self, model: str, inputs: Mapping[str, Array], version: str) -> Conversation[Answer]:
        known = (model, version) in self._signatures
        signature = yield from self.signature(model, version)
        try:
            checked = signature.checked(inputs)
        except InvalidRequest:
            if not known:
                raise
            signature = yield from self._describe(model, version)
            checked = signature.checked(inputs)
        try:
            answer: Answer = yield Infer(model, version, checked)
        except (InvalidRequest, ModelNotFound, ModelNotReady):
            self._signatures.pop((model, version), None)
            raise
        if answer.version != signature.version:  # another version went live since
            self._signatures.pop((model, version), None)
            try:
                signature = yield from self.signature(model, answer.version)
            except (ModelNotFound, ModelNotReady):  # and is gone again: an answer, but nothing to hold it against
                return answer
        signature.check_answer(answer.outputs, signature.rows(checked))
        return answer

    def _describe(self, model: str, version: str) -> Conversation[Signature]:
        metadata = yield Metadata(model, version)
        config = yield Config(model, version)
        signature = self._signatures[model, version] = Signature.of(metadata, config, version)
        return signature
