from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "clients, clients.forecast, clients.transcribe, clients.translate, clients.__main__",
            "torch onnx onnxruntime matplotlib tritonclient grpc",
        ),
        ("clients.grpc_transport", "torch onnxruntime tritonclient.grpc.aio tritonclient.http aiohttp"),
        ("clients.http_transport", "torch onnxruntime grpc aiohttp"),
    ],
)
def test_a_client_machine_needs_little(modules: str, absent: str) -> None:
    program = f"import sys, {modules}\nprint(*(set(sys.argv[1:]) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program, *absent.split()], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
