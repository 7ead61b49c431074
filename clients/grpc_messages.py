"""Calls and chunks as messages of Triton's gRPC service, and its messages as replies.

The messages are made here rather than by tritonclient's client class, which takes 0.07 ms longer over a request of two
small tensors; its generated service and its reader of answers are used.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from clients.calls import Answer, Call, Chunk, Config, Infer, Live, Metadata, Ready, Statistics
from clients.signature import DATATYPES
from clients.transport import answer


def invocation(call: Call) -> tuple[str, Any]:
    """The method of the service that a call is made on, and the message to make it with."""
    match call:
        case Infer():
            return "ModelInfer", tensors(call)
        case Live():
            return "ServerLive", pb.ServerLiveRequest()
        case Ready(model=""):
            return "ServerReady", pb.ServerReadyRequest()
        case Ready(model, version):
            return "ModelReady", pb.ModelReadyRequest(name=model, version=version)
        case Metadata(model, version):
            return "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version)
        case Config(model, version):
            return "ModelConfig", pb.ModelConfigRequest(name=model, version=version)
        case Statistics():
            return "ModelStatistics", pb.ModelStatisticsRequest()


def tensors(call: Infer | Chunk) -> Any:
    """The request for one run, with its tensors as bytes."""
    message = pb.ModelInferRequest(model_name=call.model, model_version=call.version)
    for name, array in call.inputs.items():
        message.inputs.add(name=name, datatype=DATATYPES[np.dtype(array.dtype)], shape=array.shape)
        raw = serialize_byte_tensor(array).item() if array.dtype == np.object_ and array.size else array.tobytes()
        message.raw_input_contents.append(raw)
    return message


def reply(message: Any, call: Call, address: str) -> Any:
    """What the call's reply is, of the service's answer to it. Raises ServerError where bytes and shape disagree."""
    match call:
        case Infer():
            return outputs(message, call.model, address)
        case Live():
            return message.live
        case Ready():
            return message.ready
    read = json.loads(MessageToJson(message, preserving_proto_field_name=True))
    match call:
        case Config():
            return read["config"]
        case Statistics():
            return read.get("model_stats", [])
    return read


def outputs(message: Any, model: str, address: str) -> Answer:
    """The tensors of a run's answer. Raises ServerError where bytes and shape disagree."""
    names = [output.name for output in message.outputs]
    return answer(model, message.model_version, triton.InferResult(message), names, address)
