"""The auth key: where it is read from, and how it is kept out of everybody's sight (ring 1, standard library only)."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from tsns.config import Secret
from tsns.error import UsageError, UserError

MAX_KEY_BYTES: Final = 4096
VARIABLES: Final = ("TS_AUTHKEY", "TS_AUTH_KEY")


def forget(environ: MutableMapping[str, str]) -> None:
    """Take the auth key out of an environment that somebody else is going to see."""
    for name in VARIABLES:
        environ.pop(name, None)


def _checked(text: str, origin: str) -> Secret:
    key = text.strip()
    if not key or len(key) > MAX_KEY_BYTES or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{origin} holds no auth key", "a key is one word, such as tskey-auth-...; ask your control server for one"
        )
    return Secret(key)


def _read_line(fd: int) -> str:
    """One line, byte by byte: what follows it is not ours."""
    line = bytearray()
    while len(line) <= MAX_KEY_BYTES:
        byte = os.read(fd, 1)
        if byte in {b"", b"\n"}:
            break
        line += byte
    return line.decode(errors="replace")


def from_input(fd: int) -> Secret:
    """The key in one line of standard input; from a terminal it is asked for, and not shown."""
    return _checked(_ask(fd) if os.isatty(fd) else _read_line(fd), "standard input")


def _ask(fd: int) -> str:
    import termios

    before = termios.tcgetattr(fd)
    hidden = [*before]
    hidden[3] &= ~termios.ECHO
    sys.stderr.write("auth key: ")
    sys.stderr.flush()
    try:
        termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
        return _read_line(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
        sys.stderr.write("\n")


def from_text(text: str, origin: str, base: Path, home: Path | None) -> Secret:
    """The key that is this text, or lies in the file that it names: relative to `base`, or with ~/ to `home`."""
    if not text.startswith("file:"):
        return _checked(text, origin)
    named = text.removeprefix("file:")
    path = home / named[2:] if home and named.startswith("~/") else base / named
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the auth key from {path}: {error.strerror}",
            "see whether the path is right, and who may read it",
        ) from error
    return _checked(data.decode(errors="replace"), str(path))
