"""Hourly electricity demand: reading, features, windows and a seeded stand-in.

A file is CSV or .csv.gz with the columns ``time_utc, demand_mw, temperature_c, holiday``, one row an hour, no gaps.
The forecast made at an origin sees 72 hours of demand, temperature and calendar, and of the next 24 hours the
calendar only: the weather to come is not known. Features keep their physical units; the model normalises.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optimize.data.dataset import Dataset, Split, find
from optimize.errors import UserError

FILE = "electricity/vic_elec_hourly.csv.gz"
TIMEZONE = "Australia/Melbourne"
COLUMNS = ("demand_mw", "temperature_c", "holiday")
HISTORY_HOURS, HORIZON_HOURS = 72, 24
CALENDAR_FEATURES = 14  # hour: 2 harmonics (4), weekday one-hot (7), day of year (2), holiday (1)
HISTORY_FEATURES = 2 + CALENDAR_FEATURES  # demand in MW, temperature in C, calendar
SEED = 2014

_HOUR = pd.Timedelta(hours=1)


def load(data: Path | None = None) -> Dataset:
    """The demand data set as windows: one for every hour of each split.

    Raises UserError for a file that cannot be used; the message says which row or column.
    """
    path = find(FILE, data)
    if path is None:
        frame, source = synthetic(), f"synthetic demand, seed {SEED} (no {FILE} under $DATA_DIR or ./data)"
    else:
        frame, source = read_csv(path), f"{path.name}: {'the file given' if data else 'Victoria, AEMO and BOM'}"
    validation, test = split_times(frame.index)
    end = frame.index[-1] + _HOUR
    return Dataset(
        train=windows(frame, frame.index[0], validation),
        validation=windows(frame, validation, test),
        test=windows(frame, test, end),
        source=source,
        sha256=hashlib.sha256(frame.to_csv().encode()).hexdigest(),
    )


def folds(data: Path | None, count: int) -> Iterator[tuple[Split, Split]]:
    """Rolling-origin cross-validation inside the training period: train on all before, validate on the next part.

    The second half of the training period is cut into ``count`` equal parts, each validated by what precedes it.
    """
    path = find(FILE, data)
    frame = synthetic() if path is None else read_csv(path)
    start, end = frame.index[0], split_times(frame.index)[0]
    edges = [start + (end - start) * (0.5 + 0.5 * part / count) for part in range(count + 1)]
    edges = [edge.floor("D") for edge in edges]
    for origin, stop in itertools.pairwise(edges):
        yield windows(frame, start, origin), windows(frame, origin, stop)


def read_csv(path: Path) -> pd.DataFrame:
    """Hourly rows indexed by UTC time, columns demand_mw and temperature_c (float64) and holiday (int64).

    Raises UserError: unreadable or empty file, missing columns, values that are no numbers, NaN, gaps, repeats.
    """
    try:
        raw = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; give a CSV with time_utc, {', '.join(COLUMNS)}") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"'{path}' is empty; expected the columns time_utc, {', '.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read as CSV ({error}); expected .csv or .csv.gz text") from None
    missing = [name for name in ("time_utc", *COLUMNS) if name not in raw.columns]
    if missing:
        raise UserError(f"'{path}' lacks the columns {', '.join(missing)}; it has {', '.join(map(str, raw.columns))}")
    if raw.empty:
        raise UserError(f"'{path}' has a header but no rows; expected one row an hour")
    times = pd.to_datetime(raw["time_utc"], utc=True, errors="coerce", format="ISO8601")
    _refuse(path, raw["time_utc"], times.isna(), "is no ISO 8601 time such as 2014-12-31T12:00:00Z")
    frame = pd.DataFrame(index=pd.DatetimeIndex(times))
    for name in COLUMNS:
        values = pd.to_numeric(raw[name], errors="coerce")
        bad = ~np.isfinite(values.to_numpy(float))
        _refuse(path, raw[name], pd.Series(bad), "is missing or no finite number; fill or drop such hours first")
        frame[name] = values.to_numpy("int64" if name == "holiday" else float)
    _refuse(path, raw["holiday"], ~raw["holiday"].isin([0, 1]), "is neither 0 nor 1")
    steps = np.diff(pd.DatetimeIndex(frame.index).tz_localize(None).to_numpy()) / np.timedelta64(1, "h")
    wrong = np.flatnonzero(steps != 1)
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"'{path}' is not hourly: row {row + 2} ({frame.index[row]}) is followed by {frame.index[row + 1]}; "
            f"{wrong.size} such places; expected one row an hour, ascending, without gaps or repeats"
        )
    return frame


def calendar_features(
    index: pd.DatetimeIndex, holiday: NDArray[np.generic], timezone: str = TIMEZONE
) -> NDArray[np.float32]:
    """What is known of an hour in advance, (hours, 14): two harmonics of the local hour, weekday, season, holiday."""
    local = index.tz_convert(timezone)
    day = 2 * np.pi * local.hour.to_numpy() / 24
    year = 2 * np.pi * (local.dayofyear.to_numpy() - 1) / 365.25
    waves = [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day), np.sin(year), np.cos(year)]
    weekday = np.eye(7)[local.dayofweek.to_numpy()]
    return np.column_stack([*waves, weekday, np.asarray(holiday, float)]).astype(np.float32)


def history_features(frame: pd.DataFrame, timezone: str = TIMEZONE) -> NDArray[np.float32]:
    """What is known of an hour that has passed, (hours, 16): demand in MW, temperature in C, calendar."""
    observed = frame[["demand_mw", "temperature_c"]].to_numpy(np.float32)
    index = pd.DatetimeIndex(frame.index)
    return np.concatenate([observed, calendar_features(index, frame["holiday"].to_numpy(), timezone)], axis=1)


def windows(frame: pd.DataFrame, start: pd.Timestamp, stop: pd.Timestamp) -> Split:
    """Every forecast whose 24 target hours lie in [start, stop): groups are the days of the origins.

    Returns history (items, 72, 16), calendar (items, 24, 14), target (items, 24) in MW. The history may reach back
    before ``start``: by then it has been observed.
    """
    first = max(int(frame.index.searchsorted(start)), HISTORY_HOURS)
    last = int(frame.index.searchsorted(stop)) - HORIZON_HOURS
    if last < first:
        raise UserError(
            f"the hours from {start} to {stop} hold no whole window: a forecast needs {HISTORY_HOURS} hours of "
            f"history and {HORIZON_HOURS} of targets; the data has {len(frame)} hours"
        )
    features = history_features(frame)
    origins = np.arange(first, last + 1)
    past = origins[:, None] + np.arange(-HISTORY_HOURS, 0)
    future = origins[:, None] + np.arange(HORIZON_HOURS)
    return Split(
        inputs={"history": features[past], "calendar": features[future][:, :, 2:]},
        targets={"forecast": features[future][:, :, 0]},
        groups=(origins // 24).astype(np.int64),
    )


def split_times(index: pd.Index) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Where validation and test begin: the last half-year tests and the one before validates, in local time.

    Less than two years of data is cut at two thirds and five sixths instead.
    """
    local = pd.DatetimeIndex(index).tz_convert(TIMEZONE)
    start, end = local[0], local[-1] + _HOUR
    if end - start >= pd.Timedelta(days=730):
        return tuple((end - pd.DateOffset(months=months)).tz_convert("UTC") for months in (12, 6))  # type: ignore[return-value]
    return tuple((start + (end - start) * part).floor("h").tz_convert("UTC") for part in (2 / 3, 5 / 6))  # type: ignore[return-value]


def synthetic(years: int = 3, seed: int = SEED) -> pd.DataFrame:
    """A seeded stand-in: daily, weekly and annual cycles, weather that wanders, holidays; same columns as a file."""
    local = pd.date_range("2012-01-01", f"{2012 + years}-01-01", freq="h", tz=TIMEZONE, inclusive="left")
    random = np.random.default_rng(seed)
    hour, season = local.hour.to_numpy(), 2 * np.pi * local.dayofyear.to_numpy() / 365.25
    weather = np.zeros(len(local))
    for i, push in enumerate(random.normal(0, 0.45, len(local))):  # an AR(1) wander of about four days
        weather[i] = 0.99 * weather[i - 1] + push
    temperature = 15 + 6 * np.cos(season) + 4 * np.cos(2 * np.pi * (hour - 15) / 24) + weather
    fixed = {(1, 1), (1, 26), (4, 25), (12, 25), (12, 26)}
    holiday = np.array([(day.month, day.day) in fixed for day in local])
    working = (local.dayofweek.to_numpy() < 5) & ~holiday
    daily = np.cos(2 * np.pi * (hour - 14) / 24) * 550 + np.cos(4 * np.pi * (hour - 19) / 24) * 220
    comfort = np.maximum(temperature - 24, 0) * 95 + np.maximum(14 - temperature, 0) * 45
    noise = random.normal(0, 45, len(local))
    demand = 4200 + daily + working * (350 + 150 * np.cos(2 * np.pi * (hour - 12) / 24)) + comfort + noise
    columns = {"demand_mw": demand.round(2), "temperature_c": temperature.round(2), "holiday": holiday.astype("int64")}
    return pd.DataFrame(columns, index=pd.DatetimeIndex(local.tz_convert("UTC")))


def _refuse(path: Path, column: pd.Series, bad: pd.Series, why: str) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    if rows.size:
        row, more = int(rows[0]), f" ({rows.size} such rows)" if rows.size > 1 else ""
        raise UserError(f"'{path}' row {row + 2}: {column.name} '{column.iloc[row]}' {why}{more}")
