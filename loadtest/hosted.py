"""A server of one's own, for tests that break it: ``python -m serving`` on free ports, started again when it ends.

    with Hosted(Path("model_repository"), "speech", replicas=2) as hosted:
        hosted.grpc, hosted.census(), hosted.servers()
    hosted.left_behind()

Starting it again is what Kubernetes or systemd would do; with two replicas or more the front door's fleet replaces a
Triton by itself. Whatever ends this process ends the server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import clients
from clients.errors import ClientError
from loadtest.census import Census, shared_files
from loadtest.processes import tree
from optimize.errors import UserError
from serving import health, lifeline, ports, running
from serving.config import ServerConfig
from serving.running import RunningServer

READY_S = 180.0
TRIES = 3  # to start, before it has ever been ready
_POLL_S = 0.1
_STOP_S = 60.0
_LIMITS = {  # the door's, out of the way: all load comes from one address
    **dict.fromkeys(("streams", "client_streams", "requests", "client_requests"), 4096),
    **dict.fromkeys(("client_rate_per_s", "client_burst"), 100_000),
}


class Hosted:
    """See the module; a context manager. Serves every model of the repository; ``model`` tells when it is ready."""

    def __init__(self, repository: Path, model: str, replicas: int = 1) -> None:
        self.restarts = -1
        self._repository = repository
        self._model = model
        self._folder = tempfile.TemporaryDirectory(prefix="seqserve-hosted-")
        chosen = ports.choose(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0))
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in (chosen.http_port, chosen.grpc_port))
        self._command = [
            *(sys.executable, "-m", "serving", f"--model-repository={repository}", f"--replicas={replicas}"),
            *(f"--http-port={chosen.http_port}", f"--grpc-port={chosen.grpc_port}", "--metrics-port=0"),
        ]
        if replicas > 1:
            limits = Path(self._folder.name, "limits.json")
            limits.write_text(json.dumps(_LIMITS))
            self._command.append(f"--limits={limits}")
        self._log = Path(self._folder.name, "serving.log")
        self._ids: dict[str, None] = {}
        self._pids: dict[int, int | None] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def servers(self) -> list[RunningServer]:
        """The Tritons that run now."""
        if self._process is None:
            return []
        members = tree(self._process.pid)
        found = [record for record in running.find(self._repository) if record.pid in members]
        for record in found:
            if (name := health.server_id(record.http)) is not None:
                self._ids[name] = None
        self._pids |= {member: running.start_time(member) for member in members if member not in self._pids}
        return found

    def ids(self) -> list[str]:
        """The names of all servers seen, which begin those of their shared memory; the latest last."""
        self.servers()
        return list(self._ids)

    def census(self) -> Census:
        """Of all its processes."""
        assert self._process is not None
        return Census.of(self._process.pid, self.ids())

    def wait_until_ready(self) -> None:
        """Raises UserError, with the server's last words, if it does not start or the model does not answer in time."""
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            if time.monotonic() > deadline or self.restarts >= TRIES or self._stopping.is_set():
                said = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
                raise UserError(
                    f"'python -m serving --model-repository {self._repository}' does not serve model '{self._model}'; "
                    f"its last words: {' / '.join(filter(None, map(str.strip, said[-4:]))) or 'none'}; run it by hand "
                    "to see more"
                )
            time.sleep(_POLL_S)
        self.servers()

    def left_behind(self) -> list[str]:
        """After the end: processes and files of shared memory that are still there."""
        alive = [pid for pid, start in self._pids.items() if start is not None and running.start_time(pid) == start]
        return [*(f"process {pid}" for pid in alive), *map(str, shared_files(self._ids))]

    def stop(self) -> None:
        self._stopping.set()
        self._keeper.join()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        self._keeper.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _is_ready(self) -> bool:
        try:
            with clients.connect(self.grpc, connect_deadline_s=1.0) as client:
                return client.ready(self._model)
        except ClientError:
            return False

    def _keep(self) -> None:
        """Its lifeline is bound to this thread, so it starts it, and ends last."""
        while not self._stopping.is_set():
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self.restarts += 1
            while self._process.poll() is None and not self._stopping.wait(_POLL_S):
                pass
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
