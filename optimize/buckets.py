"""Requests as a client sends them: padded to a bucket, and no further."""

from __future__ import annotations

from optimize.data.dataset import Arrays
from optimize.specs import LENGTHS, ModelSpec


def fitted(request: Arrays, spec: ModelSpec) -> Arrays:
    """A request whose dynamic axes are cut to the smallest bucket that holds the longest of their lengths.

    Those of an axis are the input ``<axis>_lengths``, else ``lengths``; one that has neither, or no buckets, stays.
    """
    cut: Arrays = {}
    for tensor in spec.inputs:
        array = request[tensor.name]
        for axis, name in enumerate(tensor.shape, start=1):
            lengths = request.get(f"{name}_{LENGTHS}", request.get(LENGTHS))
            if isinstance(name, str) and name in spec.buckets and lengths is not None:
                longest = int(lengths.max())
                size = next((size for size in spec.buckets[name] if size >= longest), array.shape[axis])
                array = array[(slice(None),) * axis + (slice(size),)].copy()
        cut[tensor.name] = array
    return request | cut
