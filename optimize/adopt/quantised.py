"""A wrapped model from elsewhere in int8, calibrated on recorded streams and held against fp32 along whole streams.

    numpy.savez("streams.npz", x=x)        # (streams, chunks, ...): what every stream sends, chunk after chunk

Every input that is no state has one array, as it is served. The states come from running the model over the chunks, so
operators are measured and calibrated in mid-stream; an error that feeds on itself shows in the last gate.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from onnx import ModelProto
from rich.console import Console
from rich.progress import Progress

from optimize import fuse, verify
from optimize.adopt.foreign import Layout
from optimize.adopt.side_by_side import ROWS, carried, optimised
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.quantize import calibrate, guards, operators, quantize
from optimize.quantize.__main__ import print_proof, prove
from optimize.quantize.method import Profile
from optimize.quantize.tune import calibration_feeds, tune
from optimize.verify import Gate

MAX_ERROR = 0.05  # root mean square, of the output's spread
MOST_STREAMS, LEAST_CHUNKS, LEAST_REQUESTS = 64, 2, 16


def int8(
    wrapped: ModelProto,
    layout: Layout,
    streams: list[Arrays],
    profile: Profile | None,
    rounds: int,
    progress: Progress,
) -> tuple[ModelProto, list[Gate]]:
    """The model in low precision where that gains, and the gates that it must pass. streams: as ``recorded``."""
    requests = steps(wrapped, layout, streams)
    fused, _ = fuse.fuse(wrapped)
    if not operators(fused):
        raise UserError("the model has no operator with weights that could be quantised; leave out --quantize")
    plan = tune(fused, requests, rounds=rounds, progress=progress)
    profile = profile or plan.profile
    choices = plan.choices[profile]
    if not any(choice.quantised for choice in choices.values()):
        reasons = "; ".join(sorted({choice.reason for choice in choices.values()}))
        raise UserError(f"nothing to gain in the {profile} profile, leave out --quantize: {reasons}")
    small = quantize(fused, choices, calibrate(fused, calibration_feeds(requests), choices))
    some = [requests.rows(0, rows) for rows in (1, 3)]
    guards.require(small, before=fused, choices=choices, profile=profile, requests=some)
    proof = prove(wrapped, fused, small, choices, requests, rounds, progress)
    print_proof(proof, wrapped, choices, Console())
    ours, reference = (_along(model, layout, streams) for model in (small, wrapped))
    error = verify.relative(verify.rms, verify.real(ours), verify.real(reference))
    along = Gate("root mean square error along whole streams", error, MAX_ERROR, "leave out --quantize")
    return small, [*proof.gates(profile, MAX_ERROR), along]


def recorded(path: Path, layout: Layout) -> list[Arrays]:
    """What all streams send, chunk by chunk. Raises UserError for a file that does not fit the model."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays: Arrays = {name: saved[name] for name in saved.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"calibration data '{path}' cannot be read ({error}); write it with numpy.savez") from None
    expected = {port.served: port for port in layout.inputs}
    if arrays.keys() != expected.keys():
        raise UserError(
            f"calibration data '{path}' has the arrays {sorted(arrays)}, but the model is sent {sorted(expected)}; "
            "give one array for each of them, (streams, chunks, ...)"
        )
    sizes = {array.shape[:2] for array in arrays.values()}
    for name, port in expected.items():
        array = arrays[name]
        if array.shape[2:] != port.row or array.ndim < 2 or str(array.dtype) != port.dtype or len(sizes) != 1:
            raise UserError(
                f"calibration data '{path}': '{name}' is {array.dtype} {list(array.shape)}, expected {port.dtype} "
                f"[streams, chunks, {', '.join(map(str, port.row))}], with as many streams and chunks in every array"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"calibration data '{path}': '{name}' holds NaN or infinite values")
    [(streams, chunks)] = sizes
    if streams < ROWS or chunks < LEAST_CHUNKS or streams * chunks < LEAST_REQUESTS:
        raise UserError(
            f"calibration data '{path}' has {streams} streams of {chunks} chunks; at least {ROWS} streams of "
            f"{LEAST_CHUNKS} chunks are needed, {LEAST_REQUESTS} chunks in all"
        )
    return [{name: array[:MOST_STREAMS, chunk] for name, array in arrays.items()} for chunk in range(chunks)]


def steps(wrapped: ModelProto, layout: Layout, streams: list[Arrays]) -> Split:
    """Single requests of streams of every age, with the states that they came with."""
    run, seen = optimised(wrapped), list[Arrays]()

    def noting(feed: Arrays) -> Arrays:
        seen.append(feed)
        return run(feed)

    carried(noting, layout, streams)
    inputs = {name: np.concatenate([feed[name] for feed in seen]) for name in seen[0]}
    count = len(next(iter(inputs.values())))
    order = np.random.default_rng(verify.SEED).permutation(count)[:512]
    return Split({name: array[order] for name, array in inputs.items()}, {}, np.arange(len(order)))


def _along(model: ModelProto, layout: Layout, streams: list[Arrays]) -> Arrays:
    """The answers of all streams, chunk by chunk, and their last states."""
    answers = carried(optimised(model), layout, streams)
    found: Arrays = {
        port.served: np.concatenate([answer[port.served] for answer in answers]) for port in layout.outputs
    }
    return found | {pair.after.served: answers[-1][pair.after.served] for pair in layout.states}
