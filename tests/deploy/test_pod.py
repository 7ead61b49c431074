"""What is generated is current, and nginx, with it, counts and drains streams as the manifests count on."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml

import clients
from optimize.errors import UserError
from serving import health, pod, ports
from serving.config import ServerConfig
from serving.front_door import credentials, nginx, nginx_config
from serving.launcher import Server
from tests.deploy import manifests

CHUNK = np.ones(16, np.int16)


def test_the_generated_files_are_current() -> None:
    repository = manifests.DEPLOY.parent / "model_repository"
    for path, text in pod.generated(manifests.DEPLOY, repository).items():
        assert path.read_text() == text, f"{path} is stale: run `python -m serving.pod deploy`"


def test_a_config_map_holds_its_files_word_for_word() -> None:
    text = "one: 1\n\n  two\n\ttab 'and' \"quotes\"\n"
    (read,) = yaml.safe_load_all(pod.config_map("files", {"a.txt": text, "b.py": "x\n"}))
    assert read["data"] == {"a.txt": text, "b.py": "x\n"}


@dataclass(frozen=True)
class RunningDoor:
    process: subprocess.Popen[bytes]
    grpc: str
    status: str
    secrets: credentials.Credentials

    def connect(self) -> clients.Client:
        token = self.secrets.token.read_text().strip()
        return clients.connect(self.grpc, protocol="grpc", tls=self.secrets.certificate, token=token)

    def writing(self) -> int:
        with urlopen(f"http://{self.status}/status", timeout=10) as answer:
            return int(re.search(r"Writing: (\d+)", answer.read().decode())[1])  # type: ignore[index]


@pytest.fixture
def door(server: Server, tmp_path: Path) -> Iterator[RunningDoor]:
    """nginx with the pod's configuration, but for the ports and the folder of its modules."""
    try:
        program, modules = nginx.find()
    except UserError as error:
        pytest.skip(str(error))
    http, grpc, status = vars(ports.choose(ServerConfig(http_port=0, grpc_port=0, metrics_port=0))).values()
    config = (manifests.DEPLOY / "pod" / "nginx.conf").read_text()
    for old, new in (
        (f"127.0.0.1:{pod.TRITON_HTTP_PORT}", server.http),
        (f"127.0.0.1:{pod.TRITON_GRPC_PORT}", server.grpc),
        ("0.0.0.0:8000", f"127.0.0.1:{http}"),
        ("0.0.0.0:8001", f"127.0.0.1:{grpc}"),
        (f":{pod.STATUS_PORT}", f":{status}"),
        (str(nginx_config.MODULES), str(modules)),
    ):
        assert old in config
        config = config.replace(old, new)
    (tmp_path / "nginx.conf").write_text(config)
    shutil.copy(Path(nginx.__file__).with_name("door.js"), tmp_path)
    secrets = credentials.prepare(tmp_path, "127.0.0.1")
    process = subprocess.Popen([program, "-p", f"{tmp_path}/", "-c", tmp_path / "nginx.conf", "-e", "stderr"])
    try:
        deadline = time.monotonic() + 20
        while not health.accepts(f"127.0.0.1:{status}"):
            assert process.poll() is None, "nginx did not take the configuration"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield RunningDoor(process, f"127.0.0.1:{grpc}", f"127.0.0.1:{status}", secrets)
    finally:
        process.terminate()
        process.wait(20)


def test_an_open_stream_counts_as_writing(door: RunningDoor) -> None:
    """What the autoscaler takes for the number of streams; one is the request for the counts itself."""
    assert door.writing() == 1
    with door.connect() as client, client.stream("listen") as one:
        one.send(CHUNK)
        assert door.writing() == 2
        with client.stream("listen") as two:
            two.send(CHUNK)
            assert door.writing() == 3
    deadline = time.monotonic() + 10
    while door.writing() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stream_ends_before_triton_is_told_to(door: RunningDoor, server: Server) -> None:
    triton = ",".join(address.rpartition(":")[2] for address in (server.http, server.grpc))
    command = [str(manifests.DEPLOY / "kubernetes" / "probe.py"), "drained", door.grpc.rpartition(":")[2], triton, "30"]
    with door.connect() as client, client.stream("listen") as session:
        session.send(CHUNK)
        waiting = subprocess.Popen([sys.executable, *command], env={"PYTHONPATH": str(manifests.DEPLOY.parent)})
        door.process.send_signal(signal.SIGQUIT)  # as Kubernetes does, since the image says so
        time.sleep(1.5)
        assert not health.accepts(door.grpc)
        assert waiting.poll() is None
        assert session.send(CHUNK).outputs["level"].shape == (1, 16)
    assert waiting.wait(20) == 0
    assert door.process.wait(20) == 0
