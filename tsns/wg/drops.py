"""Why the tunnel lets packets and messages go (ring 0)."""

from __future__ import annotations

import enum


class Drop(enum.StrEnum):
    """Why the tunnel let a packet or message go."""

    BAD_FRAME = "malformed frame from the TUN"
    NO_PEER = "no peer for the destination"
    BAD_PEER_KEY = "peer key of low order"
    STAGED_FULL = "queue before the session full"
    STAGED_TOO_LONG = "waited too long for a session"
    STAGED_GIVEN_UP = "no session came about"
    MALFORMED = "not a WireGuard message"
    WRONG_MAC1 = "mac1 not for our key"
    UNDER_LOAD = "answered with a cookie"
    NO_COOKIE_LEFT = "not even answered with a cookie"
    OVERLOADED = "more handshakes than there is time for"
    RATE_LIMITED = "source over its handshake rate"
    UNKNOWN_SENDER = "initiation of a stranger"
    BAD_HANDSHAKE = "handshake not authentic"
    REPLAYED_INITIATION = "initiation not newer than the last"
    INITIATION_TOO_SOON = "initiations in too quick succession"
    SUPERSEDED_RESPONSE = "response to an initiation that was repeated"
    UNKNOWN_INDEX = "no session or handshake of this index"
    BAD_COOKIE_REPLY = "cookie reply not authentic"
    SESSION_EXPIRED = "session too old"
    REPLAYED = "counter seen before or too old"
    NOT_AUTHENTIC = "packet not authentic"
    BAD_INNER_PACKET = "inner packet malformed"
    SOURCE_NOT_ALLOWED = "inner source not the sender's"
