"""Standard output: the answer of a query, and nothing else (ring 2)."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tsns.cli.tables import SCHEMA


def answer(content: Mapping[str, Any], *, on_one_line: bool = False) -> None:
    """One JSON object."""
    print(json.dumps({"schema": SCHEMA, **content}, indent=None if on_one_line else 2), flush=True)


def lines(texts: Iterable[str]) -> None:
    """Lines of text."""
    print("".join(f"{text}\n" for text in texts), end="", flush=True)


def be_tolerant() -> None:
    """A character that the terminal's encoding lacks is replaced; it must not end the answer."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
