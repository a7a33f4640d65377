"""The resolv.conf that a command inside sees."""

from __future__ import annotations

import pytest

from tsns.node.resolv import MAX_SEARCH_DOMAINS, checked_search, render


def test_magic_dns_is_the_server_and_the_tailnet_is_searched() -> None:
    lines = render(["tail.example"], magic_dns=True).splitlines()
    assert lines[1:] == ["nameserver 100.100.100.100", "nameserver fd7a:115c:a1e0::53", "search tail.example"]


def test_without_magic_dns_no_server_is_named() -> None:
    assert "nameserver" not in render([], magic_dns=False)


def test_final_dots_go() -> None:
    assert checked_search(["tail.example.", "a_b.example"]) == ["tail.example", "a_b.example"]


@pytest.mark.parametrize("domain", ["", "a b", "a\nnameserver 6.6.6.6", "-a.example", "a..b", "x" * 300])
def test_what_could_be_another_line_of_the_file_is_left_out(domain: str) -> None:
    assert checked_search([domain, "good.example"]) == ["good.example"]


def test_the_number_of_domains_is_bounded() -> None:
    assert len(checked_search(f"d{n}.example" for n in range(100))) == MAX_SEARCH_DOMAINS
