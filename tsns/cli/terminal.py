"""What tsns says to a person: errors, hints, and what it waits for (ring 2, standard library only).

All of it goes to standard error; standard output belongs to the command, or to the answer of a query.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Final, Self

from tsns.error import TsnsError, UsageError, UserError
from tsns.proto.text import one_line

PATIENCE_S: Final = 0.5  # a shorter wait is not worth a word
SPIN_S: Final = 0.1
MAX_LINE_CHARS: Final = 500
FOR_THE_PERSON: Final = "to log in"  # how a text begins that asks for something, here to open a URL
STATUS_INTERRUPTED: Final = 130
STATUS_OWN_FAILURE: Final = 125  # of commands whose status is otherwise the child's
_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ERASE: Final = "\r\x1b[K"


def is_fancy(fd: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colours and moving things may be written there."""
    return os.isatty(fd) and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def write_error(text: str) -> None:
    """Write to standard error past Python's buffer: also a signal handler does that. Nobody there to read: no matter."""
    data = text.encode(errors="replace")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass


def _label(word: str, colour: int) -> str:
    return f"\x1b[1;{colour}m{word}:\x1b[0m" if is_fancy(2) else f"{word}:"


def say(text: str) -> None:
    """One line on standard error."""
    write_error(f"{one_line(text, MAX_LINE_CHARS)}\n")


def show_error(message: str, hint: str) -> None:
    """The two lines of an error."""
    write_error(
        f"{_label('error', 31)} {one_line(message, MAX_LINE_CHARS)}\n{_label('hint', 36)} {one_line(hint, MAX_LINE_CHARS)}\n"
    )


def report(error: BaseException, verbosity: int, *, owns_status: bool) -> int:
    """Tell the person about an error, and return the exit status for it.

    `owns_status`: the command's exit status is its child's (`run`, `exec`), and a failure of our own is 125.
    """
    if verbosity > 1:
        import traceback

        write_error("".join(traceback.format_exception(error)))
    if isinstance(error, KeyboardInterrupt):
        return STATUS_INTERRUPTED
    if isinstance(error, UserError):
        show_error(error.message, error.hint)
        own = error.status in {UserError.status, UsageError.status}
        return STATUS_OWN_FAILURE if owns_status and own else error.status
    if isinstance(error, TsnsError):
        show_error(str(error), "run the command again; `tsns logs` may tell more")
    elif isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        show_error(
            f"{error.strerror or type(error).__name__}{where}",
            "run the command again with -vv to see where this came from",
        )
    else:
        show_error(
            f"tsns failed: {type(error).__name__}: {error}",
            "this is a bug; run the command again with -vv and report what it prints",
        )
    return STATUS_OWN_FAILURE if owns_status else 1


class Progress:
    """Says what is being waited for, once the wait is worth a word: a spinner on a terminal, else one line for each thing.

    Call it with a text whenever the wait is for something else. A text that the person has to act on (FOR_THE_PERSON) is always shown.
    It works by a timer signal, not by a thread: the process is going to enter namespaces.
    """

    def __init__(self, first: str, *, quiet: bool = False, verbosity: int = 0) -> None:
        self._text = first
        self._quiet = quiet
        self._verbose = verbosity > 0
        self._spins = is_fancy(2) and not quiet and not self._verbose
        self._shown = ""
        self._frame = 0
        self._began = time.monotonic()
        self._timer = (0.0, 0.0)
        self._before: signal.Handlers | int | object = signal.SIG_DFL

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def __call__(self, text: str) -> None:
        """Something else is waited for."""
        text = one_line(text, MAX_LINE_CHARS)
        if text.startswith(FOR_THE_PERSON) and text != self._shown:
            self._erase()
            write_error(f"{text}\n")
            self._shown = text
        elif self._verbose and text != self._text:
            write_error(f"{self.seconds:6.2f} s  {text}\n")
        self._text = text

    def __enter__(self) -> Self:
        if not self._quiet:
            if self._verbose:
                write_error(f"{self.seconds:6.2f} s  {self._text}\n")
            self._before = signal.signal(signal.SIGALRM, self._on_alarm) or signal.SIG_DFL
            self._timer = signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, SPIN_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._quiet:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)  # type: ignore[arg-type]
            signal.setitimer(signal.ITIMER_REAL, *self._timer)  # whoever started us may have set one
            self._erase()

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        if self._spins:
            self._frame = (self._frame + 1) % len(_FRAMES)
            write_error(f"{_ERASE}{_FRAMES[self._frame]} {self._text[: _columns() - 3]}")
        elif self._text != self._shown and not self._verbose:
            self._shown = self._text
            write_error(f"tsns: waiting: {self._text}\n")

    def _erase(self) -> None:
        if self._spins and self._frame:
            write_error(_ERASE)


def _columns() -> int:
    try:
        return max(os.get_terminal_size(2).columns, 20)
    except OSError:
        return 80


def silence_output() -> None:
    """After the reader of our output has left: let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
