"""A stacked LSTM that reads the past and a small head that answers for every hour to come.

The head sees, for each target hour, what the LSTM remembers, the calendar of that hour, and the demand at the same
hour of the days before; it answers with the difference from the same hour yesterday. Normalisation is part of the
network, so a request carries megawatts and degrees and no client can normalise wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimize.data.electricity import CALENDAR_FEATURES, HISTORY_FEATURES, HISTORY_HOURS, HORIZON_HOURS
from optimize.errors import UserError


@dataclass(frozen=True)
class LSTMForecasterConfig:
    """hidden: width of each LSTM layer. head: width of the head, a multiple of 16. dropout: in training only."""

    hidden: int
    layers: int = 2
    head: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1 or self.head < 1 or self.head % 16:
            raise UserError(f"{self}: hidden and layers must be positive and head a positive multiple of 16")


class LSTMForecaster(nn.Module):
    """72 hours in, 24 hours out, in megawatts. ``normalise`` sets the statistics from training data, once."""

    history_mean: Tensor
    history_scale: Tensor

    def __init__(self, config: LSTMForecasterConfig) -> None:
        super().__init__()
        self.config = config
        dropout = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(HISTORY_FEATURES, config.hidden, config.layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.memory = nn.Linear(config.hidden, config.head)
        self.hour = nn.Linear(CALENDAR_FEATURES + HISTORY_HOURS // HORIZON_HOURS, config.head)
        self.position = nn.Parameter(torch.zeros(HORIZON_HOURS, config.head))
        self.mix = nn.Linear(config.head, config.head)
        self.output = nn.Linear(config.head, 1)
        self.register_buffer("history_mean", torch.zeros(HISTORY_FEATURES))
        self.register_buffer("history_scale", torch.ones(HISTORY_FEATURES))

    def normalise(self, history: Tensor) -> None:
        """Take mean and scale of demand and temperature from (items, 72, 16); calendar features stay as they are."""
        observed = history[..., :2].reshape(-1, 2)
        self.history_mean[:2] = observed.mean(0)
        self.history_scale[:2] = observed.std(0)

    def forward(self, history: Tensor, calendar: Tensor) -> Tensor:
        """history (batch, 72, 16) and calendar (batch, 24, 14) to the forecast (batch, 24) in MW."""
        normal = (history - self.history_mean) / self.history_scale
        remembered, _ = self.lstm(normal)
        memory = self.memory(self.dropout(remembered[:, -1]))
        days = normal[:, :, 0].reshape(-1, HISTORY_HOURS // HORIZON_HOURS, HORIZON_HOURS).transpose(1, 2)
        hours = self.hour(torch.cat([calendar, days], dim=-1)) + self.position
        mixed = nn.functional.relu(self.mix(nn.functional.relu(hours + memory.unsqueeze(1))))
        change = self.output(mixed).squeeze(-1)
        forecast: Tensor = history[:, -HORIZON_HOURS:, 0] + change * self.history_scale[0]
        return forecast
