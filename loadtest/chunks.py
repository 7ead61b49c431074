"""The chunks that a streaming model takes, read from the server's description, and what one stream sends of them.

shape = ChunkShape.of(client.signature("speech"))      # 5,120 samples: 320 ms
speaker = Speaker(shape, audio.bursts(), utterance_s=10, seed=3)
inputs, last = speaker.next()                          # {"pcm": int16 (1, 5120), "lengths": int32 (1, 1)}
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from clients.signature import DTYPES, Array, Signature
from loadtest.audio import RATE_HZ, Samples
from optimize.errors import UserError
from optimize.specs import LENGTHS


@dataclass(frozen=True)
class ChunkShape:
    """pcm: the input that takes the samples. lengths_dtype: of the input that says how many are meant, if any."""

    pcm: str
    samples: int
    lengths_dtype: str | None

    @property
    def seconds(self) -> float:
        """How long a chunk lasts."""
        return self.samples / RATE_HZ

    @classmethod
    def of(cls, signature: Signature) -> ChunkShape:
        """Raises UserError for a model that keeps no state, or that takes anything but int16 PCM and lengths."""
        if signature.idle_limit_s is None:
            raise UserError(f"model '{signature.model}' keeps no state between requests, so it has no streams")
        pcm = [tensor for tensor in signature.inputs if tensor.datatype == "INT16"]
        lengths = [tensor for tensor in signature.inputs if tensor.name == LENGTHS]
        others = [tensor.name for tensor in signature.inputs if tensor not in (*pcm, *lengths)]
        if len(pcm) != 1 or others or len(pcm[0].shape) != 2 or pcm[0].shape[1] < 1:
            got = ", ".join(f"'{t.name}' {t.datatype} {list(t.shape)}" for t in signature.inputs)
            raise UserError(
                f"model '{signature.model}' cannot be fed in real time: expected an INT16 input of a fixed number of "
                f"samples (batch, samples) and perhaps '{LENGTHS}' (batch, 1), got {got}"
            )
        return cls(pcm[0].name, pcm[0].shape[1], str(DTYPES[lengths[0].datatype]) if lengths else None)

    def inputs(self, samples: Array, meant: int | None = None) -> dict[str, Array]:
        """One request for a chunk's samples; meant: how many of them count, all by default."""
        request: dict[str, Array] = {self.pcm: samples[None]}
        if self.lengths_dtype is not None:
            request[LENGTHS] = np.full((1, 1), self.samples if meant is None else meant, self.lengths_dtype)
        return request

    def split(self, samples: Samples) -> Samples:
        """(chunks, samples): the audio cut up, its end filled with silence."""
        chunks = -(-len(samples) // self.samples)
        padded = np.zeros(chunks * self.samples, np.int16)
        padded[: len(samples)] = samples
        return padded.reshape(chunks, self.samples)


class Speaker:
    """One stream's chunks: the audio round and round, from a place of its own, cut into utterances of random length.

    utterance_s: their mean length; 0: a single one without end. The last chunk of an utterance is ragged.
    """

    def __init__(self, shape: ChunkShape, samples: Samples, utterance_s: float, seed: int) -> None:
        self._shape = shape
        self._chunks = shape.split(samples)
        self._random = Random(seed)
        self._place = self._random.randrange(len(self._chunks))
        self._mean_chunks = utterance_s / shape.seconds
        self._left = self._length(0.0)  # the first is cut anywhere, or all streams would end theirs together

    def next(self) -> tuple[dict[str, Array], bool]:
        """The next request, and whether it ends an utterance."""
        samples = self._chunks[self._place]
        self._place = (self._place + 1) % len(self._chunks)
        if not self._mean_chunks:
            return self._shape.inputs(samples), False
        self._left -= 1
        if self._left > 0:
            return self._shape.inputs(samples), False
        self._left = self._length(0.5)
        return self._shape.inputs(samples, self._random.randint(1, self._shape.samples)), True

    def again(self) -> None:
        """A new utterance begins, because the stream was lost."""
        self._left = self._length(0.5)

    def _length(self, least: float) -> int:
        return max(round(self._random.uniform(least, 1.5) * self._mean_chunks), 1)
