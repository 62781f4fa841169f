"""Untrusted ZIP archives: the directory is looked at before it is parsed, members are never trusted on their word.

What a file format puts on top, its own limits and the words of its errors, belongs to its reader.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO

_LOCAL_HEADER_BYTES = 30
_END_BYTES = 22
_ZIP64_END_BYTES = 76
_UTF8_NAME, _ENCRYPTED_OR_PATCHED = 0x800, 0x1 | 0x20 | 0x40
_PACKED_BYTES = 64 * 2**10
_PIECE_BYTES = 2 * 2**20


class ZipRefusedError(Exception):
    """An archive, or a member of it, that is not read.

    Attributes:
        found: what is there.
        name: of the member, or empty where the archive as a whole is meant.
        too_large: whether it is refused for its size alone.
    """

    def __init__(self, found: str, name: str = "", *, too_large: bool = False) -> None:
        super().__init__(found)
        self.found = found
        self.name = name
        self.too_large = too_large


class ZipReader:
    """The directory of one ZIP archive, and the content of its members.

    Args:
        open_file: opens the archive for reading, at its start and without a buffer; called once for each use.
        max_members: how many members it may have.
        max_directory_bytes: how long its directory may be.

    Raises:
        ZipRefusedError: from the constructor; what ``zipfile`` raises for a damaged directory passes through.
    """

    def __init__(
        self,
        open_file: Callable[[], contextlib.AbstractContextManager[BinaryIO]],
        *,
        max_members: int,
        max_directory_bytes: int,
    ) -> None:
        self._open = open_file
        with open_file() as file:
            _bound_directory(file, max_members, max_directory_bytes)
            with zipfile.ZipFile(file) as archive:
                self.members: tuple[zipfile.ZipInfo, ...] = tuple(archive.infolist())
                directory_start = archive.start_dir
        if len(self.members) > max_members:
            raise ZipRefusedError(f"{len(self.members)} members", too_large=True)
        starts = [*sorted(member.header_offset for member in self.members), directory_start]
        self.start: int = starts[0]
        """Bytes of the file before the archive; those that unpack themselves have some."""
        self._ends: Mapping[int, int] = MappingProxyType(dict(itertools.pairwise(starts)))
        self._check_places()

    def _check_places(self) -> None:
        """Refuse members that overlap, are encrypted, or are packed in a way that NumPy and Keras never use."""
        overlap = "members that overlap or reach beyond the file"
        if len(self._ends) != len(self.members):
            raise ZipRefusedError(overlap)
        for member in self.members:
            name = member.filename
            end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
            if member.header_offset < 0 or end > self._ends[member.header_offset]:
                raise ZipRefusedError(overlap, name)
            if member.flag_bits & _ENCRYPTED_OR_PATCHED:
                raise ZipRefusedError("an encrypted or patched member", name)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ZipRefusedError(f"compression {member.compress_type}", name)
            if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
                raise ZipRefusedError("a stored member of two lengths", name)

    def check_headers(self) -> None:
        """Hold the header before each member against the directory, so that no name is wrong only in one of them.

        Raises:
            ZipRefusedError: they differ.
        """
        with self._open() as file:
            for member in self.members:
                try:
                    self.content_start(file, member)
                except (zipfile.BadZipFile, EOFError, UnicodeDecodeError) as err:
                    raise ZipRefusedError(f"damaged content ({err})", member.filename) from err

    @contextlib.contextmanager
    def content(self, member: zipfile.ZipInfo) -> Iterator[Callable[[memoryview], None]]:
        """Give a function that fills a buffer with the next bytes of a member; the last one is followed by the CRC-32.

        The directory was parsed once, by the constructor: parsing it for each of its members would take the square
        of their number. What ``zipfile`` and ``zlib`` raise for damaged members is raised here too, and ``EOFError``.
        """
        crc, left = 0, member.file_size
        with self._open() as file:
            file.seek(self.content_start(file, member))
            if member.compress_type == zipfile.ZIP_STORED:
                readinto: Callable[[memoryview], int | None] = file.readinto  # type: ignore[attr-defined]
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

    def content_start(self, file: BinaryIO, member: zipfile.ZipInfo) -> int:
        """Return where the content of a member begins in the file; the file stands there then.

        Raises:
            zipfile.BadZipFile: another header than the directory says, or content that overlaps what follows.
            EOFError: the file ends before.
        """
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


def _bound_directory(file: BinaryIO, max_members: int, max_directory_bytes: int) -> None:
    """Look at the directory's size before it is parsed."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - _ZIP64_END_BYTES - _END_BYTES - 2**16))
    tail = file.read()
    at = len(tail) - _END_BYTES
    if tail[at : at + 4] != b"PK\5\6":
        at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END_BYTES:
        file.seek(0)
        begun = file.read(2) == b"PK"
        raise ZipRefusedError("no ZIP directory at the end; perhaps truncated" if begun else "no ZIP archive")
    members, directory_bytes = struct.unpack_from("<HI", tail, at + 10)
    # Like zipfile: the larger record lies right before its locator. Programs that go where the locator points, and find
    # another record there, would read another archive.
    zip64 = at - _ZIP64_END_BYTES
    if zip64 >= 0 and tail[at - 20 : at - 16] == b"PK\6\7":
        members, directory_bytes, directory_start = struct.unpack_from("<QQQ", tail, zip64 + 32)
        (place,) = struct.unpack_from("<Q", tail, at - 12)
        if tail[zip64 : zip64 + 4] != b"PK\6\6" or place != directory_start + directory_bytes:
            raise ZipRefusedError("a ZIP64 locator that points elsewhere")
    if members > max_members or directory_bytes > max_directory_bytes:
        raise ZipRefusedError(f"a directory of {members} members, {directory_bytes} bytes", too_large=True)
    file.seek(0)


class _Inflated:
    """What deflate packed, as far as ``packed_bytes`` of a file go."""

    def __init__(self, file: BinaryIO, packed_bytes: int) -> None:
        self._file, self._left = file, packed_bytes
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the front of a buffer; 0 only at the end."""
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, _PACKED_BYTES)) or b""
                self._left -= len(packed)
            part = self._inflate.decompress(packed, min(len(buffer), _PIECE_BYTES))
            if part:
                buffer[: len(part)] = part
                return len(part)
            if not packed:
                break
        return 0


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = file.read(count - len(content))
        if not part:
            raise EOFError(f"{len(content)} bytes of {count} are there")
        content += part
    return content
