"""Which servers run on this machine, and the key to each one's restricted APIs.

The launcher writes a record when its server is ready and removes it when the server stops. The publisher looks up the
servers of the repository it has just written to, and asks each to load the new version:

    for server in find(Path("model_repository")):
        client = tritonclient.http.InferenceServerClient(server.http)
        client.load_model("load_forecast", headers=server.http_headers)

Records hold a secret, so they live in a folder that only this user can enter, never in the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from optimize.errors import UserError
from serving.flags import KEY_HEADER


@dataclass(frozen=True)
class RunningServer:
    """A Triton that answers.

    pid: of the tritonserver process. http, grpc, metrics: "host:port". repository: the model repository's resolved
    path. key: opens the restricted APIs. started: the process's start time in clock ticks since boot, which tells it
    from a later process that got the same pid.
    """

    pid: int
    http: str
    grpc: str
    metrics: str
    repository: str
    key: str = field(repr=False)
    started: int

    @property
    def http_headers(self) -> dict[str, str]:
        """Headers that open the restricted HTTP APIs (model repository, shared memory, trace, logging)."""
        return {KEY_HEADER: self.key}

    @property
    def grpc_headers(self) -> dict[str, str]:
        """The same for gRPC, where Triton expects this prefix before the name."""
        return {f"triton-grpc-protocol-{KEY_HEADER}": self.key}


def register(server: RunningServer) -> Path:
    """Write the record; returns its file."""
    folder = _folder(Path(server.repository), create=True)
    record = folder / f"{server.pid}.json"
    unfinished = folder / f".{server.pid}.tmp"
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(server), file)
    unfinished.replace(record)
    return record


def unregister(server: RunningServer) -> None:
    """Remove the record; nothing happens if it is gone already."""
    (_folder(Path(server.repository)) / f"{server.pid}.json").unlink(missing_ok=True)


def find(repository: Path) -> list[RunningServer]:
    """The servers of ``repository`` that are alive, oldest first; records of dead ones are removed."""
    folder = _folder(repository)
    servers = []
    for record in folder.glob("*.json") if folder.is_dir() else ():
        try:
            server = RunningServer(**json.loads(record.read_text()))
        except FileNotFoundError:
            continue  # its launcher has just removed it
        except (ValueError, TypeError):  # not one of ours, or of another version
            record.unlink(missing_ok=True)
            continue
        if start_time(server.pid) == server.started:
            servers.append(server)
        else:
            record.unlink(missing_ok=True)
    return sorted(servers, key=lambda server: server.started)


def start_time(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None if it is not running."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *numbers = status.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if state == "Z" else int(numbers[18])


def _folder(repository: Path, create: bool = False) -> Path:
    """The records of one repository, inside a folder that nobody else may enter."""
    base = _user_folder()
    folder = base / hashlib.sha256(str(repository.resolve()).encode()).hexdigest()[:16]
    if create:
        base.mkdir(mode=0o700, exist_ok=True)
    if base.exists():
        status = base.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise UserError(f"'{base}' must be a folder of this user alone (mode 0700); remove it and start again")
    if create:
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _user_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "seqserve"
    return Path(tempfile.gettempdir()) / f"seqserve-{os.getuid()}"
