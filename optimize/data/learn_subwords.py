"""Learn the vocabulary of the translation models from the training sentences of both languages.

    python -m optimize.data.learn_subwords                # the committed one again, from $DATA_DIR
    python -m optimize.data.learn_subwords --data mine.tsv --size 6144 --output mine.model
    python -m optimize.data.learn_subwords --reviews      # that of the value model, from the made-up shop

Networks that were trained with one vocabulary mean nothing with another: train them again afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from optimize import command
from optimize.data import customers
from optimize.data.dataset import find
from optimize.data.subwords import VOCABULARY_FILE, learn
from optimize.data.translation import FILE, part_of, read_pairs
from optimize.errors import UserError

SIZE = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="FILE", help=f"English<TAB>French (default: $DATA_DIR/{FILE})")
    source.add_argument("--reviews", action="store_true", help="those that the value model is trained on")
    parser.add_argument("--size", type=int, help=f"subwords (default: {SIZE}, of reviews {customers.VOCABULARY})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="what is written (default: the committed one)")
    options = parser.parse_args(arguments)
    if options.reviews:
        texts, size, output = customers.training_reviews(), customers.VOCABULARY, customers.VOCABULARY_FILE
    else:
        texts, size, output = _sentences(options.data), SIZE, VOCABULARY_FILE
    output = options.output or output
    subwords = learn(texts, options.size or size)
    output.write_bytes(subwords.content)
    print(f"{output}: {subwords.size} subwords of {len(texts):,} texts")


def _sentences(data: Path | None) -> list[str]:
    path = find(FILE, data)
    if path is None:
        raise UserError(f"no {FILE} under $DATA_DIR or ./data to learn from; give --data")
    return [text for pair in read_pairs(path) if part_of(pair[0]) == "train" for text in pair]


if __name__ == "__main__":
    command.run(main)
