"""The parts about direct paths. They take minutes, and run only when they are named."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.bench.contenders import CONTENDERS, Station, in_turn
from tests.bench.grid import Meeting
from tests.bench.parts import Bench, new_tailnet
from tests.interop.rig.internet import Host, wait_for
from tests.interop.rig.pinger import Pinger
from tests.interop.rig.router import Nat
from tests.interop.rig.tailnet import Tailnet

RELAYED_AFTER_S: Final = 12.0  # a pair that is not direct by then, from the return of `up`, counts as relayed
OLD_S: Final = 5.0  # how long the old node has been up
GRID_PING_S: Final = 0.01
CUT_PING_S: Final = 0.05
FLOW_S: Final = 5.0  # of a direct path before it is cut
PHASES: Final = 3  # further seconds, one more in each round: paths are looked at every 3 s, and when it is cut must not always be the same
CUT_S: Final = 20.0
BACK_PATIENCE_S: Final = 60.0  # for a direct path after the cut
SETTLE_S: Final = 60.0  # without traffic, before packets count as idle ones
IDLE_S: Final = 60.0
FIRST_ADDRESSES: Final = ("100.64.0.1", "100.64.0.2")  # which the control servers give to the first two nodes


def paths(bench: Bench) -> None:
    """A new node behind each kind of NAT, reached by an old one behind each: how soon, and directly or not."""
    kinds = (Nat.NONE, Nat.FIREWALL) if bench.quick else tuple(Nat)
    for number in range(bench.rounds):
        for old, new in itertools.combinations_with_replacement(kinds, 2):
            for contender in in_turn(number):
                bench.grid.add((old.value, new.value), contender, _meet(bench, contender, old, new))


def _meet(bench: Bench, contender: str, old_kind: Nat, new_kind: Nat) -> Meeting:
    with new_tailnet(bench.control) as net, _pair(net, contender, old_kind, new_kind) as (old, new):
        old.up()
        time.sleep(OLD_S)
        netns, address = old.netns(), FIRST_ADDRESSES[1]
        began = time.monotonic()
        new.up()
        up = time.monotonic()
        with Pinger(netns, address, GRID_PING_S) as pinger, ThreadPoolExecutor(1) as aside:
            waiting = aside.submit(pinger.wait_for_answer, up, RELAYED_AFTER_S)
            is_direct = old.until_direct(address, RELAYED_AFTER_S)
            direct = time.monotonic()
            pong = waiting.result()
        assert new.address() == address, f"{new.address()} is not the second address"
        return Meeting(up - began, pong - began, direct - began if is_direct else None)


@contextlib.contextmanager
def _pair(net: Tailnet, contender: str, old: Nat = Nat.NONE, new: Nat = Nat.NONE) -> Iterator[tuple[Station, Station]]:
    """Two stations of one contender that are not held to the relay."""
    station = CONTENDERS[contender]
    with station(net, only_relays=False, behind=old) as one, station(net, only_relays=False, behind=new) as two:
        yield one, two


def cut(bench: Bench) -> None:
    """UDP cut while pings go to and fro directly, and let through again: how long nothing comes back, and until it is direct again."""
    cut_s = CUT_S / 2 if bench.quick else CUT_S
    for number in range(bench.rounds):
        for contender in in_turn(number):
            with new_tailnet(bench.control) as net, _pair(net, contender) as (one, two):
                _cut(bench, one, two, FLOW_S + number % PHASES, cut_s)


def _cut(bench: Bench, one: Station, two: Station, flow_s: float, cut_s: float) -> None:
    one.up()
    two.up()
    address = two.address()
    with Pinger(one.netns(), address, CUT_PING_S) as pinger:
        if not one.until_direct(address, RELAYED_AFTER_S):
            bench.notes.append(f"cut: {one.contender} has no direct path that could be cut")
            return
        time.sleep(flow_s)
        began = time.monotonic()
        two.host.uplink.block_udp()
        time.sleep(cut_s)
        assert not one.is_direct(address), f"{one.contender} has not noticed that UDP was cut"
        ended = time.monotonic()
        two.host.uplink.unblock_udp()
        bench.add("cut", "silence when UDP is cut", "s", one.contender, pinger.longest_silence_s(began, ended))
        wait_for(lambda: one.is_direct(address), f"{one.contender}: direct again", BACK_PATIENCE_S)
        bench.add("cut", "direct again after the cut", "s", one.contender, time.monotonic() - ended)
        lost = pinger.unanswered(began, ended)
        bench.add("cut", f"pings lost in {cut_s:.0f} s of cut UDP, {1 / CUT_PING_S:.0f}/s", "", one.contender, lost)


def packets(bench: Bench) -> None:
    """What goes over the underlay when nothing goes on: two nodes that knew each other a while ago, both contenders at the same time."""
    for _ in range(bench.rounds):
        with ThreadPoolExecutor(len(CONTENDERS)) as contenders:
            for each in [contenders.submit(_idle, bench, contender) for contender in CONTENDERS]:
                each.result()


def _idle(bench: Bench, contender: str) -> None:
    settle_s, idle_s = (SETTLE_S / 4, IDLE_S / 4) if bench.quick else (SETTLE_S, IDLE_S)
    with new_tailnet(bench.control) as net, _pair(net, contender) as stations:
        for station in stations:
            station.up()
        stations[0].until_direct(stations[1].address(), RELAYED_AFTER_S)
        time.sleep(settle_s)
        before = [_passed(station.host) for station in stations]
        time.sleep(idle_s)
        for station, (packets_before, bytes_before) in zip(stations, before, strict=True):
            passed, octets = _passed(station.host)
            what = f"in {idle_s:.0f} idle s, to and from a node"
            bench.add("packets", f"packets {what}", "", contender, passed - packets_before)
            bench.add("packets", f"bytes {what}", "B", contender, octets - bytes_before)


def _passed(host: Host) -> tuple[int, int]:
    """Packets and bytes of both directions that a host's device has seen so far."""
    link = json.loads(host.run("ip", "-json", "-statistics", "link", "show", "dev", "eth0").stdout)[0]
    counts = [link["stats64"][direction] for direction in ("rx", "tx")]
    return sum(count["packets"] for count in counts), sum(count["bytes"] for count in counts)
