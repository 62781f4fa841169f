"""ZIP archives laid down byte for byte, honest or not, and what is asked of an error about them."""

from __future__ import annotations

import dataclasses
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from ptycho_torch.errors import DataContractError

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Entry:
    """One member. What its directory entry states follows from the content unless it is given.

    Attributes:
        name: in the directory.
        packed: bytes as they lie in the file.
        content_bytes: unpacked length that the directory states.
        crc32: checksum that the directory states.
        method: 0 stored, 8 deflated, 12 bzip2, 14 LZMA.
        flags: general-purpose bits.
        local_name: in the local header, if it differs.
        local_extra: bytes of the local header's extra field.
        lies_at: offset that the directory states, if it is another member's.
    """

    name: str
    packed: bytes
    content_bytes: int
    crc32: int
    method: int = zipfile.ZIP_STORED
    flags: int = 0
    local_name: str | None = None
    local_extra: bytes = b""
    lies_at: int | None = None


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """Write an array as an NPY file in memory."""
    file = io.BytesIO()
    npy.write_array(file, array, version=version)
    return file.getvalue()


def npy_header(shape: object, descr: object = "<f4", fortran_order: bool = False) -> bytes:
    """Write an NPY header that may promise anything."""
    text = repr({"descr": descr, "fortran_order": fortran_order, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def stored(name: str, content: bytes, **lies: object) -> Entry:
    """A member as numpy.savez writes it, and what is wrong with it."""
    return dataclasses.replace(Entry(f"{name}.npy", content, len(content), zlib.crc32(content)), **lies)


def deflated(name: str, content: bytes, **lies: object) -> Entry:
    """A member as numpy.savez_compressed writes it, and what is wrong with it."""
    return dataclasses.replace(stored(name, content), packed=deflate(content), method=zipfile.ZIP_DEFLATED, **lies)


def deflate(content: bytes) -> bytes:
    """Pack as ZIP archives do, without a zlib header."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def zeros_bomb(name: str, shape: tuple[int, ...]) -> Entry:
    """A member of float32 zeros that unpacks to 1000 times its size, made of one packed block again and again."""
    header = npy_header(shape)
    blocks, rest = divmod(4 * int(np.prod(shape)), MIB)
    assert not rest
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed_header = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = packed_header + block * blocks + packer.flush()
    crc = zlib.crc32(header)
    for _ in range(blocks):
        crc = zlib.crc32(bytes(MIB), crc)
    return Entry(f"{name}.npy", packed, len(header) + blocks * MIB, crc, method=zipfile.ZIP_DEFLATED)


def archive(entries: Sequence[Entry], *, comment: bytes = b"", before: bytes = b"") -> bytes:
    """Lay down an archive."""
    content, directory = before, b""
    for entry in entries:
        name, local_name = entry.name.encode(), (entry.local_name or entry.name).encode()
        lies_at = len(content) if entry.lies_at is None else entry.lies_at
        # Version 2.0, flags, method, 1980-01-01 00:00, checksum, lengths.
        sizes = (entry.crc32, len(entry.packed), entry.content_bytes)
        common = struct.pack("<HHHHHIII", 20, entry.flags, entry.method, 0, 33, *sizes)
        content += b"PK\3\4" + common + struct.pack("<HH", len(local_name), len(entry.local_extra))
        content += local_name + entry.local_extra + entry.packed
        directory += b"PK\1\2" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, lies_at - len(before)) + name
    end = (0, 0, len(entries), len(entries), len(directory), len(content) - len(before), len(comment))
    return content + directory + b"PK\5\6" + struct.pack("<HHHHIIH", *end) + comment


def write_archive(path: Path, *entries: Entry) -> Path:
    """Write an archive and return its path."""
    path.write_bytes(archive(entries))
    return path


def refused(clause: str, path: Path, act: Callable[[], object], *, key: str | None = None) -> DataContractError:
    """Return the error that an act ends with; it must name file, key and clause, and say everything in one line."""
    with pytest.raises(DataContractError) as caught:
        act()
    error = caught.value
    assert (error.clause, error.path) == (clause, path), str(error)
    assert key is None or error.key == key, str(error)
    assert error.found
    assert error.expected
    assert error.remedy
    message = str(error)
    for part in (str(path), clause, error.found, error.expected, error.remedy, repr(error.key) if error.key else ""):
        assert part in message
    assert message.isprintable(), repr(message)
    assert len(message) < 2000
    return error
