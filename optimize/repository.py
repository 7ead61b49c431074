"""Publish a model into a Triton model repository, where a version appears complete and validated, or not at all.

    published = publish(Path("model_repository"), spec, serving, Path("artifacts/.../model.onnx"),
                        {"manifest.json": manifest, "README.md": card})

gives ``model_repository/<name>/{config.pbtxt,<version>/{model.onnx,config.pbtxt,manifest.json,README.md}}`` and has
the servers that run from this repository serve it. Whatever stops a publication, an error, a server that refuses the
model, a killed process, what was published before is restored (``version_folder`` says how).

The highest version is the live one, whatever Triton serves the folder. A candidate for its place (``candidate=True``)
is served beside it as a model of its own, ``<name>.candidate``: callers who name no version never get its answers, and
the live version, with its configuration and its streams, is not touched. ``promotion`` makes it live.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optimize import rollout, version_folder
from optimize.errors import UserError
from optimize.specs import ModelSpec, ServingSpec, candidate_of, is_candidate
from optimize.triton_config import CONFIG_FILENAME, MODEL_FILENAME, to_config, to_text
from optimize.version_folder import KEEP_VERSIONS, locked, told, versions, withdrawn
from serving import running

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    candidate: bool = False,
) -> Published:
    """Make ``model`` the newest version of ``spec.name`` and have running servers serve it.

    files: what else goes into the version's folder, by file name. keep: how many versions to leave, the newest ones;
    older ones go unless a server still has them loaded. candidate: serve it beside the live one, in place of the
    candidate before it. Publishing again what is already the newest version, model and configuration alike, changes
    nothing.

    Raises UnfitModelError if the validator finds a problem, PublishError if the files cannot be written or a running
    server cannot load the model. Either way the repository and the servers are left as they were.
    """
    config = to_config(spec, serving)
    live_config = to_text(config)  # what a version keeps: its own when it is live
    if candidate:
        config.name = candidate_of(spec.name)
    taken = (MODEL_FILENAME, CONFIG_FILENAME)
    odd = [name for name in files or {} if not _FILE_NAME.fullmatch(name) or name in taken]
    if odd:
        raise PublishError(f"'{odd[0]}' cannot be a file beside {MODEL_FILENAME}; use another plain file name")

    def fill(staged: Path) -> None:
        shutil.copyfile(model, staged / MODEL_FILENAME)
        for name, content in {**(files or {}), CONFIG_FILENAME: live_config.encode()}.items():
            (staged / name).write_bytes(content)

    folder = repository / config.name
    try:
        with locked(repository):
            recover_model(repository, spec.name)
            if candidate and not versions(repository / spec.name):
                raise PublishError(
                    f"'{spec.name}' has no live version that a candidate could be compared with; publish this one "
                    "without --candidate"
                )
            folder.mkdir(exist_ok=True)
            sha256 = _sha256(model)
            newest = max(versions(folder), default=0)
            if _holds(folder, newest, sha256, to_text(config)):
                return Published(folder / str(newest), newest, sha256, reused=True)
            version, servers = max(_numbers(repository, spec.name), default=0) + 1, running.find(repository)
            version_folder.add(folder, version, config, fill, servers)
            version_folder.prune(folder, servers, 1 if candidate else keep)
            return Published(folder / str(version), version, sha256, reused=False)
    except rollout.RolloutError as error:
        was = f"'{config.name}' was withdrawn, what was published before keeps serving"
        raise PublishError(f"{was}: {error}") from error
    except OSError as error:
        raise PublishError(f"cannot publish '{config.name}' in '{repository}': {told(error)}") from error


def recover(repository: Path) -> None:
    """Take back what an interrupted publication left; waits for one that is still under way."""
    with locked(repository):
        for folder in repository.iterdir():
            if folder.is_dir():
                version_folder.recover(folder)


def recover_model(repository: Path, model: str) -> None:
    """The same for one model and its candidate, for whoever holds the lock."""
    for folder in (repository / model, repository / candidate_of(model)):
        if folder.is_dir():
            version_folder.recover(folder)


def stale_configs(repository: Path, models: Iterable[tuple[ModelSpec, ServingSpec]]) -> list[str]:
    """What keeps the repository's config.pbtxt files from being exactly those of ``models``; empty if they are."""
    expected = {spec.name: to_text(to_config(spec, serving)) for spec, serving in models}
    paths = (path for path in repository.glob(f"*/{CONFIG_FILENAME}") if not is_candidate(path.parent.name))
    found = {path.parent.name: path.read_text() for path in paths}
    differing = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(
        [f"{name}: {CONFIG_FILENAME} is missing; publish it" for name in expected.keys() - found.keys()]
        + [f"{name}: {CONFIG_FILENAME} is not what the recipe generates; publish again" for name in differing]
        + [f"{name}: {CONFIG_FILENAME} belongs to no recipe; delete it" for name in found.keys() - expected.keys()]
    )


def _numbers(repository: Path, model: str) -> list[int]:
    """Every version there is of a model: no number is given twice."""
    folder = repository / model
    return [*versions(folder), *withdrawn(folder), *versions(repository / candidate_of(model))]


def _holds(folder: Path, version: int, sha256: str, config: str) -> bool:
    model, path = folder / str(version) / MODEL_FILENAME, folder / CONFIG_FILENAME
    return model.is_file() and path.is_file() and path.read_text() == config and _sha256(model) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
