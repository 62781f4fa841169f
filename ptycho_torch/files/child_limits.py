"""Processes that read HDF5 files from strangers: how they are started, and what they may use.

A damaged HDF5 file can crash the library or keep it busy for ever, so h5py reads such files in a child process alone.
The limits are those of POSIX; where there are none, the parent's patience is all that bounds the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from ptycho_torch.errors import one_line

_MAX_WORDS_BYTES = 2**16


def start_child(module: str, *, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``python -m MODULE`` with pipes to its input and output.

    Args:
        module: name of a module of ours.
        errors: where its standard error goes.
    """
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        # No filter is ever loaded from a library of the file's or the user's choice.
        "HDF5_PLUGIN_PRELOAD": "::",
        # A file on a disk that knows no locks can be read all the same.
        "HDF5_USE_FILE_LOCKING": os.environ.get("HDF5_USE_FILE_LOCKING", "BEST_EFFORT"),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    # -P keeps modules of the current folder out.
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)


def why_ended(child: subprocess.Popen[bytes], words: IO[bytes]) -> str:
    """Say why a child that reads HDF5 has ended before its answer was complete; ``words`` is its standard error."""
    code = child.wait()
    if code < 0:
        name = signal.Signals(-code).name
        if name == "SIGXCPU":
            return "content that the HDF5 library did not read in the CPU time it had"
        return f"content that crashed the HDF5 library ({name})"
    words.seek(0)
    lines = words.read(_MAX_WORDS_BYTES).decode(errors="replace").strip().splitlines()
    return f"content that ended its reader ({one_line(lines[-1]) if lines else f'exit code {code}'})"


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


def limit_files() -> None:
    """Forbid to open any more files, whatever a damaged file talks the library into."""
    with contextlib.suppress(ImportError):
        import resource

        _lower(resource.RLIMIT_NOFILE, 0)


def _lower(limit: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
