"""The probes of the pod, run by Kubernetes inside Triton's container; Python 3.10 and its standard library only.

    python3 probe.py ready 127.0.0.1:9000 speech load_forecast    # 0: every model answered a canary
    python3 probe.py live 127.0.0.1:9000                          # 0: Triton answers at all
    python3 probe.py drained 8001 9000,9001 300                   # 0: the door is shut and nobody is connected

``ready`` asks for inferences (``serving/canary.py``), since Triton calls itself ready whatever its models do. It does
not decide on life: behind a full queue a canary waits, and a server that is only busy must not be killed.
``drained`` holds Triton's end back until the door has let its streams finish, or for so many seconds at most.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from serving import canary, health

_LISTENS, _ESTABLISHED = "0A", "01"  # linux/tcp_states.h
_POLL_S = 0.5
_TIMEOUT_S = 4.0  # below the probe's timeoutSeconds


def main(arguments: list[str]) -> int:
    question, *rest = arguments
    if question == "ready":
        address, *models = rest
        reasons = {model: canary.refusal(address, model, _TIMEOUT_S) for model in models}
        print(json.dumps({model: reason or "ready" for model, reason in reasons.items()}))
        return 1 if any(reasons.values()) else 0
    if question == "live":
        return 0 if health.is_live(*rest) else 1
    door, triton, limit_s = rest
    return 0 if drained(int(door), [int(port) for port in triton.split(",")], float(limit_s)) else 1


def drained(door: int, triton: list[int], limit_s: float) -> bool:
    """Wait until nothing listens on the port ``door`` and nobody is connected to the ports ``triton``."""
    deadline = time.monotonic() + limit_s
    while any(
        (port == door and state == _LISTENS) or (port in triton and state == _ESTABLISHED) for port, state in _sockets()
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _sockets() -> list[tuple[int, str]]:
    """Local port and state of every TCP socket in this network namespace."""
    rows: list[list[str]] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
    return [(int(row[1].rpartition(":")[2], 16), row[3]) for row in rows]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
