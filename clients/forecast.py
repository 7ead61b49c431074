"""Forecast the next 24 hours of electricity demand from a CSV file of the hours before.

    python -m clients forecast --csv demand.csv.gz --at 2014-12-30T13:00Z --plot forecast.png

The file has one row an hour: time_utc, demand_mw, temperature_c, holiday (0 or 1). The 72 hours before ``--at`` go to
the server; where the file continues, what happened is printed beside the forecast.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clients import json_body
from clients.options import connected
from clients.signature import Array
from optimize.data.electricity import (
    HISTORY_HOURS,
    HORIZON_HOURS,
    TIMEZONE,
    calendar_features,
    history_features,
    read_csv,
)
from optimize.errors import UserError

MODEL = "load_forecast"
_HOUR = pd.Timedelta(hours=1)


@dataclass(frozen=True)
class Window:
    """What one forecast is made from.

    history: the 72 hours before, as read from the file. targets: the 24 hours to forecast, UTC. holiday: 0 or 1 for
    each of them. actual: their demand in MW where the file knows it, else NaN.
    """

    history: pd.DataFrame
    targets: pd.DatetimeIndex
    holiday: NDArray[np.int64]
    actual: NDArray[np.float64]

    def request(self) -> dict[str, Array]:
        """The model's inputs: history (1, 72, 16), calendar (1, 24, 14)."""
        return {
            "history": history_features(self.history)[None],
            "calendar": calendar_features(self.targets, self.holiday)[None],
        }


@dataclass(frozen=True)
class Forecast:
    """A window and the server's answer to it, in MW."""

    window: Window
    demand_mw: NDArray[np.float64]
    model: str
    version: str

    def error_mw(self) -> float | None:
        """Mean absolute error over the hours whose demand is known; None where none is."""
        known = np.isfinite(self.window.actual)
        return float(np.abs(self.demand_mw - self.window.actual)[known].mean()) if known.any() else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="hourly .csv or .csv.gz")
    parser.add_argument("--at", metavar="TIME", help="first hour to forecast, ISO 8601, UTC unless it has an offset; "
                        "default: the hour after the file's last")  # fmt: skip
    parser.add_argument("--holiday", action="append", default=[], metavar="DATE",
                        help=f"a public holiday ({TIMEZONE}) among the hours to come; may be repeated")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw history, forecast and what happened")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--print-request", action="store_true", help="print the body of the HTTP request; ask nobody")
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")
    parser.add_argument("--model-version", default="", metavar="N", help="default: the version the server prefers")


def run(options: argparse.Namespace) -> None:
    """Print the forecast that the command line asks for. Raises UserError."""
    window = select(read_csv(options.csv), options.csv.name, options.at, options.holiday)
    if options.print_request:
        print(json_body.encode(window.request()))
        return
    if options.plot:
        from clients import chart  # before the server is asked: a plot that cannot be drawn is known at once

        chart.check(options.plot)
    with connected(options) as client:
        answer = client.infer(options.model, window.request(), version=options.model_version)
    demand = answer.outputs.get("forecast")
    if demand is None or demand.shape != (1, HORIZON_HOURS):
        raise UserError(f"--model {options.model}: expected the output 'forecast' (1, {HORIZON_HOURS}), which it lacks")
    forecast = Forecast(window, demand[0].astype(np.float64), answer.model, answer.version)
    print(json.dumps(as_json(forecast), indent=2) if options.json else as_table(forecast))
    if options.plot:
        chart.draw(forecast, options.plot)


def select(frame: pd.DataFrame, name: str, at: str | None = None, holidays: list[str] | None = None) -> Window:
    """Cut the window out of a file's rows. name: the file's, for messages. Raises UserError if it lacks the hours."""
    first, end = frame.index[0], frame.index[-1] + _HOUR
    origin = _time(at) if at else end
    start = origin - HISTORY_HOURS * _HOUR
    if len(frame) < HISTORY_HOURS:
        raise UserError(f"'{name}' has {len(frame)} hours; a forecast needs the {HISTORY_HOURS} hours before it")
    if start < first or origin > end:
        raise UserError(
            f"--at {origin:%Y-%m-%dT%H:%MZ}: '{name}' lacks the {HISTORY_HOURS} hours before it; from this file, "
            f"forecasts can be made for {first + HISTORY_HOURS * _HOUR:%Y-%m-%dT%H:%MZ} to {end:%Y-%m-%dT%H:%MZ}"
        )
    targets = pd.date_range(origin, periods=HORIZON_HOURS, freq="h")
    known = frame.reindex(targets)
    holiday = known["holiday"].fillna(0).to_numpy(np.int64)
    days = np.array(targets.tz_convert(TIMEZONE).date)
    for text in holidays or []:
        day = _date(text)
        if day not in days:
            raise UserError(f"--holiday {day}: the forecast is for {days[0]} and {days[-1]} ({TIMEZONE}) only")
        holiday[days == day] = 1
    return Window(frame.loc[start : origin - _HOUR], targets, holiday, known["demand_mw"].to_numpy(np.float64))


def as_table(forecast: Forecast) -> str:
    """One line an hour, local and UTC time, MW; then the mean error where what happened is known."""
    window = forecast.window
    known = np.isfinite(window.actual).any()
    local = window.targets.tz_convert(TIMEZONE)
    lines = [
        f"{forecast.model} version {forecast.version}: demand of the next {HORIZON_HOURS} hours",
        "",
        f"{TIMEZONE:<20}  {'UTC':<16}  {'forecast MW':>11}" + (f"  {'actual MW':>9}  {'error MW':>8}" if known else ""),
    ]
    for here, utc, demand, actual in zip(local, window.targets, forecast.demand_mw, window.actual, strict=True):
        line = f"{here:%a %Y-%m-%d %H:%M}  {utc:%Y-%m-%d %H:%M}  {demand:11.0f}"
        lines.append(line + (f"  {actual:9.0f}  {demand - actual:+8.0f}" if np.isfinite(actual) else ""))
    error = forecast.error_mw()
    if error is not None:
        hours, mean = int(np.isfinite(window.actual).sum()), float(np.nanmean(window.actual))
        lines += ["", f"mean absolute error over {hours} hours: {error:.0f} MW, {error / mean:.1%} of the mean demand"]
    return "\n".join(lines)


def as_json(forecast: Forecast) -> dict[str, Any]:
    """The same as plain data."""
    window = forecast.window
    return {
        "model": forecast.model,
        "version": forecast.version,
        "timezone": TIMEZONE,
        "mean_absolute_error_mw": forecast.error_mw(),
        "hours": [
            {
                "time_utc": f"{utc:%Y-%m-%dT%H:%M:%SZ}",
                "time_local": utc.tz_convert(TIMEZONE).isoformat(),
                "forecast_mw": round(float(demand), 2),
                "actual_mw": float(actual) if np.isfinite(actual) else None,
            }
            for utc, demand, actual in zip(window.targets, forecast.demand_mw, window.actual, strict=True)
        ],
    }


def _time(text: str) -> pd.Timestamp:
    try:
        time = pd.Timestamp(datetime.datetime.fromisoformat(text))
    except ValueError:
        raise UserError(f"--at {text}: expected an ISO 8601 time such as 2014-12-30T13:00Z") from None
    time = time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
    if time != time.floor("h"):
        raise UserError(f"--at {text}: expected a whole hour, as the rows of the file are")
    return time


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--holiday {text}: expected a date such as 2014-12-25") from None
