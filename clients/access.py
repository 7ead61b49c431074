"""How a client gets in: over TLS, and with a token that says who asks.

clients.connect("door.example:8001", tls=True, token=token)  # a certificate that this machine trusts
clients.connect("127.0.0.1:8001", tls=Path("certificate.pem"), token=token)  # one that is in the file
"""

from __future__ import annotations

import argparse
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.errors import ClientError

_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Access:
    """tls: True, or a PEM file of the authorities to trust instead of this machine's. Raises ClientError.

    A token goes over TLS only.
    """

    tls: bool | Path = False
    token: str = ""

    def __post_init__(self) -> None:
        if self.token and not self.tls:
            raise ClientError("a token must not travel in plain text; connect with tls=... (--tls or --tls-ca) too")
        if self.token and not _TOKEN.fullmatch(self.token):
            raise ClientError("the token: expected one printable word, its text and not the name of a file")
        if not isinstance(self.tls, bool | Path):
            raise ClientError(f"tls={self.tls!r}: expected True, or the Path of a PEM file, such as Path('ca.pem')")
        if isinstance(self.tls, Path):
            try:
                ssl.create_default_context(cafile=self.tls)
            except (OSError, ssl.SSLError) as error:
                why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no PEM certificate"
                raise ClientError(f"the certificates to trust, '{self.tls}': {why}") from None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def authorities(self) -> Path | None:
        """The file of certificates to trust, or None for this machine's."""
        return self.tls if isinstance(self.tls, Path) else None


PLAIN = Access()


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--tls", action="store_true", help="the server's certificate is one that this machine trusts")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="TLS; trust the certificates in this file instead")
    parser.add_argument(
        "--token", type=Path, metavar="FILE", help="a file that holds the token (python -m serving.token)"
    )


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """``tls`` and ``token`` of `connect`, from the options. Raises ClientError for a file that cannot be read."""
    try:
        token = options.token.read_text().strip() if options.token else ""
    except (OSError, ValueError) as error:
        raise ClientError(f"--token {options.token}: cannot be read ({error})") from None
    return {"tls": options.tls_ca or options.tls, "token": token}
