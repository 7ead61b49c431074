"""What every command of this package shares: the arguments that choose a recipe, and how errors reach the user."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from optimize import recipes
from optimize.errors import UserError
from optimize.report_tables import Table

CONSOLE = Console(stderr=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that choose recipe, variant, data and checkpoints."""
    made = bare_parser(description)
    choice = made.add_mutually_exclusive_group()
    choice.add_argument("--model", metavar="NAME", help=f"a built-in recipe: {', '.join(recipes.BUILT_IN)}")
    choice.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe file of your own")
    made.add_argument("--variant", metavar="V", help="a variant of the recipe (default: its first)")
    made.add_argument(
        "--data", type=Path, metavar="FILE", help="the data file (default: looked for in $DATA_DIR, ./data)"
    )
    made.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="trained weights")
    made.add_argument(
        "--threads", type=_at_least_one, metavar="N", help="torch threads for training (default: all cores)"
    )
    return made


def bare_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def progress() -> Progress:
    """Progress bars for long work, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=CONSOLE)


def terminal(table: Table) -> RichTable:
    """A report's table for a terminal; what was published stands out."""
    made = RichTable(title=table.title, title_justify="left")
    for heading, numeric in zip(table.headings, table.numeric, strict=True):
        made.add_column(heading, justify="right" if numeric else "left")
    for row in table.rows:
        made.add_row(*row.cells, style="bold" if row.mark == "published" else None)
    return made


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a command: a UserError becomes one message and status 2, Ctrl-C status 130."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=CONSOLE, show_path=False)]
    )
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing was published, what served before still does", file=sys.stderr)
        sys.exit(130)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
