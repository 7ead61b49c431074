"""A model from elsewhere in int8, calibrated on recorded streams."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from optimize.adopt import Options, adopt, foreign, quantised, wrapping
from optimize.adopt.asked import Asked
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.quantize import operators
from optimize.quantize.plan import Choice, Plan
from tests import foreign_models

LSTM = Asked(("h0.in:h0.out", "C_prev:C_next"), chunk=("8",))


def _planned(model: ModelProto, *arguments: Any, **options: Any) -> Plan:
    """Every LSTM in int8, in place of what a busy machine would measure."""
    choices = {
        name: Choice(kind, "pinned_coarse" if kind == "LSTM" else "fp32", "") for name, kind in operators(model).items()
    }
    return Plan("invariant", "", {"invariant": choices, "throughput": choices})


def test_int8_is_calibrated_on_streams_and_held_against_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "tune", _planned)
    monkeypatch.setattr("optimize.quantize.__main__.MAX_TIME", math.inf)
    path = foreign_models.lstm(tmp_path / "wide.onnx", width=256)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 5)).astype(np.float32)
    np.savez(tmp_path / "streams.npz", x=x)
    adopted = adopt(
        path,
        None,
        LSTM,
        Options(
            tmp_path / "a",
            tmp_path / "r",
            calibration=tmp_path / "streams.npz",
            quantize=True,
            profile="invariant",
            rounds=10,
        ),
    )
    assert adopted.published.path.joinpath("model.onnx").stat().st_size < path.stat().st_size / 3
    gates = {gate.name: gate.value for gate in adopted.proof.gates}
    assert gates["planned weights in low precision"] == 1
    assert gates["drift in company"] == 0
    assert 0 < gates["root mean square error along whole streams"] < 0.05


def test_steps_are_requests_in_mid_stream(tmp_path: Path) -> None:
    original = onnx.load(foreign_models.lstm(tmp_path / "m.onnx"))
    layout = foreign.layout(original, LSTM)
    wrapped = wrapping.wrap(original, layout)
    streams: list[Arrays] = [{"x": np.full((2, 8, 5), chunk, np.float32)} for chunk in range(8)]
    split = quantised.steps(wrapped, layout, streams)
    assert len(split) == 16
    for x, hidden in zip(split.inputs["x"], split.inputs["state_h0_in"], strict=True):
        assert np.any(hidden) == bool(x[0, 0]), "only the first chunk comes with states of zeros"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((4, 8, 8, 5), np.float32)}, r"has the arrays \['X'\], but the model is sent \['x'\]"),
        ({"x": np.zeros((4, 8, 5), np.float32)}, r"float32 \[4, 8, 5\], expected float32 \[streams, chunks, 8, 5\]"),
        ({"x": np.zeros((4, 8, 8, 5))}, "'x' is float64"),
        ({"x": np.full((4, 8, 8, 5), np.nan, np.float32)}, "NaN or infinite"),
        ({"x": np.zeros((3, 5, 8, 5), np.float32)}, "has 3 streams of 5 chunks; at least 4 streams of 2"),
    ],
)
def test_recorded_streams_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "streams.npz", **arrays)
    layout = foreign.layout(onnx.load(foreign_models.lstm(tmp_path / "m.onnx")), LSTM)
    with pytest.raises(UserError, match=message):
        quantised.recorded(tmp_path / "streams.npz", layout)
    with pytest.raises(UserError, match="cannot be read"):
        quantised.recorded(tmp_path / "none.npz", layout)
