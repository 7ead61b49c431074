"""A candidate goes live, and back, as the folders say; whatever interrupts; under load, without a lost request."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import clients
from clients.router import Router
from optimize import promotion, release, version_folder
from optimize.promotion import PromotionError, promote, roll_back, standing, withdraw
from optimize.repository import PublishError, publish
from optimize.specs import ServingSpec
from optimize.triton_config import from_config, parse_text
from optimize.version_folder import versions
from serving import running
from serving.config import ServerConfig
from serving.launcher import Server
from tests.optimize.test_repository import SERVING, SPEC, _scale, _snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., int]:
    """Publish y = factor * x, as the live version or as a candidate; returns the version."""

    def publish_scale(factor: float, serving: ServingSpec = SERVING, candidate: bool = False) -> int:
        model = _scale(tmp_path / "m.onnx", factor)
        return publish(tmp_path / "r", SPEC, serving, model, candidate=candidate).version

    return publish_scale


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "r"


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


# With a real Triton that runs from the repository.


@contextmanager
def serving_from(root: Path) -> Iterator[Server]:
    with Server(ServerConfig(root, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what Triton does after it has answered: it lets a model go in its own time."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def ask(client: clients.Client, model: str = "scaled") -> tuple[str, float]:
    """The version that answers and its factor."""
    answer = client.infer(model, {"x": np.ones((1, 4), np.float32)})
    return answer.version, float(answer["y"][0, 0])


def test_promote_and_roll_back_under_load_lose_no_request(root: Path, put: Callable[..., int]) -> None:
    """Callers who name no version, and callers of the router, all through publication, promotion and rollback."""
    put(1.0)
    answers: Counter[tuple[str, str, float]] = Counter()
    failures: list[Exception] = []
    done = threading.Event()
    stage = ["alone"]

    def keep_asking(routed: bool, number: int) -> None:
        with clients.connect(server.grpc) as client:
            router = Router(client, "scaled", split=0.5, salt="test")
            turn = number
            while not done.is_set():
                turn += 1
                try:
                    if routed:
                        answer = router.infer(f"user {turn}", {"x": np.ones((1, 4), np.float32)}).answer
                        found = answer.version, float(answer["y"][0, 0])
                    else:
                        found = ask(client)
                    answers[stage[0] if not routed else "routed", *found] += 1
                except Exception as error:
                    failures.append(error)

    with serving_from(root) as server, clients.connect(server.grpc) as client:
        askers = [threading.Thread(target=keep_asking, args=(routed, 1000 * routed)) for routed in (False, True)]
        for asker in askers:
            asker.start()
        try:
            put(2.0, candidate=True)
            stage[0] = "candidate"
            assert (ask(client), ask(client, "scaled.candidate")) == (("1", 1.0), ("2", 2.0))
            for _ in range(200):
                ask(client)
            stage[0] = "promoting"
            assert promote(root, "scaled").servers == (server.http,)
            assert ask(client) == ("2", 2.0)
            eventually(lambda: not client.ready("scaled.candidate"))
            assert standing(root, "scaled").served == {server.http: (2,)}
            roll_back(root, "scaled")
            assert ask(client) == ("1", 1.0)
            put(3.0, candidate=True)
            withdraw(root, "scaled")
            assert ask(client) == ("1", 1.0)
        finally:
            done.set()
            for asker in askers:
                asker.join()
        assert failures == []
        assert {key[1:] for key in answers if key[0] == "candidate"} == {("1", 1.0)}, (
            "who names no version is not tested"
        )
        assert {key[1:] for key in answers if key[0] == "routed"} >= {("1", 1.0), ("2", 2.0)}
        assert {key[1:] for key in answers} <= {("1", 1.0), ("2", 2.0), ("3", 3.0)}
        assert server.log.read_text().count('"loading: scaled:1"') == 2, "at the start and to go back to, not otherwise"


def test_a_restart_keeps_what_was_decided(root: Path, put: Callable[..., int]) -> None:
    put(1.0)
    put(2.0)
    put(3.0, candidate=True)
    roll_back(root, "scaled")
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        assert (ask(client), ask(client, "scaled.candidate")) == (("1", 1.0), ("3", 3.0))
    promote(root, "scaled")
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        assert ask(client) == ("3", 3.0)
        assert standing(root, "scaled").served == {server.http: (3,)}


def test_a_server_that_refuses_keeps_what_it_served(
    root: Path, put: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1.0)
    put(2.0, replace(SERVING, queue_delay_us=100))
    put(3.0, candidate=True)
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        before = _snapshot(root)
        model = root / "scaled.candidate/3/model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:60])
        with monkeypatch.context() as patch:
            patch.setattr(version_folder, "check", lambda config, path: None)  # the validator would have found it
            with pytest.raises(PromotionError, match="was not promoted, what was live"):
                promote(root, "scaled")
        model.write_bytes(whole)
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        model = root / "scaled/1/model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:60])
        with pytest.raises(PromotionError, match=f"was not rolled back, what was live still is: .*{server.http}"):
            roll_back(root, "scaled")
        model.write_bytes(whole)
        (root / "scaled/.withdrawn").rmdir()
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        [good] = running.find(root)
        with monkeypatch.context() as patch:
            patch.setattr(running, "find", lambda repository: [good, replace(good, http="127.0.0.1:9")])
            with pytest.raises(PromotionError, match="does not answer"):
                promote(root, "scaled")
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        assert roll_back(root, "scaled").now == 1
        assert ask(client) == ("1", 1.0)


def killed(root: Path, command: str, at: str) -> None:
    """Run a command in a process that ends, without a word, where it would call a function."""
    code = (
        "import os, pathlib; from optimize import promotion; "
        f"promotion.{at} = lambda *_: os._exit(9); promotion.{command}(pathlib.Path({str(root)!r}), 'scaled')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert result.returncode == 9


def test_a_server_that_was_left_behind_follows(root: Path, put: Callable[..., int]) -> None:
    """The folders were changed when the process was killed, and the server did not know of it yet."""
    put(1.0)
    put(2.0)
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        killed(root, "roll_back", at="rollout.load")
        assert standing(root, "scaled").unfinished
        assert ask(client) == ("2", 2.0)
        mended(root)
        assert (roles(root), ask(client)) == ((1, (), None, (2,)), ("1", 1.0))
        put(3.0, candidate=True)
        killed(root, "promote", at="version_folder.prune")
        assert (ask(client), ask(client, "scaled.candidate")) == (("3", 3.0), ("3", 3.0))
        mended(root)
        assert roles(root) == (3, (1,), None, (2,))
        eventually(lambda: not client.ready("scaled.candidate"))


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
    status, out, error = run("promote")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: 'scaled' has no candidate to promote, version 1 is live; publish one with")


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
