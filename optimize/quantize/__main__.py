"""Quantise any ONNX model, and prove what came of it.

    python -m optimize.quantize IN.onnx OUT.onnx --calibration data.npz

The model needs a dynamic batch as the first axis of every input and output, and opset 13 or later. Every operator with
trained weights is tried in every way there is for it and measured in the whole model; what is not faster stays in fp32.
The proof is printed: how much really runs in low precision, speed and answers beside the model as it was given, and
whether an answer depends on who shares its batch. OUT.onnx is written only if every gate passes.

data.npz has one array for each input, items on its first axis; without it random requests stand in, and methods that
need calibrated ranges are not used.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from optimize import command, fuse, verify
from optimize.benchmark import Candidate, Measurement, environment, measure, onnx_candidate
from optimize.checkpoint import replace_file
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.graph_rules import RECURRENT
from optimize.onnx_export import save
from optimize.onnx_interface import OnnxInterface, all_nodes, read_interface
from optimize.quantize import METHODS, calibrate, guards, needs_calibration, operators, plan, quantize
from optimize.quantize.coverage import Coverage, coverage, planned_share
from optimize.quantize.coverage import operators as count_operators
from optimize.quantize.method import FP32, PROFILES, Profile
from optimize.quantize.plan import Choices
from optimize.quantize.shapes import REFUSALS
from optimize.quantize.tune import calibration_feeds, tune
from optimize.recipes import Metric
from optimize.verify import BatchInvariance, Gate

ITEMS = 64  # requests made up where none are given
LONGER, MAX_GROWTH = 16, 2.0
MAX_FUSION_ERROR = 1e-3  # of the output's spread: sums in another order
MAX_TIME = 1.05  # of fp32's; more than the noise of an interleaved run
DTYPES = {"TYPE_FP32": "float32", "TYPE_FP16": "float16", "TYPE_FP64": "float64", "TYPE_BOOL": "bool"}


@dataclass(frozen=True)
class Proof:
    """What is known of a quantised model beside the model that was given, as it was before folding and fusing.

    error, rms: largest and root mean square difference as shares of the output's spread. growth: of the error along a
    sequence 16 times as long, see ``error_growth``; None without a recurrent operator and a dynamic axis of time.
    """

    coverage: Coverage
    share: float
    missed: list[str]
    fp32: Measurement
    int8: Measurement
    sizes: tuple[int, int]
    error: float
    rms: float
    fusion_error: float
    growth: float | None
    drift: BatchInvariance

    def gates(self, profile: Profile, max_error: float) -> list[Gate]:
        """What must hold before the model may be written."""
        alone = self.int8.latency_ms.p50 / self.fp32.latency_ms.p50
        batched = self.fp32.throughput_per_s / self.int8.throughput_per_s
        gates = [
            Gate("planned weights in low precision", self.share, 1.0, f"left: {', '.join(self.missed)}", at_least=True),
            Gate("largest error by fusing alone", self.fusion_error, MAX_FUSION_ERROR, "report it, with the model"),
            Gate("root mean square error", self.rms, max_error, "give real data with --calibration, or --max-error"),
            Gate("time against fp32, alone or batched", max(alone, batched), MAX_TIME, "serve the fp32 model"),
        ]
        if self.growth is not None:
            gates.append(Gate("growth of the error along a long sequence", self.growth, MAX_GROWTH, "keep it in fp32"))
        if profile == "invariant":
            gates.append(Gate("drift in company", self.drift.max_abs_drift, 0.0, "report it: invariant must be exact"))
        return gates


def prove(
    original: ModelProto,
    fused: ModelProto,
    after: ModelProto,
    choices: Choices,
    requests: Split,
    rounds: int,
    progress: Progress,
) -> Proof:
    """Measure a quantised model beside the original on the same requests, one thread."""
    with tempfile.TemporaryDirectory() as place:
        fp32 = onnx_candidate(FP32, save(original, Path(place) / "fp32.onnx"), FP32, 0)
        int8 = onnx_candidate("int8", save(after, Path(place) / "int8.onnx"), "int8", 0)
        between = onnx_candidate("fused", save(fused, Path(place) / "fused.onnx"), FP32, 0)
        timed = measure([fp32, int8], requests, rounds, progress=progress)
        ours, reference = verify.answers(int8.run, requests, 1), verify.answers(fp32.run, requests, 1)
        share, missed = planned_share(fused, after, choices)
        return Proof(
            coverage(after, inputs=requests.rows(0, 1)),
            share,
            missed,
            timed[FP32],
            timed["int8"],
            (fp32.size_bytes, int8.size_bytes),
            verify.relative(verify.max_abs, ours, reference),
            verify.relative(verify.rms, ours, reference),
            verify.relative(verify.max_abs, verify.answers(between.run, requests, 1), reference),
            error_growth(int8.run, fp32.run, original, requests),
            _drift(int8, requests, ours),
        )


def requests_from(interface: OnnxInterface, path: Path | None, sizes: dict[str, int], seed: int = 0) -> Split:
    """The user's requests, or random ones: floats normal, integers 0 and 1 (valid as ids and as masks)."""
    for name, port in interface.inputs.items():
        if not port.shape or port.shape[0] != -1:
            raise UserError(
                f"input '{name}' is {list(port.shape)}: the first axis of every input must be a dynamic batch; "
                "export the model with dynamic_axes={'" + name + "': {0: 'batch'}, ...}"
            )
    for name, port in interface.outputs.items():
        if not port.shape or port.shape[0] != -1:
            raise UserError(
                f"output '{name}' is {list(port.shape)}: the first axis of every output must be the dynamic batch; "
                "transpose it in the model"
            )
    if path is not None:
        return _saved_requests(interface, path)
    axes_known = {axis for port in interface.inputs.values() for axis in port.axes[1:] if axis}
    if unknown := sorted(set(sizes) - axes_known):
        raise UserError(
            f"--size {unknown[0]}: no input has such an axis; there is {', '.join(sorted(axes_known)) or 'none'}"
        )
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name, port in interface.inputs.items():
        axes = zip(port.shape[1:], port.axes[1:], strict=True)
        shape = [ITEMS] + [size if size > 0 else sizes.get(axis, 16) for size, axis in axes]
        dtype = _dtype(port.dtype)
        floating = dtype.kind == "f"
        values: NDArray[Any] = random.normal(size=shape) if floating else random.integers(0, 2, size=shape)
        arrays[name] = values.astype(dtype)
    return Split(arrays, {}, np.arange(ITEMS))


def _saved_requests(interface: OnnxInterface, path: Path) -> Split:
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays: Arrays = {name: saved[name] for name in saved.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"calibration data '{path}' cannot be read ({error}); write it with numpy.savez") from None
    if set(arrays) != set(interface.inputs):
        raise UserError(
            f"calibration data '{path}' has the arrays {sorted(arrays)}, but the model's inputs are "
            f"{sorted(interface.inputs)}; give one array for each input"
        )
    for name, port in interface.inputs.items():
        array = arrays[name]
        fits = array.ndim == len(port.shape) and all(
            size in (-1, length) for size, length in zip(port.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != _dtype(port.dtype):
            raise UserError(
                f"calibration data '{path}': '{name}' is {array.dtype} {list(array.shape)}, expected "
                f"{_dtype(port.dtype)} {list(port.shape)} (-1: any size)"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"calibration data '{path}': '{name}' holds NaN or infinite values")
    count = len(next(iter(arrays.values())))
    if count < 16:
        raise UserError(f"calibration data '{path}' has {count} items; at least 16 are needed")
    return Split(arrays, {}, np.arange(count))


def error_growth(ours: verify.Run, reference: verify.Run, model: ModelProto, requests: Split) -> float | None:
    """How much larger the root mean square error is in the last quarter of a long sequence than in the second.

    The sequence is 16 requests joined along the first dynamic axis that an input shares with an output. None for a
    model without such an axis, or without a recurrent operator (only there do errors feed on themselves), or that does
    not take sequences so long.
    """
    if not any(node.op_type in RECURRENT for node in all_nodes(model)):
        return None
    axes = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in model.graph.output}
    inputs = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    batch = {names[0] for names in inputs.values()}
    shared = [
        axis
        for names in axes.values()
        for axis in names[1:]
        if axis and axis not in batch and any(axis in each for each in inputs.values())
    ]
    if not shared:
        return None
    time = shared[0]
    parts = [requests.rows(i % len(requests), i % len(requests) + 1) for i in range(LONGER)]
    feed = {
        name: np.concatenate([part[name] for part in parts], axis=names.index(time))
        if time in names
        else parts[0][name]
        for name, names in inputs.items()
        if name in requests.inputs
    }
    name = next(name for name, names in axes.items() if time in names)
    try:
        error = ours(feed)[name].astype(float) - reference(feed)[name].astype(float)
    except REFUSALS:  # such a length is none that the model takes
        return None
    quarters = [float(np.sqrt(np.mean(q**2))) for q in np.array_split(error, 4, axis=axes[name].index(time))]
    return quarters[3] / quarters[1] if quarters[1] else 1.0


def _dtype(triton: str) -> np.dtype[Any]:
    return np.dtype(DTYPES.get(triton, triton.removeprefix("TYPE_").lower()))


def _drift(candidate: Candidate, requests: Split, alone: Arrays) -> BatchInvariance:
    """Alone against in company; a model from elsewhere has no task metric, so its largest value stands in."""
    size = Metric("none", True, lambda outputs, split: np.ones((len(split), 1)), lambda sums: float(sums[0]))
    return verify.batch_invariance(candidate.run, requests, size, alone, None)


def print_proof(proof: Proof, before: ModelProto, choices: Choices, console: Console) -> None:
    """The plan by kind of operator, the counts, and speed, size, error and drift."""
    table = Table("operators", "method", "why", title="plan")
    kinds: dict[tuple[str, str, str], int] = {}
    for choice in choices.values():
        key = (choice.operator, choice.method, choice.reason)
        kinds[key] = kinds.get(key, 0) + 1
    for (operator, method, reason), count in kinds.items():
        table.add_row(f"{count} x {operator}", method, reason)
    console.print(table)
    table = Table("", "fp32", "int8", "ratio", title=environment(threads=1)["cpu"] + ", one thread")
    a, b = proof.fp32.latency_ms, proof.int8.latency_ms
    for label, ours, theirs in (("p50 ms", b.p50, a.p50), ("p95 ms", b.p95, a.p95), ("p99 ms", b.p99, a.p99)):
        table.add_row(f"{label}, batch 1", f"{theirs:.3f}", f"{ours:.3f}", f"{theirs / ours:.2f}x as fast")
    fast, slow = proof.int8.throughput_per_s, proof.fp32.throughput_per_s
    table.add_row(f"items/s, batch {proof.int8.batch}", f"{slow:.0f}", f"{fast:.0f}", f"{fast / slow:.2f}x")
    large, small = proof.sizes
    table.add_row("MB", f"{large / 1e6:.2f}", f"{small / 1e6:.2f}", f"{large / small:.2f}x smaller")
    table.add_row("operators with weights", _counts(count_operators(before)), _counts(proof.coverage.operators), "")
    console.print(table)
    console.print(
        f"low precision: {proof.coverage.weight_bytes_fraction:.1%} of the weight bytes, "
        f"{proof.coverage.mac_fraction:.1%} of the multiply-accumulates; {proof.share:.1%} of what the plan asks for"
    )
    console.print(f"difference from fp32, of the output's spread: rms {proof.rms:.2%}, largest {proof.error:.2%}")
    if proof.growth is not None:
        console.print(f"error late in a sequence {LONGER} times as long, against early: {proof.growth:.2f} times")
    drift = ", ".join(f"{kind} {value:.3g}" for kind, value in proof.drift.drift.items())
    console.print(f"largest drift of an answer in company: {drift} ({a.count} calls, {proof.drift.cases} requests)")


def _count(model: ModelProto) -> int:
    return sum(1 for _ in all_nodes(model))


def _counts(operators: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.bare_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="IN.onnx")
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--profile", choices=PROFILES, help="(default: invariant where it costs at most 20 %%)")
    parser.add_argument("--calibration", type=Path, metavar="FILE.npz", help="real requests")
    parser.add_argument("--size", nargs="+", default=[], metavar="AXIS=N", help="of dynamic axes, for random requests")
    parser.add_argument("--also", nargs="+", default=[], metavar="METHOD", help="such as nbits4, int8_table")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="follow it, or keep the measured one there")
    parser.add_argument(
        "--rounds", type=int, default=100, metavar="N", help="timed calls of a trial, at least 10 (100)"
    )
    parser.add_argument("--max-error", type=float, default=0.05, metavar="SHARE", help="rms, of the spread (0.05)")
    options = parser.parse_args(arguments)
    if options.rounds < 10:
        parser.error(f"--rounds is {options.rounds}; at least 10 are needed for percentiles")
    known = sorted({method.name for method in METHODS if method.on_request})
    if unknown := sorted(set(options.also) - set(known)):
        raise UserError(f"--also {unknown[0]}: no such method; on request there are {', '.join(known)}")
    _require_writable(options.output)
    interface = read_interface(options.model)
    if interface.opsets.get("", fuse.OLDEST_OPSET) < fuse.OLDEST_OPSET:
        raise UserError(
            f"'{options.model}' has opset {interface.opsets['']}; export it with opset {fuse.OLDEST_OPSET} or later"
        )
    requests = requests_from(interface, options.calibration, _sizes(options.size))
    original = onnx.load(options.model)
    model, _ = fuse.fuse(original)
    console = Console()
    if not operators(model):
        raise UserError(f"'{options.model}' has no operator with weights that could be quantised")
    console.print(f"nodes: {_count(original)}, after folding and fusing {_count(model)}")
    with command.progress() as progress:
        chosen = plan.read(options.plan, options.model.name) if options.plan else None
        if chosen is None:
            calibrated = options.calibration is not None
            chosen = tune(model, requests, options.also, options.rounds, progress, calibrated=calibrated)
            if options.plan:
                plan.write(options.plan, options.model.name, chosen)
        else:
            plan.check(chosen, operators(model), options.plan)
        profile: Profile = options.profile or chosen.profile
        choices = chosen.choices[profile]
        if not any(choice.quantised for choice in choices.values()):
            reasons = "; ".join(sorted({choice.reason for choice in choices.values()}))
            raise UserError(f"nothing to gain for '{options.model}' in the {profile} profile: {reasons}")
        if options.calibration is None and (needing := needs_calibration(model, choices)):
            raise UserError(f"the plan calibrates {', '.join(needing)}: give real requests with --calibration")
        quantized = quantize(model, choices, calibrate(model, calibration_feeds(requests), choices))
        some = [requests.rows(0, rows) for rows in (1, 3)]
        guards.require(quantized, before=model, choices=choices, profile=profile, requests=some)
        proof = prove(original, model, quantized, choices, requests, options.rounds, progress)
    console.print(f"profile: {profile} ({chosen.reason})")
    print_proof(proof, original, choices, console)
    if options.calibration is None:
        console.print("[yellow]random requests: the differences say little about yours; give --calibration[/yellow]")
    verify.require(proof.gates(profile, options.max_error))
    _write(quantized, options.output)
    console.print(f"written: {options.output}")


def _write(model: ModelProto, path: Path) -> None:
    try:
        replace_file(path, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from None


def _require_writable(path: Path) -> None:
    """Fail at the beginning, not after minutes of work."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name the file to write")


def _sizes(texts: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise UserError(f"--size {text}: expected AXIS=N with N at least 1, such as time=128")
        sizes[name] = int(number)
    return sizes


if __name__ == "__main__":
    command.run(main)
