"""The offline twin answers whole recordings with the very bits of the stream."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from optimize import onnx_export, recipes
from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.offline import offline_spec, offline_twin
from optimize.quantize.coverage import coverage
from optimize.specs import ModelSpec, StateSpec, TensorSpec
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


def test_lengths_beyond_the_time_are_the_time() -> None:
    pcm = audio(9_000, 1)[None]
    answers = [
        twin("gru", 8).run(None, {"pcm": pcm, "lengths": np.array([[length]], np.int32)}) for length in (9_000, 10**6)
    ]
    for found, expected in zip(*answers, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_lengths_of_64_bits_and_chunks_of_one_size() -> None:
    step = ModelSpec(
        "sums",
        inputs=(TensorSpec("x", "float32", (4,)), TensorSpec("lengths", "int64", (1,))),
        outputs=(TensorSpec("y", "float32", (4,)), TensorSpec("output_lengths", "int64", (1,))),
        states=(StateSpec("last", "float32", (4,)),),
    )
    nodes = [("Add", ["x", "state_last"], "y"), ("Identity", ["x"], "next_state_last")]
    nodes.append(("Identity", ["lengths"], "output_lengths"))
    values = {
        name: helper.make_tensor_value_info(name, kind, ["batch", size])
        for name, kind, size in [
            *((name, TensorProto.FLOAT, 4) for name in ("x", "state_last", "y", "next_state_last")),
            *((name, TensorProto.INT64, 1) for name in ("lengths", "output_lengths")),
        ]
    }
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, [output], name=output) for operator, inputs, output in nodes],
        "sums",
        [values[name] for name in step.input_names],
        [values[name] for name in step.output_names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    opened = session(offline_twin(model, step, offline_spec(step, "sums_offline", (8,))).SerializeToString())
    y, lengths = opened.run(None, {"x": np.arange(6, dtype=np.float32)[None], "lengths": np.array([[6]])})
    assert y.tolist() == [[0, 1, 2, 3, 4, 6]]  # the second chunk adds the first
    assert lengths.tolist() == [[6]]
    wider = replace(step, inputs=(*step.inputs, TensorSpec("z", "float32", (5,))))
    with pytest.raises(UserError, match="chunks of one size"):
        offline_spec(wider, "sums_offline", (8,))


def test_only_a_streaming_variant_has_a_twin() -> None:
    speech = recipes.load("speech")
    twin = speech.variants["offline"]
    assert [tensor.shape for tensor in twin.spec.inputs] == [("time",), (1,)]
    assert not twin.spec.states
    assert twin.serving.response_cache
    alone = replace(twin, spec=replace(twin.spec, name="speech"), weights_of=None)  # the twin of itself
    with pytest.raises(UserError, match="offline_of is 'chunk_320', which is no"):
        replace(speech, variants={"chunk_320": alone})
