"""The folder of one model in a repository: versions appear, go and come back whole, whatever interrupts.

    with locked(repository):
        recover(folder)  # what an interrupted change left
        add(folder, 3, config, fill, servers)  # 3 is live, in the servers too; or nothing has changed
        step_back(folder, servers)  # 2 is live again, 3 is kept out of Triton's sight

The highest version is the live one. While a change is under way, a journal in the folder says how to take the version
back. A failure is mended at once if possible, else by the next ``recover``. ``repository`` and ``promotion`` say what
to change.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from optimize import rollout
from optimize.errors import UserError
from optimize.triton_config import CONFIG_FILENAME, MODEL_FILENAME, to_text
from optimize.validator import check
from serving.running import RunningServer

KEEP_VERSIONS = 3

_LOCK, _JOURNAL, _STAGING, _REMOVED, _UNFINISHED = ".lock", ".publishing", ".staging", ".removed", ".unfinished"
_WITHDRAWN = ".withdrawn"  # versions that were live, or candidates, and shall not be: out of Triton's sight
_VERSION = re.compile(r"[1-9][0-9]*")

_log = logging.getLogger(__name__)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """One publisher at a time; the lock goes with the process that holds it, so it is never left behind."""
    repository.mkdir(parents=True, exist_ok=True)
    with open(repository / _LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another publication in '%s' to finish", repository)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unfinished(folder: Path) -> bool:
    """Whether something was begun with this model and not finished, or is under way now."""
    return (folder / _JOURNAL).exists()


def versions(folder: Path) -> list[int]:
    """The versions of the model whose folder this is, ascending; none if there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if _VERSION.fullmatch(path.name) and path.is_dir())


def withdrawn(folder: Path) -> list[int]:
    """The versions that were withdrawn from it, ascending."""
    return versions(folder / _WITHDRAWN)


def add(
    folder: Path, version: int, config: pb.ModelConfig, fill: Callable[[Path], None], servers: Sequence[RunningServer]
) -> None:
    """Check what ``fill`` puts into a version's folder, reveal it, and have the servers serve it; or change nothing.

    For whoever holds the lock and has recovered the folder. Raises what ``publish`` explains, and OSError.
    """
    newest = max(versions(folder), default=0)
    try:
        check(config, _stage(folder, fill))
        _reveal(folder, version, to_text(config))
        rollout.load(servers, folder.name, version)
    except BaseException:
        if recover(folder):
            rollout.restore(servers, folder.name, newest)
        raise
    (folder / _JOURNAL).unlink()


def step_back(folder: Path, servers: Sequence[RunningServer]) -> None:
    """Withdraw the newest version and have the servers serve the one before it, as it was configured; or neither.

    For whoever holds the lock and has recovered the folder, which has two versions at least. A step that was
    interrupted is finished by the next recovery. Raises RolloutError and OSError.
    """
    before, newest = versions(folder)[-2:]
    path = folder / CONFIG_FILENAME
    config, kept = path.read_text(), folder / str(before) / CONFIG_FILENAME
    try:
        _note(folder, {"version": newest, "config": kept.read_text() if kept.exists() else config, "withdraw": True})
        _take_back(folder)
        rollout.load(servers, folder.name, before)
    except BaseException:
        if (hidden := folder / _WITHDRAWN / str(newest)).exists():
            os.rename(hidden, folder / str(newest))
        _write(path, config)
        (folder / _JOURNAL).unlink(missing_ok=True)
        rollout.restore(servers, folder.name, newest)
        raise
    (folder / _JOURNAL).unlink()


def withdraw(version: Path, folder: Path) -> None:
    """Move a version's folder out of Triton's sight, below the folder of its model; the oldest there make room."""
    if version.exists():
        (folder / _WITHDRAWN).mkdir(exist_ok=True)
        os.rename(version, folder / _WITHDRAWN / version.name)
        for old in [each for each in withdrawn(folder) if each != int(version.name)][: 1 - KEEP_VERSIONS]:
            shutil.rmtree(folder / _WITHDRAWN / str(old), ignore_errors=True)  # the next makes room for it too


def recover(folder: Path) -> bool:
    """Take back an unfinished version, or finish a step back; returns whether others could already see some of it.

    Can itself be interrupted and begun again. The folder goes if nothing is left in it.
    """
    for leftover in (_STAGING, _REMOVED):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    (folder / _UNFINISHED).unlink(missing_ok=True)
    visible = unfinished(folder)
    if visible:
        version = _take_back(folder)
        (folder / _JOURNAL).unlink()
        _log.warning("took back version %d of '%s': what was begun with it had not finished", version, folder.name)
    if not any(folder.iterdir()):
        folder.rmdir()
    return visible


def prune(folder: Path, servers: Sequence[RunningServer], keep: int) -> None:
    """Remove all but the newest ``keep`` versions, sparing any that a server has loaded; a failure is only logged."""
    try:
        live = rollout.ready_versions(servers, folder.name)
        for version in versions(folder)[: -max(keep, 1)]:
            if version not in live:
                _remove(folder / str(version))
    except (OSError, UserError) as error:
        _log.warning("old versions of '%s' were not removed: %s", folder.name, error)


def told(error: OSError) -> str:
    """What the system refused, what that means for the repository, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"{error.strerror or error}{where}; nothing was changed: check that the model exists, the folder's permissions "
        "and the free space"
    )


def _stage(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A version's folder under a name that Triton passes over, complete and on disk; returns its model."""
    staged = folder / _STAGING
    staged.mkdir()
    fill(staged)
    for path in (*staged.iterdir(), staged):
        _sync(path)
    return staged / MODEL_FILENAME


def _reveal(folder: Path, version: int, config: str) -> None:
    """Give the staged version its number and the model its configuration, the way back being written down first."""
    path = folder / CONFIG_FILENAME
    previous = path.read_text() if path.exists() else None
    _note(folder, {"version": version, "config": previous})
    if config != previous:
        _write(path, config)
    os.rename(folder / _STAGING, folder / str(version))
    _sync(folder)


def _note(folder: Path, entry: dict[str, object]) -> None:
    """Write down how to take a version back: which, the configuration without it, whether to keep it aside."""
    _write(folder / _JOURNAL, json.dumps(entry))


def _take_back(folder: Path) -> int:
    """Do what the journal says, which may be done already; returns the version."""
    entry = json.loads((folder / _JOURNAL).read_text())
    version = folder / str(entry["version"])
    if entry.get("withdraw"):
        withdraw(version, folder)
    else:
        _remove(version)
    if entry["config"] is None:
        (folder / CONFIG_FILENAME).unlink(missing_ok=True)
    else:
        _write(folder / CONFIG_FILENAME, entry["config"])
    return int(entry["version"])


def _remove(folder: Path) -> None:
    """Remove a version's folder; to everyone else it is gone in one step."""
    if folder.exists():
        removed = folder.with_name(_REMOVED)
        os.rename(folder, removed)
        shutil.rmtree(removed)


def _write(path: Path, text: str) -> None:
    """Write or replace a file in one step."""
    unfinished = path.with_name(_UNFINISHED)
    unfinished.write_text(text)
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
