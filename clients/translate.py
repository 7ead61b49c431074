"""Translate English sentences to French: one request in, the finished translations out.

    python -m clients translate "I love this book." "Where is the station?"
    python -m clients translate - < english.txt > french.txt

Sentences go out as numbers and come back as such; the vocabulary comes from the server. Sentences of like length share
a request. Of standard input every line is a sentence, an empty one gives an empty one, and what is not UTF-8, or longer
than the model takes, ends it with a message that says which line. Words that the vocabulary lacks are spelled.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clients.client import Client
from clients.options import connected
from clients.sentences import Translation, Wording
from clients.texts import Sentence, answers, blocks

MODEL = "translate"


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
    answered = {index: Answered(sentence, None, 0.0) for index, sentence in enumerate(sentences)}
    for places, answer, latency_ms in answers(client, wording, sentences):
        for index, found in zip(places, wording.translations(answer.outputs, answer.version), strict=True):
            answered[index] = Answered(sentences[index], found, latency_ms)
    return list(answered.values())


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
