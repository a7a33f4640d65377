"""Many deadlines as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.agenda import Agenda


@dataclass(eq=False)
class Item:
    scheduled_at: float = inf
    wanted: list[float] = field(default_factory=list)


def test_whoever_is_due_is_called_once() -> None:
    agenda, early, late = Agenda[Item](), Item(), Item()
    agenda.schedule(late, 2.0)
    agenda.schedule(early, 1.0)
    assert agenda.deadline() == 1.0
    assert agenda.due(0.9) == []
    assert agenda.due(1.0) == [early]
    assert agenda.due(1.0) == []
    assert agenda.due(5.0) == [late]
    assert agenda.deadline() is None


def test_a_deadline_that_comes_nearer_counts_at_once() -> None:
    agenda, item = Agenda[Item](), Item()
    agenda.schedule(item, 5.0)
    agenda.schedule(item, 1.0)
    assert agenda.due(1.0) == [item]
    assert agenda.due(5.0) == []  # the former one is nobody's any more


def test_a_deadline_that_moves_away_wakes_its_item_too_early_and_costs_nothing() -> None:
    agenda, item = Agenda[Item](), Item()
    for tenths in range(1000):
        agenda.schedule(item, 1.0 + tenths / 10)
    assert len(agenda._heap) == 1
    assert agenda.due(1.0) == [item]
    agenda.schedule(item, 100.9)
    assert agenda.deadline() == 100.9


def test_who_was_dropped_is_not_called() -> None:
    agenda, item, other = Agenda[Item](), Item(), Item()
    agenda.schedule(item, 1.0)
    agenda.schedule(other, 2.0)
    agenda.drop(item)
    assert agenda.deadline() == 2.0
    assert agenda.due(3.0) == [other]


def test_who_was_dropped_may_come_back() -> None:
    agenda, item = Agenda[Item](), Item()
    agenda.schedule(item, 1.0)
    agenda.drop(item)
    agenda.schedule(item, 1.0)
    assert agenda.due(1.0) == [item]
    assert agenda.due(1.0) == []


def test_who_waits_for_nothing_is_not_on_it() -> None:
    agenda, item = Agenda[Item](), Item()
    agenda.schedule(item, inf)
    assert agenda.deadline() is None
    assert agenda.due(1e9) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["sooner", "later", "drop", "pass"]), st.integers(0, 50))))
def test_nobody_is_ever_called_too_late(steps: list[tuple[int, str, int]]) -> None:
    agenda, items = Agenda[Item](), [Item() for _ in range(4)]
    wanted: dict[int, float] = {}
    now = 0.0
    for number, what, tenths in steps:
        if what == "drop":
            agenda.drop(items[number])
            wanted.pop(number, None)
        elif what == "pass":
            now += tenths / 10
            for item in agenda.due(now):
                at = wanted[items.index(item)]
                if at <= now:
                    del wanted[items.index(item)]
                else:
                    agenda.schedule(item, at)  # it was woken too early
        else:
            wanted[number] = now + tenths / 10
            agenda.schedule(items[number], wanted[number])
        assert all(at > now or what != "pass" for at in wanted.values())
        deadline = agenda.deadline()
        assert not wanted if deadline is None else deadline <= min(wanted.values())
