"""What a recipe's data loader returns: three splits of named arrays, and where they came from.

Data is looked for in ``--data``, else under ``$DATA_DIR``, else under ``./data``; when it is absent the recipe's
seeded generator stands in, and ``Dataset.source`` says so in every report.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimize.errors import UserError

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Split:
    """Items of one split; every array has the items on axis 0.

    inputs, targets: arrays by name, shaped (items, ...) as the ModelSpec says. groups: (items,) int64, the unit of
    the bootstrap: items of one group are not independent (overlapping windows, takes of one speaker).
    """

    inputs: Arrays
    targets: Arrays
    groups: NDArray[np.int64]

    def __post_init__(self) -> None:
        sizes = {len(array) for array in (*self.inputs.values(), *self.targets.values(), self.groups)}
        if len(sizes) != 1 or 0 in sizes:
            raise UserError(f"a data split needs the same number of items in every array, at least one; got {sizes}")

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, items: slice | NDArray[np.int64]) -> Split:
        """The chosen items, in the order given."""
        return Split(
            {name: array[items] for name, array in self.inputs.items()},
            {name: array[items] for name, array in self.targets.items()},
            self.groups[items],
        )

    def rows(self, start: int, stop: int) -> Arrays:
        """The inputs of items start to stop, as one batch."""
        return {name: array[start:stop] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Dataset:
    """Three splits that share no target; source is a sentence for reports, sha256 identifies the content.

    fresh: for data that is made, epoch (from 1) to the split to train on in it; ``train`` is then a sample of it, for
    statistics and calibration. others: further test splits by name, reported beside the test's figures.
    """

    train: Split
    validation: Split
    test: Split
    source: str
    sha256: str
    fresh: Callable[[int], Split] | None = None
    others: dict[str, Split] = field(default_factory=dict)


def data_folder() -> Path:
    """Where data sets are looked for: $DATA_DIR, else ./data."""
    return Path(os.environ.get("DATA_DIR") or "data")


def find(relative: str, data: Path | None = None) -> Path | None:
    """The data file: ``data`` itself when given (it must exist), else $DATA_DIR/relative or ./data/relative if there.

    Raises UserError when a file that was asked for by name is missing.
    """
    if data is not None:
        if not data.is_file():
            raise UserError(f"data file '{data}' does not exist or is not a file; check --data")
        return data
    path = data_folder() / relative
    return path if path.is_file() else None
