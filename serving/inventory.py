"""Which models of a repository can be served now.

A fresh checkout has every model's config.pbtxt but no weights: those models are skipped, with the reason, and the
rest is served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from optimize.errors import UserError

_VERSION = re.compile(r"[1-9][0-9]*")
_HOW_TO_PUBLISH = "run 'python -m optimize.export --quantize'"


@dataclass(frozen=True)
class Inventory:
    """models: names to load. skipped: name -> why it is not."""

    models: tuple[str, ...]
    skipped: dict[str, str]


def take(repository: Path) -> Inventory:
    """Look at every folder of ``repository``; raises UserError when there is nothing to serve."""
    if not repository.is_dir():
        what = "is not a folder" if repository.exists() else "does not exist"
        raise UserError(f"model repository '{repository}' {what}; {_HOW_TO_PUBLISH} or point --model-repository at one")
    models, skipped = [], {}
    for folder in sorted(repository.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if not any(_VERSION.fullmatch(child.name) and child.is_dir() for child in folder.iterdir()):
            skipped[folder.name] = f"no version yet; {_HOW_TO_PUBLISH}"
        elif not (folder / "config.pbtxt").is_file():
            skipped[folder.name] = "no config.pbtxt"
        else:
            models.append(folder.name)
    if not models:
        found = f"has only {', '.join(f'{name} ({why})' for name, why in skipped.items())}" if skipped else "is empty"
        hint = "" if skipped else f"; {_HOW_TO_PUBLISH}"
        raise UserError(f"nothing to serve: model repository '{repository}' {found}{hint}")
    return Inventory(tuple(models), skipped)
