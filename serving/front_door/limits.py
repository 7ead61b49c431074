"""How much one client, and all of them together, may ask for.

A client is who the token names, or without tokens an address. What is over a limit is refused at once, with
UNAVAILABLE or 503 (429 over the rate), and Retry-After.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from optimize.errors import UserError

_PARTS = {"client_streams": "streams", "client_requests": "requests", "json_bytes": "body_bytes"}


@dataclass(frozen=True)
class Limits:
    """streams, requests: at the same time. Sizes are of unary requests; a stream may carry any number of bytes.

    client_rate_per_s: requests and streams begun, with bursts of client_burst more. body_bytes are held in memory
    until the request is complete. json_bytes: the part of an HTTP body that is JSON. request_s: for a unary request's
    answer. client_s: between two reads of a request's head or body, so a slow client is let go.
    """

    streams: int = 1024
    client_streams: int = 256
    requests: int = 256
    client_requests: int = 64
    client_rate_per_s: int = 2000
    client_burst: int = 400
    body_bytes: int = 16 * 2**20
    json_bytes: int = 256 * 2**10
    json_depth: int = 32
    request_s: int = 60
    client_s: int = 10
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise UserError(f"limit '{field.name}' is {value!r}; expected a whole number from 1 up")
        for part, whole in _PARTS.items():
            if getattr(self, part) > getattr(self, whole):
                raise UserError(
                    f"limit '{part}' is {getattr(self, part)}; expected at most '{whole}', {getattr(self, whole)}"
                )

    @classmethod
    def read(cls, file: Path) -> Self:
        """From JSON: an object with any of the fields. Raises UserError."""
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--limits {file}: cannot be read as JSON ({error})") from None
        known = asdict(cls())
        if not isinstance(values, dict) or not values.keys() <= known.keys():
            unknown = ", ".join(sorted(values.keys() - known.keys())) if isinstance(values, dict) else "no object"
            raise UserError(f"--limits {file}: expected an object with any of {', '.join(known)}; got {unknown}")
        return cls(**values)
