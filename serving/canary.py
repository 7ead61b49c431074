"""A small request that shows whether a model answers, which Triton's own health does not say.

    refusal("127.0.0.1:8000", "speech")     # None: it answered; else why not

The values are made up, so that the model does not like them is an answer, too: its worker has read them. So is that it
has no room for another stream. A stream is begun and ended by the one request, under an id that no client draws.
"""

from __future__ import annotations

import json
import re
from typing import Any

from serving import health

TIMEOUT_S = 5.0
_STREAM = "seqserve-canary"
_GONE = re.compile(r"not healthy|unknown model|not found|no available versions|not ready|not at ready state")


def refusal(address: str, model: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Why ``model`` of the server at ``address`` ("host:port", HTTP) does not answer; None if it does."""
    config = health.model_config(address, model)
    if config is None:
        return "it is not loaded"
    body = json.dumps(request(config)).encode()
    said = health.exchange(address, "POST", f"/v2/models/{model}/infer", body=body, timeout_s=timeout_s)
    if said is None:
        return f"no answer within {timeout_s:g} s"
    status, text = said
    return text if status != 200 and _GONE.search(text) else None


def request(config: dict[str, Any]) -> dict[str, Any]:
    """One row of zeros, or ones for whole numbers (as lengths need), sizes that may be any being 1."""
    batch = [1] if config["max_batch_size"] else []
    body: dict[str, Any] = {
        "inputs": [_tensor(entry, batch) for entry in config["input"] if not entry.get("optional")],
        "outputs": [{"name": config["output"][0]["name"]}],
    }
    if config.get("sequence_batching"):
        body["parameters"] = {"sequence_id": _STREAM, "sequence_start": True, "sequence_end": True}
    return body


def _tensor(entry: dict[str, Any], batch: list[int]) -> dict[str, Any]:
    datatype = entry["data_type"].removeprefix("TYPE_")
    shape = batch + [max(int(size), 1) for size in entry["dims"]]
    size = 1
    for length in shape:
        size *= length
    value = {"STRING": "", "BOOL": False}.get(datatype, 0 if datatype.startswith("FP") else 1)
    return {
        "name": entry["name"],
        "datatype": datatype.replace("STRING", "BYTES"),
        "shape": shape,
        "data": [value] * size,
    }
