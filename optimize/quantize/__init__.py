"""Low precision, operator by operator: one kind of operator a file, and the proof of how much of it really happened.

choices = tune(...).choices["invariant"]            what is done to each operator, measured or committed
int8 = quantize(model, choices, calibrate(model, feeds, choices))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir
from onnx import ModelProto

from optimize import rewriting
from optimize.data.dataset import Arrays
from optimize.quantize import attention, gather, gru, lstm, lstm_operator, matmul, weight_only
from optimize.quantize.calibration import observe
from optimize.quantize.coverage import planned_share
from optimize.quantize.method import Method, QuantizationError, Ranges
from optimize.quantize.plan import Choices
from optimize.quantize.weights import weighted_nodes

METHODS: list[Method] = [
    *lstm_operator.METHODS,
    *lstm.METHODS,
    *gru.METHODS,
    *matmul.METHODS,
    *attention.METHODS,
    *(replace(method, on_request=True) for method in (*gather.METHODS, *weight_only.METHODS)),
]


def operators(model: ModelProto) -> dict[str, str]:
    """Nodes that work with trained weights, those in bodies included: name to ONNX type, in graph order."""
    return {weighted.name: weighted.node.op_type for weighted in weighted_nodes(rewriting.read(model))}


def needs_calibration(model: ModelProto, choices: Choices) -> list[str]:
    """The values whose ranges the chosen methods need."""
    opened = rewriting.read(model)
    return sorted({name for node, method in _chosen(opened, choices) for name in method.calibrated(node)})


def calibrate(model: ModelProto, feeds: Iterable[Arrays], *choices: Choices) -> Ranges:
    """The ranges that any of the choices needs, observed on ``feeds``; nothing is run where none is needed."""
    names = {name for some in choices for name in needs_calibration(model, some)}
    return observe(model, sorted(names), feeds) if names else {}


def quantize(model: ModelProto, choices: Choices, ranges: Ranges) -> ModelProto:
    """Rewrite the operators as chosen, and prove on the result that it happened.

    Raises QuantizationError for a choice that cannot be carried out, and when planned weights stayed in fp32.
    """
    opened = rewriting.read(model)
    for node, method in _chosen(opened, choices):
        method.rewrite(node, ranges)
    quantized = rewriting.written(opened)
    _, missed = planned_share(model, quantized, choices)
    if missed:
        raise QuantizationError(
            f"quantisation left {', '.join(missed)} in fp32 although the plan asks for it; list them as fp32 in the "
            "plan, or use --retune"
        )
    return quantized


def _chosen(model: ir.Model, choices: Choices) -> list[tuple[ir.Node, Method]]:
    """The operators to quantise, each with its method."""
    nodes = {weighted.name: weighted.node for weighted in weighted_nodes(model)}
    chosen = []
    for name, choice in choices.items():
        if not choice.quantised:
            continue
        if name not in nodes:
            raise QuantizationError(f"the plan quantises '{name}', but the graph has no such operator; use --retune")
        node = nodes[name]
        known = {method.name: method for method in METHODS if method.operator == node.op_type}
        if choice.method not in known:
            raise QuantizationError(
                f"the plan quantises {node.op_type} '{name}' by '{choice.method}', which does not exist; "
                f"there is {', '.join(known) or 'nothing for this operator'}"
            )
        if reason := known[choice.method].refuses(node):
            raise QuantizationError(f"{node.op_type} '{name}' cannot be quantised by '{choice.method}': {reason}")
        chosen.append((node, known[choice.method]))
    return chosen
