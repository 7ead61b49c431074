"""The tiny models through a real Triton, over gRPC and HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving import health, running
from serving.launcher import Server


@pytest.fixture(scope="module")
def client(triton: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with closing(triton_grpc.InferenceServerClient(triton.grpc)) as client:
        yield client


def inputs(**arrays: npt.NDArray[Any]) -> list[triton_grpc.InferInput]:
    tensors = []
    for name, array in arrays.items():
        tensor = triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def together(client: triton_grpc.InferenceServerClient, model: str, *requests: list[Any]) -> list[Any]:
    """The answers (results or errors) to ``requests``, all in flight at once."""
    answers: list[Future[Any]] = [Future() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        client.async_infer(
            model, request, lambda result, error, answer=answer: answer.set_result(error or result), client_timeout=60
        )
    return [answer.result(60) for answer in answers]


def test_grpc(client: triton_grpc.InferenceServerClient) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    result = client.infer("double", inputs(x=x))
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    np.testing.assert_array_equal(result.as_numpy("rows"), [[2], [2]])


def test_http_as_curl_would(triton: Server) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    with urlopen(Request(f"http://{triton.http}/v2/models/double/infer", json.dumps(body).encode())) as response:
        outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    assert outputs == {"y": [2, 4, 6, 8], "rows": [1]}


def test_requests_that_wait_together_are_one_run(client: triton_grpc.InferenceServerClient) -> None:
    arrays = [np.full((1, 4), value, np.float32) for value in range(4)]
    answers = together(client, "double_of_four", *(inputs(x=array) for array in arrays))
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * array)
        np.testing.assert_array_equal(answer.as_numpy("rows"), [[4]])


def test_nan_fails_its_own_request_only(client: triton_grpc.InferenceServerClient) -> None:
    good, bad = np.ones((1, 4), np.float32), np.array([[1, np.nan, 3, 4]], np.float32)
    answers = together(client, "double_of_four", *(inputs(x=x) for x in (good, bad, good, good)))
    assert isinstance(answers[1], InferenceServerException)
    assert answers[1].message() == "input 'x': expected finite numbers, got nan at [0, 1]"
    for answer in (answers[0], answers[2], answers[3]):
        np.testing.assert_array_equal(answer.as_numpy("rows"), [[3]])


def test_a_failing_run_is_blamed_on_one(client: triton_grpc.InferenceServerClient) -> None:
    answers = together(client, "lookup_of_four", *(inputs(index=np.array([[i]])) for i in (0, 1, 99, 2)))
    assert isinstance(answers[2], InferenceServerException)
    assert "the model failed" in answers[2].message()
    assert [answer.as_numpy("value").item() for answer in (answers[0], answers[1], answers[3])] == [10, 20, 30]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.ones((1, 4))}, "inference input 'x' data-type is 'FP64', but model 'double' expects 'FP32'"),
        ({"x": np.ones((1, 5), np.float32)}, r"unexpected shape for input 'x'.*Expected \[-1,4\], got \[1,5\]"),
        ({"x": np.ones((9, 4), np.float32)}, "batch-size must be <= 8 for 'double'"),
        ({"x": np.full((1, 4), np.inf, np.float32)}, "input 'x': expected finite numbers, got inf"),
        ({"z": np.ones((1, 4), np.float32)}, "unexpected inference input 'z'|expected 1 inputs but got 0"),
    ],
)
def test_a_bad_request_is_told_and_the_server_lives(
    client: triton_grpc.InferenceServerClient, tensors: dict[str, npt.NDArray[Any]], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        client.infer("double", inputs(**tensors))
    assert client.infer("double", inputs(x=np.ones((1, 4), np.float32))).as_numpy("y").sum() == 8


def test_any_length_of_a_dynamic_axis(client: triton_grpc.InferenceServerClient) -> None:
    arrays = [np.ones((1, time, 2), np.float32) for time in (1, 7, 3, 7)]
    for array, answer in zip(arrays, together(client, "sums", *(inputs(x=x) for x in arrays)), strict=True):
        np.testing.assert_array_equal(answer.as_numpy("total"), array.sum(axis=1))


def test_an_output_on_its_own(client: triton_grpc.InferenceServerClient) -> None:
    wanted = [triton_grpc.InferRequestedOutput("scaled")]
    result = client.infer("sums", inputs(x=np.ones((1, 3, 2), np.float32)), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["scaled"]


def test_the_cache_answers_what_it_knows(client: triton_grpc.InferenceServerClient) -> None:
    def counted() -> npt.NDArray[np.int64]:
        (statistics,) = client.get_inference_statistics("double_cached").model_stats
        return np.array([statistics.inference_stats.cache_miss.count, statistics.inference_stats.cache_hit.count])

    x, before = np.array([[3, 1, 4, 1]], np.float32), counted()
    first, second = (client.infer("double_cached", inputs(x=x)).as_numpy("y") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (counted() - before).tolist() == [1, 1]


def test_the_model_repository_needs_the_key(triton: Server, client: triton_grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        client.unload_model("double")
    with pytest.raises(InferenceServerException, match="restricted"):
        client.get_model_repository_index(headers={"triton-grpc-protocol-seqserve-key": "guess"})
    assert client.get_model_repository_index(headers=triton.record.grpc_headers).models
    with closing(triton_http.InferenceServerClient(triton.http)) as http:
        with pytest.raises(InferenceServerException, match="restricted"):
            http.load_model("double")
        http.load_model("double", headers=triton.record.http_headers)


@pytest.mark.parametrize("api", ["get_system_shared_memory_status", "get_trace_settings", "get_log_settings"])
def test_so_do_the_other_restricted_apis(client: triton_grpc.InferenceServerClient, api: str) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        getattr(client, api)()


def test_the_publisher_finds_the_server(triton: Server) -> None:
    assert running.find(triton.config.model_repository) == [triton.record]


def test_what_health_says(triton: Server) -> None:
    assert health.is_ready(triton.http)
    assert re.fullmatch(r"\d+\.\d+\.\d+", health.server_version(triton.http))
    states = {model.name: model.state for model in health.loaded_models(triton.http, triton.record.http_headers) or []}
    assert states["double"] == "READY"
    assert health.loaded_models(triton.http, {}) is None


def test_metrics_are_there(triton: Server) -> None:
    with urlopen(f"http://{triton.metrics}/metrics") as response:
        assert b"nv_inference_request_success" in response.read()
