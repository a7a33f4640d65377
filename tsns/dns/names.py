"""DNS names as dictionary keys, and the names that stand for addresses (ring 0).

A key is the name's wire form in lower case (RFC 1035 3.1; RFC 4343): a few dozen bytes that are compared at once, and unlike a dotted
text unambiguous, for a label may contain a dot. Lower-casing all of it is safe: a length is at most 63, below every letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tsns.proto.addresses import pack

ROOT: Final = b"\0"
MAX_LABEL_BYTES: Final = 63
MAX_NAME_BYTES: Final = 255

_HEX: Final = "0123456789abcdef"
_ARPA: Final = b"\4arpa\0"
_VIA_MARK: Final = "-via-"
_VIA_PREFIX: Final = bytes.fromhex("fd7a115ca1e00b1a")  # fd7a:115c:a1e0:b1a::/64; a site and an IPv4 address follow


def key_of(text: str) -> bytes:
    """The key of a name in dotted form, with or without a final dot; ValueError where it is none in ASCII."""
    if not text.isascii():
        raise ValueError("not a name in ASCII")
    parts = []
    for label in text.lower().encode().removesuffix(b".").split(b"."):
        if not 0 < len(label) <= MAX_LABEL_BYTES:
            raise ValueError("not a name: a label has 1 to 63 bytes")
        parts.append(len(label).to_bytes(1, "big") + label)
    key = b"".join(parts) + ROOT
    if len(key) > MAX_NAME_BYTES:
        raise ValueError("too long for a name")
    return key


def parent(key: bytes) -> bytes:
    """The name without its first label; the root is its own parent."""
    return key[1 + key[0] :] or ROOT


def ancestors(key: bytes) -> Iterator[bytes]:
    """The name itself, its parent, and so on, the root last."""
    while key != ROOT:
        yield key
        key = parent(key)
    yield ROOT


def labels(key: bytes) -> list[bytes]:
    """The labels, without the root's empty one."""
    return [name[1 : 1 + name[0]] for name in ancestors(key) if name != ROOT]


def reverse_key(address: bytes) -> bytes:
    """The name under which a packed address is looked up (RFC 1035 3.5, RFC 3596 2.5)."""
    if len(address) == 4:
        return key_of(".".join(str(byte) for byte in reversed(address)) + ".in-addr.arpa")
    return key_of(".".join(reversed(address.hex())) + ".ip6.arpa")


def reversed_address(key: bytes) -> bytes | None:
    """The packed address that a name of `reverse_key`'s form stands for."""
    if not key.endswith(_ARPA):
        return None
    *parts, zone, top = [label.decode("latin-1") for label in labels(key)] if parent(key) != ROOT else ("", "")
    if (zone, top) == ("in-addr", "arpa") and len(parts) == 4:
        text = ".".join(reversed(parts))
        try:
            return pack(text)
        except ValueError:
            return None
    if (zone, top) == ("ip6", "arpa") and len(parts) == 32 and all(len(part) == 1 and part in _HEX for part in parts):
        return bytes.fromhex("".join(reversed(parts)))
    return None


_VIA_PARENTS: Final = frozenset(key_of(name) for name in ("ts.net", "tailscale.net"))


def via_address(key: bytes) -> bytes | None:
    """The IPv6 address that `192-168-1-2-via-SITE` names: an IPv4 address at one of several sites that all use it (4via6).

    Such a name stands alone or somewhere under ts.net or tailscale.net; the site is a number, decimal or with 0x.
    """
    if _VIA_MARK.encode() not in key:
        return None
    rest = parent(key)
    if rest != ROOT and not any(name in _VIA_PARENTS for name in ancestors(rest)):
        return None
    host, mark, site = key[1 : 1 + key[0]].decode("latin-1").partition(_VIA_MARK)
    if not mark:
        return None
    try:
        return _VIA_PREFIX + _site(site).to_bytes(4, "big") + pack(host.replace("-", "."))
    except (ValueError, OverflowError):
        return None


def _site(text: str) -> int:
    digits, base = (text[2:], 16) if text.startswith("0x") else (text, 10)
    if not digits.isalnum():  # int() would also take signs, blanks and underscores
        raise ValueError("not a number")
    return int(digits, base)
