"""Which version of a published model is live: a candidate takes its place, or the version before comes back.

    publish(repository, spec, serving, model, candidate=True)  # version 2, beside version 1
    promote(repository, "load_forecast")                       # 2 is live
    roll_back(repository, "load_forecast")                     # 1 is live again

The folders are the whole state, so every start obeys it, and so does any other Triton: the highest version in a model's
folder is live, those below it are the way back, ``<name>.candidate`` holds the candidate, and what was withdrawn lies
out of Triton's sight. Running servers follow at once, and lose no request: Triton loads the new version before it lets
the old one go. What an interrupted change left, on disk or in the servers, is mended by the next one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimize import repository as repositories
from optimize import rollout, version_folder
from optimize.errors import UserError
from optimize.rollout import RolloutError
from optimize.specs import candidate_of, is_candidate
from optimize.triton_config import CONFIG_FILENAME, parse_text
from optimize.validator import UnfitModelError
from optimize.version_folder import KEEP_VERSIONS, locked, told, unfinished, versions, withdrawn
from serving import running
from serving.running import RunningServer

_EXPORT = (
    "'python -m optimize.export --quantize --candidate', and the --model or --recipe and the --variant that it is of"
)

_log = logging.getLogger(__name__)


class PromotionError(UserError):
    """Nothing was changed: the version that was live still is."""


@dataclass(frozen=True)
class Change:
    """was, now: the live version before and after. servers: endpoints of those that follow already."""

    was: int
    now: int
    servers: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """live, earlier (descending, the first is the way back), candidate and withdrawn versions of a model.

    served: of each running server, the versions that it has loaded, of the model and of its candidate. unfinished: a
    change is under way, or was interrupted.
    """

    model: str
    live: int
    earlier: tuple[int, ...]
    candidate: int | None
    withdrawn: tuple[int, ...]
    served: dict[str, tuple[int, ...]]
    unfinished: bool


def standing(repository: Path, model: str) -> Standing:
    """How things are; changes nothing. Raises PromotionError for a model that is not there."""
    folder, beside = _folders(repository, model)
    *earlier, live = versions(folder)
    served = {}
    for server in running.find(repository):
        loaded = [rollout.ready_versions([server], each.name) for each in (folder, beside)]
        served[server.http] = tuple(sorted(set[int]().union(*loaded)))
    return Standing(
        model=model,
        live=live,
        earlier=tuple(reversed(earlier)),
        candidate=_candidate(folder, beside),
        withdrawn=tuple(withdrawn(folder)),
        served=served,
        unfinished=unfinished(folder) or unfinished(beside),
    )


def promote(repository: Path, model: str) -> Change:
    """Make the candidate the live version. The one before stays in the folder: it is the way back.

    Raises PromotionError: no such model, no candidate, one older than the live version, a server that cannot load it.
    """
    with _opened(repository, model, "promoted") as (folder, beside, servers):
        live, candidate = versions(folder)[-1], _candidate(folder, beside)
        if candidate is None:
            raise PromotionError(
                f"'{model}' has no candidate to promote, version {live} is live; publish one with {_EXPORT}"
            )
        if candidate < live:
            raise PromotionError(
                f"candidate {candidate} of '{model}' is older than version {live}, which went live since; compare it "
                f"with that one first: publish it again with {_EXPORT}"
            )
        source = beside / str(candidate)
        config = parse_text((source / CONFIG_FILENAME).read_text())

        def fill(staged: Path) -> None:
            shutil.copytree(source, staged, dirs_exist_ok=True)

        version_folder.add(folder, candidate, config, fill, servers)
        version_folder.prune(folder, servers, KEEP_VERSIONS)
        _let_go(folder, beside, servers)
        return Change(live, candidate, tuple(server.http for server in servers))


def roll_back(repository: Path, model: str) -> Change:
    """Make the version before live again, with the configuration that it had. What was live is withdrawn, and kept.

    Raises PromotionError: no such model, no version before, a server that cannot load it.
    """
    with _opened(repository, model, "rolled back") as (folder, _, servers):
        *before, live = versions(folder)
        if not before:
            raise PromotionError(f"'{model}' has only version {live}: there is none before it to roll back to")
        version_folder.step_back(folder, servers)
        return Change(live, before[-1], tuple(server.http for server in servers))


def withdraw(repository: Path, model: str) -> Change:
    """End the test without a promotion: the candidate is served no more. ``was`` is its version, ``now`` the live one.

    Raises PromotionError: no such model, no candidate.
    """
    with _opened(repository, model, "withdrawn") as (folder, beside, servers):
        live, candidate = versions(folder)[-1], _candidate(folder, beside)
        if candidate is None:
            raise PromotionError(f"'{model}' has no candidate to withdraw; version {live} is live")
        version_folder.withdraw(beside / str(candidate), folder)
        _let_go(folder, beside, servers)
        return Change(candidate, live, tuple(server.http for server in servers))


def _folders(repository: Path, model: str) -> tuple[Path, Path]:
    """Of the model and of its candidate. Raises PromotionError if there is no such model."""
    there = sorted(path.name for path in repository.glob("*") if versions(path) and not is_candidate(path.name))
    if model not in there:
        found = f"it has {', '.join(there)}" if there else "it has none"
        raise PromotionError(f"no model '{model}' is published in '{repository}': {found}; check --model and "
                             "--model-repository, or publish with 'python -m optimize.export --quantize'")  # fmt: skip
    return repository / model, repository / candidate_of(model)


def _candidate(folder: Path, beside: Path) -> int | None:
    """The candidate's version; none once it is in the model's own folder, promoted or withdrawn."""
    return max(set(versions(beside)) - {*versions(folder), *withdrawn(folder)}, default=None)


@contextmanager
def _opened(repository: Path, model: str, what: str) -> Iterator[tuple[Path, Path, Sequence[RunningServer]]]:
    """The two folders, whole and locked, and the servers, which serve what is in them."""
    _folders(repository, model)  # first, since the lock makes a repository that is not there
    try:
        with locked(repository):
            repositories.recover_model(repository, model)
            folder, beside = _folders(repository, model)
            servers = running.find(repository)
            _mend(folder, beside, servers)
            yield folder, beside, servers
    except (RolloutError, UnfitModelError) as error:
        raise PromotionError(f"'{model}' was not {what}, what was live still is: {error}") from error
    except OSError as error:
        raise PromotionError(f"'{model}' was not {what}: {told(error)}") from error


def _let_go(folder: Path, beside: Path, servers: Sequence[RunningServer]) -> None:
    """After a change: the candidate is none any more. A failure is only logged, since the change has happened."""
    try:
        _mend(folder, beside, servers)
    except (OSError, UserError) as error:
        _log.warning("the candidate of '%s' is still there, the next change mends that: %s", folder.name, error)


def _mend(folder: Path, beside: Path, servers: Sequence[RunningServer]) -> None:
    """Remove a candidate's folder that holds none any more, and have the servers serve what the folders hold."""
    candidate = _candidate(folder, beside)
    for each, version in ((folder, versions(folder)[-1]), (beside, candidate)):
        for server in servers:
            if rollout.ready_versions([server], each.name) != ({version} if version else set()):
                rollout.restore([server], each.name, version or 0)
    if candidate is None and beside.is_dir():  # only now: Triton does not let a model go whose folder has gone
        shutil.rmtree(beside)
