"""How valuable a customer is, from a review and their clicks: the tier and the sentiment.

    python -m clients value --text "Great tent, will order again!" --events events.csv --at 2024-06-01T12:00Z
    python -m clients value --events events.csv --print-request > request.json

Give one or both. The file has a row for each event: time_utc (ISO 8601), event; where it also has customer_id, and
several of them, ``--customer`` says whose. ``--at`` is the moment of asking (default: now). Vocabulary and event types
come from the server. Events may come in any order, repetitions count once, unknown types are read as unknown, of more
events than the model takes the latest are read, of a longer review the beginning; notes on standard error say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clients import json_body
from clients.errors import ServerError
from clients.options import connected
from clients.signature import ANY_SIZE, Array, Signature
from clients.texts import bucket, buckets_of, check_text, check_version, vocabulary_of
from optimize.data import clickstream, texts
from optimize.data.clickstream import Clicks
from optimize.data.customers import (
    CLICK_COLUMNS,
    event_name,
    event_time,
    inputs_of,
    read_csv,
    refuse_unknown,
    tokens_of,
)
from optimize.data.subwords import normalise
from optimize.errors import UserError

MODEL = "customer_value"
INPUTS = ("text", "text_lengths", "events", "ages", "event_lengths")
TIER, SENTIMENT = "tier", "sentiment"


def values_customers(signature: Signature) -> bool:
    """Whether a model has the interface of one that values customers."""
    inputs, outputs = ({tensor.name for tensor in side} for side in (signature.inputs, signature.outputs))
    return inputs == set(INPUTS) and outputs >= {TIER, SENTIMENT}


class NotValue(UserError):
    """A model that takes no review and clicks, or whose configuration does not say how."""


@dataclass(frozen=True)
class Reading:
    """How a model's customers are written as numbers. tokens, events: sizes to pad to; empty: any will do."""

    model: str
    version: str
    vocabulary: texts.Vocabulary
    types: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    tokens: tuple[int, ...]
    events: tuple[int, ...]

    @classmethod
    def of(cls, signature: Signature) -> Reading:
        """Raises NotValue for a model that values no customers, NoTexts for one without a vocabulary."""
        outputs = {tensor.name: tensor for tensor in signature.outputs}
        if not values_customers(signature):
            raise NotValue(
                f"model '{signature.model}' values no customers: expected the inputs {', '.join(INPUTS)} and the "
                f"outputs {TIER} and {SENTIMENT}, it has {', '.join(tensor.name for tensor in signature.inputs)} and "
                f"{', '.join(outputs)}"
            )
        for name in ("events", TIER, SENTIMENT):
            size = len(signature.labels.get(name, ()))
            if not size or (name in outputs and outputs[name].shape[-1] not in (ANY_SIZE, size)):
                raise NotValue(
                    f"model '{signature.model}' has {size} labels of '{name}' in its configuration; give its ModelSpec "
                    "one for each number and publish it again"
                )
        return cls(
            signature.model,
            signature.version,
            vocabulary_of(signature),
            signature.labels["events"],
            signature.labels,
            buckets_of(signature, "text"),
            buckets_of(signature, "events"),
        )

    def request(self, text: str, clicks: Clicks) -> dict[str, Array]:
        """The inputs of one customer, padded to the buckets."""
        tokens, _ = tokens_of(text, self.vocabulary, self.tokens[-1] if self.tokens else sys.maxsize)
        return inputs_of([tokens], [clicks], bucket(len(tokens), self.tokens), bucket(len(clicks.events), self.events))


@dataclass(frozen=True)
class Value:
    """Probabilities by label."""

    tier: dict[str, float]
    sentiment: dict[str, float]
    model: str
    version: str

    @classmethod
    def of(cls, outputs: Mapping[str, Array], reading: Reading, version: str) -> Value:
        """Raises ServerError for an answer of another version, which may read other numbers, and for odd sizes."""
        check_version(reading.model, reading.version, version)
        found = {}
        for name in (TIER, SENTIMENT):
            labels, array = reading.labels[name], outputs[name]
            if array.shape != (1, len(labels)):
                raise ServerError(f"model '{reading.model}' answers {name} {array.shape} for {len(labels)} labels")
            found[name] = {label: float(share) for label, share in zip(labels, array[0], strict=True)}
        return cls(found[TIER], found[SENTIMENT], reading.model, version)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default="", metavar="REVIEW", help="what the customer wrote; -: standard input")
    parser.add_argument("--events", type=Path, metavar="FILE", help="what they clicked: CSV of time_utc, event")
    parser.add_argument("--customer", metavar="ID", help="whose rows, where the file has several customers")
    parser.add_argument("--at", metavar="TIME", help="moment of asking, ISO 8601, UTC unless it has an offset; "
                        "default: now")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--print-request", action="store_true", help="print the body of the HTTP request; of the "
                        "server only the vocabulary is wanted")  # fmt: skip
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print the value that the command line asks for. Raises UserError."""
    text = given(options.text)
    asked = _moment(options.at)
    rows = read_events(options.events, options.customer, asked) if options.events else []
    if not rows and not normalise(text):
        raise UserError("there is neither a review nor an event; give --text with words in it, or --events")
    with connected(options) as client:
        reading = Reading.of(client.signature(options.model))
        clicks = clicks_of(rows, asked, reading, options.events)
        for note in notes(text, clicks, reading):
            print(f"note: {note}", file=sys.stderr)
        request = reading.request(text, clicks)
        if options.print_request:
            print(json_body.encode(request))
            return
        answer = client.infer(options.model, request)
    value = Value.of(answer.outputs, reading, answer.version)
    print(json.dumps(as_json(value), indent=2) if options.json else as_table(value))


def given(text: str) -> str:
    """The text of a command line, or of standard input. Raises UserError for what is not UTF-8."""
    if text == "-":
        try:
            return sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 (byte {error.start + 1}); convert it first") from None
    check_text(text, "--text")
    return text


def read_events(path: Path, customer: str | None, asked: datetime) -> list[tuple[datetime, str]]:
    """The events of one customer in a file. Raises UserError: as ``customers.read_folder``; several customers."""
    owner, *columns = CLICK_COLUMNS
    rows = read_csv(path, columns, optional=[owner])
    names = sorted({name for *_, name in rows})
    if customer is not None and customer not in names:
        raise UserError(f"'{path}' has no customer '{customer}'; it has {', '.join(names[:5])}")
    if customer is None and len(names) > 1:
        raise UserError(f"'{path}' has {len(names)} customers; say which by --customer, such as {names[0]}")
    return [
        (event_time(path, number, time, asked), event_name(path, number, event))
        for number, (time, event, name) in enumerate(rows, start=2)
        if customer in (None, name)
    ]


def clicks_of(rows: Sequence[tuple[datetime, str]], asked: datetime, reading: Reading, path: Path | None) -> Clicks:
    names = [name for _, name in rows]
    if path is not None:
        refuse_unknown(path, names, reading.types)
    most = reading.events[-1] if reading.events else len(rows)
    return Clicks.before(asked, [time for time, _ in rows], names, reading.types, most)


def notes(text: str, clicks: Clicks, reading: Reading) -> list[str]:
    """What of a customer is read otherwise than it was given."""
    _, lost = tokens_of(text, reading.vocabulary, reading.tokens[-1] if reading.tokens else sys.maxsize)
    found = []
    if lost:
        found.append(f"the review is too long for the model: its last {lost:,} subwords are left out")
    if clicks.repeated:
        found.append(f"{clicks.repeated:,} repeated events count once")
    if clicks.left_out:
        found.append(f"the oldest {clicks.left_out:,} events are left out: the model takes {reading.events[-1]}")
    if clicks.unknown:
        found.append(f"types of events that the model does not know, read as unknown: {', '.join(clicks.unknown[:5])}")
    return found


def as_table(value: Value) -> str:
    """A line for each tier and each sentiment; the most probable are marked."""
    lines = [f"{value.model} version {value.version}"]
    for what, shares in ((TIER, value.tier), (SENTIMENT, value.sentiment)):
        best = max(shares, key=lambda label: shares[label])
        lines += ["", f"{what:<12}  probability"]
        lines += [f"{label:<12}  {share:>11.1%}{'  <--' if label == best else ''}" for label, share in shares.items()]
    return "\n".join(lines)


def as_json(value: Value) -> dict[str, Any]:
    """The same as plain data."""
    best = {
        what: max(shares, key=lambda label: shares[label])
        for what, shares in ((TIER, value.tier), (SENTIMENT, value.sentiment))
    }
    shares = {"tier_probabilities": value.tier, "sentiment_probabilities": value.sentiment}
    return {"model": value.model, "version": value.version, **best, **shares}


def _moment(text: str | None) -> datetime:
    time = datetime.now(UTC) if text is None else clickstream.moment(text)
    if time is None:
        raise UserError(f"--at {text}: expected an ISO 8601 time such as 2024-06-01T12:00Z")
    return time
