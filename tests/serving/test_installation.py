"""Which tritonserver is started, and what is refused before it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optimize.errors import UserError
from serving import installation


@pytest.fixture(autouse=True)
def no_installation_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def official(root: Path, with_backend: bool = True) -> Path:
    """A folder like that of the official container; returns its program."""
    (root / "backends" / "onnxruntime").mkdir(parents=True)
    (root / "caches").mkdir()
    if with_backend:
        (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    return program(root / "bin" / "tritonserver")


def probe(tmp_path: Path, answer: str) -> Path:
    """An interpreter that says ``answer`` about its environment."""
    return program(tmp_path / "python3", f"#!/bin/sh\necho '{answer}'\n")


def test_a_real_installation_is_used_as_it_is(tmp_path: Path) -> None:
    binary = official(tmp_path / "tritonserver")
    found = installation.find(binary, tmp_path / "workspace")
    assert found == installation.Installation(
        binary, backends=tmp_path / "tritonserver" / "backends", caches=tmp_path / "tritonserver" / "caches"
    )
    assert not (tmp_path / "workspace").exists()


def test_the_one_on_path_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = official(tmp_path / "tritonserver")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert installation.find(None, tmp_path).binary == binary


def test_one_on_path_without_the_backend_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = official(tmp_path / "tritonserver", with_backend=False)
    monkeypatch.setenv("PATH", str(binary.parent))
    assert installation.find(None, tmp_path / "workspace").embedded


def test_the_wheel_s_backends_are_laid_out(tmp_path: Path) -> None:
    found = installation.find(None, tmp_path)
    assert found.embedded
    assert found.backends == tmp_path / "backends"
    names = {str(path.relative_to(found.backends)) for path in found.backends.rglob("*") if path.is_file()}
    assert {
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "onnxruntime/model.py",
        "onnxruntime/onnx_contract.py",
        "onnxruntime/session_settings.py",
    } <= names
    assert not any(path.is_symlink() for path in found.backends.rglob("*"))
    assert found.environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_the_wheel_s_program_may_be_named(tmp_path: Path) -> None:
    binary = installation.find(None, tmp_path / "one").binary
    assert installation.find(binary, tmp_path / "two").embedded


@pytest.mark.parametrize("name", ["missing", "folder", "not_executable"])
def test_a_program_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "not_executable").touch(mode=0o644)
    with pytest.raises(UserError, match=f"--tritonserver '.*{name}' is not an executable file"):
        installation.find(tmp_path / name, tmp_path)


def test_an_installation_without_the_backend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no onnxruntime backend in"):
        installation.find(official(tmp_path / "tritonserver", with_backend=False), tmp_path)


def test_no_tritonserver_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no tritonserver found.*pip install -e \.\[serve\]"):
        installation.find(None, tmp_path)


def test_no_libpython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr("sys.base_prefix", "/nowhere")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(UserError, match=r"libpython3\.\d+\.so\.1\.0 not found.*apt install libpython"):
        installation.libpython_directory()


def test_this_environment_will_do() -> None:
    installation.check_worker_environment(Path(sys.executable))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('["VERSION", "2.4.6", true]', r"numpy 2\.4\.6 in the environment.*pip install \"numpy<2\""),
        ('["VERSION", "1.26.4", false]', "onnxruntime is missing in the environment"),
        ('["2.7", "1.26.4", true]', r"is Python 2\.7, but Python 3\.\d+ was started"),
    ],
)
def test_an_environment_that_will_not(tmp_path: Path, answer: str, message: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(UserError, match=message):
        installation.check_worker_environment(probe(tmp_path, answer.replace("VERSION", version)))


def test_an_environment_without_numpy(tmp_path: Path) -> None:
    python = program(tmp_path / "python3", "#!/bin/sh\necho \"No module named 'numpy'\" >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"cannot start in the environment of .*: No module named 'numpy'"):
        installation.check_worker_environment(python)
