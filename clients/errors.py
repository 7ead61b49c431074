"""The one error tree of the client, whatever the protocol, sync or async.

    ClientError
    ├── InvalidRequest      the request does not fit the model; nothing was sent, or the server refused it
    ├── ModelNotFound       the server knows no such model or version
    ├── ModelNotReady       it knows the model but has not loaded it, or is shutting down
    ├── ServerUnavailable   nobody answers at the address, or the server takes no more work; the request did not run
    │   └── TooManyStreams  the model has as many streams as it may; no new one was begun
    ├── ConnectionLost      the server went away in the middle; the request may have run or not
    ├── SessionLost         the state that a session's chunks built up is gone; the session cannot go on
    ├── DeadlineExceeded    no answer in time; the request may still be running
    │   └── NotRun          the server saw the deadline pass before its turn came, and did not run it
    └── ServerError         the server failed, or answered something other than it promised

The first four and NotRun say that the model did not run, so asking again is safe; after the others it is safe only for
a model without state. The client itself never sends a request twice, but for a session with ``replay``. What each means
to a session: see ``clients.session``.
"""

from __future__ import annotations

from optimize.errors import UserError


class ClientError(UserError):
    """A request that got no answer; the message names the thing, what was expected, what came and what to do."""


class InvalidRequest(ClientError, ValueError):
    """The request does not fit the model: a name, dtype, shape, batch or value is wrong."""


class ModelNotFound(ClientError, LookupError):
    """The server knows no model of that name, or not in that version."""


class ModelNotReady(ClientError):
    """The server knows the model but does not serve it now."""


class ServerUnavailable(ClientError, ConnectionError):
    """Nobody answers at the address, or the server turns work away. The request was not run."""


class TooManyStreams(ServerUnavailable):
    """The model has as many streams as it may have, and none that has been silent for long enough."""


class ConnectionLost(ClientError, ConnectionError):
    """The connection broke after the request was sent. It may have run or not."""


class SessionLost(ClientError, ConnectionError):
    """The stream broke, or the server no longer knows it: a new session starts from nothing.

    answered: how many chunks were answered before, in order and without a gap; those answers stand.
    """

    def __init__(self, message: str, answered: int = 0) -> None:
        super().__init__(message)
        self.answered = answered


class DeadlineExceeded(ClientError, TimeoutError):
    """The answer did not come in time. The request may still be running."""


class NotRun(DeadlineExceeded):
    """The deadline passed while the request waited in the server, which did not run it. A stream's state is as before.

    It may be sent again.
    """


class ServerError(ClientError):
    """The server failed while answering, or its answer breaks its own description of the model."""
