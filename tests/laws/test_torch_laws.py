"""The four laws, on torch: a small Conformer with random weights, random audio, random lengths and company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize.models.conformer import FRAME_SAMPLES, Conformer, ConformerState
from optimize.models.conformer_block import CHUNK_FRAMES, ConformerConfig
from optimize.models.frontend import FrontEndConfig
from tests.laws import laws
from tests.laws.laws import Answer, Pcm, State

TOLERANCE = 1e-4  # on log-probabilities
SECONDS_2 = 2 * 16_000
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


class TorchStreaming:
    """A Conformer as the laws see it, at one chunk size."""

    def __init__(self, module: Conformer, chunk: int) -> None:
        self.module, self.chunk_samples = module, chunk * FRAME_SAMPLES
        self.whole = conformer(chunk)
        self.whole.load_state_dict(module.state_dict())

    def initial_state(self, batch: int) -> State:
        return tuple(part.numpy() for part in self.module.initial_state(batch))

    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]:
        with torch.inference_mode():
            outputs, after = self.module.forward_chunk(
                torch.from_numpy(pcm), torch.from_numpy(lengths), ConformerState(*map(torch.from_numpy, state))
            )
        return Answer(*(part.numpy() for part in outputs)), tuple(part.numpy() for part in after)

    def offline(self, pcm: Pcm, lengths: NDArray[np.int32]) -> Answer:
        with torch.inference_mode():
            return Answer(*(part.numpy() for part in self.whole(torch.from_numpy(pcm), torch.from_numpy(lengths))))


def conformer(chunk: int) -> Conformer:
    torch.manual_seed(0)
    config = ConformerConfig(
        layers=2, width=32, heads=2, feed_forward=32, kernel=4, left_context=10, chunk=chunk,
        front_end=FrontEndConfig(bins=32, mels=16),
    )  # fmt: skip
    module = Conformer(config).eval()
    with torch.no_grad():
        for linear in module.blocks.modules():
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.xavier_normal_(linear.weight)  # what an untrained block adds is small otherwise
        module.positions.table.normal_()
        module.front_end.mean.fill_(-3.0)
        module.front_end.scale.fill_(4.0)
        module.output.weight.mul_(10)  # so that the words change from frame to frame
        log_probs = module(torch.from_numpy(audio(SECONDS_2, 0)[None]), torch.tensor([[SECONDS_2]])).log_probs
        module.output.bias.sub_(log_probs.mean((0, 1)))
    return module


@pytest.fixture(scope="module", params=CHUNK_FRAMES)
def model(request: pytest.FixtureRequest) -> TorchStreaming:
    return TorchStreaming(conformer(8), request.param)


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
    _, streamed = laws.stream(model, samples)
    with torch.inference_mode():
        _, offline = module._advance(
            torch.from_numpy(samples[None]),
            torch.tensor([[len(samples)]]),
            module.initial_state(1),
            model.chunk_samples // FRAME_SAMPLES,
        )
    for name, found, expected in zip(ConformerState._fields, streamed, offline, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE, msg=name)


def test_the_laws_can_fail(model: TorchStreaming) -> None:
    """The random model's answer depends on its chunk, its left context and its position, and its words change."""
    samples = audio(SECONDS_2, 3)
    answer, _ = laws.stream(model, samples)
    assert len(np.unique(answer.tokens)) > 2
    other = TorchStreaming(model.module, {4: 8, 8: 16, 16: 4}[model.chunk_samples // FRAME_SAMPLES])
    assert laws.chunked_is_offline(model, other, [samples], TOLERANCE, audio(0, 0)).log_probs > 100 * TOLERANCE
    heard = samples[: model.chunk_samples]
    changed = np.concatenate([heard[:-FRAME_SAMPLES], heard[-FRAME_SAMPLES:][::-1] // 2])
    first, second = laws.stream(model, heard)[0], laws.stream(model, changed)[0]
    assert np.abs(first.log_probs[:, 0] - second.log_probs[:, 0]).max() > 100 * TOLERANCE
