"""``python -m serving.trace``: switch Triton's traces of requests on and off while it serves.

    python -m serving --trace-file traces.json
    python -m serving.trace --rate 100                # every hundredth request, of all models
    python -m serving.trace --rate 1 --model speech
    python -m serving.trace --off

Triton writes a file of every hundred traces (``traces.json.0``, ``.1``, ...; behind a front door
``traces-1.json.0`` of the first replica): when a request came, was queued, computed and answered, in nanoseconds; what
is left at the end when it stops. Switched are all servers of the repository that run on this machine. What is switched
for all models takes back what was switched for one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from optimize.errors import UserError
from serving import running
from serving.config import ServerConfig

_TRACES_PER_FILE = 100
_AS_ALL = dict.fromkeys(("trace_level", "trace_rate", "log_frequency"))  # null: as for all models


def switch(repository: Path, rate: int | None, model: str | None = None) -> int:
    """Trace every ``rate``-th request, none for None; of one model or of all. Returns how many servers were asked."""
    if rate is not None and rate < 1:
        raise UserError(f"--rate is {rate}; expected 1 (every request) or more, or --off")
    servers = running.find(repository)
    if not servers:
        raise UserError(f"no server of '{repository}' runs on this machine; start it with --trace-file FILE")
    settings: dict[str, Any] = {"trace_level": ["OFF"]}
    if rate:
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": str(rate), "log_frequency": str(_TRACES_PER_FILE)}
    for server in servers:
        client = InferenceServerClient(server.http)
        try:
            client.update_trace_settings(model, settings, headers=server.http_headers)
            if model is None:
                for known in client.get_model_repository_index(server.http_headers):
                    if known.get("state") == "READY":
                        client.update_trace_settings(known["name"], _AS_ALL, headers=server.http_headers)
        except InferenceServerException as error:
            hint = "; start it with --trace-file FILE" if "file name is not given" in str(error) else ""
            raise UserError(f"the server at {server.http} does not trace: {error}{hint}") from None
        finally:
            client.close()
    return len(servers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.trace", description="Switch traces on or off.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rate", type=int, metavar="N", help="trace every N-th request")
    what.add_argument("--off", action="store_true")
    parser.add_argument("--model", metavar="NAME", help="default: all")
    parser.add_argument(
        "--model-repository", type=Path, default=ServerConfig().model_repository, metavar="DIR", help="of the servers"
    )
    options = parser.parse_args(arguments)
    try:
        count = switch(options.model_repository, options.rate, options.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} server(s): {f'1 of {options.rate} requests is traced' if options.rate else 'traces are off'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
