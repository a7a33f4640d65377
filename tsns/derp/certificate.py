"""How a DERP relay's certificate is judged (ring 0: certificates and a date in, a verdict out).

Source: tailcfg.DERPNode and net/tlsdial of Tailscale's module; RFC 6125 for names. A relay's CertName in the DERP map is one of

    empty                the system's roots and the host name decide, as everywhere
    another name         the system's roots and that name decide; the host is still asked for by its own name
    sha256-raw:<hex>     the certificate has this hash, is made for the host's name, and is in date; nobody needs to vouch for it
"""

from __future__ import annotations

import hashlib
import ipaddress
from datetime import datetime
from typing import Final

from cryptography import x509

PIN_PREFIX: Final = "sha256-raw:"
UNREADABLE: Final = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def fault_of_name(der: bytes, name: str) -> str | None:
    """Why this certificate is not for `name` (a host name or an address); None when it is."""
    try:
        return None if covers(x509.load_der_x509_certificate(der), name) else f"the certificate is not for {name}"
    except UNREADABLE:
        return "the certificate cannot be read"


def fault_of_pin(der: bytes, cert_name: str, name: str, today: datetime) -> str | None:
    """Why this certificate is not the pinned one of host `name` on this day; None when it is."""
    if hashlib.sha256(der).hexdigest() != cert_name.removeprefix(PIN_PREFIX).lower():
        return "the certificate is not the one that the DERP map names"
    try:
        certificate = x509.load_der_x509_certificate(der)
        if not certificate.not_valid_before_utc <= today <= certificate.not_valid_after_utc:
            return "the certificate is out of date"
        return None if covers(certificate, name) else f"the certificate is not for {name}"
    except UNREADABLE:
        return "the certificate cannot be read"


def covers(certificate: x509.Certificate, name: str) -> bool:
    """Whether the certificate's alternative names hold this host name or address; one of `UNREADABLE` if they cannot be read."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return any(_matches(pattern, name) for pattern in alternatives.get_values_for_type(x509.DNSName))
    return address in alternatives.get_values_for_type(x509.IPAddress)


def _matches(pattern: str, name: str) -> bool:
    """Whether a name of a certificate, with a `*` for its first label perhaps, means this host."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if not pattern.startswith("*."):
        return pattern == name
    first, dot, rest = name.partition(".")
    return bool(first and dot) and "." in rest and rest == pattern[2:]
