"""Large map messages are read in steps, and come to the same as if they were read at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.control import map_message
from tsns.error import ProtocolError
from tsns.proto.types import MapResponse, decode
from tsns.steps import finish

SERVICES = [{"Proto": "peerapi4", "Port": 1}, {"Proto": "tcp", "Port": 2}]


def peer(number: int, **members: Any) -> dict[str, Any]:
    return {"ID": number, "Name": f"n{number}.tail.example.", "Addresses": [f"100.64.0.{number}/32"], **members}


def go_json(value: object) -> bytes:
    """As Go writes it: without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def pieces_of(text: bytes, size: int) -> Iterator[bytes]:
    return (text[start : start + size] for start in range(0, len(text), size))


def steps_of(text: bytes, size: int) -> tuple[MapResponse, int]:
    """The message, and how many steps it took."""
    steps, count = map_message.reading(lambda: pieces_of(text, size)), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


MESSAGES: dict[str, dict[str, Any]] = {
    "peers": {"Peers": [peer(2), peer(3), peer(4)]},
    "one peer": {"Peers": [peer(2)]},
    "no peer": {"Peers": [], "Domain": "x"},
    "objects within": {"Peers": [peer(2, Hostinfo={"Services": SERVICES}), peer(3, Hostinfo={"Services": SERVICES})]},
    "several arrays": {
        "Node": peer(1),
        "Peers": [peer(2), peer(3)],
        "Domain": "x",
        "PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*"}, {"IP": "::"}]}, {"SrcIPs": ["100.64.0.1"]}],
        "UserProfiles": [{"ID": 1, "LoginName": "a"}, {"ID": 2, "LoginName": "b"}],
        "ControlTime": "2027-01-15T08:00:00Z",
    },
    "texts that look like it": {
        "Peers": [peer(2, Name='},{"ID":7}],"Peers":[{"ID":8'), peer(3)],
        "Domain": ',"Peers":[{',
    },
    "elsewhere": {"Debug": {"Peers": [peer(2), peer(3)]}, "Peers": [peer(4)]},
    "elsewhere alone": {"Debug": {"Peers": [peer(2), peer(3)]}},
    "elsewhere, and none here": {"Debug": {"Peers": [peer(2), peer(3)]}, "Peers": []},
    "another order": {"Peers": [{"Name": "a", "ID": 2}, {"ID": 3}, {"Name": "b", "ID": 4}]},
    "the same within": {"Peers": [peer(2, Peers=[peer(7), peer(8)]), peer(3)]},
    "empty ones": {"Peers": [{}, peer(3), {}]},
}


@pytest.mark.parametrize("size", [7, 60, 10_000])
@pytest.mark.parametrize("what", MESSAGES)
def test_the_same_as_at_once(what: str, size: int) -> None:
    text = go_json(MESSAGES[what])
    assert steps_of(text, size)[0] == decode(text, MapResponse)


@pytest.mark.parametrize(
    "text",
    [
        b'{"Peers":[{"ID":2},{"ID":3}],"Peers":[{"ID":4}]}',
        b'{"Peers":[{"ID":2},{"ID":3}],"Peers":null}',
        b'{ "Peers" : [ { "ID" : 2 } , { "ID" : 3 } ] }',
        b'{"x\\"Peers":[{"ID":2},{"ID":3}],"Peers":[{"ID":4}]}',
    ],
    ids=["twice", "taken back", "with spaces", "a member of another name"],
)
def test_guesses_that_are_wrong_change_nothing(text: bytes) -> None:
    assert steps_of(text, 8)[0] == decode(text, MapResponse)


@pytest.mark.parametrize(
    "text",
    [
        b'{"Peers":[{"ID":2},{"ID":"3"}]}',
        b'{"Peers":[{"ID":2},{"ID":3}',
        b'{"Peers":[{"ID":2},{"ID":3}]',
        b'{"Peers":[{"ID":2},{"ID":3}]]}',
        b'{"Peers":[{"ID":2},{"ID":3},]}',
        b'{"Peers":[{"ID":2},{"ID":3}]}{}',
    ],
)
def test_what_is_wrong_at_once_is_wrong_in_steps(text: bytes) -> None:
    for size in (5, 1000):
        with pytest.raises(ProtocolError):
            finish(map_message.reading(lambda size=size: pieces_of(text, size)))  # type: ignore[misc]


def test_a_large_message_takes_many_steps_and_a_small_one_none() -> None:
    peers = [peer(number, Hostinfo={"OS": "linux"}) for number in range(2, 1002)]
    response, count = steps_of(go_json({"Node": peer(1), "Peers": peers, "Domain": "x"}), 4096)
    assert len(response.peers or ()) == 1000
    assert count >= 1000 / map_message.ELEMENTS_AT_ONCE
    assert steps_of(go_json({"PeersRemoved": [1]}), 4096) == (MapResponse(peers_removed=[1]), 0)


def test_an_element_without_an_end_is_not_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against work that grows with the square of what control sends."""
    tries = 0

    def counted(data: bytes, kind: type[Any]) -> Any:
        nonlocal tries
        tries += 1
        return decode(data, kind)

    monkeypatch.setattr(map_message, "decode", counted)
    text = b'{"Peers":[{"ID":2,"Hostinfo":[' + b'[{"a":1}],' * 5000 + b"1]}]}"
    assert steps_of(text, 4096)[0] == decode(text, MapResponse)
    assert tries <= 2 * map_message.MAX_ENDS_TRIED


NAMES = st.sampled_from(["ID", "Name", "Peers", "Hostinfo", "SrcIPs", '"', '},{"ID":', "}],"])
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(['},{"ID":1', '"Peers":[{', "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
ELEMENTS = st.builds(lambda number, extra: {"ID": number, "Hostinfo": extra}, st.integers(1, 9), VALUES)


@given(
    st.dictionaries(
        st.sampled_from(["Peers", "PeersChanged", "UserProfiles", "Other", "Debug"]),
        st.lists(ELEMENTS, max_size=4) | VALUES,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_any_json(message: dict[str, Any], size: int) -> None:
    text = go_json(message)
    try:
        expected = decode(text, MapResponse)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            steps_of(text, size)
    else:
        assert steps_of(text, size)[0] == expected
