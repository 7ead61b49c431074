"""Requests to Triton, made beforehand as the bytes that travel, for ``closed_loop``; and what its answers say."""

from __future__ import annotations

import json

import numpy as np
import tritonclient.http as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from loadtest.closed_loop import Target
from optimize.data.dataset import Arrays
from optimize.specs import ModelSpec


def by_grpc(address: str, stream: bool = False) -> Target:
    """address: HOST:PORT. stream: for a model with states."""
    host, _, port = address.rpartition(":")
    return Target(host, int(port), stream=stream)


def by_http(address: str, model: str) -> Target:
    host, _, port = address.rpartition(":")
    return Target(host, int(port), f"/v2/models/{model}/infer", ("Content-Type: application/octet-stream",))


def request(target: Target, spec: ModelSpec, inputs: Arrays) -> bytes:
    """One request for the model ``spec.name``, by the target's protocol: over HTTP, bytes behind a JSON head."""
    if not target.path:
        message = pb.ModelInferRequest(model_name=spec.name)
        for tensor in spec.inputs:
            array = inputs[tensor.name]
            message.inputs.add(name=tensor.name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        return bytes(message.SerializeToString())
    tensors = []
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        tensors.append(triton.InferInput(tensor.name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    outputs = [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs]
    body, head = triton.InferenceServerClient.generate_request_body(tensors, outputs=outputs)
    return target.message(body, f"Inference-Header-Content-Length: {head}")


def answer(target: Target, spec: ModelSpec, received: bytes) -> Arrays:
    """The outputs by name."""
    if target.path:
        _, head = json.JSONDecoder().raw_decode(received.decode("latin-1"))
        result = triton.InferenceServerClient.parse_response_body(received, header_length=head)
        return {tensor.name: result.as_numpy(tensor.name) for tensor in spec.outputs}
    if target.stream:
        reply = pb.ModelStreamInferResponse.FromString(received).infer_response
    else:
        reply = pb.ModelInferResponse.FromString(received)
    dtypes = {tensor.name: tensor.dtype for tensor in spec.outputs}
    return {
        output.name: np.frombuffer(raw, dtypes[output.name]).reshape(tuple(output.shape))
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
