"""Puts a command into a node's namespace by becoming it (ring 2, standard library only).

The client enters, makes its private mounts, drops to the caller and executes in place: terminal, job control, signals and exit status
are the kernel's own, and no process of ours stays behind.
"""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

from tsns.error import UserError
from tsns.netns import linux, mounts, user_namespace
from tsns.node.client import Entry

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SECRETS: Final = ("TS_AUTHKEY", "TS_AUTH_KEY")


class Caller(NamedTuple):
    """Whose the command is to be: sudo's caller; or (uid 0) whoever we are already."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]  # what sudo had replaced

    @property
    def shell(self) -> str:
        """The caller's own shell; empty for root itself, whose environment says it."""
        return self.environment.get("SHELL", "")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Caller:
        """Look everything up while we still may."""
        uid = sudo_uid(environ)
        if not uid:
            return cls(0, 0, (), {})
        try:
            person = pwd.getpwuid(uid)
        except KeyError:
            gid = int(environ.get("SUDO_GID", uid))
            return cls(uid, gid, (gid,), {})
        own = {"HOME": person.pw_dir, "USER": person.pw_name, "LOGNAME": person.pw_name, "SHELL": person.pw_shell}
        return cls(uid, person.pw_gid, tuple(os.getgrouplist(person.pw_name, person.pw_gid)), own)


def sudo_uid(environ: Mapping[str, str]) -> int:
    """The uid of sudo's caller; 0 without sudo."""
    text = environ.get("SUDO_UID", "")
    return int(text) if os.geteuid() == 0 and text.isascii() and text.isdigit() else 0


def find_program(command: str, environ: Mapping[str, str]) -> str:
    """The file that the shell would run; UserError with the shell's exit status where there is none."""
    if not command:
        raise UserError("the command is empty", "write it after `--`", NOT_FOUND)
    places = [""] if "/" in command else (environ.get("PATH") or os.defpath).split(":")
    candidates = [os.path.join(place, command) for place in places]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    for candidate in candidates:
        if os.path.isdir(candidate) and "/" in command:
            raise UserError(f"{command} is a directory", "name a program", NOT_EXECUTABLE)
        if os.path.isfile(candidate):
            raise UserError(f"{candidate} may not be executed", f"see its rights: `ls -l {candidate}`", NOT_EXECUTABLE)
    raise UserError(
        f"{command}: command not found", "check its spelling and PATH (sudo has a PATH of its own)", NOT_FOUND
    )


def run_in(entry: Entry, command: Sequence[str], *, keep_caps: bool = False) -> NoReturn:
    """Enter the node and become the command. UserError where that fails; nothing comes back otherwise.

    Of root's capabilities the command keeps Docker's set, also where an ordinary user is root in the node's user namespace. Anybody else
    has none left once the command is executed.
    """
    # All look-ups first: later the interpreter's own files may be out of reach.
    program = find_program(command[0], os.environ)
    caller = Caller.from_environment(os.environ)
    directory = os.getcwd()
    as_root = os.geteuid() == 0
    try:
        user_namespace.enter(entry.namespace_fd)
        mounts.enter_private(entry.resolv, entry.nsswitch)
    except OSError as error:
        hint = (
            "tsns needs root with CAP_SYS_ADMIN" if as_root else "only who made a node may enter it: try it with sudo"
        )
        raise UserError(f"the namespace cannot be entered: {error.strerror}", hint) from error
    os.chdir(directory)  # the same one, seen through our own mounts
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS} | caller.environment
    entry.entered()
    if caller.uid:
        linux.become(caller.uid, caller.gid, caller.groups)
    elif not keep_caps:
        linux.keep_only_capabilities(linux.DOCKER_CAPABILITIES)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a command expects them
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, list(command), environment)
    except OSError as error:
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        raise UserError(f"{command[0]}: {error.strerror}", "is it a program for this machine?", status) from None
