"""Texts of the other side, made fit for a person's eyes (ring 0)."""

from __future__ import annotations

from typing import Final

MAX_TEXT_CHARS: Final = 200


def one_line(text: str | bytes, limit: int = MAX_TEXT_CHARS) -> str:
    """The text on one line, without anything that a terminal would obey, at most `limit` characters long."""
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode(errors="replace")
    seen = "".join(char if char.isprintable() else " " for char in text[: 4 * limit])
    line = " ".join(seen.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
