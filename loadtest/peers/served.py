"""Requests per second and latency of every server, taken in turns: A B C, A B C, ... at each number of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from loadtest.closed_loop import Load, Turn, ask_all, turn
from loadtest.peers.environment import PeerEnvironment
from loadtest.peers.servers import PEERS, Contestant, running
from loadtest.peers.subject import Subject
from optimize import verify
from optimize.benchmark import torch_candidate, torch_threads
from optimize.data.dataset import Arrays, Split

CALLERS = (1, 4, 16)
WARM_UP_S = 0.3
ITEMS = 256  # of the test set, spread over it, that are sent and whose answers are compared


@dataclass(frozen=True)
class Served:
    """One server. load: by callers. metric: of its answers; difference: the largest of them from torch."""

    name: str
    family: str
    load: Mapping[int, Load]
    metric: float
    difference: float


def compare(
    subject: Subject, peers: PeerEnvironment, place: Path, rounds: int, seconds: float, progress: Progress
) -> tuple[list[Served], dict[str, str]]:
    """All servers that come up; and the reasons of those that do not. Raises UserError as ``servers.running``."""
    items = np.unique(np.linspace(0, len(subject.test) - 1, ITEMS).astype(np.int64))
    split = subject.test.take(items)
    requests = [split.rows(i, i + 1) for i in range(len(split))]
    with torch_threads(1):
        reference = verify.answers(torch_candidate("", subject.network, subject.spec).run, split)
    bar = progress.add_task("starting servers", total=1 + len(PEERS))
    with running(subject, peers, place, requests[0], lambda: progress.advance(bar)) as (contestants, failures):
        bodies = {it.name: [it.encode(request) for request in requests] for it in contestants}
        given = {it.name: asyncio.run(_answers(it, bodies[it.name])) for it in contestants}
        turns: dict[str, dict[int, list[Turn]]] = {it.name: {callers: [] for callers in CALLERS} for it in contestants}
        bar = progress.add_task("servers in turn", total=rounds * len(CALLERS) * len(contestants))
        for _ in range(rounds):
            for callers in CALLERS:
                for it in contestants:
                    done = asyncio.run(turn(it.target, bodies[it.name], callers, WARM_UP_S, seconds))
                    turns[it.name][callers].append(done)
                    progress.advance(bar)
    return [_served(it, turns[it.name], given[it.name], reference, subject, split) for it in contestants], failures


async def _answers(contestant: Contestant, bodies: list[bytes]) -> Arrays:
    decoded = [contestant.decode(answer) for answer in await ask_all(contestant.target, bodies)]
    return {name: np.concatenate([answer[name] for answer in decoded]) for name in decoded[0]}


def _served(
    contestant: Contestant,
    turns: dict[int, list[Turn]],
    answers: Arrays,
    reference: Arrays,
    subject: Subject,
    split: Split,
) -> Served:
    return Served(
        contestant.name,
        contestant.family,
        {callers: Load.of(done) for callers, done in turns.items()},
        subject.recipe.metric(answers, split),
        verify.max_abs(answers, reference),
    )
