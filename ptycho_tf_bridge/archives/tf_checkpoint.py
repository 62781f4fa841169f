"""Checkpoints of TensorFlow (``variables.index`` and ``variables.data-00000-of-00001``), read without TensorFlow.

No library that is kept up reads them on its own, and TensorFlow's import alone takes seconds and hundreds of megabytes,
more than an untrusted file is worth. The format is small: the index is a sorted table of keys and values in the
layout of LevelDB's tables, each value is a protocol buffer (``BundleEntryProto``) that says dtype, shape, place and
checksum of one tensor, and the data file is the bytes of the tensors. Everything here is plain Python on bounded
numbers; CRC-32C comes from ``google-crc32c``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import google_crc32c
import numpy as np

from ptycho_tf_bridge.errors import ArchiveError, refusal
from ptycho_torch.errors import breaking

MAX_INDEX_BYTES = 4 * 2**20
"""Longest index: the reference's has 4 kB."""

MAX_ENTRIES = 16384
MAX_KEY_BYTES = 1024
MAX_AXES = 8

DTYPES: Mapping[int, np.dtype] = MappingProxyType(
    {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 8: np.dtype("<c8"), 9: np.dtype("<i8")}
)
"""TensorFlow's number of a dtype → NumPy's. Tensors of any other, text for example, are left out."""

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5
_UNCOMPRESSED = 0
_MASK_DELTA = 0xA282EAD8
_EXPECTED = "a checkpoint in one piece as TensorFlow writes it"


@dataclass(frozen=True)
class _Entry:
    """What the index says of one tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool


class _DamagedError(Exception):
    """A part of the index that makes no sense."""


@breaking("FILE-05")
def read_tf_checkpoint(index: bytes, data: bytes, *, where: str) -> dict[str, np.ndarray]:
    """Return every tensor of numbers in a checkpoint, by its key.

    Keys are TensorFlow's, for example ``layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE``. Arrays are float32,
    float64, complex64, int32 or int64, and belong to the caller.

    Args:
        index: content of ``variables.index``.
        data: content of ``variables.data-00000-of-00001``.
        where: they came from, for messages.

    Raises:
        ArchiveError: one of them is damaged, a checksum is wrong, or the checkpoint lies in several files.
    """
    if len(index) > MAX_INDEX_BYTES:
        raise refusal(where, f"an index of {len(index)} bytes", expected=f"at most {MAX_INDEX_BYTES}")
    try:
        entries = dict(_entries(index))
        _check_header(entries.pop(b"", None))
        tensors: dict[str, np.ndarray] = {}
        total_bytes = 0
        for key, value in entries.items():
            name, entry = key.decode(), _entry(value)
            if entry.dtype not in DTYPES:
                continue
            # No two tensors share their bytes, so that a short file cannot become many arrays.
            total_bytes += entry.size
            if total_bytes > len(data):
                raise _DamagedError(f"tensors of more than the {len(data)} bytes of the data file")
            tensors[name] = _tensor(name, entry, data)
    except ArchiveError:
        raise
    except (_DamagedError, ValueError, IndexError, struct.error) as err:
        raise refusal(where, f"a damaged checkpoint ({err})", expected=_EXPECTED) from err
    return tensors


def _tensor(name: str, entry: _Entry, data: bytes) -> np.ndarray:
    dtype = DTYPES[entry.dtype]
    if entry.sliced:
        raise _DamagedError(f"{name} in slices")
    if entry.shard or entry.offset + entry.size > len(data):
        raise _DamagedError(f"{name} at byte {entry.offset} of file {entry.shard}, beyond the data file")
    if len(entry.shape) > MAX_AXES or math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise _DamagedError(f"{name} of shape {entry.shape} of {dtype} in {entry.size} bytes")
    content = data[entry.offset : entry.offset + entry.size]
    if _masked_crc32c(content) != entry.crc32c:
        raise _DamagedError(f"the checksum of {name} is wrong")
    return np.ndarray(entry.shape, dtype, bytearray(content))


# ------------------------------------------------------------------------------------------------------- the table


def _entries(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key with its value: the footer leads to a block of places, and these to the blocks of entries."""
    if len(index) < _FOOTER_BYTES or struct.unpack_from("<Q", index, len(index) - 8)[0] != _MAGIC:
        raise _DamagedError("no table's footer at the end of the index; perhaps truncated")
    footer = index[-_FOOTER_BYTES:]
    _, at = _place(footer, 0)  # Of statistics, which TensorFlow does not write.
    place, _ = _place(footer, at)
    last, count, left_bytes = None, 0, len(index)
    for _, value in _block(index, place):
        inner, _ = _place(value, 0)
        # Blocks lie side by side: a short index in which all point to one long block would else take for ever.
        left_bytes -= inner[1] + _TRAILER_BYTES
        if left_bytes < 0:
            raise _DamagedError("blocks of more bytes than the index has")
        for key, content in _block(index, inner):
            count += 1
            if (last is not None and key <= last) or count > MAX_ENTRIES:
                raise _DamagedError(f"keys out of order, or more than {MAX_ENTRIES}")
            last = key
            yield key, content


def _place(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Read the place of a block, (first byte, length), and return it with the position behind it."""
    start, at = _varint(content, at)
    length, at = _varint(content, at)
    return (start, length), at


def _block(index: bytes, place: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block, in which a key says how much of the one before it repeats."""
    start, length = place
    end = start + length
    if end + _TRAILER_BYTES > len(index) - _FOOTER_BYTES:
        raise _DamagedError("a block that reaches beyond the index")
    block = index[start:end]
    compression, crc = struct.unpack_from("<BI", index, end)
    if compression != _UNCOMPRESSED:
        raise _DamagedError(f"a block in compression {compression}, which TensorFlow does not write")
    if _masked_crc32c(index[start : end + 1]) != crc:
        raise _DamagedError("the checksum of a block is wrong")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4) if len(block) >= 4 else (0,)
    limit = len(block) - 4 - 4 * restarts
    if not limit >= 0:
        raise _DamagedError("a block without its end")
    key, at = b"", 0
    while at < limit:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        value_bytes, at = _varint(block, at)
        if shared > len(key) or shared + unshared > MAX_KEY_BYTES or at + unshared + value_bytes > limit:
            raise _DamagedError("an entry that reaches beyond its block")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + value_bytes]
        at += value_bytes


def _masked_crc32c(content: bytes) -> int:
    """CRC-32C as LevelDB stores it, turned and shifted, since checksums of checksums are weak."""
    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


# ------------------------------------------------------------------------------------------------------- the values


def _check_header(header: bytes | None) -> None:
    """Refuse a checkpoint in several files or in the other byte order."""
    if header is None:
        raise _DamagedError("no header")
    shards = endianness = 0
    for field, value in _fields(header):
        if field == 1:
            shards = _number(value)
        elif field == 2:
            endianness = _number(value)
    if shards != 1:
        raise _DamagedError(f"a checkpoint of {shards} data files")
    if endianness:
        raise _DamagedError("big-endian numbers")


def _entry(content: bytes) -> _Entry:
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    sliced = False
    for field, value in _fields(content):
        if field in numbers:
            numbers[field] = _number(value)
        elif field == 2 and isinstance(value, bytes):
            shape = tuple(_lengths(value))
        elif field == 7:
            sliced = True
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced)


def _lengths(content: bytes) -> Iterator[int]:
    """Yield the lengths of the axes of a ``TensorShapeProto``."""
    for field, value in _fields(content):
        if field == 3:
            raise _DamagedError("a tensor of unknown rank")
        if field == 2 and isinstance(value, bytes):
            yield next((_number(number) for inner, number in _fields(value) if inner == 1), 0)


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _DamagedError("bytes where a number should be")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and content of every field of a protocol buffer; negative numbers come out as huge ones."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield field, number
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            if at + width > len(message):
                raise _DamagedError("a message that is cut short")
            yield field, int.from_bytes(message[at : at + width], "little")
            at += width
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise _DamagedError("a message that is cut short")
            yield field, message[at : at + length]
            at += length
        else:
            raise _DamagedError(f"a field of kind {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Read a number of at most 64 bits, seven in a byte, and return it with the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise _DamagedError("a number that is cut short")
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise _DamagedError("a number of more than 64 bits")
