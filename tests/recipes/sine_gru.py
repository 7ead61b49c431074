"""A user's own recipe, outside the package: a GRU that continues a noisy sine. It trains in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from optimize.data.dataset import Arrays, Dataset, Split
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

STEPS, AHEAD = 24, 4


@dataclass(frozen=True)
class Config:
    hidden: int


class SineGRU(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gru = nn.GRU(1, config.hidden, batch_first=True)
        self.output = nn.Linear(config.hidden, AHEAD)

    def forward(self, past: Tensor) -> Tensor:
        """past (batch, 24, 1) to the next values (batch, 4)."""
        remembered, _ = self.gru(past)
        future: Tensor = self.output(remembered[:, -1])
        return future


def split(items: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 2 * np.pi, (items, 1))
    wave = np.sin(phase + 0.3 * np.arange(STEPS + AHEAD)) + random.normal(0, 0.05, (items, STEPS + AHEAD))
    values = wave.astype(np.float32)
    return Split({"past": values[:, :STEPS, None]}, {"future": values[:, STEPS:]}, np.arange(items))


def load(data: Path | None) -> Dataset:
    return Dataset(split(512, 1), split(64, 2), split(128, 3), "generated sines, seeds 1 to 3", "none")


def squared_error(outputs: Arrays, items: Split) -> np.ndarray:  # type: ignore[type-arg]
    error = (outputs["future"].astype(float) - items.targets["future"].astype(float)) ** 2
    return np.stack([error.sum(axis=1), np.full(len(error), float(AHEAD))], axis=1)


def loss(outputs: Tensors, targets: Tensors) -> Tensor:
    return nn.functional.mse_loss(outputs["future"], targets["future"])


SPEC = ModelSpec(
    name="sine",
    inputs=(TensorSpec("past", "float32", (STEPS, 1)),),
    outputs=(TensorSpec("future", "float32", (AHEAD,)),),
    max_batch=16,
)
TRAINING = Training(epochs=30, batch_size=64, learning_rate=1e-2, average_decay=0.9)

RECIPE = Recipe(
    name="sine",
    load=load,
    loss=loss,
    metric=Metric("MSE", False, squared_error, lambda sums: float(sums[0] / sums[1])),
    variants={
        "gru": Variant(
            spec=SPEC,
            networks={
                "teacher": Network(SineGRU, Config(32), TRAINING),
                "student": Network(SineGRU, Config(16), TRAINING),
            },
            serving=ServingSpec(),
            tolerances=Tolerances(metric_loss=0.5),
        )
    },
)
