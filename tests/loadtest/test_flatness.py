from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtest.flatness import Trend
from loadtest.processes import Usage, server_pid, tree
from loadtest.reference import LocalStream
from optimize.errors import UserError
from tests import tiny_models


def test_the_warm_up_and_single_values_do_not_count() -> None:
    values = [999.0] * 10 + [10.0] * 45 + [0.0] + [10.0] * 44
    assert Trend.of(values) == Trend(10.0, 10.0)
    assert Trend.of(values, warm_up=0).first == 999.0


def test_growth() -> None:
    trend = Trend.of([100 + step / 10 for step in range(1000)], warm_up=0)
    assert (trend.first, trend.last) == pytest.approx((104.95, 194.95))
    assert trend.growth_percent == pytest.approx(85.8, abs=0.1)
    assert trend.ratio == pytest.approx(1.858, abs=0.001)
    assert Trend.of([3.0]) == Trend(3.0, 3.0)


CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "held = b'x' * 30_000_000; print('up', flush=True); input()"],
                         stdin=subprocess.PIPE)
input()
child.communicate()
"""


def test_memory_and_time_of_a_process_and_its_children() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        usage = Usage.of(parent.pid)
        assert len(tree(parent.pid)) == usage.processes == 2
        assert usage.rss_bytes > 30_000_000
        assert usage.cpu_s > 0
        parent.communicate("\n")
    assert Usage.of(parent.pid) == Usage(0, 0.0, 0)


def test_the_process_that_listens_is_found_by_its_port_and_name() -> None:
    program = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert server_pid(address, program) == os.getpid()
        assert server_pid(address, "another") is None
        assert server_pid(address.replace("127.0.0.1", "192.0.2.1"), program) is None  # another machine's
    assert server_pid(address, program) is None


def test_the_model_in_this_process_carries_its_state(tmp_path: Path) -> None:
    onnx.save(tiny_models.listen().graph, tmp_path / "model.onnx")
    local = LocalStream(tmp_path / "model.onnx")
    pcm, lengths = np.full((1, 16), 100, np.int16), np.full((1, 1), 16, np.int32)
    levels = [float(local.answer({"pcm": pcm, "lengths": lengths})["level"][0, 15]) for _ in range(3)]
    assert levels == pytest.approx([160.0, 160 * 1.7, 160 * (1 + 0.7 * 1.7)])


def test_files_that_are_no_streaming_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    onnx.save(tiny_models.double().graph, tmp_path / "double.onnx")
    with pytest.raises(UserError, match="cannot be loaded by ONNX Runtime"):
        LocalStream(tmp_path / "text.onnx")
    with pytest.raises(UserError, match="no streaming model"):
        LocalStream(tmp_path / "double.onnx")
