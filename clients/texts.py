"""Texts to requests of a model that reads them as numbers.

    reading = Reading.of(client.signature("text_classification"))
    client.infer(reading.model, reading.request([reading.encode("Lovely book.", "text 1")]))

The vocabulary comes from the server with the model's configuration: whoever asks a model uses the model's own, be it a
SentencePiece file or a Hugging Face tokenizer.json.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Self

import numpy as np

from clients.calls import Answer
from clients.client import Client
from clients.errors import ServerError
from clients.signature import ANY_SIZE, Array, Signature
from optimize.data import texts
from optimize.data.subwords import PADDING, normalise
from optimize.errors import UserError
from optimize.specs import LENGTHS

STANDARD_INPUT = "-"


class NoTexts(UserError):
    """A model that takes no texts, or whose configuration has no vocabulary."""


@dataclass(frozen=True)
class Sentence:
    """name: what messages call it. line: of standard input, which may be empty."""

    name: str
    text: str
    line: bool = False


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
        return cls(
            signature.model,
            signature.version,
            sources[0].name,
            vocabulary_of(signature),
            buckets_of(signature, sources[0].name),
            signature.max_batch or 1,
        )

    def encode(self, text: str, name: str) -> list[int]:
        """The numbers of a text. name: the text's, for messages.

        Raises UserError: not UTF-8, nothing but spaces and control characters, longer than the model takes.
        """
        check_text(text, name)
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
        return bucket(len(tokens), self.buckets)

    def request(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        """The inputs for some texts, padded to the bucket of the longest."""
        source = np.full((len(rows), max(map(self.bucket, rows))), PADDING, np.int64)
        for row, tokens in enumerate(rows):
            source[row, : len(tokens)] = tokens
        return {self.source: source, LENGTHS: np.array([[len(tokens)] for tokens in rows], np.int32)}

    def require_version(self, version: str) -> None:
        """Raises ServerError for an answer of another version, whose vocabulary may be another."""
        check_version(self.model, self.version, version)


def vocabulary_of(signature: Signature) -> texts.Vocabulary:
    """Raises NoTexts for a model without one."""
    if not signature.vocabulary:
        raise NoTexts(
            f"model '{signature.model}' has no vocabulary in its configuration; give its ModelSpec one and publish it "
            "again"
        )
    return texts.parse(signature.vocabulary, f"vocabulary of model '{signature.model}'")


def buckets_of(signature: Signature, name: str) -> tuple[int, ...]:
    """The lengths to which an input is padded; empty: any will do."""
    (size,) = (tensor.shape[-1] for tensor in signature.inputs if tensor.name == name)
    return signature.buckets.get(name, () if size == ANY_SIZE else (size,))


def bucket(size: int, buckets: Sequence[int]) -> int:
    """The least that holds so many, at least 1."""
    return next((each for each in buckets if each >= size), max(size, 1))


def check_version(model: str, expected: str, version: str) -> None:
    """Raises ServerError for an answer of another version than that of the vocabulary."""
    if version != expected:
        raise ServerError(
            f"version {version} of model '{model}' answered, but the vocabulary is that of version {expected}: the "
            "model was published anew meanwhile; ask again"
        )


def check_text(text: str, name: str) -> None:
    """Raises UserError for an argument of the command line that was not UTF-8."""
    if place := next((at for at, letter in enumerate(text, 1) if "\ud800" <= letter <= "\udfff"), 0):
        raise UserError(f"{name} is not UTF-8 (character {place}); convert it first")


def given(texts: list[str]) -> Iterator[Sentence]:
    """The sentences of a command line."""
    if texts == [STANDARD_INPUT]:
        return lines(sys.stdin.buffer)
    return (Sentence(f"sentence {number}", text) for number, text in enumerate(texts, start=1))


def lines(stream: BinaryIO) -> Iterator[Sentence]:
    """The lines of a stream. Raises UserError for one that is not UTF-8."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} is not UTF-8 (byte {error.start + 1}); convert it first") from None
        yield Sentence(f"line {number}", text, line=True)


def blocks(texts: list[str], size: int) -> Iterator[list[Sentence]]:
    """What is asked for together: everything, or so many lines; at a terminal each line as it is typed."""
    sentences = given(texts)
    if texts != [STANDARD_INPUT]:
        yield list(sentences)
        return
    while block := list(itertools.islice(sentences, 1 if sys.stdin.isatty() else size)):
        yield block


def answers(
    client: Client, reading: Reading, sentences: Sequence[Sentence]
) -> Iterator[tuple[list[int], Answer, float]]:
    """Which of the texts an answer is for, the answer and its latency in ms; texts of like length share a request.

    None is for an empty line. Nothing is asked unless all of them can be. Raises UserError.
    """
    encoded = {
        index: reading.encode(sentence.text, sentence.name)
        for index, sentence in enumerate(sentences)
        if normalise(sentence.text) or not sentence.line
    }
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
