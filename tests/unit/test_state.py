"""The identity on disk: who may read it, what survives a failing disk, and what becomes of garbage."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.error import UserError
from tsns.keys import LockPrivate, MachinePrivate, MachinePublic, NodePrivate
from tsns.state import MAX_FILE_BYTES, Identity, load, make_private_directory, save

IDENTITY = Identity(
    machine_key=MachinePrivate.generate(b"\x11" * 32),
    lock_key=LockPrivate.generate(b"\x22" * 32),
    log_id="33" * 32,
    node_key=NodePrivate.generate(b"\x44" * 32),
    old_node_key=NodePrivate.generate(b"\x55" * 32),
    control_url="http://127.0.0.1:8080",
    control_key=MachinePublic(b"\x66" * 32),
)
SECRETS = [b"\x10" + b"\x11" * 30, b"\x22" * 32, b"\x44" * 31, b"\x50" + b"\x55" * 30]  # as `generate` clamps them


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "web" / "identity.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# --- identities ----------------------------------------------------------------------------------------------------


def test_an_identity_survives_the_disk(path: Path) -> None:
    save(path, IDENTITY.dump())
    assert load(path) == IDENTITY


def test_a_new_identity_survives_the_disk_too(path: Path) -> None:
    new = Identity.generate()
    save(path, new.dump())
    assert load(path) == new
    assert (new.node_key, new.old_node_key, new.control_url, new.control_key) == (None, None, None, None)
    assert re.fullmatch(r"[0-9a-f]{64}", new.log_id)


def test_no_two_are_alike() -> None:
    first, second = Identity.generate(), Identity.generate()
    assert first.machine_key != second.machine_key
    assert first.lock_key != second.lock_key
    assert first.log_id != second.log_id


def test_a_new_node_key_keeps_the_former_one() -> None:
    first, second = NodePrivate.generate(b"\x01" * 32), NodePrivate.generate(b"\x02" * 32)
    once = Identity.generate().with_node_key(first)
    assert (once.node_key, once.old_node_key) == (first, None)
    twice = once.with_node_key(second)
    assert (twice.node_key, twice.old_node_key) == (second, first)
    assert twice.with_node_key(NodePrivate(second.raw)) is twice


def test_members_of_a_later_tsns_are_passed_over() -> None:
    message = {**json.loads(IDENTITY.dump()), "later": [1, 2]}
    assert Identity.load(json.dumps(message).encode()) == IDENTITY


def test_nothing_is_there_yet(path: Path) -> None:
    assert load(path) is None
    assert not path.parent.exists()


# --- modes and links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save(path, IDENTITY.dump())
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_a_directory_that_others_may_read_is_closed(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o755)
    save(path, b"{}")
    assert mode(path.parent) == 0o700


def test_a_file_that_others_may_read_is_replaced(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    path.chmod(0o644)
    save(path, IDENTITY.dump())
    assert mode(path) == 0o600


def test_a_link_is_replaced_and_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    save(path, IDENTITY.dump())
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert load(path) == IDENTITY


def test_a_link_is_not_read(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(IDENTITY.dump())
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    with pytest.raises(UserError, match="cannot read"):
        load(path)
    assert path.is_symlink()


def test_a_link_is_no_directory_of_ours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match="not a directory of our own"):
        save(link / "identity.json", IDENTITY.dump())
    assert names(elsewhere) == []


def test_somebody_elses_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UserError, match="not a directory of our own"):
        make_private_directory(tmp_path)


# --- a disk that fails ---------------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., Any]:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("call", "number"), [("rename", errno.EIO), ("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EROFS)]
)
@pytest.mark.parametrize("present", [True, False], ids=["with an old file", "without one"])
def test_a_failing_disk_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, present: bool
) -> None:
    if present:
        save(path, IDENTITY.dump())
    else:
        make_private_directory(path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            save(path, Identity.generate().dump())
    assert caught.value.errno == number
    assert load(path) == (IDENTITY if present else None)
    assert names(path.parent) == (["identity.json"] if present else [])


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    save(path, IDENTITY.dump())
    make = os.open

    def opened_full(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        fd = make(name, flags, *rest, **more)
        if flags & os.O_CREAT:
            full = make("/dev/full", os.O_WRONLY)
            os.dup2(full, fd)
            os.close(full)
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened_full)
        with pytest.raises(OSError, match="No space left"):
            save(path, Identity.generate().dump())
    assert load(path) == IDENTITY
    assert names(path.parent) == ["identity.json"]


def test_content_is_on_disk_before_its_name_and_the_name_before_we_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fsync, rename = os.fsync, os.rename

    def tell_fsync(fd: int) -> None:
        told.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
        fsync(fd)

    def tell_rename(source: Any, target: Any) -> None:
        told.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    monkeypatch.setattr(os, "rename", tell_rename)
    save(path, b"12345")
    assert told == ["file of 5", "rename to identity.json", "directory"]


def test_what_a_killed_process_had_begun_to_write_is_removed(path: Path) -> None:
    save(path, b"old")
    save(path.with_name("settings.json"), b"of another file")
    for begun in (".identity.json.0badcafe", ".settings.json.0badcafe"):
        path.with_name(begun).write_bytes(b"secr")
    save(path, b"new")
    assert names(path.parent) == [".settings.json.0badcafe", "identity.json", "settings.json"]


def test_no_descriptor_is_left_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, IDENTITY.dump())
    before = os.listdir("/proc/self/fd")
    save(path, IDENTITY.dump())
    load(path)
    monkeypatch.setattr(os, "rename", failing(errno.EIO))
    with pytest.raises(OSError, match="error"):
        save(path, IDENTITY.dump())
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- garbage -------------------------------------------------------------------------------------------------------

GOOD = IDENTITY.dump()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a node's identity"),
        (b"\0" * 500, "not a node's identity"),
        (GOOD[:-1], "not a node's identity"),
        (GOOD[: len(GOOD) // 2], "not a node's identity"),
        (b"[]", "not a node's identity"),
        (b"{}", "not a node's identity"),
        (b'{"version": "\xff"}', "not a node's identity"),
        (GOOD.replace(b'"version":1', b'"version":2'), "version 2"),
        (GOOD.replace(b"privkey:", b"wrong:", 1), "one of its keys is damaged"),
        (GOOD.replace(b"nlpriv:22", b"nlpriv:23", 1), "one of its keys is damaged"),
        (GOOD.replace(b"mkey:66", b"mkey:6", 1), "one of its keys is damaged"),
        (GOOD + b" " * MAX_FILE_BYTES, "too large"),
    ],
    ids=[
        "empty",
        "zeros",
        "its end is missing",
        "half is missing",
        "a list",
        "an empty object",
        "no text",
        "another version",
        "a key of another kind",
        "a lock key that does not fit together",
        "a short control key",
        "too large",
    ],
)
def test_garbage_is_moved_aside_and_never_replaced_by_somebody_new(path: Path, data: bytes, reason: str) -> None:
    save(path, data)
    with pytest.raises(UserError) as caught:
        load(path)
    assert reason in caught.value.message
    [aside] = names(path.parent)
    assert aside in caught.value.message
    assert re.fullmatch(r"identity\.json\.damaged-\d+-[0-9a-f]{4}", aside)
    assert (path.parent / aside).read_bytes() == data
    assert mode(path.parent / aside) == 0o600
    assert load(path) is None


def test_garbage_that_cannot_be_moved_aside_stays_and_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, b"{}")
    monkeypatch.setattr(os, "rename", failing(errno.EROFS))
    with pytest.raises(UserError, match="nor can it be moved aside: Read-only file system"):
        load(path)
    assert path.read_bytes() == b"{}"


# --- what an engine may make of it ---------------------------------------------------------------------------------

SERVER = IDENTITY.control_url or ""
OTHER_KEY = NodePrivate.generate(b"\x77" * 32)


def test_an_engine_may_change_its_node_key() -> None:
    new = IDENTITY.with_node_key(OTHER_KEY)
    assert IDENTITY.succeeded_by(new, SERVER) == new
    gone = replace(IDENTITY, node_key=None, old_node_key=None)
    assert IDENTITY.succeeded_by(gone, SERVER) == gone


def test_somebody_new_gets_a_server_and_its_key() -> None:
    somebody = replace(IDENTITY, control_url=None, control_key=None)
    assert somebody.succeeded_by(IDENTITY, SERVER) == IDENTITY


@pytest.mark.parametrize(
    "change",
    [
        {"machine_key": MachinePrivate.generate(b"\x78" * 32)},
        {"lock_key": LockPrivate.generate(b"\x78" * 32)},
        {"log_id": "77" * 32},
        {"control_url": "https://elsewhere.example"},
        {"control_key": MachinePublic(b"\x78" * 32)},
    ],
)
def test_an_engine_may_not_make_somebody_else_of_it(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"identity|belong|known"):
        IDENTITY.succeeded_by(replace(IDENTITY, **change), SERVER)


def test_what_is_known_of_the_server_stays_known() -> None:
    forgetful = replace(IDENTITY, control_url=None, control_key=None)
    assert IDENTITY.succeeded_by(forgetful, SERVER) == IDENTITY


# --- secrets -------------------------------------------------------------------------------------------------------


def test_nothing_secret_is_shown() -> None:
    shown = repr(IDENTITY)
    assert [secret.hex() for secret in SECRETS if secret.hex() in shown] == []
    assert [secret for secret in SECRETS if secret.hex().encode() not in GOOD] == []  # the check itself can fail


@pytest.mark.parametrize("damage", [b"privkey:", b"nlpriv:", b'"version":1', b"}"])
def test_nothing_secret_is_in_an_error(path: Path, damage: bytes) -> None:
    save(path, GOOD.replace(damage, damage[:-1]))
    with pytest.raises(UserError) as caught:
        load(path)
    told = f"{caught.value.message} {caught.value.hint} {caught.value.__cause__!r}"
    assert [secret.hex() for secret in SECRETS if secret.hex() in told] == []
    assert caught.value.__suppress_context__


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|one) "):
        Identity.load(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_single_wrong_byte_gives_an_identity_or_an_error(at: int, change: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] ^= change
    reason = ""
    try:
        Identity.load(bytes(damaged))
    except ValueError as error:
        reason = str(error)
    assert len(reason) < 100


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_file_is_told_and_left_alone(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(UserError, match="is no file"):
        load(path)
    assert path.exists()
