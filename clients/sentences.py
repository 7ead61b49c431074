"""Sentences to requests of a translation model, and its answers to sentences.

    wording = Wording.of(client.signature("translate"))
    answer = client.infer("translate", wording.request([wording.encode("I love this book.", "sentence 1")]))
    wording.translations(answer.outputs, answer.version)      # [Translation("j'adore ce livre .", ...)]

The vocabulary comes from the server with the model's configuration: whoever asks a model uses the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clients.errors import ServerError
from clients.signature import ANY_SIZE, Array, Signature
from optimize.data.subwords import END, PADDING, Subwords, normalise
from optimize.errors import UserError

SOURCE, LENGTHS, TOKENS, OUTPUT_LENGTHS, SCORE = "source", "lengths", "tokens", "output_lengths", "score"


class NotTranslation(UserError):
    """A model that takes no sentences, or whose configuration has no vocabulary."""


@dataclass(frozen=True)
class Translation:
    """text: normalised. tokens: up to END. complete: whether END was written, or the model ran out of room before."""

    text: str
    tokens: tuple[int, ...]
    score: float

    @property
    def complete(self) -> bool:
        return self.tokens[-1:] == (END,)


@dataclass(frozen=True)
class Wording:
    """How a model's sentences are written as numbers. buckets: lengths to pad to; empty: any length will do."""

    model: str
    version: str
    subwords: Subwords
    buckets: tuple[int, ...]
    max_batch: int

    @classmethod
    def of(cls, signature: Signature) -> Wording:
        """Raises NotTranslation for a model that does not translate."""
        inputs = {tensor.name: tensor for tensor in signature.inputs}
        outputs = {tensor.name for tensor in signature.outputs}
        if inputs.keys() != {SOURCE, LENGTHS} or not outputs >= {TOKENS, OUTPUT_LENGTHS, SCORE}:
            raise NotTranslation(
                f"model '{signature.model}' does not translate: expected the inputs '{SOURCE}' and '{LENGTHS}' and the "
                f"outputs '{TOKENS}', '{OUTPUT_LENGTHS}' and '{SCORE}', it has {', '.join(inputs)} and "
                f"{', '.join(sorted(outputs))}"
            )
        if not signature.vocabulary:
            raise NotTranslation(
                f"model '{signature.model}' has no vocabulary in its configuration; give its ModelSpec one and publish "
                "it again"
            )
        size = inputs[SOURCE].shape[-1]
        buckets = signature.buckets.get(SOURCE, () if size == ANY_SIZE else (size,))
        vocabulary = Subwords.parse(signature.vocabulary, f"vocabulary of model '{signature.model}'")
        return cls(signature.model, signature.version, vocabulary, buckets, signature.max_batch or 1)

    def encode(self, text: str, name: str) -> list[int]:
        """The numbers of a sentence. name: the sentence's, for messages.

        Raises UserError: not UTF-8, nothing but spaces and control characters, longer than the model takes. Nothing is
        unknown: what the vocabulary lacks is spelled in bytes.
        """
        if place := next((at for at, letter in enumerate(text, 1) if "\ud800" <= letter <= "\udfff"), 0):
            raise UserError(f"{name} is not UTF-8 (character {place}); convert it first")
        if not normalise(text):
            raise UserError(f"{name} is empty, control characters and spaces aside; give it words")
        tokens = self.subwords.encode(text)
        if self.buckets and len(tokens) > self.buckets[-1]:
            raise UserError(
                f"{name} has {len(tokens) - 1:,} subwords, model '{self.model}' takes at most {self.buckets[-1] - 1}; "
                "split it into shorter sentences"
            )
        return tokens

    def bucket(self, tokens: Sequence[int]) -> int:
        """The length to which a sentence is padded."""
        return next((size for size in self.buckets if size >= len(tokens)), len(tokens))

    def request(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        """The inputs for some sentences, padded to the bucket of the longest."""
        source = np.full((len(rows), max(map(self.bucket, rows))), PADDING, np.int64)
        for row, tokens in enumerate(rows):
            source[row, : len(tokens)] = tokens
        return {SOURCE: source, LENGTHS: np.array([[len(tokens)] for tokens in rows], np.int32)}

    def translations(self, outputs: Mapping[str, Array], version: str) -> list[Translation]:
        """The sentences of an answer; version: that of the model that gave it.

        Raises ServerError for an answer of another version, whose vocabulary may be another, or with other numbers.
        """
        if version != self.version:
            raise ServerError(
                f"version {version} of model '{self.model}' answered, but the vocabulary is that of version "
                f"{self.version}: the model was published anew meanwhile; ask again"
            )
        found = []
        for row, length, score in zip(
            outputs[TOKENS], outputs[OUTPUT_LENGTHS].ravel(), outputs[SCORE].ravel(), strict=True
        ):
            tokens = tuple(int(token) for token in row[: int(length)])
            if tokens and not 0 <= min(tokens) <= max(tokens) < self.subwords.size:
                raise ServerError(
                    f"model '{self.model}' answered with {tokens}, but its vocabulary has {self.subwords.size} subwords"
                )
            found.append(Translation(self.subwords.decode(tokens), tokens, float(score)))
        return found
