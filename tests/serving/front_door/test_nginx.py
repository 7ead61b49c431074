"""`python -m serving --secure`, and nginx's part of it: it starts, ends with its launcher, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import clients
from optimize.errors import UserError
from serving import installation, leftovers, running
from serving.config import ServerConfig
from serving.front_door import credentials, nginx
from serving.front_door.nginx import Nginx
from serving.front_door.nginx_config import Door, Replica
from serving.ports import Ports, choose
from tests import tiny_models
from tests.serving.test_launcher import children, eventually

pytestmark = pytest.mark.usefixtures("nginx_is_here")
ROOT = Path(installation.__file__).parent.parent
FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
X = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture(autouse=True)
def _private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tests/serving/test_launcher.py; others may enter the folder, as they may /tmp."""
    for name in ("runtime", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@dataclass
class Launched:
    """A launcher that has announced its door."""

    process: subprocess.Popen[str]
    said: str
    folder: Path

    def address(self, protocol: str) -> str:
        found = re.search(rf"^  {protocol} +(?:https?://)?(\S+)", self.said, re.MULTILINE)
        assert found is not None
        return found[1]


@contextmanager
def launched(tmp_path: Path, *options: str) -> Iterator[Launched]:
    tiny_models.double().write(tmp_path / "models")
    command = [sys.executable, "-m", "serving", f"--model-repository={tmp_path / 'models'}", *FREE_PORTS, *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C stops it" not in said:
            line = process.stdout.readline()
            assert line, said + process.communicate()[1]
            said += line
        yield Launched(process, said, tmp_path / "secrets")
    finally:
        process.kill()
        process.communicate()


def started_in(folder: Path) -> list[str]:
    """Commands of the processes that run out of ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(entry / "fd" / "1")
        except OSError:
            continue
        if str(folder) in command or where.startswith(str(folder)):
            found.append(command)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_the_command_from_start_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """What it prints is enough to get in; nothing of it is left, however it ends."""
    with launched(tmp_path, "--secure", str(tmp_path / "secrets")) as door:
        authority, token = (
            tmp_path / "secrets" / "certificate.pem",
            (tmp_path / "secrets" / "token").read_text().strip(),
        )
        assert f"--tls-ca {authority} --token {tmp_path / 'secrets' / 'token'}" in door.said
        with clients.connect(door.address("grpc"), tls=authority, token=token) as client:
            assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]
        with pytest.raises(clients.ServerUnavailable):
            clients.connect(door.address("grpc"))
        (replica,) = running.find(tmp_path / "models")
        assert replica.http.startswith("127.0.0.1:")
        assert len(started_in(tmp_path / "tmp")) >= 3
        for command in started_in(tmp_path / "tmp"):
            assert token.split(".")[2] not in command
            assert (tmp_path / "secrets" / "token.key").read_text().split()[4].strip(";") not in command
        door.process.send_signal(number)
        status = door.process.wait(60)
        assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        eventually(lambda: not started_in(tmp_path / "tmp"))
        if number is signal.SIGKILL:
            leftovers.sweep()
        assert list((tmp_path / "tmp").iterdir()) == []


def test_replicas_without_tls(tmp_path: Path) -> None:
    with launched(tmp_path, "--replicas=2") as door:
        assert door.said.count("\n  replica  ") == 2
        for protocol in ("grpc", "http"):
            with clients.connect(door.address(protocol), protocol=protocol) as client:
                assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]
        with urllib.request.urlopen(f"http://{door.address('http')}/v2/health/ready") as answer:
            assert answer.status == 200


def test_the_command_renews_its_replicas_on_sigusr1(tmp_path: Path) -> None:
    with launched(tmp_path, "--replicas=2") as door, clients.connect(door.address("grpc")) as client:
        before = {server.pid for server in running.find(tmp_path / "models")}
        door.process.send_signal(signal.SIGUSR1)
        eventually(
            lambda: (
                len(after := {server.pid for server in running.find(tmp_path / "models")}) == 2 and not after & before
            )
        )
        assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]


def test_a_door_that_ends_ends_the_command_and_its_log_stays(tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text("{}")
    with launched(tmp_path, f"--limits={limits}", "--health-port=0") as door:
        assert re.search(r"^  replica  .*, health http://127\.0\.0\.1:\d+/ready, log ", door.said, re.MULTILINE)
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(door.process.pid)}
        (nginx,) = [pid for pid, name in names.items() if name == "nginx"]
        os.kill(nginx, signal.SIGKILL)
        _, errors = door.process.communicate(timeout=60)
        assert door.process.returncode == 2
        said = re.search(r"^error: nginx ended while serving: ended by SIGKILL \(log: (.*)\)$", errors, re.MULTILINE)
        assert said is not None, errors
        assert Path(said[1]).is_file()


def test_the_reason_is_the_last_grave_message(tmp_path: Path) -> None:
    door = a_door(tmp_path, free_ports())
    door.start([Replica("127.0.0.1:1", "127.0.0.1:2")])
    door.log.write_text("2026/01/01 00:00:00 [alert] 1#1: long ago\n2026/01/02 00:00:00 [emerg] 1#1: just now\n")
    os.kill(door.pid, signal.SIGTERM)
    eventually(lambda: running.start_time(door.pid) is None)
    with pytest.raises(UserError, match="nginx ended while serving: just now"):
        door.check()
    door.stop()


def a_door(tmp_path: Path, ports: Ports) -> Nginx:
    return Nginx(Door("127.0.0.1", ports.http_port, ports.grpc_port, secure=False), None)


def free_ports() -> Ports:
    return choose(ServerConfig(http_port=0, grpc_port=0, metrics_port=0))


def test_a_port_that_is_taken_in_the_meantime(tmp_path: Path) -> None:
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports.grpc_port)):
        door = a_door(tmp_path, ports)
        with pytest.raises(UserError, match=r"nginx did not start: bind\(\) to .* failed .*nginx\.log\)"):
            door.start([Replica("127.0.0.1:1", "127.0.0.1:2")])


def test_workers_of_a_killed_master_are_ended(tmp_path: Path) -> None:
    door = a_door(tmp_path, free_ports())
    door.start([Replica("127.0.0.1:1", "127.0.0.1:2")])
    os.kill(door.pid, signal.SIGKILL)
    eventually(lambda: running.start_time(door.pid) is None)
    assert started_in(tmp_path / "tmp")
    with pytest.raises(UserError, match="nginx ended while serving: ended by SIGKILL"):
        door.check()
    door.stop()
    eventually(lambda: not started_in(tmp_path / "tmp"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*arguments: object, **options: object) -> str | None:
        return fake

    monkeypatch.setattr("shutil.which", found)
    fake: str | None = None
    with pytest.raises(UserError, match="nginx is not installed; on Debian and Ubuntu: apt-get install nginx-light"):
        nginx.find()
    fake = str(tmp_path / "nginx")
    Path(fake).write_text(f"#!/bin/sh\necho 'configure arguments: --modules-path={tmp_path}' >&2\n")
    Path(fake).chmod(0o755)
    with pytest.raises(UserError, match=r"lacks its JavaScript module, '.*ngx_http_js_module\.so'; on Debian"):
        nginx.find()


def test_secrets_in_its_workspace_are_private(tmp_path: Path) -> None:
    """Workers of root's nginx are another user and may enter the folder, but not read the keys."""
    ports = free_ports()
    made = credentials.prepare(tmp_path / "secrets", "127.0.0.1")
    door = Nginx(Door("127.0.0.1", ports.http_port, ports.grpc_port), made)
    door.start([Replica("127.0.0.1:1", "127.0.0.1:2")])
    try:
        workspace = door.log.parent
        assert {(workspace / name).stat().st_mode & 0o077 for name in ("certificate.key", "token.key")} == {0}
        context = ssl.create_default_context(cafile=made.certificate)
        with (
            socket.create_connection(("127.0.0.1", ports.http_port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() == "TLSv1.3"
    finally:
        door.stop()
