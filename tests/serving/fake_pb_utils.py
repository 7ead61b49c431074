"""The part of triton_python_backend_utils that the backend uses, without a Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    INTERNAL: ClassVar[int] = 1
    NOT_FOUND: ClassVar[int] = 2
    INVALID_ARG: ClassVar[int] = 3
    UNAVAILABLE: ClassVar[int] = 4

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@dataclass
class InferenceResponse:
    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None

    def arrays(self) -> dict[str, Any]:
        """The answer by name; fails on an error."""
        assert self.error is None, self.error.message
        return {tensor.name(): tensor.as_numpy() for tensor in self.output_tensors}


@dataclass
class InferenceRequest:
    arrays: dict[str, Any]
    wanted: list[str] = field(default_factory=list)
    stream: int | str = 0
    starts: bool = False
    ends: bool = False
    timeout_us: int = 0
    parameters_json: str = "{}"

    def correlation_id(self) -> int | str:
        return self.stream

    def flags(self) -> int:
        return 1 * self.starts + 2 * self.ends

    def timeout(self) -> int:
        return self.timeout_us

    def parameters(self) -> str:
        return self.parameters_json

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.arrays.items()]

    def requested_output_names(self) -> list[str]:
        return self.wanted


class Logger:
    warnings: ClassVar[list[str]] = []

    @classmethod
    def log_warn(cls, message: str) -> None:
        cls.warnings.append(message)


class Metric:
    def __init__(self) -> None:
        self.total = 0.0

    def increment(self, value: float) -> None:
        self.total += value


class MetricFamily:
    COUNTER: ClassVar[str] = "counter"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind
        self.metrics: dict[tuple[tuple[str, str], ...], Metric] = {}

    def Metric(self, labels: dict[str, str]) -> Metric:
        return self.metrics.setdefault(tuple(labels.items()), Metric())
