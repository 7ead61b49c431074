"""``python -m serving``: serve a model repository until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optimize.errors import UserError
from serving import launcher
from serving.config import ServerConfig


def main(arguments: Sequence[str] | None = None) -> int:
    config = _parser().parse_args(arguments, namespace=argparse.Namespace())
    try:
        return launcher.run(ServerConfig(**vars(config)), ready=_show)
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
    parser.add_argument("--verbose", action="store_true", help="copy Triton's log to stderr")
    return parser


def _show(server: launcher.Server) -> None:
    models = ", ".join(f"{model.name} (version {model.version})" for model in server.models if model.state == "READY")
    print(f"serving {models} from {server.config.model_repository}")
    for name, why in server.skipped.items():
        print(f"skipped {name}: {why}")
    print(f"  http     http://{server.http}")
    print(f"  grpc     {server.grpc}")
    print(f"  metrics  http://{server.metrics}/metrics")
    print(f"  log      {server.log}")
    print("Ctrl-C stops it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
