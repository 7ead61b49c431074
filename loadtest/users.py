"""Locust users that send open-loop load through ``clients``: no protocol is spoken here.

(Real-time streams: ``stream_users``.)

    class GrpcForecaster(OpenLoopUser):
        protocol = "grpc"
        model = "load_forecast"

All users of a run share its ``--rate``, each with its own connection. Locust stops a user by ending its greenlet;
requests under way are waited for then, so that the slowest are counted too.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import User, task

import clients
from clients import access
from loadtest.pacing import ARRIVALS, OpenLoop, Outcome, skip_past
from loadtest.results import Recorder
from loadtest.workloads import Inputs, requests_for
from optimize.errors import UserError

WARM_UP_REQUESTS = 5  # sent, and not counted, before a user begins: connections, descriptions, first-time costs

logger = logging.getLogger(__name__)

_EPOCH_S = time.time() - time.perf_counter()


def clock_s() -> float:
    """Seconds that never jump, and that the processes of a distributed run may compare."""
    return _EPOCH_S + time.perf_counter()


class OpenLoopUser(User):
    """Sends ``workload`` to ``model`` over ``protocol``. One process has one run, so what its users share is here."""

    abstract = True
    streams: ClassVar[bool] = False
    protocol: ClassVar[clients.ProtocolName]
    model: ClassVar[str]

    recorder: ClassVar[Recorder] = Recorder()
    _seats: ClassVar[Iterator[int]] = count()
    _start_s: ClassVar[float | None] = None

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._options = options
        self._users = _of_this_kind(environment.user_classes, options.num_users or 1)
        worker = max(getattr(environment.runner, "worker_index", 0), 0)  # of a distributed run
        self._seat = worker * self._users + next(OpenLoopUser._seats)
        self._in_flight = Group()
        self._client: clients.Client | None = None
        self._requests: Iterator[Inputs] = iter(())
        self._loop: OpenLoop | None = None

    def workload(self, signature: clients.Signature, seed: int) -> Iterator[Inputs]:
        """The requests of one user, without end."""
        return requests_for(signature, seed)

    @task
    def arrivals(self) -> None:
        """Runs until the user is stopped."""
        self._prepare()
        if OpenLoopUser._start_s is None:
            OpenLoopUser._start_s = clock_s()
        schedule = ARRIVALS[self._options.arrivals]
        due_times = schedule(self._options.rate, OpenLoopUser._start_s, self._seat, self._users)
        self._loop = OpenLoop(
            skip_past(due_times, clock_s()),
            send=self._infer,
            report=self._report,
            max_in_flight=self._options.max_in_flight,
            clock=clock_s,
            sleep=gevent.sleep,
            spawn=self._in_flight.spawn,
        )
        self._loop.run()

    def on_stop(self) -> None:
        if self._loop:
            self._loop.abandon()
        self._in_flight.join()  # each request has a deadline
        if self._client:
            self._client.close()

    def _prepare(self) -> None:
        try:
            self._client = clients.connect(
                getattr(self._options, f"{self.protocol}_address"),
                protocol=self.protocol,
                request_deadline_s=self._options.deadline,
                connections=self._options.max_in_flight,
                **access.arguments(self._options),
            )
            self._requests = self.workload(self._client.signature(self.model), self._seat)
            for _ in range(WARM_UP_REQUESTS):
                self._infer()
        except UserError as error:
            give_up(self.environment, error)

    def _infer(self) -> None:
        assert self._client is not None
        self._client.infer(self.model, next(self._requests))

    def _report(self, outcome: Outcome) -> None:
        self.recorder.add(f"{self.protocol} {self.model}", outcome)
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=self.model,
            response_time=outcome.latency_ms,
            response_length=0,
            exception=outcome.error,
            context={},
        )


def give_up(environment: Any, error: UserError) -> None:
    """No server, or no data: there is nothing to measure, so end the whole test. Does not return."""
    if environment.process_exit_code is None:
        logger.error(error)
        environment.process_exit_code = 2
        gevent.spawn(environment.runner.quit)  # ends all users, so not from this one's greenlet
    gevent.sleep(math.inf)


def _of_this_kind(chosen: list[type[User]], users: int) -> int:
    """How many users share the rate: those of other kinds, which ``--users`` counts too, have no part in it."""
    mine = [kind for kind in chosen if issubclass(kind, OpenLoopUser)]
    return max(round(users * sum(kind.weight for kind in mine) / max(sum(kind.weight for kind in chosen), 1)), 1)
