"""Targets that a control server, or whoever stands in its place, reaches."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import h2.config
import h2.connection
import zstandard

from tests.fuzz.material import (
    CONTROL,
    MACHINE,
    OURS,
    THEIRS,
    WALL_CLOCK,
    Instructions,
    cut,
    entropy,
    finish,
    step,
    stream,
)
from tsns.control import c2n, dial, register
from tsns.control.backoff import retry_after_s
from tsns.control.http2 import Body, Ended, Head, Http2, Reset
from tsns.control.map_stream import MapStream, frame
from tsns.control.netmap import NetMap
from tsns.control.nodes import prefixes
from tsns.dns.resolver import Resolver, search_domains
from tsns.error import ProtocolError, RetryableError
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import ChallengePublic, DiscoPrivate
from tsns.node.peering import Peering, find_peer
from tsns.noise.framing import Opener, Sealer, error_frame
from tsns.noise.handshake import Initiator, Keys, Responder
from tsns.noise.stream import ClientStream, NoiseStream, ServerStream, early_payload
from tsns.paths.netcheck import eligible
from tsns.proto.types import ControlKeys, EarlyNoise, MapResponse, RegisterResponse, decode
from tsns.wg.device import Device
from tsns.wg.router import Router

VERSION = 131
SEND, RECEIVE = bytes(range(32)), bytes(range(32, 64))

# --- Noise ---------------------------------------------------------------------------------------------------------


def _client() -> ClientStream:
    return ClientStream(Initiator(MACHINE, CONTROL.public, VERSION, entropy()))


def noise_handshake(data: bytes) -> None:
    """The answer to our initiation, and what a server makes of an initiation."""
    client = _client()
    with contextlib.suppress(ProtocolError):
        for piece in cut(data):
            client.receive(piece)
    Responder(CONTROL, entropy()).receive(data)


def noise_handshake_seeds() -> list[bytes]:
    client = _client()
    server = ServerStream(CONTROL, client.initiation, entropy(2))
    early = server.send(early_payload(ChallengePublic(bytes(32))))
    return [client.initiation, b"\x80" + server.response, b"\x40" + server.response + early, b"\0" + error_frame("no")]


def noise_records(data: bytes) -> None:
    """Frames of an established connection: as they are, and as plaintext of authentic records at its beginning."""
    instructions = Instructions(data)
    raw = NoiseStream(Keys(SEND, RECEIVE, b""))
    client, sealer = _client(), None
    server = ServerStream(CONTROL, client.initiation, entropy(2))
    client.receive(server.response)
    for what, piece in instructions.steps(8):
        if what % 3 == 0:
            with contextlib.suppress(ProtocolError):
                raw.receive(piece)
                raw = NoiseStream(Keys(SEND, RECEIVE, b""))
        elif what % 3 == 1:
            client.receive(server.send(piece))
        else:
            sealer = sealer or Sealer(RECEIVE)
            assert b"".join(NoiseStream(Keys(SEND, RECEIVE, b"")).receive(sealer.seal(piece))) == piece
            sealer = None
    Opener(RECEIVE).open(data[:4096])


def noise_records_seeds() -> list[bytes]:
    early = early_payload(ChallengePublic(bytes(32)))
    record = Sealer(RECEIVE).seal(b"PRI * HTTP/2.0")
    return [
        step(1, early) + step(1, b"\0\0\0\4\0\0\0\0\0"),
        step(1, early[:7]) + step(1, early[7:]),
        step(0, record) + step(0, record),
        step(0, error_frame("full")),
        step(2, b"x" * 5000),
    ]


# --- HTTP ----------------------------------------------------------------------------------------------------------


def http2(data: bytes) -> None:
    """What a server answers to two requests, one of them with a body that has to wait for a window."""
    client = Http2("control.example")
    client.request("POST", "/machine/register", b"x" * 70_000)
    client.request("POST", "/machine/map", b"{}")
    client.outgoing()
    for piece in cut(data):
        for output in client.receive(piece):
            match output:
                case Body(stream=number, size=size):
                    client.consumed(number, size)
                case Head(retry_after=wish):
                    retry_after_s(wish, WALL_CLOCK, lambda: 0.5)
                case Reset(stream=number):
                    client.cancel(number)
                case Ended(stream=number):
                    client.cancel(number)
        client.ping()
        client.outgoing()


def http2_seeds() -> list[bytes]:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client = Http2("control.example")
    client.request("POST", "/machine/register", b"x" * 70_000)
    client.request("POST", "/machine/map", b"{}")
    server.initiate_connection()
    server.receive_data(client.outgoing())
    greeting = server.data_to_send()
    server.send_headers(3, [(":status", "200"), ("content-type", "application/json")])
    server.send_data(3, b"\x01\0\0\0{")
    answer = server.data_to_send()
    server.send_headers(1, [(":status", "429"), ("retry-after", "3")], end_stream=True)
    refusal = server.data_to_send()
    server.reset_stream(3)
    reset = server.data_to_send()
    server.increment_flow_control_window(100_000)
    server.ping(b"12345678")
    window = server.data_to_send()
    server.close_connection()
    goodbye = server.data_to_send()
    frames = (greeting, greeting + answer, greeting + refusal, greeting + answer + reset, greeting + window)
    return [b"\x80" + each for each in (*frames, greeting + goodbye)]


def http_answer(data: bytes) -> None:
    """The answers to the upgrade and to `GET /key`, before any encryption."""
    upgrade = dial._Http1(stream(data))
    fields = (("host", "control.example"), ("connection", "upgrade"), ("upgrade", "tailscale-control-protocol"))
    with contextlib.suppress(ProtocolError, RetryableError):
        finish(upgrade.request("POST", "/ts2021", (*fields, ("content-length", "0"))))
        upgrade.leftover  # noqa: B018 (a property that does something)
    http = dial._Http1(stream(data))
    answer = finish(http.request("GET", "/key?v=131", (("host", "control.example"),)))
    http.reuse()
    dial._described(answer)
    retry_after_s(answer.headers.get("retry-after"), WALL_CLOCK, lambda: 0.5)
    decode(answer.body, ControlKeys)


HTTP_ANSWER_SEEDS = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\n{"publicKey":"mkey:00112233","x":[1,2]}',
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\nrest",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 429 Slow down\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 503 No\r\nRetry-After: 17\r\n\r\nbusy",
]


def c2n_request(data: bytes) -> None:
    """A request of control to us."""
    c2n.respond(data)


C2N_SEEDS = [
    b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /echo?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /update HTTP/1.0\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
]


def register_response(data: bytes) -> None:
    """What control says to a registration."""
    decode(data, EarlyNoise)
    outcome = register.outcome(decode(data, RegisterResponse))
    if isinstance(outcome, register.Refused):
        assert len(outcome.reason.splitlines()) <= 1
        register.refusal_hint(outcome.reason, with_auth_key=True, with_tags=True)


REGISTER_SEEDS = [
    b'{"MachineAuthorized":true,"User":{"ID":1,"LoginName":"a@b","DisplayName":"A"},"Login":{"ID":1,"LoginName":"a"}}',
    b'{"AuthURL":"https://control.example/register/abc"}',
    b'{"NodeKeyExpired":true,"NodeKeySignature":"AAECAw=="}',
    b'{"Error":"invalid auth key\\u001b[2J\\n"}',
]

# --- the netmap ----------------------------------------------------------------------------------------------------


class Follower:
    """Everything in the engine that reads a netmap, without sockets."""

    def __init__(self) -> None:
        self.netmap = NetMap()
        self.filter = PacketFilter()
        self.resolver = Resolver()
        device = Device(OURS, entropy(), wall_clock=lambda: WALL_CLOCK)
        self.peering = Peering(device, Router(device, self.filter, DiscoPrivate(bytes(range(32)))), lambda: 0.0)

    def take(self, message: MapResponse) -> None:
        """Fold in one message, and do what the engine does with it."""
        netmap = self.netmap
        change = netmap.apply(message, WALL_CLOCK)
        itself = netmap.self_node
        assert itself is not None  # else apply() refuses
        self.filter.update(
            netmap.rules,
            prefixes(itself.addresses),
            shields_up=False,
            capability_holders=lambda wanted: [
                prefix for node in netmap.holders(wanted) for prefix in prefixes(node.addresses)
            ],
            unsigned=[prefix for node in netmap.peers.values() for prefix in prefixes(node.addresses)][:2],
        )
        self.peering.apply(netmap, change, WALL_CLOCK)
        for _ in self.peering.rechecking(netmap, WALL_CLOCK):
            pass
        eligible(netmap.derp_map)
        for old, new in change.peers():
            self.resolver.update_peer(old, new)
        self.resolver.configure(self_node=itself, config=netmap.dns)
        search_domains(netmap.dns)
        find_peer(netmap, "web")
        bool(change)


NODE: dict[str, Any] = {
    "ID": 1,
    "StableID": "n1",
    "Name": "us.tail.example.",
    "Key": str(OURS.public),
    "Addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"],
    "MachineAuthorized": True,
}
PEER: dict[str, Any] = {
    "ID": 2,
    "Name": "web.tail.example.",
    "Key": str(THEIRS.public),
    "DiscoKey": "discokey:" + "11" * 32,
    "Addresses": ["100.64.0.2/32"],
    "AllowedIPs": ["100.64.0.2/32", "10.0.0.0/8"],
    "DERP": "127.3.3.40:7",
    "KeyExpiry": "2024-01-01T00:00:00Z",
    "CapMap": {"x": [1]},
    "Hostinfo": {"Hostname": "web"},
}
RULES: list[dict[str, Any]] = [
    {"SrcIPs": ["*"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 0, "Last": 65535}}], "IPProto": [6, 17]},
    {"SrcIPs": ["100.64.0.0/10", "cap:x", "10.0.0.1-10.0.0.9"], "CapGrant": [{"Dsts": ["::/0"], "Caps": ["a"]}]},
]
FIRST: dict[str, Any] = {
    "Node": NODE,
    "Peers": [PEER],
    "PacketFilter": RULES,
    "Domain": "tail.example",
    "DNSConfig": {
        "Proxied": True,
        "Domains": ["tail.example"],
        "Routes": {"corp.example.": [{"Addr": "10.0.0.1"}], ".": None},
        "ExtraRecords": [{"Name": "db.tail.example", "Type": "A", "Value": "10.0.0.3"}],
    },
    "DERPMap": {
        "Regions": {
            "7": {"RegionID": 7, "Nodes": [{"Name": "7a", "HostName": "derp.example", "CertName": "sha256-raw:ab"}]},
            "8": None,
        },
        "HomeParams": {"RegionScore": {"7": 0.5}},
    },
    "UserProfiles": [{"ID": 1, "LoginName": "a@b"}],
    "ControlTime": "2023-11-14T22:13:20.123456789Z",
}
LATER: list[dict[str, Any]] = [
    {"KeepAlive": True},
    {"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 8, "Online": True, "KeyExpiry": "0001-01-01T00:00:00Z"}]},
    {
        "PeersRemoved": [2],
        "PeersChanged": [{**PEER, "ID": 3}],
        "OnlineChange": {"2": False},
        "PeerSeenChange": {"2": True},
    },
    {
        "PacketFilters": {"*": None, "a": RULES},
        "Health": ["bad"],
        "DisplayMessages": {"w": {"Title": "t", "Text": "x"}},
    },
    {"PingRequest": {"URL": "https://x/", "Types": "c2n", "Payload": "AAA="}, "TKAInfo": {"Head": "x"}},
]


def map_response(data: bytes) -> None:
    """A first message, and one after a good first one."""
    message = decode(data, MapResponse)
    with contextlib.suppress(ProtocolError):
        Follower().take(message)
    follower = Follower()
    follower.take(decode(json.dumps(FIRST).encode(), MapResponse))
    follower.take(decode(data, MapResponse))
    follower.netmap.begin_stream()
    follower.take(decode(data, MapResponse))


def map_response_seeds() -> list[bytes]:
    return [json.dumps(message, separators=(",", ":")).encode() for message in (FIRST, *LATER)]


def map_stream(data: bytes) -> None:
    """Bytes of the stream as they are; or as a message; or as the JSON in one."""
    kind, rest = data[:1], data[1:]
    maps = MapStream()
    if kind == b"\1":
        maps.feed(struct.pack("<I", len(rest)) + rest)
    elif kind == b"\2":
        maps.feed(frame(rest, compress=True))
    else:
        for piece in cut(rest):
            maps.feed(piece)


def map_stream_seeds() -> list[bytes]:
    packed = zstandard.compress(b'{"KeepAlive":true}', 1)
    streamed = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b'{"Domain":"x"}')
    bomb = zstandard.compress(b'{"Domain":"' + bytes(4 << 20) + b'"}', 3)
    return [
        b"\0\x80" + frame(b'{"KeepAlive":true}', compress=True) * 2,
        b"\0\x20" + frame(b"{}", compress=False),
        b"\1" + packed,
        b"\1" + streamed + streamed,
        b"\1" + bomb,
        b'\2{"Domain":"tail.example"}',
    ]


ALLOWED = (ProtocolError, RetryableError)
