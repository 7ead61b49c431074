"""Memory and processor time of a server on this machine, with all the processes it has started; from /proc.

pid = server_pid("127.0.0.1:8001")     # None: on another machine, or another user's
usage = Usage.of(pid)
usage.rss_bytes, usage.cpu_s
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "tritonserver"
_LISTENING = "0A"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """rss_bytes: resident memory of all processes together; what they share counts for each. cpu_s: since they
    started, of those that still run."""

    rss_bytes: int
    cpu_s: float
    processes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of ``pid`` and its descendants; zeros if it is gone."""
        rss_bytes, cpu_s, processes = 0, 0.0, 0
        for member in tree(pid):
            try:
                pages = int(Path(f"/proc/{member}/statm").read_text().split()[1])
                fields = _stat(member)
            except OSError:  # it has just ended
                continue
            rss_bytes += pages * _PAGE_BYTES
            cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            processes += 1
        return cls(rss_bytes, cpu_s, processes)


def server_pid(address: str, program: str = PROGRAM) -> int | None:
    """The process of that name which listens at ``address``; None if it cannot be seen from here."""
    host, _, port = address.rpartition(":")
    if not _is_local(host.strip("[]")):
        return None
    sockets = {f"socket:[{inode}]" for inode in _listening(int(port))}
    for entry in Path("/proc").iterdir() if sockets else ():
        if not entry.name.isdecimal():
            continue
        try:
            if (entry / "comm").read_text().strip() != program[:15]:  # the kernel keeps 15 letters of a name
                continue
            if any(os.readlink(descriptor) in sockets for descriptor in (entry / "fd").iterdir()):
                return int(entry.name)
        except OSError:  # it has just ended, or belongs to another user
            continue
    return None


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                children[int(_stat(int(entry.name))[1])].append(int(entry.name))
            except OSError:
                continue
    found = [pid]
    for member in found:
        found.extend(children[member])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: the name before it may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _is_local(host: str) -> bool:
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(address.startswith("127.") or address == "::1" for address in addresses)


def _listening(port: int) -> list[str]:
    """Inodes of the sockets that listen there."""
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.append(fields[9])
    return inodes
