from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from optimize.data import electricity as data
from optimize.errors import UserError


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return data.synthetic()


def written(frame: pd.DataFrame, folder: Path) -> Path:
    path = folder / "demand.csv.gz"
    frame.to_csv(path, index_label="time_utc", date_format="%Y-%m-%dT%H:%M:%SZ")
    return path


def test_a_file_reads_back_as_written(frame: pd.DataFrame, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(
        data.read_csv(written(frame[:500], tmp_path)), frame[:500], check_names=False, check_freq=False
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("time_utc,demand_mw,temperature_c,holiday\n", "no rows"),
        ("time_utc,demand_mw\n2014-01-01T00:00:00Z,5\n", "lacks the columns temperature_c, holiday"),
        ("time_utc,demand_mw,temperature_c,holiday\n2014-01-01T00:00:00Z,many,20,0\n", "row 2: demand_mw 'many'"),
        ("time_utc,demand_mw,temperature_c,holiday\n2014-01-01T00:00:00Z,5,,0\n", "row 2: temperature_c 'nan'"),
        ("time_utc,demand_mw,temperature_c,holiday\nyesterday,5,20,0\n", "time_utc 'yesterday'"),
        ("time_utc,demand_mw,temperature_c,holiday\n2014-01-01T00:00:00Z,5,20,2\n", "neither 0 nor 1"),
        (
            "time_utc,demand_mw,temperature_c,holiday\n2014-01-01T00:00:00Z,5,20,0\n2014-01-01T02:00:00Z,5,20,0\n",
            "is not hourly: row 2",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        data.read_csv(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        data.load(tmp_path / "none.csv")
    damaged = tmp_path / "damaged.csv.gz"
    damaged.write_bytes(b"\x1f\x8b\x08 this is no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        data.read_csv(damaged)


def test_too_little_data_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole window"):
        data.load(written(frame[:10], tmp_path))


def test_splits_are_in_time_order_and_share_no_target(frame: pd.DataFrame) -> None:
    validation, test = data.split_times(frame.index)
    end = frame.index[-1] + pd.Timedelta(hours=1)
    assert str(validation.tz_convert(data.TIMEZONE)) == "2014-01-01 00:00:00+11:00"
    assert str(test.tz_convert(data.TIMEZONE)) == "2014-07-01 00:00:00+10:00"
    train = data.windows(frame, frame.index[0], validation)
    held_out = data.windows(frame, validation, end)
    demand = frame["demand_mw"].to_numpy(np.float32)
    border = int(frame.index.searchsorted(validation))
    np.testing.assert_array_equal(train.targets["forecast"][-1], demand[border - 24 : border])
    np.testing.assert_array_equal(held_out.targets["forecast"][0], demand[border : border + 24])


def test_the_future_holds_the_calendar_only(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    border = 1000
    changed.iloc[border:, :2] += 1000.0
    before, after = (
        data.windows(each, frame.index[border], frame.index[border + 24]).inputs for each in (frame, changed)
    )
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_calendar_follows_local_time_through_daylight_saving() -> None:
    hours = pd.date_range("2014-10-04T12:00Z", periods=24, freq="h")
    features = data.calendar_features(hours, np.zeros(24))
    assert features.shape == (24, data.CALENDAR_FEATURES)
    local = np.rint(np.arctan2(features[:, 0], features[:, 1]) * 24 / (2 * np.pi)) % 24
    assert local[:6].tolist() == [22, 23, 0, 1, 3, 4]  # two o'clock did not exist that night
    np.testing.assert_array_equal(features[:, 6:13].sum(axis=1), 1)


def test_folds_roll_forward_inside_the_training_period(tmp_path: Path, frame: pd.DataFrame) -> None:
    folds = list(data.folds(written(frame, tmp_path), 3))
    sizes = [len(train) for train, _ in folds]
    assert len(folds) == 3
    assert sizes == sorted(sizes)
    last = folds[-1][1].targets["forecast"][-1]
    border = int(frame.index.searchsorted(data.split_times(frame.index)[0]))
    assert last[-1] in frame["demand_mw"].to_numpy(np.float32)[border - 48 : border]
