"""A node's identity, and how it is kept on disk (ring 1).

One JSON file for a node, `STATE/NAME/identity.json`: directory 0700, file 0600, replaced atomically (write, fsync, rename, fsync of the
directory) without following links. What cannot be read is moved aside, never overwritten: a lost identity is the person's to decide.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from tsns.error import UserError
from tsns.keys import KEY_BYTES, LockPrivate, MachinePrivate, MachinePublic, NodePrivate
from tsns.proto.text import one_line

VERSION: Final = 1
MAX_FILE_BYTES: Final = 64 << 10
DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=False):
    """The file's JSON. Members are only ever added within a version."""

    version: int
    machine_key: str
    lock_key: str
    log_id: str
    node_key: str | None = None
    old_node_key: str | None = None
    control_url: str | None = None
    control_key: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is. `node_key` is None until control has accepted one."""

    machine_key: MachinePrivate
    lock_key: LockPrivate
    log_id: str  # 64 hexadecimal digits that control may use to tell installations apart
    node_key: NodePrivate | None = None
    old_node_key: NodePrivate | None = None
    control_url: str | None = None
    control_key: MachinePublic | None = None  # pinned where control's URL is plain http

    @classmethod
    def generate(cls) -> Identity:
        """Somebody new."""
        return cls(
            machine_key=MachinePrivate.generate(secrets.token_bytes(KEY_BYTES)),
            lock_key=LockPrivate.generate(secrets.token_bytes(KEY_BYTES)),
            log_id=secrets.token_hex(32),
        )

    def with_node_key(self, key: NodePrivate) -> Identity:
        """Become who control knows by another node key; the present key is kept as the old one."""
        if key == self.node_key:
            return self
        return replace(self, node_key=key, old_node_key=self.node_key)

    def succeeded_by(self, new: Identity, server: str) -> Identity:
        """What an engine may make of this identity: other node keys, and where there was none, its server and control's key.

        ValueError where it is somebody else, or at home elsewhere.
        """
        ours, theirs = ((who.machine_key, who.lock_key, who.log_id) for who in (self, new))
        if ours != theirs:
            raise ValueError("it is another node's identity")
        if new.control_url not in (None, self.control_url, server):
            raise ValueError(f"the node does not belong to {one_line(new.control_url)}")
        if self.control_key is not None and new.control_key not in (None, self.control_key):
            raise ValueError("control's key is known, and is another one")
        return replace(
            new, control_url=self.control_url or new.control_url, control_key=self.control_key or new.control_key
        )

    def dump(self) -> bytes:
        """The file's content, secrets included."""
        file = _File(
            version=VERSION,
            machine_key=self.machine_key.reveal(),
            lock_key=self.lock_key.reveal(),
            log_id=self.log_id,
            node_key=self.node_key.reveal() if self.node_key else None,
            old_node_key=self.old_node_key.reveal() if self.old_node_key else None,
            control_url=self.control_url,
            control_key=str(self.control_key) if self.control_key else None,
        )
        return msgspec.json.encode(file)

    @classmethod
    def load(cls, data: bytes) -> Identity:
        """Read what `dump` wrote; ValueError, which repeats none of it, where that is not possible."""
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError("it is not a node's identity") from None
        if file.version != VERSION:
            raise ValueError(f"it has version {file.version}, and this tsns knows version {VERSION}")
        try:
            return cls(
                machine_key=MachinePrivate.parse(file.machine_key),
                lock_key=LockPrivate.parse(file.lock_key),
                log_id=file.log_id,
                node_key=NodePrivate.parse(file.node_key) if file.node_key else None,
                old_node_key=NodePrivate.parse(file.old_node_key) if file.old_node_key else None,
                control_url=file.control_url,
                control_key=MachinePublic.parse(file.control_key) if file.control_key else None,
            )
        except ValueError:
            raise ValueError("one of its keys is damaged") from None


def save(path: Path, data: bytes) -> None:
    """Replace the file: it holds either the old content or the new one, whatever happens. OSError as the system says it.

    One process at a time: what a killed one had begun is removed here.
    """
    make_private_directory(path.parent)
    for name in os.listdir(path.parent):  # `glob` would compile a pattern
        if name.startswith(f".{path.name}."):
            path.with_name(name).unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path) -> Identity | None:
    """The identity in this file, None where there is no file. Garbage is moved aside, and UserError says where to."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", "see who owns it; it must be yours, or with sudo root's"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # a directory, or a pipe that would keep us waiting
        os.close(fd)
        raise UserError(f"{path} is no file", "move it away, or set TSNS_STATE_DIR to another place")
    with open(fd, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        return Identity.load(data)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}-{secrets.token_hex(2)}")
        try:
            os.rename(path, aside)
        except OSError as failure:
            raise UserError(
                f"the identity in {path} cannot be used: {error}; nor can it be moved aside: {failure.strerror}",
                "put a good copy in its place, or move it away to log in as a new node",
            ) from None
        raise UserError(
            f"the identity in {path} cannot be used: {error}; it was moved to {aside.name}",
            "put a good copy back, or run the command again to log in as a new node",
        ) from None


def make_private_directory(path: Path) -> None:
    """Make a directory that is ours alone; UserError where somebody else's stands there."""
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UserError(f"{path} is not a directory of our own", "remove it, or set TSNS_STATE_DIR to another place")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(DIRECTORY_MODE)
