"""What servers leave on disk and in shared memory when they are not allowed to clean up, and its removal.

Every server has a workspace, a folder whose name also begins the names of its shared memory regions. The log in it is
locked, and Triton and its workers inherit that lock with their output, so the lock lives as long as the last of them;
a workspace whose lock is free belongs to nobody.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO

LOG_NAME = "tritonserver.log"
SHARED_MEMORY = Path("/dev/shm")

_PREFIX = "seqserve-server-"


def new_workspace() -> Path:
    """A private, empty folder with a name that no other server has."""
    workspace = Path(tempfile.gettempdir(), _PREFIX + secrets.token_hex(8))
    workspace.mkdir(mode=0o700)
    return workspace


def open_log(workspace: Path, name: str = LOG_NAME) -> IO[bytes]:
    """The log, new and locked until every process that inherits it has ended."""
    log = (workspace / name).open("wb")
    fcntl.flock(log, fcntl.LOCK_EX)
    return log


def remove(workspace: Path, keep_log: bool = False) -> None:
    """Delete the workspace and the shared memory of its server, which must have ended."""
    for region in SHARED_MEMORY.glob(f"{workspace.name}_*"):
        region.unlink(missing_ok=True)
    for entry in _without_logs(workspace) if keep_log else [workspace]:
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def sweep() -> None:
    """Remove what killed servers of this user have left. Logs kept on purpose stay."""
    for workspace in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if workspace.stat().st_uid != os.getuid() or not _without_logs(workspace):
                continue
            with next(workspace.glob("*.log"), workspace / LOG_NAME).open("rb") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(workspace)
        except OSError:  # locked: its server lives; or gone, or not yet complete
            continue


def _without_logs(workspace: Path) -> list[Path]:
    """What else is in it: nothing, where only a log was kept on purpose."""
    return [entry for entry in workspace.glob("*") if entry.suffix != ".log"]  # none of one that was swept
