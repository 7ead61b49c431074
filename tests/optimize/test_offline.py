"""The offline twin answers whole recordings with the very bits of the stream."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize import onnx_export, recipes
from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.offline import offline_spec, offline_twin
from optimize.quantize.coverage import coverage
from tests.laws import laws
from tests.laws.laws import Answer
from tests.laws.test_onnx_laws import OnnxStreaming
from tests.laws.test_torch_laws import audio

ENCODERS = [("conformer", 8), ("conformer", 4), ("gru", 8), ("lstm", 8)]


@functools.cache
def streaming(kind: str, chunk: int) -> OnnxStreaming:
    return OnnxStreaming(kind, chunk, "int8")


@functools.cache
def twin(kind: str, chunk: int) -> onnxruntime.InferenceSession:
    step = streaming(kind, chunk)
    spec = offline_spec(step.spec, "speech_offline", (32_000,))
    graph = offline_twin(step.graph, step.spec, spec)
    onnx_export.check(graph, spec)
    return session(graph.SerializeToString())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    encoder=st.sampled_from(ENCODERS),
    sizes=st.lists(st.integers(0, 30_000), min_size=1, max_size=5),
    padding=st.integers(0, 7_000),
)
def test_the_same_bits_as_the_stream(encoder: tuple[str, int], sizes: list[int], padding: int) -> None:
    time = max(max(sizes) + padding, 1)
    recordings = [audio(size, seed) for seed, size in enumerate(sizes)]
    pcm = np.resize(audio(3_000, 99), (len(sizes), time))  # what follows a recording is not silence
    for row, samples in enumerate(recordings):
        pcm[row, : len(samples)] = samples
    lengths = np.array([[size] for size in sizes], np.int32)
    whole = Answer(*twin(*encoder).run(list(Answer._fields), {"pcm": pcm, "lengths": lengths}))
    assert whole.log_probs.shape[:2] == whole.tokens.shape == (len(sizes), -(-time // 640))
    for row, samples in enumerate(recordings):
        alone, _ = laws.stream(streaming(*encoder), samples)
        answer = laws.meant(whole, row)
        np.testing.assert_array_equal(answer.log_probs, alone.log_probs)
        np.testing.assert_array_equal(answer.tokens, alone.tokens)


def test_the_body_counts_once_for_every_chunk() -> None:
    step = streaming("conformer", 8)
    graph = offline_twin(step.graph, step.spec, offline_spec(step.spec, "speech_offline", (32_000,)))
    request: Arrays = {"pcm": np.zeros((1, 10 * step.chunk_samples), np.int16), "lengths": np.full((1, 1), 9, np.int32)}
    found, alone = coverage(graph, inputs=request), coverage(step.graph)
    assert found.mac_fraction == pytest.approx(alone.mac_fraction)
    assert found.weight_bytes_fraction == pytest.approx(alone.weight_bytes_fraction)
    assert found.mac_fraction > 0.1


def test_only_a_streaming_variant_has_a_twin() -> None:
    speech = recipes.load("speech")
    twin = speech.variants["offline"]
    assert [tensor.shape for tensor in twin.spec.inputs] == [("time",), (1,)]
    assert not twin.spec.states
    assert twin.serving.response_cache
    alone = replace(twin, spec=replace(twin.spec, name="speech"), weights_of=None)  # the twin of itself
    with pytest.raises(UserError, match="'chunk_320' does not stream"):
        replace(speech, variants={"chunk_320": alone})
