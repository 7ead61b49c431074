"""A profile as plain data: the parts of one stage's time, and their sums by operator and by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

TOP = "(top)"  # the layer of what is in no module
_RECURRENT = re.compile(r"(LSTM|GRU|RNN)(_\d+)?")


@dataclass(frozen=True)
class Part:
    """An operator in one run, or several of them together.

    nodes: how many operators of the graph. calls: how often they ran, in all trips of loops. ms: their own time,
    without that of their bodies. macs: multiply-accumulates, of activations by activations too. moved_bytes: weights
    read and activations read and written. limit_ms: what the machine would need, ``arithmetic_ms`` of it if nothing had
    to be moved. low: whether the products are of eight bits by eight bits; of several parts, whether most are.
    """

    name: str
    operator: str
    layer: str
    ms: float
    calls: float = 1.0
    nodes: int = 1
    macs: float = 0.0
    moved_bytes: float = 0.0
    weight_bytes: float = 0.0
    arithmetic_ms: float = 0.0
    limit_ms: float = 0.0
    low: bool = False

    @property
    def efficiency(self) -> float:
        """The limit as a share of the time."""
        return self.limit_ms / self.ms if self.ms else 0.0

    @property
    def arithmetic(self) -> bool:
        """Whether most of the limit is multiplying, not moving."""
        return 0 < self.limit_ms < 2 * self.arithmetic_ms


@dataclass(frozen=True)
class Profile:
    """One stage, for a request or a batch of them.

    ms: unprofiled, the mean of the fastest quarter of the runs; parts and ``outside_ms``, which is in no operator, add
    up to it. p50_ms: of all of them. profiled_p50_ms: the same while profiled. deducted_us: what was taken off every
    call for that. weight_bytes: of the whole model as it runs. call_ms: of a call that does no work, where it is known.
    """

    stage: str
    runtime: str
    precision: str
    batch: int
    runs: int
    ms: float
    p50_ms: float
    profiled_p50_ms: float
    deducted_us: float
    outside_ms: float
    weight_bytes: int
    parts: list[Part] = field(default_factory=list)
    verdict: str = ""
    call_ms: float | None = None

    @property
    def label(self) -> str:
        """The stage, and how much it was given at once."""
        return self.stage if self.batch == 1 else f"{self.stage}, batch of {self.batch}"

    @property
    def limit_ms(self) -> float:
        return sum(part.limit_ms for part in self.parts)

    def share(self, ms: float) -> float:
        return ms / self.ms if self.ms else 0.0

    def by_operator(self) -> list[Part]:
        """One part for each kind of operator, the longest first."""
        return _grouped(self.parts, lambda part: (part.operator, ""))

    def by_layer(self) -> list[Part]:
        """One part for each layer, the longest first."""
        return _grouped(self.parts, lambda part: ("", part.layer))

    def summary(self) -> Profile:
        """The same with parts by operator alone."""
        return replace(self, parts=self.by_operator())


def together(parts: Sequence[Part], name: str, operator: str, layer: str) -> Part:
    """The sum of some parts."""
    return Part(
        name=name,
        operator=operator,
        layer=layer,
        ms=sum(part.ms for part in parts),
        calls=sum(part.calls for part in parts),
        nodes=sum(part.nodes for part in parts),
        macs=sum(part.macs for part in parts),
        moved_bytes=sum(part.moved_bytes for part in parts),
        weight_bytes=sum(part.weight_bytes for part in parts),
        arithmetic_ms=sum(part.arithmetic_ms for part in parts),
        limit_ms=sum(part.limit_ms for part in parts),
        low=2 * sum(part.macs for part in parts if part.low) > sum(part.macs for part in parts),
    )


def others(parts: Sequence[Part]) -> list[Part]:
    """What is left of a list, as one part if there is any."""
    return [together(parts, "others", "others", "others")] if parts else []


def layer_of(*names: str) -> str:
    """The module's path in the first of some names that has one: of a node, of its outputs, of those that use them.

    "/blocks.0/attention/MatMul/MatMulIntegerToFloat_1" is of blocks.0/attention: exporters write an operator's kind
    with a capital, modules without. Of layers in one recurrent module each is one of its own: lstm/LSTM_1.
    """
    for name in names:
        segments = [segment for segment in name.split("/") if segment]
        modules = list(takewhile(lambda segment: not segment[0].isupper(), segments[:-1]))
        if modules:
            kind = segments[len(modules)]
            return "/".join([*modules, kind] if _RECURRENT.fullmatch(kind) else modules)
    return TOP


def _grouped(parts: Sequence[Part], key: Callable[[Part], tuple[str, str]]) -> list[Part]:
    groups: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    found = [together(group, operator or layer, operator, layer) for (operator, layer), group in groups.items()]
    return sorted(found, key=lambda part: -part.ms)
