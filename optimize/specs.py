"""The one description of a model: what goes in, what comes out, what it remembers, how it is served.

Everything that needs a tensor's name, type or shape reads it here: ONNX export, config.pbtxt, client checks,
warm-up and tests. Nothing restates a shape. Plain data, no torch: a client machine imports it too.

    ModelSpec(
        name="load_forecast",
        inputs=(TensorSpec("history", "float32", (72, 14)), TensorSpec("calendar", "float32", (24, 12))),
        outputs=(TensorSpec("forecast", "float32", (24,)),),
    )

Shapes never name the batch axis: it is always axis 0, dynamic, and at most ``ModelSpec.max_batch``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from optimize.errors import UserError

DTYPES = ("float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
STATE_PREFIX, NEXT_STATE_PREFIX = "state_", "next_state_"
LENGTHS, OUTPUT_LENGTHS = "lengths", "output_lengths"
"""The input (1,) that says how much of a chunk or of a padded request is meant, and the output that says it of the
answer: along the first axis of every other tensor."""

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


class SpecError(UserError, ValueError):
    """A description that cannot be exported or served; the message says which part and why."""


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor, without its batch axis.

    shape: sizes; a string instead of a size names a dynamic axis, the same name meaning the same size. labels: of a
    tensor of indices, what each stands for, by index.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    description: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name("tensor", self.name)
        if self.dtype not in DTYPES:
            raise SpecError(f"tensor '{self.name}': dtype '{self.dtype}' is unknown; use one of {', '.join(DTYPES)}")
        for size in self.shape:
            if isinstance(size, int) and size < 1:
                raise SpecError(f"tensor '{self.name}': size {size} in shape {self.shape}; name a dynamic axis instead")


@dataclass(frozen=True)
class StateSpec:
    """What one stream carries from chunk to chunk: fixed capacity, all zeros at the start.

    ``StateSpec("hidden", ...)`` is the ONNX input ``state_hidden`` and output ``next_state_hidden``. The common
    prefixes matter: Triton pairs state inputs and outputs by their position in two sorted lists, not by name.
    """

    what: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(not isinstance(size, int) for size in self.shape):
            raise SpecError(f"state '{self.what}': shape {self.shape} is dynamic; a state has a fixed capacity")
        TensorSpec(self.input_name, self.dtype, self.shape)

    @property
    def input_name(self) -> str:
        return STATE_PREFIX + self.what

    @property
    def output_name(self) -> str:
        return NEXT_STATE_PREFIX + self.what


@dataclass(frozen=True)
class ModelSpec:
    """The interface of one servable model.

    name: the Triton model's name. buckets: for a dynamic axis, the sizes to which clients pad (ascending); Triton
    only batches requests of equal shape. max_batch: the most rows of one run. vocabulary: the SentencePiece file or
    Hugging Face tokenizer.json by which texts become the numbers that the model reads and back, if it reads any;
    clients get it from the server.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    max_batch: int = 64
    buckets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    vocabulary: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        _check_name("model", self.name)
        if not self.inputs or not self.outputs:
            raise SpecError(f"model '{self.name}': needs at least one input and one output")
        if self.max_batch < 1:
            raise SpecError(f"model '{self.name}': max_batch is {self.max_batch}; at least 1 is needed")
        names = [*self.input_names, *self.output_names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecError(f"model '{self.name}': these names are used twice: {', '.join(twice)}")
        for tensor in (*self.inputs, *self.outputs):
            if tensor.name.startswith((STATE_PREFIX, NEXT_STATE_PREFIX)):
                raise SpecError(f"model '{self.name}': '{tensor.name}' looks like a state; declare it under states")
        axes = {size for tensor in self.inputs for size in tensor.shape if isinstance(size, str)}
        for axis, sizes in self.buckets.items():
            if axis not in axes:
                raise SpecError(f"model '{self.name}': buckets for '{axis}', which is no dynamic axis of an input")
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise SpecError(f"model '{self.name}': buckets of '{axis}' must ascend from 1, got {sizes}")

    @property
    def input_names(self) -> list[str]:
        """The ONNX graph's inputs in order: the request's tensors, then the states."""
        return [tensor.name for tensor in self.inputs] + [state.input_name for state in self.states]

    @property
    def output_names(self) -> list[str]:
        """The ONNX graph's outputs in order: the answer's tensors, then the next states."""
        return [tensor.name for tensor in self.outputs] + [state.output_name for state in self.states]


@dataclass(frozen=True)
class ServingSpec:
    """How a model is deployed; kept as JSON so that a tuner may write it.

    instances: worker processes, each holding the weights. threads: ONNX Runtime threads of each. preferred_batch:
    batch sizes worth forming (empty: any). queue_delay_us: how long a request may wait for company.
    response_cache: answer byte-identical requests from Triton's cache (stateless models only). kind: where the
    instances run. The rest concerns models with states: scheduling strategy, streams held at once, and how long
    one may be silent (microseconds) before Triton frees its slot. opening_cache_mb: memory (MiB) of each instance for
    the answers to what many streams begin with, 0 for none; for batch-invariant models, since of any other a stream
    would get what another stream got in other company.
    """

    instances: int = 1
    threads: int = 1
    preferred_batch: tuple[int, ...] = ()
    queue_delay_us: int = 0
    response_cache: bool = False
    kind: Literal["cpu", "gpu"] = "cpu"
    strategy: Literal["oldest", "direct"] = "oldest"
    max_streams: int = 256
    idle_us: int = 10_000_000
    opening_cache_mb: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.preferred_batch, list):  # as JSON gives it
            object.__setattr__(self, "preferred_batch", tuple(self.preferred_batch))
        for name, least in (
            ("instances", 1),
            ("threads", 1),
            ("queue_delay_us", 0),
            ("max_streams", 1),
            ("idle_us", 1),
            ("opening_cache_mb", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"serving: {name} is {value!r}; expected a whole number of at least {least}")
        if self.kind not in ("cpu", "gpu"):
            raise SpecError(f"serving: kind is '{self.kind}'; expected 'cpu' or 'gpu'")
        if self.strategy not in ("oldest", "direct"):
            raise SpecError(f"serving: strategy is '{self.strategy}'; expected 'oldest' or 'direct'")


def candidate_of(model: str) -> str:
    """The name under which a model's candidate is served beside it; no other model can have such a name."""
    return f"{model}.candidate"


def is_candidate(model: str) -> bool:
    """Whether this is the name of a candidate."""
    return model.endswith(candidate_of(""))


def _check_name(kind: str, name: str) -> None:
    if not _IDENTIFIER.fullmatch(name):
        raise SpecError(f"{kind} name '{name}': use lower-case letters, digits and '_', beginning with a letter")
