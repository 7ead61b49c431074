"""A model with state, seen as one without: whole recordings through its step, chunk after chunk.

    answer = whole(step, spec)                      # a Run of recordings (batch, time, ...), as the offline model is
    requests = steps(step, spec, recordings)   # single steps in mid-stream, states included: what is timed

``step`` takes the spec's inputs and states and gives its outputs and next states. Inputs are cut along their first
axis behind the batch, outputs joined along theirs. Of a chunk, ``lengths`` (if the spec has it) says how much is meant,
and ``output_lengths`` how much of the answer is; what lies beyond is zero here, so that answers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.specs import LENGTHS, OUTPUT_LENGTHS, ModelSpec

Run = Callable[[Arrays], Arrays]


class Step(nn.Module):
    """``forward_chunk`` with the state as plain arguments and results, in the spec's order: for export and timing."""

    def __init__(self, module: nn.Module, inputs: int) -> None:
        super().__init__()
        self.module, self.inputs = module, inputs
        initial_state: Any = module.initial_state
        self.initial_state, self.state = initial_state, type(initial_state(1))

    def other_states(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The module's own initial states, if those given are not of its kind."""
        initial: tuple[Tensor, ...] = tuple(self.initial_state(len(states[0])))
        return () if [part.shape for part in initial] == [part.shape for part in states] else initial

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        forward_chunk: Any = self.module.forward_chunk
        outputs, state = forward_chunk(*tensors[: self.inputs], self.state(*tensors[self.inputs :]))
        return (*(outputs if isinstance(outputs, tuple) else (outputs,)), *state)


def served(module: nn.Module, spec: ModelSpec) -> nn.Module:
    """What is exported and timed of a network: its step where it has states, else itself."""
    return Step(module, len(spec.inputs)) if spec.states else module


def can_stream(module: nn.Module, spec: ModelSpec) -> bool:
    """Whether a network can answer as the spec asks; one for whole recordings refuses a step."""
    if not spec.states:
        return True
    if not (hasattr(module, "forward_chunk") and hasattr(module, "initial_state")):
        return False
    inputs = [torch.zeros((1, *tensor.shape), dtype=getattr(torch, tensor.dtype)) for tensor in spec.inputs]  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            step = Step(module.eval(), len(inputs))
            step(*inputs, *step.initial_state(1))
    except UserError:
        return False
    return True


def whole(step: Run, spec: ModelSpec) -> Run:
    """Answers to whole recordings, zero where nothing is meant; of a model without states, its own."""
    if not spec.states:
        return lambda recordings: meant(step(recordings), spec, recordings)

    def run(recordings: Arrays) -> Arrays:
        answers = [answer for _, answer in _advance(step, spec, recordings)]
        joined = {}
        for tensor in spec.outputs:
            parts = [answer[tensor.name] for answer in answers]
            joined[tensor.name] = np.sum(parts, axis=0) if tensor.name == OUTPUT_LENGTHS else np.concatenate(parts, 1)
        return meant(joined, spec, recordings)

    return run


def meant(answers: Arrays, spec: ModelSpec, recordings: Arrays) -> Arrays:
    """Answers to recordings, of a step or of the offline model, so that they can be compared.

    As many frames as the recordings begin, and zero from ``output_lengths`` on.
    """
    kept = {}
    for tensor in spec.outputs:
        answer = answers[tensor.name]
        if tensor.shape != (1,):  # which is one figure for each recording
            if spec.states and isinstance(frames := tensor.shape[0], int):
                answer = answer[:, : -(-_time(recordings, spec) * frames // _chunk(spec))]
            if OUTPUT_LENGTHS in answers:
                heard = np.arange(answer.shape[1]) < answers[OUTPUT_LENGTHS].astype(int)
                answer = np.where(heard.reshape(*heard.shape, *[1] * (answer.ndim - 2)), answer, 0).astype(answer.dtype)
        kept[tensor.name] = answer
    return kept


def compared(outputs: Arrays, reference: Arrays, spec: ModelSpec) -> tuple[Arrays, Arrays]:
    """Two answers without the frames that the reference does not mean, so that padding weighs nothing."""
    if OUTPUT_LENGTHS not in reference:
        return outputs, reference
    pairs = {}
    for tensor in spec.outputs:
        pair = outputs[tensor.name], reference[tensor.name]
        if tensor.shape != (1,) and pair[0].shape == pair[1].shape:
            heard = np.arange(pair[1].shape[1]) < reference[OUTPUT_LENGTHS].astype(int)
            pair = pair[0][heard], pair[1][heard]
        pairs[tensor.name] = pair
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def steps(step: Run, spec: ModelSpec, recordings: Split, count: int = 512) -> Split:
    """Up to ``count`` single steps of streams of every age, with the states that they came with.

    Of a model without states, the recordings themselves, which are its requests.
    """
    if not spec.states:
        return recordings
    rows: list[Arrays] = []
    streams = recordings.take(_evenly(len(recordings), max(count // 4, 1)))
    for age, (feed, _) in enumerate(_advance(step, spec, streams.inputs)):
        wanted = np.arange(len(streams)) % 4 == age % 4
        if LENGTHS in feed:
            wanted &= feed[LENGTHS][:, 0].astype(int) > 0
        rows.append({name: array[wanted] for name, array in feed.items()})
    inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    found = Split(inputs, {}, np.arange(len(next(iter(inputs.values())))))
    return found.take(_evenly(len(found), count))


def _evenly(items: int, count: int) -> NDArray[np.int64]:
    """``count`` of so many items, or all, from the first to the last."""
    return np.unique(np.linspace(0, items - 1, min(count, items)).astype(np.int64))


def _advance(step: Run, spec: ModelSpec, recordings: Arrays) -> Iterator[tuple[Arrays, Arrays]]:
    """Every chunk of recordings side by side: what the step was given, and its answer."""
    state: Arrays = {
        tensor.input_name: np.zeros((len(next(iter(recordings.values()))), *tensor.shape), tensor.dtype)
        for tensor in spec.states
    }
    for inputs in chunks(recordings, spec):
        feed = {**inputs, **state}
        answer = step(feed)
        state = {tensor.input_name: answer[tensor.output_name] for tensor in spec.states}
        yield feed, answer


def chunks(recordings: Arrays, spec: ModelSpec) -> Iterator[Arrays]:
    """Recordings cut into the spec's chunks, the last one filled up with zeros.

    Raises UserError for recordings that are no whole number of chunks if the spec has no ``lengths`` to say so.
    """
    time, chunk = _time(recordings, spec), _chunk(spec)
    if time % chunk and LENGTHS not in recordings:
        raise UserError(
            f"model '{spec.name}': recordings of {time} are no whole number of chunks of {chunk}; give it an input "
            f"'{LENGTHS}', or recordings that are"
        )
    for start in range(0, max(time, 1), chunk):
        feed: Arrays = {}
        for tensor in spec.inputs:
            array = recordings[tensor.name]
            if tensor.name == LENGTHS:
                feed[LENGTHS] = np.clip(array - np.asarray(start, array.dtype), 0, chunk).astype(array.dtype)
            else:
                feed[tensor.name] = _filled(array[:, start : start + chunk], chunk)
        yield feed


def _filled(piece: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    return np.pad(piece, [(0, 0), (0, size - piece.shape[1]), *[(0, 0)] * (piece.ndim - 2)])


def _chunk(spec: ModelSpec) -> int:
    """Samples, or frames, of one step."""
    size = next(tensor.shape[0] for tensor in spec.inputs if tensor.name != LENGTHS)
    assert isinstance(size, int), "a step's size is fixed"
    return size


def _time(recordings: Arrays, spec: ModelSpec) -> int:
    return next(recordings[tensor.name].shape[1] for tensor in spec.inputs if tensor.name != LENGTHS)
