"""Locust users that are real-time streams: one user is one stream, and ``--users 100`` a hundred of them.

    class SpeechStreamer(StreamUser):
        model = "speech"

Each sends every chunk when a microphone would have it, whatever the server does; locust sees it as a request named
"speech chunk" whose time counts from then. An answer that comes after the next chunk was due is a failure. The users'
chunks are spread over the chunk's duration. ``--rate`` and ``--arrivals`` do not concern them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, ClassVar

import gevent
from locust import User, task

import clients
from clients import access
from clients.errors import ClientError
from loadtest import audio
from loadtest.chunks import ChunkShape, Speaker
from loadtest.pacing import STOP_S, Outcome
from loadtest.realtime import RealTime, any_phase
from loadtest.results import Recorder
from loadtest.users import OpenLoopUser, clock_s, give_up
from optimize.errors import UserError


class StreamUser(User):
    """One stream of ``model``, utterance after utterance, until locust stops it."""

    abstract = True
    streams: ClassVar[bool] = True
    model: ClassVar[str]

    recorder: ClassVar[Recorder] = OpenLoopUser.recorder
    _seats: ClassVar[Iterator[int]] = count()

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._options = environment.parsed_options
        worker = max(getattr(environment.runner, "worker_index", 0), 0)  # of a distributed run
        self._seat = worker * (self._options.num_users or 1) + next(StreamUser._seats)
        self._client: clients.Client | None = None
        self._pace: RealTime | None = None

    @task
    def stream(self) -> None:
        """Runs until the user is stopped."""
        speaker, chunk_s = self._prepare()
        beat_s = (clock_s() // chunk_s + 2) * chunk_s  # one beat for the users of all processes
        self._pace = RealTime(beat_s + any_phase(self._seat) * chunk_s, chunk_s)
        while True:
            try:
                self._utterance(speaker, self._pace)
            except ClientError as error:  # no stream was to be had; on a chunk's time, this is its failure
                gevent.sleep(self._pace.wait_s(clock_s()))
                self._report([self._pace.answered(now_s := clock_s(), now_s, error)])

    def on_stop(self) -> None:
        if self._pace:  # what is under way may be late already
            self._report(self._pace.unanswered(clock_s() - STOP_S))
        if self._client:
            self._client.close()

    def _prepare(self) -> tuple[Speaker, float]:
        try:
            self._client = clients.connect(
                self._options.grpc_address,
                request_deadline_s=self._options.deadline,
                **access.arguments(self._options),
            )
            shape = ChunkShape.of(self._client.signature(self.model))
            with self._client.stream(self.model) as session:  # uncounted: connections, first-time costs
                session.finish(Speaker(shape, audio.bursts(), 0, self._seat).next()[0])
        except UserError as error:
            give_up(self.environment, error)
            raise
        return Speaker(shape, audio.bursts(), self._options.utterance, self._seat), shape.seconds

    def _utterance(self, speaker: Speaker, pace: RealTime) -> None:
        """From START to END, or to the first failure, on a session of its own."""
        assert self._client is not None
        with self._client.stream(self.model) as session:
            pace.hold(clock_s())
            last = False
            while not last:
                gevent.sleep(pace.wait_s(clock_s()))
                inputs, last = speaker.next()
                started_s, error = clock_s(), None
                try:
                    (session.finish if last else session.send)(inputs)
                except ClientError as failure:
                    error, last = failure, True
                    speaker.again()
                self._report([pace.answered(started_s, clock_s(), error)])

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.recorder.add(f"{self.model} chunk", outcome)
            self.environment.events.request.fire(
                request_type="stream",
                name=f"{self.model} chunk",
                response_time=outcome.latency_ms,
                response_length=0,
                exception=outcome.error,
                context={},
            )
