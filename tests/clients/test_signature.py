from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from clients import InvalidRequest, ServerError, Signature, Tensor
from clients.signature import DTYPES, Array

FORECASTER = Signature.of(
    {
        "name": "load_forecast",
        "versions": ["9", "10"],
        "inputs": [
            {"name": "history", "datatype": "FP32", "shape": [-1, 72, 16]},
            {"name": "calendar", "datatype": "FP32", "shape": ["-1", "24", "14"]},  # as gRPC writes 64-bit integers
        ],
        "outputs": [{"name": "forecast", "datatype": "FP32", "shape": [-1, 24]}],
    },
    {"max_batch_size": 8},
)


def request(rows: int = 1) -> dict[str, Array]:
    return {"history": np.ones((rows, 72, 16), np.float32), "calendar": np.ones((rows, 24, 14), np.float32)}


def refusal(inputs: dict[str, Array], signature: Signature = FORECASTER) -> str:
    with pytest.raises(InvalidRequest) as caught:
        signature.checked(inputs)
    return str(caught.value)


def test_reads_the_servers_description() -> None:
    assert FORECASTER.version == "10"  # the highest number, not the last in the alphabet
    assert FORECASTER.max_batch == 8
    assert FORECASTER.inputs[1] == Tensor("calendar", "FP32", (-1, 24, 14))


def test_a_good_request_is_ordered_and_contiguous() -> None:
    inputs = {"calendar": request(3)["calendar"], "history": request(3)["history"].transpose(0, 2, 1).copy()}
    inputs["history"] = inputs["history"].transpose(0, 2, 1)  # right shape, wrong memory order
    checked = FORECASTER.checked(inputs)
    assert list(checked) == ["history", "calendar"]
    assert all(array.flags.c_contiguous for array in checked.values())
    assert FORECASTER.rows(checked) == 3


def test_unknown_and_missing_names() -> None:
    assert "no input 'histroy'; its inputs are 'history' float32 (batch, 72, 16)" in refusal({"histroy": np.ones(1)})
    assert "needs the input 'calendar' float32 (batch, 24, 14)" in refusal({"history": request()["history"]})


def test_wrong_dtype_says_how_to_convert() -> None:
    message = refusal(request() | {"history": np.ones((1, 72, 16))})
    assert message == (
        "input 'history' of model 'load_forecast': expected float32 (batch, 72, 16), got float64 (1, 72, 16); "
        "convert with .astype('float32')"
    )


def test_wrong_rank_says_how_to_add_the_batch() -> None:
    message = refusal(request() | {"history": np.ones((72, 16), np.float32)})
    assert message.endswith("add the batch axis with array[None]")


def test_wrong_length() -> None:
    assert "got float32 (1, 71, 16)" in refusal(request() | {"history": np.ones((1, 71, 16), np.float32)})


def test_no_array() -> None:
    no_array: Any = [[1.0]]
    assert "got list; give a numpy array" in refusal(request() | {"history": no_array})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    inputs = request(2)
    inputs["history"][1, 5, 0] = inputs["history"][1, 6, 0] = value
    assert "2 of 2304 values are NaN or infinite, the first at (1, 5, 0)" in refusal(inputs)


def test_rows() -> None:
    mixed = request(2) | {"calendar": request(3)["calendar"]}
    assert "differ in rows: 'history' has 2, 'calendar' has 3" in refusal(mixed)
    assert "takes 1 to 8 rows a request, but 'history' has 9" in refusal(request(9))
    assert "but 'history' has 0" in refusal(request(0))


def test_a_datatype_that_numpy_lacks() -> None:
    signature = Signature("m", "1", (Tensor("x", "BF16", (1,)),), (), 0)
    assert "'x' BF16 (1): numpy has no such datatype" in refusal({"x": np.ones(1, np.float32)}, signature)


def test_an_empty_answer_is_an_error_though_the_server_calls_it_a_success() -> None:
    with pytest.raises(ServerError, match=r"promises the output 'forecast' float32 \(batch, 24\), but .* \(1, 0\)"):
        FORECASTER.check_answer({"forecast": np.empty((1, 0), np.float32)}, rows=1)


@pytest.mark.parametrize(
    "outputs",
    [{}, {"forecast": np.ones((1, 24))}, {"forecast": np.ones((2, 24), np.float32)}],
    ids=["missing", "wrong dtype", "wrong number of rows"],
)
def test_answers_that_break_the_promise(outputs: dict[str, Array]) -> None:
    with pytest.raises(ServerError):
        FORECASTER.check_answer(outputs, rows=1)


NUMERIC = sorted(set(DTYPES) - {"BYTES"})


@st.composite
def signatures_and_requests(draw: st.DrawFn) -> tuple[Signature, dict[str, Array]]:
    """Any signature of numeric tensors, and a request that fits it."""
    rows = draw(st.integers(1, 4))
    batched = draw(st.booleans())
    tensors, inputs = [], {}
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True)):
        datatype = draw(st.sampled_from(NUMERIC))
        sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        declared = tuple(draw(st.sampled_from((size, -1))) for size in sizes)
        tensors.append(Tensor(name, datatype, (-1, *declared) if batched else declared))
        shape = (rows, *sizes) if batched else sizes
        elements = st_numpy.from_dtype(DTYPES[datatype], allow_nan=False, allow_infinity=False)
        inputs[name] = draw(st_numpy.arrays(DTYPES[datatype], shape, elements=elements))
    return Signature("m", "1", tuple(tensors), (), 4 if batched else 0), inputs


@settings(deadline=None)
@given(signatures_and_requests())
def test_every_request_that_fits_passes_unchanged(case: tuple[Signature, dict[str, Array]]) -> None:
    signature, inputs = case
    checked = signature.checked(inputs)
    assert list(checked) == [tensor.name for tensor in signature.inputs]
    for name, array in inputs.items():
        assert checked[name].dtype == array.dtype
        np.testing.assert_array_equal(checked[name], array)


@settings(deadline=None)
@given(signatures_and_requests(), st.sampled_from(["drop", "rename", "dtype", "rank", "length"]), st.data())
def test_every_single_fault_is_refused_and_named(
    case: tuple[Signature, dict[str, Array]], fault: str, data: st.DataObject
) -> None:
    signature, inputs = case
    name = data.draw(st.sampled_from(sorted(inputs)))
    array = inputs.pop(name)
    tensor = next(tensor for tensor in signature.inputs if tensor.name == name)
    fixed = [axis for axis, size in enumerate(tensor.shape) if size != -1]
    if fault == "rename":
        inputs["z"] = array
    elif fault == "dtype":
        inputs[name] = np.zeros(array.shape, np.int64 if array.dtype != np.int64 else np.int32)
    elif fault == "rank":
        inputs[name] = array[..., None]
    elif fault == "length":
        if not fixed:
            return
        inputs[name] = np.repeat(array, array.shape[fixed[0]] + 1, axis=fixed[0])
    message = refusal(inputs, signature)
    assert f"'{'z' if fault == 'rename' else name}'" in message


def described(parameters: dict[str, dict[str, str]]) -> Signature:
    return Signature.of({"name": "speech"}, {"parameters": parameters})


def test_labels_are_published_with_the_model() -> None:
    words = ["", "zero", '\u00fcber, "alles"']
    text = {"string_value": json.dumps(words)}
    assert described({"labels.tokens": text, "threads": {"string_value": "1"}}).labels == {"tokens": tuple(words)}
    assert described({}).labels == {}


@pytest.mark.parametrize("text", ["", "zero one", '"zero"', "[0, 1]", '{"zero": 1}'])
def test_labels_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ServerError, match=r"model 'speech': expected a JSON list of texts in the parameter 'labels\."):
        described({"labels.tokens": {"string_value": text}})


def test_buckets_and_vocabulary_are_published_with_the_model() -> None:
    found = described(
        {
            "shape.source": {"string_value": "words"},
            "shape.other": {"string_value": "rows,2"},
            "buckets.words": {"string_value": "8,16"},
            "vocabulary": {"string_value": "AP8="},
        }
    )
    assert found.buckets == {"source": (8, 16)}
    assert found.vocabulary == b"\x00\xff"
    assert (described({}).buckets, described({}).vocabulary) == ({}, b"")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shape.source": "words", "buckets.words": "8,many"}, "expected sizes such as 8,16 in .*'buckets.words'"),
        ({"vocabulary": "not base64!"}, "expected a file in base64 in the parameter 'vocabulary'"),
    ],
)
def test_buckets_and_vocabulary_that_cannot_be_read(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        described({key: {"string_value": text} for key, text in parameters.items()})
