"""The A/B command against a real Triton: planted candidates, an equal one, a worse one, one that goes away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clients.router import ARMS, Assignment
from loadtest import ab
from loadtest.arms import Traffic, plan, replay
from loadtest.comparison import Limits, compare
from optimize import recipes
from optimize.errors import UserError
from optimize.promotion import withdraw
from optimize.repository import publish
from optimize.specs import ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server

ROOT = Path(__file__).parents[2]
RECIPE_FILE = ROOT / "tests/recipes/sine_gru.py"
RECIPE = recipes.load(file=RECIPE_FILE)
SPEC = RECIPE.variants["gru"].spec
ITEMS = RECIPE.load(None).test


def rotation(path: Path, error: float) -> Path:
    """Continues a sine by its recurrence from the last two values, and adds an error."""
    ahead = 0.3 * np.arange(1, 5)
    last, before = np.sin(0.3 + ahead) / np.sin(0.3), -np.sin(ahead) / np.sin(0.3)
    weights = np.zeros((24, 4), np.float32)
    weights[-1], weights[-2] = last, before
    constants = {"flat": np.array([-1, 24]), "weights": weights, "error": np.float32(error)}
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["past", "flat"], ["rows"]),
            helper.make_node("MatMul", ["rows", "weights"], ["exact"]),
            helper.make_node("Add", ["exact", "error"], ["future"]),
        ],
        "rotation",
        [helper.make_tensor_value_info("past", TensorProto.FLOAT, ["batch", 24, 1])],
        [helper.make_tensor_value_info("future", TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tested")
    publish(folder / "r", SPEC, ServingSpec(), rotation(folder / "m.onnx", 0.0))
    with Server(ServerConfig(folder / "r", http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def candidate(server: Server, tmp_path: Path, error: float) -> str:
    """Publish one beside; returns its version."""
    model = rotation(tmp_path / "m.onnx", error)
    return str(publish(server.config.model_repository, SPEC, ServingSpec(), model, candidate=True).version)


def traffic(**changes: object) -> Traffic:
    settings = {"users": 1000, "rate": 100.0, "duration_s": 2.0, "split": 0.3, "salt": "test", **changes}
    return Traffic(SPEC, ITEMS, **settings)  # type: ignore[arg-type]


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ("--recipe", str(RECIPE_FILE), "--address", server.grpc, *arguments)
    return subprocess.run([sys.executable, "-m", "loadtest.ab", *options], cwd=ROOT, capture_output=True, text=True)


def test_who_asks_when_is_settled_before() -> None:
    arms, again = plan(traffic(users=50)), plan(traffic(users=50))
    assert arms == again
    visits = sorted(visit for arm in arms.values() for visit in arm.visits)
    assert {user for _, user in visits[:50]} == set(range(50)), "all users before any comes again"
    assert 150 < len(visits) < 250
    for name in ARMS:
        assert {Assignment(0.3, "test").arm(f"user {user}") for _, user in arms[name].visits} == {name}


def test_every_request_is_accounted_for(server: Server, tmp_path: Path) -> None:
    version = candidate(server, tmp_path, error=3.0)
    arms = asyncio.run(replay(server.grpc, traffic()))
    for name, number, error in (("control", "1", 0.0), ("candidate", version, 3.0)):
        arm = arms[name]  # type: ignore[index]
        assert len(arm.outcomes) == len(arm.given) == len(arm.visits) > 20
        assert {given.version for given in arm.given} == {number}
        for given in arm.given:
            assert given.item == given.user % len(ITEMS)
            difference = given.outputs["future"][0] - ITEMS.targets["future"][given.item]
            assert np.abs(difference - error).max() < 1.5, "the item's own answer, by the arm's own model"


def test_a_planted_worse_candidate_is_kept_back(server: Server, tmp_path: Path) -> None:
    version, path = candidate(server, tmp_path, error=0.5), tmp_path / "ab.json"
    run = command(server, "--rate", "150", "--duration", "3", "--users", "1000", "--json", str(path))
    assert run.returncode == 0, run.stderr
    found = json.loads(path.read_text())
    assert (found["recommendation"], found["metric"]) == ("keep", "MSE")
    assert found["loss"]["low"] > 0.5
    assert (found["control"]["failed"], found["candidate"]["failed"]) == (0, 0)
    assert (list(found["control"]["versions"]), list(found["candidate"]["versions"])) == (["1"], [version])
    total = found["control"]["requests"] + found["candidate"]["requests"]
    assert f"sine: {total} requests, 150 a second, 50% to the candidate" in run.stdout
    assert "keep (python -m optimize.release withdraw)\n  the metric's loss is +" in run.stdout
    assert f"{total - 128} of {total} requests repeat another's item (128 are different)" in run.stdout


def test_an_equal_candidate_is_promoted_or_tested_further(server: Server, tmp_path: Path) -> None:
    """Promoted unless the machine was too busy to say anything about latency: kept back never by the metric."""
    candidate(server, tmp_path, error=0.0001)
    wanted = traffic(rate=300.0, duration_s=4.0, split=0.5)
    arms = asyncio.run(replay(server.grpc, wanted))
    found = compare(arms, ITEMS, RECIPE.metric, Limits(0.5, slowdown=1e6), wanted.duration_s)
    assert found.loss.high < 0.5
    assert found.recommendation == "promote" or found.reasons[0].startswith("the load generator was")


def test_a_candidate_that_goes_in_the_middle(server: Server, tmp_path: Path) -> None:
    """Its users get answers of the control, which count for neither arm."""
    candidate(server, tmp_path, error=0.1)

    async def run() -> None:
        wanted = traffic(duration_s=3.0, split=0.5)
        test = asyncio.create_task(replay(server.grpc, wanted))
        await asyncio.sleep(1.5)
        await asyncio.to_thread(withdraw, server.config.model_repository, "sine")
        arms = await test
        found = compare(arms, ITEMS, RECIPE.metric, Limits(10, 1e6), wanted.duration_s)
        assert found.control.failed == 0
        assert 0 < found.candidate.failed < found.candidate.requests
        assert found.recommendation == "keep"
        assert "the control answered in its place" in found.reasons[0]

    asyncio.run(run())
    failed = command(server)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "'sine.candidate'" in failed.stderr


def test_requests_of_a_file(server: Server, tmp_path: Path) -> None:
    version = candidate(server, tmp_path, error=0.2)
    file, path = tmp_path / "items.npz", tmp_path / "ab.json"
    np.savez(file, past=ITEMS.inputs["past"][:40], target_future=ITEMS.targets["future"][:40])
    options = ("--requests-file", str(file), "--rate", "50", "--duration", "1", "--json", str(path))
    assert command(server, *options).returncode == 0
    found = json.loads(path.read_text())
    assert (found["items"], found["users"]) == (40, 40)
    failed = command(server, *options, "--versions", "1", version)
    assert failed.returncode == 2, "the candidate is a model of its own, and no version of the live one"
    assert command(server, *options, "--versions", "1", "1").returncode == 0
    found = json.loads(path.read_text())
    assert list(found["control"]["versions"]) == list(found["candidate"]["versions"]) == ["1"]
    np.savez(file, past=ITEMS.inputs["past"])
    failed = command(server, *options)
    assert failed.returncode == 2
    assert "MSE needs the true answers too; give an array for each input, and one for each target as target_NAME" in (
        failed.stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", str(ROOT / "tests/recipes/smooth_gru.py")], "keeps the state of streams"),
        (["--recipe", str(RECIPE_FILE), "--address", "127.0.0.1:9"], "no Triton server answers at 127.0.0.1:9"),
    ],
)
def test_mistakes(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ab.main(options)


@pytest.mark.parametrize("split", ["0", "1", "nan"])
def test_a_split_that_leaves_an_arm_empty(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ab.main(["--recipe", str(RECIPE_FILE), "--split", split])
    assert "expected a share between 0 and 1" in capsys.readouterr().err
