"""``python -m serving``: serve a model repository until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from optimize.errors import UserError
from serving import launcher
from serving.config import ServerConfig
from serving.front_door import fleet
from serving.front_door.credentials import DEFAULT_FOLDER
from serving.front_door.fleet import FleetConfig
from serving.front_door.limits import Limits


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    secrets, replicas, limits = (options.pop(name) for name in ("secure", "replicas", "limits"))
    try:
        config = ServerConfig(**options)
        if secrets is None and replicas == 1 and limits is None:
            return launcher.run(config, ready=_show)
        limits = Limits() if limits is None else Limits.read(limits)
        return fleet.run(FleetConfig(config, replicas, secrets, limits), ready=_show_fleet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    default = ServerConfig()
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve a model repository with Triton.")
    parser.add_argument("--model-repository", type=Path, default=default.model_repository, metavar="DIR")
    parser.add_argument("--host", default=default.host, help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--http-port", type=int, default=default.http_port, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--grpc-port", type=int, default=default.grpc_port, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=default.metrics_port, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="PROGRAM",
        help="default: the one on PATH, else the nvidia-pytriton wheel's",
    )
    parser.add_argument(
        "--cache-mb", type=int, default=default.cache_mb, help="response cache in MiB, 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--health-port", type=int, metavar="PORT", help="for /live, /ready and /metrics on 127.0.0.1 (default: nowhere)"
    )
    parser.add_argument(
        "--run-limit-s",
        type=float,
        default=default.run_limit_s,
        metavar="S",
        help="a worker that takes longer for one execution is replaced (default: %(default)s)",
    )
    door = parser.add_argument_group("front door", "nginx on the ports above; Triton then listens on loopback only")
    door.add_argument(
        "--secure",
        type=Path,
        nargs="?",
        const=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"TLS, and a token for every request; certificate and keys are in DIR (default: {DEFAULT_FOLDER}), "
        "and made where missing",
    )
    door.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="so many Tritons behind the door (default: %(default)s)"
    )
    door.add_argument("--limits", type=Path, metavar="FILE", help="JSON, such as deploy/nginx/limits.json")
    parser.add_argument("--trace-file", type=Path, metavar="FILE", help="for `python -m serving.trace` (default: none)")
    parser.add_argument("--verbose", action="store_true", help="copy Triton's log to stderr")
    return parser


def _show(server: launcher.Server) -> None:
    _show_models(server)
    print(f"  http     http://{server.http}")
    print(f"  grpc     {server.grpc}")
    print(f"  metrics  http://{server.metrics}/metrics")
    if server.probes is not None:
        print(f"  health   http://{server.probes.address}/ready")
    print(f"  log      {server.log}")
    print("Ctrl-C stops it.", flush=True)


def _show_fleet(running: fleet.Fleet) -> None:
    door, credentials = running.door, running.credentials
    _show_models(running.servers[0])
    print(f"  http     http{'s' if credentials else ''}://{door.http}")
    print(f"  grpc     {door.grpc}{' (TLS)' if credentials else ''}")
    for server in running.servers:
        print(f"  replica  {fleet.endpoints(server)}")
    print(f"  log      {door.log}")
    if credentials:
        print(f"  clients  --tls-ca {credentials.certificate} --token {credentials.token}")
    print(f"Ctrl-C stops it; kill -USR1 {os.getpid()} renews every replica without losing a stream.", flush=True)


def _show_models(server: launcher.Server) -> None:
    models = ", ".join(f"{model.name} (version {model.version})" for model in server.models if model.state == "READY")
    print(f"serving {models} from {server.config.model_repository}")
    for name, why in server.skipped.items():
        print(f"skipped {name}: {why}")


if __name__ == "__main__":
    sys.exit(main())
