"""Open-loop load on the served models.

    locust -f loadtest/locustfile.py --headless --users 2 --run-time 30s --rate 100 --max-p99-ms 20
    locust -f loadtest/locustfile.py --headless --run-time 30s --rate 100 GrpcForecaster

    locust -f loadtest/locustfile.py --headless --users 50 --spawn-rate 50 --run-time 30s SpeechStreamer

Name classes to run only those; otherwise it is all that send requests to models that the server has, or, if it has none
of theirs, the streamers. A streamer is one stream in real time. One process is one core: where the summary's "late"
column grows, add ``--processes``.
"""

from __future__ import annotations

import grpc.experimental.gevent  # type: ignore[import-untyped]
from locust import events

from loadtest import plugin
from loadtest.stream_users import StreamUser
from loadtest.users import OpenLoopUser

grpc.experimental.gevent.init_gevent()  # before any channel is made
plugin.register(events, OpenLoopUser.recorder)


class GrpcForecaster(OpenLoopUser):
    protocol = "grpc"
    model = "load_forecast"


class HttpForecaster(OpenLoopUser):
    protocol = "http"
    model = "load_forecast"


class GrpcTranslator(OpenLoopUser):
    protocol = "grpc"
    model = "translate"


class HttpTranslator(OpenLoopUser):
    protocol = "http"
    model = "translate"


class GrpcValuer(OpenLoopUser):
    protocol = "grpc"
    model = "customer_value"


class HttpValuer(OpenLoopUser):
    protocol = "http"
    model = "customer_value"


class SpeechStreamer(StreamUser):
    model = "speech"


class SpeechChunk160Streamer(StreamUser):
    model = "speech_chunk_160"


class SpeechChunk640Streamer(StreamUser):
    model = "speech_chunk_640"
