"""TAI64N time stamps for initiations (ring 0).

Source: WireGuard paper 5.1 and 5.4.2; D. J. Bernstein's TAI64. The low 24 bits of the nanoseconds are cleared, so that
a stamp does not tell more of our clock than it must: one step is about 16.8 ms. A peer refuses a stamp that is not
greater than the last one it accepted, so stamps towards a peer never repeat and never go back, whatever the wall clock
does.

Stamps are handled as integers `seconds << 32 | nanoseconds`, which sort as the bytes do.
"""

from __future__ import annotations

from typing import Final

TAI_EPOCH_S: Final = 0x400000000000000A  # 1970 in TAI64, with the ten leap seconds of that day
STEP_NS: Final = 1 << 24
SECOND_NS: Final = 1_000_000_000
_NANOSECONDS_MASK: Final = 0xFFFFFFFF ^ (STEP_NS - 1)


def stamp(wall_clock_s: float) -> int:
    """The stamp of a Unix time in seconds; times before 1970 count as 1970."""
    total_ns = max(0, int(wall_clock_s * SECOND_NS))
    seconds, nanoseconds = divmod(total_ns, SECOND_NS)
    return seconds << 32 | nanoseconds & _NANOSECONDS_MASK


def following(previous: int) -> int:
    """The least stamp that is greater."""
    seconds, nanoseconds = previous >> 32, (previous & 0xFFFFFFFF) + STEP_NS
    if nanoseconds >= SECOND_NS:
        return (seconds + 1) << 32
    return seconds << 32 | nanoseconds


def encode(value: int) -> bytes:
    """A stamp as its 12 bytes."""
    return (TAI_EPOCH_S + (value >> 32)).to_bytes(8, "big") + (value & 0xFFFFFFFF).to_bytes(4, "big")
