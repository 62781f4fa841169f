"""What to do about an error of the operating system: one table for every command.

<doc-ref type="guide">docs/DEVELOPER_GUIDE.md</doc-ref>
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, of a quota that is used up, and of a file larger than the disk takes."""

_SPACE = "Free some space, or write to another disk."
_RIGHTS = "Change who may use it, or choose a folder of your own."

REMEDIES: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: _SPACE,
        errno.EDQUOT: "Your quota is used up: free some space, or write to another disk.",
        errno.EFBIG: "The disk takes no file of this size: write to another disk.",
        errno.EACCES: _RIGHTS,
        errno.EPERM: _RIGHTS,
        errno.EROFS: "The disk is read-only: choose a folder on another one.",
        errno.ENOENT: "Check the path.",
        errno.ENOTDIR: "A part of the path is a file: check the path.",
        errno.EISDIR: "It is a folder: name a file.",
        errno.EEXIST: "Choose another name.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
        errno.ELOOP: "Links there lead back to themselves: name the file itself.",
        errno.EMFILE: "Allow more open files (ulimit -n 4096), or lower num_workers.",
        errno.ENFILE: "Every file that this machine can open is open: end some programs.",
        errno.ENOMEM: "Lower batch_size or num_workers, or use a machine with more memory.",
        errno.EBUSY: "Another program uses it: end that one, or choose another name.",
        errno.EIO: "The disk or the network failed: try again, or use another disk.",
        errno.ESTALE: "The network folder has changed: try again.",
        errno.ETIMEDOUT: "The network does not answer: try again.",
    }
)
"""Error number → what to do."""


def explain(err: OSError) -> str:
    """Return one sentence of what happened to which file, and one of what to do where that is known.

    >>> explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "scans"))
    'scans: No such file or directory. Check the path.'
    """
    if err.errno is None:
        return str(err)
    where = "".join(f"{os.fsdecode(name)}: " for name in (err.filename,) if isinstance(name, str | bytes | os.PathLike))
    remedy = REMEDIES.get(err.errno)
    return f"{where}{err.strerror}." + (f" {remedy}" if remedy else "")
