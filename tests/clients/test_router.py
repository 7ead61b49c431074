"""Who belongs to the candidate, for ever and everywhere; and who answered, against a real Triton."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clients
from clients.router import Assignment, AsyncRouter, Router, Target
from optimize.triton_config import to_text
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models

X = {"x": np.ones((1, 4), np.float32)}
salts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
users = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
splits = st.floats(0, 1)


def test_the_hash_is_the_documented_one() -> None:
    """Known answers, worked out with sha256sum: the first 64 bits as a share of 2**64."""
    shares = {("", ""): 0x6E340B9CFFB37A98, ("a", "b"): 0x59B271AE1BBCB1D3}
    for (salt, user), bits in shares.items():
        share = bits / 2**64
        assert Assignment(share * (1 + 1e-9), salt).arm(user) == "candidate"
        assert Assignment(share * (1 - 1e-9), salt).arm(user) == "control"


@given(users, salts, splits)
def test_a_user_stays_where_it_is(user: str, salt: str, split: float) -> None:
    assert Assignment(split, salt).arm(user) == Assignment(split, salt).arm(user)
    assert Assignment(0, salt).arm(user) == "control"
    assert Assignment(1, salt).arm(user) == "candidate"


@given(users, salts, splits, splits)
def test_a_larger_split_moves_nobody_out(user: str, salt: str, one: float, other: float) -> None:
    if Assignment(min(one, other), salt).arm(user) == "candidate":
        assert Assignment(max(one, other), salt).arm(user) == "candidate"


@settings(max_examples=30, deadline=None)
@given(salts, st.floats(0.01, 0.99))
def test_the_share_is_the_split(salt: str, split: float) -> None:
    """Within 6 standard deviations of the binomial: a good hash fails once in a thousand million."""
    count, chosen = 2000, Assignment(split, salt)
    found = sum(chosen.arm(f"user {number}") == "candidate" for number in range(count))
    assert abs(found - count * split) < 6 * math.sqrt(count * split * (1 - split)) + 1


@settings(max_examples=30, deadline=None)
@given(salts, salts)
def test_salts_choose_independently(one: str, other: str) -> None:
    """Of the candidate's users in one test, half are the candidate's in another."""
    if one == other:
        return
    mine = [number for number in range(2000) if Assignment(0.5, one).arm(str(number)) == "candidate"]
    both = sum(Assignment(0.5, other).arm(str(number)) == "candidate" for number in mine)
    assert abs(both - len(mine) / 2) < 6 * math.sqrt(len(mine) / 4)


def test_another_process_agrees() -> None:
    code = "from clients.router import Assignment as A; print(''.join(A(.3, 'é').arm(f'ü{n}')[1] for n in range(200)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "".join(Assignment(0.3, "é").arm(f"ü{number}")[1] for number in range(200))


@pytest.mark.parametrize("split", [-0.1, 1.1, math.nan])
def test_a_split_is_a_share(split: float) -> None:
    with pytest.raises(clients.InvalidRequest, match="expected a share from 0 to 1"):
        Assignment(split, "")


def test_a_salt_has_no_zero_byte() -> None:
    with pytest.raises(clients.InvalidRequest, match="the salt contains a zero byte"):
        Assignment(0.5, "a\0")


# With a real Triton.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`double`, version 1, with a candidate, version 2, that triples; `both` has two versions loaded; `alone` one."""
    repository = tmp_path_factory.mktemp("routed")
    tiny_models.double("alone").write(repository)
    tiny_models.double().write(repository)
    tripling(repository / "double.candidate", repository / "double")
    folder = tiny_models.double("both").write(repository)
    tripling(folder, folder)
    config = tiny_models.double("both").config
    config.version_policy.latest.num_versions = 2
    (folder / "config.pbtxt").write_text(to_text(config))
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def tripling(folder: Path, like: Path) -> None:
    """Version 2 in that folder: a model as the other, but y = 3 x."""
    (folder / "2").mkdir(parents=True)
    config = (like / "config.pbtxt").read_text().replace(f'name: "{like.name}"', f'name: "{folder.name}"', 1)
    (folder / "config.pbtxt").write_text(config)
    model = onnx.load(like / "1/model.onnx")
    two = next(tensor for tensor in model.graph.initializer if tensor.name == "two")
    two.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.float32), "two"))
    onnx.save(model, folder / "2/model.onnx")


def test_who_answered_is_recorded(server: Server) -> None:
    with clients.connect(server.grpc) as client:
        router = Router(client, "double", split=0.5, salt="test")
        routed = [router.infer(f"user {number}", X) for number in range(40)]
    seen = {(each.arm, each.answer.model, each.answer.version, float(each.answer["y"][0, 0])) for each in routed}
    assert seen == {("control", "double", "1", 2.0), ("candidate", "double.candidate", "2", 3.0)}
    assert [each.arm for each in routed] == [Assignment(0.5, "test").arm(each.user) for each in routed]
    assert not any(each.fell_back for each in routed)


def test_asyncio_and_two_versions_of_one_model(server: Server) -> None:
    async def ask() -> set[tuple[str, str]]:
        async with await clients.aio.connect(server.grpc) as client:
            router = AsyncRouter(
                client, "both", split=0.5, salt="test", control=Target("both", "1"), candidate=Target("both", "2")
            )
            routed = await asyncio.gather(*(router.infer(str(number), X) for number in range(20)))
        return {(each.arm, each.answer.version) for each in routed}

    assert asyncio.run(ask()) == {("control", "1"), ("candidate", "2")}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_candidate_that_is_not_served(
    server: Server, protocol: clients.ProtocolName, caplog: pytest.LogCaptureFixture
) -> None:
    """Its users get the control, and the answer says so; the log says it once."""
    with clients.connect(getattr(server, protocol), protocol=protocol) as client:
        router = Router(client, "alone", split=1, salt="test")
        routed = [router.infer(str(number), X) for number in range(3)]
        assert {(each.arm, each.answer.model, each.fell_back) for each in routed} == {("candidate", "alone", True)}
        assert len(caplog.records) == 1
        assert "the candidate is not served, its users get the control" in caplog.text
        with pytest.raises(clients.ModelNotFound, match="missing"):
            Router(client, "missing", split=1, salt="test").infer("user", X)


@pytest.mark.parametrize("deadline_s", [None, 0.5])
def test_both_arms_share_the_deadline(deadline_s: float | None) -> None:
    given: list[float] = []

    class Slow:
        request_deadline_s = 0.5

        def infer(self, model: str, inputs: Any, *, version: str, deadline_s: float) -> clients.Answer:
            given.append(deadline_s)
            if model.endswith(".candidate"):
                time.sleep(0.1)
                raise clients.ModelNotFound("not served")
            return clients.Answer({}, model, "1")

    router = Router(cast(clients.Client, Slow()), "any", split=1, salt="test")
    assert router.infer("user", X, deadline_s=deadline_s).fell_back
    assert given[1] <= 0.4 < given[0] <= 0.5


def test_other_failures_are_the_arms_own(server: Server) -> None:
    with clients.connect(server.grpc) as client, pytest.raises(clients.InvalidRequest, match="'x'"):
        Router(client, "double", split=1, salt="test").infer("user", {"x": np.ones((1, 3), np.float32)})
