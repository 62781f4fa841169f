"""NPZ files that may come from strangers and may be larger than the memory.

Headers are read first, no pickle is ever opened, sizes are bounded, and every error is a ``DataContractError`` that
names file, key and clause (NPZ-01 … NPZ-03 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from ptycho_torch.contract import violation
from ptycho_torch.errors import DataContractError

CHUNK_BYTES = 2 * 2**20
"""Bytes that a stream holds at once, unless one row alone is larger."""

MAX_ROW_BYTES = 2**30
MAX_MEMBERS = 4096
MAX_DIRECTORY_BYTES = 8 * 2**20
MAX_READ_BYTES = 4 * 2**30
"""Largest member that is read whole; only the patterns are streamed and may be larger."""

MAX_RATIO = 250
RATIO_FROM_BYTES = 256 * 2**20

MAX_HEADER_BYTES = 16 * 2**10
"""What is read of a member to find its header; NumPy takes none above 10000 characters."""

_LISTED_NAMES, _LISTED_CHARACTERS = 12, 200
_READ_HEADER = MappingProxyType({(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0})
_LOCAL_HEADER_BYTES = 30
_END_BYTES = 22
_ZIP64_END_BYTES = 76
_UTF8_NAME, _ENCRYPTED_OR_PATCHED = 0x800, 0x1 | 0x20 | 0x40
_PACKED_BYTES = 64 * 2**10


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

    Raises:
        DataContractError: NPZ-01 or NPZ-03, from the constructor and from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._guard(None, "a file that cannot be read"):
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise violation("NPZ-01", "something that is no regular file", path=self.path)
            with self.path.open("rb") as file:
                self._bound_directory(file)
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
                    directory_start = archive.start_dir
        if len(members) > MAX_MEMBERS:
            raise violation("NPZ-03", f"{len(members)} members", path=self.path)
        self._members: Mapping[str, zipfile.ZipInfo] = MappingProxyType(
            {member.filename.removesuffix(".npy"): member for member in members}
        )
        if len(self._members) != len(members):
            raise violation("NPZ-01", "a key that is there twice", path=self.path)
        starts = [*sorted(member.header_offset for member in members), directory_start]
        self._ends: Mapping[int, int] = MappingProxyType(dict(itertools.pairwise(starts)))
        self._check_places()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all members."""
        return tuple(self._members)

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
        member = self._member(key)
        if member.file_size > max(RATIO_FROM_BYTES, MAX_RATIO * member.compress_size):
            raise violation(
                "NPZ-03",
                f"{member.compress_size} bytes that unpack to {member.file_size}",
                path=self.path,
                key=key,
            )
        # Whatever NumPy's parser raises on a damaged header becomes one error.
        with self._guard(key, "a damaged member"), self._content(member) as fill:
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
            start = file.tell()
        if dtype.hasobject:
            raise violation("NPZ-02", f"dtype {dtype}, which only unpickling could read", path=self.path, key=key)
        header = ArrayHeader(tuple(shape), dtype, fortran_order, start)
        if min(shape, default=0) < 0 or header.content_bytes != member.file_size - start:
            raise violation(
                "NPZ-01",
                f"shape {shape} of {dtype}, which does not fit the {member.file_size - start} bytes stored",
                path=self.path,
                key=key,
            )
        return header

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
        """As ``_content``, from the first byte of the array on."""
        with self._content(self._member(key)) as fill:
            fill(memoryview(bytearray(header.start)))
            yield fill

    @contextlib.contextmanager
    def _content(self, member: zipfile.ZipInfo) -> Iterator[Callable[[memoryview], None]]:
        """Give a function that fills a buffer with the next bytes of a member; the last one is followed by the CRC-32.

        The directory was parsed once, by the constructor: parsing it for each of its members would take the square
        of their number.
        """
        crc, left = 0, member.file_size
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._data_start(file, member))
            if member.compress_type == zipfile.ZIP_STORED:
                readinto: Callable[[memoryview], int | None] = file.readinto
            else:
                readinto = _Inflated(file, member.compress_size).readinto

            def fill(buffer: memoryview) -> None:
                nonlocal crc, left
                filled = 0
                while filled < len(buffer):
                    got = readinto(buffer[filled:])
                    if not got:
                        raise EOFError(f"{member.file_size - left + filled} bytes of {member.file_size} are there")
                    filled += got
                left -= filled
                crc = zlib.crc32(buffer, crc)
                if left:
                    return
                if member.compress_type != zipfile.ZIP_STORED and readinto(memoryview(bytearray(1))):
                    raise zipfile.BadZipFile(f"unpacks to more than the {member.file_size} bytes of the directory")
                if crc != member.CRC:
                    raise zipfile.BadZipFile(f"CRC-32 is {crc:08x}, the directory says {member.CRC:08x}")

            yield fill

    def _member(self, key: str) -> zipfile.ZipInfo:
        if key not in self._members:
            raise violation("NPZ-01", f"no such member; present: {listed(self.keys)}", path=self.path, key=key)
        return self._members[key]

    def _check_places(self) -> None:
        """Refuse members that overlap, are encrypted, or are packed in a way that NumPy never writes."""
        overlap = "members that overlap or reach beyond the file"
        if len(self._ends) != len(self._members):
            raise violation("NPZ-01", overlap, path=self.path)
        for key, member in self._members.items():
            end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
            if member.header_offset < 0 or end > self._ends[member.header_offset]:
                raise violation("NPZ-01", overlap, path=self.path, key=key)
            if member.flag_bits & _ENCRYPTED_OR_PATCHED:
                raise violation("NPZ-01", "an encrypted or patched member", path=self.path, key=key)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise violation("NPZ-01", f"compression {member.compress_type}", path=self.path, key=key)
            if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
                raise violation("NPZ-01", "a stored member of two lengths", path=self.path, key=key)

    def _bound_directory(self, file: BinaryIO) -> None:
        """Look at the directory's size before it is parsed."""
        length = file.seek(0, 2)
        file.seek(max(0, length - _ZIP64_END_BYTES - _END_BYTES - 2**16))
        tail = file.read()
        at = len(tail) - _END_BYTES
        if tail[at : at + 4] != b"PK\5\6":
            at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END_BYTES:
            raise violation("NPZ-01", "no ZIP directory at the end; perhaps truncated", path=self.path)
        members, directory_bytes = struct.unpack_from("<HI", tail, at + 10)
        # Like zipfile: the larger record lies right before its locator, wherever the locator points to.
        zip64 = at - _ZIP64_END_BYTES
        if zip64 >= 0 and (tail[zip64 : zip64 + 4], tail[at - 20 : at - 16]) == (b"PK\6\6", b"PK\6\7"):
            members, directory_bytes = struct.unpack_from("<QQ", tail, zip64 + 32)
        if members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
            raise violation("NPZ-03", f"a directory of {members} members, {directory_bytes} bytes", path=self.path)
        file.seek(0)

    def _data_start(self, file: io.FileIO, member: zipfile.ZipInfo) -> int:
        file.seek(member.header_offset)
        local = _read_exactly(file, _LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = (int(length) for length in struct.unpack_from("<HH", local, 26))
        name = _read_exactly(file, name_bytes).decode("utf-8" if member.flag_bits & _UTF8_NAME else "cp437")
        if local[:4] != b"PK\3\4" or name != member.orig_filename:
            raise zipfile.BadZipFile("no such local header where the directory says")
        start = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if start + member.compress_size > self._ends[member.header_offset]:
            raise zipfile.BadZipFile("overlaps what follows")
        return start

    @contextlib.contextmanager
    def _guard(self, key: str | None, what: str) -> Iterator[None]:
        """Turn whatever the parsers raise on hostile bytes into one error that names file, key and reason."""
        try:
            yield
        except DataContractError:
            raise
        except Exception as err:
            # NumPy's further lines advise to trust the file.
            reason = _one_line(str(err).strip().partition("\n")[0]) or type(err).__name__
            raise violation("NPZ-01", f"{what} ({reason})", path=self.path, key=key) from err


class _Inflated:
    """What deflate packed, as far as ``packed_bytes`` of a file go."""

    def __init__(self, file: io.FileIO, packed_bytes: int) -> None:
        self._file, self._left = file, packed_bytes
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the front of a buffer; 0 only at the end."""
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, _PACKED_BYTES)) or b""
                self._left -= len(packed)
            part = self._inflate.decompress(packed, min(len(buffer), CHUNK_BYTES))
            if part:
                buffer[: len(part)] = part
                return len(part)
            if not packed:
                break
        return 0


def listed(names: Sequence[str]) -> str:
    """Return the first names of members for a message: one line, whatever strangers called them.

    >>> listed(["xcoords", "ycoords"])
    'xcoords, ycoords'
    """
    few = [_one_line(name) for name in names[:_LISTED_NAMES]]
    return ", ".join(few + ["…"] * (len(names) > _LISTED_NAMES)) or "nothing"


def _one_line(text: str) -> str:
    """Make foreign text fit for a message: no line breaks or control characters, and not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * _LISTED_CHARACTERS])
    line = " ".join(line.split())
    return line if len(line) <= _LISTED_CHARACTERS else f"{line[:_LISTED_CHARACTERS]} …"


def _read_exactly(file: io.FileIO, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = file.read(count - len(content))
        if not part:
            raise EOFError(f"{len(content)} bytes of {count} are there")
        content += part
    return content
