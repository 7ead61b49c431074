"""One sentence on a profile: what the bottleneck is, and what to try. By rules, the first that applies:

1. More of the time is outside of all operators than in any kind of them: it is the runtime's (or Python's) own, or that
   of other programs, if a call without any work takes much less.
2. More is in operators whose calls take under 3 µs than in any kind of the others: their number is what costs.
3. Else the kind of operator with the most time is it. At more than half of its limit it is bound by what the limit is
   of, arithmetic or reading. Below: a recurrence waits for its own last step; other products are too small to fill
   the arithmetic units; what multiplies nothing is better fused away.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimize.profiler.machine import Machine
from optimize.profiler.profile import Part, Profile, together
from optimize.profiler.roofline import RECURRENT

SMALL_MS = 0.003  # a call that takes less is mostly the cost of calling
NEAR = 0.5  # of the limit: what is beyond is bound by it
WORTH = 1.1  # a batch is named that gives so many times the items a second
_LOOPS = {"Scan", "Loop"}
_RECURRENT = RECURRENT | _LOOPS | {"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"}


def verdict(profile: Profile, machine: Machine, batched: Profile | None = None) -> str:
    """The sentence. batched: the same stage in batches, which shows what a batch would gain."""
    small = [part for part in profile.parts if part.calls and part.ms / part.calls < SMALL_MS]
    kinds = _kinds([part for part in profile.parts if part not in small])
    largest = max(kinds, key=lambda part: part.ms, default=together([], "", "", ""))
    few = together(small, "", "", "")
    if profile.outside_ms >= max(largest.ms, few.ms):
        return _outside(profile, batched)
    if few.ms >= largest.ms:
        return (
            f"{_percent(profile, few.ms)} of the time is in {_count(few.calls)} calls that each take under "
            f"{1e3 * SMALL_MS:.0f} µs: overhead of small operators; try to fuse them, or "
            f"{_in_batches(profile, batched)}"
        )
    bound = _bound(profile, largest, machine, batched)
    return f"{_percent(profile, largest.ms)} of the time is in {_named(largest)}, {bound}"


def _outside(profile: Profile, batched: Profile | None) -> str:
    if profile.call_ms is not None and profile.call_ms < profile.outside_ms / 2:
        return (
            f"{_percent(profile, profile.outside_ms)} of the time is in no operator, and a call without work explains "
            f"{_percent(profile, profile.call_ms)}: the machine had other work; try again when it has not"
        )
    whose = "Python's and torch's" if profile.runtime == "torch" else "the runtime's own, with every call"
    instead = "ONNX Runtime" if profile.runtime == "torch" else "more work in one call"
    return (
        f"{_percent(profile, profile.outside_ms)} of the time is in no operator, it is {whose}: "
        f"overhead; try {instead}, or {_in_batches(profile, batched)}"
    )


def _bound(profile: Profile, part: Part, machine: Machine, batched: Profile | None) -> str:
    kind = "int8" if part.low else "fp32"
    share = f"{100 * min(part.efficiency, 1):.0f} %"
    quantise = "" if part.low or profile.precision != "fp32" else "to quantise, or "
    if profile.runtime == "torch":
        quantise = "ONNX Runtime, or "
    step_by_step = part.operator in _RECURRENT
    if part.limit_ms and part.efficiency >= NEAR and part.arithmetic:
        steps = " of one step at a time" if step_by_step else ""
        return f"at {share} of the machine's {kind} rate: bound by arithmetic{steps}; try {quantise}narrower layers"
    if part.macs and part.efficiency >= NEAR:
        near, weights = machine.levels[0], f"{profile.weight_bytes / 1e6:.1f} MB"
        beyond = f" (the weights of {weights} exceed the {near.name})" if profile.weight_bytes > near.size_bytes else ""
        return (
            f"at {share} of the bandwidth of what holds them{beyond}: bound by memory; "
            f"try {quantise}{_in_batches(profile, batched)}"
        )
    if step_by_step:
        return (
            f"at {share} of the machine's limit: bound by one step waiting for another; "
            f"try {quantise}{_in_batches(profile, batched)}, or fewer steps"
        )
    if part.macs:
        return (
            f"at {share} of the machine's limit: products too small to fill its arithmetic units; "
            f"try {_in_batches(profile, batched)}, or wider and fewer layers"
        )
    if part.efficiency >= NEAR:
        return f"at {share} of the bandwidth: bound by moving activations; try to fuse them, or a narrower layer"
    return "which multiply nothing: try to fuse them with their neighbours, or to do without"


def _in_batches(profile: Profile, batched: Profile | None) -> str:
    """A batch, and what it gains if that was measured; something else where it gains nothing."""
    if batched is None or batched.batch <= profile.batch:
        return "a batch"
    gain = profile.ms / profile.batch / (batched.ms / batched.batch)
    if gain < WORTH:
        return f"a smaller model (batches of {batched.batch} gain nothing)"
    return f"a batch (of {batched.batch}: {gain:.1f} times as many items a second)"


def _kinds(parts: Sequence[Part]) -> list[Part]:
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        kinds.setdefault(part.operator, []).append(part)
    return [together(group, operator, operator, "") for operator, group in kinds.items()]


def _named(part: Part) -> str:
    calls = f" that ran {_count(part.calls)} times" if part.calls > part.nodes + 0.5 else ""
    return f"the {part.operator}{calls}" if part.nodes == 1 else f"the {part.nodes} {part.operator}{calls}"


def _count(calls: float) -> str:
    return f"{calls:,.0f}"


def _percent(profile: Profile, ms: float) -> str:
    return f"{100 * profile.share(ms):.0f} %"
