"""Learn the vocabulary of the translation models from the training sentences of both languages.

    python -m optimize.data.learn_subwords                # the committed one again, from $DATA_DIR
    python -m optimize.data.learn_subwords --data mine.tsv --size 6144 --output mine.model

Networks that were trained with one vocabulary mean nothing with another: train them again afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from optimize import command
from optimize.data.dataset import find
from optimize.data.subwords import VOCABULARY_FILE, learn
from optimize.data.translation import FILE, part_of, read_pairs
from optimize.errors import UserError

SIZE = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help=f"English<TAB>French (default: $DATA_DIR/{FILE})")
    parser.add_argument("--size", type=int, default=SIZE, help="subwords (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=VOCABULARY_FILE, metavar="FILE", help="what is written")
    options = parser.parse_args(arguments)
    path = find(FILE, options.data)
    if path is None:
        raise UserError(f"no {FILE} under $DATA_DIR or ./data to learn from; give --data")
    texts = [text for pair in read_pairs(path) if part_of(pair[0]) == "train" for text in pair]
    subwords = learn(texts, options.size)
    options.output.write_bytes(subwords.content)
    print(f"{options.output}: {subwords.size} subwords of {len(texts)} sentences")


if __name__ == "__main__":
    command.run(main)
