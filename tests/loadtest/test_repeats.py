"""What the response cache is measured with: the draw, what must hit, and the counters of a real Triton."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.signature import Signature, Tensor
from loadtest import repeats
from loadtest.cached_load import Load, counted
from loadtest.prompts import Inputs, Prompts, Sighting, Sightings, zipf
from optimize.errors import UserError
from optimize.specs import ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models

ROOT = Path(__file__).parents[2]
CACHED = ServingSpec(response_cache=True)
SPEECH = Signature(
    "speech_offline", "1", (Tensor("pcm", "INT16", (-1, -1)), Tensor("lengths", "INT32", (-1, 1))), (), 8,
    buckets={"pcm": (1000, 2000, 8000)},
)  # fmt: skip


def test_the_draw_follows_the_law_and_its_seed() -> None:
    """1 + 1/2 + ... + 1/10 = 2.929, so the first of ten gets 34.1 %, the second half as much."""
    ranks = zipf(10, 1.0, 100_000, seed=1)
    shares = np.bincount(ranks, minlength=10) / len(ranks)
    np.testing.assert_allclose(shares, [0.341417 / rank for rank in range(1, 11)], atol=0.005)
    np.testing.assert_array_equal(ranks, zipf(10, 1.0, 100_000, seed=1))
    assert (ranks != zipf(10, 1.0, 100_000, seed=2)).any()


def test_an_exponent_of_0_draws_all_alike() -> None:
    np.testing.assert_allclose(np.bincount(zipf(4, 0.0, 100_000, seed=1)) / 100_000, 0.25, atol=0.01)


@given(st.lists(st.integers(0, 8)), st.integers(1, 10))
def test_one_caller_expects_what_a_cache_hits(prompts: list[int], room: int) -> None:
    """An unbounded cache hits exactly what was sent before; one that must push entries out hits no more than that."""
    sightings, kept = Sightings(), OrderedDict[int, None]()
    expected, unbounded, bounded = 0, 0, 0
    answered: set[int] = set()
    for prompt in prompts:
        expected += sightings.send(prompt) is Sighting.SENT_BEFORE
        unbounded += prompt in answered
        bounded += prompt in kept
        sightings.answer(prompt)
        answered.add(prompt)
        kept[prompt] = None
        kept.move_to_end(prompt)
        if len(kept) > room:
            kept.popitem(last=False)
    assert expected == unbounded == len(prompts) - len(set(prompts))
    assert bounded <= expected


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 9))))
def test_many_callers_expect_no_more_than_a_cache_hits(steps: list[tuple[int, bool, int]]) -> None:
    """Any order of requests and answers, the server keeping an answer before it sends it: what was sent before hits,
    what is new misses, what is under way may do either."""
    sightings, kept, under_way, seen = Sightings(), set[int](), list[list[Any]](), Counter[tuple[Sighting, bool]]()
    asked = set()
    for prompt, sends, which in steps:
        if sends or not under_way:
            seen[sightings.send(prompt), prompt in kept] += 1
            asked.add(prompt)
            under_way.append([prompt, False])
        elif not (chosen := under_way[which % len(under_way)])[1]:
            kept.add(chosen[0])  # computed and kept; its answer is on the way
            chosen[1] = True
        else:
            sightings.answer(chosen[0])
            under_way.remove(chosen)
    assert not seen[Sighting.SENT_BEFORE, False]
    assert not seen[Sighting.NEW, True]
    assert seen[Sighting.NEW, False] == len(asked)


def load(hits: int, misses: int, before: int, under_way: int, new: int) -> Load:
    kinds = [Sighting.SENT_BEFORE] * before + [Sighting.UNDER_WAY] * under_way + [Sighting.NEW] * new
    return Load("any", [(kind, 1.0) for kind in kinds], 2.0, Counter(hits=hits, misses=misses))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (load(6, 4, 6, 0, 4), "6 hits, all that were possible"),
        (load(6, 4, 5, 2, 3), "6 hits; 1 more missed because the first of their kind was not answered yet"),
        (load(4, 6, 6, 0, 4), "4 hits, at least 2 fewer than were answered before: the cache is too small"),
        (load(7, 3, 6, 0, 4), "only 6 requests had been sent before.*another --seed"),
        (load(6, 5, 6, 0, 4), "the server counted 11 requests for 10 sent: others ask it too"),
        (load(5, 3, 5, 2, 3), "5 hits; 2 more missed"),
        (load(0, 10, 0, 0, 10), "0 hits, by construction"),
    ],
)
def test_what_is_found(seen: Load, words: str) -> None:
    assert re.search(words, seen.finding)
    assert seen.results["requests_per_s"] == 5


def test_the_counters_are_read_from_triton_s_json() -> None:
    stats = {"cache_hit": {"count": "3", "ns": "900"}, "cache_miss": {"count": "2", "ns": "50"}}
    entries = [
        {"name": "a", "inference_stats": stats},
        {"name": "b", "inference_stats": stats},
        {"name": "a", "inference_stats": {}},
    ]
    assert counted(entries, "a") == {"hits": 3, "hit_ns": 900, "misses": 2, "miss_ns": 50}


def as_bytes(request: Inputs) -> bytes:
    return b"".join(array.tobytes() for array in request.values())


def test_audio_is_padded_to_the_smallest_bucket_and_silent_after_its_length() -> None:
    prompts, widths = Prompts(SPEECH, seed=1, distinct=20), set()
    sent = [*map(prompts.repeated, range(20)), *(prompts.unique() for _ in range(20))]
    for request in sent:
        SPEECH.checked(request)
        length, width = int(request["lengths"][0, 0]), request["pcm"].shape[1]
        assert width == (1000 if length <= 1000 else 2000)
        assert request["pcm"][0, :length].any()
        assert not request["pcm"][0, length:].any()
        widths.add(width)
    assert widths == {1000, 2000}
    assert len({as_bytes(request) for request in sent}) == 40
    again = Prompts(SPEECH, seed=1, distinct=20)
    assert [as_bytes(again.repeated(rank)) for rank in range(20)] == [as_bytes(request) for request in sent[:20]]


def test_pieces_of_recordings() -> None:
    ramp = np.arange(1, 3000, dtype=np.int16)
    request = Prompts(SPEECH, seed=1, recordings=[ramp]).unique()
    length = int(request["lengths"][0, 0])
    np.testing.assert_array_equal(np.diff(request["pcm"][0, :length]), 1)


@pytest.mark.parametrize("max_batch", [0, 4])
def test_ids_floats_and_flags(max_batch: int) -> None:
    batch = (-1,) if max_batch else ()
    tensors = (
        Tensor("ids", "INT64", (*batch, -1)), Tensor("x", "FP32", (*batch, 3, 2)), Tensor("on", "BOOL", (*batch, 1)),
    )  # fmt: skip
    signature = Signature("any", "1", tensors, (), max_batch, labels={"tokens": ("a", "b", "c")})
    prompts = Prompts(signature, seed=1)
    sent = [prompts.unique() for _ in range(20)]
    for request in sent:
        signature.checked(request)
    assert {int(value) for request in sent for value in request["ids"].ravel()} == {0, 1, 2}
    assert len({request["ids"].size for request in sent}) > 5


def test_too_few_different_requests_are_told() -> None:
    prompts = Prompts(Signature("any", "1", (Tensor("index", "INT64", (-1, 1)),), (), 8), seed=1)
    for _ in range(10):
        prompts.unique()
    with pytest.raises(UserError, match="only 10 different requests were found"):
        prompts.unique()


def test_text_cannot_be_made_up() -> None:
    with pytest.raises(UserError, match="'text' is BYTES, which cannot be made up; give a file of requests"):
        Prompts(Signature("any", "1", (Tensor("text", "BYTES", (-1, 1)),), (), 8)).unique()


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    np.savez(file, index=np.array([[5], [7], [5], [9]]))  # three of them different
    signature = Signature("any", "1", (Tensor("index", "INT64", (-1, 1)),), (), 8)
    prompts = Prompts(signature, distinct=2, file=file)
    assert [prompts.repeated(rank)["index"].tolist() for rank in (0, 1, 0)] == [[[5]], [[7]], [[5]]]
    assert prompts.unique()["index"].tolist() == [[9]]
    assert prompts.made_up == 0
    assert prompts.unique()["index"].item() not in (5, 7, 9)
    assert prompts.made_up == 1
    assert Prompts(signature, file=file).distinct == 3
    with pytest.raises(UserError, match="has 3 different rows; give --distinct 3 or less"):
        Prompts(signature, distinct=4, file=file)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def measured(triton: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the shared server; what it wrote as JSON."""

    def run(*arguments: str, model: str = "double_cached", address: str = triton.grpc) -> dict[str, Any]:
        path = tmp_path / "repeats.json"
        assert repeats.main(["--model", model, "--address", address, "--json", str(path), *arguments]) == 0
        content: dict[str, Any] = json.loads(path.read_text())
        shown = capsys.readouterr().out
        assert all(load["finding"] in shown for load in content["loads"].values())
        return {**content["loads"], "all": content}

    return run


def test_one_caller_s_hits_are_those_expected(measured: Run) -> None:
    found = measured("--distinct", "30", "--requests", "120", "--concurrency", "1", "--seed", "11")
    repeated, unique = found["repeated"], found["unique"]
    different = len(set(zipf(30, 1.1, 120, 11).tolist()))
    assert repeated["different_requests"] == different
    assert repeated["server_hits"] == repeated["expected_hits"] == 120 - different
    assert repeated["server_misses"] == different
    assert repeated["hit_rate"] == repeated["best_hit_rate"] == pytest.approx(1 - different / 120)
    assert repeated["latency"]["sent_before"]["count"] == 120 - different
    assert repeated["latency"]["under_way"] == {"count": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None}
    assert (unique["server_hits"], unique["server_misses"], unique["hit_rate"]) == (0, 120, 0)
    assert "by construction" in unique["finding"]
    assert (found["all"]["model"], found["all"]["distinct_prompts"]) == ("double_cached", 30)


def test_many_callers_hits_lie_between_what_must_and_what_can_hit(measured: Run) -> None:
    repeated = measured("--distinct", "20", "--requests", "200", "--concurrency", "8", "--seed", "12")["repeated"]
    assert repeated["expected_hits"] <= repeated["server_hits"] <= 200 - repeated["different_requests"]
    assert 0 <= repeated["server_uncounted"] <= repeated["latency"]["under_way"]["count"]
    assert sum(repeated[f"server_{kind}"] for kind in ("hits", "misses", "uncounted")) == 200


def test_a_second_run_with_the_same_seed_is_noticed(measured: Run) -> None:
    arguments = ("--distinct", "5", "--requests", "20", "--seed", "13")
    assert measured(*arguments)["unique"]["server_hits"] == 0
    unique = measured(*arguments)["unique"]
    assert unique["server_hits"] == 20
    assert "the cache holds answers of an earlier run" in unique["finding"]


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose cache holds 1 MiB."""
    repository = tmp_path_factory.mktemp("cramped")
    tiny_models.sums("sums_cached", CACHED).write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, cache_mb=1)) as server:
        yield server


def test_a_cache_that_is_too_small(cramped: Server, measured: Run, tmp_path: Path) -> None:
    """Answers of 160 kB: six fit, of 20 prompts that come with equal frequency."""
    file = tmp_path / "long.npz"
    np.savez(file, x=np.random.default_rng(1).standard_normal((20, 20_000, 2)).astype(np.float32))
    repeated = measured(
        "--requests-file", str(file), "--zipf", "0", "--requests", "60", "--concurrency", "1",
        model="sums_cached", address=cramped.grpc,
    )["repeated"]  # fmt: skip
    assert repeated["server_hits"] < repeated["expected_hits"]
    assert "the cache is too small" in repeated["finding"]


def test_an_answer_that_is_larger_than_the_cache(cramped: Server, measured: Run, tmp_path: Path) -> None:
    file = tmp_path / "longer.npz"
    np.savez(file, x=np.ones((1, 200_000, 2), np.float32))
    repeated = measured(
        "--requests-file", str(file), "--requests", "5", "--concurrency", "1", "--seed", "21",
        model="sums_cached", address=cramped.grpc,
    )["repeated"]  # fmt: skip
    assert (repeated["server_hits"], repeated["server_misses"], repeated["expected_hits"]) == (0, 5, 4)
    assert "at least 4 fewer than were answered before: the cache is too small" in repeated["finding"]


def test_a_server_without_a_cache(tmp_path: Path) -> None:
    tiny_models.double(serving=CACHED).write(tmp_path)
    with (
        Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0)) as server,
        pytest.raises(UserError, match=r"started without a cache; start it with .*--cache-mb"),
    ):
        repeats.main(["--model", "double", "--address", server.grpc])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "double"], "ServingSpec(response_cache=True)"),
        (["--model", "listen"], "Triton caches no sequence model"),
        (["--model", "nothing"], "unknown model: 'nothing'"),
        (["--model", "double_cached", "--audio", "x.wav"], "'x.wav' cannot be read as a WAV file"),
        (["--model", "double_cached", "--requests-file", "x.npz"], "'x.npz' cannot be read"),
    ],
)
def test_mistakes(triton: Server, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        repeats.main(["--address", triton.grpc, *arguments])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_refusal_is_one_line_and_status_2(triton: Server) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.repeats", "--address", triton.grpc, "--model", "double"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr.count("\n"), run.stdout) == (2, 1, "")
    assert run.stderr.startswith("error: model 'double' is served without the response cache")


def test_no_torch_is_imported() -> None:
    code = "import sys, loadtest.repeats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
