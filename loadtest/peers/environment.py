"""The environment in which the peers run: their packages clash with the project's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimize.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(".venv-peers")
PACKAGES = ("torch", "onnxruntime", "optimum-onnx", "fastapi", "uvicorn", "bentoml")
_LIMIT_S = 600.0
_VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


@dataclass(frozen=True)
class PeerEnvironment:
    """A virtual environment with ``requirements.txt`` installed. Raises UserError if it is not there."""

    folder: Path = ROOT / FOLDER

    def __post_init__(self) -> None:
        if not (self.folder / "bin" / "python").exists():
            raise UserError(f"'{self.folder}' is no Python environment; make it with: make {self.folder.name}/.ready")

    def command(self, module: str, *arguments: str) -> list[str]:
        return [str(self.folder / "bin" / "python"), "-m", module, *arguments]

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """The processes' environment: one thread each, the project's sources in sight, nothing reported to anyone."""
        calm = {"BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **calm, "PYTHONPATH": str(ROOT), **more}

    def quantised(self, graph: Path, folder: Path) -> dict[str, str]:
        """Have every tool quantise ``graph`` into ``folder``/<name>.onnx; why those failed that did."""
        command = self.command("loadtest.peers.quantise", str(graph), str(folder))
        failures: dict[str, str] = json.loads(self._run(command))
        return failures

    def versions(self) -> dict[str, str]:
        command = [self.command("")[0], "-c", _VERSIONS, *PACKAGES]
        found: dict[str, str] = json.loads(self._run(command))
        return found

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self.variables({}), capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"{' '.join(command[1:3])} failed in '{self.folder}': {words[-1]}; make it anew")
        return done.stdout.strip().splitlines()[-1]
