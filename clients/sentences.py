"""Sentences to requests of a translation model, and its answers to sentences.

    wording = Wording.of(client.signature("translate"))
    answer = client.infer("translate", wording.request([wording.encode("I love this book.", "sentence 1")]))
    wording.translations(answer.outputs, answer.version)      # [Translation("j'adore ce livre .", ...)]

How texts are written as numbers is ``texts.Reading``'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from clients.errors import ServerError
from clients.signature import Array, Signature
from clients.texts import Reading
from optimize.data.subwords import END
from optimize.errors import UserError
from optimize.specs import LENGTHS, OUTPUT_LENGTHS

SOURCE, TOKENS, SCORE = "source", "tokens", "score"


def translates(signature: Signature) -> bool:
    """Whether a model has the interface of one that translates."""
    inputs, outputs = ({tensor.name for tensor in side} for side in (signature.inputs, signature.outputs))
    return inputs == {SOURCE, LENGTHS} and outputs >= {TOKENS, OUTPUT_LENGTHS, SCORE}


class NotTranslation(UserError):
    """A model with another interface."""


@dataclass(frozen=True)
class Translation:
    """text: normalised. tokens: up to END. complete: whether END was written, or the model ran out of room before."""

    text: str
    tokens: tuple[int, ...]
    score: float

    @property
    def complete(self) -> bool:
        return self.tokens[-1:] == (END,)


class Wording(Reading):
    """How a translation model's sentences are written as numbers, and its answers read."""

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Raises NotTranslation for a model that does not translate, NoTexts for one without a vocabulary."""
        if not translates(signature):
            raise NotTranslation(
                f"model '{signature.model}' does not translate: expected the inputs '{SOURCE}' and '{LENGTHS}' and the "
                f"outputs '{TOKENS}', '{OUTPUT_LENGTHS}' and '{SCORE}', it has "
                f"{', '.join(tensor.name for tensor in signature.inputs)} and "
                f"{', '.join(sorted(tensor.name for tensor in signature.outputs))}"
            )
        return super().of(signature)

    def translations(self, outputs: Mapping[str, Array], version: str) -> list[Translation]:
        """The sentences of an answer; version: that of the model that gave it.

        Raises ServerError for an answer of another version, whose vocabulary may be another, or with other numbers.
        """
        self.require_version(version)
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
