"""Our resolv.conf in a container's file system: put there, seen there and nowhere else, and taken away."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tsns.netns import mounts
from tsns.netns.mounts import RESOLV_PATH

pytestmark = pytest.mark.netns

THEIRS: Final = "nameserver 127.0.0.11\n"
OURS: Final = "nameserver 100.100.100.100\n"
# A mount namespace with a root of its own, as container runtimes make it. Says what the expressions on its input come to.
HOLDER: Final = """
import os, sys
from tsns.netns import linux
root, kind = sys.argv[1:3]
if "user" in kind:
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(linux.CLONE_NEWUSER)
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", linux.MS_REC | 1 << 18)
linux.mount("tmpfs", root, 0, kind="tmpfs")
os.chdir(root)
for name in ("etc", "run"):
    os.mkdir(name)
resolv = "etc/resolv.conf"
if "symlink" in kind:
    os.symlink("/run/dangling" if "dangling" in kind else "/run/theirs", resolv)
    resolv = "run/theirs"
if "missing" not in kind and "dangling" not in kind:
    open(resolv, "w").write(sys.argv[3])
if "bound" in kind:  # by Docker
    open("run/dockers", "w").write(sys.argv[3])
    open(resolv, "w").write("of the image")
    linux.mount("run/dockers", resolv, linux.MS_BIND)
if "moved" in kind:
    linux.mount(".", "/", 8192)
    os.chroot(".")
else:
    linux._check(linux._libc.pivot_root(b".", b"."), "pivot_root")
    linux.unmount(".")
os.chdir("/")
if "read-only" in kind:
    linux.mount("none", "/", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
def wrote(path="/etc/resolv.conf"):
    try:
        open(path, "a").write("x")
    except OSError as error:
        return error.errno
def read(path="/etc/resolv.conf"):
    return open(path).read()
print("made", flush=True)
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except OSError as error:
        print(repr(f"OSError {error.errno}"), flush=True)
"""


class Held:
    """A process in such a namespace."""

    def __init__(self, process: subprocess.Popen[str], fd: int) -> None:
        self.process = process
        self.fd = fd  # of its mount namespace

    def says(self, expression: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{expression}\n")
        self.process.stdin.flush()
        return eval(self.process.stdout.readline())


@contextlib.contextmanager
def held(directory: Path, kind: str = "pivoted") -> Iterator[Held]:
    root = directory / "root"
    root.mkdir()
    words = [sys.executable, "-c", HOLDER, str(root), kind, THEIRS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            fd = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield Held(process, fd)
            finally:
                os.close(fd)
        finally:
            process.kill()


def resolv_mounts() -> list[str]:
    """Those of our own file system."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "resolv" in line]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.resolv"
    path.write_text(OURS)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("kind", ["pivoted", "moved", "read-only", "symlink", "bound", "bound read-only", "user"])
def test_a_container_sees_ours_and_then_its_own_again(tmp_path: Path, file: Path, kind: str) -> None:
    hosts = Path(RESOLV_PATH).read_bytes()
    mounted = resolv_mounts()
    with held(tmp_path, kind) as target:
        for _ in range(2):
            for _ in range(2):  # again is not twice
                mounts.inject({RESOLV_PATH: str(file)}, target.fd)
            assert target.says("read()") == OURS
            assert target.says("wrote()") == errno.EROFS
            file.write_text(OURS + "search lab.test\n")
            assert target.says("read()") == OURS + "search lab.test\n"
            file.write_text(OURS)
            for _ in range(2):
                mounts.eject(RESOLV_PATH, str(file), target.fd)
                assert target.says("read()") == THEIRS
    assert Path(RESOLV_PATH).read_bytes() == hosts
    assert resolv_mounts() == mounted


@pytest.mark.parametrize("kind", ["missing", "symlink dangling"])
def test_a_container_without_the_file(tmp_path: Path, file: Path, kind: str) -> None:
    with held(tmp_path, kind) as target:
        with pytest.raises(OSError, match=r"there is no /etc/resolv.conf in there") as caught:
            mounts.inject({RESOLV_PATH: str(file)}, target.fd)
        assert caught.value.errno == errno.ENOENT
        mounts.eject(RESOLV_PATH, str(file), target.fd)


def test_what_a_killed_keeper_has_left_is_known_though_its_file_is_gone(tmp_path: Path, file: Path) -> None:
    with held(tmp_path) as target:
        mounts.inject({RESOLV_PATH: str(file)}, target.fd)
        file.unlink()
        assert target.says("read()") == OURS
        file.write_text(OURS)
        mounts.inject({RESOLV_PATH: str(file)}, target.fd)
        file.unlink()
        mounts.eject(RESOLV_PATH, str(file), target.fd)
        assert target.says("read()") == THEIRS


def test_others_mounts_stay(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other"
    other.write_text("somebody else's\n")
    with held(tmp_path) as target:
        mounts.inject({RESOLV_PATH: str(other)}, target.fd)
        mounts.eject(RESOLV_PATH, str(file), target.fd)
        assert target.says("read()") == "somebody else's\n"
        mounts.inject({RESOLV_PATH: str(file)}, target.fd)
        mounts.eject(RESOLV_PATH, str(file), target.fd)
        assert target.says("read()") == "somebody else's\n"


def test_our_own_file_system_is_no_containers(file: Path) -> None:
    mounted = resolv_mounts()
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError, match="the same file system as tsns itself"):
            mounts.inject({RESOLV_PATH: str(file)}, fd)
        with pytest.raises(OSError, match="the same file system as tsns itself"):
            mounts.eject(RESOLV_PATH, str(file), fd)
    finally:
        os.close(fd)
    assert resolv_mounts() == mounted
