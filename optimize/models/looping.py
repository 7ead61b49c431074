"""Networks that answer by a loop, each step of which needs the one before: a decoder that writes a sequence.

    fixed, carried = network.begin(*inputs)                                # once
    carried, goes_on = network.repeat(position, carried, fixed)            # most_steps times, or until nothing goes on
    outputs = network.finish(carried)                                      # once

``forward`` is that loop, in training, in tests and as a reference. ``optimize.onnx_loop`` makes one graph of the same
three functions, with an ONNX Loop around the second: a request goes in and a finished sequence comes out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Any  # a tensor, or a tuple of Tensors: a NamedTuple of them, and of such NamedTuples


class Looping(nn.Module):
    """A network whose ``forward`` is a loop. All that changes is in ``carried``, whose shapes never do."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """How often the loop runs at most."""

    @abstractmethod
    def begin(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        """What every step looks at, and what the first one is given."""

    @abstractmethod
    def repeat(self, position: Tensor, carried: Tensors, fixed: Tensors) -> tuple[Tensors, Tensor]:
        """One step; position (): how many came before. Returns what the next is given, and whether there is one ()."""

    @abstractmethod
    def finish(self, carried: Tensors) -> tuple[Tensor, ...]:
        """The outputs."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for a batch of requests."""
        fixed, carried = self.begin(*inputs)
        for position in range(self.most_steps):
            carried, goes_on = self.repeat(torch.tensor(position), carried, fixed)
            if not goes_on:
                break
        return self.finish(carried)


def flat(tensors: Tensors) -> list[Tensor]:
    """The tensors of a nested tuple, in order."""
    if isinstance(tensors, Tensor):
        return [tensors]
    return [tensor for part in tensors for tensor in flat(part)]


def shaped(like: Tensors, tensors: Iterator[Tensor]) -> Tensors:
    """The inverse of ``flat``: the next tensors as a nested tuple of the same kind as ``like``."""
    if isinstance(like, Tensor):
        return next(tensors)
    parts = [shaped(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
