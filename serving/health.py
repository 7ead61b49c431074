"""What a Triton says about itself over HTTP; standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 5.0
_LOAD_TIMEOUT_S = 600.0  # a large model on a busy machine


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model, and whether it answers ("READY") or not."""

    name: str
    version: str
    state: str


def server_id(address: str) -> str | None:
    """The id of the server at ``address`` ("host:port"); None while nothing answers."""
    answer = _request(address, "GET", "/v2")
    return None if answer is None else answer.get("name")


def server_version(address: str) -> str:
    """Triton's version, such as "2.51.0"; "unknown" if it does not say."""
    return str((_request(address, "GET", "/v2") or {}).get("version", "unknown"))


def is_ready(address: str) -> bool:
    """Whether the server and every model that it was told to load can answer."""
    return _request(address, "GET", "/v2/health/ready") is not None


def is_live(address: str) -> bool:
    """Whether the server answers at all."""
    return _request(address, "GET", "/v2/health/live") is not None


def accepts(address: str) -> bool:
    """Whether something listens at ``address`` ("host:port")."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def loaded_models(address: str, headers: dict[str, str]) -> list[LoadedModel] | None:
    """Every model version that the server knows, None if it does not say.

    headers: must hold the key of the repository API.
    """
    entries = _request(address, "POST", "/v2/repository/index", headers)
    if entries is None:
        return None
    return [
        LoadedModel(entry["name"], entry.get("version", ""), entry.get("state", "UNAVAILABLE")) for entry in entries
    ]


def reload(address: str, headers: dict[str, str], model: str) -> str | None:
    """Unload the model and load it again, since Triton takes no load of what it believes to serve for another one.

    Returns None, or what went wrong. headers: as above.
    """
    for what in ("unload", "load"):
        said = exchange(address, "POST", f"/v2/repository/models/{model}/{what}", headers, timeout_s=_LOAD_TIMEOUT_S)
        if said is None:
            return f"no answer to {what}"
        if said[0] != 200:
            return f"{what}: {said[1]}"
    return None


def exchange(
    address: str,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[int, str] | None:
    """Status and text of the answer; None when there is none."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _request(address: str, method: str, path: str, headers: dict[str, str] | None = None) -> Any:
    """The decoded answer ({} for an empty one), or None when there is no answer or it is an error."""
    said = exchange(address, method, path, headers)
    if said is None or said[0] != 200:
        return None
    try:
        return json.loads(said[1]) if said[1] else {}
    except ValueError:
        return None
