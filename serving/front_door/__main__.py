"""``python -m serving.front_door DIR --replica HTTP,GRPC ...``: write nginx.conf for a front door of your own.

    python -m serving.front_door deploy/nginx --replica 127.0.0.1:8100,127.0.0.1:8101
    nginx -p deploy/nginx/ -c nginx.conf

certificate.pem, certificate.key and token.key must lie beside it; `python -m serving --secure DIR` makes some.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from optimize.errors import UserError
from serving.front_door.limits import Limits
from serving.front_door.nginx_config import CONFIG, MODULES, SCRIPT, Door, Replica, text


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        limits = Limits.read(options.limits) if options.limits else Limits()
        door = Door(options.host, options.http_port, options.grpc_port, True, options.idle_s, limits)
        replicas = [_replica(given) for given in options.replica]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / CONFIG).write_text(text(door, replicas, options.modules, options.user))
    shutil.copyfile(Path(__file__).with_name(SCRIPT), options.folder / SCRIPT)
    print(f"wrote {options.folder / CONFIG} and {SCRIPT}; check them with: nginx -t -p {options.folder}/ -c {CONFIG}")
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Door()
    parser = argparse.ArgumentParser(prog="python -m serving.front_door", description="Write nginx.conf of the door.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--replica", action="append", required=True, metavar="HTTP,GRPC", help="of each Triton")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=default.http_port, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=default.grpc_port, help="default: %(default)s")
    parser.add_argument("--idle-s", type=int, default=default.stream_idle_s, help="longest idle limit of any model")
    parser.add_argument("--limits", type=Path, metavar="FILE", help="JSON, such as deploy/nginx/limits.json")
    parser.add_argument("--modules", type=Path, default=MODULES, help="default: %(default)s")
    parser.add_argument("--user", default="www-data", help="whom nginx's workers become (default: %(default)s)")
    return parser


def _replica(given: str) -> Replica:
    http, _, grpc = given.partition(",")
    if ":" not in http or ":" not in grpc:
        raise UserError(f"--replica {given}: expected HOST:PORT,HOST:PORT, its HTTP and its gRPC endpoint")
    return Replica(http, grpc)


if __name__ == "__main__":
    sys.exit(main())
