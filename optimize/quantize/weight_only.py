"""Weights in four or eight bits, activations left as they are: smaller files, and faster when the weights' way is long.

    nbits4        W[k, n] = (q[k, n] - z[k // 32, n]) s[k // 32, n]     MatMulNBits, q in [0, 15], 32 inputs to a block
    dequantize8   W[k, n] = q[k, n] s[n]                                Cast and Mul in front of the operator

A single row's product only waits for its weights to arrive from memory, and half a byte arrives soonest: there nbits4
beats int8. From a few rows on it loses to int8, and with narrow weights to fp32 as well (measured); it errs about eight
times as much. At accuracy level 4 the kernel takes an int8 scale for each row and block of the activations, so a row
depends on no other, to the bit, which at lower levels a row alone does. That a block's range need not be symmetric
costs nothing and takes 6 % off the error.

ONNX Runtime folds the Cast and the Mul of dequantize8 at load: the file is smaller, memory, time and invariance are
those of fp32. DequantizeLinear in their place is not folded: 1.19.2 runs it for every request (20 times slower for a
single row, measured), 1.31.1 fuses it into an eight-bit MatMulNBits, which 1.19.2 does not know.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize import matmul
from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import Product, per_channel, refuses_weights
from optimize.rewriting import CONTRIB, Replacement, constant
from optimize.target_runtime import MATMUL_NBITS

BLOCK = 32
_INT8_ACTIVATIONS = 4  # accuracy level


def per_block(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Four bits with a scale and a zero point for each block of inputs, packed as MatMulNBits wants them.

    weights: (inputs, outputs). Returns weights of (outputs, blocks, BLOCK / 2), scales of (outputs * blocks,) and zero
    points of (outputs * ceil(blocks / 2),). Of two numbers in a byte, the first is in the lower half.
    """
    inputs, outputs = weights.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((blocks * BLOCK, outputs), np.float32)
    padded[:inputs] = weights
    blocked = padded.T.reshape(outputs, blocks, BLOCK)
    low, high = blocked.min(axis=2).clip(max=0), blocked.max(axis=2).clip(min=0)
    scales = np.where(high > low, (high - low) / 15, 1).astype(np.float32)
    zeros = np.rint(-low / scales).clip(0, 15)
    quantized = (np.rint(blocked / scales[..., None]) + zeros[..., None]).clip(0, 15)
    return _packed(quantized), scales.reshape(-1), _packed(np.pad(zeros, ((0, 0), (0, blocks % 2)))).reshape(-1)


def _packed(numbers: NDArray[np.float32]) -> NDArray[np.uint8]:
    whole = numbers.astype(np.uint8)
    packed: NDArray[np.uint8] = (whole[..., 0::2] | whole[..., 1::2] << 4).astype(np.uint8)
    return packed


def _nbits4(new: Replacement, product: Product, ranges: Ranges) -> ir.Value:
    inputs, outputs = product.weights.shape
    weights, scales, zeros = per_block(product.weights)
    result = new.op(
        "MatMulNBits",
        product.x,
        new.constant("weights_int4", weights),
        new.constant("weights_scale", scales),
        new.constant("weights_zero", zeros),
        domain=CONTRIB,
        K=inputs,
        N=outputs,
        bits=MATMUL_NBITS,
        block_size=BLOCK,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    return result if product.bias is None else new.op("Add", result, new.constant("bias", product.bias))


def _dequantize8(node: ir.Node, ranges: Ranges) -> None:
    weights = constant(node.inputs[1])
    assert weights is not None
    axis = _outputs_axis(node)
    last = np.moveaxis(weights, axis, -1)
    quantized, scales = per_channel(last.reshape(-1, last.shape[-1]))
    new = Replacement(node)
    packed = new.constant("weights_int8", np.moveaxis(quantized.reshape(last.shape), -1, axis))
    scale = new.constant("weights_scale", np.expand_dims(scales, [i for i in range(weights.ndim) if i != axis]))
    node.replace_input_with(1, new.op("Mul", new.op("Cast", packed, to=int(ir.DataType.FLOAT)), scale))


def _outputs_axis(node: ir.Node) -> int:
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if node.op_type == "Conv" or transposed else 1


def _refuses_dequantize8(node: ir.Node) -> str:
    weights = constant(node.inputs[1])
    if reason := refuses_weights(weights):
        return reason
    assert weights is not None
    if node.op_type == "MatMul" and weights.ndim != 2:
        return f"its weights have rank {weights.ndim}, only (inputs, outputs) is quantised"
    return ""


METHODS: list[Method] = [
    *matmul.methods("nbits4", _nbits4),
    *(
        Method("dequantize8", operator, invariant=True, refuses=_refuses_dequantize8, rewrite=_dequantize8)
        for operator in ("MatMul", "Gemm", "Conv")
    ),
]
