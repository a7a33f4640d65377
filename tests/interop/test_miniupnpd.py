"""A port mapped by miniupnpd, which is on many home routers: NAT-PMP, PCP and UPnP as somebody else has built them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.interop.rig.home import WAN, Home, home
from tests.interop.rig.internet import Daemon
from tests.netns.port_mapper import ANSWER_S, OUR_PORT, Mapper, mapper
from tsns.node.portmapping import CLOSE_S

pytestmark = pytest.mark.interop

# Its own chains, by the names that it expects; what it does not let in from outside stays out.
CHAINS: Final = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy accept;
        jump miniupnpd
        iifname "wan" ct state new drop
    }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
    chain miniupnpd {
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
}
"""
# It cannot be told to speak only one of the two, so NAT-PMP's datagrams (their first byte is 0) do not reach it.
PCP_ONLY: Final = """
table inet pcp {
    chain input { type filter hook input priority 0; udp dport 5351 @th,64,8 0 drop; }
}
"""
SETTINGS: Final = """
ext_ifname=wan
listening_ip=eth0
enable_natpmp={pmp}
enable_upnp={upnp}
secure_mode=yes
notify_interval=900
uuid=7c4d2a1e-0000-4000-8000-0000000073e5
"""
SERVICES: Final = ("pmp", "pcp", "upnp")


@contextlib.contextmanager
def miniupnpd(home: Home, service: str) -> Iterator[Daemon]:
    """The daemon on the router of a home, speaking one of the services."""
    settings = home.router.directory / "miniupnpd.conf"
    upnp = service == "upnp"
    settings.write_text(SETTINGS.format(pmp="no" if upnp else "yes", upnp="yes" if upnp else "no"))
    words = ("miniupnpd", "-d", "-f", str(settings), "-P", str(home.router.directory / "miniupnpd.pid"))
    with home.router.popen(*words) as daemon:
        daemon.wait_until_said("HTTP listening on port" if upnp else "Listening for NAT-PMP/PCP traffic")
        yield daemon


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as found:
        found.router.run("nft", "-f", "-", stdin=CHAINS)
        yield found


def rules(at_home: Home) -> str:
    """What the daemon has put into its chains."""
    return at_home.router.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd").stdout


def expect_mapping(at_home: Home, program: Mapper, service: str) -> None:
    assert program.says() == {"mapped": [WAN, OUR_PORT]}
    state = program.state()
    assert (state["have"], state[service]) == (True, True)
    assert f"dnat ip to {at_home.machine.address}:{OUR_PORT}" in rules(at_home)


@pytest.mark.parametrize("service", SERVICES)
def test_a_mapping_from_its_beginning_to_its_end(at_home: Home, service: str) -> None:
    if service == "pcp":
        at_home.router.run("nft", "-f", "-", stdin=PCP_ONLY)
    with miniupnpd(at_home, service) as daemon, mapper(at_home) as program:
        expect_mapping(at_home, program, service)
        assert at_home.is_reached_at((WAN, OUR_PORT), ANSWER_S)
        end = program.close()
        assert end["closed_s"] < CLOSE_S
        assert end["left"] == []
        assert "dnat" not in rules(at_home), daemon.said()
    assert not at_home.is_reached_at((WAN, OUR_PORT), 0.2)


@pytest.mark.parametrize("service", SERVICES)
def test_a_port_that_another_machine_has(at_home: Home, service: str) -> None:
    """The router's own choice, or by UPnP a second try, is another external port."""
    if service == "pcp":
        at_home.router.run("nft", "-f", "-", stdin=PCP_ONLY)
    with miniupnpd(at_home, service):
        first = at_home.machine.address
        machine = at_home.machine
        with mapper(at_home) as program:
            expect_mapping(at_home, program, service)
            # The same machine with another address is another machine to the router.
            machine.run("ip", "address", "delete", f"{first}/24", "dev", "eth0")
            machine.run("ip", "address", "add", "10.91.0.77/24", "dev", "eth0")
            machine.run("ip", "route", "add", "default", "via", at_home.router.address)
            program.tell("changed")
            assert program.says() == {"mapped": None}
            external = program.says()["mapped"]
            assert external[0] == WAN
            assert external[1] != OUR_PORT
            assert at_home.is_reached_at((WAN, external[1]), ANSWER_S)
            program.close()


@pytest.mark.parametrize("service", ["pmp", "pcp"])
def test_a_daemon_that_has_started_anew(at_home: Home, service: str) -> None:
    """Its clock says so, and it is asked again; meanwhile it had forgotten us."""
    if service == "pcp":
        at_home.router.run("nft", "-f", "-", stdin=PCP_ONLY)
    with contextlib.ExitStack() as ended_last:
        with miniupnpd(at_home, service):
            program = ended_last.enter_context(mapper(at_home))
            expect_mapping(at_home, program, service)
            time.sleep(4.0)  # so that its clock has something to go back
        at_home.router.run("nft", "flush", "chain", "inet", "filter", "prerouting_miniupnpd")
        with miniupnpd(at_home, service):
            program.tell("changed")
            deadline = time.monotonic() + ANSWER_S
            while "dnat" not in rules(at_home):
                assert time.monotonic() < deadline, "it was not asked again"
                time.sleep(0.1)
            assert program.state()["external"] == [WAN, OUR_PORT]
            assert at_home.is_reached_at((WAN, OUR_PORT), ANSWER_S)
            program.close()
