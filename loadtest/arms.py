"""Replays items whose answers are known through the router, open loop, and keeps what each arm answered, and when.

    arms = asyncio.run(replay("127.0.0.1:8001", traffic))
    arms["candidate"].given[0].version

A user asks for one item, again and again if there are fewer users than requests. Who asks when, and so who belongs to
which arm, is settled before the first request: the arms share machine, moment and generator.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

import clients
from clients.errors import ModelNotReady
from clients.router import ARMS, ArmName, Assignment, AsyncRouter, Target
from loadtest.load import clock_s
from loadtest.pacing import ARRIVALS, Outcome
from loadtest.request_load import RequestRun
from optimize.buckets import fitted
from optimize.data.dataset import Arrays, Split
from optimize.specs import ModelSpec

_WARM_UP = 5  # requests to each arm before it begins, not counted: connections, descriptions, first-time costs
_LEAD_S = 0.1  # between the preparations and the first arrival


@dataclass(frozen=True)
class Traffic:
    """What is sent. items: with the true answers. rate: requests per second, of both arms together.

    control, candidate: whom the arms ask; None is the live version and its candidate.
    """

    spec: ModelSpec
    items: Split
    users: int
    rate: float
    duration_s: float
    split: float
    salt: str
    control: Target | None = None
    candidate: Target | None = None
    arrivals: str = "poisson"
    deadline_s: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """One answer: to which user, for which item, by which version."""

    user: int
    item: int
    outputs: Arrays
    version: str


@dataclass
class Arm:
    """What one arm did. visits: its requests, seconds after the start and user. outcomes: of all of them."""

    visits: list[tuple[float, int]] = field(default_factory=list)
    start_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)


def plan(traffic: Traffic) -> dict[ArmName, Arm]:
    """Who asks when: the users in a random order, all of them before any comes again, each in its arm."""
    assignment = Assignment(traffic.split, traffic.salt)
    order = np.random.default_rng(traffic.seed).permutation(traffic.users)
    arms = {name: Arm() for name in ARMS}
    due_s = takewhile(lambda due_s: due_s < traffic.duration_s, ARRIVALS[traffic.arrivals](traffic.rate, 0.0))
    for number, at_s in enumerate(due_s):
        user = int(order[number % len(order)])
        arms[assignment.arm(_name(user))].visits.append((at_s, user))
    return arms


async def replay(address: str, traffic: Traffic) -> dict[ArmName, Arm]:
    """Send it all. Raises ClientError where no server answers, or an arm is not served when it begins."""
    arms = plan(traffic)
    async with await clients.aio.connect(address, request_deadline_s=traffic.deadline_s) as client:
        router = AsyncRouter(
            client,
            traffic.spec.name,
            split=traffic.split,
            salt=traffic.salt,
            control=traffic.control,
            candidate=traffic.candidate,
        )
        for target in router.targets.values():
            for item in range(_WARM_UP):
                await client.infer(target.model, _request(traffic, item), version=target.version)
        start_s = clock_s() + _LEAD_S
        await asyncio.gather(*(_run(arm, start_s, traffic, router) for arm in arms.values()))
    return arms


async def _run(arm: Arm, start_s: float, traffic: Traffic, router: AsyncRouter) -> None:
    users = iter([user for _, user in arm.visits])

    async def send() -> None:
        user = next(users)
        item = user % len(traffic.items)
        routed = await router.infer(_name(user), _request(traffic, item))
        if routed.fell_back:
            raise ModelNotReady("the candidate was not served any more, and the control answered in its place")
        arm.given.append(Given(user, item, dict(routed.answer.outputs), routed.answer.version))

    run = RequestRun(send, lambda start_s: iter([start_s + at_s for at_s, _ in arm.visits]))
    arm.start_s = start_s
    arm.outcomes = await run.run(start_s, start_s + traffic.duration_s)


def _request(traffic: Traffic, item: int) -> Arrays:
    first = item % len(traffic.items)
    return fitted(traffic.items.rows(first, first + 1), traffic.spec)


def _name(user: int) -> str:
    return f"user {user}"
