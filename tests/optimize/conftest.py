"""Versions of a small model in a repository of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimize.repository import publish
from optimize.specs import ServingSpec
from tests.optimize.test_repository import SERVING, SPEC, _scale


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., int]:
    """Publish y = factor * x, as the live version or as a candidate; returns the version."""

    def publish_scale(factor: float, serving: ServingSpec = SERVING, candidate: bool = False) -> int:
        model = _scale(tmp_path / "m.onnx", factor)
        return publish(tmp_path / "r", SPEC, serving, model, candidate=candidate).version

    return publish_scale


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "r"
