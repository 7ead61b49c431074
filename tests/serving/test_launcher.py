"""`python -m serving` from start to stop, as a process of its own with a real Triton."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving import installation, leftovers, running
from serving.config import ServerConfig
from serving.launcher import Server, StartCancelled
from tests import tiny_models

FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
ROOT = Path(installation.__file__).parent.parent


@dataclass
class Launched:
    """A launcher that has announced its server."""

    process: subprocess.Popen[str]
    said: str
    server: running.RunningServer
    processes: list[int]
    """Triton and its workers."""

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, self.said + out, err


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    tiny_models.double().write(folder)
    return folder


@pytest.fixture(autouse=True)
def _private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records, logs and workspaces of these servers are where the test can count them."""
    for name in ("runtime", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def start(repository: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving", f"--model-repository={repository}", *(options or FREE_PORTS)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fail(repository: Path, *options: str) -> str:
    """The one line that a launcher prints which cannot do its work."""
    process = start(repository, *options)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@contextmanager
def launched(repository: Path) -> Iterator[Launched]:
    process = start(repository)
    try:
        assert process.stdout is not None
        said = ""
        while not said.endswith("Ctrl-C stops it.\n"):
            line = process.stdout.readline()
            assert line, f"it said only: {said}"
            said += line
        (server,) = running.find(repository)
        yield Launched(process, said, server, [server.pid, *children(server.pid)])
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon but not at once."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def nothing_left(launched: Launched, tmp_path: Path) -> bool:
    alive = [pid for pid in launched.processes if running.start_time(pid) is not None]
    workspace = re.search(r"seqserve-server-\w+", launched.said)
    assert workspace is not None
    return not alive and not list(Path("/dev/shm").glob(f"{workspace[0]}*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_asked_to_stop_it_leaves_nothing(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    with launched(repository) as server:
        assert "serving double (version 1)" in server.said
        assert f"http://{server.server.http}\n" in server.said
        assert len(server.processes) == 2
        server.process.send_signal(number)
        status, _, errors = server.wait()
        assert (status, errors) == (0, "")
        assert nothing_left(server, tmp_path)
        assert list((tmp_path / "tmp").iterdir()) == []
        assert running.find(repository) == []


@pytest.mark.parametrize("triton_too", [False, True])
def test_a_killed_launcher_takes_its_server_along(repository: Path, tmp_path: Path, triton_too: bool) -> None:
    """What workers leave that were not allowed to clean up, as on a busy machine Triton kills them, the next start
    removes."""
    with launched(repository) as server:
        if triton_too:
            os.kill(server.server.pid, signal.SIGKILL)
        server.process.kill()
        assert server.wait()[0] == -signal.SIGKILL
        eventually(lambda: not any(running.start_time(pid) for pid in server.processes))
        leftovers.sweep()
        assert nothing_left(server, tmp_path)
        assert list((tmp_path / "tmp").iterdir()) == []
        assert running.find(repository) == []


def test_a_killed_server_ends_the_launcher(repository: Path, tmp_path: Path) -> None:
    with launched(repository) as server:
        os.kill(server.server.pid, signal.SIGKILL)
        status, _, errors = server.wait()
        assert status == 2
        assert errors.startswith("error: Triton ended while serving: ended by SIGKILL")
        assert nothing_left(server, tmp_path)


def test_a_second_ctrl_c_does_not_wait(repository: Path, tmp_path: Path) -> None:
    with launched(repository) as server:
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: running.find(repository) == [])  # the first one has arrived
        server.process.send_signal(signal.SIGINT)
        assert server.wait()[0] == 128 + signal.SIGINT
        assert nothing_left(server, tmp_path)


def test_requests_in_flight_are_answered_before_it_stops(repository: Path) -> None:
    tiny_models.slow().write(repository)
    steps = triton_grpc.InferInput("steps", [1, 1], "INT64")
    steps.set_data_from_numpy(np.array([[100_000]]))
    with (
        launched(repository) as server,
        closing(triton_grpc.InferenceServerClient(server.server.grpc)) as client,
        ThreadPoolExecutor() as pool,
    ):
        answers = [pool.submit(client.infer, "slow", [steps]) for _ in range(2)]
        # The second one waits in the queue, so the first is running.
        pending = re.compile(r'nv_inference_pending_request_count\{model="slow",version="1"\} 1\b')
        metrics = f"http://{server.server.metrics}/metrics"
        eventually(lambda: pending.search(urlopen(metrics).read().decode()) is not None)
        server.process.terminate()
        assert [answer.result().as_numpy("done").item() for answer in answers] == [100_000, 100_000]
        assert server.wait()[0] == 0


def test_stopping_while_it_starts(repository: Path, tmp_path: Path) -> None:
    server = Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0))
    with pytest.raises(StartCancelled):
        server.start(cancelled=lambda: True)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_models_without_weights_are_skipped_aloud(repository: Path) -> None:
    (repository / "fresh").mkdir()
    (repository / "fresh" / "config.pbtxt").touch()
    with launched(repository) as server:
        assert "skipped fresh: no version yet; run 'python -m optimize.export --quantize'" in server.said


def test_a_new_version_is_taken_up_without_a_lost_request(repository: Path) -> None:
    """What publishing relies on: the old version answers until the new one does, and stays if that cannot load."""
    x = triton_grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones((1, 4), np.float32))
    done = threading.Event()

    def ask(client: triton_grpc.InferenceServerClient) -> list[str]:
        versions = []
        while not done.is_set():
            versions.append(client.infer("double", [x]).get_response().model_version)
        return versions

    with (
        Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server,
        closing(triton_grpc.InferenceServerClient(server.grpc)) as client,
        ThreadPoolExecutor() as pool,
    ):
        answers = pool.submit(ask, client)
        try:
            shutil.copytree(repository / "double" / "1", repository / "double" / "2")
            client.load_model("double", headers=server.record.grpc_headers)
            client.infer("double", [x], model_version="2")
            (repository / "double" / "3").mkdir()
            (repository / "double" / "3" / "model.onnx").write_bytes(b"this is no protobuf")
            with pytest.raises(InferenceServerException, match=r"version 3 is at UNAVAILABLE.*Protobuf parsing"):
                client.load_model("double", headers=server.record.grpc_headers)
            assert client.infer("double", [x]).get_response().model_version == "2"
        finally:
            done.set()
        assert set(answers.result(60)) == {"1", "2"}


def test_a_busy_port(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        message = fail(repository, "--http-port=0", f"--grpc-port={port}", "--metrics-port=0")
    assert f"port {port} (--grpc-port) is already in use on 127.0.0.1" in message
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_repository_that_is_missing_or_empty(tmp_path: Path) -> None:
    assert "does not exist; run 'python -m optimize.export --quantize'" in fail(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "is empty; run 'python -m optimize.export --quantize'" in fail(tmp_path / "empty")


def test_numpy_2_where_the_workers_would_import_it(repository: Path, tmp_path: Path) -> None:
    """The real thing: an environment of its own, in which a numpy calls itself 2.4.6."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "numpy").mkdir()
    (packages / "numpy" / "__init__.py").write_text('__version__ = "2.4.6"\n')
    result = subprocess.run(
        [
            *(tmp_path / "venv" / "bin" / "python", "-m", "serving", f"--model-repository={repository}", *FREE_PORTS),
            f"--tritonserver={installation.find(None, tmp_path / 'workspace').binary}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: numpy 2.4.6 in the environment of")
    assert result.stderr.count("\n") == 1


def test_a_corrupt_model_is_named_with_the_reason(repository: Path) -> None:
    (repository / "double" / "1" / "model.onnx").write_bytes(b"this is no protobuf")
    message = fail(repository)
    assert message.startswith("error: Triton did not start: model 'double' version 1: ")
    assert "Protobuf parsing failed" in message
    log = re.search(r"\(log: (.*)\)", message)
    assert log is not None
    assert "failed to load 'double'" in Path(log[1]).read_text()


def test_a_configuration_that_does_not_fit_the_model(repository: Path) -> None:
    config = repository / "double" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [4]", "dims: [5]"))
    assert "input 'x': the model has shape [-1, 4], the configuration specifies [-1, 5]" in fail(repository)


def test_a_configuration_that_cannot_be_read(repository: Path) -> None:
    (repository / "double" / "config.pbtxt").write_text("name: 'double' colour: 'blue'")
    message = fail(repository)
    assert "failed to read text proto" in message
    assert "colour" in message


def test_a_server_that_dies_at_once(repository: Path, tmp_path: Path) -> None:
    root = tmp_path / "tritonserver"
    (root / "backends" / "onnxruntime").mkdir(parents=True)
    (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    (root / "bin").mkdir()
    binary = root / "bin" / "tritonserver"
    binary.write_text("#!/bin/sh\necho 'tritonserver: error while loading shared libraries: libdcgm.so.3'\nexit 127\n")
    binary.chmod(0o755)
    message = fail(repository, f"--tritonserver={binary}", *FREE_PORTS)
    assert "exit status 127, last line: tritonserver: error while loading shared libraries: libdcgm.so.3" in message


def test_verbose_shows_triton_s_log(repository: Path) -> None:
    process = start(repository, "--verbose", *FREE_PORTS)
    assert process.stderr is not None
    with suppress(StopIteration):
        while "successfully loaded 'double'" not in next(process.stderr):
            pass
    process.terminate()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest


def test_serving_imports_no_torch() -> None:
    command = "import sys, serving.__main__; sys.exit(bool({'torch', 'onnx', 'tritonclient'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
