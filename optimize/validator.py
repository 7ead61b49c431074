"""Would the official Triton image serve this model, and serve it right?

The image's C++ onnxruntime backend cannot run in this project's tests, so what it does is written down here, as a
table of rules: what it refuses at load, what it loads as READY and then fails on, what it answers wrongly.

    for problem in validate(config, Path("model_repository/load_forecast/1/model.onnx")):
        print(problem)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from optimize import triton_rules as rules
from optimize.errors import UserError
from optimize.onnx_interface import OnnxFileError, OnnxInterface, read_interface
from optimize.target_runtime import IMAGE

Rule = Callable[[pb.ModelConfig, OnnxInterface], Iterator[str]]


class Effect(StrEnum):
    """What comes of the mistake in the official image."""

    REJECTED = "rejected at load"
    FAILS = "loads, then fails"
    WRONG = "loads, then answers wrongly"
    UNMEANT = "serves otherwise than meant"


RULES: tuple[tuple[Rule, Effect], ...] = (
    (rules.ir_version, Effect.REJECTED),
    (rules.opset, Effect.REJECTED),
    (rules.operators, Effect.REJECTED),
    (rules.matmul_bits, Effect.REJECTED),
    (rules.backend, Effect.REJECTED),
    (rules.undeclared_input, Effect.REJECTED),
    (rules.unknown_input, Effect.REJECTED),
    (rules.unknown_output, Effect.REJECTED),
    (rules.data_types, Effect.REJECTED),
    (rules.dims, Effect.REJECTED),
    (rules.dynamic_batch, Effect.REJECTED),
    (rules.optional_input, Effect.REJECTED),
    (rules.parameters, Effect.REJECTED),
    (rules.preferred_batch, Effect.REJECTED),
    (rules.response_cache, Effect.REJECTED),
    (rules.control_input, Effect.REJECTED),
    (rules.state_as_input, Effect.REJECTED),
    (rules.state_output, Effect.FAILS),
    (rules.state_type, Effect.FAILS),
    (rules.state_dims, Effect.FAILS),
    (rules.warmup, Effect.FAILS),
    (rules.initial_state, Effect.WRONG),
    (rules.state_order, Effect.WRONG),
    (rules.direct_batch, Effect.WRONG),
    (rules.instance_group, Effect.UNMEANT),
    (rules.thread_count, Effect.UNMEANT),
    (rules.idle_limit, Effect.UNMEANT),
)


@dataclass(frozen=True)
class Problem:
    """rule: the name of the rule that found it. message: what is wrong, and what to do."""

    rule: str
    effect: Effect
    message: str

    def __str__(self) -> str:
        return f"{self.rule} ({self.effect}): {self.message}"


class UnfitModelError(UserError, ValueError):
    """The official image would not serve this model, or not as it is meant. problems: everything that was found."""

    def __init__(self, model: str, problems: list[Problem]) -> None:
        super().__init__("\n  ".join([f"model '{model}' is unfit for {IMAGE}:", *map(str, problems)]))
        self.problems = problems


def validate(config: pb.ModelConfig, model_path: Path) -> list[Problem]:
    """Everything that keeps the official image from serving the model as it is meant; empty for a fit one."""
    try:
        model = read_interface(model_path)
    except OnnxFileError as error:
        return [Problem("sound_file", Effect.REJECTED, str(error))]
    return [Problem(rule.__name__, effect, message) for rule, effect in RULES for message in rule(config, model)]


def check(config: pb.ModelConfig, model_path: Path) -> None:
    """Raises UnfitModelError unless ``validate`` finds nothing."""
    problems = validate(config, model_path)
    if problems:
        raise UnfitModelError(config.name, problems)
