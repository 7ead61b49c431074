"""A front door with small limits in front of two Tritons, shared by the tests that do not break it."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

import clients
from clients.client import ProtocolName
from optimize.errors import UserError
from optimize.specs import ModelSpec, ServingSpec, TensorSpec
from serving.config import ServerConfig
from serving.front_door import nginx, tokens
from serving.front_door.fleet import Fleet, FleetConfig
from serving.front_door.limits import Limits
from tests import tiny_models

LIMITS = Limits(
    streams=6,
    client_streams=4,
    requests=24,
    client_requests=16,
    client_rate_per_s=50,
    client_burst=300,
    body_bytes=2 * 2**20,
    json_bytes=256 * 2**10,
    client_s=3,
)
INFER = "/v2/models/double/infer"
REQUEST = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()


@dataclass(frozen=True)
class Visitor:
    """Somebody at the door. Every test has a name of its own, so that no limit of another is counted for it."""

    fleet: Fleet
    name: str

    def token(self, expires_in_s: int = 600) -> str:
        assert self.fleet.credentials is not None
        key = tokens.read_key(self.fleet.credentials.token_key)
        return tokens.issue(key, self.name, int(time.time()) + expires_in_s)

    @property
    def authority(self) -> Path:
        assert self.fleet.credentials is not None
        return self.fleet.credentials.certificate

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)

    @property
    def alive(self) -> bool:
        """Whether the Tritons that were there at the start still are."""
        return all(server.running for server in self.fleet.servers)

    def connect(self, protocol: ProtocolName = "grpc", token: str | None = None) -> clients.Client:
        address = self.fleet.door.grpc if protocol == "grpc" else self.fleet.door.http
        token = self.token() if token is None else token
        return clients.connect(address, protocol=protocol, tls=self.authority, token=token)

    def ask(
        self, path: str = INFER, body: Any = REQUEST, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; with a valid token unless the headers say something else."""
        host, _, port = self.fleet.door.http.rpartition(":")
        with closing(http.client.HTTPSConnection(host, int(port), context=self.tls, timeout=20)) as connection:
            connection.putrequest(method, path)
            chunked = not isinstance(body, bytes)
            given = {"Authorization": f"Bearer {self.token()}"} | (headers or {})
            given |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body, encode_chunked=chunked)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()


def heard() -> tiny_models.TinyModel:
    """`total` = the sum of `pcm`, of any length: carries many bytes in and few out."""
    spec = ModelSpec(
        "heard",
        inputs=(TensorSpec("pcm", "int16", ("time",)),),
        outputs=(TensorSpec("total", "int64", (1,)),),
        max_batch=1,
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pcm"], ["wide"], to=TensorProto.INT64),
            helper.make_node("ReduceSum", ["wide", "axis"], ["total"]),
        ],
        "heard",
        [helper.make_tensor_value_info("pcm", TensorProto.INT16, ["batch", "time"])],
        [helper.make_tensor_value_info("total", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return tiny_models.TinyModel(spec, model)


def write_repository(repository: Path) -> None:
    patient = ServingSpec(idle_us=120_000_000)  # replicas start slowly on a busy machine
    for model in (tiny_models.double(), tiny_models.listen(serving=patient), tiny_models.slow(), heard()):
        model.write(repository)


def config(repository: Path, replicas: int = 2, limits: Limits = LIMITS) -> FleetConfig:
    server = ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)
    return FleetConfig(server, replicas, repository.parent / "secrets", limits)


@pytest.fixture(scope="session")
def nginx_is_here() -> None:
    try:
        nginx.find()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fleet(nginx_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("front_door") / "models"
    write_repository(repository)
    with Fleet(config(repository)) as fleet:
        yield fleet


@pytest.fixture
def visitor(fleet: Fleet, request: pytest.FixtureRequest) -> Visitor:
    return Visitor(fleet, "".join(letter for letter in request.node.name if letter.isalnum())[:60])
