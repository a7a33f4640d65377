"""Rules as they are written, read by `nft`; and all of them or none."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from tests.netns.container import Container, container
from tsns.netns import forwarding, nftables
from tsns.netns.child import in_network
from tsns.netns.nftables import ACCEPT, DROP, INET, IPV4, OUTPUT

pytestmark = pytest.mark.netns

FORWARDING = """table inet tsns {
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "tsns0" meta mark set 0x00007473 accept
		ct state established,related accept
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00007473 oifname != "tsns0" masquerade
	}
}
"""


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


def inside(target: Container, job: Callable[[], object]) -> None:
    def entered() -> list[int]:
        job()
        return []

    in_network(target.fd, entered)


def ruleset(target: Container) -> str:
    return target.output("nft", "list", "ruleset")


def test_a_namespace_that_forwards(target: Container) -> None:
    for _ in range(2):
        forwarding.apply(target.fd, wanted=True)
        assert ruleset(target) == FORWARDING
    for _ in range(2):
        forwarding.apply(target.fd, wanted=False)
        assert ruleset(target) == ""


def test_all_or_nothing(target: Container) -> None:
    table, chain = nftables.table(INET, "some"), nftables.chain(INET, "some", "out", OUTPUT, policy=DROP)
    missing = nftables.rule(INET, "some", "nowhere", nftables.verdict(ACCEPT))
    with pytest.raises(OSError, match="nf_tables: No such file or directory") as caught:
        inside(target, lambda: nftables.transact(table, chain, missing))
    assert caught.value.errno == errno.ENOENT
    assert ruleset(target) == ""
    inside(target, lambda: nftables.transact(table, chain))
    before = ruleset(target)
    with pytest.raises(OSError, match="nf_tables"):
        inside(target, lambda: nftables.transact(*nftables.new_table(INET, "some"), missing))
    assert ruleset(target) == before


def test_what_is_there_is_known(target: Container) -> None:
    target.network.nft("table ip theirs { chain first { }; chain second { }; }\ntable inet theirs { chain third { }; }")

    def look() -> None:
        assert nftables.tables() == {(IPV4, "theirs"), (INET, "theirs")}
        assert nftables.chains(IPV4, "theirs") == {"first", "second"}
        assert nftables.chains(IPV4, "others") == set()

    inside(target, look)
