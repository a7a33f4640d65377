"""The errors of tsns, as one tree (ring 0).

    TsnsError
    ├── UserError         the person can mend it: one `error:` line, one `hint:` line, an exit status
    │   └── UsageError    the command line itself is wrong (exit status 2)
    ├── ProtocolError     the other side broke its protocol: the connection is of no further use
    └── RetryableError    the other side is away or busy: try again, not before `retry_after_s`

A packet that has to be dropped is not an error but a counted reason; what is in none of these classes is our own bug.
"""

from __future__ import annotations


class TsnsError(Exception):
    """Whatever tsns raises on purpose."""


class UserError(TsnsError):
    """Something that the person can mend; `message` and `hint` are one line each, without a final dot."""

    status = 1

    def __init__(self, message: str, hint: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if status is not None:
            self.status = status


class UsageError(UserError):
    """The command line is wrong."""

    status = 2


class ProtocolError(TsnsError):
    """The other side broke its protocol."""


class RetryableError(TsnsError):
    """The other side is away or busy; `retry_after_s` is its own wish, if it had one."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
