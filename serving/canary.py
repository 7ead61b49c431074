"""A small request that shows whether a model answers, which Triton's own health does not say.

    refusal("127.0.0.1:8000", "speech")     # None: it answered; else why not

The values are made up, so that the model does not like them is an answer, too: its worker has read them. So is that it
has no room for another stream. A stream is begun and ended by the one request, under an id that no client draws.

No two requests are alike, or the response cache would answer for a worker that is dead: floats are drawn, and of whole
numbers, which may be ids or lengths, 1 or 2, in as many as make a repetition unlikely. That fails a model with the
cache that takes a handful of whole numbers and no second row: what can be asked of it safely is soon known.
"""

from __future__ import annotations

import json
import random
import re
import time
from math import prod
from typing import Any

from serving import health

TIMEOUT_S = 5.0
STREAM = "seqserve-canary"  # the workers do not count it (``backends/onnxruntime/stream_metrics.py``)
_ANY_SIZE = 8  # where the model takes any
_BITS = 32  # of chance in a request
_BITS_OF = {"BOOL": 1, "STRING": _BITS, "FP16": 8, "FP32": 20, "FP64": 20}  # of one value; whole numbers: 1
_GONE = re.compile(r"not healthy|unknown model|not found|no available versions|not ready|not at ready state")


def refusal(address: str, model: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Why ``model`` of the server at ``address`` ("host:port", HTTP) does not answer in time; None if it does."""
    begin = time.monotonic()
    said = health.exchange(address, "GET", f"/v2/models/{model}/config", timeout_s=timeout_s)
    if said is not None:
        if said[0] != 200:
            return "it is not loaded"
        body = json.dumps(request(json.loads(said[1]))).encode()
        left_s = max(begin + timeout_s - time.monotonic(), 0.001)
        said = health.exchange(address, "POST", f"/v2/models/{model}/infer", body=body, timeout_s=left_s)
    if said is None:
        return f"no answer within {timeout_s:g} s"
    status, text = said
    return text if status != 200 and _GONE.search(text) else None


def request(config: dict[str, Any]) -> dict[str, Any]:
    """A small one: of one row, unless it takes more of them to be unlike all others."""
    wanted = [entry for entry in config["input"] if not entry.get("optional")]
    rows, streams = 1, config.get("sequence_batching")  # models of streams have no response cache
    if not streams:
        bits = sum(prod(_sizes(entry)) * _BITS_OF.get(_datatype(entry), 1) for entry in wanted)
        rows = min(-(-_BITS // max(bits, 1)), int(config["max_batch_size"]) or 1)
    batch = [rows] if config["max_batch_size"] else []
    body: dict[str, Any] = {
        "inputs": [_tensor(entry, batch) for entry in wanted],
        "outputs": [{"name": config["output"][0]["name"]}],
    }
    if streams:
        body["parameters"] = {"sequence_id": STREAM, "sequence_start": True, "sequence_end": True}
    return body


def _tensor(entry: dict[str, Any], batch: list[int]) -> dict[str, Any]:
    datatype, shape = _datatype(entry), batch + _sizes(entry)
    return {
        "name": entry["name"],
        "datatype": datatype.replace("STRING", "BYTES"),
        "shape": shape,
        "data": [_value(datatype) for _ in range(prod(shape))],
    }


def _value(datatype: str) -> Any:
    if datatype.startswith("FP"):
        return random.uniform(-1.0, 1.0)
    if datatype == "STRING":
        return f"canary {random.getrandbits(_BITS):x}"
    return random.random() < 0.5 if datatype == "BOOL" else random.randint(1, 2)


def _datatype(entry: dict[str, Any]) -> str:
    return str(entry["data_type"]).removeprefix("TYPE_")


def _sizes(entry: dict[str, Any]) -> list[int]:
    return [int(size) if int(size) > 0 else _ANY_SIZE for size in entry["dims"]]
