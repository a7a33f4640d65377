"""Requests are read as Go reads them."""

from __future__ import annotations

import pytest

from tsns.error import ProtocolError
from tsns.lab import requests
from tsns.proto.types import MapRequest, RegisterRequest


def test_members_may_have_any_case_and_hostinfo_keeps_what_we_do_not_know() -> None:
    body = (
        b'{"VERSION":131,"nodekey":"nodekey:1","HostInfo":{"hostNAME":"web","Novel":[1],"netinfo":{"preferredderp":7}}}'
    )
    request, hostinfo = requests.read(body, MapRequest)
    assert (request.version, request.node_key) == (131, "nodekey:1")
    assert request.hostinfo is not None
    assert request.hostinfo.hostname == "web"
    assert request.hostinfo.net_info is not None
    assert request.hostinfo.net_info.preferred_derp == 7
    assert hostinfo == {"Hostname": "web", "Novel": [1], "NetInfo": {"PreferredDERP": 7}}


def test_null_is_absent() -> None:
    request, hostinfo = requests.read(b'{"Version":131,"Hostinfo":null,"Auth":null,"Expiry":null}', RegisterRequest)
    assert request == RegisterRequest(version=131)
    assert hostinfo is None


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b'{"Version":"x"}', b"\xff", b'{"a":' * 5000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        requests.read(body, RegisterRequest)
