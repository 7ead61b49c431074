"""The four laws on every ONNX stage: as exported, fused, and in int8; whole recordings by torch, or by int8 itself.

The int8 model of whole recordings is the same network, exported with its own ``forward`` and quantised with the same
choices and scales. Its float operators see other shapes, and may round otherwise in the last bit. Nearly always that
changes nothing: the answers are equal to the bit. Where it tips a value to the next step of a scale, a moment of the
answer moves, by less than ``INT8_TOLERANCE`` in these networks, whose random weights speak loudly.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from optimize import fuse, onnx_export, streaming
from optimize.benchmark import runner, session
from optimize.data.dataset import Split
from optimize.models import conformer, recurrent
from optimize.models.conformer import Conformer
from optimize.models.speech_encoder import FRAME_SAMPLES
from optimize.quantize import calibrate, needs_calibration, operators, quantize
from optimize.quantize.plan import Choice, Choices
from optimize.quantize.tune import calibration_feeds
from optimize.specs import ModelSpec, TensorSpec
from tests.laws import laws, test_torch_laws
from tests.laws.laws import Answer, Pcm, State
from tests.laws.test_torch_laws import ENCODERS, QUICK, SECONDS_2, TOLERANCE, TorchStreaming, audio, lengths, seeds

INT8_TOLERANCE = 0.5
METHODS = {"MatMul": "static", "GRU": "static", "LSTM": "pinned"}
STAGES = ("fp32", "fused", "int8")
WHOLE = 4 * SECONDS_2 // (16 * FRAME_SAMPLES) * 16 * FRAME_SAMPLES  # samples of the int8 model of whole recordings


class OnnxStreaming:
    """One stage of an encoder as the laws see it."""

    def __init__(self, kind: str, chunk: int, stage: str) -> None:
        self.torch = torch_model(kind, chunk)
        self.spec = spec(self.torch, self.torch.chunk_samples)
        self.chunk_samples = self.torch.chunk_samples
        self.graph = graph(kind, chunk, stage)
        self._session = session(self.graph.SerializeToString())
        self._whole = session(whole(kind, chunk).SerializeToString()) if stage == "int8" else None

    def named(self, name: str) -> ModelSpec:
        return replace(self.spec, name=name)

    def initial_state(self, batch: int) -> State:
        return self.torch.initial_state(batch)

    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]:
        states = {part.input_name: array for part, array in zip(self.spec.states, state, strict=True)}
        found = self._session.run(self.spec.output_names, {"pcm": pcm, "lengths": lengths, **states})
        return Answer(*found[: len(Answer._fields)]), tuple(found[len(Answer._fields) :])

    def offline(self, pcm: Pcm, lengths: NDArray[np.int32]) -> Answer:
        if self._whole is None:
            return self.torch.offline(pcm, lengths)
        padded = np.zeros((len(pcm), WHOLE), np.int16)
        padded[:, : pcm.shape[1]] = pcm
        return Answer(*self._whole.run(list(Answer._fields), {"pcm": padded, "lengths": lengths}))


@functools.cache
def torch_model(kind: str, chunk: int) -> TorchStreaming:
    return TorchStreaming(test_torch_laws.encoder(kind), chunk)


def spec(model: TorchStreaming, samples: int, states: bool = True) -> ModelSpec:
    module, frames = model.whole, samples // FRAME_SAMPLES
    specs = conformer.state_specs if isinstance(module, Conformer) else recurrent.state_specs
    config: Any = module.config
    return ModelSpec(
        "speech",
        inputs=(TensorSpec("pcm", "int16", (samples,)), TensorSpec("lengths", "int32", (1,))),
        outputs=(
            TensorSpec("log_probs", "float32", (frames, config.vocabulary)),
            TensorSpec("tokens", "int64", (frames,)),
            TensorSpec("output_lengths", "int64", (1,)),
        ),
        states=specs(config) if states else (),
    )


@functools.cache
def graph(kind: str, chunk: int, stage: str) -> ModelProto:
    model = torch_model(kind, chunk)
    step = spec(model, model.chunk_samples)
    if stage == "fp32":
        return onnx_export.export(streaming.served(model.whole, step), step)
    if stage == "fused":
        fused, _ = fuse.fuse(graph(kind, chunk, "fp32"))
        onnx_export.check(fused, step)
        return fused
    fused = graph(kind, chunk, "fused")
    return quantize(fused, choices(fused), calibrate(fused, feeds(kind, chunk), choices(fused)))


@functools.cache
def whole(kind: str, chunk: int) -> ModelProto:
    """In int8, with the step's choices and scales."""
    fused = graph(kind, chunk, "fused")
    offline, _ = fuse.fuse(
        onnx_export.export(torch_model(kind, chunk).whole, spec(torch_model(kind, chunk), WHOLE, False))
    )
    assert operators(offline) == operators(fused)
    ranges = calibrate(fused, feeds(kind, chunk), choices(fused))
    for name, choice in choices(fused).items():  # what has no module of its own is named by a running number
        pairs = (needs_calibration(graph, {name: choice}) for graph in (fused, offline))
        ranges = {**ranges, **{theirs: ranges[ours] for ours, theirs in zip(*pairs, strict=True)}}
    return quantize(offline, choices(fused), ranges)


def choices(model: ModelProto) -> Choices:
    return {
        name: Choice(operator, METHODS[operator], "")
        for name, operator in operators(model).items()
        if operator in METHODS and "front_end" not in name
    }


def feeds(kind: str, chunk: int) -> list[Any]:
    model = torch_model(kind, chunk)
    recordings = np.stack([audio(SECONDS_2, seed) for seed in range(24)])
    split = Split({"pcm": recordings, "lengths": np.full((24, 1), SECONDS_2, np.int32)}, {}, np.arange(24))
    step = runner(session(graph(kind, chunk, "fused").SerializeToString()))
    return calibration_feeds(streaming.steps(step, spec(model, model.chunk_samples), split))


@pytest.fixture(
    scope="module",
    params=[(*encoder, stage) for encoder in ENCODERS for stage in STAGES],
    ids=lambda param: "-".join(map(str, param)),
)
def model(request: pytest.FixtureRequest) -> OnnxStreaming:
    return OnnxStreaming(*request.param)


def tolerance(model: OnnxStreaming) -> float:
    return TOLERANCE if model._whole is None else INT8_TOLERANCE


@QUICK
@given(sizes=st.lists(lengths, min_size=1, max_size=4), seed=seeds, padding=st.integers(0, 12_000))
def test_chunked_is_offline_and_padding_changes_nothing(
    model: OnnxStreaming, sizes: list[int], seed: int, padding: int
) -> None:
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference = laws.chunked_is_offline(model, model, streams, tolerance(model), garbage=audio(padding, seed + 99))
    assert difference.log_probs <= tolerance(model)
    assert difference.tokens == 0
    assert difference.near_ties <= max(difference.frames // 50, 1)


@QUICK
@given(size=lengths, seed=seeds, after=st.integers(1, 12_000))
def test_the_future_does_not_change_the_past(model: OnnxStreaming, size: int, seed: int, after: int) -> None:
    difference = laws.past_is_unchanged(model, model, audio(size, seed), audio(after, seed + 1), tolerance(model))
    assert difference.log_probs <= tolerance(model)
    assert difference.tokens == 0


@QUICK
@given(data=st.data(), sizes=st.lists(lengths, min_size=2, max_size=5), seed=seeds)
def test_neighbours_do_not_matter(model: OnnxStreaming, data: st.DataObject, sizes: list[int], seed: int) -> None:
    """In int8 to the bit, the states included."""
    company = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=len(sizes), unique=True)
    rounds = data.draw(st.lists(company, max_size=16))
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference, drift = laws.neighbours_do_not_matter(model, streams, rounds, TOLERANCE)
    exact = model._whole is not None
    assert difference.log_probs <= (0 if exact else TOLERANCE)
    assert difference.tokens + difference.near_ties * exact == 0
    assert drift <= (0 if exact else TOLERANCE)


def test_int8_is_int8(model: OnnxStreaming) -> None:
    """What the laws hold for is no fp32 model in disguise, and answers otherwise than it."""
    if model._whole is None:
        return
    assert {"MatMulIntegerToFloat", "DynamicQuantizeLSTM"} & {node.op_type for node in model.graph.graph.node}
    samples = audio(SECONDS_2, 5)
    found, _ = laws.stream(model, samples)
    expected, _ = laws.stream(model.torch, samples)
    assert 1e-3 < np.abs(found.log_probs - expected.log_probs).max() < 3


@pytest.mark.parametrize("chunk", [4, 8, 16])
def test_an_endless_stream_is_the_offline_model_in_windows(chunk: int) -> None:
    """Two minutes in one stream, against whole windows that begin early enough to know all that is remembered."""
    model = OnnxStreaming("conformer", chunk, "int8")
    samples = np.concatenate([audio(SECONDS_2, seed) for seed in range(60)])
    streamed, _ = laws.stream(model, samples)
    known = -(-64 // chunk) * chunk  # frames, of which two layers remember 2 * (10 + 3 + what a chunk may lack)
    window, difference = WHOLE // FRAME_SAMPLES, laws.Difference()
    for start in range(0, streamed.tokens.shape[1] - window, window - known):
        piece = samples[start * FRAME_SAMPLES :][:WHOLE]
        answer = model.offline(piece[None], np.array([[len(piece)]], np.int32))
        new = slice(known if start else 0, window)
        found = Answer(streamed.log_probs[:, start:][:, new], streamed.tokens[:, start:][:, new], answer.output_lengths)
        expected = Answer(answer.log_probs[:, new], answer.tokens[:, new], answer.output_lengths)
        difference.add(found, expected, INT8_TOLERANCE)
    assert difference.frames > 2500
    assert difference.log_probs <= INT8_TOLERANCE
    assert difference.tokens == 0
    assert difference.moved <= difference.frames // 50
    assert difference.near_ties <= difference.moved // 4
