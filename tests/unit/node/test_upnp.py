"""Ports mapped by UPnP, with gateways on loopback: the ways in which they differ, and the ways of a hostile one."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine
from typing import TypeVar

import pytest

from tests.unit.node.fake_igd import IP1, IP2, PPP1, FakeIgd
from tsns.netns.underlay import CONNECT_TIMEOUT_S, Stream, Underlay
from tsns.node import upnp as edge
from tsns.node.upnp import EFFORT_S, Upnp
from tsns.paths import upnp
from tsns.paths.portmap import LIFETIME_S, UPNP_S, TryUpnp, UpnpOutcome

T = TypeVar("T")

GATEWAY = "127.0.0.1"
ASKED = TryUpnp(GATEWAY, GATEWAY, 41673, 0)
EXTERNAL = ("203.0.113.7", 41673)


class WatchedUnderlay(Underlay):
    """Says to whom it connected."""

    def __init__(self) -> None:
        super().__init__()
        self.connected: set[str] = set()

    async def open_tcp(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Stream:
        self.connected.add(host)
        assert host == GATEWAY, "nobody else may be asked, in a test least of all"
        return await super().open_tcp(host, port, tls=tls, server_hostname=server_hostname, timeout_s=timeout_s)


@pytest.fixture
def underlay() -> WatchedUnderlay:
    return WatchedUnderlay()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "SEARCH_S", 0.3)


def run(test: Coroutine[None, None, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await test

    return asyncio.run(bounded())


def mapped(igd: FakeIgd, underlay: Underlay, monkeypatch: pytest.MonkeyPatch, asked: TryUpnp = ASKED) -> UpnpOutcome:
    async def test() -> UpnpOutcome:
        async with igd:
            monkeypatch.setattr(upnp, "SSDP_PORT", igd.ssdp_port)
            return await Upnp(underlay).map(asked)

    return run(test())


def actions(igd: FakeIgd) -> list[str]:
    return [action for _, action, _ in igd.asked]


def test_a_mapping_and_its_end(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd()

    async def test() -> None:
        async with igd:
            monkeypatch.setattr(upnp, "SSDP_PORT", igd.ssdp_port)
            client = Upnp(underlay)
            assert await client.map(ASKED) == UpnpOutcome(ASKED, found=True, external=EXTERNAL)
            assert igd.mapped["41673"] == {
                "NewRemoteHost": "",
                "NewExternalPort": "41673",
                "NewProtocol": "UDP",
                "NewInternalPort": "41673",
                "NewInternalClient": GATEWAY,
                "NewEnabled": "1",
                "NewPortMappingDescription": "tsns",
                "NewLeaseDuration": str(LIFETIME_S),
            }
            await client.release("192.168.1.1", 41673)
            assert igd.mapped, "that one gave nothing"
            await client.release(GATEWAY, 41673)
            assert igd.mapped == {}
            await client.release(GATEWAY, 41673)

    run(test())
    assert actions(igd) == ["GetExternalIPAddress", "AddPortMapping", "DeletePortMapping"]
    assert igd.searches[0] == upnp.search(upnp.SEARCH_ALL, GATEWAY)


def test_the_port_that_we_had_is_wanted_again(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = mapped(FakeIgd(), underlay, monkeypatch, TryUpnp(GATEWAY, GATEWAY, 41673, 5000))
    assert outcome.external == ("203.0.113.7", 5000)


def test_a_newer_service_may_choose_the_port(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(services=(IP1, IP2), reserves="6000")
    assert mapped(igd, underlay, monkeypatch).external == ("203.0.113.7", 6000)
    assert [path for path, _, _ in igd.asked] == ["/ctl/1", "/ctl/1"]
    assert actions(igd)[-1] == "AddAnyPortMapping"


def test_a_line_that_is_down_is_passed_over(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(services=(IP1, PPP1), externals={IP1: "0.0.0.0"})
    assert mapped(igd, underlay, monkeypatch).external == EXTERNAL
    assert [path for path, _, _ in igd.asked] == ["/ctl/0", "/ctl/1", "/ctl/1"]


def test_a_service_that_refuses_is_passed_over(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(services=(IP1, PPP1), refuse={"GetExternalIPAddress": [501]})
    assert mapped(igd, underlay, monkeypatch).external == EXTERNAL


@pytest.mark.parametrize("code", [402, 725])
def test_a_gateway_that_knows_permanent_leases_only(
    code: int, underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    igd = FakeIgd(refuse={"AddPortMapping": [code]})
    assert mapped(igd, underlay, monkeypatch).external == EXTERNAL
    assert igd.mapped["41673"]["NewLeaseDuration"] == "0"


def test_a_port_that_somebody_else_has(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(refuse={"AddPortMapping": [718, 718]})
    external = mapped(igd, underlay, monkeypatch).external
    assert external is not None
    assert external[1] >= 1024
    assert {str(external[1])} == set(igd.mapped)


def test_a_gateway_that_wants_the_same_port(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(refuse={"AddPortMapping": [724]})
    asked = TryUpnp(GATEWAY, GATEWAY, 41673, 5000)
    assert mapped(igd, underlay, monkeypatch, asked).external == EXTERNAL


def test_a_new_service_with_the_old_action_only(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(services=(IP2,), refuse={"AddAnyPortMapping": [401]})
    assert mapped(igd, underlay, monkeypatch).external == EXTERNAL
    assert actions(igd)[-1] == "AddPortMapping"


@pytest.mark.parametrize("codes", [[606], [718] * 99, [402, 402], [0]])
def test_a_refusal_is_the_end_of_it(
    codes: list[int], underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    igd = FakeIgd(refuse={"AddPortMapping": codes})
    assert mapped(igd, underlay, monkeypatch) == UpnpOutcome(ASKED, found=True)
    assert len(igd.asked) <= 1 + edge.MAX_ADDITIONS


def test_an_answer_in_chunks(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mapped(FakeIgd(chunked=True), underlay, monkeypatch).external == EXTERNAL


def test_nobody_there(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    igd = FakeIgd(silent=True)
    assert mapped(igd, underlay, monkeypatch) == UpnpOutcome(ASKED, found=False)
    assert igd.searches


# --- a hostile one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "igd",
    [
        FakeIgd(location_host="198.51.100.1"),
        FakeIgd(location_host="localhost"),
        FakeIgd(control_url="http://198.51.100.1:{port}/ctl"),
        FakeIgd(control_url="http://metadata.example:{port}/ctl"),
    ],
    ids=["location", "a name as location", "control URL", "a name as control URL"],
)
def test_nobody_but_the_gateway_is_ever_asked(
    igd: FakeIgd, underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mapped(igd, underlay, monkeypatch).external == EXTERNAL
    assert underlay.connected == {GATEWAY}


def test_a_redirection_is_not_followed(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mapped(FakeIgd(description_status=302), underlay, monkeypatch) == UpnpOutcome(ASKED, found=False)


def test_somebody_else_who_answers_the_search(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes to 127.0.0.2, and 127.0.0.1 answers it."""

    async def test() -> None:
        async with FakeIgd() as igd:
            monkeypatch.setattr(upnp, "SSDP_PORT", igd.ssdp_port)
            monkeypatch.setattr(upnp, "SSDP_GROUP", GATEWAY)  # as if it sat in the group
            asked = TryUpnp("127.0.0.2", GATEWAY, 41673, 0)
            assert await Upnp(underlay).map(asked) == UpnpOutcome(asked, found=False)
            assert igd.searches
            assert igd.asked == []

    run(test())


@pytest.mark.parametrize(
    "igd",
    [
        FakeIgd(description=b"<a>" * 100_000),
        FakeIgd(description=b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>"),
        FakeIgd(description=b"x" * (upnp.MAX_DOCUMENT_BYTES + 1)),
        FakeIgd(description=b""),
        FakeIgd(endless=True),
        FakeIgd(slow=True),
    ],
    ids=["deep", "entities", "large", "empty", "endless", "slow"],
)
def test_a_description_that_is_none_costs_little(
    igd: FakeIgd, underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert mapped(igd, underlay, monkeypatch) == UpnpOutcome(ASKED, found=False)
    assert time.monotonic() - began < EFFORT_S


def test_an_endless_answer_is_not_waited_for(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("EFFORT_S", "REQUEST_S"):
        monkeypatch.setattr(edge, limit, 3600.0)
    assert mapped(FakeIgd(endless=True), underlay, monkeypatch) == UpnpOutcome(ASKED, found=False)


def test_the_whole_of_it_is_over_in_time(underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EFFORT_S < UPNP_S
    monkeypatch.setattr(edge, "EFFORT_S", 0.4)
    monkeypatch.setattr(edge, "REQUEST_S", 60.0)
    began = time.monotonic()
    assert mapped(FakeIgd(slow=True), underlay, monkeypatch).external is None
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("external", ["", "192.168.1", "100.64.0.1", "127.0.0.1", "203.0.113.7.example", "::1"])
def test_an_external_address_of_no_use_gets_no_mapping(
    external: str, underlay: WatchedUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    igd = FakeIgd(externals={IP1: external})
    assert mapped(igd, underlay, monkeypatch) == UpnpOutcome(ASKED, found=True)
    assert actions(igd) == ["GetExternalIPAddress"]
