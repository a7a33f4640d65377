"""The four WireGuard messages: their types, sizes and where their parts lie (ring 0).

Source: WireGuard paper 5.4. The first byte is the type, the next three are zero; sizes are exact but for the transport
message.

    1 initiation  148   sender 4:8    ephemeral 8:40   static 40:88   timestamp 88:116   mac1 116:132   mac2 132:148
    2 response     92   sender 4:8    receiver 8:12    ephemeral 12:44   empty 44:60     mac1 60:76     mac2 76:92
    3 cookie       64   receiver 4:8  nonce 8:32       sealed cookie 32:64
    4 transport  >=32   receiver 4:8  counter 8:16     sealed packet 16:
"""

from __future__ import annotations

import enum
from typing import Final

KEY_BYTES: Final = 32
INDEX_BYTES: Final = 4
TAG_BYTES: Final = 16
MAC_BYTES: Final = 16
COOKIE_BYTES: Final = 16
COOKIE_NONCE_BYTES: Final = 24
TIMESTAMP_BYTES: Final = 12

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_REPLY_BYTES: Final = 64
TRANSPORT_HEADER_BYTES: Final = 16
MIN_TRANSPORT_BYTES: Final = TRANSPORT_HEADER_BYTES + TAG_BYTES  # a keepalive

MACS_BYTES: Final = 2 * MAC_BYTES  # what follows the authenticated body of messages 1 and 2


class MessageType(enum.IntEnum):
    """Wire codes, the first byte of a message."""

    INITIATION = 1
    RESPONSE = 2
    COOKIE_REPLY = 3
    TRANSPORT = 4


INITIATION_HEAD: Final = bytes((MessageType.INITIATION, 0, 0, 0))
RESPONSE_HEAD: Final = bytes((MessageType.RESPONSE, 0, 0, 0))
COOKIE_REPLY_HEAD: Final = bytes((MessageType.COOKIE_REPLY, 0, 0, 0))
TRANSPORT_HEAD: Final = bytes((MessageType.TRANSPORT, 0, 0, 0))
