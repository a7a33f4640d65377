"""Keys as types that cannot be mixed up, with their text forms (ring 0).

Texts are `prefix:hex` as Tailscale writes them (types/key of its source). Public keys are values: comparable, hashable, printable.
Private keys show nothing of themselves: `reveal()` is the one way to their text, for the state file alone.
All but the lock keys are X25519; the lock keys are Ed25519.
"""

from __future__ import annotations

import base64
import hmac
from typing import ClassVar, Final, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES: Final = 32


def _from_hex(text: str, prefixes: tuple[str, ...], size: int) -> bytes:
    prefix, separator, digits = text.partition(":")
    if not separator or prefix not in prefixes or len(digits) != 2 * size:
        raise ValueError(f"not a key of the form {prefixes[0]}:<{2 * size} hex digits>")
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != size:  # fromhex also passes over blanks
        raise ValueError(f"not a key of the form {prefixes[0]}:<{2 * size} hex digits>")
    return raw


class PublicKey:
    """32 bytes that name somebody; made from `raw` bytes or by `parse`. ValueError for anything of another form."""

    __slots__ = ("raw",)
    PREFIXES: ClassVar[tuple[str, ...]]  # the first one is written, all are read

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a {type(self).__name__} has {KEY_BYTES} bytes, not {len(raw)}")
        self.raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; hexadecimal digits of either case."""
        return cls(_from_hex(text, cls.PREFIXES, KEY_BYTES))

    @classmethod
    def parse_optional(cls, text: str | None) -> Self | None:
        """Read a text form in which nothing, the empty text and the all-zero key mean that there is no key."""
        if not text:
            return None
        key = cls.parse(text)
        return None if key.raw == bytes(KEY_BYTES) else key

    def __str__(self) -> str:
        return f"{self.PREFIXES[0]}:{self.raw.hex()}"

    @property
    def short(self) -> str:
        """The form for logs: `[5 characters of base64]`."""
        return f"[{base64.b64encode(self.raw)[:5].decode()}]"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.short}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)


class MachinePublic(PublicKey):
    """A device towards control, or control itself: the static keys of the Noise handshake."""

    __slots__ = ()
    PREFIXES = ("mkey",)


class NodePublic(PublicKey):
    """A node towards its peers: the WireGuard key, and its name at a DERP relay."""

    __slots__ = ()
    PREFIXES = ("nodekey",)


class DiscoPublic(PublicKey):
    """A node's key for path discovery; a new one with each process."""

    __slots__ = ()
    PREFIXES = ("discokey",)


class ChallengePublic(PublicKey):
    """Control's challenge in the early payload of a Noise connection."""

    __slots__ = ()
    PREFIXES = ("chalpub",)


class LockPublic(PublicKey):
    """A node's Ed25519 key for Tailnet Lock."""

    __slots__ = ()
    PREFIXES = ("nlpub", "tlpub")


class PrivateKey:
    """A secret of 32 bytes. Never printed, never pickled; `raw` is for the arithmetic, `reveal()` for the state file."""

    __slots__ = ("raw",)
    PREFIX: ClassVar[str]

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a {type(self).__name__} has {KEY_BYTES} bytes")
        self.raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `reveal` wrote; the error does not repeat the text."""
        return cls(_from_hex(text, (cls.PREFIX,), KEY_BYTES))

    def reveal(self) -> str:
        """The secret as text."""
        return f"{self.PREFIX}:{self.raw.hex()}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(other.raw, self.raw)

    __hash__ = None  # type: ignore[assignment]  # a secret is nobody's dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not serialised")


def _clamped(entropy: bytes) -> bytes:
    """The private X25519 key in the form in which Tailscale keeps it (types/key/util.go)."""
    raw = bytearray(entropy)
    raw[0] &= 0xF8
    raw[31] = (raw[31] & 0x7F) | 0x40
    return bytes(raw)


class X25519Private(PrivateKey):
    """A private key for Diffie-Hellman; kept clamped, as Tailscale keeps it."""

    __slots__ = ()

    @classmethod
    def generate(cls, entropy: bytes) -> Self:
        """A new key from 32 random bytes."""
        return cls(_clamped(entropy))

    def _public_raw(self) -> bytes:
        return X25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw()


class MachinePrivate(X25519Private):
    """A device's key towards control."""

    __slots__ = ()
    PREFIX = "privkey"

    @property
    def public(self) -> MachinePublic:
        return MachinePublic(self._public_raw())


class NodePrivate(X25519Private):
    """A node's WireGuard and DERP key."""

    __slots__ = ()
    PREFIX = "privkey"

    @property
    def public(self) -> NodePublic:
        return NodePublic(self._public_raw())


class DiscoPrivate(X25519Private):
    """A node's key for path discovery; lives in memory only."""

    __slots__ = ()
    PREFIX = "discopriv"

    @property
    def public(self) -> DiscoPublic:
        return DiscoPublic(self._public_raw())


class LockPrivate(PrivateKey):
    """A node's Ed25519 seed for Tailnet Lock. Its text holds seed and public key."""

    __slots__ = ()
    PREFIX = "nlpriv"

    @classmethod
    def generate(cls, entropy: bytes) -> Self:
        """A new key from 32 random bytes."""
        return cls(entropy)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `reveal` wrote; ValueError also where the two halves do not belong together."""
        raw = _from_hex(text, (cls.PREFIX,), 2 * KEY_BYTES)
        key = cls(raw[:KEY_BYTES])
        if key.public.raw != raw[KEY_BYTES:]:
            raise ValueError("the halves of this nlpriv key do not belong together")
        return key

    def reveal(self) -> str:
        """The secret as text."""
        return f"{self.PREFIX}:{self.raw.hex()}{self.public.raw.hex()}"

    @property
    def public(self) -> LockPublic:
        return LockPublic(Ed25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw())
