"""NPZ files that may be untrusted, and may be larger than the memory.

Headers are read first, no pickle is ever opened, sizes are bounded, and every error is a ``DataContractError`` that
names file, key and clause (NPZ-01 … NPZ-03 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.lib import format as npy

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError, one_line
from ptycho_torch.files.remedies import converting, copying, no_archive, unpacking
from ptycho_torch.files.restricted_pickle import RefusedPickleError, read_plain
from ptycho_torch.files.system_errors import REMEDIES
from ptycho_torch.files.zip_reader import ZipReader, ZipRefusedError

CHUNK_BYTES = 2 * 2**20
"""Bytes that a stream holds at once, unless one row alone is larger."""

MAX_ROW_BYTES = 2**30
MAX_MEMBERS = 4096
MAX_DIRECTORY_BYTES = 8 * 2**20
MAX_READ_BYTES = 4 * 2**30
"""Largest member that is read whole; only the patterns are streamed and may be larger."""

MAX_TEXT_BYTES = 2**20
"""Longest member that is read as one text."""

MAX_RATIO = 250
RATIO_FROM_BYTES = 256 * 2**20

MAX_HEADER_BYTES = 16 * 2**10
"""What is read of a member to find its header; NumPy takes none above 10000 characters."""

_LISTED_NAMES = 12
_READ_HEADER = MappingProxyType({(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0})


@dataclasses.dataclass(frozen=True)
class ArrayHeader:
    """What the header of one member says, checked against the member's length.

    Attributes:
        shape: of the array.
        dtype: of the array, never with objects.
        fortran_order: whether the first axis varies fastest in the file.
        start: bytes of the member before the array's content.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int

    @property
    def content_bytes(self) -> int:
        """Length of the array's content."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Length of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class MemberDigest:
    """What the ZIP directory says of one member: enough to notice that it changed, and nothing to read."""

    key: str
    crc32: int
    content_bytes: int
    packed_bytes: int


class NpzFile:
    """Members of one NPZ file, by name. No file stays open between calls.

    Args:
        path: the file.
        rename: names of members → what they are called here.
        drop: names of members that are left out, if they are there.

    Raises:
        DataContractError: NPZ-01 or NPZ-03, from the constructor and from every method.
    """

    def __init__(
        self, path: Path, *, rename: Mapping[str, str] = MappingProxyType({}), drop: Collection[str] = ()
    ) -> None:
        self.path = Path(path)
        with self._guard(None, "a file that cannot be read"):
            mode = self.path.stat().st_mode
            if not stat.S_ISREG(mode):
                found = "a folder and no regular file" if stat.S_ISDIR(mode) else "something that is no regular file"
                raise violation("NPZ-01", found, path=self.path, remedy="Name a file.")
            told, remedy = no_archive(self.path)
            if told:
                raise violation("NPZ-01", told, path=self.path, remedy=remedy)
            self._zip = ZipReader(
                lambda: self.path.open("rb", buffering=0),
                max_members=MAX_MEMBERS,
                max_directory_bytes=MAX_DIRECTORY_BYTES,
            )
        members = {member.filename.removesuffix(".npy"): member for member in self._zip.members}
        if len(members) != len(self._zip.members):
            raise violation("NPZ-01", "a key that is there twice", path=self.path)
        for key in rename:
            if key not in members:
                raise violation("NPZ-01", f"no such member; present: {listed(tuple(members))}", path=self.path, key=key)
        # What gets a name takes the place of what had it.
        kept = {key: member for key, member in members.items() if key not in {*drop, *rename, *rename.values()}}
        kept |= {new: members[old] for old, new in rename.items()}
        self._members: Mapping[str, zipfile.ZipInfo] = MappingProxyType(kept)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all members."""
        return tuple(self._members)

    def stored_name(self, key: str) -> str:
        """Return the name of a member in the archive."""
        return self._member(key).filename

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def digest(self) -> tuple[MemberDigest, ...]:
        """Return what the directory says of every member, by name."""
        return tuple(
            MemberDigest(key, member.CRC, member.file_size, member.compress_size)
            for key, member in sorted(self._members.items())
        )

    def header(self, key: str) -> ArrayHeader:
        """Read the header of one member and hold it against the member's length.

        Raises:
            DataContractError: NPZ-01 damaged or missing, NPZ-02 objects, NPZ-03 out of proportion.
        """
        shape, fortran_order, dtype, start = self._parsed(key)
        if dtype.hasobject:
            raise violation(
                "NPZ-02",
                f"dtype {dtype}, which only unpickling could read",
                path=self.path,
                key=key,
                remedy=f"Leave such members out: {converting(self.path, '--drop-pickles')}",
            )
        stored = self._member(key).file_size - start
        header = ArrayHeader(shape, dtype, fortran_order, start)
        if min(shape, default=0) < 0 or header.content_bytes != stored:
            raise violation(
                "NPZ-01",
                f"shape {shape} of {dtype}, which does not fit the {stored} bytes stored",
                path=self.path,
                key=key,
                remedy=copying(self.path),
            )
        return header

    def _parsed(self, key: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Return shape, Fortran order and dtype as a member's header states them, and where its content begins."""
        member = self._member(key)
        if member.file_size > max(RATIO_FROM_BYTES, MAX_RATIO * member.compress_size):
            raise violation(
                "NPZ-03",
                f"{member.compress_size} bytes that unpack to {member.file_size}",
                path=self.path,
                key=key,
                remedy=unpacking(self.path),
            )
        # Whatever NumPy's parser raises on a damaged header becomes one error.
        with self._guard(key, "a damaged member"), self._zip.content(member) as fill:
            prefix = bytearray(min(MAX_HEADER_BYTES, member.file_size))
            fill(memoryview(prefix))
            file = io.BytesIO(prefix)
            version = npy.read_magic(file)
            if version not in _READ_HEADER:
                raise ValueError(f"NPY format {version}, expected 1.0 or 2.0")
            with warnings.catch_warnings():
                # Headers written by Python 2 are read with a warning; they are as good as others.
                warnings.simplefilter("ignore")
                shape, fortran_order, dtype = _READ_HEADER[version](file)
            return tuple(shape), fortran_order, dtype, file.tell()

    def read_text(self, key: str) -> str:
        """Read a member that holds one text, as a NumPy string or as a pickled object, which is not unpickled.

        Raises:
            DataContractError: NPZ-01, NPZ-02 for anything but a text, NPZ-03 above 1 MiB.
        """
        shape, _, dtype, start = self._parsed(key)
        member = self._member(key)
        if member.file_size > MAX_TEXT_BYTES:
            raise violation("NPZ-03", f"a text of {member.file_size} bytes", path=self.path, key=key)
        text: object = None
        if dtype.kind == "U" and shape == ():
            text = self.read(key).item()
        elif dtype.hasobject:
            with self._guard(key, "a damaged member"), self._zip.content(member) as fill:
                content = bytearray(member.file_size)
                fill(memoryview(content))
            try:
                text = read_plain(bytes(content[start:]))
            except RefusedPickleError as err:
                raise violation("NPZ-02", one_line(err.found), path=self.path, key=key) from err
        if not isinstance(text, str):
            raise violation("NPZ-02", f"shape {shape} of {dtype} that holds no text", path=self.path, key=key)
        return text

    def read(self, key: str) -> np.ndarray:
        """Read one whole member.

        Returns:
            The array as ``numpy.load`` gives it, in its own dtype and order; it can be written to.

        Raises:
            DataContractError: as ``header``, and NPZ-03 above 4 GiB.
        """
        header = self.header(key)
        if header.content_bytes > MAX_READ_BYTES:
            raise violation("NPZ-03", f"{header.content_bytes} bytes", path=self.path, key=key)
        with self._guard(key, "a damaged member"), self._array_content(key, header) as fill:
            content = np.empty(header.content_bytes, np.uint8)
            fill(content.data)
            return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")

    def rows(self, key: str, numbers: np.ndarray) -> np.ndarray:
        """Return some rows of the first axis by ascending number.

        Of a stored member in C order no others are read, and so its CRC-32 is not checked.

        Raises:
            DataContractError: as ``stream``.
        """
        header, member = self.header(key), self._member(key)
        chosen = np.empty((len(numbers), *header.shape[1:]), header.dtype)
        if header.fortran_order or member.compress_type != zipfile.ZIP_STORED:
            first = 0
            for chunk in self.stream(key):
                low, high = np.searchsorted(numbers, (first, first + len(chunk)))
                chosen[low:high] = chunk[numbers[low:high] - first]
                first += len(chunk)
            return chosen
        with self._guard(key, "a damaged member"), self.path.open("rb") as file:
            start = self._zip.content_start(file, member) + header.start
            for row, number in zip(chosen, numbers.tolist(), strict=True):
                file.seek(start + number * header.row_bytes)
                row[...] = np.frombuffer(file.read(header.row_bytes), header.dtype).reshape(row.shape)
        return chosen

    def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES, depth: int = 1) -> Iterator[np.ndarray]:
        """Yield consecutive rows of the first axis, never more than ``chunk_bytes`` at once (or one row).

        The memory of a chunk is used again after ``depth`` more chunks were drawn. The CRC-32 of the whole
        is checked before the generator ends; a chunk is therefore final only then.

        Args:
            key: a member of at least one axis.
            chunk_bytes: bound on the bytes of one chunk.
            depth: how many chunks stay valid at once.

        Raises:
            DataContractError: as ``header``, and NPZ-03 for a row above 1 GiB.
        """
        header = self.header(key)
        if not 0 < header.row_bytes <= MAX_ROW_BYTES:
            raise violation("NPZ-03", f"rows of {header.row_bytes} bytes", path=self.path, key=key)
        rows = max(1, chunk_bytes // header.row_bytes)
        source = self._fortran_rows if header.fortran_order and len(header.shape) > 1 else self._rows
        with contextlib.closing(source(key, header, rows, depth)) as chunks:
            while True:
                with self._guard(key, "a damaged member"):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk

    def _rows(self, key: str, header: ArrayHeader, rows: int, depth: int) -> Generator[np.ndarray, None, None]:
        rows = min(rows, max(1, header.shape[0]))
        buffers = [np.empty(rows * header.row_bytes, np.uint8) for _ in range(depth)]
        with self._array_content(key, header) as fill:
            for turn, first in enumerate(range(0, header.shape[0], rows)):
                count = min(rows, header.shape[0] - first)
                buffer = buffers[turn % depth][: count * header.row_bytes]
                fill(buffer.data)
                yield buffer.view(header.dtype).reshape(count, *header.shape[1:])

    def _fortran_rows(self, key: str, header: ArrayHeader, rows: int, depth: int) -> Generator[np.ndarray, None, None]:
        """Gather rows out of a file in which they are scattered: an unpacked copy, which has no name."""
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(tempfile.TemporaryFile())
            with self._array_content(key, header) as fill:
                left = header.content_bytes
                buffer = np.empty(min(CHUNK_BYTES, left), np.uint8)
                while left:
                    part = buffer[: min(left, len(buffer))]
                    fill(part.data)
                    try:
                        copy.write(part.data)
                        copy.flush()
                    except OSError as err:
                        raise violation(
                            "NPZ-01",
                            f"an array in Fortran order, which cannot be unpacked in {tempfile.gettempdir()} ({err})",
                            path=self.path,
                            key=key,
                            expected=f"{header.content_bytes} bytes of free space there",
                            remedy="Free some space, set TMPDIR to a larger disk, or store the array in C order.",
                        ) from err
                    left -= len(part)
            if not header.content_bytes:
                return  # An empty file cannot be mapped.
            mapped = np.memmap(copy, header.dtype, "r", shape=header.shape, order="F")
            for first in range(0, header.shape[0], rows):
                yield np.array(mapped[first : first + rows], order="C")

    @contextlib.contextmanager
    def _array_content(self, key: str, header: ArrayHeader) -> Iterator[Callable[[memoryview], None]]:
        """As ``ZipReader.content``, from the first byte of the array on."""
        with self._zip.content(self._member(key)) as fill:
            fill(memoryview(bytearray(header.start)))
            yield fill

    def _member(self, key: str) -> zipfile.ZipInfo:
        if key not in self._members:
            raise violation("NPZ-01", f"no such member; present: {listed(self.keys)}", path=self.path, key=key)
        return self._members[key]

    @contextlib.contextmanager
    def _guard(self, key: str | None, what: str) -> Iterator[None]:
        """Turn whatever the parsers raise on hostile bytes into one error that names file, key and reason."""
        try:
            yield
        except DataContractError:
            raise
        except ZipRefusedError as err:
            clause, remedy = ("NPZ-03", unpacking(self.path)) if err.too_large else ("NPZ-01", copying(self.path))
            name = err.name.removesuffix(".npy") or key
            raise violation(clause, err.found, path=self.path, key=name, remedy=remedy) from err
        except OSError as err:
            remedy = REMEDIES.get(err.errno or 0, copying(self.path))
            found = f"{what} ({err.strerror or one_line(str(err))})"
            raise violation("NPZ-01", found, path=self.path, key=key, remedy=remedy) from err
        except Exception as err:
            # NumPy's further lines advise to trust the file.
            reason = one_line(str(err).strip().partition("\n")[0]) or type(err).__name__
            raise violation("NPZ-01", f"{what} ({reason})", path=self.path, key=key, remedy=copying(self.path)) from err


def listed(names: Sequence[str]) -> str:
    """Return the first names of members for a message: one line, whatever strangers called them.

    >>> listed(["xcoords", "ycoords"])
    'xcoords, ycoords'
    """
    few = [one_line(name) for name in names[:_LISTED_NAMES]]
    return ", ".join(few + ["…"] * (len(names) > _LISTED_NAMES)) or "nothing"
