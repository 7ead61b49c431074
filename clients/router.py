"""An A/B test on the caller's side: which version answers which user, always the same one, and which one did.

    router = Router(client, "load_forecast", split=0.1, salt="2024-07 int8")
    routed = router.infer("user 17", {"history": history, "calendar": calendar})
    routed.arm             # "control" or "candidate": where this user belongs
    routed.answer.version  # "2": who really answered
    routed.fell_back       # whether the live version had to step in for the candidate

The rule, for any language: a user belongs to the candidate if the first 64 bits (big-endian) of SHA-256 of the salt, a
zero byte and the user's id, both in UTF-8, are less than ``split`` * 2**64. So it holds in all processes, on all
machines and for ever; raising the split moves nobody out of the candidate; and another salt, which every test should
have, chooses other users.

The candidate is a model of its own, ``<name>.candidate`` (``python -m optimize.export --quantize --candidate``
publishes one), and the control is whatever version is live. Where two versions of one model are loaded, name them:
``control=Target("m", "1"), candidate=Target("m", "2")``; then callers who name no version get the higher one.

A candidate that is not served (any more: it was promoted, or withdrawn) did not run, so its users are asked of the
control, and the answer says so. No other failure is hidden: it belongs to the arm.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from clients.aio import AsyncClient
from clients.calls import Answer
from clients.client import Client, Countdown
from clients.errors import InvalidRequest, ModelNotFound, ModelNotReady
from clients.signature import Array
from optimize.specs import candidate_of

C = TypeVar("C", bound=Client | AsyncClient)
ArmName = Literal["control", "candidate"]
ARMS: tuple[ArmName, ...] = ("control", "candidate")

_NOT_SERVED = (ModelNotFound, ModelNotReady)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Whom an arm asks. version: empty is the live one."""

    model: str
    version: str = ""


@dataclass(frozen=True)
class Routed:
    """An answer, with the arm that its user belongs to. fell_back: the control gave it, the candidate not served."""

    user: str
    arm: ArmName
    answer: Answer
    fell_back: bool = False


@dataclass(frozen=True)
class Assignment:
    """Who belongs to the candidate. split: their share, 0 to 1. salt: the name of the test."""

    split: float
    salt: str

    def __post_init__(self) -> None:
        if not 0 <= self.split <= 1:
            raise InvalidRequest(f"split {self.split}: expected a share from 0 to 1, such as 0.1")
        if "\0" in self.salt:
            raise InvalidRequest("the salt contains a zero byte, which ends it; use a name of plain text")

    def arm(self, user: str) -> ArmName:
        """Where a user belongs."""
        bits = int.from_bytes(hashlib.sha256(f"{self.salt}\0{user}".encode()).digest()[:8], "big")
        return "candidate" if bits < self.split * 2**64 else "control"  # an exact comparison, 0 and 1 included


class _Routes(Generic[C]):
    """What the sync and the asyncio router share."""

    def __init__(
        self,
        client: C,
        model: str,
        *,
        split: float,
        salt: str,
        control: Target | None = None,
        candidate: Target | None = None,
    ) -> None:
        self._client = client
        self.assignment = Assignment(split, salt)
        self.targets: dict[ArmName, Target] = {
            "control": control or Target(model),
            "candidate": candidate or Target(candidate_of(model)),
        }
        self._warned = False

    def _clock(self, deadline_s: float | None) -> Countdown:
        """Of both arms together, where the control has to step in."""
        return Countdown(self._client.request_deadline_s if deadline_s is None else deadline_s)

    def _fall_back(self, arm: ArmName, error: Exception) -> None:
        """Said once, in the log. Raises the error if it is the control that is not served."""
        if arm == "control":
            raise error
        if not self._warned:
            _log.warning("the candidate is not served, its users get the control: %s", error)
            self._warned = True


class Router(_Routes[Client]):
    """Asks through a ``Client``. Thread safety is the client's."""

    def infer(self, user: str, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> Routed:
        """The answer of the user's arm. Raises what ``Client.infer`` does."""
        arm, clock = self.assignment.arm(user), self._clock(deadline_s)
        try:
            return Routed(user, arm, self._ask(arm, inputs, clock.left_s()))
        except _NOT_SERVED as error:
            self._fall_back(arm, error)
            return Routed(user, arm, self._ask("control", inputs, clock.left_s()), fell_back=True)

    def _ask(self, arm: ArmName, inputs: Mapping[str, Array], deadline_s: float) -> Answer:
        target = self.targets[arm]
        return self._client.infer(target.model, inputs, version=target.version, deadline_s=deadline_s)


class AsyncRouter(_Routes[AsyncClient]):
    """The same on asyncio, through an ``AsyncClient``."""

    async def infer(self, user: str, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> Routed:
        """See ``Router.infer``."""
        arm, clock = self.assignment.arm(user), self._clock(deadline_s)
        try:
            return Routed(user, arm, await self._ask(arm, inputs, clock.left_s()))
        except _NOT_SERVED as error:
            self._fall_back(arm, error)
            return Routed(user, arm, await self._ask("control", inputs, clock.left_s()), fell_back=True)

    async def _ask(self, arm: ArmName, inputs: Mapping[str, Array], deadline_s: float) -> Answer:
        target = self.targets[arm]
        return await self._client.infer(target.model, inputs, version=target.version, deadline_s=deadline_s)
