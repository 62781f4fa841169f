"""Scans that lie in memory: arrays under the keys of the data contract, read as the members of a file are.

Every clause about scans is checked as for a file; keys, shapes and units are those of
<doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.files.npz import CHUNK_BYTES, ArrayHeader, MemberDigest, NpzFile, listed


@dataclasses.dataclass(frozen=True, eq=False)
class ScanArrays:
    """One scan in memory, with the methods of ``NpzFile``; what they return can be written to.

    Args:
        name: what errors, datasets and files of results call the scan.
        arrays: key of the contract → array, as ``np.load`` of a scan file gives them. They are not copied, and stay as
            they are.
    """

    name: str
    arrays: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {key: np.asarray(array) for key, array in self.arrays.items()})

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        """The name, where a file has its path."""
        return Path(self.name)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all arrays."""
        return tuple(self.arrays)

    def __contains__(self, key: object) -> bool:
        return key in self.arrays

    def digest(self) -> tuple[MemberDigest, ...]:
        """Return what tells whether an array has changed, by name."""
        found = []
        for key, array in sorted(self.arrays.items()):
            content = repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).data
            found.append(MemberDigest(key, zlib.crc32(content), array.nbytes, array.nbytes))
        return tuple(found)

    def header(self, key: str) -> ArrayHeader:
        """Return shape and dtype of an array.

        Raises:
            DataContractError: NPZ-01 missing, NPZ-02 objects.
        """
        array = self._array(key)
        if array.dtype.hasobject:
            raise violation("NPZ-02", f"dtype {array.dtype}", path=self.path, key=key)
        return ArrayHeader(array.shape, array.dtype, fortran_order=False, start=0)

    def read(self, key: str) -> np.ndarray:
        """Return a copy of an array; errors are those of ``header``."""
        self.header(key)
        return self._array(key).copy()

    def read_text(self, key: str) -> str:
        """Return the text that an array without axes holds.

        Raises:
            DataContractError: NPZ-01 missing, NPZ-02 for anything but a text.
        """
        array = self._array(key)
        text = array.item() if array.shape == () else None
        if not isinstance(text, str):
            raise violation("NPZ-02", f"shape {array.shape} of {array.dtype}, no text", path=self.path, key=key)
        return text

    def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES, depth: int = 1) -> Iterator[np.ndarray]:
        """Yield copies of consecutive rows of the first axis, ``chunk_bytes`` at once (or one row).

        Args:
            key: an array of at least one axis.
            chunk_bytes: bound on the bytes of one chunk.
            depth: how many chunks stay valid at once; here all of them do.

        Raises:
            DataContractError: as ``header``.
        """
        array, rows = self._array(key), max(1, chunk_bytes // max(1, self.header(key).row_bytes))
        for first in range(0, len(array), rows):
            yield np.array(array[first : first + rows], order="C")

    def rows(self, key: str, numbers: np.ndarray) -> np.ndarray:
        """Return copies of some rows of the first axis; errors are those of ``header``."""
        self.header(key)
        return np.array(self._array(key)[numbers])

    def _array(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise violation("NPZ-01", f"no such array; present: {listed(self.keys)}", path=self.path, key=key)
        array: np.ndarray = self.arrays[key]
        return array


ScanSource = Path | ScanArrays
"""Where a scan is: in a file, or in memory."""

Members = NpzFile | ScanArrays
"""What a scan is read from."""


def open_members(source: ScanSource) -> Members:
    """Return what the members of a scan are read from.

    Raises:
        DataContractError: NPZ-01 or NPZ-03, for a file.
    """
    return source if isinstance(source, ScanArrays) else NpzFile(source)


def path_of(source: ScanSource) -> Path:
    """Return the file of a scan, or the name of one in memory."""
    return source.path if isinstance(source, ScanArrays) else Path(source)
