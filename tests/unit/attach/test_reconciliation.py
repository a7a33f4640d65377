"""The machine that keeps wishes true, as a table of what it sees and what it does."""

from __future__ import annotations

from typing import Any

import pytest

from tsns.attach.engines import Container, Event
from tsns.attach.reconciliation import (
    FIRST_PAUSE_S,
    LABELS_GRACE_S,
    MAX_PAUSE_S,
    Attach,
    Forget,
    Keep,
    Reconciliation,
    View,
    Warn,
    concerns,
)
from tsns.attach.wishes import Wish
from tsns.node.attaching import Attachment

BY_ID = Wish(key="docker-aaaa", kind="docker", id="aaaa1111", name="web", by="id", node="web", own=True)
BY_NAME = BY_ID._replace(key="docker-web", by="name")
BY_LABELS = BY_NAME._replace(labels=True)
PROCESS = Wish(key="pid-7", kind="pid", id="7", name="cat-7", by="id", node="web", own=True)
PATH = Wish(key="netns-run-x", kind="netns", id="/run/x", name="x", by="id", node="web", own=True)


def container(**changes: Any) -> Container:
    usual = Container(
        kind="docker",
        id="aaaa1111",
        name="web",
        pid=100,
        running=True,
        paused=False,
        network_mode="bridge",
        labels={},
        started_at="2026-01-01T00:00:00.5Z",
        resolv_path="",
        net_admin=False,
    )
    return usual._replace(**changes)


STOPPED = container(running=False, pid=0)


def attached(wish: Wish, pid: int = 100, id_: str = "") -> dict[str, Attachment]:
    return {wish.key: Attachment(wish.key, wish.kind, id_ or wish.id, wish.name, pid)}


def look(wish: Wish, view: View, now: float = 0.0, machine: Reconciliation | None = None) -> list[Any]:
    return [*(machine or Reconciliation()).reconcile([wish], view, now)]


@pytest.mark.parametrize("wish", [BY_ID, BY_NAME, BY_LABELS])
def test_what_is_as_it_should_be_needs_nothing(wish: Wish) -> None:
    machine = Reconciliation()
    for now in range(3):
        assert look(wish, View([container()], attached=attached(wish)), now, machine) == []
    assert machine.deadline() is None


def test_what_runs_and_is_not_attached_is_attached_once() -> None:
    machine = Reconciliation()
    assert look(BY_ID, View([container()]), 0, machine) == [Attach(BY_ID, container(), "it is not attached")]
    assert look(BY_ID, View([container()]), 1, machine) == [], "it is being done"
    machine.succeeded(BY_ID.key)
    assert look(BY_ID, View([container()], attached=attached(BY_ID)), 2, machine) == []
    assert look(BY_ID, View([container()]), 3, machine) != [], "its node was killed"


def test_what_began_anew_is_attached_again() -> None:
    view = View([container(pid=200)], attached=attached(BY_ID, 100))
    assert look(BY_ID, view) == [Attach(BY_ID, container(pid=200), "it has begun anew")]


@pytest.mark.parametrize("wish", [BY_ID, BY_NAME, BY_LABELS])
def test_what_is_stopped_waits_without_a_deadline(wish: Wish) -> None:
    machine = Reconciliation()
    look(wish, View([container()]), 0, machine)
    machine.failed(wish.key, "no", 0)
    assert look(wish, View([STOPPED]), 0, machine) == []
    assert machine.deadline() is None


def test_a_removed_container_that_is_followed_by_id_is_forgotten() -> None:
    assert look(BY_ID, View()) == [Forget(BY_ID, "the container web was removed")]


def test_a_removed_container_that_is_followed_by_name_is_waited_for() -> None:
    machine = Reconciliation()
    for now in (0, 1e6):
        assert look(BY_NAME, View(), now, machine) == []
    assert machine.deadline() is None


def test_a_removed_container_that_had_labels_is_waited_for_a_while() -> None:
    machine = Reconciliation()
    assert look(BY_LABELS, View(), 10, machine) == []
    assert machine.deadline() == 10 + LABELS_GRACE_S
    assert look(BY_LABELS, View(), 9 + LABELS_GRACE_S, machine) == []
    assert look(BY_LABELS, View(engines=()), 9 + LABELS_GRACE_S, machine) == [], "who knows? it begins again"
    assert look(BY_LABELS, View(), 10 + LABELS_GRACE_S, machine) == []
    assert look(BY_LABELS, View(), 10 + 2 * LABELS_GRACE_S, machine) == [
        Forget(BY_LABELS, "the container web was removed")
    ]
    assert machine.deadline() is None


@pytest.mark.parametrize("wish", [BY_ID, BY_NAME, BY_LABELS])
def test_an_engine_that_is_away_means_nothing(wish: Wish) -> None:
    assert look(wish, View(engines=["podman"]), 1e6) == []


def test_a_container_that_is_made_anew_is_attached_where_its_name_is_followed() -> None:
    new = container(id="bbbb2222", pid=300)
    view = View([new], attached=attached(BY_NAME, 100))
    assert look(BY_NAME, view) == [Attach(BY_NAME._replace(id=new.id), new, "it has begun anew")]
    assert look(BY_ID, view) == [Forget(BY_ID, "the container web was removed")]


def test_while_the_old_one_is_there_under_another_name_the_new_one_counts() -> None:
    old, new = container(name="aaaa_web"), container(id="bbbb2222", pid=300)
    assert look(BY_NAME, View([old], attached=attached(BY_NAME))) == [], (
        "nobody has the name: it goes on with the old one"
    )
    (action,) = look(BY_NAME, View([old, new], attached=attached(BY_NAME)))
    assert action.container == new


def test_another_engines_container_of_the_same_name_is_another() -> None:
    assert look(BY_NAME, View([container(kind="podman")])) == []


def test_a_container_that_is_renamed_is_known_by_its_new_name() -> None:
    renamed = BY_ID._replace(name="site")
    assert look(BY_ID, View([container(name="site")], attached=attached(BY_ID))) == [Keep(renamed)]
    assert look(BY_ID, View([STOPPED._replace(name="site")])) == [Keep(renamed)]
    assert look(BY_ID, View([container(name="site")])) == [
        Keep(renamed),
        Attach(renamed, container(name="site"), "it is not attached"),
    ]


def test_what_is_to_be_refreshed_is_attached_again() -> None:
    view = View([container()], attached=attached(BY_ID))
    machine = Reconciliation()
    assert machine.reconcile([BY_ID], view, 0, refresh={BY_ID.key}) == [Attach(BY_ID, container(), "it has changed")]
    machine.failed(BY_ID.key, "no", 0)
    assert machine.reconcile([BY_ID], view, 0, refresh={BY_ID.key}) == [], "it has just failed"
    assert machine.reconcile([BY_ID], view, 0, fresh={BY_ID.key}) != [], "its wish is another one"


def test_a_process_that_has_ended_is_forgotten_and_a_path_waited_for() -> None:
    assert look(PROCESS, View()) == [Attach(PROCESS, None, "it is not attached")]
    assert look(PROCESS, View(gone=[PROCESS.key])) == [Forget(PROCESS, "the process cat-7 has ended")]
    assert look(PATH, View()) == [Attach(PATH, None, "it is not attached")]
    assert look(PATH, View(gone=[PATH.key])) == []
    assert look(PATH, View(attached=attached(PATH, 0))) == []


def test_of_a_node_that_does_not_answer_nothing_is_known() -> None:
    machine = Reconciliation()
    machine.failed(BY_ID.key, "no", 0)
    assert look(BY_ID, View([container()], silent=["web"]), 5, machine) == []
    assert machine.deadline() is None, "its answer is not waited for in a busy loop"


def test_failures_are_tried_again_after_pauses_that_grow_up_to_a_bound() -> None:
    machine, view, now, pauses = Reconciliation(), View([container()]), 0.0, []
    for _ in range(20):
        assert look(BY_ID, view, now, machine) != []
        assert machine.deadline() is None, "it is being done"
        machine.failed(BY_ID.key, "no", now)
        deadline = machine.deadline()
        assert deadline is not None
        assert look(BY_ID, view, deadline - 0.01, machine) == []
        pauses.append(deadline - now)
        now = deadline
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S
    assert look(BY_ID, view, now, machine) != []
    machine.succeeded(BY_ID.key)
    machine.failed(BY_ID.key, "no", now)
    assert machine.deadline() == now + FIRST_PAUSE_S, "what was is forgotten"


def test_the_same_failure_is_said_once() -> None:
    machine = Reconciliation()
    assert machine.failed("a", "no", 0)
    assert not machine.failed("a", "no", 1)
    machine.postponed("a", 2)
    assert not machine.failed("a", "no", 3)
    assert machine.failed("a", "never", 4)
    assert machine.failed("b", "no", 5)


def test_an_event_is_tried_at_once() -> None:
    machine, view = Reconciliation(), View([container()])
    for _ in range(10):
        machine.failed(BY_ID.key, "no", 0)
    assert look(BY_ID, view, 1, machine) == []
    machine.hurry(BY_ID.key)
    assert look(BY_ID, view, 1, machine) != []
    machine.hurry(BY_ID.key)
    assert look(BY_ID, view, 1, machine) == [], "but not twice at once"


def test_members_of_a_network_that_is_no_more_are_told_of_once() -> None:
    owner = container(started_at="2026-01-01T00:00:10.5Z")
    member = container(
        id="cccc", name="helper", network_mode="container:aaaa1111", started_at="2026-01-01T02:00:09.123456789+02:00"
    )
    machine = Reconciliation()
    view = View([owner, member], attached=attached(BY_ID))
    (warning,) = look(BY_ID, view, 0, machine)
    assert isinstance(warning, Warn)
    assert warning.text.startswith("helper uses the network that web had")
    assert look(BY_ID, view, 1, machine) == []
    again = View([owner._replace(started_at="2026-01-01T00:01:00Z"), member], attached=attached(BY_ID))
    assert len(look(BY_ID, again, 2, machine)) == 1
    well = member._replace(started_at="2026-01-01T00:02:00Z")
    assert look(BY_ID, View([owner, well], attached=attached(BY_ID)), 3, Reconciliation()) == []
    for strange in ("", "yesterday", "2026-01-01T00:00:00"):
        odd = View([owner, member._replace(started_at=strange)], attached=attached(BY_ID))
        assert look(BY_ID, odd, 4, Reconciliation()) == []


def test_what_is_wanted_no_more_has_no_deadline() -> None:
    machine = Reconciliation()
    machine.failed("a", "no", 0)
    look(BY_LABELS, View(), 0, machine)
    machine.keep_only({"b"})
    assert machine.deadline() is None


@pytest.mark.parametrize(
    ("wish", "event", "expected"),
    [
        (BY_ID, Event("start", "aaaa1111", "web", 0), True),
        (BY_ID, Event("start", "bbbb2222", "web", 0), False),
        (BY_NAME, Event("start", "bbbb2222", "web", 0), True),
        (BY_NAME, Event("connect", "aaaa1111", "", 0), True),
        (PATH, Event("start", "/run/x", "x", 0), False),
    ],
)
def test_whom_an_event_concerns(wish: Wish, event: Event, expected: bool) -> None:
    assert concerns(wish, event) is expected
