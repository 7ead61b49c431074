"""Finding a tritonserver, and making the wheel's one able to serve ONNX models.

A real installation (the official container's) brings its own C++ onnxruntime backend and is used as it is. The
nvidia-pytriton wheel holds the same server with a Python backend only: for it a folder of backends is laid out, with
the worker program ("stub") that fits the running Python and this project's onnxruntime backend.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from optimize.errors import UserError

OUR_BACKENDS = Path(__file__).parent / "backends"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Installation:
    """A tritonserver program with what it needs around it.

    backends, caches: folders to name on its command line, None for its built-in default. environment: variables to
    add to its own. embedded: it is the wheel's.
    """

    binary: Path
    backends: Path | None = None
    caches: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    embedded: bool = False


def find(tritonserver: Path | None, workspace: Path) -> Installation:
    """The program named, else a complete installation on PATH, else the wheel's.

    workspace: a private folder in which the wheel's backends are laid out; it must outlive the server.
    """
    if tritonserver is not None:
        if not tritonserver.is_file() or not os.access(tritonserver, os.X_OK):
            raise UserError(f"--tritonserver '{tritonserver}' is not an executable file")
        root = _root(tritonserver)
        if _is_wheel(root):
            return _embedded(root, workspace)
        if not _has_onnxruntime(root):
            raise UserError(
                f"--tritonserver '{tritonserver}' has no onnxruntime backend in '{root / 'backends'}'; "
                "use an installation that has it, or leave the option out for the nvidia-pytriton wheel's"
            )
        return _official(tritonserver, root)
    on_path = shutil.which("tritonserver")
    if on_path is not None and _has_onnxruntime(_root(Path(on_path))):
        return _official(Path(on_path), _root(Path(on_path)))
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise UserError(
            "no tritonserver found: none with an onnxruntime backend on PATH, and the nvidia-pytriton wheel is not "
            "installed; run 'pip install -e .[serve]' or name a program with --tritonserver"
        )
    return _embedded(Path(wheel.origin).parent / "tritonserver", workspace)


def check_worker_environment(python: Path) -> None:
    """Refuse an environment in which models would load and then answer with nothing.

    python: the interpreter from whose environment the workers import. Under numpy 2 this Python backend returns empty
    tensors without an error.
    """
    probe = (
        "import importlib.util, json, sys, numpy\n"
        "print(json.dumps(['.'.join(map(str, sys.version_info[:2])), numpy.__version__,"
        " importlib.util.find_spec('onnxruntime') is not None]))"
    )
    # -E: the workers ignore PYTHONPATH, so the probe must too.
    result = subprocess.run([python, "-E", "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"the models' workers cannot start in the environment of '{python}': {reason}")
    version, numpy, has_onnxruntime = json.loads(result.stdout)
    if version != _PYTHON:
        raise UserError(
            f"'{python}' is Python {version}, but Python {_PYTHON} was started; use one environment for both"
        )
    if int(numpy.split(".")[0]) >= 2:
        raise UserError(
            f"numpy {numpy} in the environment of '{python}': the wheel's Triton would answer every request with an "
            "empty tensor; run 'pip install \"numpy<2\"'"
        )
    if not has_onnxruntime:
        raise UserError(f"onnxruntime is missing in the environment of '{python}'; run 'pip install -e .[serve]'")


def libpython_directory() -> Path | None:
    """Where this Python's shared library is; None when the system's loader finds it by itself."""
    name = f"libpython{_PYTHON}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if folder and Path(folder, name).exists():
            return Path(folder)
    if ctypes.util.find_library(f"python{_PYTHON}") is None:
        raise UserError(
            f"{name} not found: Triton's workers need Python's shared library; install it (Debian, Ubuntu: "
            f"'apt install libpython{_PYTHON}') or use a Python built with --enable-shared"
        )
    return None


def _root(binary: Path) -> Path:
    return binary.resolve().parent.parent


def _is_wheel(root: Path) -> bool:
    return (root / "python_backend_stubs").is_dir()


def _has_onnxruntime(root: Path) -> bool:
    return (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").is_file()


def _official(binary: Path, root: Path) -> Installation:
    caches = root / "caches"
    return Installation(binary, backends=root / "backends", caches=caches if caches.is_dir() else None)


def _embedded(root: Path, workspace: Path) -> Installation:
    stub = root / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in (root / "python_backend_stubs").glob("*")))
        raise UserError(f"the wheel's Triton has no worker for Python {_PYTHON}, only for {known}")
    environment = _environment(root)
    # The worker program embeds an interpreter that sets itself up as the 'python3' on PATH would, venv included.
    python = shutil.which("python3", path=environment["PATH"])
    if python is None:
        raise UserError(
            f"no 'python3' beside '{sys.executable}'; Triton's workers take their packages from its environment"
        )
    check_worker_environment(Path(python))

    backends = workspace / "backends"
    # Copies: Triton refuses a backend library that is a link to somewhere outside the backend's folder.
    shutil.copytree(root / "backends" / "python", backends / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, backends / "python")
    shutil.copytree(OUR_BACKENDS, backends, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return Installation(root / "bin" / "tritonserver", backends, root / "caches", environment, embedded=True)


def _environment(root: Path) -> dict[str, str]:
    libraries = [root.parent.parent / "nvidia_pytriton.libs", libpython_directory()]
    return {
        "LD_LIBRARY_PATH": _prepend(os.environ.get("LD_LIBRARY_PATH"), *(str(path) for path in libraries if path)),
        "PATH": _prepend(os.environ.get("PATH"), str(Path(sys.executable).parent)),
        # Importing numpy in a worker would otherwise start one idle BLAS thread for each core.
        "OPENBLAS_NUM_THREADS": "1",
        # The published ONNX Runtime otherwise reports models and timings to its maker over the network.
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _prepend(value: str | None, *paths: str) -> str:
    return os.pathsep.join([*paths, *([value] if value else [])])
