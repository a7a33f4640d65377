"""Which addresses an engine may ask for."""

from __future__ import annotations

import pytest

from tsns.netns.routes import MAX_ADDRESSES, check


def test_tailnet_addresses_may_be_had() -> None:
    assert [str(prefix) for prefix in check(["100.64.0.1", "fd7a:115c:a1e0::1/128"])] == [
        "100.64.0.1/32",
        "fd7a:115c:a1e0::1/128",
    ]


@pytest.mark.parametrize(
    "wish",
    [
        "0.0.0.0/0",
        "10.0.0.1/32",
        "100.64.0.0/10",
        "127.0.0.1",
        "100.128.0.1",
        "::/0",
        "fe80::1",
        "fd7a:115c:a1e1::1",
        "x",
        "",
    ],
)
def test_nothing_else_may(wish: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check(["100.64.0.1", wish])


def test_their_number_is_bounded() -> None:
    with pytest.raises(ValueError, match="17 addresses"):
        check(["100.64.0.1"] * (MAX_ADDRESSES + 1))
