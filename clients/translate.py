"""Translate English sentences to French: one request in, the finished translations out.

    python -m clients translate "I love this book." "Where is the station?"
    python -m clients translate - < english.txt > french.txt

Sentences go out as numbers and come back as such; the vocabulary comes from the server. Sentences of like length share
a request. Of standard input every line is a sentence, an empty one gives an empty one, and what is not UTF-8, or longer
than the model takes, ends it with a message that says which line. Words that the vocabulary lacks are spelled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from clients.client import Client
from clients.options import connected
from clients.sentences import Translation, Wording
from clients.texts import answers
from optimize.data.subwords import normalise
from optimize.errors import UserError

MODEL = "translate"
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Sentence:
    """name: what messages call it. line: of standard input, which may be empty."""

    name: str
    text: str
    line: bool = False


@dataclass(frozen=True)
class Answered:
    """translation: None of an empty line. latency_ms: of the request that the sentence was in."""

    sentence: Sentence
    translation: Translation | None
    latency_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_text_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each sentence")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """The sentences and the model that is asked."""
    parser.add_argument("text", nargs="+", metavar="TEXT", help="a sentence; -: the lines of standard input")
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print the translations that the command line asks for. Raises UserError."""
    with connected(options) as client:
        wording = Wording.of(client.signature(options.model))
        for block in blocks(options.text, wording.max_batch):
            for answered in translate(client, wording, block):
                print(_as_json(answered, wording) if options.json else _as_text(answered), flush=True)


def translate(client: Client, wording: Wording, sentences: Iterable[Sentence]) -> list[Answered]:
    """Every sentence's translation; nothing is asked unless all of them can be. Raises UserError."""
    sentences = list(sentences)
    encoded = {
        index: wording.encode(sentence.text, sentence.name)
        for index, sentence in enumerate(sentences)
        if normalise(sentence.text) or not sentence.line
    }
    answered = {index: Answered(sentence, None, 0.0) for index, sentence in enumerate(sentences)}
    for places, answer, latency_ms in answers(client, wording, encoded):
        for index, found in zip(places, wording.translations(answer.outputs, answer.version), strict=True):
            answered[index] = Answered(sentences[index], found, latency_ms)
    return list(answered.values())


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


def _as_text(answered: Answered) -> str:
    return answered.translation.text if answered.translation else ""


def _as_json(answered: Answered, wording: Wording) -> str:
    found = answered.translation
    described: dict[str, Any] = {"text": answered.sentence.text.rstrip("\r\n"), "translation": _as_text(answered)}
    if found:
        described |= {
            "score": found.score,
            "complete": found.complete,
            "tokens": found.tokens,
            "latency_ms": round(answered.latency_ms, 3),
        }
    return json.dumps(described | {"model": wording.model, "version": wording.version}, ensure_ascii=False)
