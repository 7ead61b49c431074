"""What a server is started with: where the models are, where it listens, how much it may cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optimize.errors import UserError

PORT_OPTIONS = {
    "http_port": "--http-port",
    "grpc_port": "--grpc-port",
    "metrics_port": "--metrics-port",
    "health_port": "--health-port",
}


@dataclass(frozen=True)
class ServerConfig:
    """The choices of the person who starts a server.

    A port of 0 lets the operating system choose a free one. tritonserver: the program to run; by default the one on
    PATH, else the one of the nvidia-pytriton wheel. cache_mb: size of the response cache in MiB, 0 for none; only
    models whose config.pbtxt asks for it use it. verbose: copy Triton's log to stderr. health_port: where /live, /ready
    and /metrics answer on this machine, None for nowhere. run_limit_s: how long one execution of a model may take
    before its worker counts as hanging, and is replaced. trace_file: where traces go once ``python -m serving.trace``
    has switched them on; None: they cannot be.
    """

    model_repository: Path = Path("model_repository")
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    tritonserver: Path | None = None
    cache_mb: int = 64
    verbose: bool = False
    start_timeout_s: float = 180.0
    drain_timeout_s: int = 30
    health_port: int | None = None
    run_limit_s: float = 60.0
    trace_file: Path | None = None

    def __post_init__(self) -> None:
        chosen = {option: port for name, option in PORT_OPTIONS.items() if (port := getattr(self, name)) is not None}
        for option, port in chosen.items():
            if not 0 <= port <= 65535:
                raise UserError(f"{option} is {port}; expected 0 (any free port) to 65535")
        taken = [port for port in chosen.values() if port]
        if len(set(taken)) < len(taken):
            raise UserError(f"{', '.join(chosen)} must differ, got {', '.join(map(str, taken))}")
        if not self.run_limit_s > 0:
            raise UserError(f"--run-limit-s is {self.run_limit_s:g}; expected more than 0")
        if self.cache_mb < 0:
            raise UserError(f"--cache-mb is {self.cache_mb}; expected 0 (no cache) or more")
