"""Workspaces of dead servers go, those of living ones and kept logs stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import leftovers


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path / "shm")


def workspace(tmp_path: Path) -> tuple[Path, Path]:
    """A server's folder and a region of its shared memory."""
    folder = leftovers.new_workspace()
    (folder / "backends").mkdir()
    region = tmp_path / "shm" / f"{folder.name}_0123"
    region.touch()
    return folder, region


def test_a_dead_server_s_are_swept(tmp_path: Path) -> None:
    folder, region = workspace(tmp_path)
    leftovers.open_log(folder).close()
    leftovers.sweep()
    assert not folder.exists()
    assert not region.exists()


def test_a_living_server_s_are_not_even_when_its_launcher_is_dead(tmp_path: Path) -> None:
    folder, region = workspace(tmp_path)
    with leftovers.open_log(folder) as log:  # as the launcher does, which then closes its own copy
        server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=log)
    leftovers.sweep()
    assert folder.exists()
    assert region.exists()
    server.communicate(b"\n")
    leftovers.sweep()
    assert not folder.exists()


def test_a_log_kept_after_a_failure_stays(tmp_path: Path) -> None:
    folder, region = workspace(tmp_path)
    leftovers.open_log(folder).close()
    leftovers.remove(folder, keep_log=True)
    leftovers.sweep()
    assert [path.name for path in folder.iterdir()] == [leftovers.LOG_NAME]
    assert not region.exists()


def test_a_workspace_that_is_being_made_stays(tmp_path: Path) -> None:
    folder, _ = workspace(tmp_path)
    leftovers.sweep()
    assert folder.exists()
