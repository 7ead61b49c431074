"""Whether a wrapped graph answers as the one it was made from, both run over chunks with the state they carry.

    proof = prove(original, wrapped, layout)
    verify.require(proof.gates)

The inputs are seeded, or recorded streams; the two graphs run without optimisation, where equal means to the bit, and
the wrapped one also as it is served. What nobody can see of a pair of states is whether it is the right one, except
where the graph's time axis is dynamic: two chunks must then answer as one of twice the size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto

from optimize import verify
from optimize.adopt.foreign import Layout, seeded
from optimize.benchmark import runner, session
from optimize.data.dataset import Arrays
from optimize.quantize.shapes import REFUSALS
from optimize.specs import LENGTHS
from optimize.verify import Gate, Run

CHUNKS, ROWS, SEED = 5, 4, 7
MAX_ERROR = 1e-3  # of the output's spread: sums in another order
MAX_DRIFT = 0.05  # of the output's spread: more than int8 costs, far less than what rows do that mix


@dataclass(frozen=True)
class Proof:
    """drift: largest difference between an answer alone and in company, as a share of the output's spread."""

    gates: list[Gate]
    drift: float
    notes: list[str]


def prove(
    original: ModelProto,
    wrapped: ModelProto,
    layout: Layout,
    any_chunk: bool = True,
    streams: list[Arrays] | None = None,
) -> Proof:
    """Both graphs, side by side.

    any_chunk: whether answers promise not to depend on where the chunks are cut. streams: what real ones send, chunk by
    chunk, at least two chunks of ``ROWS`` streams; by default seeded inputs stand in.
    """
    reference, ours, served = _as_served(_plain(original), layout), _plain(wrapped), optimised(wrapped)
    random = np.random.default_rng(SEED)
    chunks = streams[:CHUNKS] if streams else [seeded(layout.inputs, ROWS, random) for _ in range(CHUNKS)]
    feeds = {rows: [{name: array[:rows] for name, array in chunk.items()} for chunk in chunks] for rows in (1, ROWS)}
    unequal, error = 0, 0.0
    for rows in (1,) if layout.frozen else (1, ROWS):  # what a frozen graph does with more is proven by the drift
        expected = carried(reference, layout, feeds[rows])
        unequal += _unequal(carried(ours, layout, feeds[rows]), expected)
        found = carried(served, layout, feeds[rows])
        error = max(error, verify.relative(verify.max_abs, _joined(found), _joined(expected)))
    drift = _drift(served, layout, feeds[ROWS])
    notes: list[str] = []
    gates = [
        Gate("values that differ from the original graph's", unequal, 0, "report it, with the model"),
        Gate("largest error as served, of the spread", error, MAX_ERROR, "report it, with the model"),
        Gate("drift in company, of the spread", drift, MAX_DRIFT, "the rows of a batch mix; check --batch-axis"),
    ]
    if not any_chunk:
        notes.append("answers depend on where the chunks are cut, so whether --states pairs them right is not proven")
    elif (error_of_cut := _cut(reference, layout, feeds[1])) is None:
        notes.append("no answer follows a dynamic axis of time, so whether --states pairs them right is not proven")
    else:
        advice = (
            "check that --states pairs every state with its own next value and leaves none out; if the model sees only "
            "its chunk, as attention within it does, say --chunk-matters"
        )
        gates.append(Gate("two chunks against one as long as both", error_of_cut, MAX_ERROR, advice))
    return Proof(gates, drift, notes)


def _plain(model: ModelProto) -> Run:
    """Node by node, as the graph is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runner(onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))


def optimised(model: ModelProto) -> Run:
    """As a server runs it."""
    return runner(session(model.SerializeToString()))


def _as_served(run: Run, layout: Layout) -> Run:
    """The original under the served names and in the served layout, by moving its arrays instead of its graph."""

    def answer(served: Arrays) -> Arrays:
        found = run({port.name: port.inwards(served[port.served]) for port in layout.given} | layout.constants)
        return {port.served: port.outwards(found[port.name]) for port in layout.answered}

    return answer


def carried(run: Run, layout: Layout, feeds: Iterable[Arrays]) -> list[Arrays]:
    """The answers to every chunk, next states included, from zeros on. run: under the served names."""
    answers: list[Arrays] = []
    for feed in feeds:
        answers.append(run(feed | _state(layout, answers, len(next(iter(feed.values()))))))
    return answers


def _state(layout: Layout, answers: list[Arrays], rows: int) -> Arrays:
    if not answers:
        return {pair.before.served: np.zeros((rows, *pair.before.row), pair.before.dtype) for pair in layout.states}
    return {pair.before.served: answers[-1][pair.after.served] for pair in layout.states}


def _unequal(found: list[Arrays], expected: list[Arrays]) -> int:
    """How many values differ, over all chunks, next states included; NaN equals itself."""
    count = 0
    for ours, theirs in zip(found, expected, strict=True):
        for name, array in theirs.items():
            if (ours[name].shape, ours[name].dtype) != (array.shape, array.dtype):
                count += array.size
            else:
                both_nan = (array != array) & (ours[name] != ours[name])
                count += int(np.sum((ours[name] != array) & ~both_nan))
    return count


def _drift(run: Run, layout: Layout, feeds: list[Arrays]) -> float:
    """Streams that change places from chunk to chunk, against each of them alone."""
    random = np.random.default_rng(SEED)
    together: list[Arrays] = []
    for feed in feeds:
        order = random.permutation(ROWS)
        answer = run({name: array[order] for name, array in (feed | _state(layout, together, ROWS)).items()})
        together.append({name: array[np.argsort(order)] for name, array in answer.items()})
    single = [[{name: a[row : row + 1] for name, a in feed.items()} for feed in feeds] for row in range(ROWS)]
    alone = [_joined(carried(run, layout, stream)) for stream in single]
    reference = {name: np.concatenate([each[name] for each in alone]) for name in alone[0]}
    return verify.relative(verify.max_abs, _joined(together), reference)


def _cut(run: Run, layout: Layout, feeds: list[Arrays]) -> float | None:
    """Two chunks against the two as one, in the original graph; None where no answer grows with its chunk."""
    times = {port.served: port.to_served.index(port.times[0]) for port in layout.inputs if port.times}
    sizes = {name: feeds[0][name].shape[axis] for name, axis in times.items()}
    first, second = dict(feeds[0]), dict(feeds[1])
    both: Arrays = {}
    for name in first:
        if name in times:
            both[name] = np.concatenate([first[name], second[name]], axis=times[name])
        elif name == LENGTHS and sizes:
            size = next(iter(sizes.values()))
            first[name] = second[name] = np.full_like(first[name], size)
            both[name] = np.full_like(first[name], 2 * size)
        else:
            second[name] = both[name] = first[name]
    parts = carried(run, layout, [first, second])
    try:
        whole = carried(run, layout, [both])[0]
    except REFUSALS:  # a graph that is for this size alone
        return None
    joined: Arrays = {}
    for port in layout.outputs:
        shapes = zip(parts[0][port.served].shape, whole[port.served].shape, strict=True)
        if grown := [axis for axis, (short, long) in enumerate(shapes) if long == 2 * short]:
            joined[port.served] = np.concatenate([part[port.served] for part in parts], axis=grown[0])
    if not joined or any(joined[name].shape != whole[name].shape for name in joined):
        return None
    joined |= {pair.after.served: parts[1][pair.after.served] for pair in layout.states}
    return verify.relative(verify.max_abs, {name: whole[name] for name in joined}, joined)


def _joined(answers: list[Arrays]) -> Arrays:
    """The answers of all chunks side by side, the batch still first."""
    return {name: np.stack([answer[name] for answer in answers], axis=1) for name in answers[0]}
