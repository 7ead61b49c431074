from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from clients import json_body
from clients.signature import DTYPES, Array

NUMERIC = [dtype for name, dtype in DTYPES.items() if name != "BYTES"]


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(NUMERIC))
    elements = st_numpy.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return draw(st_numpy.arrays(dtype, st_numpy.array_shapes(max_dims=3, max_side=4), elements=elements))


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), arrays(), min_size=1, max_size=3))
def test_what_is_written_is_read_back_bit_for_bit(inputs: dict[str, Array]) -> None:
    read = json_body.decode(json_body.encode(inputs))
    assert list(read) == list(inputs)
    for name, array in inputs.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


def test_the_body_is_kserve_v2() -> None:
    body = json.loads(json_body.encode({"history": np.array([[0.1, 2]], np.float32)}))
    assert body == {
        "inputs": [{"name": "history", "datatype": "FP32", "shape": [1, 2], "data": [0.10000000149011612, 2.0]}]
    }


def test_reads_an_answer_too() -> None:
    answer = '{"model_name": "m", "outputs": [{"name": "y", "datatype": "INT64", "shape": [2], "data": [1, 2]}]}'
    np.testing.assert_array_equal(json_body.decode(answer)["y"], np.array([1, 2]))
