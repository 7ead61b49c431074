"""Hugging Face encoders, tiny and untrained: in torch, exported, fused, in int8; and folders that hold none."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimize import fuse, onnx_export
from optimize.benchmark import runner, session
from optimize.errors import UserError
from optimize.models.pretrained import PretrainedEncoder
from optimize.quantize import operators, quantize
from optimize.quantize.plan import Choice
from optimize.specs import ModelSpec, TensorSpec
from tests import tiny_bert

SPEC = ModelSpec(
    "reader",
    inputs=(TensorSpec("tokens", "int64", ("time",)), TensorSpec("lengths", "int32", (1,))),
    outputs=(TensorSpec("first", "float32", (32,)),),
    buckets={"time": (8, 16)},
)


class Reader(nn.Module):
    """The first subword's feature."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = PretrainedEncoder(folder, longest=16)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        features: Tensor = self.encoder(tokens, torch.arange(tokens.shape[1]) < lengths)
        return features[:, 0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write(tmp_path_factory.mktemp("bert"))


def requests(batch: int, time: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(batch)
    lengths = random.integers(1, time, (batch, 1), endpoint=True).astype(np.int32)
    return {"tokens": random.integers(4, 300, (batch, time)), "lengths": lengths}


@pytest.mark.parametrize("config", ["BertConfig", "DistilBertConfig", "RobertaConfig", "ElectraConfig"])
def test_onnx_answers_as_torch_for_any_batch_and_length(config: str, tmp_path: Path) -> None:
    module = Reader(tiny_bert.write(tmp_path, config)).eval()
    fused, counts = fuse.fuse(onnx_export.export(module, SPEC))
    assert counts["attentions fused"] == 2
    run = runner(session(fused.SerializeToString()))
    for batch, time in ((1, 8), (3, 16), (5, 3)):
        request = requests(batch, time)
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(array) for array in request.values())).numpy()
        np.testing.assert_allclose(run(request)["first"].astype(float), expected, atol=2e-6)


def test_in_int8_every_product_is_and_company_does_not_matter(bert: Path) -> None:
    fused, _ = fuse.fuse(onnx_export.export(Reader(bert), SPEC))
    products = {name: kind for name, kind in operators(fused).items() if kind != "Gather"}
    choices = {name: Choice(kind, "per_row", "asked for") for name, kind in products.items()}
    int8 = quantize(fused, choices, {})
    assert not {"MatMul", "Gemm", "Attention"} & kinds(int8)
    run, exact = (runner(session(model.SerializeToString())) for model in (int8, fused))
    request = requests(6, 16)
    together = run(request)["first"]
    alone = [run({name: array[row : row + 1] for name, array in request.items()})["first"] for row in range(6)]
    assert np.array_equal(together, np.concatenate(alone))
    np.testing.assert_allclose(together.astype(float), exact(request)["first"].astype(float), atol=0.1)
    assert not np.array_equal(together, exact(request)["first"])


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def test_what_is_not_meant_or_no_subword_harms_nobody(bert: Path) -> None:
    encoder = PretrainedEncoder(bert).eval()
    tokens = torch.tensor([[2, 50, 60, 3], [2, 70, 3, 0]])
    meant = tokens != 0
    with torch.inference_mode():
        expected = encoder(tokens, meant)
        padded = encoder(torch.tensor([[2, 50, 60, 3, 9], [2, 70, 3, -7, 10**9]]), nn.functional.pad(meant, (0, 1)))
        odd = encoder(torch.tensor([[2, 50, 60, 3], [2, 10**9, -1, 0]]), meant)
    torch.testing.assert_close(padded[:, :4][meant], expected[meant], atol=1e-6, rtol=0)
    torch.testing.assert_close(odd[0], expected[0], atol=1e-6, rtol=0)
    assert torch.isfinite(odd).all()


def test_a_share_is_the_lowest_layers(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path, num_hidden_layers=4)
    whole, part = (PretrainedEncoder(folder, share).state_dict() for share in (1.0, 0.5))
    assert all(torch.equal(whole[name], tensor) for name, tensor in part.items())
    left_out = {name.split(".")[3] for name in whole.keys() - part.keys()}
    assert left_out == {"2", "3"}


def test_a_fine_tuned_classifier_gives_its_encoder(tmp_path: Path) -> None:
    encoder = PretrainedEncoder(tiny_bert.write(tmp_path, head=True))
    saved = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("classifier") for name in saved)
    own = {name.replace("encoder.", "bert.", 1): tensor for name, tensor in encoder.state_dict().items()}
    assert all(torch.equal(saved[name], tensor) for name, tensor in own.items())


def test_nothing_is_fetched_and_nothing_is_said(
    bert: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    PretrainedEncoder(bert, 0.5)
    assert capfd.readouterr() == ("", "")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def of_another_kind(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"model_type": "no_such"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no weights"),
        (without_a_tensor, r"its weights lack 1 tensors .* encoder.layer.1.output.dense.weight"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "cannot be loaded by transformers"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded by transformers"),
        (of_another_kind, "cannot be loaded by transformers"),
    ],
    ids=["no config", "no weights", "a tensor less", "damaged weights", "damaged config", "unknown kind"],
)
def test_a_folder_that_lacks_something(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(tiny_bert.write(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        PretrainedEncoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_encoder(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no folder; .*\(nothing is downloaded\)"):
        PretrainedEncoder(Path("bert-base-uncased"))
    with pytest.raises(UserError, match="fewer than 81 positions"):
        PretrainedEncoder(bert, longest=tiny_bert.POSITIONS + 1)
    decoder = tiny_bert.write(tmp_path / "gpt", "GPT2Config", bos_token_id=2, eos_token_id=3)
    with pytest.raises(UserError, match="its first feature does not know of the last subword"):
        PretrainedEncoder(decoder)
    seeing = tiny_bert.write(tmp_path / "vit", "ViTConfig", image_size=32, vocab_size=None)
    with pytest.raises(UserError, match="no text encoder"):
        PretrainedEncoder(seeing)


def test_without_transformers(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers; pip install -e '.\[huggingface\]'"):
        PretrainedEncoder(bert)
