"""Signed, expiring tokens: ``subject.expiry.signature``, sent as ``Authorization: Bearer ...``.

The subject says who asks: limits are counted for it. expiry: seconds since 1970. signature: HMAC-SHA256 of
``subject.expiry`` under the door's key, in base64url. The key lies in a file that only its owner may read, in the form
in which nginx includes it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from optimize.errors import UserError

SUBJECT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY_FILE = 'map "" $token_key {{ default {key}; }}\n'
_KEY = re.compile(r'map "" \$token_key \{ default ([0-9a-f]{64}); \}\n')
_DURATION = re.compile(r"(\d{1,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def issue(key: str, subject: str, expires_at_s: int) -> str:
    """A token. Raises UserError where the subject is none."""
    if not SUBJECT.fullmatch(subject):
        raise UserError(f"--subject '{subject}': expected 1 to 64 letters, digits, '-' and '_'")
    signed = f"{subject}.{expires_at_s}"
    signature = hmac.digest(bytes.fromhex(key), signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def duration_s(text: str) -> int:
    """Seconds of "90s", "15m", "1h" or "30d". Raises UserError."""
    match = _DURATION.fullmatch(text)
    if not match or not int(match[1]):
        raise UserError(f"--expires {text}: expected a number with s, m, h or d, such as 1h")
    return int(match[1]) * _UNITS_S[match[2]]


def read_key(file: Path) -> str:
    """The key, 64 hexadecimal digits. Raises UserError where it is none, or others may read it."""
    try:
        mode, content = file.stat().st_mode, file.read_text()
    except OSError as error:
        raise UserError(
            f"token key '{file}': {error.strerror}; 'python -m serving --secure' makes one, or name it with --key"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"token key '{file}' can be read by others (mode {stat.S_IMODE(mode):04o}); chmod 600 it")
    match = _KEY.fullmatch(content)
    if not match:
        raise UserError(f"token key '{file}' cannot be read; remove it, and 'python -m serving --secure' makes another")
    return match[1]


def new_key(file: Path) -> None:
    """Write a new key, unless there is one."""
    if not file.exists():
        write_private(file, _KEY_FILE.format(key=secrets.token_hex(32)))


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, complete or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    unfinished.replace(file)
