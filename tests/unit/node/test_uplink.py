"""The way to the host's network: pasta is joined behind a filter, and whatever goes wrong is said and tried again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.unit.netns.test_uplink_filter import frame, passes
from tsns.error import UserError
from tsns.netns import host_network, uplink, uplink_filter
from tsns.netns.uplink import Started, Way
from tsns.node.uplink import Uplink, check
from tsns.node.watch import Watch
from tsns.proto.addresses import Prefix

WAY = Way(("192.168.1.5/24",), ("192.168.1.1",))


class Stage:
    """A pasta that is a number, and a kernel that notes what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watch = Watch()
        self.way: Way | None = WAY
        self.seen: list[str] = []
        self.filters: list[bytes] = []
        self.refuses: OSError | None = None
        self.uplink = Uplink(self.watch, lambda: self.seen.append("settled"))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "waitpid", lambda *_: (1234, 0))
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
        monkeypatch.setattr(host_network, "addresses", lambda: ["203.0.113.9"])
        monkeypatch.setattr(uplink, "program", lambda: "/usr/bin/pasta")
        monkeypatch.setattr(uplink, "start", self.start)
        monkeypatch.setattr(uplink, "take_over", lambda *_: self.way)
        monkeypatch.setattr(uplink, "filter_device", self.filter)
        monkeypatch.setattr(uplink, "open_way", lambda *_: self.seen.append("open"))

    def start(self, _path: str, uid: int, _namespace: int, _output: int) -> Started:
        self.seen.append("start")
        assert uid > 1 << 30
        pidfd, pipe = os.pipe()
        return Started(1234, pidfd, pipe)

    def filter(self, _started: Started, _namespace: int, code: bytes) -> None:
        if self.refuses is not None and code != uplink_filter.closed():
            raise self.refuses
        self.seen.append("filter")
        self.filters.append(code)

    def moment(self) -> None:
        """What is to happen next happens now."""
        _, handler = self.watch._moments.pop("uplink")
        handler()

    def take(self) -> list[str]:
        seen, self.seen[:] = list(self.seen), []
        return seen

    def lets(self, address: str) -> bool:
        return passes(self.filters[-1], frame(address))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(monkeypatch)
    stage.uplink.set_namespace(7)
    yield stage
    stage.uplink.close()


def up(stage: Stage, *, only_neighbours: bool = False) -> None:
    stage.uplink.want(wanted=True, only_neighbours=only_neighbours)
    stage.moment()


def test_the_filter_stands_before_there_is_a_way(stage: Stage) -> None:
    assert stage.uplink.settled
    stage.uplink.want(wanted=True, only_neighbours=False)
    assert not stage.uplink.settled
    stage.way = None
    stage.moment()
    assert stage.take() == ["start"], "pasta is not ready"
    stage.way = WAY
    stage.moment()
    assert stage.take() == ["filter", "open", "settled"]
    assert (stage.uplink.settled, stage.uplink.is_up, stage.uplink.error) == (True, True, "")
    fine = {
        address: stage.lets(address) for address in ("8.8.8.8", "192.168.1.1", "127.0.0.1", "100.64.0.9", "203.0.113.9")
    }
    assert list(fine.values()) == [True, True, False, False, False]


def test_what_goes_by_the_tailnet_is_held_back_as_soon_as_it_is_said(stage: Stage) -> None:
    up(stage)
    assert stage.lets("10.1.2.3")
    stage.uplink.forbid([Prefix.parse("10.1.0.0/16"), Prefix.parse("0.0.0.0/0")])
    assert not stage.lets("10.1.2.3")
    assert stage.lets("8.8.8.8"), "that everything goes by an exit node is said otherwise"
    stage.uplink.want(wanted=True, only_neighbours=True)
    assert (stage.lets("8.8.8.8"), stage.lets("192.168.1.7"), stage.lets("10.1.2.3")) == (False, True, False)
    count = len(stage.filters)
    stage.uplink.forbid([Prefix.parse("10.1.0.0/16")])
    assert len(stage.filters) == count, "no news"


def test_a_filter_that_cannot_be_closes_the_way(stage: Stage) -> None:
    up(stage)
    stage.uplink.forbid([Prefix.parse(f"2001:db8:{number:x}::/64") for number in range(1200)])
    assert stage.filters[-1] == uplink_filter.closed()
    assert "too many routes" in stage.uplink.error
    stage.uplink.forbid([])
    assert (stage.uplink.error, stage.lets("8.8.8.8")) == ("", True)
    stage.refuses = OSError(12, "no memory")
    stage.uplink.forbid([Prefix.parse("10.1.0.0/16")])
    assert stage.filters[-1] == uplink_filter.closed()


def test_when_pasta_ends_it_is_started_again(stage: Stage) -> None:
    up(stage)
    stage.take()
    stage.uplink._ended()
    assert (stage.uplink.is_up, stage.uplink.error) == (False, "the internet cannot be reached: pasta has ended")
    assert stage.take() == ["settled"]
    stage.moment()
    stage.moment()
    assert stage.take() == ["start", "filter", "open", "settled"]
    assert stage.uplink.error == ""


def test_without_a_way_of_the_hosts_own_it_says_so(stage: Stage) -> None:
    stage.way = Way(("192.168.1.5/24",), ())
    up(stage)
    assert "the host has no way to the internet itself" in stage.uplink.error
    assert stage.uplink.settled


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink, "program", lambda: None)
    with pytest.raises(UserError) as caught:
        check()
    assert "passt" in caught.value.hint


def test_an_ordinary_users_pasta_waits_for_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins in the user namespace that is made with it."""
    stage = Stage(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    stage.uplink.want(wanted=True, only_neighbours=False)
    assert stage.take() == []
    stage.uplink.set_namespace(7)
    assert stage.take() == ["start"]
    stage.uplink.close()
