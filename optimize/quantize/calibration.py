"""The range of activations on calibration data, for methods whose activation scale is fixed beforehand.

The whole range counts, from the smallest value seen to the largest. Cutting it at a percentile does not pay: in a small
trained Transformer 99.99 % left the error where it was and 99.9 % made it four times as large (Kullback-Leibler
divergence from fp32). Feeds are run one by one and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.quantize.method import QuantizationError, Ranges


def observe(model: ModelProto, names: list[str], feeds: Iterable[Arrays]) -> Ranges:
    """Smallest and largest value of each named tensor of the main graph, over all feeds; ``model`` runs in fp32.

    Raises QuantizationError for a name that no value of the main graph has, for data without a single value, and for
    values that are not finite.
    """
    computed = {name for node in model.graph.node for name in node.output}
    fed = {value.name for value in model.graph.input}
    if unknown := [name for name in names if name not in computed | fed]:
        raise QuantizationError(f"calibration: the main graph has no values {unknown}; was it changed since?")
    asked = sorted(set(names) - fed)
    opened = session(_showing(model, asked).SerializeToString())
    ranges = dict.fromkeys(names, (inf, -inf))
    for feed in feeds:
        arrays = dict(zip(asked, opened.run(asked, feed), strict=True)) if asked else {}
        for name in ranges:
            array = arrays[name] if name in arrays else feed[name]
            if not np.isfinite(array).all():
                raise QuantizationError(f"calibration: '{name}' is not finite on the calibration data")
            if array.size:
                low, high = ranges[name]
                ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
    if unseen := [name for name, (low, high) in ranges.items() if low > high]:
        raise QuantizationError(f"calibration: the data held no value of {unseen}; give at least one request")
    return ranges


def _showing(model: ModelProto, names: list[str]) -> ModelProto:
    """A copy with those values as further outputs."""
    copy: ModelProto = ModelProto.FromString(model.SerializeToString())
    shown = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in shown
    )
    return copy
