"""The table of targets: every parser that a stranger reaches.

A target is a function of one case (bytes). What it raises beyond its `documented` exceptions is a finding, and so is a failed assertion in
it, a case that takes too long or one that takes too much memory (`judge`). A function is deterministic: its clock and its randomness are
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz import control_side, data_side, filter_side, home_side, local_side, names_side, train_side
from tsns.error import ProtocolError

MAX_CASE_BYTES: Final = 4096


@dataclass(frozen=True)
class Target:
    """One parser, or a few that take the same."""

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    documented: tuple[type[Exception], ...] = ()
    words: tuple[str, ...] = ()  # what a mutation may put in
    max_case_bytes: int = MAX_CASE_BYTES
    max_memory_mb: int = 64

    @property
    def dictionary(self) -> list[bytes]:
        """The words as bytes; `\\x` sequences are bytes, too."""
        return [word.encode().decode("unicode_escape").encode("latin-1") for word in self.words]


def _wire_names(*kinds: type) -> tuple[str, ...]:
    """The members of these JSON objects."""
    names: set[str] = set()
    for kind in kinds:
        names.update(f'"{name}":' for name in kind.__struct_encode_fields__)  # type: ignore[attr-defined]
    return tuple(sorted(names))


_JSON: Final = (
    "null",
    "true",
    "{}",
    "[]",
    '""',
    ":",
    ",",
    "-1",
    "1e400",
    "9223372036854775808",
    "\\\\ud800",
    '"*"',
    "[[[[",
)
_HTTP: Final = (
    *(
        "HTTP/1.1 ",
        "HTTP/1.0 ",
        "GET ",
        "POST ",
        "\\r\\n",
        "\\r\\n\\r\\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked",
    ),
    *(
        "Connection: close",
        "Upgrade: ",
        "Expect: 100-continue",
        "0\\r\\n\\r\\n",
        " 101 ",
        " 200 ",
        "Retry-After: ",
        "99999999999",
    ),
)
_PACKET: Final = (
    "E\\x00\\x00",
    "`\\x00\\x00\\x00",
    "d@\\x00\\x01",
    "d@\\x00\\x02",
    "\\x06",
    "\\x11",
    "\\x3a",
    "\\x63",
    "\\x84",
    "\\xff\\xff",
)
_WIREGUARD: Final = (
    *(
        "\\x01\\x00\\x00\\x00",
        "\\x02\\x00\\x00\\x00",
        "\\x03\\x00\\x00\\x00",
        "\\x04\\x00\\x00\\x00",
        "\\x11\\x22\\x33\\x44",
    ),
    *("\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff", "TS\\xf0\\x9f\\x92\\xac", "\\x21\\x12\\xa4\\x42"),
)
_VIRTIO: Final = (
    *("\\x01\\x01\\x28\\x00", "\\x01\\x04\\x3c\\x00", "\\x01\\x05\\x1c\\x00", "\\x01\\x81\\x28\\x00"),
    *("\\x14\\x00\\x10\\x00", "\\x28\\x00\\x10\\x00", "\\x14\\x00\\x06\\x00"),
)
_DISCO: Final = (
    *("TS\\xf0\\x9f\\x92\\xac", "\\x01\\x00", "\\x02\\x00", "\\x03\\x00", "\\x03\\x01"),
    "\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\xff\\xff",
)


def _map_words() -> tuple[str, ...]:
    from tsns.proto import types

    kinds = (types.MapResponse, types.Node, types.PeerChange, types.FilterRule, types.NetPortRange, types.CapGrant)
    more = (types.DNSConfig, types.DNSRecord, types.DERPMap, types.DERPRegion, types.DERPNode, types.DisplayMessage)
    return (*_wire_names(*kinds, *more), *_JSON, '"100.64.0.2/32"', '"nodekey:', '"2024-01-01T00:00:00Z"')


def _rule_words() -> tuple[str, ...]:
    from tsns.proto import types

    return _wire_names(types.FilterRule, types.NetPortRange, types.PortRange, types.CapGrant)


TARGETS: Final = (
    # relays
    Target(
        "derp-frames",
        data_side.derp_frames,
        data_side.derp_session_seeds(),
        words=("\\x00\\x10\\x00\\x00", "\\x00\\x0f\\xff\\xff"),
    ),
    Target(
        "derp-session",
        data_side.derp_session,
        data_side.derp_session_seeds(),
        words=(
            "DERP\\xf0\\x9f\\x94\\x91",
            '"version":',
            '"TokenBucketBytesPerSecond":',
            '"TokenBucketBytesBurst":',
            *_JSON,
        ),
    ),
    Target("derp-answer", data_side.derp_answer, data_side.DERP_ANSWER_SEEDS, (ProtocolError,), _HTTP),
    Target(
        "certificate",
        data_side.certificate,
        (),
        words=("\\x30\\x82", "\\x06\\x03\\x55\\x1d\\x11", "\\x87\\x04", "\\x17\\x0d"),
    ),
    # control
    Target(
        "noise-handshake",
        control_side.noise_handshake,
        control_side.noise_handshake_seeds(),
        (ProtocolError,),
        ("\\x02\\x00\\x30", "\\x03\\x00"),
    ),
    Target(
        "noise-records",
        control_side.noise_records,
        control_side.noise_records_seeds(),
        (ProtocolError,),
        ("\\xff\\xff\\xffTS", "\\x04\\x0f\\xfd"),
    ),
    Target(
        "http2",
        control_side.http2,
        control_side.http2_seeds(),
        control_side.ALLOWED,
        tuple(f"\\x00\\x00\\x04\\x{kind:02x}" for kind in range(10)),
    ),
    Target(
        "http-answer",
        control_side.http_answer,
        control_side.HTTP_ANSWER_SEEDS,
        control_side.ALLOWED,
        (*_HTTP, '"publicKey":"mkey:'),
    ),
    Target(
        "register-response",
        control_side.register_response,
        control_side.REGISTER_SEEDS,
        (ProtocolError,),
        (*_JSON, '"AuthURL":', '"Error":', '"Login":', '"User":'),
    ),
    Target(
        "map-stream",
        control_side.map_stream,
        control_side.map_stream_seeds(),
        (ProtocolError,),
        ("\\x28\\xb5\\x2f\\xfd", "\\x50\\x2a\\x4d\\x18", *_JSON),
        max_memory_mb=192,
    ),
    Target(
        "map-response",
        control_side.map_response,
        control_side.map_response_seeds(),
        (ProtocolError,),
        _map_words(),
        16 << 10,
    ),
    Target("c2n-request", control_side.c2n_request, control_side.C2N_SEEDS, (ProtocolError,), _HTTP),
    # peers and strangers
    Target("wireguard", data_side.wireguard, data_side.wireguard_seeds(), words=(*_WIREGUARD, *_PACKET)),
    Target("router", data_side.router, data_side.router_seeds(), words=(*_WIREGUARD, *_DISCO, *_PACKET)),
    Target("sealed-frames", train_side.sealed_frames, train_side.sealed_frames_seeds(), words=(*_PACKET, *_VIRTIO)),
    Target("opened-trains", train_side.opened_trains, train_side.opened_trains_seeds(), words=(*_WIREGUARD, *_PACKET)),
    Target("disco", data_side.disco, data_side.disco_seeds(), words=_DISCO),
    Target(
        "stun",
        data_side.stun_message,
        data_side.stun_seeds(),
        words=("\\x21\\x12\\xa4\\x42", "\\x00\\x20\\x00\\x08", "\\x80\\x28\\x00\\x04", "\\x80\\x22", "tailnode"),
    ),
    Target(
        "gateway-answers",
        home_side.gateway_answers,
        home_side.gateway_answers_seeds(),
        words=("\\x00\\x80\\x00\\x00", "\\x00\\x81\\x00\\x00", "\\x02\\x81\\x00\\x00", "\\x00\\x00\\x1c\\x20"),
    ),
    Target(
        "upnp-texts",
        home_side.upnp_texts,
        home_side.UPNP_SEEDS,
        words=(
            *(
                "<service>",
                "</service>",
                "<serviceType>",
                "</serviceType>",
                "<controlURL>",
                "</controlURL>",
                "<URLBase>",
            ),
            *("urn:schemas-upnp-org:service:WANIPConnection:1", "http://", "LOCATION: ", "<Fault>", "<errorCode>"),
            *("&#65;", "&amp;", "<![CDATA[", "<!DOCTYPE", "<!--", "AddPortMappingResponse", "HTTP/1.1 200 OK\\r\\n"),
        ),
    ),
    Target("upnp-http", home_side.upnp_http, home_side.UPNP_HTTP_SEEDS, (ProtocolError,), _HTTP),
    Target("packet", data_side.packet, data_side.packet_seeds(), words=_PACKET),
    Target("packet-filter", filter_side.packet_filter, filter_side.packet_filter_seeds(), words=_PACKET),
    Target(
        "filter-rules",
        filter_side.filter_rules,
        filter_side.filter_rules_seeds(),
        (ProtocolError,),
        (*_rule_words(), *_JSON, '"cap:', '"*"', '"::-8::f"', '"0.0.0.0/0"', "65535"),
    ),
    # programs on this machine
    Target(
        "dns-query",
        names_side.query,
        names_side.query_seeds(),
        words=("\\xc0\\x0c", "\\x03web\\x04tail\\x07example\\x00", "\\x00\\x00\\x29", "\\x07in-addr\\x04arpa\\x00"),
    ),
    Target(
        "dns-reply",
        names_side.reply,
        names_side.reply_seeds(),
        words=(
            "\\xc0\\x0c",
            "\\x03www\\x07example\\x03com\\x00",
            "\\x00\\x00\\x29",
            "\\x00\\x06\\x00\\x01",
            "\\x81\\x83",
        ),
    ),
    Target(
        "resolv-conf", names_side.resolv_conf, names_side.RESOLV_CONF_SEEDS, words=("nameserver ", "\\x25eth0", "::")
    ),
    Target("local-api", local_side.local_api, local_side.LOCAL_API_SEEDS, words=(*_HTTP, *_JSON)),
    Target("control-message", local_side.control_message, local_side.CONTROL_MESSAGE_SEEDS, words=_JSON),
    # texts and files
    Target(
        "key-text",
        local_side.key_text,
        local_side.KEY_SEEDS,
        words=("nodekey:", "privkey:", "mkey:", "discokey:", "nlpriv:", "nlpub:", "tlpub:", "chalpub:", "00" * 32),
    ),
    Target(
        "address-text",
        local_side.address_text,
        local_side.ADDRESS_SEEDS,
        words=(
            "::",
            "/",
            "-",
            ".",
            "-via-",
            "0x",
            "in-addr.arpa",
            "ip6.arpa",
            "http://",
            "https://",
            "T",
            "Z",
            "+00:00",
            "%",
        ),
    ),
    Target(
        "identity-file",
        local_side.identity_file,
        local_side.identity_seeds(),
        (ValueError,),
        ('"version":1', '"machine_key":', "privkey:", "nlpriv:", *_JSON),
    ),
)

BY_NAME: Final = {target.name: target for target in TARGETS}
