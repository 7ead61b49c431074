"""``python -m optimize.quantize`` as a user runs it: on models that this project did not design."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from optimize import fuse
from optimize.quantize import __main__ as command
from optimize.verify import GateError


class Tagger(nn.Module):
    """(batch, time) word ids to (batch, time, 32) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 64)
        self.gru = nn.GRU(64, 512, batch_first=True)
        self.out = nn.Linear(512, 32)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.out(self.gru(self.embed(ids))[0])
        return scores


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tagger") / "tagger.onnx"
    axes = {name: {0: "batch", 1: "time"} for name in ("ids", "scores")}
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.warns(), torch.inference_mode():
        torch.onnx.export(
            Tagger().eval(), (ids,), path, input_names=["ids"], output_names=["scores"], dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimize.quantize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_a_gru_from_elsewhere_comes_out_in_int8_with_its_proof(tagger: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 200, size=(48, 24))
    np.savez(tmp_path / "data.npz", ids=ids)
    out = tmp_path / "out.onnx"
    done = run(tagger, out, "--calibration", tmp_path / "data.npz", "--rounds", 20, "--profile", "invariant")
    assert done.returncode == 0, done.stderr
    for promised in ("of the weight bytes", "drift", "rms", "as fast"):
        assert promised in done.stdout
    model = onnx.load(out)
    onnx.checker.check_model(model)
    assert "GRU" not in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    together = session.run(None, {"ids": ids[:8]})[0]
    alone = np.concatenate([session.run(None, {"ids": row[None]})[0] for row in ids[:8]])
    np.testing.assert_array_equal(alone, together)


def fixed_batch(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def scorer(path: Path, opset: int = 17, weights: bool = True, reduced: bool = False) -> Path:
    """(batch, 4) to (batch, 4), or to (4,)."""
    product = helper.make_node("MatMul", ["x", "w"], ["h"]) if weights else helper.make_node("Relu", ["x"], ["h"])
    last = helper.make_node("ReduceMax", ["h"], ["y"], axes=[0], keepdims=0) if reduced else None
    graph = helper.make_graph(
        [product, last or helper.make_node("Identity", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4] if reduced else ["batch", 4])],
        [onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")] if weights else [],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_a_fusion_that_changes_the_answer_is_found(
    tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is held against the model that was given, not against what was made of it."""

    def wrong(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
        changed = ModelProto.FromString(model.SerializeToString())
        bias = next(tensor for tensor in changed.graph.initializer if list(tensor.dims) == [32])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        return changed, {}

    monkeypatch.setattr(fuse, "fuse", wrong)
    with pytest.raises(GateError, match="largest error by fusing alone"):
        command.main([str(tagger), str(tmp_path / "out.onnx"), "--rounds", "10"])
    assert not (tmp_path / "out.onnx").exists()


def test_mistakes_are_one_message_and_write_nothing(tagger: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.onnx", tmp_path / "data.npz"
    np.savez(data, words=np.zeros((32, 4), np.int64))
    few = tmp_path / "few.npz"
    np.savez(few, ids=np.zeros((3, 4), np.int64))
    garbage = tmp_path / "garbage.npz"
    garbage.write_bytes(b"no zip")
    cases = {
        "cannot be read": (tmp_path / "missing.onnx", out),
        "not a sound ONNX model": (garbage, out),
        "dynamic batch": (fixed_batch(tmp_path / "fixed.onnx"), out),
        r"the model's inputs are \['ids'\]": (tagger, out, "--calibration", data),
        "at least 16": (tagger, out, "--calibration", few),
        "written? with numpy.savez|write it with numpy.savez": (tagger, out, "--calibration", garbage),
        "expected AXIS=N": (tagger, out, "--size", "time"),
        "no input has such an axis; there is time": (tagger, out, "--size", "tmie=8"),
        "no such method; on request": (tagger, out, "--also", "nbits3"),
        "cannot be written": (tagger, tmp_path / "no" / "folder" / "out.onnx"),
        "opset 12; export": (scorer(tmp_path / "old.onnx", opset=12), out),
        "no operator with weights": (scorer(tmp_path / "bare.onnx", weights=False), out),
        r"output 'y' is \[4\]": (scorer(tmp_path / "summed.onnx", reduced=True), out),
    }
    for message, arguments in cases.items():
        done = run(*arguments)
        assert done.returncode == 2, (message, done.stderr)
        assert "Traceback" not in done.stderr
        assert re.search(message, " ".join(done.stderr.split())), done.stderr
        assert not out.exists()
