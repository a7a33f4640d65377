"""UPnP's texts, as far as one port mapping needs them: SSDP, the description of a device, and SOAP (ring 0).

Source: UPnP Device Architecture 1.1; the Internet Gateway Device's services WANIPConnection 1 and 2 and WANPPPConnection 1;
net/portmapper/upnp.go of Tailscale's module for what routers really do. XML is read by expat, with no document type, hence no entities,
and only for its leaves: which element an element is in does not matter to us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat

from tsns.error import ProtocolError

SSDP_PORT: Final = 1900
SSDP_GROUP: Final = "239.255.255.250"
SEARCH_ALL: Final = "ssdp:all"
SEARCH_GATEWAY: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
MAX_WAIT_S: Final = 1  # within which a device is to answer a search

MAX_ANSWER_BYTES: Final = 2048  # of a search
MAX_URL_CHARS: Final = 512
MAX_DOCUMENT_BYTES: Final = 128 << 10
MAX_ELEMENTS: Final = 4096
MAX_DEPTH: Final = 32
MAX_TEXT_CHARS: Final = 1024  # of one element

# Those that map ports, the best first.
SERVICES: Final = tuple(
    f"urn:schemas-upnp-org:service:{name}" for name in ("WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1")
)

_GATEWAY: Final = ":InternetGatewayDevice:"
_URL: Final = re.compile(r"http://(?:\[[0-9a-f:.]*\]|[^/?#@:\[\s]*)(?::([0-9]{1,5}))?(/[!-~]*)?", re.IGNORECASE)
_PATH: Final = re.compile(r"[!-~]*")
_HTTP_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is at the gateway. The host that a URL names is not heeded: nobody else is ever asked."""

    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Control:
    """A service that maps ports, and where it is spoken to."""

    service: str
    place: Place


class Fault(ProtocolError):  # noqa: N818 (SOAP's word)
    """The gateway does not do it; `code` is UPnP's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"UPnP error {code}")
        self.code = code


# --- SSDP ----------------------------------------------------------------------------------------------------------


def search(target: str, host: str) -> bytes:
    """Ask whoever is at `host` for devices or services of this kind."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {host}:{SSDP_PORT}",
        f"ST: {target}",
        'MAN: "ssdp:discover"',
        f"MX: {MAX_WAIT_S}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_search_answer(data: bytes) -> Place | None:
    """Where a gateway that answers has its description; None for everything else."""
    if len(data) > MAX_ANSWER_BYTES:
        return None
    status, *lines = data.decode("latin-1").splitlines()[:64] or [""]
    if not re.fullmatch(r"HTTP/1\.[01] 200\b.*", status):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().upper(), value.strip())
    if not any(_GATEWAY in headers.get(name, "") for name in ("ST", "USN")):
        return None
    return place(headers.get("LOCATION", ""), None)


def place(url: str, base: Place | None) -> Place | None:
    """Where a URL leads, at the gateway; without a base only an absolute one leads anywhere."""
    if len(url) > MAX_URL_CHARS:
        return None
    absolute = _URL.fullmatch(url)
    if absolute is not None:
        port = int(absolute[1] or _HTTP_PORT)
        return Place(port, absolute[2] or "/") if 0 < port <= 0xFFFF else None
    if base is None or not url or "://" in url or not _PATH.fullmatch(url):
        return None
    return Place(base.port, url if url.startswith("/") else base.path.rpartition("/")[0] + "/" + url)


# --- XML -----------------------------------------------------------------------------------------------------------


def parse_description(data: bytes, at: Place) -> list[Control]:
    """The services that map ports, the best first, of the description that was found there; ProtocolError where it is none."""
    found: list[tuple[str, str]] = []
    kind = url = ""
    base = at
    for name, text in _leaves(data):
        if name == "URLBase":
            base = place(text, None) or at
        elif name == "serviceType":
            kind = text
        elif name == "controlURL":
            url = text
        elif name == "service":
            found.append((kind, url))
            kind = url = ""
    controls = [
        Control(service, where)
        for service in SERVICES
        for kind, url in found
        if kind == service and (where := place(url, base)) is not None
    ]
    return list(dict.fromkeys(controls))


def call(service: str, action: str, arguments: Mapping[str, str]) -> bytes:
    """The body of a SOAP request. The arguments are words of our own, with nothing in them that XML would not take as it is."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{service}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()


def parse_reply(data: bytes, action: str) -> Mapping[str, str]:
    """What a SOAP answer to this action gives; Fault where it is an error, ProtocolError where it is neither."""
    leaves = _leaves(data)
    given = dict(leaves)
    if "Fault" in given:
        code = given.get("errorCode", "")
        raise Fault(int(code) if re.fullmatch(r"[0-9]{1,5}", code) else 0)
    if f"{action}Response" not in given:
        raise ProtocolError(f"no answer to {action}")
    return given


def _leaves(data: bytes) -> list[tuple[str, str]]:
    """Each element's name, without prefix, and its own text, in the order in which they end."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ProtocolError("a document that is too large")
    # All that is read of a document is ASCII, so none fails for its encoding.
    parser = expat.ParserCreate("iso-8859-1")
    parser.buffer_text = True
    done: list[tuple[str, str]] = []
    open_: list[str] = []  # the text so far
    begun = 0

    def start(*_: object) -> None:
        nonlocal begun
        begun += 1
        if begun > MAX_ELEMENTS or len(open_) >= MAX_DEPTH:
            raise ProtocolError("a document of too many elements")
        open_.append("")

    def end(name: str) -> None:
        done.append((name.rpartition(":")[2], open_.pop().strip()))

    def characters(text: str) -> None:
        open_[-1] = (open_[-1] + text)[:MAX_TEXT_CHARS]

    def document_type(*_: object) -> None:
        raise ProtocolError("a document with a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise ProtocolError(f"this is not XML: {error}") from error
    return done
