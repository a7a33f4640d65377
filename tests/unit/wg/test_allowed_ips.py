"""Whose address it is: the longest prefix, and the last owner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tsns.proto.addresses import Prefix, masked, pack
from tsns.wg.allowed_ips import AllowedIPs


def table(**peers: str) -> AllowedIPs[str]:
    allowed: AllowedIPs[str] = AllowedIPs()
    for peer, prefixes in peers.items():
        allowed.add(map(Prefix.parse, prefixes.split()), peer)
    return allowed


def test_the_longest_prefix_wins() -> None:
    allowed = table(
        exit="0.0.0.0/0 ::/0", net="10.0.0.0/8", subnet="10.1.0.0/16", host="10.1.2.3", six="fd7a::1 fd7a::/16"
    )
    for address, peer in [
        ("8.8.8.8", "exit"),
        ("10.9.9.9", "net"),
        ("10.1.9.9", "subnet"),
        ("10.1.2.3", "host"),
        ("2001:db8::1", "exit"),
        ("fd7a::1", "six"),
        ("fd7a::2", "six"),
    ]:
        assert allowed.lookup(pack(address)) == peer


def test_whether_more_than_a_default_route_leads_there() -> None:
    allowed = table(exit="0.0.0.0/0 ::/0", subnet="10.1.0.0/16", host="192.0.2.1 fd7a::1")
    for address, is_covered in (
        ("8.8.8.8", False),
        ("10.1.2.3", True),
        ("10.2.2.3", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("fd7a::1", True),
        ("fd7a::2", False),
    ):
        assert allowed.covers(pack(address)) == is_covered
        assert allowed.lookup(pack(address)) is not None
    assert not allowed.covers(b"12345")


def test_families_do_not_mix() -> None:
    assert table(exit="0.0.0.0/0").lookup(pack("::1")) is None
    assert table(exit="::/0").lookup(pack("1.1.1.1")) is None
    assert table(exit="::/0").lookup(b"12345") is None


def test_a_prefix_moves_and_its_old_owner_cannot_take_it_along() -> None:
    one, net = Prefix.parse("100.64.0.1"), Prefix.parse("10.0.0.0/8")
    allowed = table(old="100.64.0.1 10.0.0.0/8", new="100.64.0.1 10.0.0.0/8")
    allowed.remove([one, net], "old")
    assert allowed.lookup(pack("100.64.0.1")) == allowed.lookup(pack("10.1.1.1")) == "new"
    allowed.remove([one, net], "new")
    assert allowed.lookup(pack("100.64.0.1")) is allowed.lookup(pack("10.1.1.1")) is None


prefixes = st.builds(
    lambda value, bits: Prefix(masked(value.to_bytes(4, "big"), bits), bits),
    st.integers(0, 15).map(lambda n: n * 0x11111111),
    st.sampled_from([0, 1, 2, 4, 8, 15, 31, 32]),
)


@given(st.lists(st.tuples(prefixes, st.sampled_from("ABC"), st.booleans()), max_size=40), st.integers(0, 15))
def test_it_agrees_with_a_plain_search(changes: list[tuple[Prefix, str, bool]], number: int) -> None:
    allowed: AllowedIPs[str] = AllowedIPs()
    owners: dict[Prefix, str] = {}
    for prefix, peer, add in changes:
        if add:
            allowed.add([prefix], peer)
            owners[prefix] = peer
        else:
            allowed.remove([prefix], peer)
            if owners.get(prefix) == peer:
                del owners[prefix]
    address = (number * 0x11111111).to_bytes(4, "big")
    covering = [prefix for prefix in owners if prefix.covers(address)]
    expected = owners[max(covering, key=lambda prefix: prefix.bits)] if covering else None
    assert allowed.lookup(address) == expected
