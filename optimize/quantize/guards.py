"""The traps between a trained network and an int8 model in production, each looked for on the graph itself.

    require(int8, before=fp32, choices=choices, profile="invariant")

A guard is a function from a ``Subject`` to its findings. Each comes from an accident that nothing reports by itself:
a file that loads, runs, and is slower or wronger than it claims.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir
from onnx import ModelProto

from optimize import graph_rules, rewriting
from optimize.benchmark import environment, session
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.graph_rules import RECURRENT, Fault
from optimize.quantize.coverage import planned_share
from optimize.quantize.lstm_operator import is_pinned
from optimize.quantize.method import FP32, Profile
from optimize.quantize.plan import Choice
from optimize.quantize.saturation import saturates, saturation
from optimize.quantize.shapes import REFUSALS, observed_shapes, zeros
from optimize.quantize.weights import Weighted, walk, weighted_nodes
from optimize.target_runtime import BATCH_DEPENDENT_OPERATORS

LOG = logging.getLogger(__name__)

VECTOR = 16  # floats in the widest vector
POSITION_DEPENDENT = ("Log", "Sin", "Cos", "Softplus", "Atan")  # by trial of ONNX Runtime 1.31.1 on x86-64
_TOLERATED = 0.001  # relative error by saturation that is only told
_SIZES = ((2, 16), (3, 24))  # two runs: batch, any other dynamic axis


class GuardError(UserError):
    """The model has a trap in it. findings: those that are no mere warnings."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n  ".join(["the model is not fit to be served as it claims:", *map(str, findings)]))
        self.findings = findings


@dataclass(frozen=True)
class Subject:
    """A graph and what is claimed of it.

    profile: what it was quantised for, None if it is in fp32. before: the graph that it was quantised from. choices:
    what the plan asks for, by the name of the node there; one in fp32 with a reason is excused. requests: real ones,
    for which activations are looked at, and, where their shapes differ, with which axes are tried. isa: the features
    of the CPU that is to serve it, by the names of ``benchmark.environment``; None for this one.
    """

    model: ModelProto
    profile: Profile | None = None
    before: ModelProto | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    requests: Sequence[Arrays] = ()
    isa: Collection[str] | None = None

    @cached_property
    def weighted(self) -> list[Weighted]:
        return weighted_nodes(self._opened)

    @cached_property
    def numbers(self) -> dict[ir.Node, int]:
        """Place of every node in the order of ``walk``."""
        return {node: number for number, (node, _) in enumerate(walk(self._opened.graph))}

    @property
    def asks_for_int8(self) -> bool:
        return self.profile is not None or any(choice.method != FP32 for choice in self.choices.values())

    def excused(self, name: str) -> bool:
        """Whether the plan says why an operator stays in fp32."""
        return name in self.choices and self.choices[name].method == FP32 and bool(self.choices[name].reason)

    @cached_property
    def _opened(self) -> ir.Model:
        return rewriting.read(self.model)


@dataclass(frozen=True)
class Finding:
    """A trap that is there. warning: it may do no harm."""

    guard: str
    fault: Fault
    warning: bool

    def __str__(self) -> str:
        where = f" '{self.fault.node}'" if self.fault.node else ""
        return f"{self.guard}{where}: {self.fault.problem}; {self.fault.advice}"


Check = Callable[[Subject], Iterator[Fault]]


@dataclass(frozen=True)
class Guard:
    """why: what the trap does. warns: what it finds may do no harm."""

    name: str
    why: str
    check: Check
    warns: bool = False


def find(subject: Subject, names: Collection[str] | None = None) -> list[Finding]:
    """What the guards find, all of them or those named. Raises UserError when a graph that must be run does not."""
    return [
        Finding(guard.name, fault, guard.warns)
        for guard in GUARDS
        if names is None or guard.name in names
        for fault in guard.check(subject)
    ]


def require(
    model: ModelProto,
    *,
    before: ModelProto | None = None,
    choices: Mapping[str, Choice] | None = None,
    profile: Profile | None = None,
    requests: Sequence[Arrays] = (),
    isa: Collection[str] | None = None,
) -> list[Finding]:
    """Raises GuardError for any finding but warnings, which are logged and returned. For arguments see ``Subject``."""
    findings = find(Subject(model, profile, before, choices or {}, requests, isa))
    if wrong := [finding for finding in findings if not finding.warning]:
        raise GuardError(wrong)
    for finding in findings:
        LOG.warning("%s", finding)
    return findings


def undone_plan(subject: Subject) -> Iterator[Fault]:
    if subject.before is not None:
        for name in planned_share(subject.before, subject.model, subject.choices)[1]:
            choice = subject.choices[name]
            yield Fault(
                name,
                f"the plan quantises {choice.operator} by '{choice.method}', but not all its weights are in eight bits",
                "list it as fp32 with the reason in the plan, or use --retune",
            )


def unquantised_recurrence(subject: Subject) -> Iterator[Fault]:
    for weighted in subject.weighted:
        operator = weighted.node.op_type
        if operator in RECURRENT and subject.asks_for_int8 and not subject.excused(weighted.name):
            yield Fault(
                weighted.name,
                f"{operator} is in fp32 in a model that is to be int8, and nothing says why",
                f"quantise it by a method for {operator}, or list it as fp32 with the reason in the plan",
            )


def fp32_bodies(subject: Subject) -> Iterator[Fault]:
    for weighted in subject.weighted:
        if (
            weighted.inside
            and weighted.node.op_type not in RECURRENT
            and not weighted.stored_low
            and subject.asks_for_int8
            and not subject.excused(weighted.name)
        ):
            outer = weighted.inside[-1][0]
            yield Fault(
                weighted.name,
                f"{weighted.node.op_type} in the body of {outer.op_type} '{outer.name}' has weights in fp32",
                "quantise it too (quantize_dynamic passes by bodies), or list it as fp32 with the reason in the plan",
            )


def unpacked_weights(subject: Subject) -> Iterator[Fault]:
    for weighted in subject.weighted:
        if weighted.stored_low and not weighted.stays_low and weighted.node.op_type != "Gather":
            yield Fault(
                weighted.name,
                f"{weighted.node.op_type} multiplies in fp32: its int8 weights stand behind DequantizeLinear",
                "write MatMulIntegerToFloat, DynamicQuantizeMatMul or another operator that multiplies integers",
            )


def batch_dependence(subject: Subject) -> Iterator[Fault]:
    for node in subject.numbers:
        if subject.profile == "invariant" and node.op_type in BATCH_DEPENDENT_OPERATORS and not is_pinned(node):
            yield Fault(
                str(node.name),
                f"{node.op_type} takes one activation scale for the whole batch, but the model claims to be invariant",
                "use static or per-row scales, or claim the profile throughput",
            )


def frozen_batch(subject: Subject) -> Iterator[Fault]:
    constants = {tensor.name for tensor in subject.model.graph.initializer}
    for value in (*subject.model.graph.input, *subject.model.graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.name not in constants and axes and axes[0].HasField("dim_value"):
            yield Fault(
                value.name, f"its batch axis is frozen at {axes[0].dim_value}", "export from 2 rows, not from 1"
            )


def frozen_inside(subject: Subject) -> Iterator[Fault]:
    names = [value.name for value in subject.model.graph.output]
    for request in _requests_of_two_sizes(subject):
        sizes = {
            axis.dim_param: size
            for value in subject.model.graph.input
            if value.name in request
            for axis, size in zip(value.type.tensor_type.shape.dim, request[value.name].shape, strict=True)
            if axis.dim_param
        }
        advice = "look for a Reshape, Expand or Slice by a constant where the graph should read the axis' size"
        try:
            answers = session(subject.model.SerializeToString()).run(names, request)
        except REFUSALS as error:
            yield Fault("", f"does not run at the sizes {sizes}: {error}", advice)
            continue
        for value, answer in zip(subject.model.graph.output, answers, strict=True):
            for place, axis in enumerate(value.type.tensor_type.shape.dim):
                if sizes.get(axis.dim_param, answer.shape[place]) != answer.shape[place]:
                    yield Fault(
                        value.name,
                        f"axis '{axis.dim_param}' has size {answer.shape[place]} where the request's is "
                        f"{sizes[axis.dim_param]}: it is declared dynamic, but frozen inside",
                        advice,
                    )


def vector_width(subject: Subject) -> Iterator[Fault]:
    batch, other = _SIZES[1]
    request = subject.requests[0] if subject.requests else zeros(subject.model, {}, batch, other)
    ran = observed_shapes(subject.model, request, ())
    for node, number in subject.numbers.items():
        widths = {one.outputs[0][-1] for one in ran.get(number, ()) if one.outputs and one.outputs[0]}
        odd = sorted(width for width in widths if width % VECTOR)
        if node.op_type in POSITION_DEPENDENT and odd and subject.profile != "throughput":
            yield Fault(
                str(node.name),
                f"{node.op_type} over a last axis of {odd[0]}: the last digit depends on the place in the batch",
                f"pad the axis to a multiple of {VECTOR}",
            )


def saturating_products(subject: Subject) -> Iterator[Fault]:
    for name, possible, error in _saturations(subject):
        if error is not None and error > _TOLERATED:
            yield Fault(
                name,
                f"its int8 products overflow 16 bits on a CPU without VNNI: a relative error of {error:.2g} on the "
                f"requests given ({possible:.1%} of the pairs of weights can)",
                "quantise its weights to seven bits (reduce_range) or with one scale a tensor, or keep it in fp32",
            )


def saturable_products(subject: Subject) -> Iterator[Fault]:
    for name, possible, error in _saturations(subject):
        if possible and (error is None or error <= _TOLERATED):
            seen = "not tried on requests" if error is None else f"an error of {error:.2g} on the requests given"
            yield Fault(
                name,
                f"{possible:.1%} of the pairs of its int8 weights can overflow 16 bits on a CPU without VNNI ({seen})",
                "quantise its weights to seven bits (reduce_range), or serve it with session.x64quantprecision=1",
            )


GUARDS: tuple[Guard, ...] = (
    Guard("undone plan", "what was asked for and not done looks like a success", undone_plan),
    Guard(
        "unquantised recurrence",
        "quantize_dynamic passes by a GRU, and by an LSTM whose weights it does not find, and says nothing",
        unquantised_recurrence,
    ),
    Guard(
        "hidden RNN weights",
        "weights behind Slice and Concat are no weights to whoever quantises",
        lambda subject: graph_rules.hidden_weights(subject.model),
    ),
    Guard(
        "GRU flavour",
        "without linear_before_reset a GRU is another cell than torch's, with small, plausible errors",
        lambda subject: graph_rules.gru_flavour(subject.model),
    ),
    Guard(
        "RNN layout",
        "ONNX Runtime refuses layout=1 when the model is loaded",
        lambda subject: graph_rules.rnn_layout(subject.model),
    ),
    Guard(
        "state pairs",
        "Triton pairs states by position in two sorted lists, so that wrong names swap them",
        lambda subject: graph_rules.state_pairs(subject.model),
    ),
    Guard(
        "runtime limits",
        "the ONNX Runtime in the image is older than the one that the tests run",
        lambda subject: graph_rules.runtime_limits(subject.model),
    ),
    Guard(
        "MatMulNBits width",
        "the ONNX Runtime in the image has MatMulNBits of four bits only",
        lambda subject: graph_rules.matmul_bits(subject.model),
    ),
    Guard(
        "unpacked weights",
        "the ONNX Runtime in the image writes such weights out in fp32 at load: a smaller file, no faster; newer ones "
        "make MatMulNBits of it, so that what is measured here is not what is served",
        unpacked_weights,
    ),
    Guard("fp32 bodies", "quantize_dynamic leaves the bodies of Scan, Loop and If as they are", fp32_bodies),
    Guard("batch dependence", "an answer would depend on who shares the batch", batch_dependence),
    Guard("frozen batch", "an example of one row can make 1 the only size of the batch", frozen_batch),
    Guard("frozen inside", "an axis can be declared dynamic and be frozen by an operator inside", frozen_inside),
    Guard(
        "vector width",
        "what is left over of a row after whole vectors is computed by other code, with another last digit",
        vector_width,
        warns=True,
    ),
    Guard("saturating products", "CPUs without VNNI sum pairs of int8 products in 16 bits", saturating_products),
    Guard(
        "saturable products",
        "what the requests at hand do not make overflow, others may",
        saturable_products,
        warns=True,
    ),
)


def _requests_of_two_sizes(subject: Subject) -> list[Arrays]:
    """Those given if their shapes differ, else two of zeros."""
    by_shape = {tuple((name, array.shape) for name, array in sorted(r.items())): r for r in subject.requests}
    if len(by_shape) > 1:
        return list(by_shape.values())
    return [zeros(subject.model, {}, batch, other) for batch, other in _SIZES]


def _saturations(subject: Subject) -> Iterator[tuple[str, float, float | None]]:
    if saturates(environment(threads=1)["isa"] if subject.isa is None else subject.isa):
        for weighted in subject.weighted:
            found = saturation(subject.model, weighted, subject.numbers[weighted.node], subject.requests)
            if found:
                yield weighted.name, found.possible, found.error
