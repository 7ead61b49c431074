"""The folder with what a secure front door needs; what is missing is made, for trying it out.

certificate.pem  certificate.key   your own, or self-signed
token.key                          signs tokens: `python -m serving.token`
token                              a token for trying it out, valid for a day; new with every start
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from optimize.errors import UserError
from serving.front_door import certificates, tokens

DEFAULT_FOLDER = Path("artifacts/front_door")
TRIAL_SUBJECT = "trial"
_TRIAL_S = 86_400


@dataclass(frozen=True)
class Credentials:
    """The files of one folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def certificate_key(self) -> Path:
        return self.folder / "certificate.key"

    @property
    def token_key(self) -> Path:
        return self.folder / "token.key"

    @property
    def token(self) -> Path:
        return self.folder / "token"


def prepare(folder: Path, host: str) -> Credentials:
    """Make what is missing in ``folder``, and a new token. Raises UserError where what is there is of no use."""
    credentials = Credentials(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = (credentials.certificate, credentials.certificate_key)
    if files[0].exists() != files[1].exists():
        there, missing = sorted(files, key=lambda file: not file.exists())
        raise UserError(f"'{there}' is there but '{missing.name}' is not; add it, or remove both to have them made")
    try:
        if not files[0].exists() or not certificates.check(files[0], host):
            certificates.make(*files, host)
    except ValueError as error:
        raise UserError(f"'{files[0]}' is no certificate ({error}); replace it, or remove it and its key") from None
    tokens.new_key(credentials.token_key)
    key = tokens.read_key(credentials.token_key)
    tokens.write_private(credentials.token, tokens.issue(key, TRIAL_SUBJECT, int(time.time()) + _TRIAL_S) + "\n")
    return credentials
