"""How long a person waits, beside how long the official client lets them wait in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import tsns_on

pytestmark = pytest.mark.interop

ROUNDS = 3
MOST_RATIO = 1.5  # of the official client's start and `up`


def start_of_official_client(tailnet: Tailnet) -> float:
    key = tailnet.control.auth_key()
    with tailnet.host("official") as host:
        client = Tailscaled(host)
        try:
            began = time.perf_counter()
            client.start()
            client.up(tailnet.control.url, key)
            return time.perf_counter() - began
        finally:
            client.stop()


def start_of_tsns(tailnet: Tailnet) -> float:
    flags = ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key())
    with tailnet.host("ours") as host, tsns_on(host) as tsns:
        began = time.perf_counter()
        tsns.run("up", "timed", *flags, "--hostname", host.name)
        return time.perf_counter() - began


def test_up_takes_no_more_than_half_as_long_again(
    tailnet: Tailnet, record_property: Callable[[str, object], None]
) -> None:
    official, ours = [], []
    for _ in range(ROUNDS):
        official.append(start_of_official_client(tailnet))
        ours.append(start_of_tsns(tailnet))

    record_property("official_up_s", statistics.median(official))
    record_property("tsns_up_s", statistics.median(ours))
    assert statistics.median(ours) <= MOST_RATIO * statistics.median(official), f"tsns {ours}, tailscaled {official}"
