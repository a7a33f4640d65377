"""What the lab's control server can be told to do badly, or just differently (pure).

The attributes of `Faults` hold for everything that is sent after they were set; `fail` and `rewrite` are for single messages.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import zstandard

from tsns.keys import MachinePublic
from tsns.lab.dialect import Dialect
from tsns.lab.tailnet import LabNode
from tsns.proto.types import MapResponse

_LENGTH: Final = struct.Struct("<I")


class EarlyPayload(enum.StrEnum):
    """How the early payload comes."""

    WHOLE = "whole"
    SPLIT = "split"  # over five records, one of them empty
    ABSENT = "absent"


class Compression(enum.StrEnum):
    """What becomes of a message for a client that asked for zstd."""

    ZSTD = "zstd"
    ZSTD_SIZELESS = "zstd without content size"
    ZSTD_FRAMES = "several zstd frames in one message"
    PLAIN = "none"


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is none."""

    status: int
    body: str
    retry_after: str | None


@dataclass(slots=True)
class Faults:
    """Faults and variants of a control server."""

    early_payload: EarlyPayload = EarlyPayload.WHOLE
    glued: bool = True  # Noise response, early payload and SETTINGS in one segment with the 101
    bytewise: bool = False  # each byte is written by itself
    empty_records: bool = False  # an empty record goes before each other
    compression: Compression = Compression.ZSTD
    dialect: Dialect = field(default_factory=Dialect)
    noise_error: str = ""  # an error frame with this text instead of the Noise response
    minimum_version: int = 0  # whoever claims less finds the connection closed after the 101, as at Headscale
    announced_key: MachinePublic | None = None  # what GET /key says instead of the truth
    mute: bool = False  # requests within Noise are read and never answered
    no_keep_alives: bool = False
    clock_offset_s: float = 0.0  # of ControlTime and of all that is decided by the clock
    rewrite: Callable[[LabNode, MapResponse, bool], MapResponse | bytes] | None = None  # (node, message, first) -> JSON
    failures: dict[str, list[Failure]] = field(default_factory=dict)

    def fail(self, path: str, status: int, body: str = "", *, times: int = 1, retry_after: str | None = None) -> None:
        """Answer the next `times` requests for a path (`/key`, `/ts2021`, `/machine/register`, `/machine/map`) like this."""
        self.failures.setdefault(path, []).extend([Failure(status, body, retry_after)] * times)

    def next_failure(self, path: str) -> Failure | None:
        """The failure that is due for this path; it is then done with."""
        due = self.failures.get(path)
        return due.pop(0) if due else None

    def message(self, node: LabNode, response: MapResponse | bytes, *, first: bool) -> bytes:
        """A message of the netmap stream as JSON."""
        if isinstance(response, bytes):
            return response
        if self.rewrite is not None:
            rewritten = self.rewrite(node, response, first)
            if isinstance(rewritten, bytes):
                return rewritten
            response = rewritten
        return self.dialect.encode(response, first=first)

    def frame(self, message: bytes, *, zstd: bool) -> bytes:
        """A message with its length, compressed if the client asked for it."""
        payload = self._compressed(message) if zstd else message
        return _LENGTH.pack(len(payload)) + payload

    def early_records(self, plaintext: bytes) -> Sequence[bytes]:
        """The early payload's plaintext, one piece for each record that it comes in."""
        if self.early_payload is EarlyPayload.ABSENT:
            return []
        if self.early_payload is EarlyPayload.WHOLE:
            return [plaintext]
        return [plaintext[:3], plaintext[3:7], b"", plaintext[7:40], plaintext[40:]]

    def _compressed(self, message: bytes) -> bytes:
        if self.compression is Compression.PLAIN:
            return message
        if self.compression is Compression.ZSTD_FRAMES:
            half = len(message) // 2
            compressor = zstandard.ZstdCompressor(level=1)
            return compressor.compress(message[:half]) + compressor.compress(message[half:])
        sized = self.compression is Compression.ZSTD
        return zstandard.ZstdCompressor(level=1, write_content_size=sized).compress(message)


def json(value: object) -> bytes:
    """Any JSON, for messages that the types do not allow."""
    return msgspec.json.encode(value)
