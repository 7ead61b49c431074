"""A streaming speech model of a few nodes: it knows one word for each beep it has heard so far.

A frame is 40 ms. One with a meant sample above ``LOUD`` is loud, and a loud frame after a quiet one is a beep. The
first beep of a stream is token 1, the tenth is token 10, the eleventh is 1 again; whether the last frame was loud, and
how many beeps there were, goes from chunk to chunk. So the words tell whether the server was sent the sound in order,
whole and once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clients.recording import SAMPLE_RATE_HZ, Pcm
from optimize.data.vocabulary import VOCABULARY
from optimize.specs import ModelSpec, ServingSpec, StateSpec, TensorSpec
from optimize.triton_config import to_config, to_text

FRAME, TOKENS, LOUD = 640, 11, 8_000
IDLE_US = 30_000_000


def write(repository: Path, name: str, frames: int, labels: Sequence[str] = VOCABULARY, max_streams: int = 16) -> None:
    """Put a model with chunks of that many frames where Triton looks for it. labels: published with it."""
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("pcm", "int16", (frames * FRAME,)), TensorSpec("lengths", "int32", (1,))),
        outputs=(
            TensorSpec("log_probs", "float32", (frames, TOKENS)),
            TensorSpec("tokens", "int64", (frames,), labels=tuple(labels)),
            TensorSpec("output_lengths", "int64", (1,)),
        ),
        states=(StateSpec("loud", "int64", (1,)), StateSpec("beeps", "int64", (1,))),
        max_batch=4,
    )
    config = to_config(spec, ServingSpec(max_streams=max_streams, idle_us=IDLE_US))
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(to_text(config))
    onnx.save(_graph(spec, frames), folder / "1" / "model.onnx")


def beeps(count: int, seconds: float = 0.1, pause_s: float = 0.15) -> Pcm:
    """A pause and a tone of 1 kHz, so often, and a pause."""
    pause = np.zeros(int(pause_s * SAMPLE_RATE_HZ), np.int16)
    times = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = (16_000 * np.sin(2 * np.pi * 1_000 * times)).astype(np.int16)
    return np.concatenate([pause, tone] * count + [pause])


def _graph(spec: ModelSpec, frames: int) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Less", ["places", "lengths"], ["meant"]),
        node("Cast", ["pcm"], ["samples"], to=TensorProto.INT64),
        node("Where", ["meant", "samples", "zero"], ["heard"]),
        node("Reshape", ["heard", "framed"], ["by_frame"]),
        node("ReduceMax", ["by_frame"], ["peaks"], axes=[2], keepdims=0),
        node("Greater", ["peaks", "threshold"], ["is_loud"]),
        node("Cast", ["is_loud"], ["loud"], to=TensorProto.INT64),
        node("Slice", ["loud", "none", "last", "axis"], ["all_but_last"]),
        node("Concat", ["state_loud", "all_but_last"], ["before"], axis=1),
        node("Sub", ["one", "before"], ["quiet_before"]),
        node("Mul", ["loud", "quiet_before"], ["begins"]),
        node("CumSum", ["begins", "one_scalar"], ["here"]),
        node("Add", ["here", "state_beeps"], ["counted"]),
        node("Sub", ["counted", "one"], ["from_zero"]),
        node("Mod", ["from_zero", "ten"], ["digit"]),
        node("Add", ["digit", "one"], ["word"]),
        node("Mul", ["begins", "word"], ["tokens"]),
        node("Slice", ["loud", "last", "end", "axis"], ["next_state_loud"]),
        node("Slice", ["counted", "last", "end", "axis"], ["next_state_beeps"]),
        node("OneHot", ["tokens", "depth", "chances"], ["log_probs"]),
        node("Cast", ["lengths"], ["long_lengths"], to=TensorProto.INT64),
        node("Add", ["long_lengths", "frame_less_one"], ["rounded_up"]),
        node("Div", ["rounded_up", "frame"], ["output_lengths"]),
    ]
    constants = {
        "places": np.arange(frames * FRAME, dtype=np.int32)[None], "zero": np.int64(0), "one": np.array([1]),
        "one_scalar": np.int64(1), "ten": np.array([10]), "framed": np.array([0, frames, FRAME]),
        "threshold": np.int64(LOUD), "none": np.array([0]), "last": np.array([-1]), "end": np.array([2**31]),
        "axis": np.array([1]), "depth": np.int64(TOKENS), "chances": np.array([-9, 0], np.float32),
        "frame": np.array([FRAME]), "frame_less_one": np.array([FRAME - 1]),
    }  # fmt: skip
    states = [TensorSpec(state.input_name, state.dtype, state.shape) for state in spec.states]
    next_states = [TensorSpec(state.output_name, state.dtype, state.shape) for state in spec.states]
    graph = helper.make_graph(
        nodes,
        spec.name,
        [_value(tensor) for tensor in (*spec.inputs, *states)],
        [_value(tensor) for tensor in (*spec.outputs, *next_states)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, ["batch", *tensor.shape])
