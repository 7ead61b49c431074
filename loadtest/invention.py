"""Requests made up from a model's description, for models whose real requests this project does not know.

Floating-point inputs are normally distributed; int16 inputs are bursts of noise, or pieces of recordings; other
integers are ids: of the vocabulary, of the labels, or below 10. An axis of any size gets varied lengths, padded with
zeros to the smallest bucket that fits, but never beyond the second: prompts are short, and no run takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clients.signature import ANY_SIZE, DTYPES, Array, Signature, Tensor
from loadtest import audio
from optimize.data import texts
from optimize.data.subwords import END
from optimize.errors import UserError
from optimize.specs import LENGTHS

Inputs = dict[str, Array]

SMALL_IDS = 10
UNBOUNDED, UNBOUNDED_PCM = (64,), (4 * audio.RATE_HZ,)  # the longest where no bucket is declared


def made_up(
    signature: Signature, random: np.random.Generator, recordings: Sequence[audio.Samples] = ()
) -> Iterator[Inputs]:
    """Endless requests of one row. Raises UserError, at the first, for inputs that cannot be made up."""
    ids, batch = _ids(signature), 1 if signature.max_batch else 0
    while True:
        recording = recordings[random.integers(len(recordings))] if recordings else None
        drawn: dict[tuple[int, ...], int] = {}  # inputs with the same buckets are equally long
        request: Inputs = {}
        lengths: list[int] = []
        for tensor in signature.inputs:
            if tensor.name == LENGTHS:
                continue
            shape = list(tensor.shape[batch:])
            if shape[:1] == [ANY_SIZE]:
                buckets = signature.buckets.get(tensor.name, ())
                sizes = buckets or (UNBOUNDED_PCM if tensor.datatype == "INT16" else UNBOUNDED)
                if sizes not in drawn:
                    drawn[sizes] = _length(sizes, recording, random)
                lengths.insert(0, length := drawn[sizes])
                shape[0] = min((size for size in buckets if size >= length), default=length)
            else:
                length = shape[0] if shape else 1
                if recording is not None and tensor.datatype == "INT16":
                    length = min(length, len(recording))
                lengths.append(length)
            values = np.zeros([abs(size) for size in shape], DTYPES.get(tensor.datatype, np.dtype("object")))
            part = values[:length] if shape else values
            part[...] = _values(signature.model, tensor, part.shape, ids, recording, random)
            request[tensor.name] = values[None] if batch else values
        for tensor in signature.inputs:
            if tensor.name == LENGTHS:  # of the first input that varies, else of the first
                shape = [abs(size) for size in tensor.shape]
                request[LENGTHS] = np.full(shape, lengths[0] if lengths else 1, DTYPES[tensor.datatype])
        yield request


def _length(sizes: tuple[int, ...], recording: audio.Samples | None, random: np.random.Generator) -> int:
    most = sizes[min(1, len(sizes) - 1)]
    if recording is not None:
        most = min(most, len(recording))
    return int(random.integers(min(max(sizes[0] // 4, 1), most), most, endpoint=True))


def _values(
    model: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    ids: tuple[int, int],
    recording: audio.Samples | None,
    random: np.random.Generator,
) -> Array:
    count = int(np.prod(shape))
    if tensor.datatype.startswith("FP"):
        return random.standard_normal(shape)
    if tensor.datatype == "INT16" and recording is not None and count <= len(recording):
        first = int(random.integers(len(recording) - count, endpoint=True))
        return recording[first : first + count].reshape(shape)
    if tensor.datatype == "INT16":
        noise = audio.bursts(int(random.integers(2**31)), (count + 1) / audio.RATE_HZ)
        return noise[:count].reshape(shape)
    if tensor.datatype == "BOOL":
        return random.integers(0, 2, shape)
    if "INT" in tensor.datatype:
        return random.integers(*ids, shape)
    raise UserError(
        f"model '{model}': input '{tensor.name}' is {tensor.datatype}, which cannot be made up; give a file of requests"
    )


def _ids(signature: Signature) -> tuple[int, int]:
    """The first and the one after the last."""
    if signature.vocabulary:
        return END + 1, texts.parse(signature.vocabulary, f"vocabulary of model '{signature.model}'").size
    return 0, min((len(labels) for labels in signature.labels.values()), default=SMALL_IDS)
