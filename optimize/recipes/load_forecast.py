"""Electricity demand: 72 hours of demand, weather and calendar to the next 24 hours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data import electricity
from optimize.data.dataset import Arrays, Split
from optimize.data.electricity import CALENDAR_FEATURES, HISTORY_FEATURES, HISTORY_HOURS, HORIZON_HOURS
from optimize.models.lstm import LSTMForecaster, LSTMForecasterConfig
from optimize.recipes import Metric, Network, Recipe, Tensors, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

SPEC = ModelSpec(
    name="load_forecast",
    inputs=(
        TensorSpec("history", "float32", (HISTORY_HOURS, HISTORY_FEATURES), "demand MW, temperature C, calendar"),
        TensorSpec("calendar", "float32", (HORIZON_HOURS, CALENDAR_FEATURES), "calendar of the hours to forecast"),
    ),
    outputs=(TensorSpec("forecast", "float32", (HORIZON_HOURS,), "demand in MW"),),
)


def absolute_error(outputs: Arrays, split: Split) -> NDArray[np.float64]:
    """(items, 2): the sum of absolute errors in MW, and how many hours."""
    error = np.abs(outputs["forecast"].astype(float) - split.targets["forecast"].astype(float))
    return np.stack([error.sum(axis=1), np.full(len(error), error.shape[1], float)], axis=1)


MAE = Metric("MAE (MW)", False, absolute_error, lambda sums: float(sums[0] / sums[1]))


def same_hour(split: Split, hours_ago: int) -> float:
    """MAE in MW of answering with the demand of the same hour some days before (at most three)."""
    demand = split.inputs["history"][:, :, 0]
    start = HISTORY_HOURS - hours_ago
    return MAE({"forecast": demand[:, start : start + HORIZON_HOURS]}, split)


def same_hour_last_week(split: Split) -> float:
    """MAE in MW of last week's demand at the same hour: the windows of a split follow each other hour by hour."""
    demand = split.targets["forecast"]
    return MAE({"forecast": demand[:-168]}, split.take(slice(168, None)))


def scaled_error(outputs: Arrays, split: Split, train: Split) -> float:
    """MASE: the MAE over that of same hour yesterday in the training years (Hyndman and Koehler, 2006)."""
    return MAE(outputs, split) / same_hour(train, 24)


def peak_hour(outputs: Arrays) -> NDArray[np.generic]:
    """(items,): the hour of the highest demand, which is what a grid operator acts on."""
    hours: NDArray[np.intp] = np.argmax(outputs["forecast"], axis=1)
    return hours


def normalised_absolute_error(outputs: Tensors, targets: Tensors) -> Tensor:
    """The mean absolute error in units of 1000 MW."""
    return nn.functional.l1_loss(outputs["forecast"], targets["forecast"]) / 1000


def other_weather(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """The same days a little warmer or colder, in a grid a little larger or smaller."""
    history = inputs["history"].clone()
    batch = len(history)
    growth = 1 + 0.03 * torch.randn(batch, 1)
    history[:, :, 0] *= growth
    history[:, :, 1] += 0.7 * torch.randn(batch, 1) + 0.5 * torch.randn(batch, HISTORY_HOURS)
    return {**inputs, "history": history}, {"forecast": targets["forecast"] * growth}


def normalise(module: nn.Module, train: Split) -> None:
    assert isinstance(module, LSTMForecaster)
    module.normalise(torch.from_numpy(train.inputs["history"].astype(np.float32)))


def network(hidden: int, layers: int = 2, **training: float) -> Network:
    dropout = float(training.pop("dropout", 0.1))
    return Network(LSTMForecaster, LSTMForecasterConfig(hidden, layers, dropout=dropout), Training(**training))  # type: ignore[arg-type]


RECIPE = Recipe(
    name="load_forecast",
    load=electricity.load,
    loss=normalised_absolute_error,
    metric=MAE,
    augment=other_weather,
    prepare=normalise,
    folds=electricity.folds,
    also={"MASE": scaled_error},
    decision=peak_hour,
    baselines={
        "same hour yesterday": lambda split: same_hour(split, 24),
        "same hour last week": same_hour_last_week,
    },
    variants={
        "lstm": Variant(
            spec=SPEC,
            serving=ServingSpec(response_cache=True),
            networks={
                "teacher": network(416, dropout=0.4, epochs=12, learning_rate=7e-4, weight_decay=0.05, bfloat16=True),
                "student": network(256, dropout=0.0, epochs=10, soft_weight=0.9, bfloat16=True),
                "undistilled": network(256, dropout=0.0, epochs=10, bfloat16=True),  # the student's settings
                **{f"small_{hidden}": network(hidden, 1, dropout=0.2, epochs=8) for hidden in (32, 64, 128)},
            },
        )
    },
)
