"""Careful reading of NPZ files that may come from strangers: no pickles, bounded sizes, one clear error."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ptycho_torch.errors import PtychoError

MAX_BYTES = 4 * 2**30
"""Uncompressed size above which a file is refused; a real bundle or scan cut for parity holds megabytes."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class NpzReader:
    """Members of one NPZ file, read by name.

    Args:
        path: the file.
        error: class of the error raised, naming file, key, what was found and what to do.
    """

    def __init__(self, path: Path, error: type[PtychoError]) -> None:
        self.path = path
        self._error = error
        if not path.is_file():
            raise error(f"{path}: no such file.")
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError) as err:
            raise error(
                f"{path}: not a complete NPZ file ({err}); perhaps truncated. Copy or record it again."
            ) from err
        total = sum(member.file_size for member in members)
        if total > MAX_BYTES:
            raise error(f"{path}: unpacks to {total} bytes, more than the {MAX_BYTES} allowed here.")
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) != len(members):
            raise error(f"{path}: a key occurs twice; write the file again.")

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all arrays."""
        return tuple(self._members)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def read(self, keys: tuple[str, ...] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (key, array) for the given keys, or all."""
        wanted = self.keys if keys is None else keys
        for key in wanted:
            if key not in self:
                raise self._error(f"{self.path}: key {key!r} is missing; present: {', '.join(self.keys)}.")
        with zipfile.ZipFile(self.path) as archive:
            for key in wanted:
                try:
                    yield key, self._array(archive, key)
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as err:
                    raise self._error(
                        f"{self.path}: key {key!r} is damaged ({err}); copy or record the file again."
                    ) from err

    def _array(self, archive: zipfile.ZipFile, key: str) -> np.ndarray:
        """Read one member. The header is believed only where it agrees with the member's size."""
        member = self._members[key]
        with archive.open(member) as file:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"NPY format {version}, expected 1.0 or 2.0")
            shape, column_major, dtype = _HEADERS[version](file)
            if dtype.hasobject:
                raise self._error(
                    f"{self.path}: key {key!r} cannot be read without unpickling (dtype {dtype}); "
                    "store plain numeric arrays or text."
                )
            size = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or size != member.file_size - file.tell():
                raise ValueError(f"shape {shape} of {dtype} does not fit the {member.file_size} bytes stored")
            content = file.read(size + 1)
        if len(content) != size:
            raise ValueError(f"{len(content)} bytes of {size} are there")
        # A copy, because an array over bytes cannot be written to.
        return np.frombuffer(content, dtype).reshape(shape, order="F" if column_major else "C").copy()
