"""Bring running servers to what the repository holds now, through Triton's model repository API.

Triton loads a new version beside the old one, moves the requests over when the new one is ready, and lets the old one
finish what it has. When the new one cannot load, the old one keeps serving.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tritonclient.http
from tritonclient.utils import InferenceServerException

from optimize.errors import UserError
from serving.running import RunningServer

_CONNECT_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 600.0  # a large model on a busy machine; a request in flight to the old version also waits in here

_log = logging.getLogger(__name__)


class RolloutError(UserError):
    """A server did not take the version."""


def load(servers: Sequence[RunningServer], model: str, version: int) -> None:
    """Have every server serve ``version``. Raises RolloutError at the first that does not."""
    for server in servers:
        with _client(server) as client:
            client.load_model(model, headers=server.http_headers)
            if not client.is_model_ready(model, str(version)):
                raise RolloutError(f"the server at {server.http} loaded '{model}', but version {version} is not ready")
        _log.info("the server at %s now serves version %d of '%s'", server.http, version, model)


def restore(servers: Sequence[RunningServer], model: str, version: int) -> None:
    """Have every server serve ``version`` again after a newer one was withdrawn; 0: have it forget the model.

    A server that serves it still is left in peace, since loading it anew would cut off the streams it holds. One that
    cannot follow is only logged: the caller is already reporting a failure.
    """
    for server in servers:
        try:
            with _client(server) as client:
                if not version:
                    client.unload_model(model, headers=server.http_headers)
                elif not client.is_model_ready(model, str(version)):
                    client.load_model(model, headers=server.http_headers)
        except RolloutError as error:
            _log.error("'%s' could not be brought back: %s", model, error)


def ready_versions(servers: Sequence[RunningServer], model: str) -> set[int]:
    """The versions of ``model`` that any server has loaded."""
    found = set()
    for server in servers:
        with _client(server) as client:
            for entry in client.get_model_repository_index(headers=server.http_headers):
                if entry["name"] == model and entry.get("state") == "READY":
                    found.add(int(entry["version"]))
    return found


@contextmanager
def _client(server: RunningServer) -> Iterator[tritonclient.http.InferenceServerClient]:
    client = tritonclient.http.InferenceServerClient(
        server.http, connection_timeout=_CONNECT_TIMEOUT_S, network_timeout=_LOAD_TIMEOUT_S
    )
    try:
        yield client
    except InferenceServerException as error:
        reason = error.message().strip().partition("\n")[0]  # behind it there may be the backend's traceback
        raise RolloutError(f"the server at {server.http} refused: {reason}") from error
    except OSError as error:
        raise RolloutError(f"the server at {server.http} (process {server.pid}) does not answer: {error}") from error
    finally:
        client.close()
