"""A gateway's clock by the rule of RFC 6887, section 8.5."""

from __future__ import annotations

import pytest

from tsns.paths.epoch import Epoch


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        (600, 600.0, True),
        (0, 0.0, True),
        (-1, 0.0, True),  # two answers that have overtaken each other
        (-2, 0.0, False),
        (-600, 600.0, False),
        (0, 600.0, False),  # it stood still: begun anew, and by chance as far as before
        (562, 600.0, True),  # slow by a sixteenth, and a little
        (560, 600.0, False),
        (642, 600.0, True),  # fast by a sixteenth, and a little
        (645, 600.0, False),
        (3, 0.0, False),
        (2, 0.0, True),
    ],
)
def test_a_second_reading(theirs: int, ours: float, kept: bool) -> None:
    epoch = Epoch()
    assert epoch.note(1000, 50.0)
    assert epoch.note(1000 + theirs, 50.0 + ours) is kept


def test_the_last_reading_is_the_one_that_counts() -> None:
    epoch = Epoch()
    assert epoch.note(5000, 0.0)
    assert not epoch.note(3, 10.0)
    assert epoch.note(13, 20.0)
