"""Tokens and their key, and the certificate: what `serving.token` prints, and who may read what."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from optimize.errors import UserError
from serving import token
from serving.front_door import certificates, credentials, tokens

KNOWN = "alice.1700000000.Z_2uLr0VoBDBXvaFyFa51I-7U9uqf4Dx3ec9DxGwnpw"


def test_a_known_token() -> None:
    """Computed with `printf alice.1700000000 | openssl dgst -sha256 -mac HMAC -macopt hexkey:00...00 -binary`."""
    assert tokens.issue("00" * 32, "alice", 1_700_000_000) == KNOWN


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.new_key(tmp_path / "token.key")
    key = tokens.read_key(tmp_path / "token.key")
    assert token.main(["--subject", "alice", "--expires", "8h", "--key", str(tmp_path / "token.key")]) == 0
    printed = capsys.readouterr().out.strip()
    expiry = int(printed.split(".")[1])
    assert abs(expiry - time.time() - 8 * 3600) < 10
    assert printed == tokens.issue(key, "alice", expiry)
    assert key not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subject", "a.b"], "1 to 64 letters"),
        (["--subject", ""], "1 to 64 letters"),
        (["--subject", "alice", "--expires", "soon"], "expected a number with s, m, h or d"),
        (["--subject", "alice", "--expires", "0h"], "expected a number with s, m, h or d"),
        (["--subject", "alice", "--key", "nowhere/token.key"], "'python -m serving --secure' makes one"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.new_key(tmp_path / "token.key")
    assert token.main(["--key", str(tmp_path / "token.key"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token.key"
    tokens.new_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(UserError, match=r"can be read by others \(mode 0640\); chmod 600 it"):
        tokens.read_key(file)
    tokens.write_private(file, "secret\n")
    with pytest.raises(UserError, match="cannot be read; remove it"):
        tokens.read_key(file)


def test_credentials_are_made_once_and_are_private(tmp_path: Path) -> None:
    made = credentials.prepare(tmp_path / "door", "127.0.0.1")
    files = (made.certificate, made.certificate_key, made.token_key)
    before = [file.read_bytes() for file in files]
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert all(
        stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (made.certificate_key, made.token_key, made.token)
    )
    assert made.token.read_text().startswith("trial.")
    credentials.prepare(tmp_path / "door", "127.0.0.1")
    assert [file.read_bytes() for file in files] == before
    credentials.prepare(tmp_path / "door", "10.1.2.3")  # another address: another certificate, the same key of tokens
    assert made.certificate.read_bytes() != before[0]
    assert made.token_key.read_bytes() == before[2]


def test_the_certificate_is_strictly_valid_for_every_name(tmp_path: Path) -> None:
    made = credentials.prepare(tmp_path, "0.0.0.0")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.certificate_key)
    client = ssl.create_default_context(cafile=made.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in certificates.names("0.0.0.0"):
        handshake(client, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, "elsewhere.example")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Both ends in memory."""
    ends = [ssl.MemoryBIO() for _ in range(2)]
    asking = client.wrap_bio(ends[0], ends[1], server_hostname=name)
    answering = server.wrap_bio(ends[1], ends[0], server_side=True)
    for end in (asking, answering, asking):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def foreign(folder: Path, days: int) -> None:
    """A certificate from elsewhere that ends in so many days."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "door.example")])
    end = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - datetime.timedelta(days=10), end)
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "certificate.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_a_certificate_from_elsewhere_is_never_replaced(tmp_path: Path) -> None:
    foreign(tmp_path, days=5)
    before = (tmp_path / "certificate.pem").read_bytes()
    credentials.prepare(tmp_path, socket.gethostname())
    foreign_after = (tmp_path / "certificate.pem").read_bytes()
    assert foreign_after == before
    foreign(tmp_path, days=-1)
    with pytest.raises(UserError, match=r"certificate\.pem' expired on .*; replace it and its key"):
        credentials.prepare(tmp_path, "localhost")
    (tmp_path / "certificate.pem").write_text("nothing")
    with pytest.raises(UserError, match="is no certificate"):
        credentials.prepare(tmp_path, "localhost")
    (tmp_path / "certificate.pem").unlink()
    with pytest.raises(UserError, match=r"certificate\.key' is there but 'certificate\.pem' is not"):
        credentials.prepare(tmp_path, "localhost")
