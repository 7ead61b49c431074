"""What the load test sends: an endless stream of requests for each model, seeded.

The requests are those of real use: windows of the real data where it is found, else of the seeded stand-in. They
differ from one another, so that a response cache on the server does not make it look faster than it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from clients.sentences import Wording, translates
from clients.signature import Array, Signature
from clients.value import Reading, values_customers
from loadtest import audio
from loadtest.invention import made_up
from optimize.data import shop, translation
from optimize.data.clickstream import EVENTS, Clicks
from optimize.data.dataset import find
from optimize.data.electricity import FILE, HISTORY_HOURS, HORIZON_HOURS, history_features, read_csv, synthetic
from optimize.errors import UserError

Inputs = dict[str, Array]

CUSTOMERS = 500  # made up for a load: 250,000 pairs of a review and clicks


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


def sentence_requests(signature: Signature, seed: int) -> Iterator[Inputs]:
    """English sentences for a model that translates, those it can take, in a random order, again and again."""
    wording, random = Wording.of(signature), np.random.default_rng(seed)
    sentences = _sentences(find(translation.FILE))
    while True:
        for index in random.permutation(len(sentences)).tolist():
            tokens = wording.subwords.encode(sentences[index])
            if not wording.buckets or len(tokens) <= wording.buckets[-1]:
                yield wording.request([tokens])


@cache
def _sentences(path: Path | None) -> list[str]:
    return list(dict.fromkeys(english for english, _ in translation.pairs(path)))


def customer_requests(signature: Signature, seed: int) -> Iterator[Inputs]:
    """What one made-up customer wrote with what another clicked, in random pairs."""
    reading, random = Reading.of(signature), np.random.default_rng(seed)
    reviews, clicks = _customers(reading.types, reading.events[-1] if reading.events else EVENTS)
    while True:
        wrote, clicked = random.integers(len(reviews), size=2).tolist()
        if reviews[wrote] or len(clicks[clicked].events):
            yield reading.request(reviews[wrote], clicks[clicked])


@cache
def _customers(types: tuple[str, ...], most: int) -> tuple[list[str], list[Clicks]]:
    found = shop.customers(CUSTOMERS, seed=0)
    return [one.review for one in found], [
        Clicks.before(one.asked, one.times, one.events, types, most) for one in found
    ]


def requests_for(
    signature: Signature, seed: int, file: Path | None = None, recordings: Sequence[audio.Samples] = ()
) -> Iterator[Inputs]:
    """Endless requests of one row for a model without state.

    file: an .npz with an array for each input, whose rows are sent in a random order, again and again; a response
    cache would then answer most. Without one: what the model is asked in real use, where that is known here, else
    what can be made up, see ``invention``; recordings: to make it up from. Raises UserError for a file or a model for
    which neither is possible, at the latest with the first request.
    """
    if file is not None:
        return _rows(read_arrays(file), seed)
    if signature.model == "load_forecast":
        return forecast_requests(seed)
    if translates(signature) and signature.vocabulary:
        return sentence_requests(signature, seed)
    if values_customers(signature) and signature.vocabulary:
        return customer_requests(signature, seed)
    return made_up(signature, np.random.default_rng(seed), recordings)


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
