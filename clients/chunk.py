"""A bare array as one chunk of a stream: what ``session.send(samples)`` sends.

Of a model with one input besides ``lengths``, the array of one stream, without a batch axis, is all that there is to
say. One that is shorter than the model's chunk is filled up with zeros, and ``lengths`` says how much of it is meant.
A model without a batch axis gets none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clients.errors import InvalidRequest
from clients.signature import Array, Signature
from optimize.specs import LENGTHS


def named(signature: Signature, chunk: Mapping[str, Array] | Array) -> Mapping[str, Array]:
    """The request of a chunk; a mapping is one already.

    Raises InvalidRequest where an array does not say which input it is, or is longer than a chunk.
    """
    if isinstance(chunk, Mapping):
        return chunk
    inputs = {tensor.name: tensor for tensor in signature.inputs if not tensor.optional}
    lengths = inputs.pop(LENGTHS, None)
    if len(inputs) != 1:
        raise InvalidRequest(
            f"model '{signature.model}' takes {', '.join(inputs)}: name the array, as in {{'x': array}}"
        )
    (tensor,) = inputs.values()
    array, batch = np.asarray(chunk), (1,) if signature.max_batch else ()
    shape = tensor.shape[len(batch) :]
    if array.ndim != len(shape):
        axes = ", one stream without a batch axis; or name the array, with its batch axis" if batch else ""
        raise InvalidRequest(f"model '{signature.model}', a chunk of shape {array.shape}: expected {shape}{axes}")
    if lengths is None:
        return {tensor.name: array.reshape(*batch, *array.shape)}
    meant, size = len(array), shape[0]
    if meant > size > 0:
        raise InvalidRequest(
            f"model '{signature.model}', a chunk of {meant}: expected at most {size}; send the rest as another one"
        )
    filled = np.zeros((max(size, meant), *array.shape[1:]), array.dtype)
    filled[:meant] = array
    dtype = np.int32 if lengths.datatype == "INT32" else np.int64
    return {tensor.name: filled.reshape(*batch, *filled.shape), LENGTHS: np.full((*batch, 1), meant, dtype)}
