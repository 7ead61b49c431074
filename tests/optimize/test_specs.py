import subprocess
import sys

import pytest

from optimize.specs import ModelSpec, ServingSpec, SpecError, StateSpec, TensorSpec

X, Y = TensorSpec("x", "float32", (4,)), TensorSpec("y", "float32", (2,))


def test_graph_names_are_tensors_then_states() -> None:
    spec = ModelSpec("m", (X,), (Y,), states=(StateSpec("hidden", "float32", (8,)),))
    assert spec.input_names == ["x", "state_hidden"]
    assert spec.output_names == ["y", "next_state_hidden"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSpec("x", "float31", ()), "dtype 'float31'"),
        (lambda: TensorSpec("X-1", "float32", ()), "lower-case"),
        (lambda: TensorSpec("x", "float32", (0,)), "size 0"),
        (lambda: StateSpec("h", "float32", ("time",)), "dynamic"),  # type: ignore[arg-type]
        (lambda: ModelSpec("m", (X,), (X,)), "used twice: x"),
        (lambda: ModelSpec("m", (X,), ()), "at least one"),
        (lambda: ModelSpec("m", (X,), (Y,), max_batch=0), "max_batch is 0"),
        (lambda: ModelSpec("m", (TensorSpec("state_x", "float32", ()),), (Y,)), "declare it under states"),
        (lambda: ModelSpec("m", (X,), (Y,), buckets={"time": (8,)}), "no dynamic axis"),
        (
            lambda: ModelSpec("m", (TensorSpec("x", "float32", ("time",)),), (Y,), buckets={"time": (16, 8)}),
            "must ascend",
        ),
        (lambda: ServingSpec(instances=0), "instances is 0"),
        (lambda: ServingSpec(kind="tpu"), "'tpu'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_description_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize("module", ["optimize.specs", "optimize.data.electricity", "clients", "serving.launcher"])
def test_what_a_client_or_server_imports_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
