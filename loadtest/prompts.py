"""Requests that are all different, and can each be sent again: those of ``workloads``, or a file's rows.

prompts = Prompts(signature, seed=1)
prompts.repeated(0)     # {"pcm": int16 (1, 32000), "lengths": int32 (1, 1)}; the same bytes at every call
prompts.unique()        # another one, never given before
zipf(1000, 1.1, requests=2000, seed=1)      # the ranks of 2,000 requests: 0 comes most often
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.signature import Array, Signature
from loadtest import audio, workloads
from optimize.errors import UserError

Inputs = dict[str, Array]

DISTINCT = 1000
PATIENCE = 1000  # requests in a row that are nothing new, before it is given up


def zipf(distinct: int, exponent: float, requests: int, seed: int) -> NDArray[np.int64]:
    """The ranks of ``requests`` requests, each below ``distinct``: rank k in proportion to 1 / (k + 1) ** exponent."""
    weights = np.arange(1.0, distinct + 1) ** -exponent
    return np.random.default_rng(seed).choice(distinct, requests, p=weights / weights.sum())


class Sighting(StrEnum):
    """What the sender knows of a request when it is sent."""

    SENT_BEFORE = "sent before"
    UNDER_WAY = "under way"
    NEW = "new"


class Sightings:
    """Tells which requests must hit: those sent when an answer to the same prompt had come."""

    def __init__(self) -> None:
        self._answered: dict[int, bool] = {}

    def send(self, prompt: int) -> Sighting:
        if prompt not in self._answered:
            self._answered[prompt] = False
            return Sighting.NEW
        return Sighting.SENT_BEFORE if self._answered[prompt] else Sighting.UNDER_WAY

    def answer(self, prompt: int) -> None:
        self._answered[prompt] = True


class Prompts:
    """distinct: how many prompts are there to repeat. made_up: unique requests that the file had no rows left for.

    file: an .npz with an array for each input; its rows in their order are the prompts to repeat, and what is left
    of them the unique requests. Raises UserError: no fitting input, a file with fewer different rows than ``distinct``.
    """

    def __init__(
        self,
        signature: Signature,
        seed: int = 0,
        *,
        distinct: int | None = None,
        recordings: Sequence[audio.Samples] = (),
        file: Path | None = None,
    ) -> None:
        if recordings and all(tensor.datatype != "INT16" for tensor in signature.inputs):
            raise UserError(f"model '{signature.model}' has no int16 input that would take --audio")
        self.made_up = 0
        self._from_file = file is not None
        self._sent: set[bytes] = set()
        self._known: dict[int, Inputs] = {}
        made = workloads.requests_for(signature, seed, recordings=recordings)
        self._made = self._different(made, signature.model)
        rows = self._rows(file, signature.max_batch > 0) if file else []
        self.distinct = distinct or (min(DISTINCT, len(rows)) if file else DISTINCT)
        if file and len(rows) < self.distinct:
            raise UserError(
                f"'{file}' has {len(rows)} different rows; give --distinct {len(rows)} or less, or more rows"
            )
        self._known.update(enumerate(rows[: self.distinct]))
        self._left = iter(rows[self.distinct :])

    def repeated(self, rank: int) -> Inputs:
        """The prompt of that rank, from 0, the one that is sent most often."""
        if rank not in self._known:
            self._known[rank] = next(self._made)
        return self._known[rank]

    def unique(self) -> Inputs:
        """A request that was never given before. Raises UserError if there is none."""
        row = next(self._left, None)
        if row is not None:
            return row
        self.made_up += self._from_file
        return next(self._made)

    def _rows(self, file: Path, batched: bool) -> list[Inputs]:
        arrays = workloads.read_arrays(file)
        count = len(next(iter(arrays.values())))
        rows = [
            {name: array[row : row + 1] if batched else array[row] for name, array in arrays.items()}
            for row in range(count)
        ]
        return [row for row in rows if self._is_new(row)]

    def _different(self, requests: Iterator[Inputs], model: str) -> Iterator[Inputs]:
        in_vain = 0
        for request in requests:
            if self._is_new(request):
                in_vain = 0
                yield request
            elif (in_vain := in_vain + 1) >= PATIENCE:
                raise UserError(
                    f"model '{model}': only {len(self._sent)} different requests were found; lower --distinct and "
                    "--requests, or give --requests-file or longer --audio"
                )

    def _is_new(self, request: Inputs) -> bool:
        digest = sha256()
        for name in sorted(request):
            digest.update(f"{name} {request[name].shape}".encode())
            digest.update(np.ascontiguousarray(request[name]).tobytes())
        known, key = len(self._sent), digest.digest()
        self._sent.add(key)
        return len(self._sent) > known
