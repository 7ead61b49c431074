"""``python -m clients forecast``, against a real server and with every kind of bad input."""

from __future__ import annotations

import builtins
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients import json_body
from clients.__main__ import main
from clients.forecast import select
from optimize.data.electricity import calendar_features, history_features, read_csv, synthetic
from optimize.errors import UserError
from serving.launcher import Server


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six days from 2012-12-20 13:00 UTC on, Christmas included."""
    path = tmp_path_factory.mktemp("data") / "demand.csv.gz"
    frame = synthetic(years=1).loc["2012-12-20T13:00Z":].iloc[: 6 * 24]
    frame.to_csv(path, index_label="time_utc", date_format="%Y-%m-%dT%H:%M:%SZ")
    return path


Command = Callable[..., str]


@pytest.fixture
def forecast(practice: Server, csv: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command against the server; what it printed."""

    def run(*arguments: str) -> str:
        assert main(["forecast", "--csv", str(csv), "--url", practice.grpc, *arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail with one line on standard error; that line."""

    def run(*arguments: str) -> str:
        assert main(["forecast", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def test_the_hours_after_the_files_last_row(forecast: Command) -> None:
    lines = forecast().splitlines()
    assert lines[0] == "load_forecast version 1: demand of the next 24 hours"
    assert lines[2].split() == ["Australia/Melbourne", "UTC", "forecast", "MW"]
    assert lines[3].startswith("Thu 2012-12-27 00:00  2012-12-26 13:00")
    assert len(lines) == 3 + 24


def test_what_happened_stands_beside_the_forecast(forecast: Command) -> None:
    text = forecast("--at", "2012-12-25T00:00+11:00")
    assert "actual MW  error MW" in text
    assert text.splitlines()[-1].startswith("mean absolute error over 24 hours: ")


def test_a_forecast_that_is_partly_known(forecast: Command) -> None:
    assert "mean absolute error over 10 hours" in forecast("--at", "2012-12-26T03:00")


def test_json(forecast: Command, csv: Path) -> None:
    answer = json.loads(forecast("--at", "2012-12-25T13:00Z", "--json"))
    demand = read_csv(csv)["demand_mw"].to_numpy()
    yesterday, today = demand[96:120], demand[120:144]
    assert answer["model"] == "load_forecast"
    assert answer["hours"][0]["time_local"] == "2012-12-26T00:00:00+11:00"
    np.testing.assert_allclose([hour["forecast_mw"] for hour in answer["hours"]], yesterday, atol=0.01)
    np.testing.assert_allclose([hour["actual_mw"] for hour in answer["hours"]], today)
    assert answer["mean_absolute_error_mw"] == pytest.approx(np.abs(yesterday - today).mean(), rel=1e-4)


def test_over_http(practice: Server, csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", "--csv", str(csv), "--protocol", "http", "--url", practice.http]) == 0
    assert "load_forecast version 1" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot(forecast: Command, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"forecast{suffix}"
    forecast("--at", "2012-12-26T03:00", "--plot", str(path))
    assert path.stat().st_size > 5000


def test_the_printed_request_is_what_curl_can_post(practice: Server, forecast: Command, csv: Path) -> None:
    body = forecast("--print-request", "--url", "127.0.0.1:1")  # asks nobody
    window = select(read_csv(csv), csv.name)
    for name, array in json_body.decode(body).items():
        np.testing.assert_array_equal(array, window.request()[name])
    url = f"http://{practice.http}/v2/models/load_forecast/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body.encode())) as answer:
        forecasted = json_body.decode(answer.read().decode())["forecast"]
    np.testing.assert_array_equal(forecasted, window.request()["history"][:, -24:, 0])


def test_the_window_is_the_one_the_model_was_trained_on(csv: Path) -> None:
    frame = read_csv(csv)
    window = select(frame, "demand.csv", "2012-12-24T13:00Z")
    features = history_features(frame)
    np.testing.assert_array_equal(window.request()["history"][0], features[24:96])
    np.testing.assert_array_equal(window.request()["calendar"][0], features[96:120, 2:])  # its holiday is in the file


def test_holidays_to_come(csv: Path) -> None:
    frame = read_csv(csv).loc[:"2012-12-24T12:00Z"]
    known = select(frame, "demand.csv", holidays=["2012-12-25"])
    assert known.holiday.tolist() == [1] * 24
    later = select(frame.iloc[:-6], "demand.csv", holidays=["2012-12-25"])
    assert later.holiday.tolist() == [0] * 6 + [1] * 18
    unknown = select(frame, "demand.csv").request()["calendar"][0]
    np.testing.assert_array_equal(unknown, calendar_features(known.targets, np.zeros(24)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "noon"], "expected an ISO 8601 time"),
        (["--at", "2012-12-25T13:30Z"], "expected a whole hour"),
        (["--at", "2012-12-21T13:00Z"], "forecasts can be made for 2012-12-23T13:00Z to 2012-12-26T13:00Z"),
        (["--at", "2013-01-21T13:00Z"], "lacks the 72 hours before it"),
        (["--holiday", "christmas"], "expected a date such as"),
        (["--holiday", "2012-12-25"], "the forecast is for 2012-12-27 and"),
        (["--plot", "forecast.xyz"], "expected a name ending in .png"),
        (["--plot", "/no/such/folder/forecast.png"], "the folder '/no/such/folder' does not exist"),
        (["--url", "localhost"], "expected HOST:PORT"),
        (["--deadline", "-1"], "expected more than 0"),
        (["--url", "127.0.0.1:9"], "no Triton server answers at 127.0.0.1:9"),
    ],
)
def test_bad_options(refused: Command, csv: Path, arguments: list[str], words: str) -> None:
    assert words in refused("--csv", str(csv), *arguments)


def test_bad_models(refused: Command, csv: Path, practice: Server) -> None:
    server = ["--csv", str(csv), "--url", practice.grpc]
    assert "has no input 'history'" in refused(*server, "--model", "slow")
    assert "'nobody' is not found" in refused(*server, "--model", "nobody")
    assert "version 4 is not found" in refused(*server, "--model-version", "4")
    assert "version should be an integral value" in refused(*server, "--model-version", "newest")


ROWS = "time_utc,demand_mw,temperature_c,holiday\n" + "".join(
    f"2014-01-0{1 + hour // 24}T{hour % 24:02}:00:00Z,{4000 + hour},20,0\n" for hour in range(96)
)
LINES = ROWS.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ROWS.replace("temperature_c", "temp"), "lacks the columns temperature_c"),
        ("".join(LINES[:50] + LINES[52:]), "is not hourly"),
        (ROWS.replace("4010,", "NaN,"), "'nan' is missing or no finite number"),
        (ROWS.replace("4010,", "many,"), "'many' is missing or no finite number"),
        ("".join(LINES[:11]), "has 10 hours; a forecast needs the 72 hours before it"),
        (LINES[0], "no rows"),
        ("", "is empty"),
    ],
    ids=["missing column", "gap", "NaN", "strings", "ten rows", "header only", "empty"],
)
def test_bad_files(refused: Command, tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "demand.csv"
    path.write_text(content)
    assert words in refused("--csv", str(path))


def test_no_file_at_all(refused: Command, tmp_path: Path) -> None:
    assert "does not exist" in refused("--csv", str(tmp_path / "nothing.csv"))
    assert str(tmp_path) in refused("--csv", str(tmp_path))


def test_a_plot_without_matplotlib(refused: Command, csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "--plot needs matplotlib: pip install" in refused("--csv", str(csv), "--plot", "x.png")


def test_select_needs_the_history() -> None:
    frame = synthetic(years=1).iloc[:71]
    with pytest.raises(UserError, match="has 71 hours"):
        select(frame, "demand.csv")
    hours = pd.date_range("2012-01-01", periods=72, freq="h", tz="UTC")
    enough = pd.DataFrame({"demand_mw": 1.0, "temperature_c": 1.0, "holiday": 0}, index=hours)
    assert select(enough, "demand.csv").targets[0] == hours[-1] + pd.Timedelta(hours=1)
