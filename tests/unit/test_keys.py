"""Keys: their texts, their types, and that secrets stay secret."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.keys import (
    ChallengePublic,
    DiscoPrivate,
    DiscoPublic,
    LockPrivate,
    LockPublic,
    MachinePrivate,
    MachinePublic,
    NodePrivate,
    NodePublic,
    PrivateKey,
    PublicKey,
)

PUBLIC: list[tuple[type[PublicKey], str]] = [
    (MachinePublic, "mkey"),
    (NodePublic, "nodekey"),
    (DiscoPublic, "discokey"),
    (ChallengePublic, "chalpub"),
    (LockPublic, "nlpub"),
]
X25519_PRIVATE: list[tuple[type[MachinePrivate | NodePrivate | DiscoPrivate], str]] = [
    (MachinePrivate, "privkey"),
    (NodePrivate, "privkey"),
    (DiscoPrivate, "discopriv"),
]
PRIVATE: list[type[MachinePrivate | NodePrivate | DiscoPrivate | LockPrivate]] = [
    MachinePrivate,
    NodePrivate,
    DiscoPrivate,
    LockPrivate,
]
RAW = bytes(range(32))
SECRET = bytes(range(0x80, 0xA0))


# --- public keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "prefix"), PUBLIC)
def test_a_public_key_and_its_text(kind: type[PublicKey], prefix: str) -> None:
    key = kind(RAW)
    text = f"{prefix}:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    assert str(key) == text
    assert kind.parse(text) == kind.parse(f"{prefix}:{RAW.hex().upper()}") == key
    assert key.raw == RAW


def test_lock_keys_have_a_second_prefix() -> None:
    assert LockPublic.parse(f"tlpub:{RAW.hex()}") == LockPublic(RAW)


@given(st.binary(min_size=32, max_size=32))
def test_every_public_key_survives_its_text(raw: bytes) -> None:
    assert NodePublic.parse(str(NodePublic(raw))).raw == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        RAW.hex(),
        f"mkey:{RAW.hex()}",
        f"nodekey {RAW.hex()}",
        f"Nodekey:{RAW.hex()}",
        f"nodekey:{RAW.hex()[:-2]}",
        f"nodekey:{RAW.hex()}00",
        f"nodekey:{'zz' * 32}",
        f"nodekey:{' ' * 64}",
        f"nodekey:{RAW.hex()[:-2]}  ",
        f"nodekey:{'٠' * 64}",
        f" nodekey:{RAW.hex()}",
    ],
)
def test_what_is_no_node_key(text: str) -> None:
    with pytest.raises(ValueError, match="not a key of the form nodekey"):
        NodePublic.parse(text)


@pytest.mark.parametrize("text", [None, "", f"nodekey:{'0' * 64}"])
def test_no_key_has_three_forms(text: str | None) -> None:
    assert NodePublic.parse_optional(text) is None


def test_an_optional_key_that_is_there_must_be_right() -> None:
    assert NodePublic.parse_optional(f"nodekey:{RAW.hex()}") == NodePublic(RAW)
    with pytest.raises(ValueError, match="nodekey"):
        NodePublic.parse_optional("nodekey:12")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        NodePublic(bytes(size))
    with pytest.raises(ValueError, match="32 bytes"):
        NodePrivate(bytes(size))


def test_keys_of_different_kinds_differ() -> None:
    assert NodePublic(RAW) == NodePublic(RAW)
    assert hash(NodePublic(RAW)) == hash(NodePublic(bytes(list(RAW))))
    assert NodePublic(RAW) != MachinePublic(RAW)
    assert NodePublic(RAW) != RAW
    assert {NodePublic(RAW): 1}.get(NodePublic(RAW)) == 1
    assert {NodePublic(RAW), MachinePublic(RAW), NodePublic(RAW)} == {MachinePublic(RAW), NodePublic(RAW)}


def test_a_key_in_a_log_is_short() -> None:
    assert NodePublic(RAW).short == "[AAECA]"
    assert repr(NodePublic(RAW)) == "<NodePublic [AAECA]>"


# --- private keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "public"),
    [
        # 32 times one byte each; the public halves agree between two independent implementations of X25519.
        ("11" * 32, "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"),
        ("22" * 32, "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"),
        ("55" * 32, "38ab664bd86f77d7e66bdd9ae0792913a94fd8b33a1260027e4b46c1f4884c67"),
    ],
)
@pytest.mark.parametrize(("kind", "_prefix"), X25519_PRIVATE)
def test_the_public_half(
    kind: type[MachinePrivate | NodePrivate | DiscoPrivate], _prefix: str, entropy: str, public: str
) -> None:
    assert kind.generate(bytes.fromhex(entropy)).public.raw.hex() == public


def test_the_public_half_of_a_lock_key() -> None:
    # RFC 8032 7.1, test 1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert LockPrivate.generate(seed).public == LockPublic(bytes.fromhex(public))
    assert LockPrivate.generate(seed).reveal() == f"nlpriv:{seed.hex()}{public}"


def test_each_private_key_has_its_own_kind_of_public_one() -> None:
    assert [type(kind.generate(RAW).public) for kind in PRIVATE] == [MachinePublic, NodePublic, DiscoPublic, LockPublic]


@pytest.mark.parametrize(("kind", "prefix"), X25519_PRIVATE)
def test_generated_keys_are_clamped_and_read_ones_left_alone(
    kind: type[MachinePrivate | NodePrivate | DiscoPrivate], prefix: str
) -> None:
    raw = kind.generate(b"\xff" * 32).raw
    assert (raw[0], raw[1:31], raw[31]) == (0xF8, b"\xff" * 30, 0x7F)
    assert kind.generate(bytes(32)).raw[31] == 0x40
    assert kind.parse(f"{prefix}:{'ff' * 32}").raw == b"\xff" * 32


@pytest.mark.parametrize("kind", PRIVATE)
def test_a_private_key_survives_its_text(kind: type[MachinePrivate | NodePrivate | DiscoPrivate | LockPrivate]) -> None:
    key = kind.generate(SECRET)
    assert kind.parse(key.reveal()) == key


def test_the_halves_of_a_lock_key_belong_together() -> None:
    text = LockPrivate.generate(SECRET).reveal()
    with pytest.raises(ValueError, match="belong together"):
        LockPrivate.parse(text[:-1] + ("0" if text[-1] != "0" else "1"))
    with pytest.raises(ValueError, match="nlpriv"):
        LockPrivate.parse(text[: len("nlpriv:") + 64])


@pytest.mark.parametrize("kind", PRIVATE)
def test_a_secret_is_never_shown(kind: type[PrivateKey]) -> None:
    key = kind(SECRET)
    for shown in (repr(key), str(key), f"{key}", f"{key!r}", f"{[key]}"):
        assert shown.strip("[]") == f"<{kind.__name__}>"
    with pytest.raises(ValueError, match="form") as caught:
        kind.parse(f"wrong:{SECRET.hex()}")
    assert SECRET.hex()[:8] not in str(caught.value)


@pytest.mark.parametrize("kind", PRIVATE)
def test_a_secret_is_neither_pickled_nor_copied_nor_hashed(kind: type[PrivateKey]) -> None:
    key: Any = kind(SECRET)
    for forbidden in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            forbidden(key)


def test_private_keys_compare_by_kind_and_content() -> None:
    assert NodePrivate(SECRET) == NodePrivate(SECRET)
    assert NodePrivate(SECRET) != NodePrivate(RAW)
    assert NodePrivate(SECRET) != MachinePrivate(SECRET)
    assert NodePrivate(SECRET) != SECRET
