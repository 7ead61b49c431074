"""A candidate goes live, and back, as the folders say, whatever interrupts; and the command for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimize import promotion, release, version_folder
from optimize.promotion import Change, PromotionError, promote, roll_back, standing, withdraw
from optimize.repository import PublishError
from optimize.rollout import RolloutError
from optimize.triton_config import from_config, parse_text
from optimize.version_folder import versions
from tests.optimize.test_repository import SERVING, _snapshot

ROOT = Path(__file__).parents[2]


def roles(root: Path) -> tuple[int, tuple[int, ...], int | None, tuple[int, ...]]:
    """Live, earlier, candidate, withdrawn."""
    found = standing(root, "scaled")
    assert not found.unfinished
    return found.live, found.earlier, found.candidate, found.withdrawn


def instances(root: Path) -> int:
    """What tells the live configuration apart."""
    return from_config(parse_text((root / "scaled/config.pbtxt").read_text()))[1].instances


# On disk, without a server.


def test_a_candidate_leaves_the_live_version_alone(root: Path, put: Callable[..., int]) -> None:
    put(1.0)
    before = _snapshot(root / "scaled")
    assert put(2.0, replace(SERVING, instances=2), candidate=True) == 2
    assert _snapshot(root / "scaled") == before
    assert roles(root) == (1, (), 2, ())
    assert 'name: "scaled.candidate"' in (root / "scaled.candidate/config.pbtxt").read_text()


def test_the_way_there_and_back(root: Path, put: Callable[..., int]) -> None:
    put(1.0)
    put(2.0, replace(SERVING, instances=2), candidate=True)
    model = (root / "scaled.candidate/2/model.onnx").read_bytes()
    change = promote(root, "scaled")
    assert (change.was, change.now, change.servers) == (1, 2, ())
    assert roles(root) == (2, (1,), None, ())
    assert not (root / "scaled.candidate").exists()
    assert ((root / "scaled/2/model.onnx").read_bytes(), instances(root)) == (model, 2)
    change = roll_back(root, "scaled")
    assert (change.was, change.now) == (2, 1)
    assert (roles(root), instances(root)) == ((1, (), None, (2,)), 1), "and the configuration that it had"
    assert put(3.0) == 3, "a number is never given twice"
    assert roles(root) == (3, (1,), None, (2,))


def test_a_new_candidate_takes_the_place_of_the_one_before(root: Path, put: Callable[..., int]) -> None:
    put(1.0)
    assert [put(factor, candidate=True) for factor in (2.0, 3.0, 3.0)] == [2, 3, 3]
    assert versions(root / "scaled.candidate") == [3]
    assert withdraw(root, "scaled").was == 3
    assert roles(root) == (1, (), None, (3,))
    assert put(4.0, candidate=True) == 4


def test_the_way_back_is_not_pruned(root: Path, put: Callable[..., int]) -> None:
    for factor in range(4):
        put(factor)
    put(9.0, candidate=True)
    promote(root, "scaled")
    assert roles(root) == (5, (4, 3), None, ())


def test_candidates_that_were_withdrawn_do_not_cost_the_version_that_was_live(
    root: Path, put: Callable[..., int]
) -> None:
    put(1.0)
    put(2.0)
    for factor in (3.0, 4.0, 5.0):
        put(factor, candidate=True)
        withdraw(root, "scaled")
    assert roll_back(root, "scaled").now == 1
    assert roles(root) == (1, (), None, (2, 4, 5))
    assert (root / "scaled/.withdrawn/2/model.onnx").exists()


@pytest.mark.parametrize("error", [RolloutError("the server does not answer"), PermissionError(13, "denied")])
@pytest.mark.parametrize(("change", "live"), [(promote, 2), (withdraw, 1)])
def test_what_happened_is_not_denied_when_the_candidate_cannot_be_let_go(
    root: Path,
    put: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, str], Change],
    live: int,
    error: Exception,
) -> None:
    put(1.0)
    put(2.0, candidate=True)
    real, calls = promotion._mend, iter((1, 2))

    def second_fails(*arguments: Any) -> None:
        if next(calls) == 2:
            raise error
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_mend", second_fails)
        assert change(root, "scaled").now == live
    assert "the candidate of 'scaled' is still there, the next change mends that" in caplog.text
    assert (root / "scaled.candidate").exists()
    mended(root)
    assert roles(root)[:3] == (live, (1,) if live == 2 else (), None)
    assert not (root / "scaled.candidate").exists()


def test_an_older_version_without_a_configuration_of_its_own(root: Path, put: Callable[..., int]) -> None:
    """Published before versions kept it."""
    put(1.0)
    put(2.0, replace(SERVING, instances=2))
    (root / "scaled/1/config.pbtxt").unlink()
    roll_back(root, "scaled")
    assert (roles(root)[0], instances(root)) == (1, 2)


def test_mistakes_are_told_and_change_nothing(root: Path, put: Callable[..., int]) -> None:
    with pytest.raises(PublishError, match="no live version that a candidate could be compared with"):
        put(1.0, candidate=True)
    with pytest.raises(PromotionError, match=r"no model 'scaled' is published in .*: it has none"):
        promote(root, "scaled")
    put(1.0)
    with pytest.raises(PromotionError, match=r"no model 'scales' is published in .*: it has scaled; check --model"):
        roll_back(root, "scales")
    before = _snapshot(root)
    with pytest.raises(PromotionError, match="has no candidate to promote, version 1 is live"):
        promote(root, "scaled")
    with pytest.raises(PromotionError, match="has no candidate to withdraw; version 1 is live"):
        withdraw(root, "scaled")
    with pytest.raises(PromotionError, match="has only version 1: there is none before it"):
        roll_back(root, "scaled")
    assert _snapshot(root) == before
    put(2.0, candidate=True)
    put(3.0)
    with pytest.raises(PromotionError, match="candidate 2 of 'scaled' is older than version 3"):
        promote(root, "scaled")
    with pytest.raises(PromotionError, match="no model 'scaled' is published"):
        standing(root / "nowhere", "scaled")
    assert not (root / "nowhere").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("command", [promote, roll_back, withdraw])
def test_whenever_it_is_killed_the_next_command_mends_it(
    tmp_path: Path, put: Callable[..., int], monkeypatch: pytest.MonkeyPatch, command: Callable[[Path, str], object]
) -> None:
    """Killed at the first thing that it does to the disk, then at the second, and so on until one gets through."""
    put(1.0)
    put(2.0, replace(SERVING, instances=2))
    put(3.0, replace(SERVING, instances=3), candidate=True)
    saved = tmp_path / "saved"
    (tmp_path / "r").rename(saved)
    done = tmp_path / "done"
    shutil.copytree(saved, done)
    command(done, "scaled")
    steps, outcomes = 0, set()
    while True:
        root = tmp_path / "r"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(saved, root)
        left = steps

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree"), (version_folder, "_sync")):
                patch.setattr(module, name, counted(getattr(module, name)))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                command(root, "scaled")
                break
            except Killed:
                steps += 1
        mended(root)
        assert _snapshot(root) in (_snapshot(saved), _snapshot(done)), f"after {steps - 1} steps it is neither"
        outcomes.add(_snapshot(root) == _snapshot(saved))
    assert steps >= 2
    assert _snapshot(tmp_path / "r") == _snapshot(done)


def mended(root: Path) -> None:
    """The next command, one that itself has nothing to do."""
    with promotion._opened(root, "scaled", "looked at"):
        pass


# The command.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize.release", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command(root: Path, put: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    put(1.0)
    put(2.0, candidate=True)

    def run(name: str) -> tuple[int, str, str]:
        status = release.main([name, "--model", "scaled", "--model-repository", str(root)])
        return status, *capsys.readouterr()

    assert run("status")[1].splitlines() == [
        f"scaled in {root}",
        "  live       1",
        "  candidate  2, served as scaled.candidate",
        "  before     none",
        "  withdrawn  none",
        "  server     none runs",
    ]
    end = "no server runs, the next start obeys\n"
    assert run("promote") == (0, f"scaled: version 2 is live, 1 was and is the way back; {end}", "")
    assert run("rollback") == (0, f"scaled: version 1 is live again, 2 was and is withdrawn; {end}", "")
    put(3.0, candidate=True)
    assert run("withdraw") == (0, f"scaled: candidate 3 is withdrawn, version 1 stays live; {end}", "")
    told = command("promote", "--model", "scaled", "--model-repository", str(root))
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1)
    assert told.stderr.startswith("error: 'scaled' has no candidate to promote, version 1 is live; publish one with")


def test_two_commands_at_once(root: Path, put: Callable[..., int]) -> None:
    """One promotes, the other finds nothing to promote: never both, never neither."""
    put(1.0)
    put(2.0, candidate=True)
    arguments = ("promote", "--model", "scaled", "--model-repository", str(root))
    results: list[subprocess.CompletedProcess[str]] = []
    both = [threading.Thread(target=lambda: results.append(command(*arguments))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(result.returncode for result in results) == [0, 2], [result.stderr for result in results]
    assert roles(root) == (2, (1,), None, ())


def test_it_needs_no_torch() -> None:
    check = "import sys, optimize.release; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
