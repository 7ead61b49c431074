"""A certificate for trying the front door out: self-signed, so clients must be given it as their authority."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.errors import UserError
from serving.front_door.tokens import write_private

if TYPE_CHECKING:
    from cryptography import x509

VALID = datetime.timedelta(days=90)
_NAME = "seqserve front door"


def make(certificate: Path, key: Path, host: str) -> None:
    """Write both, for this machine's names and the address ``host``. An elliptic curve key, TLS 1.2 and 1.3."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
         "encipher_only", "decipher_only"), False)  # fmt: skip
    builder = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_general(each) for each in names(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    signed = builder.sign(private, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_private(key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    certificate.write_bytes(signed.public_bytes(pem))


def check(certificate: Path, host: str) -> bool:
    """Whether it can be used: valid for a day to come and, if `make` made it, for ``host``; if not, make another.

    Raises UserError for one from elsewhere that has expired.
    """
    from cryptography import x509

    known = x509.load_pem_x509_certificate(certificate.read_bytes())
    ours = known.subject.rfc4514_string() == f"CN={_NAME}"
    now = datetime.datetime.now(datetime.UTC)
    if not ours:
        if known.not_valid_after_utc < now:
            raise UserError(f"'{certificate}' expired on {known.not_valid_after_utc:%Y-%m-%d}; replace it and its key")
        return True
    listed = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return known.not_valid_after_utc > now + datetime.timedelta(days=1) and all(
        _general(each) in listed for each in names(host)
    )


def names(host: str) -> Sequence[str]:
    """What clients may call this machine."""
    given = [] if host in ("0.0.0.0", "::") else [host]
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), *given]))


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
