"""Become another program that is terminated when its parent dies, however the parent dies.

    python lifeline.py PARENT_PID PROGRAM [ARGUMENT ...]

The kernel keeps the promise (PR_SET_PDEATHSIG), so even a SIGKILL of the launcher ends Triton, which then unloads
its models and removes its shared memory as on any SIGTERM. A program of its own because the setting must be made in
the child, where a process with threads may not run Python between fork and exec. Runs with ``-I -S``: standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent_pid: int, command: list[str]) -> None:
    """Replace this process by ``command``, bound to the life of ``parent_pid``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent died before its child started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
