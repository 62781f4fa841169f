"""The list of the memory maps in ``data/memmap``: which folder holds the map of which scans.

    {"maps": {"star-6778b2b1": "/data/star.npz"}}

It is for people and for scripts that wait for a map; nothing is read from it that a result depends on.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

from ptycho_torch.errors import PtychoError
from ptycho_torch.files.json_numbers import write_numbers

LIST = "manifest.json"
_LOCK = "manifest.lock"
_LARGEST_BYTES = 2**20
_WAIT_S = 10

log = logging.getLogger(__name__)


def list_map(folder: Path, scans: Path) -> None:
    """Put a map into ``manifest.json`` beside its folder; maps that are no longer there leave the list.

    Args:
        folder: the map's, finished.
        scans: the scan, or the folder of scans, that it was made from.
    """
    place = folder.parent / LIST
    try:
        with FileLock(folder.parent / _LOCK, timeout=_WAIT_S):
            before = _listed(place)
            maps = {name: made_from for name, made_from in before.items() if (folder.parent / name / LIST).is_file()}
            maps[folder.name] = os.fspath(scans.resolve())
            if maps != before:
                write_numbers(place, {"maps": dict(sorted(maps.items()))}, overwrite=True)
    except (OSError, Timeout, PtychoError) as err:
        # The map itself is good: a folder that others may only read has no list, or an older one.
        log.info("%s: not brought up to date (%s)", place, err)


def _listed(place: Path) -> dict[str, str]:
    """Return what the list holds; a list that cannot be read is empty, and is written anew."""
    try:
        if place.stat().st_size > _LARGEST_BYTES:
            return {}
        maps = json.loads(place.read_text(encoding="utf-8"))["maps"]
        return {str(name): str(scans) for name, scans in maps.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
