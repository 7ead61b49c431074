"""The four laws, on torch: small encoders with random weights, random audio, random lengths and company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize.models.conformer import Conformer
from optimize.models.conformer_block import CHUNK_FRAMES, ConformerConfig
from optimize.models.frontend import FrontEndConfig
from optimize.models.recurrent import RecurrentConfig, RecurrentEncoder
from optimize.models.speech_encoder import FRAME_SAMPLES
from tests.laws import laws
from tests.laws.laws import Answer, Pcm, State

TOLERANCE = 1e-4  # on log-probabilities
SECONDS_2 = 2 * 16_000
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


FRONT_END = FrontEndConfig(bins=32, mels=16)
ENCODERS = [*((kind, 8) for kind in ("lstm", "gru")), ("gru", 1), *(("conformer", size) for size in CHUNK_FRAMES)]

Encoder = Conformer | RecurrentEncoder
E = TypeVar("E", Conformer, RecurrentEncoder)


class TorchStreaming:
    """An encoder as the laws see it, at one chunk size."""

    def __init__(self, module: Encoder, chunk: int) -> None:
        self.module, self.chunk_samples = module, chunk * FRAME_SAMPLES
        self.whole: Encoder = module
        if isinstance(module, Conformer):
            self.whole = Conformer(replace(module.config, chunk=chunk)).eval()
            self.whole.load_state_dict(module.state_dict())

    def initial_state(self, batch: int) -> State:
        return tuple(part.numpy() for part in self.module.initial_state(batch))

    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]:
        with torch.inference_mode():
            before = self.state(state)
            outputs, after = self.module.forward_chunk(torch.from_numpy(pcm), torch.from_numpy(lengths), before)
        return Answer(*(part.numpy() for part in outputs)), tuple(part.numpy() for part in after)

    def offline(self, pcm: Pcm, lengths: NDArray[np.int32]) -> Answer:
        with torch.inference_mode():
            return Answer(*(part.numpy() for part in self.whole(torch.from_numpy(pcm), torch.from_numpy(lengths))))

    def state(self, parts: State) -> Any:
        return type(self.module.initial_state(1))(*map(torch.from_numpy, parts))


class Forgetful(TorchStreaming):
    """Hears every chunk as if it were the first."""

    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]:
        return super().step(pcm, lengths, self.initial_state(len(pcm)))


def conformer() -> Conformer:
    torch.manual_seed(0)
    config = ConformerConfig(
        layers=2, width=32, heads=2, feed_forward=32, kernel=4, left_context=10, front_end=FRONT_END
    )  # fmt: skip
    module = Conformer(config).eval()
    with torch.no_grad():
        for linear in module.blocks.modules():
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.xavier_normal_(linear.weight)  # what an untrained block adds is small otherwise
        module.positions.table.normal_()
    return talkative(module)


def recurrent(cell: str) -> RecurrentEncoder:
    torch.manual_seed(0)
    module = RecurrentEncoder(RecurrentConfig(cell, layers=2, width=32, front_end=FRONT_END)).eval()
    with torch.no_grad():
        for parameter in module.layers.parameters():
            parameter.mul_(2)  # what an untrained cell remembers is little otherwise
    return talkative(module)


def encoder(kind: str) -> Encoder:
    return conformer() if kind == "conformer" else recurrent(kind)


def talkative(module: E) -> E:
    """With words that change from frame to frame."""
    with torch.no_grad():
        module.front_end.mean.fill_(-3.0)
        module.front_end.scale.fill_(4.0)
        module.output.weight.mul_(10)
        log_probs = module(torch.from_numpy(audio(SECONDS_2, 0)[None]), torch.tensor([[SECONDS_2]])).log_probs
        module.output.bias.sub_(log_probs.mean((0, 1)))
    return module


@pytest.fixture(scope="module", params=ENCODERS, ids=lambda encoder: f"{encoder[0]}-{encoder[1]}")
def model(request: pytest.FixtureRequest) -> TorchStreaming:
    kind, chunk = request.param
    return TorchStreaming(encoder(kind), chunk)


def audio(length: int, seed: int) -> Pcm:
    """Noise whose loudness wanders, so that frames differ."""
    random = np.random.default_rng((seed, length))
    loudness = np.repeat(10 ** random.uniform(0, 4, length // 1000 + 1), 1000)[:length]
    samples: Pcm = (random.uniform(-1, 1, length) * loudness).astype(np.int16)
    return samples


lengths = st.one_of(st.integers(0, SECONDS_2), st.sampled_from([1, 639, 640, 641, 2560, 5120, 5121, 10240, 2 * 10240]))
seeds = st.integers(0, 10_000)


@QUICK
@given(sizes=st.lists(lengths, min_size=1, max_size=4), seed=seeds, padding=st.integers(0, 12_000))
def test_chunked_is_offline_and_padding_changes_nothing(
    model: TorchStreaming, sizes: list[int], seed: int, padding: int
) -> None:
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference = laws.chunked_is_offline(model, model, streams, TOLERANCE, garbage=audio(padding, seed + 99))
    assert difference.log_probs <= TOLERANCE
    assert difference.tokens == 0
    assert difference.near_ties <= difference.frames // 100


@QUICK
@given(size=lengths, seed=seeds, after=st.integers(1, 12_000))
def test_the_future_does_not_change_the_past(model: TorchStreaming, size: int, seed: int, after: int) -> None:
    difference = laws.past_is_unchanged(model, model, audio(size, seed), audio(after, seed + 1), TOLERANCE)
    assert difference.log_probs <= TOLERANCE
    assert difference.tokens == 0


@QUICK
@given(data=st.data(), sizes=st.lists(lengths, min_size=2, max_size=5), seed=seeds)
def test_neighbours_do_not_matter(model: TorchStreaming, data: st.DataObject, sizes: list[int], seed: int) -> None:
    company = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=len(sizes), unique=True)
    rounds = data.draw(st.lists(company, max_size=16))
    streams = [audio(size, seed + index) for index, size in enumerate(sizes)]
    difference, drift = laws.neighbours_do_not_matter(model, streams, rounds, TOLERANCE)
    assert difference.log_probs <= TOLERANCE
    assert difference.tokens == 0
    assert drift <= TOLERANCE


def test_the_final_state_is_the_offline_one(model: TorchStreaming) -> None:
    module, samples = model.whole, audio(3 * 10_240, 1)
    inputs = torch.from_numpy(samples[None]), torch.tensor([[len(samples)]])
    _, streamed = laws.stream(model, samples)
    with torch.inference_mode():
        if isinstance(module, Conformer):
            expected: Any = module._advance(*inputs, module.initial_state(1), module.config.chunk)[1]
        else:
            expected = module.forward_chunk(*inputs, module.initial_state(1))[1]
    for name, part in model.state(streamed)._asdict().items():
        torch.testing.assert_close(part, getattr(expected, name), rtol=0, atol=TOLERANCE, msg=name)


def test_the_laws_can_fail(model: TorchStreaming) -> None:
    """The random model's words change, and its answer depends on what it remembers."""
    samples = audio(SECONDS_2, 3)
    answer, _ = laws.stream(model, samples)
    assert len(np.unique(answer.tokens)) > 2
    forgetful = Forgetful(model.module, model.chunk_samples // FRAME_SAMPLES)
    assert laws.chunked_is_offline(forgetful, model, [samples], TOLERANCE, audio(0, 0)).log_probs > 100 * TOLERANCE


@pytest.mark.parametrize("chunk", CHUNK_FRAMES)
def test_a_conformer_depends_on_its_chunk(chunk: int) -> None:
    model, other = TorchStreaming(conformer(), chunk), TorchStreaming(conformer(), {4: 8, 8: 16, 16: 4}[chunk])
    answer = laws.chunked_is_offline(model, other, [audio(SECONDS_2, 3)], TOLERANCE, audio(0, 0))
    assert answer.log_probs > 100 * TOLERANCE
    assert first_frame_depends_on_the_last(model) > 100 * TOLERANCE


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_encoder_hears_no_frame_ahead_and_knows_no_chunks(cell: str) -> None:
    model, other = TorchStreaming(recurrent(cell), 8), TorchStreaming(recurrent(cell), 3)
    samples = audio(SECONDS_2, 3)
    assert first_frame_depends_on_the_last(model) <= TOLERANCE
    assert (
        np.abs(laws.stream(model, samples)[0].log_probs - laws.stream(other, samples)[0].log_probs).max() <= TOLERANCE
    )


def first_frame_depends_on_the_last(model: TorchStreaming) -> float:
    heard = audio(SECONDS_2, 3)[: model.chunk_samples]
    changed = np.concatenate([heard[:-FRAME_SAMPLES], heard[-FRAME_SAMPLES:][::-1] // 2])
    first, second = laws.stream(model, heard)[0], laws.stream(model, changed)[0]
    return float(np.abs(first.log_probs[:, 0] - second.log_probs[:, 0]).max())
