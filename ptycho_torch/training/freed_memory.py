"""Memory that PyTorch frees on a CPU, kept for its next tensor.

Every layer makes a tensor of megabytes and frees one. The C library of Linux gives such memory back to the system each
time, and the system clears each page of it anew when it is touched: an eighth of the CPU time of a prediction. Measured
in <doc-ref type="guide">docs/performance.md</doc-ref>.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGEST_BYTES = 2**30
"""Blocks above it are still mapped and given back one by one."""


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, up to its peak, for the process's next use.

    Returns:
        Whether it does; False where the C library is not that of GNU, and nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = (libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES), libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return all(kept)
