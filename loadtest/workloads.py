"""What the load test sends: an endless stream of requests for each model, seeded.

The requests are those of real use: windows of the real data where it is found, else of the seeded stand-in. They
differ from one another, so that a response cache on the server does not make it look faster than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from clients.signature import Array
from optimize.data.dataset import find
from optimize.data.electricity import FILE, HISTORY_HOURS, HORIZON_HOURS, history_features, read_csv, synthetic

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
