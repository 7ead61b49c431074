"""Bound sessions answer like plain ones, for every shape, and never from the last call's buffers."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.benchmark import session
from optimize.binding import Bound
from optimize.data.dataset import Arrays

VARIANT = recipes.load("load_forecast").variants["lstm"]
GPU = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()


@pytest.fixture(scope="module")
def model() -> ModelProto:
    torch.manual_seed(0)
    return fuse.fuse(onnx_export.export(VARIANT.networks["small_32"]().eval(), VARIANT.spec))[0]


def feed(batch: int, seed: int) -> Arrays:
    inputs = onnx_export.example_inputs(VARIANT.spec, batch, seed)
    return {name: tensor.numpy() for name, tensor in zip(VARIANT.spec.input_names, inputs, strict=True)}


def test_the_answers_are_those_of_run_and_the_caller_s_own(model: ModelProto) -> None:
    opened = session(model.SerializeToString())
    bound = Bound(opened, "cpu")
    kept = []
    for batch, seed in ((1, 0), (3, 1), (1, 2), (3, 3), (1, 0)):
        (expected,) = opened.run(None, feed(batch, seed))
        kept.append((bound(feed(batch, seed))["forecast"], expected))
    for found, expected in kept:  # after all calls: none was overwritten by a later one
        np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_on_the_gpu_too(model: ModelProto, graphs: bool) -> None:
    bound = Bound(session(model.SerializeToString(), device="cuda", cuda_graphs=graphs), "cuda", graphs)
    for batch, seed in ((1, 0), (3, 1), (1, 2), (1, 3)):
        (expected,) = session(model.SerializeToString()).run(None, feed(batch, seed))
        found: NDArray[Any] = bound(feed(batch, seed))["forecast"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
