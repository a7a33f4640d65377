"""A port mapped at the router of a home of namespaces: what goes over the wire, what changes there, and the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.interop.rig.home import WAN, Home, home
from tests.netns.port_mapper import ANSWER_S, OUR_PORT, mapper
from tests.unit.paths.home_router import PCP, PMP, PORT, HomeRouter
from tsns.node.portmapping import CLOSE_S

pytestmark = pytest.mark.netns

EXTERNAL: Final = "203.0.113.7"


@contextlib.contextmanager
def served(home: Home, router: HomeRouter, answer_from: int = PORT) -> Iterator[None]:
    """The router answers on its address at home."""
    sock = home.router.udp_socket(PORT)
    mouth = sock if answer_from == PORT else home.router.udp_socket(answer_from)
    sock.settimeout(0.05)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                data, source = sock.recvfrom(2048)
                answer = router.answer(data, source[0], time.monotonic())
                if answer is not None:
                    mouth.sendto(answer, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sock.close()
        mouth.close()


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as found:
        yield found


@pytest.mark.parametrize(("version", "name"), [(PMP, "pmp"), (PCP, "pcp")])
def test_a_mapping_from_its_beginning_to_its_end(at_home: Home, version: int, name: str) -> None:
    router = HomeRouter(external=EXTERNAL, speaks={version}, started_at=time.monotonic() - 1000)
    with served(at_home, router), mapper(at_home) as program:
        assert program.says() == {"mapped": [EXTERNAL, 40000]}
        assert router.mappings[at_home.machine.address, OUR_PORT][0] == 40000
        state = program.state()
        assert (state["external"], state["have"], state[name]) == ([EXTERNAL, 40000], True, True)
        end = program.close()
        assert end["closed_s"] < CLOSE_S
        assert end["left"] == []
        assert router.mappings == {}


def test_a_router_without_such_services_is_left_alone(at_home: Home) -> None:
    with mapper(at_home) as program:
        state = program.until(pmp=False, pcp=False, upnp=False)
        assert (state["external"], state["have"]) == (None, False)
        assert program.close()["closed_s"] < CLOSE_S


def test_a_silent_router_holds_nothing_up(at_home: Home) -> None:
    router = HomeRouter()
    with served(at_home, router), mapper(at_home) as program:
        assert "mapped" in program.says()
        router.silent = True
        end = program.close()
        assert end["closed_s"] < CLOSE_S + 0.5
        assert end["left"] == []


def test_only_the_router_is_listened_to(at_home: Home) -> None:
    """An answer from another port does nothing, even if it is the router's."""
    router = HomeRouter(external=EXTERNAL)
    with served(at_home, router, answer_from=PORT - 1), mapper(at_home) as program:
        state = program.until(pmp=False, pcp=False)
        assert state["external"] is None
    assert router.mappings, "it did answer"


def test_another_network(at_home: Home) -> None:
    router = HomeRouter(external=EXTERNAL, started_at=time.monotonic() - 1000)
    with served(at_home, router), mapper(at_home) as program:
        assert program.says() == {"mapped": [EXTERNAL, 40000]}
        at_home.machine.run("ip", "route", "delete", "default")
        program.tell("changed")
        assert program.says() == {"mapped": None}
        assert program.state() == {"external": None, "have": False, "pmp": None, "pcp": None, "upnp": None}
        at_home.machine.run("ip", "route", "add", "default", "via", at_home.router.address)
        program.tell("changed")
        assert program.says() == {"mapped": [EXTERNAL, 40000]}


def test_another_address_of_our_own(at_home: Home) -> None:
    router = HomeRouter(external=EXTERNAL, started_at=time.monotonic() - 1000)
    with served(at_home, router), mapper(at_home) as program:
        assert program.says() == {"mapped": [EXTERNAL, 40000]}
        machine = at_home.machine
        machine.run("ip", "address", "delete", f"{machine.address}/24", "dev", "eth0")  # and with it the route
        machine.run("ip", "address", "add", "10.91.0.77/24", "dev", "eth0")
        machine.run("ip", "route", "add", "default", "via", at_home.router.address)
        program.tell("changed")
        assert program.says() == {"mapped": None}
        assert program.says() == {"mapped": [EXTERNAL, 40001]}
        assert ("10.91.0.77", OUR_PORT) in router.mappings


def test_a_router_that_only_looks_alike(at_home: Home) -> None:
    with mapper(at_home) as program:
        with served(at_home, HomeRouter(external=EXTERNAL, started_at=time.monotonic() - 1000)):
            assert program.says() == {"mapped": [EXTERNAL, 40000]}
        with served(at_home, HomeRouter(external="198.51.100.9", started_at=time.monotonic() - 5)):
            program.tell("changed")
            assert program.says() == {"mapped": ["198.51.100.9", 40000]}


def test_no_gateway_no_question(at_home: Home) -> None:
    at_home.machine.run("ip", "route", "replace", "default", "dev", "eth0")
    router = HomeRouter()
    with served(at_home, router), mapper(at_home) as program:
        assert program.state() == {"external": None, "have": False, "pmp": None, "pcp": None, "upnp": None}
        program.close()
    assert router.heard == []


def test_somebody_outside_gets_in(at_home: Home) -> None:
    """Where the router does what it says, a datagram from outside reaches the port, and the answer comes back."""
    to = f"{at_home.machine.address}:{OUR_PORT}"
    at_home.router.run(
        *("nft", "-f", "-"),
        stdin=f"""table ip promised {{
            chain enter {{ type nat hook prerouting priority -100; iifname "wan" udp dport 40000 dnat to {to}; }}
        }}""",
    )
    with served(at_home, HomeRouter(external=WAN)), mapper(at_home) as program:
        assert program.says() == {"mapped": [WAN, 40000]}
        assert at_home.is_reached_at((WAN, 40000), ANSWER_S)
