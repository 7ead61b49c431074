"""What a Triton says about itself over HTTP; standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 5.0


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


def accepts(address: str) -> bool:
    """Whether something listens at ``address`` ("host:port")."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def loaded_models(address: str, headers: dict[str, str]) -> list[LoadedModel]:
    """Every model version that the server knows; ``headers`` must hold the key of the repository API."""
    entries = _request(address, "POST", "/v2/repository/index", headers) or []
    return [
        LoadedModel(entry["name"], entry.get("version", ""), entry.get("state", "UNAVAILABLE")) for entry in entries
    ]


def _request(address: str, method: str, path: str, headers: dict[str, str] | None = None) -> Any:
    """The decoded answer ({} for an empty one), or None when there is no answer or it is an error."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return None
        return json.loads(body) if body else {}
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
