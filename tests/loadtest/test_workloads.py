from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loadtest.workloads import forecast_requests
from optimize.data.electricity import synthetic, windows
from optimize.errors import UserError


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
