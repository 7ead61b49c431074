"""The nginx of the front door, from start to stop: it ends with its launcher, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from optimize.errors import UserError
from serving import health, leftovers, lifeline, ports
from serving.front_door import nginx_config, tokens
from serving.front_door.credentials import Credentials
from serving.front_door.nginx_config import Door, Replica

HOW_TO_GET_IT = "on Debian and Ubuntu: apt-get install nginx-light libnginx-mod-http-js"

_LOG_NAME = "nginx.log"
_MODULE = "ngx_http_js_module.so"
_UNPRIVILEGED = "nobody nogroup"
_GRAVE = re.compile(r"\[(emerg|alert|crit)\]")
_STAMP = re.compile(r"^.*?\] (\d+#\d+: )?")
_START_TIMEOUT_S = 30.0
_POLL_S = 0.02


class Nginx:
    """One nginx, bound to the thread that starts it as ``serving.launcher.Server`` is."""

    def __init__(self, door: Door, credentials: Credentials | None) -> None:
        """credentials: of a secure door."""
        self._door = door
        self._credentials = credentials
        self._workspace: Path | None = None
        self._modules = nginx_config.MODULES
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """The HTTP endpoint, "host:port"."""
        return ports.reachable(self._door.host, self._door.http_port)

    @property
    def grpc(self) -> str:
        """The gRPC endpoint, "host:port"."""
        return ports.reachable(self._door.host, self._door.grpc_port)

    @property
    def pid(self) -> int:
        """Process id of nginx's master."""
        assert self._process is not None, "nginx is not running"
        return self._process.pid

    @property
    def log(self) -> Path:
        """nginx's log: removed when it stops as asked, kept when it fails."""
        assert self._workspace is not None, "nginx was not started"
        return self._workspace / _LOG_NAME

    def start(self, replicas: Sequence[Replica]) -> None:
        """Return when it listens; raises UserError saying why if that cannot be."""
        program, self._modules = find()
        self._workspace = leftovers.new_workspace()
        try:
            self._fill(self._workspace, replicas)
            self._launch(program, self._workspace)
            self._wait_until_it_listens()
        except BaseException as error:
            self.stop(keep_log=isinstance(error, UserError) and self._process is not None)
            raise

    def reload(self, replicas: Sequence[Replica]) -> None:
        """Send new requests to ``replicas`` from now on. Those under way, streams too, end where they are."""
        assert self._workspace is not None, "nginx was not started"
        self._write_config(self._workspace, replicas)
        before = _workers(self.pid)
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _workers(self.pid) - before or any(map(_takes_work, before)):
            self.check()
            if time.monotonic() > deadline:
                raise UserError(f"nginx did not take its new configuration: {self._reason()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises UserError if nginx has ended."""
        assert self._process is not None, "nginx is not running"
        if self._process.poll() is not None:
            raise UserError(f"nginx ended while serving: {self._reason()}")

    def stop(self, keep_log: bool = False, drain_s: float = 0.0) -> None:
        """Let nginx finish what it has, for at most ``drain_s``, then end it. Does nothing the second time."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(drain_s)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_START_TIMEOUT_S)
            self.kill()  # workers whose master was killed, too
            self._process.wait()
            self._process = None
        if self._workspace is not None:
            leftovers.remove(self._workspace, keep_log)
            self._workspace = None

    def kill(self) -> None:
        """End nginx at once, with the requests it has. `stop` still has to be called."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _fill(self, workspace: Path, replicas: Sequence[Replica]) -> None:
        workspace.chmod(0o711)  # the workers of root's nginx are another user; the secrets in it are root's alone
        script = workspace / nginx_config.SCRIPT
        shutil.copy(Path(__file__).with_name(nginx_config.SCRIPT), script)
        if self._credentials is not None:
            shutil.copy(self._credentials.certificate, workspace / nginx_config.CERTIFICATE)
            key = self._credentials.certificate_key.read_text()
            tokens.write_private(workspace / nginx_config.CERTIFICATE_KEY, key)
            tokens.read_key(self._credentials.token_key)  # checks it
            tokens.write_private(workspace / nginx_config.TOKEN_KEY, self._credentials.token_key.read_text())
        self._write_config(workspace, replicas)

    def _write_config(self, workspace: Path, replicas: Sequence[Replica]) -> None:
        user = _UNPRIVILEGED if os.geteuid() == 0 else ""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        open_files = 65_536 if limit == resource.RLIM_INFINITY else min(limit, 65_536)
        config = nginx_config.text(self._door, replicas, self._modules, user, open_files)
        (workspace / nginx_config.CONFIG).write_text(config)

    def _launch(self, program: Path, workspace: Path) -> None:
        with leftovers.open_log(workspace, _LOG_NAME) as log:
            command = [program, "-p", f"{workspace}/", "-c", workspace / nginx_config.CONFIG, "-e", "stderr"]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_it_listens(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (_workers(self._process.pid) and health.accepts(self.http) and health.accepts(self.grpc)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"nginx did not start: {self._reason(0)}")
            time.sleep(_POLL_S)

    def _reason(self, which: int = -1) -> str:
        """The signal that ended it; else that of its grave messages: the last, at the start the first has the cause."""
        status = self._process.poll() if self._process is not None else None
        if status is not None and status < 0:
            said = f"ended by {signal.Signals(-status).name}"
        else:
            lines = self.log.read_text(errors="replace").splitlines()
            reasons = [line for line in lines if _GRAVE.search(line)] or lines or ["it logged nothing"]
            said = _STAMP.sub("", reasons[which])
        return f"{said} (log: {self.log})"


def find() -> tuple[Path, Path]:
    """The nginx program and the folder of its modules. Raises UserError saying how to get what is missing."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise UserError(f"nginx is not installed; {HOW_TO_GET_IT}")
    built = subprocess.run([found, "-V"], capture_output=True, text=True, check=False).stderr
    match = re.search(r"--modules-path=(\S+)", built)
    modules = Path(match[1]) if match else nginx_config.MODULES
    if not (modules / _MODULE).is_file():
        raise UserError(f"nginx lacks its JavaScript module, '{modules / _MODULE}'; {HOW_TO_GET_IT}")
    return Path(found), modules


def _workers(master: int) -> set[int]:
    """The master's workers, those too that only finish what they have."""
    with suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return {int(child) for child in children if _title(int(child)).startswith("nginx: worker")}
    return set()


def _takes_work(worker: int) -> bool:
    title = _title(worker)
    return title.startswith("nginx: worker") and "shutting down" not in title


def _title(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
