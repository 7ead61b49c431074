"""Typed clients for a Triton server: gRPC and HTTP, sync and async, without torch.

    import clients

    with clients.connect("127.0.0.1:8001", protocol="grpc") as client:
        answer = client.infer("load_forecast", {"history": history, "calendar": calendar}, deadline_s=0.5)

        with client.stream("speech") as session:  # a model with state: one session for one stream
            answer = session.send(chunk)

``clients.aio.connect`` is the same with ``await``. On the command line: ``python -m clients forecast --csv FILE``, and
likewise transcribe, translate, classify, value, tokenize and detokenize.
"""

from clients import aio
from clients.calls import Answer
from clients.client import Client, ProtocolName, connect
from clients.conversation import ModelVersion
from clients.errors import (
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    NotRun,
    ServerError,
    ServerUnavailable,
    SessionLost,
    TooManyStreams,
)
from clients.replay import Replay
from clients.router import AsyncRouter, Router, Target
from clients.session import AsyncSession, Session
from clients.signature import Signature, Tensor

__all__ = [
    "Answer",
    "AsyncRouter",
    "AsyncSession",
    "Client",
    "ClientError",
    "ConnectionLost",
    "DeadlineExceeded",
    "InvalidRequest",
    "ModelNotFound",
    "ModelNotReady",
    "ModelVersion",
    "NotRun",
    "ProtocolName",
    "Replay",
    "Router",
    "ServerError",
    "ServerUnavailable",
    "Session",
    "SessionLost",
    "Signature",
    "Target",
    "Tensor",
    "TooManyStreams",
    "aio",
    "connect",
]
