"""NPZ files written member by member: larger than the memory, and in place by one rename or not at all.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from ptycho_torch.errors import PtychoError
from ptycho_torch.files.folders import refuse_target
from ptycho_torch.files.system_errors import NO_SPACE, REMEDIES

_WRITE_BYTES = 128 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)


class NpzWriter:
    """Writes the members of one NPZ file one after the other, as ``numpy.savez`` lays them out.

    The same arrays make the same bytes: members carry no time.

    Args:
        file: open for writing, seekable; it stays open.
        compress: deflate the members, as ``numpy.savez_compressed`` does.

    >>> import io
    >>> file = io.BytesIO()
    >>> with NpzWriter(file) as npz:
    ...     npz.array("xcoords", np.arange(3.0))
    >>> np.load(io.BytesIO(file.getvalue()))["xcoords"]
    array([0., 1., 2.])
    """

    def __init__(self, file: BinaryIO, *, compress: bool = False) -> None:
        self._compression = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        self._archive = zipfile.ZipFile(file, "w", self._compression)
        self._keys: list[str] = []

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._archive.close()
            return
        # The file is given up; whatever closing has to say about it would hide the error.
        with contextlib.suppress(OSError, ValueError):
            self._archive.close()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the members written so far."""
        return tuple(self._keys)

    def array(self, key: str, array: np.ndarray) -> None:
        """Write one whole array in its own dtype, in C order."""
        with self.stream(key, array.shape, array.dtype) as write:
            write(array)

    @contextlib.contextmanager
    def stream(
        self, key: str, shape: tuple[int, ...], dtype: np.dtype, *, fortran_order: bool = False
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Give a function that takes an array's content piece by piece.

        Args:
            key: name of the member.
            shape: of the whole.
            dtype: of the whole; of the pieces the bytes alone count.
            fortran_order: whether the content comes with the first axis varying fastest.

        Raises:
            ValueError: a key that is there already, objects, or content of another length than the shape asks for.
        """
        if key in self._keys or dtype.hasobject:
            raise ValueError(f"{key!r} is there twice" if key in self._keys else f"{key!r} holds objects")
        member = zipfile.ZipInfo(f"{key}.npy", _EPOCH)
        member.compress_type = self._compression
        member.external_attr = 0o644 << 16
        left = math.prod(shape) * dtype.itemsize
        with self._archive.open(member, "w", force_zip64=True) as file:
            npy.write_array_header_1_0(
                file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": fortran_order, "shape": shape}
            )

            def write(piece: np.ndarray) -> None:
                nonlocal left
                left -= piece.nbytes
                content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                # Linux takes up to six times as long for one write of many megabytes to ext4 as for many small ones.
                for start in range(0, len(content), _WRITE_BYTES):
                    file.write(content[start : start + _WRITE_BYTES])

            yield write
        if left:
            raise ValueError(f"{key!r}: {left} bytes are missing" if left > 0 else f"{key!r}: {-left} bytes too many")
        self._keys.append(key)


@contextlib.contextmanager
def replacing(target: Path, *, overwrite: bool, check: Callable[[Path], object] | None = None) -> Iterator[BinaryIO]:
    """Give a new file that takes the target's name when the block ends well; else nothing is left of it.

    Args:
        target: where the file goes; its folder is made if it is not there.
        overwrite: whether a file may be there; it stays as it is until the new one takes its place.
        check: is called with the finished file before it takes its name, and raises to prevent it.

    Raises:
        ConfigError: something is there that may not be overwritten, or its folder cannot be made.
        PtychoError: no space is left on the disk.
    """
    refuse_target(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(part)
        refuse_target(target, overwrite=overwrite)
        part.replace(target)
    except OSError as err:
        if err.errno not in NO_SPACE:
            raise
        raise PtychoError(
            f"{target}: the disk has no space left for it ({err.strerror}). {REMEDIES[err.errno]} Nothing was written."
        ) from err
    finally:
        part.unlink(missing_ok=True)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    """Put the rename itself on the disk, where a folder can be opened for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
