"""Our models beside other people's tools: same network, same requests, same machine, in turns.

    make peers                                                    # load_forecast, in process and served
    .venv/bin/python -m loadtest.peers --model speech --variant gru       # in process

Needs the artefacts of python -m optimize.export --quantize. The figures go to peers.json and peers.md under the
artefacts, where those of other models stay; --document writes the page elsewhere too.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from loadtest.closed_loop import Load
from loadtest.command import count, positive
from loadtest.peers import in_process, served
from loadtest.peers.environment import FOLDER, ROOT, PeerEnvironment
from loadtest.peers.in_process import InProcess
from loadtest.peers.results import Results, claims, markdown, tables, where_peers_win
from loadtest.peers.served import Served
from loadtest.peers.subject import Subject
from optimize import command, recipes
from optimize.benchmark import Latency, environment
from optimize.errors import UserError


def compare(subject: Subject, variant: str, peers: PeerEnvironment, rounds: int, turns: int, seconds: float,
            items: int | None, progress: Progress) -> Results:  # fmt: skip
    """Measure everything. rounds: in process; turns: of every server, of so many seconds at each number of callers."""
    versions = peers.versions()
    with tempfile.TemporaryDirectory() as place:
        inside, failures = in_process.compare(subject, peers, Path(place), rounds, items, progress)
        through: list[Served] = []
        try:
            through, others = served.compare(subject, peers, Path(place), turns, seconds, progress)
            failures |= others
        except UserError as error:
            failures["servers"] = str(error)
    return Results(
        subject.spec.name,
        variant,
        subject.data,
        subject.recipe.metric.name,
        subject.published,
        {**environment(threads=1), "peers": versions},
        inside,
        through,
        failures,
    )


def write(results: Results, folder: Path) -> str:
    """Put the figures of one model in the place of its last ones; returns the page of all."""
    path = folder / "peers.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[results.model] = asdict(results)
    path.write_text(json.dumps(known, indent=2) + "\n")
    page = markdown([read(values) for values in json.loads(path.read_text()).values()])
    (folder / "peers.md").write_text(page)
    return page


def read(values: dict[str, Any]) -> Results:
    """Results as JSON keeps them."""
    inside = [InProcess(**{**entry, "latency_ms": Latency(**entry["latency_ms"])}) for entry in values["in_process"]]
    through = [
        Served(**{**entry, "load": {int(callers): _load(load) for callers, load in entry["load"].items()}})
        for entry in values["served"]
    ]
    return Results(**{**values, "in_process": inside, "served": through})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="of the last export")
    parser.add_argument("--environment", type=Path, default=ROOT / FOLDER, metavar="DIR", help="of the peers")
    parser.add_argument("--rounds", type=count, default=300, metavar="N", help="timed calls in process (default: 300)")
    parser.add_argument("--turns", type=count, default=5, metavar="N", help="of every server (default: 5)")
    parser.add_argument("--seconds", type=positive, default=3.0, help="of a turn (default: 3)")
    parser.add_argument("--items", type=count, metavar="N", help="of the test set, for the metric (default: all)")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the page there too")
    options = parser.parse_args(arguments)
    recipe, peers = recipes.load(options.model, options.recipe), PeerEnvironment(options.environment)
    subject = Subject.load(recipe, options.variant, options.artifacts, options.checkpoints, options.data)
    with command.progress() as progress:
        variant = recipe.variant(options.variant)[0]
        found = compare(
            subject, variant, peers, options.rounds, options.turns, options.seconds, options.items, progress
        )
    page = write(found, options.artifacts)
    if options.document:
        options.document.write_text(page)
    console = Console()
    for table in tables(found):
        if table.rows:
            console.print(command.terminal(table))
    for line in where_peers_win(found):
        console.print(f"a peer wins: {line}")
    for name, reason in found.failures.items():
        console.print(f"not compared: {name}: {reason}", markup=False)
    held = claims(found)
    console.print(f"{sum(claim.holds for claim in held)} of {len(held)} claims hold; {options.artifacts / 'peers.md'}")


def _load(values: dict[str, Any]) -> Load:
    return Load(**{**values, "latency_ms": Latency(**values["latency_ms"])})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are ended then too
    command.run(main)
