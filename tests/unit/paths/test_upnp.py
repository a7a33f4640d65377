"""UPnP's texts: searching, descriptions in the forms that routers have, SOAP, and garbage."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.error import ProtocolError
from tsns.paths import upnp
from tsns.paths.upnp import Control, Fault, Place

IP2, IP1, PPP1 = upnp.SERVICES
AT = Place(5000, "/igd/root.xml")
COMMON = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"


def answer(location: str, kind: str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1") -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {kind}\r\nLOCATION: {location}\r\nEXT:\r\n\r\n".encode()
    )


def description(*services: tuple[str, str], base: str = "") -> bytes:
    """A device in a device in a device, as an internet gateway is."""
    listed = "".join(
        f"<service><serviceType>{kind}</serviceType><serviceId>urn:upnp-org:serviceId:x</serviceId>"
        f"<controlURL>{url}</controlURL><eventSubURL>/evt</eventSubURL><SCPDURL>/scpd.xml</SCPDURL></service>\n"
        for kind, url in services
    )
    return (
        '<?xml version="1.0"?>\n<root xmlns="urn:schemas-upnp-org:device-1-0">'
        "<specVersion><major>1</major><minor>0</minor></specVersion>"
        f"{f'<URLBase>{base}</URLBase>' if base else ''}"
        "<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>"
        "<friendlyName>R\xf6uter &amp; more</friendlyName><deviceList><device>"
        f"<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><serviceList>{listed}</serviceList>"
        "</device></deviceList></device></root>"
    ).encode("latin-1")


# --- SSDP ----------------------------------------------------------------------------------------------------------


def test_the_search() -> None:
    assert upnp.search(upnp.SEARCH_ALL, upnp.SSDP_GROUP) == (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: ssdp:all\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n\r\n'
    )


def test_a_gateway_says_where_its_description_is() -> None:
    assert upnp.parse_search_answer(answer("http://192.168.1.1:5000/rootDesc.xml")) == Place(5000, "/rootDesc.xml")
    assert upnp.parse_search_answer(answer("HTTP://192.168.1.1/d?x=1")) == Place(80, "/d?x=1")


def test_it_may_say_so_in_its_own_way() -> None:
    text = (
        b"HTTP/1.0 200\nusn: uuid:1::urn:schemas-upnp-org:device:InternetGatewayDevice:2\n"
        b"Location:http://192.168.1.1:1/a\n"
    )
    assert upnp.parse_search_answer(text) == Place(1, "/a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer("http://192.168.1.1:5000/rootDesc.xml", "urn:schemas-upnp-org:device:MediaServer:1"),
        answer("http://192.168.1.1:5000/rootDesc.xml").replace(b"200 OK", b"404 No"),
        answer("http://192.168.1.1:5000/rootDesc.xml").replace(b"LOCATION", b"AL"),
        answer("http://192.168.1.1:5000/rootDesc.xml").replace(b"HTTP/1.1 200 OK", b"NOTIFY * HTTP/1.1"),
        answer("/rootDesc.xml"),
        answer("https://192.168.1.1/rootDesc.xml"),
        answer("file:///etc/passwd"),
        answer("http://192.168.1.1:0/"),
        answer("http://192.168.1.1:65536/"),
        answer("http://192.168.1.1:99999999999999999999/"),
        answer("http://user@192.168.1.1/"),
        answer("http://192.168.1.1/a b"),
        answer("http://192.168.1.1/a\x00b"),
        answer("http://192.168.1.1/" + "a" * upnp.MAX_URL_CHARS),
        answer("http://192.168.1.1/").ljust(upnp.MAX_ANSWER_BYTES + 1),
    ],
)
def test_what_is_no_such_answer_is_none(data: bytes) -> None:
    assert upnp.parse_search_answer(data) is None


# --- descriptions --------------------------------------------------------------------------------------------------


def test_the_services_that_map_ports_the_best_first() -> None:
    found = upnp.parse_description(description((COMMON, "/c"), (PPP1, "/ppp"), (IP1, "/ip1"), (IP2, "/ip2")), AT)
    assert found == [
        Control(IP2, Place(5000, "/ip2")),
        Control(IP1, Place(5000, "/ip1")),
        Control(PPP1, Place(5000, "/ppp")),
    ]


@pytest.mark.parametrize(
    ("url", "base", "where"),
    [
        ("/ctl", "", Place(5000, "/ctl")),
        ("ctl", "", Place(5000, "/igd/ctl")),
        ("ctl?a=b", "", Place(5000, "/igd/ctl?a=b")),
        ("http://192.168.1.1:5001/ctl", "", Place(5001, "/ctl")),
        ("http://192.168.1.1/ctl", "", Place(80, "/ctl")),
        ("/ctl", "http://192.168.1.1:5002", Place(5002, "/ctl")),
        ("ctl", "http://192.168.1.1:5002/x/", Place(5002, "/x/ctl")),
        ("/ctl", "nonsense", Place(5000, "/ctl")),
        ("http://[fe80::1]:5001/ctl", "", Place(5001, "/ctl")),
    ],
)
def test_where_a_service_is_spoken_to(url: str, base: str, where: Place) -> None:
    assert upnp.parse_description(description((IP1, url), base=base), AT) == [Control(IP1, where)]


@pytest.mark.parametrize(
    "url", ["", "https://192.168.1.1/ctl", "ftp://192.168.1.1/ctl", "/a b", "/a&#13;&#10;X: y", "\xff"]
)
def test_a_service_that_is_nowhere_is_none(url: str) -> None:
    assert upnp.parse_description(description((IP1, url)), AT) == []


def test_another_host_cannot_be_named() -> None:
    """What a URL names as host is not even kept: a Place has none."""
    found = upnp.parse_description(description((IP1, "http://198.51.100.1:22/ctl")), AT)
    assert found == [Control(IP1, Place(22, "/ctl"))]


def test_prefixes_and_spaces_do_not_matter() -> None:
    text = f"<d:root xmlns:d='x'><d:service>\n<d:serviceType>\n {IP1} </d:serviceType><d:controlURL> /c\n</d:controlURL></d:service></d:root>"
    assert upnp.parse_description(text.encode(), AT) == [Control(IP1, Place(5000, "/c"))]


BOMB = b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;">]><a>&y;&y;</a>'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not XML"),
        (b"<a>", "not XML"),
        (b"<a></b>", "not XML"),
        (b"<a>&nothing;</a>", "not XML"),
        (b"HTTP", "not XML"),
        (BOMB, "document type"),
        (b'<!DOCTYPE a SYSTEM "http://198.51.100.1/x"><a/>', "document type"),
        (b"<a>" * (upnp.MAX_DEPTH + 1), "too many elements"),
        (b"<a>" + b"<b/>" * upnp.MAX_ELEMENTS + b"</a>", "too many elements"),
        (b"<a>" + b" " * upnp.MAX_DOCUMENT_BYTES + b"</a>", "too large"),
    ],
)
def test_what_is_no_description_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        upnp.parse_description(data, AT)


def test_the_declared_encoding_does_not_matter() -> None:
    text = b'<?xml version="1.0" encoding="x-nobody-knows"?>' + description((IP1, "/c")).partition(b"?>")[2].strip()
    assert upnp.parse_description(text, AT) == [Control(IP1, Place(5000, "/c"))]


def test_a_text_has_an_end() -> None:
    text = b"<a><service><serviceType>" + b"&#65;" * 20_000 + b"</serviceType></service></a>"
    began = time.process_time()
    leaves = dict(upnp._leaves(text))
    assert time.process_time() - began < 1.0
    assert leaves["serviceType"] == "A" * upnp.MAX_TEXT_CHARS


# --- SOAP ----------------------------------------------------------------------------------------------------------


def test_a_call() -> None:
    body = upnp.call(IP1, "DeletePortMapping", {"NewRemoteHost": "", "NewExternalPort": "7", "NewProtocol": "UDP"})
    assert body.endswith(
        b'<s:Body><u:DeletePortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">'
        b"<NewRemoteHost></NewRemoteHost><NewExternalPort>7</NewExternalPort><NewProtocol>UDP</NewProtocol>"
        b"</u:DeletePortMapping></s:Body></s:Envelope>\r\n"
    )
    assert dict(upnp._leaves(body))["NewExternalPort"] == "7"


def reply(inner: str) -> bytes:
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
        f"<s:Body>{inner}</s:Body></s:Envelope>"
    ).encode()


def test_a_reply() -> None:
    text = reply(
        f'<u:GetExternalIPAddressResponse xmlns:u="{IP1}"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>'
        "</u:GetExternalIPAddressResponse>"
    )
    assert upnp.parse_reply(text, "GetExternalIPAddress")["NewExternalIPAddress"] == "203.0.113.7"
    with pytest.raises(ProtocolError, match="no answer to AddPortMapping"):
        upnp.parse_reply(text, "AddPortMapping")


@pytest.mark.parametrize(("code", "number"), [("725", 725), ("", 0), ("-1", 0), ("9" * 400, 0), ("x", 0)])
def test_a_fault(code: str, number: int) -> None:
    text = reply(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode></UPnPError></detail></s:Fault>'
    )
    with pytest.raises(Fault) as caught:
        upnp.parse_reply(text, "AddPortMapping")
    assert caught.value.code == number


# --- garbage -------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        b"<a>",
        b"</a>",
        b"<service>",
        b"</service>",
        b"<controlURL>",
        b"</controlURL>",
        b"&#65;",
        b"&amp;",
        b"<![CDATA[",
        b"]]>",
        b"<!--",
        b"-->",
        b"http://",
        b":80",
        b"/",
        b"<?xml version='1.0'?>",
        b"<!DOCTYPE",
        b"\xff",
        b"x" * 300,
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=40).map(b"".join))
def test_garbage_is_refused_and_no_more(data: bytes) -> None:
    found = upnp.parse_search_answer(data)
    assert found is None or 0 < found.port <= 0xFFFF
    upnp.parse_search_answer(b"HTTP/1.1 200 OK\r\nST: :InternetGatewayDevice:\r\nLOCATION: http://" + data)
    for text in (data, b"<a>" + data + b"</a>"):
        try:
            upnp.parse_description(text, AT)
        except ProtocolError:
            pass
        try:
            upnp.parse_reply(text, "AddPortMapping")
        except ProtocolError:
            pass
