"""Texts to requests of a model that reads them as numbers.

    reading = Reading.of(client.signature("text_classification"))
    client.infer(reading.model, reading.request([reading.encode("Lovely book.", "text 1")]))

The vocabulary comes from the server with the model's configuration: whoever asks a model uses the model's own, be it a
SentencePiece file or a Hugging Face tokenizer.json.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from clients.calls import Answer
from clients.client import Client
from clients.errors import ServerError
from clients.signature import ANY_SIZE, Array, Signature
from optimize.data import texts
from optimize.data.subwords import PADDING, normalise
from optimize.errors import UserError

LENGTHS = "lengths"


class NoTexts(UserError):
    """A model that takes no texts, or whose configuration has no vocabulary."""


@dataclass(frozen=True)
class Reading:
    """How a model's texts are written as numbers. source: the input that they are sent as, beside their lengths.
    buckets: lengths to pad to; empty: any length will do."""

    model: str
    version: str
    source: str
    subwords: texts.Vocabulary
    buckets: tuple[int, ...]
    max_batch: int

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Raises NoTexts for a model that takes something else."""
        inputs = {tensor.name: tensor for tensor in signature.inputs}
        sources = [tensor for name, tensor in inputs.items() if name != LENGTHS]
        if LENGTHS not in inputs or len(sources) != 1 or sources[0].datatype != "INT64" or len(sources[0].shape) != 2:
            raise NoTexts(
                f"model '{signature.model}' takes no texts: expected one input of int64 (batch, subwords) and "
                f"'{LENGTHS}', it has {', '.join(inputs)}"
            )
        if not signature.vocabulary:
            raise NoTexts(
                f"model '{signature.model}' has no vocabulary in its configuration; give its ModelSpec one and publish "
                "it again"
            )
        source, size = sources[0].name, sources[0].shape[-1]
        return cls(
            signature.model,
            signature.version,
            source,
            texts.parse(signature.vocabulary, f"vocabulary of model '{signature.model}'"),
            signature.buckets.get(source, () if size == ANY_SIZE else (size,)),
            signature.max_batch or 1,
        )

    def encode(self, text: str, name: str) -> list[int]:
        """The numbers of a text. name: the text's, for messages.

        Raises UserError: not UTF-8, nothing but spaces and control characters, longer than the model takes.
        """
        if place := next((at for at, letter in enumerate(text, 1) if "\ud800" <= letter <= "\udfff"), 0):
            raise UserError(f"{name} is not UTF-8 (character {place}); convert it first")
        if not normalise(text):
            raise UserError(f"{name} is empty, control characters and spaces aside; give it words")
        tokens = self.subwords.encode(text)
        if self.buckets and len(tokens) > self.buckets[-1]:
            special = len(self.subwords.encode(""))
            raise UserError(
                f"{name} has {len(tokens) - special:,} subwords, model '{self.model}' takes at most "
                f"{self.buckets[-1] - special}; split it into shorter ones"
            )
        return tokens

    def bucket(self, tokens: Sequence[int]) -> int:
        """The length to which a text is padded."""
        return next((size for size in self.buckets if size >= len(tokens)), len(tokens))

    def request(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        """The inputs for some texts, padded to the bucket of the longest."""
        source = np.full((len(rows), max(map(self.bucket, rows))), PADDING, np.int64)
        for row, tokens in enumerate(rows):
            source[row, : len(tokens)] = tokens
        return {self.source: source, LENGTHS: np.array([[len(tokens)] for tokens in rows], np.int32)}

    def require_version(self, version: str) -> None:
        """Raises ServerError for an answer of another version, whose vocabulary may be another."""
        if version != self.version:
            raise ServerError(
                f"version {version} of model '{self.model}' answered, but the vocabulary is that of version "
                f"{self.version}: the model was published anew meanwhile; ask again"
            )


def answers(
    client: Client, reading: Reading, encoded: Mapping[int, Sequence[int]]
) -> Iterator[tuple[list[int], Answer, float]]:
    """Which of the texts an answer is for, the answer and its latency in ms; texts of like length share a request."""
    by_bucket = sorted(encoded, key=lambda index: reading.bucket(encoded[index]))
    for _, group in itertools.groupby(by_bucket, key=lambda index: reading.bucket(encoded[index])):
        for places in batched(group, reading.max_batch):
            begin = time.perf_counter()
            answer = client.infer(reading.model, reading.request([encoded[index] for index in places]))
            yield places, answer, 1e3 * (time.perf_counter() - begin)


def batched(items: Iterable[int], size: int) -> Iterator[list[int]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
