"""Which version of a model is live: show it, promote the candidate, roll back.

python -m optimize.export --quantize --candidate        # publishes a version beside the live one
python -m optimize.release status --model load_forecast
python -m optimize.release promote --model load_forecast   # the candidate is live now, in running servers too
python -m optimize.release rollback --model load_forecast  # the version before is live again
python -m optimize.release withdraw --model load_forecast  # the candidate goes, the live version stays

Running servers follow without a lost request; without one, the next start obeys. Exit status: 0; 2 for a mistake or a
server that refuses, and then nothing has changed; 130 after Ctrl-C: 'status' shows how things are, and the next change
mends them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest import command
from optimize import promotion
from optimize.promotion import Change, Standing
from optimize.specs import candidate_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("--model", required=True, metavar="NAME", help="as it is served")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), metavar="DIR")
    options = parser.parse_args(arguments)
    print(COMMANDS[options.command](options.model_repository, options.model))
    return 0


def _status(repository: Path, model: str) -> str:
    found = promotion.standing(repository, model)
    lines = [
        f"{model} in {repository}",
        f"  live       {found.live}",
        f"  candidate  {f'{found.candidate}, served as {candidate_of(model)}' if found.candidate else 'none'}",
        f"  before     {_listed(found.earlier)}",
        f"  withdrawn  {_listed(found.withdrawn)}",
        *(f"  server     {http} serves {_listed(versions)}" for http, versions in found.served.items()),
    ]
    if not found.served:
        lines.append("  server     none runs")
    return "\n".join([*lines, *_warnings(found)])


def _warnings(found: Standing) -> list[str]:
    expected = tuple(sorted(version for version in (found.live, found.candidate) if version))
    lines = []
    if found.unfinished:
        lines.append("a change is under way, or was interrupted: the next one mends that")
    elif any(versions != expected for versions in found.served.values()):
        lines.append("a server does not serve what it should: the next change mends that, or its restart")
    return lines


def _promote(repository: Path, model: str) -> str:
    change = promotion.promote(repository, model)
    return f"{model}: version {change.now} is live, {change.was} was and is the way back; {_followed(change)}"


def _rollback(repository: Path, model: str) -> str:
    change = promotion.roll_back(repository, model)
    return f"{model}: version {change.now} is live again, {change.was} was and is withdrawn; {_followed(change)}"


def _withdraw(repository: Path, model: str) -> str:
    change = promotion.withdraw(repository, model)
    return f"{model}: candidate {change.was} is withdrawn, version {change.now} stays live; {_followed(change)}"


COMMANDS: dict[str, Callable[[Path, str], str]] = {
    "status": _status,
    "promote": _promote,
    "rollback": _rollback,
    "withdraw": _withdraw,
}


def _followed(change: Change) -> str:
    return f"served so at {', '.join(change.servers)}" if change.servers else "no server runs, the next start obeys"


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


if __name__ == "__main__":
    command.run(main)
