"""Start a Triton, wait until every model answers, keep watch, and leave nothing behind.

    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc)

Whatever ends the launcher, even SIGKILL, ends Triton too.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from optimize.errors import UserError
from serving import failures, flags, health, installation, inventory, leftovers, lifeline, ports, running
from serving.config import PORT_OPTIONS, ServerConfig
from serving.heartbeats import ENVIRONMENT, Heartbeats
from serving.probes import Probes
from serving.stopping import StopRequests
from serving.watchman import Unloaded, Watchman
from serving.worker_metrics import WorkerMetrics

_POLL_S = 0.05
_ATTEMPTS = 3  # when somebody takes a port that the system had just chosen for us
_GRACE_S = 15.0  # beyond the drain time: unloading models and ending workers
_WORKERS_S = 5.0  # how long workers whose server was killed may take to notice


class StartCancelled(Exception):
    """Somebody asked to stop before the server was ready."""


class PortTaken(UserError):
    """Something else began to listen on a port that had just been free."""


class Server:
    """One Triton process with its models, from start to stop; also a context manager.

    It is bound to the thread that starts it: when that thread ends, so does the server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.models: list[health.LoadedModel] = []
        self.skipped: dict[str, str] = {}
        self._key = secrets.token_hex(16)
        self._workspace: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._record: running.RunningServer | None = None
        self._heartbeats: Heartbeats | None = None
        self._counts: WorkerMetrics | None = None
        self.watchman: Watchman | None = None
        self.probes: Probes | None = None
        self._log_shown = 0

    @property
    def record(self) -> running.RunningServer:
        """Endpoints, process id and key of the server; only while it runs."""
        assert self._record is not None, "the server is not running"
        return self._record

    @property
    def http(self) -> str:
        """The HTTP endpoint, "host:port"."""
        return self.record.http

    @property
    def grpc(self) -> str:
        """The gRPC endpoint, "host:port"."""
        return self.record.grpc

    @property
    def metrics(self) -> str:
        """The Prometheus endpoint, "host:port"; the path is /metrics."""
        return self.record.metrics

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self.record.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and Triton has not ended since."""
        return self._record is not None and self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """Triton's log: removed when the server stops as asked, kept when it fails."""
        assert self._workspace is not None, "the server was not started"
        return self._workspace / leftovers.LOG_NAME

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Return when every model answers; raises UserError saying why if that cannot be.

        cancelled: asked while waiting; StartCancelled is raised when it says True.
        """
        stock = inventory.take(self.config.model_repository)
        self.skipped = stock.skipped
        leftovers.sweep()
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._start(stock.models, cancelled)
                return
            except PortTaken:
                if not attempts_left or 0 not in {getattr(self.config, name) for name in PORT_OPTIONS}:
                    raise

    def watch(self, until: Callable[[], bool]) -> None:
        """Return when ``until`` says True; raises UserError if Triton ends before that."""
        while not until():
            self.check()
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises UserError if Triton has ended."""
        assert self._process is not None, "the server is not running"
        self._show_log()
        if self._process.poll() is not None:
            raise UserError(f"Triton ended while serving: {self._last_words()}")

    def stop(self, keep_log: bool = False) -> None:
        """Let Triton finish the requests it has, then end it and all it started. Does nothing the second time."""
        if self.probes is not None:
            self.probes.close()
            self.probes = None
        if self.watchman is not None:
            self.watchman.stop()
        if self._record is not None:
            running.unregister(self._record)
            self._record = None
        if self._process is not None:
            self._end(self._process)
            self._process = None
        if self._workspace is not None:
            leftovers.remove(self._workspace, keep_log)
            self._workspace = None

    def kill(self) -> None:
        """End Triton and its workers at once, with the requests they have. `stop` still has to be called."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, models: Sequence[str], cancelled: Callable[[], bool]) -> None:
        self._workspace = leftovers.new_workspace()
        try:
            program = installation.find(self.config.tritonserver, self._workspace)
            chosen = ports.choose(self.config)
            command = flags.command_line(self.config, program, chosen, models, self._workspace.name, self._key)
            self._heartbeats = Heartbeats(self._workspace.name)
            counters = f"{leftovers.SHARED_MEMORY / self._workspace.name}_"
            self._launch(command, program.environment | {ENVIRONMENT: counters})
            at = {name: ports.reachable(self.config.host, port) for name, port in vars(chosen).items()}
            self._wait_until_ready(at["http_port"], [at["grpc_port"], at["metrics_port"]], cancelled)
            self._announce(at)
            self._guard(program.embedded)
        except BaseException as error:
            self.stop(keep_log=isinstance(error, UserError) and self._process is not None)
            raise

    def _launch(self, command: list[str], environment: dict[str, str]) -> None:
        # A session of its own: Ctrl-C in the terminal then reaches only the launcher, which stops Triton in order.
        with leftovers.open_log(self.log.parent) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def _wait_until_ready(self, http: str, others: list[str], cancelled: Callable[[], bool]) -> None:
        assert self._process is not None
        assert self._workspace is not None
        deadline = time.monotonic() + self.config.start_timeout_s
        # The id tells our server from another that took the port in the meantime.
        while not (
            health.server_id(http) == self._workspace.name
            and health.is_ready(http)
            and all(map(health.accepts, others))
        ):
            self._show_log()
            if cancelled():
                raise StartCancelled
            if self._process.poll() is not None:
                reason = self._last_words()
                kind = PortTaken if "already in use" in reason else UserError
                raise kind(f"Triton did not start: {reason}")
            if time.monotonic() > deadline:
                raise UserError(f"Triton is not ready after {self.config.start_timeout_s:.0f} s; its log: {self.log}")
            time.sleep(_POLL_S)

    def _announce(self, at: dict[str, str]) -> None:
        assert self._process is not None
        started = running.start_time(self._process.pid)
        if started is None:
            raise UserError(f"Triton ended as soon as it was ready: {self._last_words()}")
        self._record = running.RunningServer(
            pid=self._process.pid,
            http=at["http_port"],
            grpc=at["grpc_port"],
            metrics=at["metrics_port"],
            repository=str(self.config.model_repository.resolve()),
            key=self._key,
            started=started,
        )
        running.register(self._record)
        self.models = health.loaded_models(self.http, self._record.http_headers) or []

    def _guard(self, embedded: bool) -> None:
        """Watch the workers, which only the embedded server has, and answer probes."""
        page = None
        if embedded:
            assert self._heartbeats is not None
            assert self._workspace is not None
            self.watchman = Watchman(self._heartbeats, self._reload, self.config.run_limit_s)
            self._counts = WorkerMetrics(self._workspace.name, self.watchman.losses)
            page = self._counts.page
            self.watchman.start()
        if self.config.health_port is not None:
            self.probes = Probes(self.config.health_port, self.record.http, self._served, self.watchman, page)

    def _served(self) -> list[str] | None:
        """The models that answer, none once the server is to stop; None when it does not say."""
        record = self._record
        models = health.loaded_models(record.http, record.http_headers) if record is not None else []
        return None if models is None else sorted({model.name for model in models if model.state == "READY"})

    def _reload(self, model: str, attempt: int) -> str | None:
        if attempt == 1:
            while (served := self._served()) is None:
                time.sleep(_POLL_S)
            if model not in served:
                raise Unloaded
        record = self._record
        if record is None:
            raise Unloaded
        try:
            return health.reload(record.http, record.http_headers, model)
        finally:
            if self._counts is not None:
                self._counts.collect()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        deadline = time.monotonic() + self.config.drain_timeout_s + _GRACE_S
        while process.poll() is None and time.monotonic() < deadline and not self._waits_for_the_dead():
            time.sleep(_POLL_S)
        if process.poll() is None:
            self.kill()
            process.wait()
        # Workers notice the death of a killed server by themselves, and are helped if they do not.
        deadline = time.monotonic() + _WORKERS_S
        while _group_lives(process.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self.kill()
        self._show_log()

    def _waits_for_the_dead(self) -> bool:
        """Whether Triton only waits for a model whose worker was lost with requests: those it keeps for ever.

        All workers have ended then, which they do after the last answer.
        """
        if self.watchman is None or not self.watchman.losses:
            return False
        assert self._heartbeats is not None
        return not self._heartbeats.read()

    def _last_words(self) -> str:
        assert self._process is not None
        reason = failures.explain(self.log.read_text(errors="replace"), self._process.wait())
        return f"{reason} (log: {self.log})"

    def _show_log(self) -> None:
        if self.config.verbose:
            with self.log.open("rb") as log:
                log.seek(self._log_shown)
                sys.stderr.write(log.read().decode(errors="replace"))
                sys.stderr.flush()
                self._log_shown = log.tell()


def run(config: ServerConfig, ready: Callable[[Server], None]) -> int:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; returns the exit status, 0 after an orderly stop.

    ready: called once, when every model answers. A second signal ends the server without waiting for its requests.
    """
    requests = StopRequests()
    server = Server(config)
    with requests.handled(insist=server.kill):
        try:
            server.start(cancelled=requests.any)
            ready(server)
            server.watch(until=requests.any)
        except StartCancelled:
            pass
        except UserError:
            server.stop(keep_log=True)
            raise
        finally:
            server.stop()
    return requests.exit_status


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
