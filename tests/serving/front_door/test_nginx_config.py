"""nginx.conf: what is committed is current and accepted, and what the limits say is in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from optimize.errors import UserError
from serving.front_door import __main__ as command
from serving.front_door import credentials, nginx
from serving.front_door.limits import Limits
from serving.front_door.nginx_config import MODULES, Door, Replica, text

DEPLOYED = Path(__file__).parents[3] / "deploy" / "nginx"
REPLICAS = [Replica("127.0.0.1:8100", "127.0.0.1:8101"), Replica("127.0.0.1:8110", "127.0.0.1:8111")]
ARGUMENTS = [f"--replica={replica.http},{replica.grpc}" for replica in REPLICAS]


def test_what_is_committed_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If not: python -m serving.front_door deploy/nginx, with these arguments."""
    assert command.main([str(tmp_path), *ARGUMENTS, f"--limits={DEPLOYED / 'limits.json'}"]) == 0
    for file in tmp_path.iterdir():
        assert file.read_text() == (DEPLOYED / file.name).read_text(), file.name
    assert "nginx -t -p" in capsys.readouterr().out
    assert json.loads((DEPLOYED / "limits.json").read_text()) == asdict(Limits())


@pytest.mark.usefixtures("nginx_is_here")
@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_nginx_accepts_it(tmp_path: Path, secure: bool, host: str) -> None:
    program, modules = nginx.find()
    credentials.prepare(tmp_path, host)
    (tmp_path / "nginx.conf").write_text(text(Door(host, 18000, 18001, secure), REPLICAS, modules))
    shutil.copy(DEPLOYED / "door.js", tmp_path)
    check(program, tmp_path)


@pytest.mark.usefixtures("nginx_is_here")
def test_nginx_accepts_what_is_committed(tmp_path: Path) -> None:
    program, modules = nginx.find()
    credentials.prepare(tmp_path, "localhost")
    config = (DEPLOYED / "nginx.conf").read_text().replace(str(MODULES), str(modules)).replace("user www-data;", "")
    (tmp_path / "nginx.conf").write_text(config)
    shutil.copy(DEPLOYED / "door.js", tmp_path)
    check(program, tmp_path)


def check(program: Path, folder: Path) -> None:
    done = subprocess.run(
        [program, "-t", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr.replace('[warn] the "user" directive', "")


def test_limits_and_time_outs() -> None:
    config = text(Door(stream_idle_s=300, limits=replace(Limits(), streams=77, client_streams=7)), REPLICAS, MODULES)
    stream = config.partition("/ModelStreamInfer {")[2].partition("grpc_pass")[0]
    assert "limit_conn client_streams 7;" in stream
    assert "limit_conn all_streams 77;" in stream
    assert "client_max_body_size 0;" in stream
    time_outs_s = dict(re.findall(r"(\w+) (\d+)s;", stream))
    assert 300 < int(time_outs_s["client_body_timeout"]) < int(time_outs_s["grpc_read_timeout"])


def test_one_without_tls_and_tokens_has_neither() -> None:
    config = text(Door(secure=False), REPLICAS, MODULES)
    assert not re.search(r"\bssl\b|\$token|401", config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"streams": 0}, "limit 'streams' is 0; expected a whole number from 1 up"),
        ({"requests": 1.5}, "limit 'requests' is 1.5"),
        ({"client_streams": 5000}, "limit 'client_streams' is 5000; expected at most 'streams', 1024"),
        ({"colour": 1}, "got colour"),
        ([1], "got no object"),
    ],
)
def test_limits_that_are_none(tmp_path: Path, given: object, message: str) -> None:
    (tmp_path / "limits.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=re.escape(message)):
        Limits.read(tmp_path / "limits.json")


def test_a_file_of_limits_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Limits.read(tmp_path / "none.json")
    assert command.main([str(tmp_path), "--replica=here"]) == 2
    assert "expected HOST:PORT,HOST:PORT" in capsys.readouterr().err
