"""Two nodes of one machine that have the same address, on two tailnets: neither gets a packet of the other's."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.interop.rig.internet import Daemon, Internet
from tests.interop.rig.tsns import Tsns, tsns_on
from tests.leak.sniffer import Sniffer, sniffing
from tests.leak.stage import lab_on

pytestmark = pytest.mark.netns

PORT: Final = 4600
THEIR_ADDRESS: Final = "100.64.0.2"
OUR_ADDRESS: Final = "100.64.0.1"
SERVER: Final = f"""
import socket, sys
name = sys.argv[1].encode()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", {PORT}))
print("serves", flush=True)
while True:
    said, sender = sock.recvfrom(2000)
    sock.sendto(name, sender)
"""
CLIENT: Final = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(0.5)
heard = set()
for _ in range(6):
    sock.sendto(sys.argv[1].encode(), ("{THEIR_ADDRESS}", {PORT}))
    try: heard.add(sock.recv(100).decode())
    except OSError: pass
print(*sorted(heard))
"""


def heard(tsns: Tsns, name: str, said: str) -> list[str]:
    """Who answers what this node says to the peer's address."""
    return tsns.inside(name, sys.executable, "-c", CLIENT, said).stdout.split()


@contextlib.contextmanager
def serving(tsns: Tsns, name: str) -> Iterator[Daemon]:
    """A server that answers with its node's name."""
    with tsns.start_inside(name, sys.executable, "-c", SERVER, name, log=f"server-{name}") as server:
        server.wait_until_said("serves")
        yield server


def passed(sniffer: Sniffer) -> bytes:
    """All that passed, one after the other."""
    return b"|".join(frame.data for frame in sniffer.seen())


def test_neither_gets_a_packet_of_the_others(tmp_path: Path) -> None:
    with Internet(tmp_path) as internet, contextlib.ExitStack() as stack:
        near, far, red, blue = (internet.host(name) for name in ("near", "far", "red", "blue"))
        labs = {host.name: stack.enter_context(lab_on(host)) for host in (red, blue)}
        ours, theirs = stack.enter_context(tsns_on(near)), stack.enter_context(tsns_on(far))
        sniffers, engines = {}, {}
        for tailnet, lab in labs.items():
            ours.run("up", f"our-{tailnet}", *lab.login)
            theirs.run("up", f"their-{tailnet}", *lab.login)
            assert ours.ip(f"our-{tailnet}") == OUR_ADDRESS
            assert theirs.ip(f"their-{tailnet}") == THEIR_ADDRESS
            server = stack.enter_context(serving(theirs, f"their-{tailnet}"))
            sniffers[tailnet] = stack.enter_context(sniffing(f"/proc/{server.process.pid}/ns/net"))
            engines[tailnet] = theirs.status(f"their-{tailnet}")["pid"]

        for tailnet in labs:  # each reaches its own
            assert heard(ours, f"our-{tailnet}", f"said-in-{tailnet}") == [f"their-{tailnet}"]
        for tailnet, other in (("red", "blue"), ("blue", "red")):
            assert f"said-in-{tailnet}".encode() in passed(sniffers[tailnet])
            assert f"said-in-{other}".encode() not in passed(sniffers[tailnet])

        os.kill(engines["blue"], signal.SIGSTOP)  # and with its own away, nobody
        try:
            assert heard(ours, "our-blue", "said-to-nobody") == []
            assert heard(ours, "our-red", "said-again") == ["their-red"]
        finally:
            os.kill(engines["blue"], signal.SIGCONT)
        assert b"said-again" in passed(sniffers["red"])
        assert b"said-to-nobody" not in passed(sniffers["red"])
