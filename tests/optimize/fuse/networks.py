"""Networks as people write them, small and seeded, exported as they come."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, TIME = 32, 4, 8


class Encoder(nn.Module):
    """torch's own encoder layer; its export freezes the number of tokens."""

    def __init__(self, activation: str = "gelu") -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True, activation=activation)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        answer: Tensor = self.layer(x, src_key_padding_mask=pad)
        return answer


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.dropout(self.down(self.dropout(functional.silu(self.up(x)))))
        return answer


class Attention(nn.Module):
    """Three projections, heads, and one of the usual ways to say where a token stands."""

    cos: Tensor
    sin: Tensor
    table: Tensor

    def __init__(self, positions: str) -> None:
        super().__init__()
        self.positions, self.size = positions, WIDTH // HEADS
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.position = nn.Linear(WIDTH, WIDTH, bias=False)
        self.u, self.v = nn.Parameter(torch.randn(HEADS, self.size)), nn.Parameter(torch.randn(HEADS, self.size))
        angles = torch.outer(torch.arange(16.0), 1 / (10000 ** (torch.arange(0, self.size, 2) / self.size)))
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin())
        self.register_buffer("table", torch.randn(31, WIDTH))

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        batch, time, _ = x.shape
        query, key, value = (
            each(x).view(batch, time, HEADS, self.size).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        if self.positions == "rotary":
            query, key = self._turned(query, time), self._turned(key, time)
        scores = (query + self.u[:, None] if self.positions == "relative" else query) @ key.transpose(-2, -1)
        if self.positions == "relative":
            places = self.position(self.table[16 - time : 15 + time]).view(1, -1, HEADS, self.size).transpose(1, 2)
            shifted = functional.pad((query + self.v[:, None]) @ places.transpose(-2, -1), (1, 0))
            shifted = shifted.view(batch, HEADS, 2 * time, time)[:, :, 1:].reshape(batch, HEADS, time, 2 * time - 1)
            scores = scores + shifted[..., :time]
        scores = (scores / math.sqrt(self.size)).masked_fill(pad[:, None, None, :], -1e4)
        answer: Tensor = self.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, time, WIDTH))
        return answer

    def _turned(self, x: Tensor, time: int) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos[:time] + torch.cat([-second, first], -1) * self.sin[:time]


class Convolution(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.into, self.out = nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm == "batch" else nn.LayerNorm(WIDTH)
        if isinstance(self.norm, nn.BatchNorm1d):
            nn.init.normal_(self.norm.weight)
            self.norm.running_var = torch.rand(WIDTH) + 0.5

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        x = functional.glu(self.into(x.transpose(1, 2)), 1).masked_fill(pad[:, None], 0.0)
        x = self.depthwise(x)
        x = self.norm(x) if isinstance(self.norm, nn.BatchNorm1d) else self.norm(x.transpose(1, 2)).transpose(1, 2)
        answer: Tensor = self.out(functional.silu(x)).transpose(1, 2)
        return answer


class Conformer(nn.Module):
    """One block: half-step feed-forward, attention, convolution, half-step feed-forward."""

    def __init__(self, positions: str, norm: str) -> None:
        super().__init__()
        self.first, self.second, self.attention = FeedForward(), FeedForward(), Attention(positions)
        self.convolution, self.norms = Convolution(norm), nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        x = x + 0.5 * self.first(self.norms[0](x))
        x = x + self.attention(self.norms[1](x), pad)
        x = x + self.convolution(self.norms[2](x), pad)
        x = x + 0.5 * self.second(self.norms[3](x))
        answer: Tensor = self.norms[4](x)
        return answer


class Recurrent(nn.Module):
    """Two layers that begin at zero, and a head."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.output = kind(WIDTH, WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.output(self.rnn(x)[0])
        return answer


NETWORKS: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {  # with padding; with a dynamic time axis
    "encoder": (Encoder, False, False),
    "encoder_relu": (lambda: Encoder("relu"), False, False),
    "encoder_padded": (Encoder, True, False),
    "conformer_absolute": (lambda: Conformer("absolute", "batch"), True, True),
    "conformer_rotary": (lambda: Conformer("rotary", "layer"), True, True),
    "conformer_relative": (lambda: Conformer("relative", "batch"), True, True),
    "lstm": (lambda: Recurrent(nn.LSTM), False, True),
    "gru": (lambda: Recurrent(nn.GRU), False, True),
}


def export(name: str, opset: int = 17) -> ModelProto:
    """One of ``NETWORKS``: x (batch, time, 32) and perhaps pad (batch, time) to y (batch, time, ...)."""
    build, padded, dynamic = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval()
    x, pad = torch.randn(2, TIME, WIDTH), torch.zeros(2, TIME, dtype=torch.bool)
    names = ["x", "pad"] if padded else ["x"]
    axes = {each: {0: "batch", 1: "time"} if dynamic else {0: "batch"} for each in (*names, "y")}
    with tempfile.TemporaryDirectory() as folder, _plain_attention(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        arguments = (x, pad) if padded else (x,)
        torch.onnx.export(
            module,
            arguments,
            Path(folder) / "model.onnx",
            input_names=names,
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
        return onnx.load(Path(folder) / "model.onnx")


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without torch's fast path, which exports as one operator that nobody knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
