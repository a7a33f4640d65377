"""Targets that programs on this machine reach, and texts that come from anywhere."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
from dataclasses import replace
from typing import Any

import h11

from tests.fuzz.material import CONTROL, MACHINE, OURS, THEIRS, finish, stream
from tsns.control.dial import Server
from tsns.control.nodes import is_node_key
from tsns.derp.dial import is_address
from tsns.dns.names import key_of, reverse_key, reversed_address, via_address
from tsns.error import UserError
from tsns.filter.addresses import AddressSet, parse_spans
from tsns.keys import (
    ChallengePublic,
    DiscoPrivate,
    DiscoPublic,
    LockPrivate,
    LockPublic,
    MachinePrivate,
    MachinePublic,
    NodePrivate,
    NodePublic,
)
from tsns.node import messages
from tsns.node.localapi import LocalApi
from tsns.proto.addresses import Prefix, pack, unpack
from tsns.proto.text import MAX_TEXT_CHARS, one_line
from tsns.proto.types import parse_time
from tsns.state import Identity

# --- sockets of this machine ---------------------------------------------------------------------------------------


async def _echo(asked: dict[str, Any], _uid: int) -> dict[str, Any]:
    if "no" in asked:
        raise UserError("no", "ask for something else")
    return {"asked": asked}


@functools.cache
def _api() -> LocalApi:
    return LocalApi(socket.socket(socket.AF_UNIX), frozenset(), {("GET", "/x"): _echo, ("POST", "/x"): _echo})


def local_api(data: bytes) -> None:
    """A request to the node's own interface."""
    with contextlib.suppress(h11.ProtocolError, OSError):
        finish(_api()._converse(*stream(data), os.getuid()))


LOCAL_API_SEEDS = [
    b"GET /x HTTP/1.1\r\nHost: tsns\r\n\r\n",
    b'POST /x?a HTTP/1.1\r\nHost: tsns\r\nContent-Length: 11\r\n\r\n{"no":true}',
    b'POST /x HTTP/1.1\r\nHost: tsns\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\n\r\n',
    b"POST /x HTTP/1.1\r\nHost: tsns\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n[]",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000,
]


@functools.cache
def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def control_message(data: bytes) -> None:
    """A message on a control socket, with descriptors."""
    ours, theirs = _pair()
    fds = [theirs.fileno()] * (data[0] % 20 if data else 0)
    socket.send_fds(theirs, [data[1:] or b"\0"], fds)
    with contextlib.suppress(ValueError):
        message, received = messages.receive(ours)
        for fd in received:
            os.close(fd)
        json.dumps(message)


CONTROL_MESSAGE_SEEDS = [
    b"\0" + b'{"ask":"start","name":"web","config":{"a":[1,2.5,null]}}',
    b"\2" + b'{"say":"tun"}',
    b"\x13" + b"{}",
    b"\0" + b"[" * 4000,
    b"\0" + b'{"x":' * 12_000,
    b"\0" + b'{"x":"\\ud800\\u0000"}',
]

# --- texts and files -----------------------------------------------------------------------------------------------

KEYS = (
    *(MachinePublic, NodePublic, DiscoPublic, ChallengePublic, LockPublic),
    *(MachinePrivate, NodePrivate, DiscoPrivate, LockPrivate),
)


def key_text(data: bytes) -> None:
    """What should be a key."""
    text = data.decode("utf-8", "surrogateescape")
    is_node_key(text)
    for kind in KEYS:
        with contextlib.suppress(ValueError):
            key = kind.parse(text)
            assert kind.parse(key.reveal() if hasattr(key, "reveal") else str(key)) == key


KEY_SEEDS = [
    f"{prefix}:{'0123456789abcdef' * size}".encode()
    for prefix, size in (
        *(("nodekey", 4), ("privkey", 4), ("mkey", 4), ("discokey", 4), ("nlpriv", 4), ("nlpriv", 8)),
        *(("nlpub", 4), ("tlpub", 4), ("chalpub", 4), ("nodekey", 5)),
    )
]


def address_text(data: bytes) -> None:
    """What should be an address, a prefix, a range, a name, a time, a URL."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        assert pack(unpack(pack(text))) == pack(text)
        assert reversed_address(reverse_key(pack(text))) == pack(text)
    with contextlib.suppress(ValueError):
        prefix = Prefix.parse(text)
        assert Prefix.parse(str(prefix), strict=True) == prefix
    with contextlib.suppress(ValueError):
        bool(AddressSet(parse_spans(text)))
    with contextlib.suppress(ValueError):
        key = key_of(text)
        via_address(key)
        reversed_address(key)
    with contextlib.suppress(UserError):
        str(Server.parse(text))
    is_address(text, socket.AF_INET6)
    parse_time(text)
    for line in (one_line(text), one_line(data)):
        assert len(line) <= MAX_TEXT_CHARS
        assert line.isprintable()


ADDRESS_SEEDS = [
    text.encode()
    for text in (
        *(
            "100.64.0.1",
            "fd7a:115c:a1e0::1/48",
            "::ffff:1.2.3.4/128",
            "10.0.0.1-10.0.0.9",
            "::1-::f",
            "*",
            "fe80::1%eth0",
        ),
        *("192-168-1-2-via-7.tail.example", "x-via-0x1f.ts.net", "1.0.64.100.in-addr.arpa", "a" * 64 + ".example."),
        *("2023-11-14T22:13:20.123456789Z", "0001-01-01T00:00:00Z", "2024-02-30T24:00:00+14:00", "2024-W01-1"),
        *("https://control.example", "http://[::1]:8080/", "ftp://x:1", "https://u:p@h:99999/?q#f", "//h"),
    )
]


def identity_file(data: bytes) -> None:
    """A node's state file."""
    identity = Identity.load(data)
    assert Identity.load(identity.dump()) == identity


def identity_seeds() -> list[bytes]:
    full = Identity(
        machine_key=MACHINE,
        lock_key=LockPrivate.generate(bytes(range(32))),
        log_id="ab" * 32,
        node_key=OURS,
        old_node_key=THEIRS,
        control_url="https://control.example",
        control_key=CONTROL.public,
    )
    deep = b'{"version":1,"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    return [
        full.dump(),
        replace(full, node_key=None, old_node_key=None, control_key=None).dump(),
        b'{"version":2}',
        deep,
    ]
