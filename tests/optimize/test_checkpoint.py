from pathlib import Path

import pytest
import torch

from optimize import recipes
from optimize.checkpoint import CheckpointError, Sidecar, load_checkpoint, round_to_half, save_checkpoint
from optimize.recipes import Network

NETWORK = recipes.load("load_forecast").variants["lstm"].networks["small_32"]
SIDECAR = Sidecar("load_forecast", "lstm", "small_32", 1, {}, {}, {}, {})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = NETWORK()
    round_to_half(module)
    save_checkpoint(tmp_path / "w.safetensors", module, SIDECAR)
    return tmp_path / "w.safetensors"


def test_a_rounded_network_survives_exactly(saved: Path) -> None:
    torch.manual_seed(0)
    module = NETWORK()
    module.register_buffer("history_mean", torch.zeros(16))
    round_to_half(module)
    loaded, sidecar = load_checkpoint(saved, NETWORK)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, module.state_dict()[name])
    assert sidecar.network == "small_32"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist.*optimize\.train"):
        load_checkpoint(tmp_path / "none.safetensors", NETWORK)


def test_truncated(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated, damaged or replaced"):
        load_checkpoint(saved, NETWORK)


def test_another_shape(saved: Path) -> None:
    other: Network = recipes.load("load_forecast").variants["lstm"].networks["small_64"]
    with pytest.raises(CheckpointError, match=r"does not fit .*hidden=64.*expected .* found"):
        load_checkpoint(saved, other)


@pytest.mark.parametrize(
    "name",
    ["lstm.weight_ci", "lstm.weight_pi_l0", "lstm.w_peephole", "cell.Wcf", "rnn.w_o_diag", "peephole_weight.0"],
)
def test_peephole_weights_are_refused_by_name(name: str, tmp_path: Path) -> None:
    module = NETWORK()
    scope, _, last = name.rpartition(".")
    if scope != "lstm":
        module.add_module(scope, torch.nn.Module())
    module.get_submodule(scope).register_parameter(last, torch.nn.Parameter(torch.zeros(32)))
    save_checkpoint(tmp_path / "w.safetensors", module, SIDECAR)
    with pytest.raises(CheckpointError, match=rf"peephole weights \({name}\).*torch.nn.LSTM.*distil a student"):
        load_checkpoint(tmp_path / "w.safetensors", NETWORK)


def test_a_network_may_have_peepholes_of_its_own(tmp_path: Path) -> None:
    class Peeping(torch.nn.Module):
        def __init__(self, config: int) -> None:
            super().__init__()
            self.weight_ci = torch.nn.Parameter(torch.ones(config))

    save_checkpoint(tmp_path / "w.safetensors", Peeping(3), SIDECAR)
    module, _ = load_checkpoint(tmp_path / "w.safetensors", Network(Peeping, 3))
    assert module.state_dict()["weight_ci"].tolist() == [1, 1, 1]


def test_a_sidecar_that_is_missing_or_no_json(saved: Path) -> None:
    saved.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(saved, NETWORK)
    saved.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="no sidecar"):
        load_checkpoint(saved, NETWORK)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "w.safetensors", NETWORK(), SIDECAR)
