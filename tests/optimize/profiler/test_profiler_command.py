"""The command on a recipe of a few weights: what it writes and prints, and every mistake in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from optimize import fuse, onnx_export, recipes
from optimize.checkpoint import Sidecar, path_of, save_checkpoint
from optimize.errors import UserError
from optimize.profiler.__main__ import main
from optimize.profiler.machine import cache_sizes

RECIPE = Path(__file__).parents[2] / "recipes" / "sine_gru.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts and checkpoints of the sine recipe, untrained."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("profiled")
    variant = recipes.load(file=RECIPE).variants["gru"]
    module = variant.networks["student"]().eval()
    kept = Sidecar("sine", "gru", "student", 0, {}, {}, {}, {})
    save_checkpoint(path_of(folder / "checkpoints", "sine", "gru", "student"), module, kept)
    graph = onnx_export.export(module, variant.spec, variant.opset_version)
    (folder / "artifacts" / "sine" / "gru").mkdir(parents=True)
    onnx_export.save(graph, folder / "artifacts" / "sine" / "gru" / "student_onnx_fp32.onnx")
    onnx_export.save(fuse.fuse(graph)[0], folder / "artifacts" / "sine" / "gru" / "student_onnx_fused.onnx")
    return folder


def run(made: Path, *arguments: str) -> None:
    places = ["--artifacts", str(made / "artifacts"), "--checkpoints", str(made / "checkpoints")]
    main(["--recipe", str(RECIPE), *places, "--rounds", "10", *arguments])


def test_every_stage_is_profiled_and_written(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(made, "--batch", "4")
    folder, printed = made / "artifacts" / "sine" / "gru", capsys.readouterr().out
    found = json.loads((folder / "profile.json").read_text())
    names = ["student_torch_fp32", "student_onnx_fp32", "student_onnx_fused"]
    assert [(one["stage"], one["batch"]) for one in found["profiles"]] == [(n, b) for n in names for b in (1, 4)]
    for one in found["profiles"]:
        assert sum(part["ms"] for part in one["parts"]) + one["outside_ms"] == pytest.approx(one["ms"])
        assert bool(one["verdict"]) == (one["batch"] == 1)
        gru = [part for part in one["parts"] if part["operator"] in ("GRU", "aten::gru")]
        assert sum(part["macs"] for part in gru) == one["batch"] * 24 * 3 * 16 * (1 + 16)
    assert found["machine"]["int8_gmacs"] > 0
    text, picture = (folder / "profile.md").read_text(), (folder / "profile.svg").read_text()
    for one in found["profiles"]:
        assert one["verdict"] in text
        assert one["verdict"] in " ".join(printed.split()).replace("| ", "")
        assert one["stage"] in picture
    assert picture.startswith("<svg")
    assert "--ink:" in picture


def test_json_is_all_that_is_printed_on_request(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(made, "--stage", "student_onnx_fused", "--batch", "1", "--json")
    (one,) = json.loads(capsys.readouterr().out)["profiles"]
    assert (one["stage"], one["batch"]) == ("student_onnx_fused", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "student_onnx_int4"], r"no stage 'student_onnx_int4'; there are student_torch_fp32, student_onnx"),
        (["--stage", "teacher_torch_fp32"], r"no stage 'teacher_torch_fp32'"),
        (["--variant", "lstm"], r"no variant 'lstm'; it has gru"),
        (["--artifacts", "/nowhere"], r"no ONNX models to profile; make them with python -m optimize\.export --recipe"),
        (["--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--batch", "1000"], "128 requests are too few for batches of 1000"),
        (["--rounds", "1"], "--rounds is 1; it must be at least 10"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(made: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(made, *arguments)


def test_an_unknown_model_is_one_message() -> None:
    with pytest.raises(UserError, match="no recipe 'nothing'"):
        main(["--model", "nothing"])


def test_without_artefacts_the_message_is_the_command_that_makes_them(made: Path, tmp_path: Path) -> None:
    command = rf"python -m optimize\.export --recipe {RECIPE} --variant gru --quantize$"
    with pytest.raises(UserError, match=command):
        run(made, "--artifacts", str(tmp_path))


def test_a_file_that_is_no_model_is_one_message(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "sine" / "gru"
    folder.mkdir(parents=True)
    (folder / "student_onnx_fp32.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"student_onnx_fp32\.onnx.*cannot be run"):
        run(made, "--artifacts", str(tmp_path / "artifacts"))


def test_caches_are_read_from_the_system_or_are_usual_ones(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        (("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K"))
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(value + "\n")
    assert cache_sizes(tmp_path) == {"L2": 1 << 20}
    assert cache_sizes(tmp_path / "none") == {"L2": 1 << 20, "L3": 32 << 20}
