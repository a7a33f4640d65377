"""The way out, as the kernel's table of routes tells it."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.netns import gateway
from tsns.netns.gateway import default_gateways, parse

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT      \n"


def route(destination: str = "0.0.0.0", via: str = "192.168.1.1", flags: int = 3, mask: str = "0.0.0.0") -> str:
    words = [destination, via, mask]
    a, b, c = (int.from_bytes(bytes(map(int, word.split("."))), sys.byteorder) for word in words)
    return f"eth0\t{a:08X}\t{b:08X}\t{flags:04X}\t0\t0\t100\t{c:08X}\t0\t0\t0      \n"


def test_a_line_as_the_kernel_writes_it() -> None:
    address = "0101A8C0" if sys.byteorder == "little" else "C0A80101"
    line = f"eth0\t00000000\t{address}\t0003\t0\t0\t100\t00000000\t0\t0\t0 \n"
    assert parse(HEAD + line) == ["192.168.1.1"]
    assert line.split() == route().split()


def test_default_routes_over_a_gateway_in_their_order() -> None:
    table = (
        HEAD
        + route(via="203.0.113.1")
        + route(via="10.0.0.1", flags=7)
        + route(via="10.0.0.2", flags=2)  # down
        + route(via="0.0.0.0", flags=1)  # straight out of a device
        + route("0.0.0.0", "10.0.0.3", mask="128.0.0.0")  # half of everything
        + route("192.168.1.0", "0.0.0.0", 1, "255.255.255.0")
    )
    assert parse(table) == ["203.0.113.1", "10.0.0.1"]


def test_a_table_that_was_cut_off() -> None:
    table = HEAD + route() + route(via="10.0.0.1")
    assert parse(table[:-60]) == ["192.168.1.1"]
    assert parse("") == parse(HEAD) == []


def test_no_more_than_so_much_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    table = f"{tmp_path}/route"
    with open(table, "w", encoding="ascii") as file:
        file.write(HEAD + route(flags=1) * 2000 + route())
    monkeypatch.setattr(gateway, "ROUTES", table)
    assert default_gateways() == []
    monkeypatch.setattr(gateway, "MAX_TABLE_BYTES", 1 << 20)
    assert default_gateways() == ["192.168.1.1"]
    monkeypatch.setattr(gateway, "ROUTES", f"{tmp_path}/none")
    assert default_gateways() == []


@given(st.text(alphabet="0123456789ABCDEFG-x \t\n", max_size=300))
def test_garbage_does_not_raise(text: str) -> None:
    parse(HEAD + text)
    parse(HEAD + f"eth0\t00000000\t{text}\t0003\t0\t0\t0\t00000000")
