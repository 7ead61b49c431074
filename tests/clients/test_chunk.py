"""A bare array, named, filled up and given its batch axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.chunk import named
from clients.errors import InvalidRequest
from clients.signature import Signature, Tensor

PCM, LENGTHS = Tensor("pcm", "INT16", (-1, 4)), Tensor("lengths", "INT32", (-1, 1))
SPEECH = Signature("speech", "1", (PCM, LENGTHS), (Tensor("tokens", "INT64", (-1, 1)),), 8, idle_limit_s=1.0)


@pytest.mark.parametrize("size", [0, 1, 3, 4])
def test_what_is_missing_is_filled_up_and_told(size: int) -> None:
    chunk = np.arange(1, size + 1, dtype=np.int16)
    request = named(SPEECH, chunk)
    assert request["pcm"].tolist() == [[*range(1, size + 1), *[0] * (4 - size)]]
    assert request["pcm"].dtype == np.int16
    assert request["lengths"].tolist() == [[size]]
    assert {name: array.shape for name, array in SPEECH.checked(request).items()} == {"pcm": (1, 4), "lengths": (1, 1)}


def test_features_and_no_lengths() -> None:
    frames = replace(SPEECH, inputs=(Tensor("frames", "FP32", (-1, 8, 80)),))
    chunk = np.ones((8, 80), np.float32)
    assert named(frames, chunk)["frames"].shape == (1, 8, 80)
    with pytest.raises(InvalidRequest, match=r"frames"):
        frames.checked(named(frames, chunk[:5]))  # nothing could say that three are missing


def test_a_model_without_a_batch_axis() -> None:
    inputs = Tensor("pcm", "INT16", (4,)), Tensor("lengths", "INT32", (1,))
    single = replace(SPEECH, inputs=inputs, max_batch=0)
    request = single.checked(named(single, np.array([1, 2, 3], np.int16)))
    assert (request["pcm"].tolist(), request["lengths"].tolist()) == ([1, 2, 3, 0], [3])
    with pytest.raises(InvalidRequest, match="a chunk of 5: expected at most 4"):
        named(single, np.zeros(5, np.int16))
    with pytest.raises(InvalidRequest, match=r"shape \(1, 4\): expected \(4,\)$"):
        named(single, np.zeros((1, 4), np.int16))
    frames = replace(single, inputs=(Tensor("frames", "FP32", (8, 80)),))
    chunk = np.ones((8, 80), np.float32)
    assert frames.checked(named(frames, chunk))["frames"].shape == (8, 80)


def test_a_mapping_is_left_alone() -> None:
    request = {"pcm": np.zeros((1, 4), np.int16)}
    assert named(SPEECH, request) is request


@pytest.mark.parametrize(
    ("inputs", "chunk", "words"),
    [
        ((PCM, LENGTHS), np.zeros(5, np.int16), "a chunk of 5: expected at most 4"),
        ((PCM, LENGTHS), np.zeros((1, 4), np.int16), r"shape \(1, 4\): expected \(4,\)"),
        ((PCM, replace(PCM, name="far")), np.zeros(4, np.int16), "takes pcm, far: name the array"),
    ],
)
def test_an_array_that_says_too_little(inputs: tuple[Tensor, ...], chunk: np.ndarray, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidRequest, match=words):
        named(replace(SPEECH, inputs=inputs), chunk)
