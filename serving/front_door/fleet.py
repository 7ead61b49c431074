"""One Triton or several behind one front door: started, watched, replaced when killed, renewed on request.

A replica that dies takes only its own streams along: the door sends new requests to the others at once, and a new
Triton takes its place, with metrics and probes on the same ports. A replica that is taken out gets nothing new,
finishes its streams, and stops.
"""

from __future__ import annotations

import logging
import math
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from optimize.errors import UserError
from serving import ports
from serving.config import ServerConfig
from serving.front_door import credentials, nginx
from serving.front_door.credentials import Credentials
from serving.front_door.limits import Limits
from serving.front_door.nginx import Nginx
from serving.front_door.nginx_config import DEFAULT_IDLE_S, Door, Replica
from serving.launcher import Server, StartCancelled
from serving.stopping import StopRequests

MAX_REPLICAS = 64

_LOOPBACK = "127.0.0.1"
_POLL_S = 0.05
_QUIET_S = 1.0  # a request that the door has just taken may not have a connection yet
_RETRY_S = 10.0  # before another try to replace a replica whose replacement did not start
_ESTABLISHED = "01"  # linux/tcp_states.h
_IDLE = re.compile(r"max_sequence_idle_microseconds\s*:\s*(\d+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetConfig:
    """server: host and the HTTP and gRPC ports are the door's; the Tritons listen on loopback, on ports of their own.

    The metrics and probes of the first are on the configured ports, of each next one on the ports after those, two
    further on where it has both; of renewed ones on any. Each writes its traces to a file of its own, which has its
    number in the name. secrets: the folder with certificate and keys; None: neither TLS nor tokens.
    """

    server: ServerConfig = field(default_factory=ServerConfig)
    replicas: int = 1
    secrets: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise UserError(f"--replicas is {self.replicas}; expected 1 to {MAX_REPLICAS}")
        taken = [("--http-port", self.server.http_port), ("--grpc-port", self.server.grpc_port)]
        for place in range(self.replicas):
            metrics, health = self.ports(place)
            taken.append((f"--metrics-port of replica {place + 1}", metrics))
            taken.append((f"--health-port of replica {place + 1}", health or 0))
        times = Counter(port for _, port in taken)
        wrong = [f"{option}: {port}" for option, port in taken if port and (times[port] > 1 or port > 65535)]
        if wrong:
            raise UserError(f"{', '.join(wrong)}; expected different ports up to 65535, choose others or 0 for any")

    def ports(self, place: int) -> tuple[int, int | None]:
        """Of the metrics and the probes of the replica at ``place``, from 0; 0: any, None: no probes."""
        metrics, health = self.server.metrics_port, self.server.health_port
        beyond = place * (2 if metrics and health else 1)
        return metrics and metrics + beyond, health and health + beyond


class Fleet:
    """Bound to the thread that starts it: when that thread ends, so do all its servers. Also a context manager."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.servers: list[Server] = []
        self.credentials: Credentials | None = None
        self._leaving: dict[Server, float] = {}  # and since when nobody was seen connected to it
        self._buried: set[Server] = set()  # died, and was cleaned away, but another did not start yet
        self._retry_s = 0.0
        self._made = 0
        self._door: Nginx | None = None

    @property
    def door(self) -> Nginx:
        """The front door; only after the start."""
        assert self._door is not None, "the fleet was not started"
        return self._door

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Return when every model of every replica answers, and the door is open; raises UserError."""
        config = self.config.server
        nginx.find()  # that it lacks is known before models are loaded
        chosen = ports.choose(config)
        if self.config.secrets is not None:
            self.credentials = credentials.prepare(self.config.secrets, config.host)
        door = Door(
            config.host,
            chosen.http_port,
            chosen.grpc_port,
            self.credentials is not None,
            longest_idle_s(config.model_repository),
            self.config.limits,
        )
        try:
            for place in range(self.config.replicas):
                self.servers.append(self._new(*self.config.ports(place)))
                self.servers[-1].start(cancelled)
            self._door = Nginx(door, self.credentials)
            self._door.start(self._replicas())
        except BaseException:
            self.stop()
            raise

    def watch(self, until: Callable[[], bool], renew: Callable[[], bool] = lambda: False) -> None:
        """Return when ``until`` says True. Replaces what dies, and every replica when ``renew`` says True.

        Raises UserError when the door has ended, or the last replica and it cannot be replaced.
        """
        while not until():
            self.door.check()
            for place, server in enumerate(self.servers):
                if not server.running and time.monotonic() >= self._retry_s:
                    self._replace(place, until)
            if renew():
                self.renew(until)
            self.let_go()
            time.sleep(_POLL_S)

    def renew(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Put a new Triton in the place of every replica, one after the other; the old ones finish their streams."""
        for place, old in enumerate(self.servers):
            new = self._new()
            try:
                new.start(cancelled)
            except UserError as error:
                _log.error("the replica at %s stays, since another did not start: %s", old.grpc, error)
                return
            _log.warning("the replica at %s is renewed: %s", old.grpc, endpoints(new))
            self.servers[place] = new
            self._leave(old)

    def take_out(self, server: Server) -> None:
        """Send nothing new to ``server``; `let_go` stops it when its streams have ended. Not for the last one."""
        assert len(self.servers) > 1, "the last replica cannot be taken out"
        self.servers.remove(server)
        self._leave(server)

    def let_go(self) -> None:
        """Stop those that were taken out and have finished."""
        now = time.monotonic()
        for server, quiet_since_s in list(self._leaving.items()):
            if server.running and (connected(server.http) or connected(server.grpc)):
                self._leaving[server] = math.inf
                continue
            self._leaving[server] = min(quiet_since_s, now)
            if not server.running or now - quiet_since_s > _QUIET_S:
                del self._leaving[server]
                server.kill()  # at once: while it ends in order it would refuse what a late request asks of it
                server.stop()

    def stop(self, keep_log: bool = False) -> None:
        """Let the requests under way finish, then end everything. keep_log: the door's. Nothing the second time."""
        if self._door is not None:
            self._door.stop(keep_log, drain_s=self.config.server.drain_timeout_s)
        for server in (*self.servers, *self._leaving):
            server.stop()

    def kill(self) -> None:
        """End everything at once. `stop` still has to be called."""
        if self._door is not None:
            self._door.kill()
        for server in (*self.servers, *self._leaving):
            server.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _new(self, metrics_port: int = 0, health_port: int | None = 0) -> Server:
        given, traces = self.config.server, self.config.server.trace_file
        self._made += 1
        return Server(
            replace(
                given,
                host=_LOOPBACK,
                http_port=0,
                grpc_port=0,
                metrics_port=metrics_port,
                health_port=None if given.health_port is None else health_port,
                trace_file=traces and traces.with_stem(f"{traces.stem}-{self._made}"),
            )
        )

    def _replicas(self) -> list[Replica]:
        return [Replica(server.http, server.grpc) for server in self.servers if server.running]

    def _leave(self, server: Server) -> None:
        self._leaving[server] = math.inf
        self.door.reload(self._replicas())

    def _replace(self, place: int, cancelled: Callable[[], bool]) -> None:
        dead = self.servers[place]
        new = self._new(dead.config.metrics_port, dead.config.health_port)
        if dead not in self._buried:
            try:
                dead.check()
            except UserError as error:
                _log.error("%s; another takes its place", error)
            dead.stop(keep_log=True)
            self._buried.add(dead)
        try:
            new.start(cancelled)
        except UserError as error:
            if not any(server.running for server in self.servers):
                raise
            _log.error("it did not start, next try in %.0f s: %s", _RETRY_S, error)
            self._retry_s = time.monotonic() + _RETRY_S
            return
        self._buried.remove(dead)
        self.servers[place] = new
        self.door.reload(self._replicas())


def run(config: FleetConfig, ready: Callable[[Fleet], None]) -> int:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; returns the exit status, 0 after an orderly stop.

    SIGUSR1 renews every replica. A second signal to stop ends everything without waiting for the requests under way.
    """
    requests, renewals = StopRequests(), Renewals()
    fleet = Fleet(config)
    before = signal.signal(signal.SIGUSR1, renewals.ask)
    try:
        with requests.handled(insist=fleet.kill):
            try:
                fleet.start(cancelled=requests.any)
                ready(fleet)
                fleet.watch(until=requests.any, renew=renewals.take)
            except StartCancelled:
                pass
            except UserError:
                fleet.stop(keep_log=True)
                raise
            finally:
                fleet.stop()
    finally:
        signal.signal(signal.SIGUSR1, before)
    return requests.exit_status


class Renewals:
    """Remembers that SIGUSR1 came."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def take(self) -> bool:
        """Whether it came since the last time."""
        asked, self._asked = self._asked, False
        return asked


def endpoints(server: Server) -> str:
    """Where a replica answers, and its log."""
    probes = f", health http://{server.probes.address}/ready" if server.probes is not None else ""
    return f"{server.grpc}, metrics http://{server.metrics}/metrics{probes}, log {server.log}"


def longest_idle_s(repository: Path) -> int:
    """The longest idle limit of any model with state, rounded up; that of a new model where there is none."""
    found = [int(number) for file in repository.glob("*/config.pbtxt") for number in _IDLE.findall(file.read_text())]
    return max([DEFAULT_IDLE_S, *(-(-number // 1_000_000) for number in found)])


def connected(address: str) -> bool:
    """Whether anybody is connected to the server at ``address`` ("127.0.0.1:port") of this machine."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = (Path("/proc/net", name) for name in ("tcp", "tcp6"))  # gRPC listens on mapped addresses
    rows = (line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:])
    return any(row[1].endswith(port) and row[3] == _ESTABLISHED for row in rows)
