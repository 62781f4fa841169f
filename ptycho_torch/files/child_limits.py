"""What a process that reads untrusted files may use: memory, time, files, and calls of the system.

The limits of POSIX hold on Linux and macOS. Linux has two more, which hold for root as well: Landlock (since 5.13) lets
the process open no file but those it is told of, and a seccomp filter (on x86-64 and 64-bit ARM) lets it make no call
but those that reading takes, so no socket, no program and no other process. Where the kernel lacks one of them, it
is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

# Name → number on x86-64 and on 64-bit ARM, which lacks some of the older calls.
_READING: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67),
        "readv": (19, 65), "writev": (20, 66), "fcntl": (72, 25), "flock": (73, 32), "fadvise64": (221, 223),
        "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
        "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132), "futex": (202, 98), "membarrier": (324, 283), "rseq": (334, 293),
        "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpid": (39, 172),
        "gettid": (186, 178), "getrusage": (98, 165), "gettimeofday": (96, 169), "clock_gettime": (228, 113),
        "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "getrandom": (318, 278),
        "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
    }
)  # fmt: skip
_OPENING: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "open": (2,), "openat": (257, 56), "stat": (4,), "fstat": (5, 80), "lstat": (6,), "newfstatat": (262, 79),
        "statx": (332, 291), "fstatfs": (138, 44), "getcwd": (79, 17), "readlink": (89,), "readlinkat": (267, 78),
        "prctl": (157, 167), "landlock_restrict_self": (446, 446),
    }
)  # fmt: skip
_MACHINES = MappingProxyType({"x86_64": (0, 0xC000003E, 302), "aarch64": (1, 0xC00000B7, 261)})
"""Machine → place in the tables above, its name in a filter, and the number of prlimit64."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE = 1 << 2
_NO_NEW_PRIVILEGES, _SET_FILTER, _FILTER_MODE = 38, 22, 2


def limit_cpu(seconds: int) -> None:
    """Allow so much CPU time from now on."""
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def limit_memory(beyond_bytes: int) -> None:
    """Allow so much address space beyond what is in use; no crash leaves a core file, and no file may grow."""
    with contextlib.suppress(ImportError):
        import resource

        in_use = Path("/proc/self/statm")
        if in_use.is_file():
            pages = int(in_use.read_text().split()[0])
            _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + beyond_bytes)
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_FSIZE, 2**20)


def allow_files(paths: Sequence[str]) -> None:
    """Allow to open some files for reading and no others, and no call of the system but those that reading takes."""
    if _libc is not None:
        _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _allow_files_alone(_libc, paths)
        _allow_calls([*_READING.values(), *_OPENING.values()])


def allow_no_files() -> None:
    """Forbid to open any more files, whatever a damaged file talks the library into."""
    with contextlib.suppress(ImportError):
        import resource

        _lower(resource.RLIMIT_NOFILE, 0)
    _allow_calls(_READING.values())


def _allow_files_alone(libc: ctypes.CDLL, paths: Sequence[str]) -> None:
    """Restrict this process by Landlock: files, TCP ports, sockets without a file, and signals to others."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    # Later versions of Landlock know more rights; none is given back but that of reading the files.
    rights = 2**13 - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    attributes = struct.pack("=QQQ", rights, 3 * (version >= 4), 3 * (version >= 6))
    length = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(length), 0)
    allowed = rules >= 0
    for path in paths:
        # What cannot be opened is reported by whoever opens it to read.
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed &= libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", _READ_FILE, file), 0) == 0
            os.close(file)
    if allowed:
        libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    if rules >= 0:
        os.close(rules)


def _allow_calls(numbers: Iterable[tuple[int, ...]]) -> None:
    """Let every call of the system fail but these; limits may be changed only of this process."""
    if _libc is None or platform.machine() not in _MACHINES:
        return
    place, machine, set_limits = _MACHINES[platform.machine()]
    allowed = [number[place] for number in numbers if place < len(number)]
    allow = len(allowed) + 7
    # Load the machine, the call's number, the first argument of prlimit64; jump by what they are.
    program = [(0x20, 0, 0, 4), (0x15, 0, allow - 3, machine), (0x20, 0, 0, 0)]
    program += [(0x15, allow - at - 1, 0, number) for at, number in enumerate(allowed, 3)]
    program += [(0x15, 0, 2, set_limits), (0x20, 0, 0, 16), (0x15, 1, 0, 0)]
    program += [(0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    _libc.prctl(_SET_FILTER, _FILTER_MODE, header, 0, 0)


def _lower(limit: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" and sys.maxsize > 2**32 else None
