"""What an engine may ask of the kernel: an allow-list of system calls, as a seccomp filter (ring 1, standard library only).

    of another architecture --> the process is killed
    in the table            --> allowed, where there are conditions only with arguments that meet one of them
    newer than the table, or one that the C library can do without --> ENOSYS
    everything else         --> EPERM

So whoever has taken an engine over has no call for signalling, tracing, executing, forking, mounting, entering or making namespaces, and
none that changes the file system. Nor can it reach a Unix socket, behind which other programs of its user or of the machine would act for
it: `socket` makes sockets of IP and of routing only, and what it has inherited is connected or listens.

Source: seccomp(2), linux/filter.h, linux/seccomp.h, linux/audit.h; the numbers of asm/unistd_64.h (x86-64) and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tsns.error import UserError

_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_AT_NUMBER: Final = 0  # in struct seccomp_data
_AT_ARCHITECTURE: Final = 4
_AT_ARGUMENTS: Final = 16
_ARGUMENT_BYTES: Final = 8  # of which the low half is looked at: all that is judged here are ints
_INSTRUCTION: Final = struct.Struct("=HBBI")

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1  # for every thread of the process
_FLAG_SPEC_ALLOW: Final = 4  # else older kernels slow all of Python down against Spectre v4
_X32: Final = 0x40000000  # a second numbering on x86-64
_FIRST_UNKNOWN: Final = 451  # the tables end here: a C library tries newer calls and goes by ENOSYS

_NOT_FOR_READING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_NEW_THREAD: Final = 0x00010000  # CLONE_THREAD, which goes with CLONE_VM and CLONE_SIGHAND
_NEW_NAMESPACES: Final = 0x7E020080  # CLONE_NEW*
_SOCKET_TYPE: Final = 0xF  # the rest are flags
_TCGETS: Final = 0x5401  # isatty
_FIONREAD: Final = 0x541B
_FIONBIO: Final = 0x5421
_SIOCGIFNAME: Final = 0x8910
_SIOCGIFINDEX: Final = 0x8933
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_F_DUPFD_CLOEXEC: Final = 1030
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_PR_SET_NAME: Final = 15
_PR_GET_NAME: Final = 16


_libc: Final = ctypes.CDLL(None, use_errno=True)


class Check(NamedTuple):
    """Of an argument, counted from 0: what is left of it under the mask is among the values, or with `other` is not."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    other: bool = False


Condition = tuple[Check, ...]  # all of them


@dataclass(frozen=True, slots=True)
class Machine:
    """One architecture: its number, that of seccomp(2), and those of the calls in question."""

    architecture: int
    seccomp: int
    numbers: Mapping[str, int]


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


# What is asked for with every packet comes first.
MACHINES: Final[Mapping[str, Machine]] = {
    "x86_64": Machine(
        0xC000003E,
        317,
        _table(
            """
            epoll_wait 232  read 0  write 1  sendmsg 46  recvmsg 47  recvfrom 45  sendto 44  futex 202  setsockopt 54
            epoll_ctl 233  epoll_pwait 281  readv 19  writev 20  sendmmsg 307  recvmmsg 299  close 3  poll 7  ppoll 271
            select 23  pselect6 270  clock_gettime 228  clock_getres 229  clock_nanosleep 230  nanosleep 35
            gettimeofday 96  time 201  getrandom 318  madvise 28  mmap 9  munmap 11  mremap 25  mprotect 10  brk 12
            connect 42  accept 43  accept4 288  bind 49  listen 50  shutdown 48  getsockname 51  getpeername 52
            getsockopt 55  socket 41  socketpair 53  fcntl 72  ioctl 16  openat 257  open 2  lseek 8  pread64 17
            pwrite64 18  fstat 5  newfstatat 262  stat 4  lstat 6  statx 332  access 21  faccessat 269  faccessat2 439
            readlink 89  readlinkat 267  getcwd 79  getdents64 217  memfd_create 319  epoll_create1 291  eventfd2 290
            pipe 22  pipe2 293  dup 32  dup2 33  dup3 292  inotify_init1 294  inotify_add_watch 254
            inotify_rm_watch 255  clone 56  clone3 435  set_robust_list 273  rseq 334  sched_yield 24
            sched_getaffinity 204  gettid 186  restart_syscall 219  rt_sigaction 13  rt_sigprocmask 14  rt_sigreturn 15
            sigaltstack 131  tgkill 234  getpid 39  getppid 110  getuid 102  geteuid 107  getgid 104  getegid 108
            getgroups 115  getresuid 118  getresgid 120  uname 63  sysinfo 99  getrusage 98  times 100  getrlimit 97
            prlimit64 302  prctl 157  exit 60  exit_group 231  openat2 437  close_range 436
            """
        ),
    ),
    "aarch64": Machine(
        0xC00000B7,
        277,
        _table(
            """
            epoll_pwait 22  read 63  write 64  sendmsg 211  recvmsg 212  recvfrom 207  sendto 206  futex 98
            setsockopt 208  epoll_ctl 21  readv 65  writev 66  sendmmsg 269  recvmmsg 243  close 57  ppoll 73
            pselect6 72  clock_gettime 113  clock_getres 114  clock_nanosleep 115  nanosleep 101  gettimeofday 169
            getrandom 278  madvise 233  mmap 222  munmap 215  mremap 216  mprotect 226  brk 214  connect 203
            accept 202  accept4 242  bind 200  listen 201  shutdown 210  getsockname 204  getpeername 205
            getsockopt 209  socket 198  socketpair 199  fcntl 25  ioctl 29  openat 56  lseek 62  pread64 67
            pwrite64 68  fstat 80  newfstatat 79  statx 291  faccessat 48  faccessat2 439  readlinkat 78  getcwd 17
            getdents64 61  memfd_create 279  epoll_create1 20  eventfd2 19  pipe2 59  dup 23  dup3 24
            inotify_init1 26  inotify_add_watch 27  inotify_rm_watch 28  clone 220  clone3 435  set_robust_list 99
            rseq 293  sched_yield 124  sched_getaffinity 123  gettid 178  restart_syscall 128  rt_sigaction 134
            rt_sigprocmask 135  rt_sigreturn 139  sigaltstack 132  tgkill 131  getpid 172  getppid 173  getuid 174
            geteuid 175  getgid 176  getegid 177  getgroups 158  getresuid 148  getresgid 150  uname 160  sysinfo 179
            getrusage 165  times 153  getrlimit 163  prlimit64 261  prctl 167  exit 93  exit_group 94  openat2 437
            close_range 436
            """
        ),
    ),
}

# The C library tries these and knows another way; the arguments of two of them are where no filter can look.
_DISPENSABLE: Final = frozenset({"clone3", "openat2", "close_range"})

_IP: Final = (
    Check(0, (socket.AF_INET, socket.AF_INET6)),
    Check(1, (socket.SOCK_STREAM, socket.SOCK_DGRAM), mask=_SOCKET_TYPE),
    Check(2, (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)),
)
_ROUTING: Final = (Check(0, (socket.AF_NETLINK,)), Check(2, (socket.NETLINK_ROUTE,)))
_PLAIN_FCNTL: Final = (
    fcntl.F_DUPFD,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
    _F_DUPFD_CLOEXEC,
    _F_ADD_SEALS,
    _F_GET_SEALS,
)  # not F_SETOWN and F_SETSIG, which send signals to others


def _conditions(pid: int) -> dict[str, tuple[Condition, ...]]:
    """Of these calls: one of the conditions has to hold."""
    return {
        "socket": (_IP, _ROUTING),
        # Not of datagrams: such a one can be led to any other socket later.
        "socketpair": ((Check(0, (socket.AF_UNIX,)), Check(1, (socket.SOCK_STREAM,), mask=_SOCKET_TYPE)),),
        # A socket that lingers would hold up whoever closes it last, and that could be the keeper.
        "setsockopt": (
            (Check(1, (socket.SOL_SOCKET,), other=True),),
            (Check(2, (socket.SO_LINGER,), other=True),),
        ),
        "openat": ((Check(2, (os.O_RDONLY,), mask=_NOT_FOR_READING),),),
        "open": ((Check(1, (os.O_RDONLY,), mask=_NOT_FOR_READING),),),
        "clone": ((Check(0, (_NEW_THREAD,), mask=_NEW_THREAD | _NEW_NAMESPACES),),),
        "tgkill": ((Check(0, (pid,)),),),  # abort
        "prlimit64": ((Check(0, (0,)),),),  # not of others
        "prctl": ((Check(0, (_PR_SET_NAME, _PR_GET_NAME)),),),
        "fcntl": ((Check(1, _PLAIN_FCNTL),),),
        "ioctl": (
            (Check(1, (_TCGETS, _FIONREAD, _FIONBIO, _SIOCGIFNAME, _SIOCGIFINDEX, _TUNGETIFF, _TUNSETOFFLOAD)),),
        ),
    }


def program(machine: Machine, pid: int) -> bytes:
    """The filter for a process of this pid, as an array of struct sock_filter."""
    conditions = _conditions(pid)
    code = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.architecture),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
    ]
    for name, number in machine.numbers.items():
        if name in _DISPENSABLE:
            verdict = [(_RETURN, 0, 0, _RET_ERRNO | errno.ENOSYS)]
        elif name in conditions:
            verdict = _one_of(conditions[name])
        else:
            verdict = [(_RETURN, 0, 0, _RET_ALLOW)]
        code += [(_JUMP_EQUAL, 0, len(verdict), number), *verdict]
    code += [
        (_JUMP_AT_LEAST, 0, 1, _FIRST_UNKNOWN),
        (_RETURN, 0, 0, _RET_ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


_Code = list[tuple[int, int, int, int]]


def _one_of(conditions: Sequence[Condition]) -> _Code:
    code: _Code = []
    for condition in conditions:
        code += _all_of(condition)
    return [*code, (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM)]


def _all_of(condition: Condition) -> _Code:
    """Allows what meets each of the checks, and goes on behind itself with the rest."""
    code: _Code = [(_RETURN, 0, 0, _RET_ALLOW)]
    for check in reversed(condition):
        equal, unequal = (len(code), 0) if check.other else (0, len(code))  # how much is jumped over
        comparisons: _Code = []
        for value in reversed(check.values):
            comparisons.insert(0, (_JUMP_EQUAL, len(comparisons) + equal, 0 if comparisons else unequal, value))
        masked = [] if check.mask == 0xFFFFFFFF else [(_AND, 0, 0, check.mask)]
        code = [(_LOAD, 0, 0, _AT_ARGUMENTS + check.argument * _ARGUMENT_BYTES), *masked, *comparisons, *code]
    return code


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def machine() -> Machine | None:
    """What this process runs on; None where there is no table for it."""
    return MACHINES.get(os.uname().machine) if struct.calcsize("P") == 8 else None


def confine() -> bool:
    """Put this process under the filter, for good; it must have no_new_privs. False where there is no table for this machine.

    UserError where the kernel does not do it.
    """
    here = machine()
    if here is None:
        return False
    code = program(here, os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    described = _Program(len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    result = _libc.syscall(
        ctypes.c_long(here.seccomp),
        ctypes.c_ulong(_SET_MODE_FILTER),
        ctypes.c_ulong(_FLAG_TSYNC | _FLAG_SPEC_ALLOW),
        ctypes.byref(described),
    )
    if result != 0:
        raise UserError(
            f"the engine cannot be confined: {os.strerror(ctypes.get_errno())}",
            "seccomp filters are needed: Linux 4.17",
        )
    return True
