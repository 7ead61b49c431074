"""The capacity command with real processes against a real Triton: what is counted, never how fast it was."""

from __future__ import annotations

import json
import math
import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clients
from loadtest import audio, capacity
from loadtest.capacity import Capacity, to_json
from loadtest.chunks import ChunkShape
from loadtest.fleet import Fleet
from loadtest.prober import Prober
from loadtest.search import Bound, Finding
from loadtest.stream_load import StreamLoad
from loadtest.trial import Goal, Trial
from optimize.errors import UserError
from serving.launcher import Server

ROOT = Path(__file__).parents[2]
GOAL = Goal(p99_limit_ms=100, period_s=0.1)  # whether it is met depends on the machine, and is not asked


def load(server: Server, model: str = "speech", utterance_s: float = 0.3) -> StreamLoad:
    with clients.connect(server.grpc) as client:
        shape = ChunkShape.of(client.signature(model))
    return StreamLoad(model, shape, audio.bursts(), utterance_s, deadline_s=20.0)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.capacity", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_streams_of_two_processes_are_all_counted_on_both_sides(streaming: Server) -> None:
    with Prober(streaming.grpc, "speech", load(streaming), GOAL, processes=2) as prober:
        trials = [prober.run(streams, seconds=1.0) for streams in (1, 6)]
    for trial in trials:
        # 1 s of the measured part, and what was warm-up by the generator's clock and later by the server's
        assert trial.requests == pytest.approx(trial.level * 10, abs=trial.level)
        assert (trial.failed, trial.dropped) == (0, 0), trial.first_failure
        assert sum(size * runs for size, runs in trial.batch_sizes.items()) > 0
        assert trial.real_time_factor is not None
        assert trial.real_time_factor > 0
        assert trial.server_cores is not None
        assert trial.server_cores > 0
        assert trial.generator_cores > 0
        assert 0 < trial.p50_ms <= trial.p95_ms <= trial.p99_ms <= trial.max_ms
    assert prober.trials == trials


def test_after_a_trial_no_stream_is_left_and_no_process(streaming: Server) -> None:
    """40 streams on 64 slots, three times over, none run through: without END the second START would have to wait."""
    with Fleet(streaming.grpc, load(streaming, utterance_s=0), processes=1) as fleet:
        for _ in range(3):
            with fleet.opened(40):
                fleet.start(0.5)
                (part,) = fleet.collect()
            assert {str(o.error) for o in part.outcomes if isinstance(o.error, clients.ClientError)} == set()
            assert fleet.left_open == 0
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("loadtest-")]


def test_a_generator_process_that_dies_is_told(streaming: Server) -> None:
    with Fleet(streaming.grpc, load(streaming), processes=2) as fleet:
        (second,) = [child for child in multiprocessing.active_children() if child.name == "loadtest-1"]
        second.kill()
        second.join()
        with pytest.raises(UserError, match="process 2 of 2 of the load generator ended by itself, with status -9"), \
             fleet.opened(2):  # fmt: skip
            pass


def test_what_a_process_cannot_open_is_raised_here(streaming: Server) -> None:
    with Fleet(streaming.grpc, load(streaming), processes=1) as fleet:
        broken = StreamLoad("gone", load(streaming).shape, audio.bursts(), 0, 5.0)
    with (
        Fleet(streaming.grpc, broken, processes=1) as fleet,
        pytest.raises(clients.ModelNotFound, match="'gone'"),
        fleet.opened(1),
    ):
        pass


def test_the_command_for_streams(streaming: Server, tmp_path: Path) -> None:
    path = tmp_path / "capacity.json"
    run = command(
        "--address", streaming.grpc, "--seconds", "1", "--trial-seconds", "0.5", "--max-streams", "2",
        "--utterance-s", "0.5", "--processes", "1", "--json", str(path),
    )  # fmt: skip
    found = json.loads(path.read_text())
    assert run.returncode == (0 if found["level"] else 1), run.stdout + run.stderr
    assert run.stdout.rstrip().endswith(found["claim"])
    assert (found["unit"], found["chunk_ms"], found["p99_limit_ms"]) == ("real-time streams", 100, 100)
    assert found["trials"][0]["level"] == 1
    assert [trial["confirms"] for trial in found["trials"]] == sorted(trial["confirms"] for trial in found["trials"])
    if found["level"]:
        last = found["trials"][-1]
        assert (last["confirms"], last["level"], last["finding"]) == (True, found["level"], "sustained")


def test_the_command_for_requests(streaming: Server, tmp_path: Path) -> None:
    path, rows = tmp_path / "capacity.json", tmp_path / "rows.npz"
    np.savez(rows, index=np.array([[0], [1], [2]]))
    run = command(
        "--address", streaming.grpc, "--model", "lookup", "--inputs", str(rows), "--p99-ms", "60000", "--seconds", "1",
        "--trial-seconds", "1", "--max-rate", "20", "--json", str(path),
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(path.read_text())
    assert (found["unit"], found["level"], found["bound"]) == ("requests per second", 20, "ceiling")
    assert found["claim"] == "model 'lookup' sustains at least 20 requests per second, the most that was tried"
    assert all(trial["failed"] == trial["dropped"] == trial["missed"] == 0 for trial in found["trials"])
    assert all(trial["real_time_factor"] is None for trial in found["trials"])


def test_a_limit_that_no_server_meets(streaming: Server) -> None:
    run = command(
        "--address", streaming.grpc, "--model", "double", "--p99-ms", "0.0001", "--trial-seconds", "0.3"
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "model 'double' sustains no requests per second" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing"], "unknown model: 'nothing'"),
        (["--model", "double"], "give --p99-ms"),
        (["--audio", "/no/such.wav"], "'/no/such.wav' cannot be read"),
        (["--address", "somewhere"], "expected HOST:PORT"),
    ],
)
def test_mistakes_are_one_line(streaming: Server, arguments: list[str], words: str) -> None:
    run = command("--address", streaming.grpc, *arguments)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert words in run.stderr


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    run = command("--address", address)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert f"no Triton server answers at {address}" in run.stderr


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--max-streams", "0"], ["--precision", "-1"]])
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        capacity.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_no_torch_is_imported() -> None:
    code = "import sys, loadtest.capacity, loadtest.streams; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


TRIAL = Trial(4, True, 30.0, Finding.SUSTAINED, 100, 0, 0, 0, "", 1.0, 2.0, 3.0, 4.0, 0.5, 10.0, 0.1, 0.01, 0.2, 1.5,
              {1: 10, 2: 5}, None)  # fmt: skip
FOUND = Capacity("speech", "3", "host:1", "real-time streams", 4, Bound.SERVER, 100.0, 100.0, 1, 2, (TRIAL,))


@pytest.mark.parametrize(
    ("level", "bound", "words"),
    [
        (4, Bound.SERVER, "sustains 4 real-time streams, and not many more"),
        (4, Bound.GENERATOR, "at least 4 real-time streams; beyond, the generator is the limit, not the server"),
        (4, Bound.CEILING, "at least 4 real-time streams, the most that was tried"),
        (0, Bound.SERVER, "sustains no real-time streams: not even the least load"),
        (0, Bound.GENERATOR, "sustains no real-time streams: and the generator was the limit"),
    ],
)
def test_what_is_claimed(level: int, bound: Bound, words: str) -> None:
    found = Capacity("speech", "3", "host:1", "real-time streams", level, bound, 100.0, 100.0, 1, 2, (TRIAL,))
    assert words in found.claim
    assert json.loads(to_json(found))["claim"] == found.claim


def test_json_has_no_nan() -> None:
    silent = Trial(**{**vars(TRIAL), "p50_ms": math.nan})
    content = json.loads(to_json(Capacity(**{**vars(FOUND), "trials": (silent,)})))
    assert content["trials"][0]["p50_ms"] is None
    assert content["trials"][0]["batch_sizes"] == {"1": 10, "2": 5}
