"""What the load test sends: an endless stream of requests for each model, seeded.

The requests are those of real use: windows of the real data where it is found, else of the seeded stand-in. They
differ from one another, so that a response cache on the server does not make it look faster than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from clients.signature import DTYPES, Array, Signature
from optimize.data.dataset import find
from optimize.data.electricity import FILE, HISTORY_HOURS, HORIZON_HOURS, history_features, read_csv, synthetic
from optimize.errors import UserError

Inputs = dict[str, Array]


def forecast_requests(seed: int, data: Path | None = None) -> Iterator[Inputs]:
    """Forecasts at random hours, one row each: history (1, 72, 16), calendar (1, 24, 14).

    data: a CSV file; without one it is looked for under $DATA_DIR and ./data. Raises UserError for an unusable file.
    """
    features = _features(find(FILE, data))
    random = np.random.default_rng(seed)
    first, last = HISTORY_HOURS, len(features) - HORIZON_HOURS
    while True:
        origin = int(random.integers(first, last, endpoint=True))
        yield {
            "history": features[None, origin - HISTORY_HOURS : origin],
            "calendar": np.ascontiguousarray(features[None, origin : origin + HORIZON_HOURS, 2:]),
        }


@cache  # the users of a run share one copy
def _features(path: Path | None) -> Array:
    return history_features(synthetic() if path is None else read_csv(path))


def requests_for(signature: Signature, seed: int, file: Path | None = None) -> Iterator[Inputs]:
    """Endless requests of one row for a model without state.

    file: an .npz with an array for each input, whose rows are sent in a random order, again and again; a response
    cache would then answer most. Without one: windows of the data for ``load_forecast``, and for any other model
    normally distributed numbers, if they fit its inputs. Raises UserError where they do not, or the file does not.
    """
    if file is not None:
        return _rows(read_arrays(file), seed)
    if signature.model == "load_forecast":
        return forecast_requests(seed)
    for tensor in signature.inputs:
        if not tensor.datatype.startswith("FP") or any(size < 1 for size in tensor.shape[signature.max_batch > 0 :]):
            raise UserError(
                f"model '{signature.model}': input '{tensor.name}' is {tensor.datatype} {list(tensor.shape)}, and only "
                "floating-point inputs of fixed sizes can be made up; give requests with --inputs FILE.npz"
            )
    return _normal(signature, seed)


def _normal(signature: Signature, seed: int) -> Iterator[Inputs]:
    random = np.random.default_rng(seed)
    while True:
        yield {
            tensor.name: random.standard_normal([abs(size) for size in tensor.shape]).astype(DTYPES[tensor.datatype])
            for tensor in signature.inputs
        }


def _rows(arrays: Inputs, seed: int) -> Iterator[Inputs]:
    random, rows = np.random.default_rng(seed), min(map(len, arrays.values()))
    while True:
        row = int(random.integers(rows))
        yield {name: array[row : row + 1] for name, array in arrays.items()}


def read_arrays(file: Path) -> Inputs:
    """Requests of a .npz file, (rows, ...) for each input. Raises UserError for a file that holds none."""
    try:
        with np.load(file) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError, BadZipFile) as error:
        raise UserError(f"'{file}' cannot be read as an .npz file of requests: {error}") from error
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(f"'{file}': expected arrays with the same number of rows, at least 1, got {sorted(lengths)}")
    return arrays
