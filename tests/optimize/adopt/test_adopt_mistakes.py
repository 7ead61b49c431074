"""What the user is told who says of a model from elsewhere what its graph does not bear out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from optimize import export
from optimize.adopt import foreign
from optimize.adopt.asked import Asked
from optimize.errors import UserError
from tests import foreign_models

LSTM = Asked(("h0.in:h0.out", "C_prev:C_next"), chunk=("8",))
DETECTOR = Asked(("state:stateN", "context:contextN"), constants=("sr=16000",))
TOTALS = Asked(("State_S:S",), lengths="Len")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    return {
        "lstm": foreign_models.lstm(folder / "My-LSTM v2.onnx"),
        "frozen": foreign_models.lstm(folder / "frozen.onnx", batch=None),
        "gru": foreign_models.gru(folder / "gru.onnx"),
        "detector": foreign_models.detector(folder / "detector.onnx"),
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (replace(LSTM, states=()), r"--states IN:OUT is missing.*inputs are 'X' float32 \[T, N, 5\], 'h0.in'"),
        (replace(LSTM, states=("h0",)), "--states h0: expected IN:OUT"),
        (replace(LSTM, states=("h0:h0.out",)), r"no input 'h0'; the graph's inputs are .*outputs are 'Logits/out'"),
        (replace(LSTM, states=("h0.in:h1",)), "no output 'h1'"),
        (replace(LSTM, states=("h0.in:h0.out", "h0.in:C_next")), "'h0.in' is in two pairs"),
        (replace(LSTM, states=("h0.in:h0.out", "C_prev:h0.out")), "'h0.out' is in two pairs"),
        (replace(LSTM, states=("X:h0.out", "h0.in:Logits/out")), r"X:h0.out: .*per row \[8, 5\].*per row \[2, 16\]"),
        (replace(LSTM, chunk=()), "axis 'T' of X is dynamic.*--chunk N"),
        (replace(LSTM, chunk=("0",)), "--chunk 0: expected the size"),
        (replace(LSTM, chunk=("S=8",)), "--chunk S=8: the dynamic axes besides the batch are T"),
        (replace(LSTM, batch_axis=("M",)), "--batch-axis M: no input has a dynamic axis of that name"),
        (replace(LSTM, batch_axis=("X:3",)), "--batch-axis X:3: expected NAME:AXIS"),
        (replace(LSTM, batch_axis=("X:2",)), "'X': its batch, axis 2 of .*, is frozen at 5"),
        (replace(LSTM, batch_axis=("X:0",)), "which axis of h0.in, C_prev|does not run with"),
        (replace(LSTM, constants=("sr=1",)), "--constant sr=1: expected NAME=VALUE"),
        (replace(LSTM, constants=("X=1",)), "only fixed sizes"),
        (replace(LSTM, lengths="n"), "--lengths n: no such input"),
        (replace(LSTM, lengths="X"), "--lengths X is .*expected one integer a row"),
    ],
)
def test_mistakes_about_the_lstm(models: dict[str, Path], asked: Asked, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign.layout(onnx.load(models["lstm"]), asked)


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        ("detector", replace(DETECTOR, constants=()), "'b' is a dynamic axis of all but sr.*--constant"),
        ("detector", replace(DETECTOR, constants=("sr=16k",)), "'16k' is no int64, which 'sr' is"),
        ("detector", replace(DETECTOR, chunk=("8",)), "besides the batch are none"),
        ("frozen", LSTM, "cannot be known: they share no dynamic axis; a batch that is frozen at 1"),
    ],
)
def test_mistakes_about_others(models: dict[str, Path], model: str, asked: Asked, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign.layout(onnx.load(models[model]), asked)


def test_a_state_keeps_its_type_and_is_named(tmp_path: Path) -> None:
    cast = [
        helper.make_node("Add", ["sum", "State_S"], ["float"]),
        helper.make_node("Cast", ["float"], ["S"], to=TensorProto.DOUBLE),
    ]
    model = onnx.load(foreign_models.totals(tmp_path / "m.onnx", nodes=cast, type=TensorProto.DOUBLE))
    with pytest.raises(UserError, match=r"input is float32 \[batch\], but the output is float64 \[batch\]"):
        foreign.layout(model, TOTALS)
    with pytest.raises(UserError, match="input 'State_S' looks like a state; pair it"):
        foreign.layout(onnx.load(foreign_models.totals(tmp_path / "n.onnx")), replace(TOTALS, states=("X:S",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx", "m.onnx", "--variant", "v"], "--variant is for a recipe's model"),
        (["--onnx", "m.onnx", "--recipe", "r.py"], "--recipe is for a recipe's model"),
        (["--onnx", "m.onnx", "--quantize"], "--quantize needs recorded streams here: give --calibration"),
        (["--states", "h:hn"], "--states is for a model from elsewhere"),
        (["--chunk-matters"], "--chunk-matters is for a model from elsewhere"),
        (["--onnx", "m.onnx", "--states", "h:hn"], "m.onnx: cannot be read"),
        (["--onnx", "m.onnx", "--states", "h:hn", "--name", "speech"], "the name of a built-in model"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export.main(options)


def test_the_command_shows_what_became_of_the_names(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--artifacts", str(tmp_path / "a"), "--model-repository", str(tmp_path / "r")]
    export.main(["--onnx", str(models["lstm"]), "--states", *LSTM.states, "--chunk", "8", *where])
    printed = capsys.readouterr().out
    for words in ("h0.in", "state_h0_in", "two chunks against one as long as both", "published: "):
        assert words in printed
