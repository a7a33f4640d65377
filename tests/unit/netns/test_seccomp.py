"""The filter as the kernel reads it: each program is run here, on made-up calls, for both architectures."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

import pytest

from tsns.netns import seccomp
from tsns.netns.seccomp import MACHINES, Machine

PID: Final = 4711
ALLOWED: Final = "allowed"
KILLED: Final = "killed"
EPERM: Final = "EPERM"
ENOSYS: Final = "ENOSYS"
CLONE_THREAD_FLAGS: Final = 0x3D0F00  # what pthread_create of the GNU C library asks for
SIGCHLD: Final = 17
CLONE_NEWUSER: Final = 0x10000000
F_SETOWN: Final = 8
F_SETSIG: Final = 10
PR_SET_DUMPABLE: Final = 4
FIOSETOWN: Final = 0x8901
INSTRUCTION: Final = struct.Struct("=HBBI")
SECCOMP_DATA: Final = struct.Struct("=iIQ6Q")


def run(code: bytes, call: bytes) -> int:
    """What a classic BPF program returns; it must end, and may not jump out of itself."""
    instructions = list(INSTRUCTION.iter_unpack(code))
    accumulator, place = 0, 0
    while True:
        kind, true, false, value = instructions[place]
        place += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", call, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                place += true if accumulator == value else false
            case 0x35:
                place += true if accumulator >= value else false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"instruction {kind:#x}")


def judge(machine: Machine, number: int, arguments: Sequence[int] = (), architecture: int | None = None) -> str:
    """What becomes of a call."""
    padded = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    call = SECCOMP_DATA.pack(number, machine.architecture if architecture is None else architecture, 0, *padded)
    verdict = run(seccomp.program(machine, PID), call)
    if verdict == 0x7FFF0000:
        return ALLOWED
    return KILLED if verdict == 0x80000000 else errno.errorcode[verdict & 0xFFFF]


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return MACHINES[request.param]


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("read", (), ALLOWED),
        ("sendmsg", (), ALLOWED),
        ("epoll_pwait", (), ALLOWED),
        ("socket", (socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0), ALLOWED),
        ("socket", (socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP), ALLOWED),
        ("socket", (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE), ALLOWED),
        ("socket", (socket.AF_INET, socket.SOCK_RAW, 0), EPERM),
        ("socket", (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), EPERM),
        ("socket", (socket.AF_INET, socket.SOCK_STREAM, 262), EPERM),  # multipath TCP
        ("socket", (socket.AF_NETLINK, socket.SOCK_RAW, 12), EPERM),  # netfilter
        ("socket", (socket.AF_UNIX, socket.SOCK_STREAM, 0), EPERM),
        ("socket", (socket.AF_PACKET, socket.SOCK_DGRAM, 0), EPERM),
        ("socket", (socket.AF_ALG, socket.SOCK_SEQPACKET, 0), EPERM),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0), ALLOWED),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_DGRAM, 0), EPERM),
        ("setsockopt", (9, socket.SOL_SOCKET, socket.SO_REUSEADDR), ALLOWED),
        ("setsockopt", (9, socket.IPPROTO_TCP, socket.TCP_NODELAY), ALLOWED),
        ("setsockopt", (9, socket.IPPROTO_TCP, socket.SO_LINGER), ALLOWED),  # there it is another option
        ("setsockopt", (9, socket.SOL_SOCKET, socket.SO_LINGER), EPERM),
        ("openat", (-100, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOWED),
        ("openat", (-100, 0, os.O_WRONLY), EPERM),
        ("openat", (-100, 0, os.O_RDWR), EPERM),
        ("openat", (-100, 0, os.O_RDONLY | os.O_CREAT), EPERM),
        ("openat", (-100, 0, os.O_RDONLY | os.O_TRUNC), EPERM),
        ("openat2", (), ENOSYS),
        ("clone", (CLONE_THREAD_FLAGS,), ALLOWED),
        ("clone", (SIGCHLD,), EPERM),
        ("clone", (CLONE_NEWUSER | SIGCHLD,), EPERM),
        ("clone", (CLONE_NEWUSER | CLONE_THREAD_FLAGS,), EPERM),
        ("clone3", (), ENOSYS),
        ("tgkill", (PID, PID, 6), ALLOWED),
        ("tgkill", (PID + 1, PID + 1, 6), EPERM),
        ("prlimit64", (0, 7, 0, 0), ALLOWED),
        ("prlimit64", (PID + 1, 0, 0, 0), EPERM),
        ("prctl", (15,), ALLOWED),
        ("prctl", (PR_SET_DUMPABLE, 1), EPERM),
        ("fcntl", (9, 4, os.O_NONBLOCK), ALLOWED),
        ("fcntl", (9, F_SETOWN, PID + 1), EPERM),
        ("fcntl", (9, F_SETSIG, 9), EPERM),
        ("ioctl", (9, 0x5421), ALLOWED),
        ("ioctl", (9, FIOSETOWN), EPERM),
        ("ioctl", (9, 0x400454CA), EPERM),  # TUNSETIFF
    ],
)
def test_what_is_judged_by_its_arguments(machine: Machine, name: str, arguments: tuple[int, ...], verdict: str) -> None:
    assert judge(machine, machine.numbers[name], arguments) == verdict


@pytest.mark.parametrize(("name", "numbers"), [
    ("kill", (62, 129)), ("tkill", (200, 130)), ("rt_sigqueueinfo", (129, 138)), ("pidfd_send_signal", (424, 424)),
    ("ptrace", (101, 117)), ("process_vm_readv", (310, 270)), ("pidfd_getfd", (438, 438)),
    ("execve", (59, 221)), ("execveat", (322, 281)),
    ("unshare", (272, 97)), ("setns", (308, 268)), ("mount", (165, 40)), ("move_mount", (429, 429)), ("chroot", (161, 51)),
    ("unlinkat", (263, 35)), ("renameat2", (316, 276)), ("mkdirat", (258, 34)), ("fchmodat", (268, 53)), ("linkat", (265, 37)),
    ("bpf", (321, 280)), ("io_uring_setup", (425, 425)), ("perf_event_open", (298, 241)), ("keyctl", (250, 219)),
    ("userfaultfd", (323, 282)), ("setuid", (105, 146)), ("capset", (126, 91)), ("seccomp", (317, 277)),
])  # fmt: skip
def test_what_no_engine_needs_is_refused(name: str, numbers: tuple[int, int]) -> None:
    for machine, number in zip(MACHINES.values(), numbers, strict=True):
        assert name not in machine.numbers
        assert judge(machine, number) == EPERM


def test_both_machines_allow_the_same() -> None:
    """But for old calls that the younger of them never had."""
    old, young = (set(machine.numbers) for machine in MACHINES.values())
    assert young < old
    assert old - young == {
        "access", "dup2", "epoll_wait", "lstat", "open", "pipe", "poll", "readlink", "select", "stat", "time"
    }  # fmt: skip


def test_a_call_of_the_future_is_one_that_this_kernel_lacks(machine: Machine) -> None:
    assert judge(machine, 451) == ENOSYS
    assert judge(machine, 450) == EPERM


@pytest.mark.parametrize("architecture", [0x40000003, 0xC000003D, 0])  # i386, one that does not exist
def test_calls_of_another_architecture_kill(machine: Machine, architecture: int) -> None:
    assert judge(machine, machine.numbers["read"], architecture=architecture) == KILLED


def test_calls_by_another_numbering_kill(machine: Machine) -> None:
    assert judge(machine, 0x40000000 | machine.numbers["read"]) == KILLED
    assert judge(machine, -1) == KILLED


def test_the_kernel_would_take_the_program(machine: Machine) -> None:
    code = seccomp.program(machine, PID)
    assert len(code) % INSTRUCTION.size == 0
    assert len(code) // INSTRUCTION.size <= 4096  # BPF_MAXINSNS
