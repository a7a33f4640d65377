"""Which addresses and routes an engine may ask for."""

from __future__ import annotations

import pytest

from tsns.netns.routes import MAX_ADDRESSES, MAX_ROUTES, check

OWN = ["100.64.0.1"]


def test_tailnet_addresses_may_be_had() -> None:
    own, led = check(["100.64.0.1", "fd7a:115c:a1e0::1/128"])
    assert [str(prefix) for prefix in own] == ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
    assert led == []


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
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(MAX_ROUTES + 1)]
    assert len(check(OWN, many[:-1], accepts_routes=True)[1]) == MAX_ROUTES
    with pytest.raises(ValueError, match=f"{MAX_ROUTES + 1} routes"):
        check(OWN, many, accepts_routes=True)


@pytest.mark.parametrize(("accepts", "exit_node"), [(False, False), (False, True), (True, False), (True, True)])
def test_routes_are_a_persons_to_accept(accepts: bool, exit_node: bool) -> None:
    for route, fine in (
        ("10.1.0.0/16", accepts),
        ("0.0.0.0/0", exit_node),
        ("::/0", exit_node),
        ("0.0.0.0/1", accepts),
    ):
        if fine:
            assert [str(prefix) for prefix in check(OWN, [route], accepts_routes=accepts, exit_node=exit_node)[1]] == [
                route
            ]
        else:
            with pytest.raises(ValueError, match="nobody has accepted"):
                check(OWN, [route], accepts_routes=accepts, exit_node=exit_node)


@pytest.mark.parametrize(
    "route",
    ["127.0.0.1", "127.0.0.0/8", "224.0.0.0/4", "239.1.0.0/16", "169.254.0.0/16", "255.255.255.255", "::1", "fe80::/64", "ff02::1",
     "100.100.100.100", "fd7a:115c:a1e0::53", "::ffff:127.0.0.0/104", "10.1.0.1/16", "10.0.0.0/33", "all", ""],
)  # fmt: skip
def test_no_route_leads_to_what_is_nobodys_or_the_machines_own(route: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check(OWN, [route], accepts_routes=True, exit_node=True)
