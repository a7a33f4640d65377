"""The addresses of a network namespace and their changes, in one that this test makes and nothing else is in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.netns

# Runs in a namespace of its own, which ends with it: reports as JSON what is seen after each step.
PROGRAM = """
import json, select, subprocess, time
from tsns.netns import host_network

changes = host_network.Changes()
steps = {}

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def is_readable(timeout_s):
    return bool(select.select([changes], [], [], timeout_s)[0])

def settled(wanted, timeout_s=10.0):
    # The kernel makes sure for a while that an IPv6 address is nobody else's, and a link takes its time.
    ends = time.monotonic() + timeout_s
    while not wanted() and time.monotonic() < ends:
        is_readable(0.2)
        changes.clear()

def step(name, wanted=lambda: True):
    readable = is_readable(1.0)
    settled(wanted)
    changes.clear()
    steps[name] = [readable, sorted(host_network.addresses()), list(host_network.source_addresses())]

step("empty")
ip("link", "set", "lo", "up")
step("loopback", lambda: "::1" in host_network.addresses())
ip("link", "add", "one", "type", "veth", "peer", "name", "two")
for device in ("one", "two"):
    ip("link", "set", device, "addrgenmode", "none")
    ip("link", "set", device, "up")
step("links")
ip("addr", "add", "192.0.2.7/24", "dev", "one")
ip("addr", "add", "10.9.8.1", "peer", "10.9.8.2/32", "dev", "one")
step("IPv4")
ip("addr", "add", "fd00:7::7/64", "dev", "one")
tentative = host_network.addresses()
step("IPv6", lambda: "fd00:7::7" in host_network.addresses())
steps["tentative"] = tentative
ip("route", "add", "default", "via", "192.0.2.1")
ip("-6", "route", "add", "default", "via", "fd00:7::1")
step("routes")
is_quiet = not is_readable(0.3)
ip("addr", "del", "192.0.2.7/24", "dev", "one")
step("one less")
ip("link", "del", "one")
step("link gone")
for number in range(300):
    steps.setdefault("batch", []).append(f"addr add 198.51.{100 + number // 200}.{1 + number % 200}/32 dev lo")
subprocess.run(["ip", "-batch", "-"], input="\\n".join(steps.pop("batch")), text=True, check=True)
steps["many"] = len(host_network.addresses())
wake_ups = 0
while is_readable(0.3) and wake_ups < 100:  # a wake-up reads some of what is there
    changes.clear()
    wake_ups += 1
steps["quiet"] = [is_quiet, 1 < wake_ups < 100]
changes.close()
print(json.dumps(steps))
"""
LOOPBACK = ["127.0.0.1", "::1"]
POINT_TO_POINT = "10.9.8.1"  # our end, not the other one


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_empty_namespace_has_no_address_and_leads_nowhere(steps: dict[str, Any]) -> None:
    assert steps["empty"] == [False, [], []]


def test_each_change_is_heard_of_and_seen(steps: dict[str, Any]) -> None:
    assert steps["loopback"] == [True, LOOPBACK, []]
    assert steps["links"] == [True, LOOPBACK, []]
    assert steps["IPv4"] == [True, sorted([*LOOPBACK, POINT_TO_POINT, "192.0.2.7"]), []]
    assert steps["IPv6"] == [True, sorted([*LOOPBACK, POINT_TO_POINT, "192.0.2.7", "fd00:7::7"]), []]
    assert steps["routes"] == [True, steps["IPv6"][1], ["192.0.2.7", "fd00:7::7"]]
    assert steps["one less"] == [True, sorted([*LOOPBACK, POINT_TO_POINT, "fd00:7::7"]), [POINT_TO_POINT, "fd00:7::7"]]
    assert steps["link gone"] == [True, LOOPBACK, []]


def test_an_address_that_may_be_somebody_elses_is_none_yet(steps: dict[str, Any]) -> None:
    assert "fd00:7::7" not in steps["tentative"]


def test_without_a_change_there_is_quiet(steps: dict[str, Any]) -> None:
    assert steps["quiet"] == [True, True]


def test_of_a_host_with_very_many_addresses_some_are_told(steps: dict[str, Any]) -> None:
    assert steps["many"] == 256
