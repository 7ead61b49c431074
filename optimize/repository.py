"""Publish a model into a Triton model repository, where a version appears complete and validated, or not at all.

    published = publish(Path("model_repository"), spec, serving, Path("artifacts/.../model.onnx"),
                        {"manifest.json": manifest, "README.md": card})

gives ``model_repository/<name>/{config.pbtxt,<version>/{model.onnx,manifest.json,README.md}}`` and has the servers
that run from this repository serve it. While a publication is under way, a journal in the model's folder says how to
take it back; whatever stops it, an error, a server that refuses the model, a killed process, what was published
before is restored: at once if possible, else by the next publication. Publishers exclude each other by a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimize import rollout
from optimize.errors import UserError
from optimize.specs import ModelSpec, ServingSpec
from optimize.triton_config import CONFIG_FILENAME, MODEL_FILENAME, to_config, to_text
from optimize.validator import check
from serving import running
from serving.running import RunningServer

KEEP_VERSIONS = 3

_LOCK, _JOURNAL, _STAGING, _REMOVED, _UNFINISHED = ".lock", ".publishing", ".staging", ".removed", ".unfinished"
_VERSION = re.compile(r"[1-9][0-9]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_log = logging.getLogger(__name__)


class PublishError(UserError):
    """Nothing was published; what was there before is there still."""


@dataclass(frozen=True)
class Published:
    """path: the version's folder. sha256: of its model.onnx. reused: it was there already, nothing was written."""

    path: Path
    version: int
    sha256: str
    reused: bool


def publish(
    repository: Path,
    spec: ModelSpec,
    serving: ServingSpec,
    model: Path,
    files: Mapping[str, bytes] | None = None,
    keep: int = KEEP_VERSIONS,
) -> Published:
    """Make ``model`` the newest version of ``spec.name`` and have running servers serve it.

    files: what else goes into the version's folder, by file name. keep: how many versions to leave, the newest ones;
    older ones go unless a server still has them loaded. Publishing again what is already the newest version, model
    and configuration alike, changes nothing.

    Raises UnfitModelError if the validator finds a problem, PublishError if the files cannot be written or a running
    server cannot load the model. Either way the repository and the servers are left as they were.
    """
    config = to_config(spec, serving)
    odd = [name for name in files or {} if not _FILE_NAME.fullmatch(name) or name == MODEL_FILENAME]
    if odd:
        raise PublishError(f"'{odd[0]}' cannot be a file beside {MODEL_FILENAME}; use another plain file name")
    folder = repository / spec.name
    try:
        with _locked(repository):
            if folder.is_dir():
                _recover(folder)
            folder.mkdir(exist_ok=True)
            sha256 = _sha256(model)
            newest = max(versions(folder), default=0)
            if _holds(folder, newest, sha256, to_text(config)):
                return Published(folder / str(newest), newest, sha256, reused=True)
            version, servers = newest + 1, running.find(repository)
            try:
                check(config, _stage(folder, model, files or {}))
                _reveal(folder, version, to_text(config))
                rollout.load(servers, spec.name, version)
            except BaseException:
                if _recover(folder):
                    rollout.restore(servers, spec.name, newest)
                raise
            (folder / _JOURNAL).unlink()
            _prune(folder, servers, keep)
            return Published(folder / str(version), version, sha256, reused=False)
    except rollout.RolloutError as error:
        raise PublishError(f"'{spec.name}' was withdrawn, what was published before keeps serving: {error}") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PublishError(
            f"cannot publish '{spec.name}' in '{repository}': {error.strerror or error}{where}; nothing was changed: "
            "check that the model exists, the folder's permissions and the free space"
        ) from error


def recover(repository: Path) -> None:
    """Take back what an interrupted publication left; waits for one that is still under way."""
    with _locked(repository):
        for folder in repository.iterdir():
            if folder.is_dir():
                _recover(folder)


def versions(folder: Path) -> list[int]:
    """The versions of the model whose folder this is, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())


def stale_configs(repository: Path, models: Iterable[tuple[ModelSpec, ServingSpec]]) -> list[str]:
    """What keeps the repository's config.pbtxt files from being exactly those of ``models``; empty if they are."""
    expected = {spec.name: to_text(to_config(spec, serving)) for spec, serving in models}
    found = {path.parent.name: path.read_text() for path in repository.glob(f"*/{CONFIG_FILENAME}")}
    differing = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(
        [f"{name}: {CONFIG_FILENAME} is missing; publish it" for name in expected.keys() - found.keys()]
        + [f"{name}: {CONFIG_FILENAME} is not what the recipe generates; publish again" for name in differing]
        + [f"{name}: {CONFIG_FILENAME} belongs to no recipe; delete it" for name in found.keys() - expected.keys()]
    )


def _stage(folder: Path, model: Path, files: Mapping[str, bytes]) -> Path:
    """A version's folder under a name that Triton passes over, complete and on disk; returns its model."""
    staged = folder / _STAGING
    staged.mkdir()
    shutil.copyfile(model, staged / MODEL_FILENAME)
    for name, content in files.items():
        (staged / name).write_bytes(content)
    for path in (*staged.iterdir(), staged):
        _sync(path)
    return staged / MODEL_FILENAME


def _reveal(folder: Path, version: int, config: str) -> None:
    """Give the staged version its number and the model its configuration, the way back being written down first."""
    path = folder / CONFIG_FILENAME
    previous = path.read_text() if path.exists() else None
    _write(folder / _JOURNAL, json.dumps({"version": version, "config": previous}))
    if config != previous:
        _write(path, config)
    os.rename(folder / _STAGING, folder / str(version))
    _sync(folder)


def _recover(folder: Path) -> bool:
    """Take back an unfinished publication; returns whether there was one that others could already see.

    Can itself be interrupted and begun again. The folder goes if nothing is left in it.
    """
    for leftover in (_STAGING, _REMOVED):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    (folder / _UNFINISHED).unlink(missing_ok=True)
    journal = folder / _JOURNAL
    visible = journal.exists()
    if visible:
        entry = json.loads(journal.read_text())
        _remove(folder / str(entry["version"]))
        if entry["config"] is None:
            (folder / CONFIG_FILENAME).unlink(missing_ok=True)
        else:
            _write(folder / CONFIG_FILENAME, entry["config"])
        journal.unlink()
        _log.warning("took back version %d of '%s', whose publication did not finish", entry["version"], folder.name)
    if not any(folder.iterdir()):
        folder.rmdir()
    return visible


def _prune(folder: Path, servers: Sequence[RunningServer], keep: int) -> None:
    """Remove all but the newest ``keep`` versions, sparing any that a server has loaded; a failure is only logged."""
    try:
        live = rollout.ready_versions(servers, folder.name)
        for version in versions(folder)[: -max(keep, 1)]:
            if version not in live:
                _remove(folder / str(version))
    except (OSError, UserError) as error:
        _log.warning("old versions of '%s' were not removed: %s", folder.name, error)


def _holds(folder: Path, version: int, sha256: str, config: str) -> bool:
    model, path = folder / str(version) / MODEL_FILENAME, folder / CONFIG_FILENAME
    return model.is_file() and path.is_file() and path.read_text() == config and _sha256(model) == sha256


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One publisher at a time; the lock goes with the process that holds it, so it is never left behind."""
    repository.mkdir(parents=True, exist_ok=True)
    with open(repository / _LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another publication in '%s' to finish", repository)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
