"""What int8 gains for LSTM, GRU and a Transformer layer, from narrow to wide: the table of docs/quantisation.md.

    python -m optimize.quantize.table docs/quantisation.md           # some minutes, one thread

Each cell is one layer as PyTorch exports it, timed beside its fp32 self, interleaved, in both profiles; input as wide
as the layer, values normal. Methods are those that a plan would choose between; the fastest of each is shown.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from optimize import command, fuse, onnx_export
from optimize.benchmark import Run, environment, interleaved, session
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.quantize import METHODS, calibrate, operators, quantize
from optimize.quantize.method import FP32, PROFILES
from optimize.quantize.plan import Choice, Choices
from optimize.specs import ModelSpec, TensorSpec

WIDTHS, BATCHES, STEPS = (128, 256, 512, 1024), (1, 4, 16, 64), (1, 8, 72)
SECONDS, ROUNDS = 0.5, (7, 100)  # for each candidate of a cell: its share of time, least and most calls


class Recurrent(nn.Module):
    """(batch, time, width) to (batch, time, width)."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.rnn = kind(inputs, width, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


class TransformerLayer(nn.Module):
    """Pre-norm self-attention with heads of 64 and a feed-forward net four times as wide: (batch, time, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = self.qkv(self.norms[0](x)).reshape(batch, time, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        weights = torch.softmax(query @ key.transpose(-1, -2) / 8, dim=-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(batch, time, width))
        y: Tensor = x + self.down(torch.relu(self.up(self.norms[1](x))))
        return y


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "LSTM": lambda width: Recurrent(nn.LSTM, width, width),
    "GRU": lambda width: Recurrent(nn.GRU, width, width),
    "Transformer layer": TransformerLayer,
}


@dataclass(frozen=True)
class Cell:
    """One measurement. p50s in ms; sizes in bytes; rms of the difference from fp32 as a share of the spread."""

    layer: str
    width: int
    steps: int
    batch: int
    fp32_ms: float
    ms: dict[str, float]  # by profile
    method: dict[str, str]
    rms: dict[str, float]
    smaller: dict[str, float]
    calls: int


def cells(name: str, module: nn.Module, inputs: int, steps: int, batches: Sequence[int]) -> list[Cell]:
    """Measure one layer at several batches; the time axis is fixed, as in a streaming model."""
    spec = ModelSpec(
        name="layer",
        inputs=(TensorSpec("x", "float32", (steps, inputs), ""),),
        outputs=(TensorSpec("y", "float32", (steps, _width(module)), ""),),
    )
    model, _ = fuse.fuse(onnx_export.export(module, spec))
    random = np.random.default_rng(0)
    feed: Arrays = {"x": random.normal(size=(max(batches), steps, inputs)).astype(np.float32)}
    graphs = {FP32: model}
    for method, choices in _trials(operators(model)).items():
        graphs[method] = quantize(model, choices, calibrate(model, [feed], choices))
    runs = {method: session(graph.SerializeToString(deterministic=True)) for method, graph in graphs.items()}
    found = []
    for batch in batches:
        some = {key: values[:batch] for key, values in feed.items()}
        times = _timed({method: partial(run.run, None) for method, run in runs.items()}, some)
        exact = runs[FP32].run(None, some)[0]
        best: dict[str, str] = {}
        for profile in PROFILES:
            allowed = [key for key in times if key != FP32 and (profile == "throughput" or _is_invariant(key))]
            best[profile] = min(allowed, key=lambda key: times[key][0])
        error = {method: runs[method].run(None, some)[0] - exact for method in set(best.values())}
        found.append(
            Cell(
                name,
                _width(module),
                steps,
                batch,
                times[FP32][0],
                {profile: times[method][0] for profile, method in best.items()},
                best,
                {profile: float(np.sqrt(np.mean(error[m] ** 2)) / exact.std()) for profile, m in best.items()},
                {profile: model.ByteSize() / graphs[method].ByteSize() for profile, method in best.items()},
                times[FP32][1],
            )
        )
    return found


def _trials(nodes: dict[str, str]) -> dict[str, Choices]:
    """All operators by the same method, for every method that all of them have."""
    names = {kind: {m.name for m in METHODS if m.operator == kind and not m.on_request} for kind in nodes.values()}
    common = set.intersection(*names.values())
    return {method: {n: Choice(kind, method, "") for n, kind in nodes.items()} for method in sorted(common)}


def _is_invariant(method: str) -> bool:
    return all(known.invariant for known in METHODS if known.name == method)


def _timed(runs: dict[str, Run], feed: Arrays) -> dict[str, tuple[float, int]]:
    """p50 in ms and the number of calls of each."""
    begin = time.perf_counter()
    for run in runs.values():
        run(feed)
    once = (time.perf_counter() - begin) / len(runs)
    rounds = int(np.clip(SECONDS / once / 2, *ROUNDS))
    times = interleaved(runs, [feed], rounds)
    return {name: (float(np.median(values)) * 1e3, rounds) for name, values in times.items()}


def _width(module: nn.Module) -> int:
    return module.rnn.hidden_size if isinstance(module, Recurrent) else module.out.out_features  # type: ignore[union-attr, return-value]


def markdown(found: list[Cell], headline: list[Cell]) -> str:
    """The page."""
    machine = environment(threads=1)
    isa = ", ".join(flag for flag in machine["isa"] if "vnni" in flag) or "no VNNI"
    lines = [
        "# What int8 gains",
        "",
        f"{machine['cpu']} ({isa}), one thread, ONNX Runtime {machine['versions']['onnxruntime-gpu']}, p50 in ms,",
        "interleaved with fp32. *Invariant*: an answer is the same to the bit in any company; *throughput*: the",
        "fastest of all methods. Where int8 is slower (below 1x) a plan keeps fp32. Single cells vary by some percent.",
        "Made by `python -m optimize.quantize.table`.",
        "",
        "## GRU, two layers, hidden 512, input 80, 72 steps",
        "",
        *_rows(headline),
    ]
    for layer in LAYERS:
        lines += ["", f"## {layer}", "", *_rows([cell for cell in found if cell.layer == layer])]
    return "\n".join(lines) + "\n"


def _rows(found: list[Cell]) -> list[str]:
    lines = [
        "| width | steps | batch | fp32 | throughput | | invariant | | error, rms | smaller |",
        "|---:|---:|---:|---:|---:|:---|---:|:---|---:|---:|",
    ]
    for cell in found:
        columns = [f"{cell.width}", f"{cell.steps}", f"{cell.batch}", f"{cell.fp32_ms:.3g}"]
        for profile in reversed(PROFILES):
            ratio = cell.fp32_ms / cell.ms[profile]
            faster = f"**{ratio:.2f}x**" if ratio > 1 else f"{ratio:.2f}x"
            columns += [f"{cell.ms[profile]:.3g}", f"{faster} {cell.method[profile]}"]
        columns += [f"{cell.rms['invariant']:.2%}", f"{cell.smaller['invariant']:.2f}x"]
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.bare_parser(__doc__)
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="N", help="multiples of 64")
    options = parser.parse_args(arguments)
    if any(width < 64 or width % 64 for width in options.widths):
        raise UserError(f"--widths {options.widths}: expected multiples of 64")
    torch.manual_seed(0)
    with command.progress() as progress:
        headline = cells("GRU", Recurrent(nn.GRU, 80, 512, 2).eval(), 80, 72, BATCHES)
        found = _all(options.widths, progress)
    try:
        options.page.write_text(markdown(found, headline))
    except OSError as error:
        raise UserError(f"'{options.page}' cannot be written: {error.strerror}") from None


def _all(widths: Sequence[int], progress: Progress) -> list[Cell]:
    found = []
    places = list(itertools.product(LAYERS, widths, STEPS))
    bar = progress.add_task("layers", total=len(places))
    for layer, width, steps in places:
        found += cells(layer, LAYERS[layer](width).eval(), width, steps, BATCHES)
        progress.advance(bar)
    return found


if __name__ == "__main__":
    command.run(main)
