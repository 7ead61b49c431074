"""English and French sentences: reading, splitting by whole English sentence, and a seeded grammar as a stand-in.

A file has a line ``English<TAB>French`` for each pair (.tsv or .tsv.gz; further columns are ignored), an English
sentence as often as it has translations. All translations of a sentence are in the same split, and so are sentences
that differ in punctuation only: the split is a hash of the English words, the same for ever and on every machine.
Training items are pairs; validation and test items are English sentences with all their references.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimize.data.dataset import Arrays, Dataset, Split, find
from optimize.data.grammar import sentence_pairs
from optimize.data.subwords import PADDING, VOCABULARY_FILE, Subwords, normalise
from optimize.errors import UserError

FILE = "translation/eng_fra.tsv.gz"
SOURCE_TOKENS, TARGET_TOKENS = 24, 32  # the longest sentences, END included
TEST_SHARE, VALIDATION_SHARE = 0.08, 0.0105
SEED = 1539

Pair = tuple[str, str]


def load(data: Path | None = None) -> Dataset:
    """Sentence pairs from ``data``, else from $DATA_DIR or ./data, else from the grammar.

    Raises UserError for a file that cannot be used; the message says which line.
    """
    path = find(FILE, data)
    if path is None:
        source = f"sentences of a small grammar, seed {SEED} (no {FILE} under $DATA_DIR or ./data)"
    else:
        source = f"{path.name}: {'the file given' if data else 'Tatoeba, CC BY 2.0 FR'}"
    return dataset(pairs(path), Subwords.load(VOCABULARY_FILE), source)


def pairs(path: Path | None) -> list[Pair]:
    """Those of a file, or of the grammar."""
    return sentence_pairs(12_000, SEED) if path is None else read_pairs(path)


def dataset(pairs: Sequence[Pair], subwords: Subwords, source: str) -> Dataset:
    """Normalised pairs as three splits that share no English sentence."""
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        parts[part_of(pair[0])].append(pair)
    if missing := [name for name, part in parts.items() if not part]:
        raise UserError(f"{source}: {len(pairs)} pairs leave nothing to {' and '.join(missing)}; give a larger file")
    digest = hashlib.sha256(subwords.content + "\n".join("\t".join(pair) for pair in pairs).encode())
    return Dataset(
        train=pair_split(parts["train"], subwords),
        validation=sentence_split(parts["validation"], subwords),
        test=sentence_split(parts["test"], subwords),
        source=source,
        sha256=digest.hexdigest(),
    )


def read_pairs(path: Path) -> list[Pair]:
    """The distinct normalised (English, French) pairs of a file, in its order.

    Raises UserError: unreadable, not UTF-8, no pairs, a line without a tab or with an empty side.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; give lines of English<TAB>French") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 (byte {error.start}); convert it first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read ({error}); expected .tsv or .tsv.gz text") from None
    pairs: dict[Pair, None] = {}
    for number, line in enumerate(re.split(r"\r?\n", text), start=1):
        if not line.strip():
            continue
        columns = [normalise(column) for column in line.split("\t")[:2]]
        if len(columns) < 2 or not all(columns):
            raise UserError(f"'{path}' line {number}: expected English<TAB>French, got '{line[:80]}'")
        pairs[columns[0], columns[1]] = None
    if not pairs:
        raise UserError(f"'{path}' holds no pairs; expected lines of English<TAB>French")
    return list(pairs)


def part_of(english: str) -> str:
    """The split of a normalised sentence, by a hash of its words: "test", "validation" or "train"."""
    digest = hashlib.sha256(words_of(english).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def words_of(english: str) -> str:
    """A sentence without its punctuation, or as it is when it has nothing else."""
    return " ".join(re.findall(r"\w+", english)) or english


def pair_split(pairs: Iterable[Pair], subwords: Subwords) -> Split:
    """Training items: inputs as in ``inputs_of``, targets ``tokens`` (items, 32). Longer pairs are left out."""
    rows = [(english, subwords.encode(english), subwords.encode(french)) for english, french in pairs]
    rows = [row for row in rows if len(row[1]) <= SOURCE_TOKENS and len(row[2]) <= TARGET_TOKENS]
    if not rows:
        raise UserError(f"no pair is short enough: at most {SOURCE_TOKENS} English and {TARGET_TOKENS} French subwords")
    return Split(
        inputs_of([source for _, source, _ in rows]),
        {"tokens": padded([target for _, _, target in rows], TARGET_TOKENS)},
        groups_of([english for english, _, _ in rows]),
    )


def sentence_split(pairs: Iterable[Pair], subwords: Subwords) -> Split:
    """Test items, one for each English sentence: targets ``references`` (items, most references) of text, "" if fewer.

    Sentences of more than 24 subwords are left out.
    """
    references: dict[str, list[str]] = {}
    for english, french in pairs:
        references.setdefault(english, []).append(french)
    sources = {english: subwords.encode(english) for english in references}
    kept = [english for english, source in sources.items() if len(source) <= SOURCE_TOKENS]
    if not kept:
        raise UserError(f"no sentence to test is short enough: at most {SOURCE_TOKENS} English subwords")
    most = max(len(references[english]) for english in kept)
    texts = np.array([references[english] + [""] * (most - len(references[english])) for english in kept])
    return Split(inputs_of([sources[english] for english in kept]), {"references": texts}, groups_of(kept))


def inputs_of(sources: Sequence[Sequence[int]]) -> Arrays:
    """What the model reads: ``source`` (items, 24) int64, padded, and ``lengths`` (items, 1) int32."""
    lengths = np.array([[len(source)] for source in sources], np.int32)
    return {"source": padded(sources, SOURCE_TOKENS), "lengths": lengths}


def padded(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    """(rows, width)."""
    array = np.full((len(rows), width), PADDING, np.int64)
    for row, tokens in enumerate(rows):
        array[row, : len(tokens)] = tokens
    return array


def groups_of(sentences: Sequence[str]) -> NDArray[np.int64]:
    """(items,): the same number for sentences of the same words, which the bootstrap keeps together."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(words_of(sentence), len(numbers)) for sentence in sentences], np.int64)
