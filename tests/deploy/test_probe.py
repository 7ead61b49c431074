"""The probes as Kubernetes runs them: the files of the ConfigMap, laid out as its volume, in a process of their own."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving.launcher import Server
from tests.deploy import manifests


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the volume `probe` of the pod holds."""
    folder = tmp_path_factory.mktemp("probe")
    pod = manifests.kind("Deployment", *manifests.KUBERNETES)["spec"]["template"]["spec"]
    (mapped,) = [volume["configMap"] for volume in pod["volumes"] if volume["name"] == "probe"]
    (files,) = [
        each["data"]
        for each in manifests.objects(*manifests.KUBERNETES)
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == mapped["name"]
    ]
    for item in mapped["items"]:
        (folder / item["path"]).parent.mkdir(exist_ok=True)
        (folder / item["path"]).write_text(files[item["key"]])
    return folder


def probe(volume: Path, *arguments: str) -> int:
    # -I: nothing of this project is found but what the volume holds; -S: nor any package.
    script = f"import runpy, sys; sys.path.insert(0, {str(volume)!r}); sys.argv[1:] = {list(arguments)!r}; " + (
        f"runpy.run_path({str(volume / 'probe.py')!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-I", "-S", "-c", script], timeout=30, check=False).returncode


def test_it_runs_on_the_python_of_the_image(volume: Path) -> None:
    for path in volume.rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))


def test_ready_asks_every_model(volume: Path, server: Server) -> None:
    assert probe(volume, "ready", server.http, "listen", "double_cached") == 0
    assert probe(volume, "ready", server.http, "listen", "no_such_model") == 1


def test_nobody_there(volume: Path, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{unused.getsockname()[1]}"
        assert probe(volume, "ready", nowhere, "listen") == 1
        assert probe(volume, "live", nowhere) == 1
    assert probe(volume, "live", server.http) == 0


def test_drained_waits_for_the_door_and_for_connections(volume: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_server(("127.0.0.1", 0)) as triton:
        ports = str(door.getsockname()[1]), str(triton.getsockname()[1])
        assert probe(volume, "drained", *ports, "0.5") == 1, "the door is open"
        door.close()
        assert probe(volume, "drained", *ports, "0.5") == 0
        with socket.create_connection(triton.getsockname()), triton.accept()[0]:
            assert probe(volume, "drained", *ports, "0.5") == 1, "somebody is connected"
