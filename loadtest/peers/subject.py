"""What is compared: one variant's network, its ONNX stages as the last export left them, and its test set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from optimize.checkpoint import load_checkpoint, path_of
from optimize.data.dataset import Split
from optimize.errors import UserError
from optimize.recipes import Recipe, Variant
from optimize.specs import ModelSpec


@dataclass(frozen=True)
class Subject:
    """network: the one that is published, in torch. folder: of its artefacts. published: name of the stage."""

    recipe: Recipe
    variant: Variant
    network: nn.Module
    folder: Path
    published: str
    test: Split
    data: str

    @classmethod
    def load(cls, recipe: Recipe, name: str | None, artifacts: Path, checkpoints: Path, data: Path | None) -> Subject:
        """Raises UserError where there is no export or no checkpoint."""
        name, variant = recipe.variant(name)
        folder, network = artifacts / recipe.name / name, variant.published
        report = folder / "report.json"
        published = (json.loads(report.read_text()) if report.is_file() else {}).get("published")
        if not published:
            raise UserError(f"'{report}' tells of no published model; run python -m optimize.export --quantize first")
        path = path_of(checkpoints, recipe.name, *recipe.origin(name, network))
        owner, its = recipe.origin(name, network)
        module, _ = load_checkpoint(path, recipe.variants[owner].networks[its])
        dataset = recipe.load(data)
        return cls(recipe, variant, module, folder, published["stage"], dataset.test, dataset.source)

    @property
    def spec(self) -> ModelSpec:
        return self.variant.spec

    @property
    def fp32(self) -> Path:
        """The graph as exported."""
        return self.folder / f"{self.variant.published}_onnx_fp32.onnx"

    def stages(self) -> dict[str, Path]:
        """All ONNX stages by name, fp32 first. Raises UserError when one that is needed is missing."""
        first = f"{self.variant.published}_onnx_"
        names = [first + kind for kind in ("fp32", "fused", "int8", "int8_throughput", "int8_invariant", "fp16")]
        found = {name: self.folder / f"{name}.onnx" for name in names if (self.folder / f"{name}.onnx").is_file()}
        for name in (first + "fp32", first + "fused", self.published):
            if name not in found:
                raise UserError(f"'{self.folder / name}.onnx' does not exist; run python -m optimize.export again")
        return found
