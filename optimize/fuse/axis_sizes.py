"""The size of every axis of every value, as arithmetic on the names of the interface's dynamic axes.

    x (batch, time, 256)  ->  Reshape to (time, 4 * batch, 64):     "time", "4*batch", 64

ONNX Runtime's symbolic shape inference works it out; it follows the integers that Shape, Gather, Concat and the like
compute. It gives up where a table of fixed length, cut to its first "time" rows, meets "time" rows (positions, in
most models). That case is decided here: Min(n, time) rows that broadcast with time rows make time rows, because
they are as many, or one row. Axes of one name are taken to be of one size, which is what the interface promises.
"""

from __future__ import annotations

import logging
import re
import warnings

import onnx
from onnx import ModelProto, NodeProto
from onnx.helper import make_tensor_value_info
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

_BROADCASTING = {"Add", "Sub", "Mul", "Div"}
_CUT = re.compile(r"Min\(\d+, ([\w.:/]+)\)")


def with_axis_sizes(model: ModelProto) -> ModelProto:
    """A copy that holds the sizes, as far as they can be known."""
    logging.getLogger(SymbolicShapeInference.__module__).setLevel(logging.ERROR)  # else it tells all its doubts
    inference = _Inference(2**31 - 1, auto_merge=False, guess_output_rank=False, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inference._preprocess(ModelProto.FromString(model.SerializeToString()))
            while inference.run_:  # its public function writes a file when it cannot finish; what it has is enough here
                inference._infer_impl()
        except Exception:  # it stumbles over many things, such as a Loop without a condition
            return onnx.shape_inference.infer_shapes(model)
    known: ModelProto = inference.out_mp_
    del known.graph.output[:]
    known.graph.output.extend(model.graph.output)
    return known


class _Inference(SymbolicShapeInference):  # type: ignore[misc]
    def _onnx_infer_single_node(self, node: NodeProto) -> None:
        super()._onnx_infer_single_node(node)
        if node.op_type in _BROADCASTING:
            shape = self._broadcast_shapes(self._get_shape(node, 0), self._get_shape(node, 1))
            if None not in shape:
                answer = self.known_vi_[node.output[0]]
                answer.CopyFrom(make_tensor_value_info(node.output[0], answer.type.tensor_type.elem_type, shape))

    def _merge_symbols(self, dims: list[int | str]) -> int | str | None:
        for cut, rows in (dims, dims[::-1]):
            match = _CUT.fullmatch(str(cut))
            if match and match[1] == rows:
                return rows
        merged: int | str | None = super()._merge_symbols(dims)
        return merged
