"""Open-loop load on the served models.

    locust -f loadtest/locustfile.py --headless --users 2 --run-time 30s --rate 100 --max-p99-ms 20
    locust -f loadtest/locustfile.py --headless --run-time 30s --rate 100 GrpcForecaster

    locust -f loadtest/locustfile.py --headless --users 50 --spawn-rate 50 --run-time 30s SpeechStreamer

Name classes to run only those; otherwise it is the forecasters if the server has their model, else the streamers of
the models that it has. A streamer is one stream in real time. One process is one core: where the summary's "late"
column grows, add ``--processes``.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc.experimental.gevent  # type: ignore[import-untyped]
from locust import events

from loadtest import plugin
from loadtest.stream_users import StreamUser
from loadtest.users import OpenLoopUser
from loadtest.workloads import Inputs, forecast_requests

grpc.experimental.gevent.init_gevent()  # before any channel is made
plugin.register(events, OpenLoopUser.recorder)


class Forecaster(OpenLoopUser):
    abstract = True
    model = "load_forecast"

    def workload(self, seed: int) -> Iterator[Inputs]:
        return forecast_requests(seed)


class GrpcForecaster(Forecaster):
    protocol = "grpc"


class HttpForecaster(Forecaster):
    protocol = "http"


class SpeechStreamer(StreamUser):
    model = "speech"


class SpeechChunk160Streamer(StreamUser):
    model = "speech_chunk_160"


class SpeechChunk640Streamer(StreamUser):
    model = "speech_chunk_640"
