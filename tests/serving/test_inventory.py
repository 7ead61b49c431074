"""What can be served, what is skipped, and what to do when nothing can."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import UserError
from serving import inventory


def folder(repository: Path, name: str, *children: str, config: bool = True) -> None:
    (repository / name).mkdir()
    for child in children:
        (repository / name / child).mkdir()
    if config:
        (repository / name / "config.pbtxt").touch()


def test_models_without_a_version_are_skipped(tmp_path: Path) -> None:
    folder(tmp_path, "ready", "1", "12")
    folder(tmp_path, "fresh")
    folder(tmp_path, "unfinished", ".3.tmp", "0", "notes")
    folder(tmp_path, "unknown", "1", config=False)
    folder(tmp_path, ".hidden", "1")
    (tmp_path / "README.md").touch()
    stock = inventory.take(tmp_path)
    assert stock.models == ("ready",)
    assert sorted(stock.skipped) == ["fresh", "unfinished", "unknown"]
    assert "python -m optimize.export --quantize" in stock.skipped["fresh"]
    assert stock.skipped["unknown"] == "no config.pbtxt"


@pytest.mark.parametrize("name", ["missing", "a_file"])
def test_no_repository_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match=rf"{name}' (does not exist|is not a folder); run 'python -m optimize\.export"):
        inventory.take(tmp_path / name)


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty; run 'python -m optimize\.export --quantize'"):
        inventory.take(tmp_path)
    folder(tmp_path, "fresh")
    with pytest.raises(UserError, match=r"nothing to serve.*fresh \(no version yet; run 'python -m optimize\.export"):
        inventory.take(tmp_path)
