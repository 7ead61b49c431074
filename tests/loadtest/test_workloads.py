from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.sentences import Wording
from clients.signature import Signature, Tensor
from loadtest.workloads import forecast_requests, requests_for
from optimize.data.clickstream import EVENT_TYPES
from optimize.data.electricity import synthetic, windows
from optimize.data.subwords import END, VOCABULARY_FILE
from optimize.data.translation import FILE
from optimize.errors import UserError
from optimize.recipes import customer_value


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "demand.csv"
    synthetic(years=1).iloc[:200].to_csv(path, index_label="time_utc")
    return path


def test_requests_are_windows_of_the_data(csv: Path) -> None:
    frame = synthetic(years=1).iloc[:200]
    known = windows(frame, frame.index[0], frame.index[-1] + pd.Timedelta(hours=1))
    pairs = {
        (history.tobytes(), calendar.tobytes())
        for history, calendar in zip(known.inputs["history"], known.inputs["calendar"], strict=True)
    }
    for request in islice(forecast_requests(1, csv), 50):
        assert request["history"].shape == (1, 72, 16)
        assert request["calendar"].shape == (1, 24, 14)
        assert (request["history"][0].tobytes(), request["calendar"][0].tobytes()) in pairs


def test_requests_are_seeded_and_differ(csv: Path) -> None:
    def some(seed: int) -> list[bytes]:
        return [request["history"].tobytes() for request in islice(forecast_requests(seed, csv), 20)]

    assert some(1) == some(1)
    assert some(1) != some(2)
    assert len(set(some(1))) > 10


def test_without_data_a_stand_in_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_DIR", raising=False)
    request = next(forecast_requests(1))
    assert np.isfinite(request["history"]).all()


def test_data_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        next(forecast_requests(1, tmp_path / "nothing.csv"))


TRANSLATOR = Signature(
    "any",
    "1",
    (Tensor("source", "INT64", (-1, -1)), Tensor("lengths", "INT32", (-1, 1))),
    tuple(Tensor(name, "INT64", (-1, -1)) for name in ("tokens", "output_lengths", "score")),
    8,
    buckets={"source": (4, 8)},
    vocabulary=VOCABULARY_FILE.read_bytes(),
)


def test_a_translator_is_asked_the_sentences_of_the_data_that_it_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    path.parent.mkdir()
    long = "the black cats do not see a small house in the garden today ."
    path.write_bytes(gzip.compress(f"No.\tNon.\nNo.\tPas.\nRun!\tCours !\n{long}\tLes chats.\n".encode()))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    sent, wording = list(islice(requests_for(TRANSLATOR, 1), 4)), Wording.of(TRANSLATOR)
    for request in sent:
        TRANSLATOR.checked(request)
        assert request["source"][0, request["lengths"].item() - 1] == END
    texts = [wording.subwords.decode(request["source"][0].tolist()) for request in sent]
    assert set(texts[:2]) == set(texts[2:]) == {"no .", "run !"}


def valuer(types: tuple[str, ...], events: tuple[int, ...]) -> Signature:
    """A model with the interface of `customer_value`, and such types and buckets of events."""
    spec = customer_value.SPEC
    return Signature(
        "any",
        "1",
        tuple(
            Tensor(
                tensor.name,
                {"int64": "INT64", "int32": "INT32", "float32": "FP32"}[tensor.dtype],
                (-1, *(size if isinstance(size, int) else -1 for size in tensor.shape)),
            )
            for tensor in spec.inputs
        ),
        tuple(Tensor(tensor.name, "FP32", (-1, *map(int, tensor.shape))) for tensor in spec.outputs),
        8,
        labels={tensor.name: tensor.labels for tensor in spec.outputs if tensor.labels} | {"events": types},
        buckets={"text": spec.buckets["text"], "events": events, "ages": events},
        vocabulary=spec.vocabulary,
    )


def test_a_model_of_customer_value_is_asked_of_customers() -> None:
    spec = customer_value.SPEC
    signature = valuer(EVENT_TYPES, spec.buckets["event"])
    sent = list(islice(requests_for(signature, 1), 40))
    for request in sent:
        signature.checked(request)
        assert request["text"].shape[1] in spec.buckets["text"]
        assert request["events"].shape[1] in spec.buckets["event"]
        assert request["text_lengths"].item() + request["event_lengths"].item() > 0
        assert (np.diff(request["ages"][0, : request["event_lengths"].item()]) <= 0).all()
    assert len({request["ages"].tobytes() + request["text"].tobytes() for request in sent}) > 30


def test_clicks_are_read_as_the_served_model_reads_them() -> None:
    signature = valuer(("", "unknown", "support", "login"), (4, 8))
    seen: set[int] = set()
    for request in islice(requests_for(signature, 1), 100):
        signature.checked(request)
        assert request["events"].shape[1] in (4, 8)
        seen |= set(request["events"][0, : request["event_lengths"].item()].tolist())
    assert seen == {1, 2, 3}
