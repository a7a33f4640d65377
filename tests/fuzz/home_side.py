"""Targets that the home router reaches, or whoever speaks in its name."""

from __future__ import annotations

import contextlib

import h11

from tests.fuzz.material import Instructions, entropy, finish, step, stream
from tsns.error import ProtocolError
from tsns.node.upnp import read_answer
from tsns.paths import natpmp, pcp, upnp
from tsns.paths.portmap import PORT, TIMEOUT_S, Mapped, Output, PortMap, SendTo, TryUpnp, UpnpOutcome
from tsns.proto.addresses import pack

HOME_ROUTER, AT_HOME, OUR_PORT = "192.168.1.1", "192.168.1.20", 41673
MAX_DATAGRAMS = 6  # that one thing that happens may cause
AT = upnp.Place(5000, "/igd/root.xml")


class MappedPort:
    """The machine, and a look at everything that it wants."""

    def __init__(self) -> None:
        self.machine = PortMap(entropy())
        self.now = 0.0
        self.upnp: TryUpnp | None = None
        self.nonce = bytes(pcp.NONCE_BYTES)
        self.look(self.machine.set_network(HOME_ROUTER, AT_HOME, OUR_PORT, 0.0))

    def look(self, outputs: list[Output]) -> None:
        assert len(outputs) <= MAX_DATAGRAMS
        for output in outputs:
            match output:
                case SendTo(address, sent):
                    assert address == (HOME_ROUTER, PORT)
                    self.nonce = sent[24:36] if len(sent) == 60 else self.nonce
                case TryUpnp():
                    self.upnp = output
                case Mapped((host, port)):
                    assert len(pack(host)) == 4
                    assert 0 < port <= 0xFFFF
        deadline = self.machine.deadline()
        assert deadline is None or deadline > self.now

    def do(self, what: int, piece: bytes) -> None:
        """One thing happens; what a stranger cannot know of our question is put in for him."""
        source = (HOME_ROUTER, PORT)
        port = OUR_PORT.to_bytes(2, "big")
        match what % 8:
            case 1:
                piece = b"\0\x80\0\0" + piece
            case 2:
                piece = b"\0\x81\0\0" + piece[:4].ljust(4, b"\0") + port + piece[4:]
            case 3:
                head = b"\2\x81\0\0" + piece[:20].ljust(20, b"\0") + self.nonce + b"\x11\0\0\0" + port
                piece = head + piece[20:38].ljust(18, b"\0")
            case 4:
                self.now += max(TIMEOUT_S, int.from_bytes(piece[:2], "big"))
                self.look(self.machine.tick(self.now))
                return
            case 5 if self.upnp is not None:
                external = (piece[:15].decode("latin-1"), int.from_bytes(piece[15:18], "big"))
                self.look(self.machine.upnp(UpnpOutcome(self.upnp, found=True, external=external), self.now))
                return
            case 6:
                self.look((self.machine.recheck if piece else self.machine.unreachable)(self.now))
                return
        self.look(self.machine.receive(piece, source, self.now))


def gateway_answers(data: bytes) -> None:
    """What a home router answers, and when."""
    natpmp.parse_answer(data)
    pcp.parse_answer(data)
    port = MappedPort()
    for what, piece in Instructions(data).steps(24):
        port.do(what, piece)
    port.look(port.machine.release(port.now))


def gateway_answers_seeds() -> list[bytes]:
    epoch, address, rest = bytes(3) + b"\5", b"\xcb\0\x71\7", b"\x9c\x40\0\0\x1c\x20"
    by_pmp = step(1, epoch + address) + step(2, epoch + rest)
    by_pcp = step(3, b"\0\0\x1c\x20" + epoch + bytes(12) + b"\x9c\x40" + bytes(10) + b"\xff\xff" + address)
    wait, second, hour = step(4, b"\0\1"), step(4, b"\0\0"), step(4, b"\x0e\x10")
    return [
        by_pmp + hour + by_pmp + step(4, b"\x02\x58") + step(1, epoch + address) + step(2, epoch + rest),
        second * 2 + by_pcp + step(4, b"\x02\x58") + step(0, b"\2\x80\0\0" + bytes(4) + epoch + bytes(12)) + hour,
        second * 4 + step(5, b"198.51.100.4\0\0\0\0\x10\0") + hour * 3,
        step(6, b"") + step(5, b"198.51.100.44444"[:15] + b"\0\x10\0") + step(6, b"x"),
        step(0, b"\2\x80\0\1" + bytes(20)) + by_pcp + wait,
        step(0, b"\0\x81\0\2" + epoch) + step(0, b"\0\x81\0\1" + epoch),
    ]


def upnp_texts(data: bytes) -> None:
    """What a home router answers to a search, serves as a description, and says to a call."""
    place = upnp.parse_search_answer(data)
    for where in (place, upnp.place(data.decode("latin-1"), AT)):
        if where is not None:
            assert 0 < where.port <= 0xFFFF
            assert where.path.startswith("/")
            assert where.path.isprintable()
    with contextlib.suppress(ProtocolError):
        for control in upnp.parse_description(data, AT):
            assert control.place.path.startswith("/")
    with contextlib.suppress(ProtocolError):
        upnp.parse_reply(data, "AddPortMapping")


UPNP_SEEDS = [
    b"HTTP/1.1 200 OK\r\nST: :InternetGatewayDevice:1\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n",
    b"<root><URLBase>http://192.168.1.1:5001/</URLBase><device><serviceList><service><serviceType>"
    + upnp.SERVICES[1].encode()
    + b"</serviceType><controlURL>ctl?x=1</controlURL></service></serviceList></device></root>",
    b'<s:Envelope xmlns:s="x"><s:Body><u:AddPortMappingResponse xmlns:u="y"/></s:Body></s:Envelope>',
    b"<e><Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></Fault></e>",
    b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
    b"/ctl/IPConn",
]


def upnp_http(data: bytes) -> None:
    """The HTTP in which that comes."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/igd.xml", headers=[("Host", HOME_ROUTER)]))
    http.send(h11.EndOfMessage())
    reader, _ = stream(data)
    with contextlib.suppress(h11.RemoteProtocolError):
        status, body = finish(read_answer(http, reader))
        assert 200 <= status < 1000
        assert len(body) <= upnp.MAX_DOCUMENT_BYTES


UPNP_HTTP_SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>",
    b"HTTP/1.0 500 No\r\n\r\n<a/>",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<a/>\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://198.51.100.1/\r\nContent-Length: 0\r\n\r\n",
]
