"""Half precision: half the size, the same interface, nearly the same answers; on a GPU, from the GPU."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper

from optimize import fuse, onnx_export, recipes
from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.quantize.fp16 import half
from optimize.quantize.method import QuantizationError

VARIANT = recipes.load("load_forecast").variants["lstm"]
GPU = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()


@pytest.fixture(scope="module")
def fp32() -> ModelProto:
    torch.manual_seed(0)
    return fuse.fuse(onnx_export.export(VARIANT.networks["small_64"]().eval(), VARIANT.spec))[0]


def feed() -> Arrays:
    inputs = onnx_export.example_inputs(VARIANT.spec, 3)
    return {name: tensor.numpy() for name, tensor in zip(VARIANT.spec.input_names, inputs, strict=True)}


def test_half_the_size_and_the_same_interface(fp32: ModelProto) -> None:
    converted = half(fp32)
    onnx_export.check(converted, VARIANT.spec)
    assert converted.ByteSize() < 0.6 * fp32.ByteSize()
    outputs = [session(model.SerializeToString()).run(None, feed())[0] for model in (fp32, converted)]
    assert 0 < np.abs(outputs[1] - outputs[0]).max() < 0.02 * np.abs(outputs[0]).max()


def test_weights_beyond_its_range_are_refused(fp32: ModelProto) -> None:
    large = ModelProto.FromString(fp32.SerializeToString())
    large.graph.initializer.append(numpy_helper.from_array(np.array([1e5], np.float32), "large"))
    with pytest.raises(QuantizationError, match="'large' holds 1e\\+05"):
        half(large)


def test_what_has_nothing_to_convert_is_refused() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    with pytest.raises(QuantizationError, match="nothing was converted"):
        half(onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
def test_on_the_gpu_it_answers_like_the_cpu(fp32: ModelProto) -> None:
    on_cpu = session(fp32.SerializeToString()).run(None, feed())[0]
    on_gpu = session(half(fp32).SerializeToString(), device="cuda").run(None, feed())[0]
    assert np.abs(on_gpu - on_cpu).max() < 0.02 * np.abs(on_cpu).max()
