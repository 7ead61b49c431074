"""What the official Triton image's ONNX Runtime can run: the ceiling for everything that is exported.

The tests of this project run a newer ONNX Runtime, so a model that passes them may still be refused in production.
The limits below were read off ONNX Runtime 1.19.2 itself, the version in the image according to Triton's own
compatibility table, by loading models of rising versions and listing its registered CPU kernels. Only operators with
a CPU kernel count: the CUDA provider falls back on them for what it lacks, so such a model runs on either device.
"""

from __future__ import annotations

IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
ONNX_RUNTIME = "1.19.2"
MAX_IR_VERSION = 10
MAX_OPSETS = {"": 21, "ai.onnx": 21, "ai.onnx.ml": 5, "com.microsoft": 1}
MATMUL_NBITS = 4  # later versions of com.microsoft.MatMulNBits also take 2 and 8 bits; this one fails at load

# fmt: off
CONTRIB_OPERATORS = frozenset([
    "Attention", "AttnLSTM", "BeamSearch", "BiasGelu", "BifurcationDetector", "CDist", "ConvTransposeWithDynamicPads",
    "CropAndResize", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EmbedLayerNormalization",
    "ExpandDims", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "GatherND", "Gelu", "GreedySearch",
    "GridSample", "GroupQueryAttention", "Inverse", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16",
    "MatMulIntegerToFloat", "MatMulNBits", "MaxpoolWithMask", "MultiHeadAttention", "MurmurHash3", "NGramRepeatBlock",
    "NhwcMaxPool", "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd", "QLinearAveragePool",
    "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "Range", "RotaryEmbedding", "SampleOp",
    "Sampling", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SparseAttention",
    "SparseToDenseMatMul", "Tokenizer", "TransposeMatMul", "Trilu", "Unique", "WhisperBeamSearch",
    "WordConvEmbedding",
])
# fmt: on
"""Operators of the domain com.microsoft with a CPU kernel in ONNX Runtime 1.19.2."""

BATCH_DEPENDENT_OPERATORS = frozenset({"DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "DynamicQuantizeLinear"})
"""Operators that take one activation scale for the whole batch, so that every row depends on its neighbours."""
