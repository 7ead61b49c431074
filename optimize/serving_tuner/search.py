"""Optuna's study over the space: seeded TPE, kept in a journal after every trial, so that an interrupted one goes on.

The present settings are trial 0. What was measured is not measured again: a candidate that the sampler asks for twice
is answered from the journal, and when every candidate has been measured the search is over.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from optimize.errors import UserError
from optimize.serving_tuner.proving_ground import Reading, Run
from optimize.serving_tuner.space import Candidate, Choices, size

STARTUP_TRIALS = 8  # drawn at random before the sampler has something to go by
_READING, _REPEAT, _REFUSED = "reading", "repeat", "refused"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One candidate. refused: why the server could not load it, and then there is no reading worth the name."""

    candidate: Candidate
    reading: Reading
    refused: str = ""


class Search:
    """A study of one space, found again by ``name`` in the journal.

    Raises UserError for a journal that cannot be read or written.
    """

    def __init__(self, journal: Path, name: str, space: Choices, present: Candidate, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space: dict[str, BaseDistribution] = {key: CategoricalDistribution(space[key]) for key in space}
        self._size = size(space)
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"'{journal}' is no journal of trials ({error}); remove it to begin anew") from None
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):  # of a search that was interrupted
            self._study.tell(trial.number, state=TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = TPESampler(
                seed=seed + len(self._study.trials), n_startup_trials=STARTUP_TRIALS, multivariate=True
            )
        if present not in [known.candidate for known in self.measured]:
            self._study.enqueue_trial(dict(present.parameters), skip_if_exists=False)

    @property
    def measured(self) -> list[Measured]:
        """Every candidate that was measured, in order, each once."""
        return [_measured(trial) for trial in self._study.trials if _READING in trial.user_attrs]

    @property
    def best(self) -> int:
        """The highest level found yet."""
        return max((known.reading.level for known in self.measured), default=0)

    def run(
        self,
        measure: Callable[[Candidate, int], Reading],
        trials: int,
        until_s: float,
        show: Callable[[Measured], None],
    ) -> None:
        """Measure until there are so many, ``time.monotonic`` says so, or nothing is left.

        measure: given a candidate and the best level yet.
        """
        while len(self.measured) < min(trials, self._size) and time.monotonic() < until_s:
            trial = self._study.ask(self._space)
            candidate = Candidate.parse(trial.params)
            before = {known.candidate: known for known in self.measured}.get(candidate)
            if before is not None:
                trial.set_user_attr(_REPEAT, True)
                self._study.tell(trial, before.reading.level)
                continue
            found = self._try(candidate, measure)
            trial.set_user_attr(_REFUSED, found.refused)
            trial.set_user_attr(_READING, asdict(found.reading))
            self._study.tell(trial, found.reading.level)
            show(found)

    def _try(self, candidate: Candidate, measure: Callable[[Candidate, int], Reading]) -> Measured:
        try:
            return Measured(candidate, measure(candidate, self.best))
        except UserError as error:
            if not self.measured:  # the present settings: whatever it is, it will not get better
                raise
            _log.warning("%s: %s", candidate, error)
            return Measured(candidate, Reading(0, "refused", ()), str(error))


def _measured(trial: FrozenTrial) -> Measured:
    values = trial.user_attrs[_READING]
    runs = tuple(Run(**run) for run in values["runs"])
    reading = Reading(values["level"], values["bound"], runs)
    return Measured(Candidate.parse(trial.params), reading, trial.user_attrs[_REFUSED])
