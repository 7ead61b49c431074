"""Classify texts: one line out for each text, its label and how probable that is.

    python -m clients classify --model text_classification "Lovely book, will order again." "Never again."
    python -m clients classify - < reviews.txt > labels.tsv

The vocabulary and the labels come from the server. Texts of like length share a request. Of standard input every line
is a text, an empty one gives an empty one, and one that is longer than the model takes ends it with a message.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.client import Client
from clients.errors import ServerError
from clients.options import connected
from clients.signature import Signature
from clients.texts import NoTexts, Reading, Sentence, answers, blocks
from clients.translate import add_text_arguments

MODEL = "text_classification"
LABEL, LOG_PROBS = "label", "log_probs"


@dataclass(frozen=True)
class Class:
    """label: the most probable. probabilities: of every label. latency_ms: of the request that the text was in."""

    label: str
    probabilities: dict[str, float]
    latency_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_text_arguments(parser)
    parser.set_defaults(model=MODEL)
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each text")


def run(options: argparse.Namespace) -> None:
    """Print the classes that the command line asks for. Raises UserError."""
    with connected(options) as client:
        signature = client.signature(options.model)
        reading, labels = Reading.of(signature), labels_of(signature)
        for block in blocks(options.text, reading.max_batch):
            for sentence, found in zip(block, classify(client, reading, labels, block), strict=True):
                print(_as_json(sentence, found, reading) if options.json else _as_text(found), flush=True)


def labels_of(signature: Signature) -> tuple[str, ...]:
    """What the model's answers stand for. Raises NoTexts for a model that classifies nothing."""
    outputs, labels = {tensor.name for tensor in signature.outputs}, signature.labels.get(LABEL, ())
    if not outputs >= {LABEL, LOG_PROBS} or not labels:
        raise NoTexts(
            f"model '{signature.model}' does not classify texts: expected the outputs '{LABEL}', with labels, and "
            f"'{LOG_PROBS}', it has {', '.join(sorted(outputs))}"
        )
    return labels


def classify(
    client: Client, reading: Reading, labels: tuple[str, ...], texts: Iterable[Sentence]
) -> list[Class | None]:
    """Every text's class, None of an empty line; nothing is asked unless all of them can be. Raises UserError."""
    texts = list(texts)
    found: list[Class | None] = [None] * len(texts)
    for places, answer, latency_ms in answers(client, reading, texts):
        reading.require_version(answer.version)
        for index, label, log_probs in zip(places, answer[LABEL].ravel(), answer[LOG_PROBS], strict=True):
            if not 0 <= label < len(labels) == len(log_probs):
                raise ServerError(
                    f"model '{reading.model}' answered with label {label} of {len(log_probs)}, but its configuration "
                    f"names {len(labels)}"
                )
            probabilities = dict(zip(labels, np.exp(log_probs).tolist(), strict=True))
            found[index] = Class(labels[int(label)], probabilities, latency_ms)
    return found


def _as_text(found: Class | None) -> str:
    return f"{found.label}\t{found.probabilities[found.label]:.3f}" if found else ""


def _as_json(sentence: Sentence, found: Class | None, reading: Reading) -> str:
    described: dict[str, Any] = {"text": sentence.text.rstrip("\r\n"), "label": found.label if found else ""}
    if found:
        described |= {
            "probabilities": {label: round(share, 6) for label, share in found.probabilities.items()},
            "latency_ms": round(found.latency_ms, 3),
        }
    return json.dumps(described | {"model": reading.model, "version": reading.version}, ensure_ascii=False)
