"""Self-signed certificates for the lab's relays, pinned in the DERP map by their hash (ring 1).

Source: the `sha256-raw:` form of DERPNode.CertName, as net/tlsdial of Tailscale's module reads it: one certificate, the SHA-256 of
its DER, the name asked for among its names, and its dates; no chain.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BACKDATED: Final = timedelta(hours=1)  # for clocks that are behind
VALID: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its private key, as one PEM text each."""

    certificate: bytes
    private_key: bytes
    sha256: str  # of the DER, lower-case hexadecimal

    @property
    def cert_name(self) -> str:
        """What pins this certificate in a DERPNode's CertName."""
        return f"sha256-raw:{self.sha256}"

    def server_context(self) -> ssl.SSLContext:
        """A TLS context that presents it. The key touches no disk: OpenSSL reads it from a file in memory."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        fd = os.memfd_create("tsns-lab-certificate", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(self.private_key + self.certificate)
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context

    def __repr__(self) -> str:
        return f"<Certificate {self.sha256[:12]}>"


def make(names: Sequence[str], *, since: datetime | None = None, valid: timedelta = VALID) -> Certificate:
    """A certificate for host names and addresses, signed by itself; by default valid now, for a month."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    start = since or datetime.now(UTC) - BACKDATED
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + valid)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    return Certificate(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        private_key=private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        sha256=hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest(),
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
