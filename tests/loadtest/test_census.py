"""What a process and its children hold, and whether it grows: leaks are planted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loadtest.census import Census, growth_percent, shared_files

_LEAKER = """
import sys, threading, subprocess
kept = []
for line in sys.stdin:
    what = line.strip()
    if what == "memory": kept.append(bytearray(b"x" * 20_000_000))
    if what == "descriptor": kept.append(open("/dev/null"))
    if what == "thread": threading.Thread(target=threading.Event().wait, daemon=True).start()
    if what == "process": kept.append(subprocess.Popen(["sleep", "60"]))
    if what == "shared": open(sys.argv[1], "wb").write(b"x" * 8192)
    print("done", flush=True)
for each in kept:
    if isinstance(each, subprocess.Popen): each.kill()
"""
PREFIX = f"seqserve-census-test-{os.getpid()}"


@pytest.fixture
def leaker() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _LEAKER, f"/dev/shm/{PREFIX}_0"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        leak(process, "nothing")
        yield process
    finally:
        process.communicate(timeout=30)
        Path(f"/dev/shm/{PREFIX}_0").unlink(missing_ok=True)


def leak(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    print(what, file=process.stdin, flush=True)
    process.stdout.readline()


@pytest.mark.parametrize(
    ("what", "field", "least"),
    [
        ("memory", "memory_bytes", 19_000_000),
        ("descriptor", "descriptors", 1),
        ("thread", "threads", 1),
        ("process", "processes", 1),
        ("shared", "shared_files", 1),
        ("shared", "shared_bytes", 8192),
    ],
)
def test_a_leak_is_seen(leaker: subprocess.Popen[str], what: str, field: str, least: int) -> None:
    before = Census.of(leaker.pid, [PREFIX])
    leak(leaker, what)
    assert getattr(Census.of(leaker.pid, [PREFIX]), field) - getattr(before, field) >= least


def test_nothing_is_there_of_what_has_ended() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert Census.of(process.pid) == Census(0, 0, 0, 0, 0, 0)
    assert shared_files(["seqserve-no-such-server"]) == []


def test_growth() -> None:
    times = np.arange(100.0)
    noise = np.random.default_rng(4).normal(0, 1, 100)
    assert growth_percent(times, 100 + noise) == pytest.approx(0, abs=1)
    assert growth_percent(times, 100 + 0.05 * times + noise) == pytest.approx(5, abs=1)
    once = 100 + noise + 40 * (times == 50)
    assert growth_percent(times, once) == pytest.approx(0, abs=1), "one jump is no leak"
    assert growth_percent([1.0], [1.0]) == 0
    assert growth_percent([1.0, 2.0], [0.0, 0.0]) == 0
