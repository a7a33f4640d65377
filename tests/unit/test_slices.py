"""Work in slices leaves the loop to others."""

from __future__ import annotations

import asyncio

import pytest

from tsns import slices
from tsns.slices import in_slices
from tsns.steps import Steps, finish, take


def counting(seen: list[int], until: int) -> Steps[int]:
    for number in range(until):
        seen.append(number)
        yield
    return until


def test_all_steps_at_once() -> None:
    seen: list[int] = []
    assert finish(counting(seen, 3)) == 3
    assert seen == [0, 1, 2]


def test_others_have_their_turn_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    one: list[int] = []
    two: list[int] = []
    order: list[int] = []

    def noting(seen: list[int], other: list[int]) -> Steps[None]:
        for _ in counting(seen, 3):
            order.append(len(seen) - len(other))
            yield

    async def main() -> None:
        await asyncio.gather(in_slices(noting(one, two)), in_slices(noting(two, one)))

    asyncio.run(main())
    assert one == two == [0, 1, 2]
    assert order == [1, 0, 1, 0, 1, 0], "in turn"


@pytest.mark.parametrize("whole", [True, False])
def test_a_cancellation(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    seen: list[int] = []

    async def main() -> None:
        task = asyncio.create_task(in_slices(counting(seen, 100), even_if_cancelled=whole))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert (len(seen) == 100) is whole


def test_steps_until_it_is_enough() -> None:
    seen: list[int] = []
    steps = counting(seen, 3)
    assert take(steps, lambda: len(seen) == 2) is None
    assert seen == [0, 1]
    assert take(steps, lambda: False) == (3,)
