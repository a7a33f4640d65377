r"""The netmap on paper, for a start while control is away (ring 0).

    "tsns netmap 1\n" | one zstd frame of one MapResponse as JSON, as if control had sent it as the first of a stream

It holds nothing that control has not told, and no key of ours but the public one that it was told for: another node key makes it void.
What changes by itself, such as who is online, is not worth a new one; health messages are not kept.
"""

from __future__ import annotations

from typing import Final

from tsns.control.map_stream import MAX_COMPRESSED_BYTES, FrameWriter, MapStream
from tsns.control.netmap import NetMap, NetMapChange
from tsns.error import ProtocolError
from tsns.keys import NodePublic
from tsns.proto.types import MapResponse, Node, TKAInfo, encode
from tsns.steps import Steps, finish

HEADER: Final = b"tsns netmap 1\n"
MAX_BYTES: Final = MAX_COMPRESSED_BYTES
PEERS_AT_ONCE: Final = 32


def dump(netmap: NetMap) -> bytes | None:
    """The netmap as a file's content; None where there is none, or it is too large to be kept."""
    return finish(dumping(netmap))


def dumping(netmap: NetMap) -> Steps[bytes | None]:
    """The same in short steps; of the peers, those that were there at the first of them."""
    if netmap.self_node is None:
        return None
    rest = MapResponse(
        node=netmap.self_node,
        derp_map=netmap.derp_map,
        packet_filter=list(netmap.rules),
        dns_config=netmap.dns,
        user_profiles=list(netmap.user_profiles.values()),
        domain=netmap.domain,
        tka_info=netmap.tka if netmap.locked else TKAInfo(disabled=True),
    )
    peers = list(netmap.peers.values())
    writer = FrameWriter()
    writer.write(encode(rest).removesuffix(b"}") + b',"Peers":[')
    for start in range(0, len(peers), PEERS_AT_ONCE):
        yield
        writer.write((b"," if start else b"") + encode(peers[start : start + PEERS_AT_ONCE])[1:-1])
    writer.write(b"]}")
    data = HEADER + writer.frame()
    return data if len(data) <= MAX_BYTES else None


def load(data: bytes, key: NodePublic) -> MapResponse:
    """What `dump` wrote for this node key of ours; ProtocolError, which says what is wrong with it, for anything else."""
    if not data.startswith(HEADER):
        raise ProtocolError("it is not a netmap that this version knows")
    messages = MapStream().feed(data[len(HEADER) :])
    if len(messages) != 1 or messages[0].node is None:
        raise ProtocolError("it is incomplete")
    if messages[0].node.key != str(key):
        raise ProtocolError("it was told to another node key")
    return messages[0]


def is_worth_saving(change: NetMapChange) -> bool:
    """Whether a start with the netmap of before this change would be a worse one."""
    return bool(
        change.self_changed
        or change.added
        or change.removed
        or change.derp_map
        or change.rules
        or change.dns
        or change.lock
        or any(_essence(old) != _essence(new) for old, new in change.changed)
    )


def _essence(node: Node) -> tuple[object, ...]:
    """What it takes to reach a node, and to name it."""
    return (
        node.key,
        node.name,
        node.addresses,
        node.allowed_ips,
        node.home_derp,
        node.disco_key,
        node.key_expiry,
        node.expired,
        node.is_jailed,
        node.unsigned_peer_api_only,
        node.cap_map,
    )
