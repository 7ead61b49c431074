"""How the commands of this folder end: one line for a mistake, a status for the shell.

``optimize.command`` does the same for commands that build models, and imports torch; a load generator must not.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from optimize.errors import UserError


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a command: its own status, 2 after a UserError, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(text: str) -> float:
    """An option's value above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number above 0")
    return value


def not_negative(text: str) -> float:
    """An option's value of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number of at least 0")
    return value


def count(text: str) -> int:
    """An option's value that counts something, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number of at least 1")
    return value


def new_file(text: str) -> Path:
    """An option's value that names a file to write, in a folder that is there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder '{path.parent}' does not exist; create it first")
    return path
