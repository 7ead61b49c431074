"""Faults of docs/faults.md that no other test covers, each against the real processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

import clients
from clients.signature import Array
from loadtest.faults import stream_for_ever, tensors
from optimize.specs import ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models
from tests.serving.test_launcher import ROOT, eventually
from tests.tiny_models import LISTEN_CHUNK

CHUNK: dict[str, Array] = {
    "pcm": np.ones((1, LISTEN_CHUNK), np.int16),
    "lengths": np.full((1, 1), LISTEN_CHUNK, np.int32),
}
FEW_MIB = 24  # of shared memory: room for the small regions that every worker begins with


@pytest.fixture
def client(triton: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with closing(triton_grpc.InferenceServerClient(triton.grpc)) as client:
        yield client


def small(repository: Path, *models: tiny_models.TinyModel) -> ServerConfig:
    for model in models:
        model.write(repository)
    return ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=3)


def test_a_stream_has_one_row(client: triton_grpc.InferenceServerClient) -> None:
    two = {name: np.concatenate([array, array]) for name, array in CHUNK.items()}
    with pytest.raises(InferenceServerException, match="must specify batch-size 1"):
        client.infer("listen", tensors(two), sequence_id=301, sequence_start=True)


@pytest.mark.parametrize("cut", [slice(0, -1), slice(0, 0)])
def test_a_wrong_byte_size(client: triton_grpc.InferenceServerClient, cut: slice) -> None:
    (x,) = tensors({"x": np.ones((1, 4), np.float32)})
    x._raw_content = x._raw_content[cut]
    with pytest.raises(InferenceServerException):
        client.infer("double", [x])
    (x,) = tensors({"x": np.ones((1, 4), np.float32)})
    assert client.infer("double", [x]).as_numpy("y").sum() == 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_neighbours_of_a_bad_value_are_bit_identical(client: triton_grpc.InferenceServerClient, bad: float) -> None:
    """Four requests run as one batch, of which one is refused."""
    rows = np.random.default_rng(5).standard_normal((4, 1, 4)).astype(np.float32)
    rows[1, 0, 2] = bad
    answers: list[Future[Any]] = [Future() for _ in rows]
    for row, answer in zip(rows, answers, strict=True):
        client.async_infer(
            "double_of_four",
            tensors({"x": row}),
            lambda result, error, answer=answer: answer.set_result(error or result),
            client_timeout=60,
        )
    said = [answer.result(60) for answer in answers]
    assert isinstance(said.pop(1), InferenceServerException)
    for row, answer in zip(rows[[0, 2, 3]], said, strict=True):
        assert answer.as_numpy("rows").item() == 3
        assert answer.as_numpy("y").tobytes() == (2 * row).tobytes()


@pytest.mark.parametrize("name", ["..", "../double", "..%2F..%2Fetc", "%2e%2e%2fdouble", "double/../../x"])
def test_a_model_s_name_is_no_path(triton: Server, name: str) -> None:
    for path in (f"/v2/models/{name}/infer", f"/v2/repository/models/{name}/load"):
        request = Request(f"http://{triton.http}{path}", b"{}", headers=triton.record.http_headers)
        with pytest.raises(HTTPError) as caught:
            urlopen(request, timeout=30)
        with caught.value:
            assert 400 <= caught.value.code < 600
    assert triton.running


def test_a_killed_client_takes_nothing_along(triton: Server) -> None:
    """Killed in the middle of its stream, with chunks under way: its neighbour's goes on."""
    context = multiprocessing.get_context("spawn")
    with clients.connect(triton.grpc) as client, client.stream("listen") as neighbour:
        talking = []
        for _ in range(3):
            ours, theirs = context.Pipe()
            arguments = (theirs, triton.grpc, "listen", CHUNK)
            talking.append(context.Process(target=stream_for_ever, args=arguments, daemon=True))
            talking[-1].start()
            while not ours.poll(0.1):  # it has begun
                neighbour.send(CHUNK)
        for process in talking:
            process.kill()
            process.join()
        levels = [neighbour.send(CHUNK)["level"][0, 15] for _ in range(60)]
        assert len(set(levels)) < 60, "it fades towards a level, which a stream that begins again would leave"
        assert levels[-1] == max(levels)


def test_sigterm_in_the_middle_of_streams(tmp_path: Path) -> None:
    """What was answered was right; every stream is told that it is lost; the server ends and nothing of it is left."""
    config = small(tmp_path, tiny_models.listen(serving=ServingSpec(max_streams=8, idle_us=1_000_000)))
    server = Server(config)
    server.start()
    workspace, begun = server.log.parent.name, []

    def talk(_: int) -> clients.ClientError:
        with clients.connect(server.grpc) as client, client.stream("listen") as session:
            sums, deadline = 0, time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    answer = session.send(CHUNK, deadline_s=30)
                except clients.ClientError as error:
                    return error
                sums += LISTEN_CHUNK
                assert answer["log_probs"][0, -1, 0] == np.float32(sums % 1000 / 1000)
                begun.append(1)
        raise AssertionError("nobody said that the server ends")

    try:
        with ThreadPoolExecutor(4) as threads:
            told = [threads.submit(talk, place) for place in range(4)]
            eventually(lambda: len(begun) > 40)
            server.stop()  # what `python -m serving` does when it gets SIGTERM
            assert {type(each.result(60)) for each in told} <= {clients.SessionLost}
    finally:
        server.stop()
    assert not list(Path("/dev/shm").glob(f"{workspace}*"))


def test_an_error_is_no_answer_although_the_cache_knows_it(tmp_path: Path) -> None:
    """Triton 2.51 keeps errors in the response cache, as answers without outputs; the client refuses those."""
    with (
        Server(small(tmp_path, tiny_models.lookup(serving=ServingSpec(response_cache=True)))) as server,
        clients.connect(server.grpc) as client,
    ):
        for _ in range(3):
            with pytest.raises(clients.ServerError):
                client.infer("lookup", {"index": np.array([[7]])})
        assert client.infer("lookup", {"index": np.array([[2]])})["value"].item() == 30


_FULL = """
import os, sys
from pathlib import Path
import numpy as np
import clients
from serving.launcher import Server
from tests.serving.test_faults import CHUNK, small
from tests import tiny_models

repository = Path(sys.argv[1])
with Server(small(repository, tiny_models.sums(), tiny_models.listen())) as server:
    with clients.connect(server.grpc) as client, client.stream("listen") as session:
        small_one = {"x": np.ones((1, 10, 2), np.float32)}
        first = [session.send(CHUNK)["level"].tobytes()]
        assert client.infer("sums", small_one)["total"][0, 0] == 10
        with open("/dev/shm/ballast", "wb") as file:
            status = os.statvfs("/dev/shm")
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
        large = {"x": np.ones((1, 2_000_000, 2), np.float32)}
        for _ in range(3):
            try:
                answer = client.infer("sums", large, deadline_s=60)
            except clients.ClientError as error:
                print("told", type(error).__name__)
            else:
                assert answer["total"][0, 0] == 2_000_000
        first.append(session.send(CHUNK)["level"].tobytes())
        os.unlink("/dev/shm/ballast")
        assert client.infer("sums", small_one)["total"][0, 0] == 10
        first.append(session.send(CHUNK)["level"].tobytes())
    with clients.connect(server.grpc) as client, client.stream("listen") as session:
        assert [session.send(CHUNK)["level"].tobytes() for _ in range(3)] == first
print("left", [name for name in os.listdir("/dev/shm") if name.startswith("seqserve")])
"""


def test_shared_memory_that_is_full(tmp_path: Path) -> None:
    """On a /dev/shm of its own: what does not fit is refused, a stream beside it goes on, and all is well again."""
    mount = f"mount -t tmpfs -o size={FEW_MIB}m tmpfs /dev/shm"
    own = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own over /dev/shm needs unshare and its rights")
    script = tmp_path / "full.py"
    script.write_text(_FULL)
    run = subprocess.run(
        [*own, sys.executable, str(script), str(tmp_path / "models")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "left []"
    assert run.stdout.count("told") == 3, run.stdout
