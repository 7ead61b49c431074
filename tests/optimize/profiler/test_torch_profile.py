"""What a torch network's operators have to do, counted by hand, and the modules that they belong to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optimize.profiler.machine import Level, Machine
from optimize.profiler.torch_profile import profile_torch
from optimize.specs import ModelSpec, TensorSpec
from tests.optimize.quantize.graphs import floats

MACHINE = Machine((Level("L2", 1 << 20, 1.0),), 1.0, 2.0)
TIME, WIDTH, HIDDEN = 6, 4, 8


class Network(nn.Module):
    """A convolution over time, an LSTM, and a product of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.memory = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        remembered, _ = self.memory(self.front(x.transpose(1, 2)).transpose(1, 2))
        answer: Tensor = self.output(torch.relu(remembered[:, -1]))
        return answer


SPEC = ModelSpec("tiny", (TensorSpec("x", "float32", (TIME, WIDTH)),), (TensorSpec("y", "float32", (2,)),), max_batch=4)


@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_those_of_the_modules(batch: int) -> None:
    torch.manual_seed(1)
    module = Network().eval()
    found = profile_torch("tiny", module, SPEC, [{"x": floats(batch, TIME, WIDTH)}], MACHINE, 4)
    macs = {part.layer: part.macs for part in found.by_layer()}
    assert macs["front"] == batch * TIME * WIDTH * WIDTH * 3
    assert macs["memory"] == batch * TIME * 4 * HIDDEN * (WIDTH + HIDDEN)
    assert macs["output"] == batch * HIDDEN * 2
    assert macs["(top)"] == 0
    kinds = {(part.layer, part.operator) for part in found.parts}
    assert {("front", "aten::conv1d"), ("memory", "aten::lstm"), ("(top)", "aten::relu")} <= kinds
    assert sum(part.ms for part in found.parts) + found.outside_ms == pytest.approx(found.ms)
    assert (found.runtime, found.batch) == ("torch", batch)


def test_a_profile_leaves_the_network_as_it_was() -> None:
    module = Network().eval()
    profile_torch("tiny", module, SPEC, [{"x": floats(1, TIME, WIDTH)}], MACHINE, 4)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())
