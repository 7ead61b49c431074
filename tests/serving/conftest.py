"""The backend's modules as the worker sees them, with a stand-in for what only Triton's worker process provides."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from serving.installation import OUR_BACKENDS
from tests.serving import fake_pb_utils

# Appended, as Triton's worker does: the backend's modules import each other by their bare names.
sys.path.append(str(OUR_BACKENDS / "onnxruntime"))


@pytest.fixture(scope="session")
def backend() -> ModuleType:
    """The module model.py."""
    sys.modules.setdefault("triton_python_backend_utils", fake_pb_utils)
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", OUR_BACKENDS / "onnxruntime" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
