"""Trained weights on disk: ``<root>/<recipe>/<variant>/<network>.safetensors`` and a JSON sidecar that explains them.

Floating-point parameters are stored in half precision and buffers (normalisation) as they are; a network's metrics
are measured after that rounding, so they are the metrics of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from optimize.errors import UserError
from optimize.recipes import Network

# weight_ci and Wcf (from the cell to a gate), weight_pi, w_peephole, w_o_diag (TensorFlow)
PEEPHOLE = re.compile(r"peep|(^|\.)w(eight)?_?[cp]_?[ifo](_l\d+)?$|w_[ifo]_diag", re.IGNORECASE)


class CheckpointError(UserError):
    """Weights that are missing, damaged or of another shape than the network."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of a checkpoint.

    config, training: of the network. data: source, sha256 and split. metrics: name to value, on validation and
    test. teacher_sha256: of the teacher's weights for a distilled network, else None.
    """

    recipe: str
    variant: str
    network: str
    parameters: int
    config: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    sha256: str = ""
    teacher_sha256: str | None = None


def path_of(root: Path, recipe: str, variant: str, network: str) -> Path:
    return root / recipe / variant / f"{network}.safetensors"


def round_to_half(module: nn.Module) -> None:
    """Round parameters in place to what half precision can hold."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().to(parameter.dtype))


def save_checkpoint(path: Path, module: nn.Module, sidecar: Sidecar) -> Sidecar:
    """Write weights and sidecar, each complete or not at all; returns the sidecar with the weights' hash."""
    parameters = {name for name, _ in module.named_parameters()}
    tensors = {
        name: (tensor.half() if name in parameters else tensor).contiguous()
        for name, tensor in module.state_dict().items()
    }
    weights = save(tensors)
    described = Sidecar(**{**asdict(sidecar), "sha256": hashlib.sha256(weights).hexdigest()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, weights)
        replace_file(path.with_suffix(".json"), (json.dumps(asdict(described), indent=2) + "\n").encode())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{path}' cannot be written: {error.strerror}; choose --checkpoints"
        ) from None
    return described


def load_checkpoint(path: Path, network: Network) -> tuple[nn.Module, Sidecar]:
    """The network with its trained weights in float32, ready for inference.

    Raises CheckpointError: missing, truncated or damaged, made for other shapes, not what the sidecar describes, or
    with peephole weights that the network has no place for.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; train it with python -m optimize.train")
    sidecar = _read_sidecar(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != sidecar.sha256:
        raise CheckpointError(
            f"checkpoint '{path}' is not the file that '{path.with_suffix('.json').name}' describes (its SHA-256 "
            "differs): it is truncated, damaged or replaced; restore both files or train again"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint '{path}' is no safetensors file ({error}); train it again") from None
    module = network()
    expected = module.state_dict()
    if peepholes := sorted(name for name in tensors.keys() - expected.keys() if PEEPHOLE.search(name)):
        raise CheckpointError(
            f"checkpoint '{path}' has peephole weights ({', '.join(peepholes[:3])}): gates that look at the cell "
            "(Gers & Schmidhuber, 2000) cannot be computed by torch.nn.LSTM nor exported from it, and without them the "
            "weights mean something else; build the network of the module that trained them as the recipe's teacher "
            "and distil a student with torch.nn.LSTM (python -m optimize.distill), or train without peepholes"
        )
    wrong = [f"{name}: missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name}: unexpected" for name in tensors.keys() - expected.keys()]
    wrong += [
        f"{name}: expected {tuple(expected[name].shape)}, found {tuple(tensors[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if expected[name].shape != tensors[name].shape
    ]
    if wrong:
        some = "; ".join(sorted(wrong)[:3])
        raise CheckpointError(f"checkpoint '{path}' does not fit {network.config}: {some}; {len(wrong)} tensors differ")
    module.load_state_dict(tensors)  # copies into float32 parameters
    return module.eval(), sidecar


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _read_sidecar(path: Path) -> Sidecar:
    file = path.with_suffix(".json")
    try:
        return Sidecar(**json.loads(file.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint '{path}' has no sidecar '{file.name}'; restore it or train again") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"sidecar '{file}' cannot be read ({error}); restore it or train again") from None
