"""What others say, made fit for a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.proto.text import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        (" two\r\n lines\t", "two lines"),
        ("\x1b[31mred\x07", "[31mred"),
        ("right\u202eleft", "right left"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ("x" * 300, "x" * 199 + "…"),
        ("", ""),
    ],
)
def test_one_line(text: str | bytes, line: str) -> None:
    assert one_line(text) == line


@given(st.text() | st.binary(), st.integers(1, 20))
def test_whatever_comes_it_is_one_short_printable_line(text: str | bytes, limit: int) -> None:
    line = one_line(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
