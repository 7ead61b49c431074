"""Customers to what the value model reads: their own files, or a seeded shop as a stand-in.

    python -m optimize.data.customers --count 500 --output customers     # examples of the files
    python -m optimize.train --model customer_value --data customers

The folder has two CSV files in UTF-8. ``reviews.csv`` has a row for each customer: customer_id, asked_utc (the moment
for which the tier holds), review, tier (low, medium, high, top), sentiment (negative, neutral, positive).
``events.csv`` has a row for each click: customer_id, time_utc, event. Times are ISO 8601, UTC unless they have an
offset. What becomes of clicks in any order, repeated, unknown or too many: see ``clickstream``; events of types that
the model does not know are counted in the report. A review may be empty and a customer without clicks, not both; of a
review of more than 63 subwords the first 63 are read, and control characters are spaces.

Customers are split by a hash of their id: the same for ever, on every machine, and no customer is in two splits.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from optimize.data.clickstream import EVENT_TYPES, EVENTS, NO_EVENT, UNKNOWN_EVENT, Clicks, FutureEvent, moment
from optimize.data.dataset import Arrays, Dataset, Split, data_folder
from optimize.data.reviews import SENTIMENTS
from optimize.data.shop import TIERS, Customer, customers
from optimize.data.subwords import END, PADDING, Subwords, normalise
from optimize.data.texts import Tokenizer, Vocabulary
from optimize.errors import UserError

FOLDER, REVIEWS, CLICKS = "customers", "reviews.csv", "events.csv"
REVIEW_COLUMNS = ("customer_id", "asked_utc", "review", "tier", "sentiment")
CLICK_COLUMNS = ("customer_id", "time_utc", "event")
VOCABULARY_FILE = Path(__file__).with_name("reviews.subwords.model")
VOCABULARY = 768
TEXT_TOKENS = 64  # END included
TEST_SHARE, VALIDATION_SHARE = 0.22, 0.11
COUNT, SEED = 18_000, 4711


def load(data: Path | None = None, vocabulary: Vocabulary | None = None) -> Dataset:
    """Customers from the folder ``data``, else from $DATA_DIR or ./data, else from the shop.

    vocabulary: by which reviews become numbers, if not the committed one. Raises UserError for files that cannot be
    used; the message says which row.
    """
    folder = data or data_folder() / FOLDER
    if data is not None and not data.is_dir():
        raise UserError(f"'{data}' is no folder; give one with {REVIEWS} and {CLICKS}")
    if folder.is_dir():
        found, source = read_folder(folder), f"{folder.name}: {'the folder given' if data else 'found'}"
    else:
        found = customers(COUNT, SEED)
        source = f"{COUNT:,} customers of a made-up shop, seed {SEED} (no {FOLDER}/ under $DATA_DIR or ./data)"
    return dataset(found, vocabulary or Subwords.load(VOCABULARY_FILE), source)


def dataset(found: Sequence[Customer], vocabulary: Vocabulary, source: str) -> Dataset:
    """Three splits that share no customer. The source tells of events whose type is unknown."""
    parts: dict[str, list[Customer]] = {"train": [], "validation": [], "test": []}
    for customer in found:
        parts[part_of(customer.name)].append(customer)
    if missing := [name for name, part in parts.items() if not part]:
        raise UserError(f"{source}: {len(found)} customers leave nothing to {' and '.join(missing)}; give more")
    splits = {name: split(part, vocabulary) for name, part in parts.items()}
    known = set(EVENT_TYPES[UNKNOWN_EVENT + 1 :])
    if unknown := Counter(event for customer in found for event in customer.events if event not in known):
        names = ", ".join(name for name, _ in unknown.most_common(5))
        source += f"; {unknown.total():,} events of {len(unknown)} unknown types ({names}) are read as unknown"
    digest = hashlib.sha256()
    for part in splits.values():
        for array in (*part.inputs.values(), *part.targets.values()):
            digest.update(array.tobytes())
    return Dataset(splits["train"], splits["validation"], splits["test"], source, digest.hexdigest())


def split(found: Sequence[Customer], vocabulary: Vocabulary) -> Split:
    """Inputs as in ``inputs_of``; targets ``tier`` and ``sentiment``, (items,) places in TIERS and SENTIMENTS."""
    clicks = [Clicks.before(one.asked, one.times, one.events, EVENT_TYPES) for one in found]
    return Split(
        inputs_of([tokens_of(one.review, vocabulary)[0] for one in found], clicks, TEXT_TOKENS, EVENTS),
        {
            "tier": np.array([TIERS.index(one.tier) for one in found], np.int64),
            "sentiment": np.array([SENTIMENTS.index(one.sentiment) for one in found], np.int64),
        },
        np.arange(len(found)),
    )


def tokens_of(review: str, vocabulary: Vocabulary, most: int = TEXT_TOKENS) -> tuple[list[int], int]:
    """The subwords of a review, none of one without words; and how many are left out of one that is too long."""
    if not normalise(review):
        return [], 0
    tokens = vocabulary.encode(review)
    if len(tokens) <= most:
        return tokens, 0
    cut = vocabulary.encode(review, most) if isinstance(vocabulary, Tokenizer) else [*tokens[: most - 1], END]
    return cut, len(tokens) - most


def inputs_of(texts: Sequence[Sequence[int]], clicks: Sequence[Clicks], tokens: int, events: int) -> Arrays:
    """What the model reads of some customers, padded to so many tokens and events.

    ``text`` (items, tokens) int64, ``events`` (items, events) int64 and ``ages`` (items, events) float32, and how much
    of them is meant: ``text_lengths`` and ``event_lengths`` (items, 1) int32, 0 for what is missing.
    """
    inputs: Arrays = {
        "text": np.full((len(texts), tokens), PADDING, np.int64),
        "text_lengths": np.array([[len(text)] for text in texts], np.int32),
        "events": np.full((len(texts), events), NO_EVENT, np.int64),
        "ages": np.zeros((len(texts), events), np.float32),
        "event_lengths": np.array([[len(one.events)] for one in clicks], np.int32),
    }
    for row, (text, one) in enumerate(zip(texts, clicks, strict=True)):
        inputs["text"][row, : len(text)] = text
        inputs["events"][row, : len(one.events)] = one.events
        inputs["ages"][row, : len(one.ages)] = one.ages
    return inputs


def read_folder(folder: Path) -> list[Customer]:
    """The customers of ``reviews.csv``, in its order, with their events.

    Raises UserError: a file that is missing, not UTF-8 or no CSV, missing columns, no rows; a customer twice, without
    an id or without both review and events; a tier, sentiment or time that is none; an event of nobody, without a type
    or after the moment of asking; events of which none is of a known type.
    """
    reviews = read_csv(folder / REVIEWS, REVIEW_COLUMNS)
    path = folder / REVIEWS
    asked: dict[str, datetime] = {}
    for row, (name, text, _, tier, sentiment) in enumerate(reviews, start=2):
        if not name or name in asked:
            raise UserError(f"'{path}' row {row}: customer_id '{name}' {'is there twice' if name else 'is empty'}")
        asked[name] = time_of(path, row, "asked_utc", text)
        for column, value, known in (("tier", tier, TIERS), ("sentiment", sentiment, SENTIMENTS)):
            if value not in known:
                raise UserError(f"'{path}' row {row}: {column} '{value}' is unknown; use one of {', '.join(known)}")
    events: dict[str, list[tuple[datetime, str]]] = {name: [] for name in asked}
    path = folder / CLICKS
    for row, (name, text, event) in enumerate(read_csv(path, CLICK_COLUMNS), start=2):
        if name not in events:
            raise UserError(f"'{path}' row {row}: customer_id '{name}' has no row in {REVIEWS}")
        events[name].append((event_time(path, row, text, asked[name]), event_name(path, row, event)))
    refuse_unknown(path, [event for listed in events.values() for _, event in listed], EVENT_TYPES)
    found = []
    for row, (name, _, review, tier, sentiment) in enumerate(reviews, start=2):
        if not events[name] and not normalise(review):
            raise UserError(f"'{folder / REVIEWS}' row {row}: customer '{name}' has neither review nor events; drop it")
        times, names = zip(*sorted(events[name], key=lambda event: event[0]), strict=True) if events[name] else ((), ())
        found.append(Customer(name, asked[name], review, times, names, tier, sentiment))
    return found


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The rows of a CSV file, those columns of them; "" for an optional one that is not there. Raises UserError."""
    expected = f"expected CSV in UTF-8 with the columns {', '.join(columns)}"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; {expected}") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"'{path}' is empty; {expected}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 (byte {error.start}); {expected}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); {expected}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first values for names of the rows
        raise UserError(
            f"'{path}' has more values in its rows than columns; remove the commas at their end; {expected}"
        )
    if missing := [name for name in columns if name not in frame.columns]:
        raise UserError(f"'{path}' lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise UserError(f"'{path}' has a header but no rows; {expected}")
    frame = frame.reindex(columns=[*columns, *optional], fill_value="")
    return list(frame.itertuples(index=False, name=None))


def time_of(path: Path, row: int, column: str, text: str) -> datetime:
    time = moment(text)
    if time is None:
        raise UserError(f"'{path}' row {row}: {column} '{text}' is no ISO 8601 time such as 2024-05-31T12:00:00Z")
    return time


def event_time(path: Path, row: int, text: str, asked: datetime) -> datetime:
    """The time of an event in a file, which must not lie after the moment of asking."""
    time = time_of(path, row, "time_utc", text)
    if time > asked:
        raise UserError(f"'{path}' row {row}: {FutureEvent(row, time, asked)}")
    return time


def event_name(path: Path, row: int, text: str) -> str:
    if not text.strip():
        raise UserError(f"'{path}' row {row}: event is empty; name its type, such as {EVENT_TYPES[UNKNOWN_EVENT + 1]}")
    return text.strip()


def refuse_unknown(path: Path, names: Sequence[str], types: Sequence[str]) -> None:
    """Some unknown types are read as such; where nothing is known, it is no clickstream of this model."""
    known = types[UNKNOWN_EVENT + 1 :]
    if names and not set(names) & set(known):
        some = ", ".join(sorted(set(names))[:5])
        raise UserError(f"'{path}': no event is of a type that the model knows ({some}); it knows {', '.join(known)}")


def part_of(name: str) -> str:
    """The split of a customer, by a hash of the id: "test", "validation" or "train"."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def write_folder(found: Iterable[Customer], folder: Path) -> None:
    """The inverse of ``read_folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / REVIEWS).open("w", newline="", encoding="utf-8") as reviews,
        (folder / CLICKS).open("w", newline="", encoding="utf-8") as clicks,
    ):
        of_reviews, of_clicks = csv.writer(reviews), csv.writer(clicks)
        of_reviews.writerow(REVIEW_COLUMNS)
        of_clicks.writerow(CLICK_COLUMNS)
        for one in found:
            of_reviews.writerow((one.name, one.asked.isoformat(), one.review, one.tier, one.sentiment))
            of_clicks.writerows(
                (one.name, time.isoformat(), event) for time, event in zip(one.times, one.events, strict=True)
            )


def training_reviews() -> list[str]:
    """Those of the shop, normalised, from which the committed vocabulary is learned."""
    return [normalise(one.review) for one in customers(COUNT, SEED) if one.review and part_of(one.name) == "train"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="customers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path(FOLDER), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    write_folder(customers(options.count, options.seed), options.output)
    print(f"{options.count} customers: {options.output / REVIEWS}, {options.output / CLICKS}")


if __name__ == "__main__":
    main()
