"""Half precision for the CUDA provider: weights and activations in fp16, inputs and outputs as they were.

By ONNX Runtime's own converter. On a CPU it is smaller but no faster: there int8 is the way, and nothing here is used.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from optimize import rewriting
from optimize.quantize.method import QuantizationError


def half(model: ModelProto) -> ModelProto:
    """A copy in fp16 with the same interface.

    Raises QuantizationError when a weight is too large for fp16, whose largest number is 65504.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
            if largest > np.finfo(np.float16).max:
                raise QuantizationError(f"'{tensor.name}' holds {largest:.3g}, fp16 ends at 65504; serve it in fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every weight that is rounded to the smallest number
        converted = convert_float_to_float16(ModelProto.FromString(model.SerializeToString()), keep_io_types=True)
    if not any(tensor.data_type == TensorProto.FLOAT16 for tensor in converted.graph.initializer):
        raise QuantizationError("nothing was converted to fp16: the model has no fp32 weights outside of loop bodies")
    opened = rewriting.read(converted)
    opened.graph.sort()  # the converter puts its casts last
    return rewriting.written(opened)
