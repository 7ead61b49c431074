"""Records of running servers: private, found by repository, forgotten when the server is dead."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from optimize.errors import UserError
from serving import running
from serving.running import RunningServer


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def server(repository: Path, pid: int = 0, started: int | None = None) -> RunningServer:
    pid = pid or os.getpid()
    started = running.start_time(pid) if started is None else started
    assert started is not None
    return RunningServer(pid, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", str(repository.resolve()), "key", started)


def test_a_registered_server_is_found_by_its_repository(tmp_path: Path) -> None:
    running.register(server(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    assert running.find(tmp_path / "models") == [server(tmp_path / "models")]
    assert running.find(tmp_path / "models" / ".." / "models") == [server(tmp_path / "models")]
    assert running.find(tmp_path / "other") == []


def test_an_unregistered_one_is_not(tmp_path: Path) -> None:
    running.register(server(tmp_path))
    running.unregister(server(tmp_path))
    running.unregister(server(tmp_path))
    assert running.find(tmp_path) == []


def test_only_the_user_can_read_the_key(tmp_path: Path, runtime_folder: Path) -> None:
    record = running.register(server(tmp_path))
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    for folder in (record.parent, record.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert record.is_relative_to(runtime_folder)
    assert "key" not in repr(server(tmp_path)).replace("key_", "")


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, runtime_folder: Path) -> None:
    (runtime_folder / "seqserve").mkdir(mode=0o755)
    with pytest.raises(UserError, match=r"must be a folder of this user alone \(mode 0700\)"):
        running.register(server(tmp_path))
    with pytest.raises(UserError, match="must be a folder of this user alone"):
        running.find(tmp_path)


def test_records_of_dead_servers_are_dropped(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = running.register(server(tmp_path, child.pid))
    assert [found.pid for found in running.find(tmp_path)] == [child.pid]
    child.communicate(b"\n")
    assert running.find(tmp_path) == []
    assert not record.exists()


def test_a_new_process_with_an_old_pid_is_not_the_server(tmp_path: Path) -> None:
    running.register(server(tmp_path, started=1))
    assert running.find(tmp_path) == []


def test_a_record_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    record = running.register(server(tmp_path))
    record.write_text('{"pid": 1}')
    assert running.find(tmp_path) == []
    assert not record.exists()


def test_headers() -> None:
    known = server(Path("/models"))
    assert known.http_headers == {"seqserve-key": "key"}
    assert known.grpc_headers == {"triton-grpc-protocol-seqserve-key": "key"}
