"""Cookies between two sides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wg.shuttle import entropy
from tsns.wg.cookie import COOKIE_LIFETIME_S, CookieGuard, CookieJar

PUBLIC = b"\x42" * 32
BODY = b"\x01\0\0\0abcd" + b"body" * 27
HERE, THERE = b"192.0.2.1 1", b"192.0.2.1 2"


def pair() -> tuple[CookieJar, CookieGuard]:
    return CookieJar(PUBLIC), CookieGuard(PUBLIC, entropy(1))


def test_mac1_names_the_receiver() -> None:
    jar, guard = pair()
    message = jar.stamp(BODY, now=0.0)
    assert guard.knows_us(message)
    assert not guard.knows_us(message[:20] + b"!" + message[21:])
    assert not CookieGuard(b"\x43" * 32, entropy(1)).knows_us(message)


def test_a_cookie_is_good_for_the_place_it_was_given_to() -> None:
    jar, guard = pair()
    message = jar.stamp(BODY, now=0.0)
    assert message[-16:] == bytes(16)
    assert not guard.lives_there(message, HERE, now=0.0)
    assert jar.receive(guard.reply(message, HERE, now=0.0), now=0.1)
    message = jar.stamp(BODY, now=1.0)
    assert guard.lives_there(message, HERE, now=1.0)
    assert not guard.lives_there(message, THERE, now=1.0)


def test_a_cookie_ages_on_both_sides() -> None:
    jar, guard = pair()
    assert jar.receive(guard.reply(jar.stamp(BODY, now=0.0), HERE, now=0.0), now=0.0)
    message = jar.stamp(BODY, now=COOKIE_LIFETIME_S - 1)
    assert message[-16:] != bytes(16)
    assert not guard.lives_there(message, HERE, now=COOKIE_LIFETIME_S)
    assert jar.stamp(BODY, now=COOKIE_LIFETIME_S)[-16:] == bytes(16)


def test_a_reply_counts_once_and_for_the_last_message_only() -> None:
    jar, guard = pair()
    assert not jar.receive(bytes(64), now=0.0)  # nothing was sent yet
    old = guard.reply(jar.stamp(BODY, now=0.0), HERE, now=0.0)
    new = guard.reply(jar.stamp(BODY + b"2", now=0.0), HERE, now=0.0)
    assert not jar.receive(old, now=0.0)
    assert not jar.receive(new[:-1] + bytes((new[-1] ^ 1,)), now=0.0)
    assert jar.receive(new, now=0.0)
    assert not jar.receive(new, now=0.0)


@given(st.binary(min_size=64, max_size=64))
def test_no_cookie_reply_of_a_stranger_raises(reply: bytes) -> None:
    jar, _ = pair()
    jar.stamp(BODY, now=0.0)
    assert not jar.receive(reply, now=0.0)
