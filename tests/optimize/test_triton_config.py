"""config.pbtxt and the two specifications say the same thing, through Triton's own protobuf and its text form."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.specs import DTYPES, ModelSpec, ServingSpec, SpecError, StateSpec, TensorSpec
from optimize.triton_config import HEADER, REFUSED_STREAMS, effective, from_config, parse_text, to_config, to_text

FORECAST = ModelSpec(
    name="load_forecast",
    inputs=(TensorSpec("history", "float32", ("hours", 14)), TensorSpec("calendar", "float32", (24, 12))),
    outputs=(TensorSpec("forecast", "float32", (24,)),),
    max_batch=32,
    buckets={"hours": (48, 72)},
)
ENCODER = ModelSpec(
    name="speech",
    inputs=(TensorSpec("pcm", "int16", (2560,)),),
    outputs=(
        TensorSpec("log_probs", "float32", (4, 3)),
        TensorSpec("tokens", "int64", (4,), labels=("", "un", 'été "deux"')),
    ),
    states=(StateSpec("hidden", "float32", (2, 256)), StateSpec("cell", "float32", (2, 256))),
)
# A whole file, checked line by line against Triton's documentation.
FORECAST_TEXT = """\
name: "load_forecast"
version_policy {
  latest {
    num_versions: 1
  }
}
max_batch_size: 32
input {
  name: "history"
  data_type: TYPE_FP32
  dims: [-1, 14]
}
input {
  name: "calendar"
  data_type: TYPE_FP32
  dims: [24, 12]
}
output {
  name: "forecast"
  data_type: TYPE_FP32
  dims: [24]
}
instance_group {
  count: 2
  kind: KIND_CPU
}
default_model_filename: "model.onnx"
dynamic_batching {
  preferred_batch_size: [8, 16]
  max_queue_delay_microseconds: 500
}
parameters {
  key: "buckets.hours"
  value {
    string_value: "48,72"
  }
}
parameters {
  key: "inter_op_thread_count"
  value {
    string_value: "1"
  }
}
parameters {
  key: "intra_op_thread_count"
  value {
    string_value: "1"
  }
}
parameters {
  key: "shape.history"
  value {
    string_value: "hours,14"
  }
}
backend: "onnxruntime"
response_cache {
  enable: true
}
"""

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.startswith(("state_", "next_state_"))
)
fixed_sizes = st.integers(1, 5000)


@st.composite
def model_specs(draw: st.DrawFn) -> ModelSpec:
    tensor_names = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    axes = draw(st.lists(names, max_size=2, unique=True))
    sizes = st.one_of(fixed_sizes, st.sampled_from(axes)) if axes else fixed_sizes
    shapes = st.lists(sizes, min_size=1, max_size=3).map(tuple)
    tensors = [TensorSpec(name, draw(st.sampled_from(DTYPES)), draw(shapes)) for name in tensor_names]
    split = draw(st.integers(1, len(tensors) - 1))
    whats = draw(st.lists(names, max_size=3, unique=True))
    state_shapes = st.lists(fixed_sizes, min_size=1, max_size=3).map(tuple)
    used = {size for tensor in tensors[:split] for size in tensor.shape if isinstance(size, str)}
    ascending = st.sets(fixed_sizes, min_size=1, max_size=3).map(lambda sizes: tuple(sorted(sizes)))
    return ModelSpec(
        name=draw(names),
        inputs=tuple(tensors[:split]),
        outputs=tuple(tensors[split:]),
        states=tuple(StateSpec(what, draw(st.sampled_from(DTYPES)), draw(state_shapes)) for what in whats),
        max_batch=draw(st.integers(1, 512)),
        buckets={axis: draw(ascending) for axis in sorted(used) if draw(st.booleans())},
    )


@st.composite
def deployments(draw: st.DrawFn) -> tuple[ModelSpec, ServingSpec]:
    spec = draw(model_specs())
    serving = ServingSpec(
        instances=draw(st.integers(1, 16)),
        threads=draw(st.integers(1, 64)),
        preferred_batch=tuple(draw(st.lists(st.integers(1, spec.max_batch), max_size=3))),
        queue_delay_us=draw(st.integers(0, 10**6)),
        response_cache=draw(st.booleans()) and not spec.states,
        kind=draw(st.sampled_from(("cpu", "gpu"))),
        strategy=draw(st.sampled_from(("oldest", "direct"))),
        max_streams=draw(st.integers(1, 10**5)),
        idle_us=draw(st.integers(1, 10**10)),
        opening_cache_mb=draw(st.integers(0, 10**4)),
    )
    return spec, serving


@settings(max_examples=150, deadline=None)
@given(deployments())
def test_specifications_survive_the_text(deployment: tuple[ModelSpec, ServingSpec]) -> None:
    spec, serving = deployment
    config = parse_text(to_text(to_config(spec, serving)))
    assert from_config(config) == (spec, effective(spec, serving))
    assert to_config(*from_config(config)) == config


def test_text_is_what_triton_users_expect() -> None:
    serving = ServingSpec(instances=2, preferred_batch=(8, 16), queue_delay_us=500, response_cache=True)
    assert to_text(to_config(FORECAST, serving)) == HEADER + FORECAST_TEXT


def test_a_model_with_states_is_served_as_sequences() -> None:
    config = to_config(ENCODER, ServingSpec(max_streams=100, idle_us=5_000_000))
    batching = config.sequence_batching
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert [tensor.name for tensor in config.input] == ["pcm"]
    assert batching.oldest.max_candidate_sequences == 100 + REFUSED_STREAMS
    assert config.parameters["max_streams"].string_value == "100"
    assert batching.max_sequence_idle_microseconds == 5_000_000
    assert [(state.input_name, state.output_name, [*state.dims]) for state in batching.state] == [
        ("state_hidden", "next_state_hidden", [2, 256]),
        ("state_cell", "next_state_cell", [2, 256]),
    ]
    assert all(state.initial_state[0].zero_data for state in batching.state)
    assert not config.response_cache.enable
    assert not batching.control_input


@pytest.mark.parametrize(
    ("spec", "serving", "words"),
    [
        (ENCODER, ServingSpec(response_cache=True), "response_cache"),
        (FORECAST, ServingSpec(preferred_batch=(64,)), "exceeds max_batch 32"),
        (replace(FORECAST, outputs=(TensorSpec("forecast", "float32", ()),)), ServingSpec(), r"make its shape \(1,\)"),
        (replace(ENCODER, inputs=(TensorSpec("pcm", "int16", ("a,b",)),)), ServingSpec(), "cannot name an axis"),
    ],
)
def test_what_triton_cannot_serve_is_refused(spec: ModelSpec, serving: ServingSpec, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        to_config(spec, serving)


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ('parameters { key: "execution_mode" value { string_value: "1" } }', "execution_mode"),
        ("input { name: 'text' data_type: TYPE_STRING dims: [1] }", "TYPE_STRING"),
        ("instance_group { count: 1 kind: KIND_GPU }", "one instance_group"),
        ('parameters { key: "intra_op_thread_count" value { string_value: "many" } }', "many"),
        ('platform: "onnxruntime_onnx"', "platform"),
    ],
)
def test_a_configuration_of_other_making_is_refused(addition: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        from_config(parse_text(to_text(to_config(FORECAST, ServingSpec())) + addition))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dynamic_batching { } sequence_batching { }", "one scheduler"),
        ("max_batch_size: many", "many"),
        ("no_such_field: 1", "no_such_field"),
    ],
)
def test_unreadable_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_text(text)


def test_a_vocabulary_travels_with_the_configuration() -> None:
    spec = replace(FORECAST, vocabulary=bytes(range(256)))
    config = parse_text(to_text(to_config(spec, ServingSpec())))
    assert base64.b64decode(config.parameters["vocabulary"].string_value) == spec.vocabulary
    assert from_config(config) == (spec, ServingSpec())
    assert "vocabulary" not in to_config(FORECAST, ServingSpec()).parameters
