"""The claims against known figures, and the peers if installed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from loadtest.closed_loop import Load, Target, Turn, ask_all
from loadtest.peers import in_process, servers
from loadtest.peers.__main__ import read, write
from loadtest.peers.environment import PACKAGES, PeerEnvironment
from loadtest.peers.in_process import InProcess
from loadtest.peers.quantise import TOOLS
from loadtest.peers.results import Results, claims, markdown, where_peers_win
from loadtest.peers.served import CALLERS, Served
from loadtest.peers.servers import BENTO, ORT, OURS, TORCH, PeerServer
from loadtest.peers.wire import Settings
from optimize.benchmark import Latency
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from tests import tiny_models

X: Arrays = {"x": np.arange(4, dtype=np.float32)[None]}
TWICE = np.array([[0, 2, 4, 6]], np.float32)
SPEC = tiny_models.double().spec


def test_tensors_of_several_items_from_bytes() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((3, 2, 2)).astype(np.float32), random.integers(0, 9, (3, 5))
    settings = Settings("torch", "", [("a", "float32", [2, 2]), ("b", "int64", [5])], [])
    found = settings.arrays(first.tobytes() + second.tobytes())
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_array_equal(found[1], second)


def _inside(name: str, ours: bool, precision: str, p50: float, drift: float) -> InProcess:
    return InProcess(name, ours, precision, 10**6, Latency(p50, p50, p50, 9), 2 * p50, 140.0, drift)


def _served(name: str, family: str, rate: float) -> Served:
    load = Load.of([Turn([0.001] * int(rate), 1.0)])
    return Served(name, family, dict.fromkeys(CALLERS, load), 140.0, 0.5)


RESULTS = Results(
    "m", "v", "data", "MAE", "int8", {"cpu": "c", "cores": 2, "isa": ["avx2"], "versions": {}, "peers": {"torch": "2"}},
    [
        _inside("int8", True, "int8", 0.6, 0.0), _inside("int8_throughput", True, "int8", 0.5, 0.1),
        _inside("torch", False, "fp32", 2.0, 1e-5), _inside("optimum", False, "int8", 0.55, 0.2),
    ],
    [_served("gRPC", OURS, 900), _served("HTTP", OURS, 1200), _served("t", TORCH, 300), _served("o", ORT, 1500)],
    {"BentoML": "not there"},
)  # fmt: skip


def test_claims_of_known_figures() -> None:
    held = [(round(claim.value, 3), claim.limit, claim.holds) for claim in claims(RESULTS)]
    assert held == [(4.0, 3.0, True), (0.8, 1.0, False), (1.1, 1.0, True), (0.917, 1.0, False)]
    assert claims(replace(RESULTS, served=[], in_process=[])) == []


def test_peers_that_win_are_told() -> None:
    words = where_peers_win(RESULTS)
    assert words[0].startswith("In process optimum is 1.09 times as fast as int8; drift in company 0.200 against 0")
    assert words[1:] == [
        f"With {callers} caller{'s' * (callers > 1)} o answers 1.25 times as many requests per second as our best."
        for callers in CALLERS
    ]
    assert "Nowhere." in markdown([replace(RESULTS, in_process=[], served=[])])


def test_figures_of_several_models_share_a_file(tmp_path: Path) -> None:
    write(RESULTS, tmp_path)
    page = write(replace(RESULTS, model="other", served=[]), tmp_path)
    kept = json.loads((tmp_path / "peers.json").read_text())
    assert read(kept["m"]) == RESULTS
    assert list(kept) == ["m", "other"]
    assert "| o | 1,500 | 1,500 | 1,500 |" in page
    assert "- BentoML: not there" in page
    assert (tmp_path / "peers.md").read_text() == page


def test_rounds_count_together() -> None:
    """100 answers of 1 ms in one second and 50 of 3 ms in another."""
    load = Load.of([Turn([0.001] * 100, 1.0), Turn([0.003] * 50, 1.0)])
    assert (load.requests_per_s, load.slowest, load.fastest) == (75, 50, 100)
    assert [load.latency_ms.p50, load.latency_ms.p95] == pytest.approx([1, 3])


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.rnn(x)[0])
        return answer


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_int8_is_smaller_and_near() -> None:
    torch.manual_seed(0)
    tagger, x = Tagger().eval(), torch.randn(2, 5, 8)
    small = Tagger().eval()
    small.load_state_dict(tagger.state_dict())
    in_process.quantised(small)
    with torch.inference_mode():
        difference = (tagger(x) - small(x)).abs().max()
    assert type(small.rnn) is not nn.GRU
    assert 0 < difference < 0.05


def test_an_environment_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make \.venv-peers/\.ready"):
        PeerEnvironment(tmp_path / ".venv-peers")


@pytest.fixture(scope="module")
def peers() -> PeerEnvironment:
    try:
        found = PeerEnvironment()
        assert set(found.versions()) == set(PACKAGES)
    except UserError as error:
        pytest.skip(str(error))
    return found


def test_the_peers_quantisers(peers: PeerEnvironment, tmp_path: Path) -> None:
    """Both turn a MatMul into an integer one; a file that is no graph makes both fail, with reasons."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x) => (float[n, 8] y) { y = MatMul(x, w) }'
    )
    weights = np.random.default_rng(0).random((64, 8)).astype(np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(graph, tmp_path / "fp32.onnx")
    assert peers.quantised(tmp_path / "fp32.onnx", tmp_path) == {}
    for name in TOOLS:
        assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node}
    (tmp_path / "broken.onnx").write_text("no graph")
    assert set(peers.quantised(tmp_path / "broken.onnx", tmp_path)) == set(TOOLS)


@pytest.mark.parametrize(("family", "workers", "threadpool"), [(ORT, 2, False), (ORT, 1, True), (BENTO, 1, False)])
def test_a_peer_serves(peers: PeerEnvironment, tmp_path: Path, family: str, workers: int, threadpool: bool) -> None:
    peer = PeerServer(family, "double", workers, threadpool)
    onnx.save(tiny_models.double().graph, tmp_path / "double.onnx")
    with servers.served_by(peer, tmp_path / "double.onnx", SPEC, peers, tmp_path, X) as contestant:
        (answer,) = asyncio.run(ask_all(contestant.target, [contestant.encode(X)]))
        np.testing.assert_array_equal(contestant.decode(answer)["y"], TWICE)
        port = contestant.target.port
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # workers end a moment after their parent
        try:
            asyncio.run(ask_all(Target("127.0.0.1", port, "/"), [b""]))
        except OSError:
            return
    pytest.fail(f"something still listens at port {port}")


def test_a_peer_that_does_not_start_says_why(peers: PeerEnvironment, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no graph")
    with (
        pytest.raises(UserError, match="did not start"),
        servers.served_by(PeerServer(ORT, "broken", 1), tmp_path / "broken.onnx", SPEC, peers, tmp_path, X),
    ):
        pass
