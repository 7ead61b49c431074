"""Several Tritons behind one door: sequences stay where they are, and replicas come and go."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

import clients
from clients.client import ProtocolName
from clients.signature import Array
from optimize import rollout
from optimize.errors import UserError
from serving import running
from serving.config import ServerConfig
from serving.front_door.fleet import Fleet, FleetConfig, connected, longest_idle_s
from serving.front_door.limits import Limits
from serving.launcher import Server
from tests.serving.front_door.conftest import Visitor, config, write_repository

CHUNK: dict[str, Array] = {"pcm": np.ones((1, 16), np.int16), "lengths": np.array([[16]], np.int32)}
X = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture
def own_fleet(nginx_is_here: None, tmp_path: Path) -> Iterator[Fleet]:
    """One that the test may break, with limits that are none."""
    write_repository(tmp_path / "models")
    limits = Limits(client_rate_per_s=100_000)
    with Fleet(config(tmp_path / "models", limits=limits)) as fleet:
        yield fleet


@pytest.fixture
def guest(own_fleet: Fleet) -> Visitor:
    return Visitor(own_fleet, "guest")


class Load:
    """Requests without a pause, from threads, until it is left: each answered rightly, or an error to look at."""

    def __init__(self, guest: Visitor, protocols: tuple[ProtocolName, ...] = ("grpc", "http")) -> None:
        self.versions: list[str] = []
        self.errors: list[str] = []
        self._guest, self._protocols = guest, protocols
        self._done = threading.Event()
        self._pool = ThreadPoolExecutor()

    def __enter__(self) -> Load:
        self._asking = [self._pool.submit(self._ask, protocol) for protocol in self._protocols for _ in range(2)]
        wait_until(lambda: len(self.versions) > 20)
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for asking in self._asking:
            asking.result(30)
        self._pool.shutdown()

    def _ask(self, protocol: ProtocolName) -> None:
        with self._guest.connect(protocol) as client:
            while not self._done.is_set():
                try:
                    answer = client.infer("double", X)
                    assert answer["y"].tolist() == [[2, 2, 2, 2]]
                except clients.ClientError as error:
                    self.errors.append(f"{protocol} {type(error).__name__}: {error}")
                else:
                    self.versions.append(answer.version)


def wait_until(condition: Callable[[], bool], fleet: Fleet | None = None) -> None:
    """fleet: watched in the meantime, as its launcher does."""
    deadline = time.monotonic() + 60

    def over() -> bool:
        assert time.monotonic() < deadline, "it never happened"
        return condition()

    if fleet is not None:
        fleet.watch(over)
    while not over():
        time.sleep(0.02)


def streams_on_both(stack: ExitStack, client: clients.Client, fleet: Fleet) -> dict[Server, clients.Session]:
    """An open stream on each replica."""
    found: dict[Server, clients.Session] = {}
    for _ in range(20):
        before = [served(server) for server in fleet.servers]
        session = stack.enter_context(client.stream("listen"))
        session.send(CHUNK)
        wait_until(lambda before=before: [served(server) for server in fleet.servers] != before)  # type: ignore[misc]
        (on,) = [server for server, past in zip(fleet.servers, before, strict=True) if served(server) > past]
        if found.setdefault(on, session) is not session:
            session.finish(CHUNK)
            session.close()
        if len(found) == len(fleet.servers):
            return found
    raise AssertionError("every stream went to the same replica")


def served(server: Server) -> int:
    """How many chunks it has answered."""
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        (entry,) = client.get_inference_statistics("listen").model_stats
        return int(entry.inference_count)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_unary_requests_of_a_sequence_meet_the_same_replica(visitor: Visitor, protocol: str) -> None:
    """Twenty sequences over two replicas: every chunk finds the state that the ones before it left."""
    module = triton_grpc if protocol == "grpc" else triton_http
    before = [served(server) for server in visitor.fleet.servers]
    tls = (
        {"ssl": True, "root_certificates": str(visitor.authority)}
        if protocol == "grpc"
        else {"ssl": True, "ssl_options": {"ca_certs": str(visitor.authority)}}
    )
    with module.InferenceServerClient(getattr(visitor.fleet.door, protocol), **tls) as client:
        inputs = []
        for name, array in CHUNK.items():
            inputs.append(module.InferInput(name, list(array.shape), "INT16" if name == "pcm" else "INT32"))
            inputs[-1].set_data_from_numpy(array)
        for step in range(3):
            for sequence in range(1, 21):
                answer = client.infer(
                    "listen",
                    inputs,
                    sequence_id=sequence,
                    sequence_start=step == 0,
                    sequence_end=step == 2,
                    headers={"authorization": f"Bearer {visitor.token()}", "sequence-id": str(sequence)},
                )
                assert answer.as_numpy("log_probs")[0, -1, 0] == pytest.approx((step + 1) * 16 / 1000)
    assert all(served(server) > past for server, past in zip(visitor.fleet.servers, before, strict=True))


def test_a_killed_replica_takes_only_its_own_streams(guest: Visitor, own_fleet: Fleet) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(guest.connect())
        sessions = streams_on_both(stack, client, own_fleet)
        dead, alive = own_fleet.servers
        old_pid = dead.pid
        dead.kill()
        wait_until(lambda: not dead.running)
        with pytest.raises(clients.SessionLost):
            sessions[dead].send(CHUNK)
        for _ in range(20):
            assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]
        sessions[alive].send(CHUNK)
        wait_until(lambda: own_fleet.servers[0].running, own_fleet)
        assert own_fleet.servers[0].pid != old_pid
        sessions[alive].finish(CHUNK)
        streams_on_both(stack, client, own_fleet)  # the new one takes part


def test_a_replica_that_cannot_start_is_tried_again(
    guest: Visitor, own_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.front_door.fleet._RETRY_S", 0.2)
    repository = own_fleet.config.server.model_repository
    repository.rename(repository.with_name("elsewhere"))
    own_fleet.renew()
    assert "stays, since another did not start" in caplog.text
    own_fleet.servers[0].kill()
    wait_until(lambda: caplog.text.count("it did not start, next try") >= 2, own_fleet)
    with guest.connect() as client:
        assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]
    repository.with_name("elsewhere").rename(repository)
    wait_until(lambda: own_fleet.servers[0].running, own_fleet)
    assert caplog.text.count("ended by SIGKILL") == 1


def test_a_replica_taken_out_finishes_its_streams(guest: Visitor, own_fleet: Fleet) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(guest.connect())
        leaving, staying = own_fleet.servers
        session = streams_on_both(stack, client, own_fleet)[leaving]
        with Load(guest) as load:
            own_fleet.take_out(leaving)
            past = served(leaving)
            for _ in range(30):
                session.send(CHUNK)
                own_fleet.let_go()
                time.sleep(0.05)
            assert leaving.running
            assert served(leaving) == past + 30
            session.finish(CHUNK)
            session.close()
            wait_until(lambda: not leaving.running, own_fleet)
        assert [error for error in load.errors if error.startswith("grpc")] == []
        assert own_fleet.servers == [staying]
        assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]


def test_renewing_all_replicas_loses_no_stream_and_no_grpc_request(guest: Visitor, own_fleet: Fleet) -> None:
    old = list(own_fleet.servers)
    with ExitStack() as stack:
        client = stack.enter_context(guest.connect())
        sessions = streams_on_both(stack, client, own_fleet)
        with Load(guest, ("grpc",)) as load:
            own_fleet.renew()
            for session in sessions.values():
                session.send(CHUNK)
                session.finish(CHUNK)
                session.close()
            wait_until(lambda: not any(server.running for server in old), own_fleet)
        assert load.errors == []
    assert len(own_fleet.servers) == 2
    assert not set(old) & set(own_fleet.servers)


def test_a_new_version_under_load_loses_no_request(guest: Visitor, own_fleet: Fleet) -> None:
    """What publishing does: every running server of the repository is found, and loads the version."""
    repository = own_fleet.config.server.model_repository
    with Load(guest) as load, ExitStack() as stack:
        client = stack.enter_context(guest.connect())
        sessions = streams_on_both(stack, client, own_fleet)
        shutil.copytree(repository / "double" / "1", repository / "double" / "2")
        servers = running.find(repository)
        assert len(servers) == 2
        rollout.load(servers, "double", 2)
        seen = len(load.versions)
        wait_until(lambda: len(load.versions) > seen + 50)
        for session in sessions.values():
            session.finish(CHUNK)
    assert load.errors == []
    assert set(load.versions) == {"1", "2"}
    assert set(load.versions[-20:]) == {"2"}


def test_a_door_that_dies_ends_the_fleet(own_fleet: Fleet) -> None:
    own_fleet.door.kill()
    with pytest.raises(UserError, match="nginx ended while serving"):
        wait_until(lambda: False, own_fleet)


def test_connected(fleet: Fleet) -> None:
    with clients.connect(fleet.servers[0].grpc) as client:
        assert client.ready("double")
        assert connected(fleet.servers[0].grpc)
    assert not connected("127.0.0.1:1")


def test_the_longest_idle_limit(tmp_path: Path) -> None:
    assert longest_idle_s(tmp_path) == 10
    for name, idle_us in (("a", 1_000_000), ("b", 25_500_001)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(f"max_sequence_idle_microseconds: {idle_us}\n")
    assert longest_idle_s(tmp_path) == 26


def test_each_replica_has_ports_probes_and_a_file_of_traces_of_its_own() -> None:
    """Renewed ones, too: their ports are any."""
    fleet = Fleet(FleetConfig(ServerConfig(health_port=8003, trace_file=Path("traces.json")), replicas=2))
    servers = [*(fleet._new(*fleet.config.ports(place)) for place in range(2)), fleet._new()]
    assert [(each.config.metrics_port, each.config.health_port) for each in servers] == [
        (8002, 8003),
        (8004, 8005),
        (0, 0),
    ]
    assert [str(each.config.trace_file) for each in servers] == ["traces-1.json", "traces-2.json", "traces-3.json"]
    without = Fleet(FleetConfig(ServerConfig(), replicas=2))
    assert without.config.ports(1) == (8003, None)
    config = without._new().config
    assert (config.health_port, config.trace_file) == (None, None)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (ServerConfig(metrics_port=7999), "--http-port: 8000, --metrics-port of replica 2: 8000; expected different"),
        (ServerConfig(metrics_port=65535), "--metrics-port of replica 2: 65536; expected different ports up to 65535"),
        (ServerConfig(health_port=8004), "--health-port of replica 1: 8004, --metrics-port of replica 2: 8004"),
    ],
)
def test_ports_of_replicas_that_cannot_be(server: ServerConfig, message: str) -> None:
    assert FleetConfig(server)
    with pytest.raises(UserError, match=message):
        FleetConfig(server, replicas=2)


@pytest.mark.parametrize("replicas", [0, -1, 65])
def test_how_many_replicas(replicas: int) -> None:
    with pytest.raises(UserError, match="--replicas is"):
        FleetConfig(replicas=replicas)
