"""A user's own streaming recipe: a GRU that takes the noise out of a wave as it comes, and its offline twin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from optimize.data.dataset import Arrays, Dataset, Split
from optimize.offline import offline_spec
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, StateSpec, TensorSpec

CHUNK, STEPS = 4, 32


@dataclass(frozen=True)
class Config:
    hidden: int


class State(NamedTuple):
    hidden: Tensor  # (batch, width)


class SmoothGRU(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.gru = nn.GRU(1, config.hidden, batch_first=True)
        self.output = nn.Linear(config.hidden, 1)

    def initial_state(self, batch_size: int) -> State:
        return State(self.output.weight.new_zeros(batch_size, self.config.hidden))

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy (batch, steps, 1) to smooth (batch, steps)."""
        return self.forward_chunk(noisy, self.initial_state(noisy.shape[0]))[0]

    def forward_chunk(self, noisy: Tensor, state: State) -> tuple[Tensor, State]:
        remembered, hidden = self.gru(noisy, state.hidden.unsqueeze(0))
        return self.output(remembered).squeeze(2), State(hidden.squeeze(0))


def split(items: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    wave = np.sin(random.uniform(0, 2 * np.pi, (items, 1)) + 0.3 * np.arange(STEPS)).astype(np.float32)
    noisy = wave + random.normal(0, 0.3, wave.shape).astype(np.float32)
    return Split({"noisy": noisy[:, :, None]}, {"smooth": wave}, np.arange(items))


def load(data: Path | None) -> Dataset:
    return Dataset(split(512, 1), split(64, 2), split(128, 3), "generated waves, seeds 1 to 3", "none")


def squared_error(outputs: Arrays, items: Split) -> np.ndarray:  # type: ignore[type-arg]
    error = (outputs["smooth"].astype(float) - items.targets["smooth"].astype(float)) ** 2
    return np.stack([error.sum(axis=1), np.full(len(error), float(STEPS))], axis=1)


def loss(outputs: Tensors, targets: Tensors) -> Tensor:
    return nn.functional.mse_loss(outputs["smooth"], targets["smooth"])


STREAM = Variant(
    spec=ModelSpec(
        name="smooth",
        inputs=(TensorSpec("noisy", "float32", (CHUNK, 1)),),
        outputs=(TensorSpec("smooth", "float32", (CHUNK,)),),
        states=(StateSpec("hidden", "float32", (16,)),),
        max_batch=16,
    ),
    networks={"teacher": Network(SmoothGRU, Config(16), Training(epochs=8, batch_size=64, learning_rate=1e-2))},
    tolerances=Tolerances(metric_loss=0.5),
)
RECIPE = Recipe(
    name="smooth",
    load=load,
    loss=loss,
    metric=Metric("MSE", False, squared_error, lambda sums: float(sums[0] / sums[1])),
    variants={
        "stream": STREAM,
        "offline": replace(
            STREAM, spec=offline_spec(STREAM.spec, "smooth_offline", (STEPS,)), weights_of="stream", offline_of="stream"
        ),
    },
)
