"""TensorFlow checkpoints laid down byte for byte, honest or not; no TensorFlow is needed."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from conformance.checks.archive_files import field, masked_crc, varint

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "complex64": 8, "int64": 9}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor. What its entry states follows from the content unless it is given."""

    content: bytes
    shape: tuple[int, ...]
    dtype: int
    offset: int | None = None
    size: int | None = None
    crc32c: int | None = None
    shard: int = 0
    extra: bytes = b""


def tensor(array: np.ndarray, **lies: object) -> Tensor:
    """A tensor as TensorFlow writes it, and what is wrong with it."""
    made = Tensor(np.ascontiguousarray(array).tobytes(), array.shape, NUMBERS[array.dtype.name])
    return dataclasses.replace(made, **lies)  # type: ignore[arg-type]


def header(shards: int = 1, endianness: int = 0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def entry(tensor: Tensor, offset: int) -> bytes:
    dims = b"".join(field(2, field(1, length)) for length in tensor.shape)
    message = field(1, tensor.dtype) + field(2, dims)
    message += field(3, tensor.shard) + field(4, offset if tensor.offset is None else tensor.offset)
    message += field(5, len(tensor.content) if tensor.size is None else tensor.size)
    crc = masked_crc(tensor.content) if tensor.crc32c is None else tensor.crc32c
    return message + varint(6 << 3 | 5) + struct.pack("<I", crc) + tensor.extra


def block(entries: Sequence[tuple[bytes, bytes]], *, share: bool = True, compression: int = 0) -> bytes:
    """A block of a table with its trailer; keys give what they share with the one before."""
    content, last = b"", b""
    for key, value in entries:
        shared = 0
        while share and shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return sealed(content + struct.pack("<II", 0, 1), compression)


def sealed(content: bytes, compression: int = 0) -> bytes:
    content += bytes([compression])
    return content + struct.pack("<I", masked_crc(content))


def table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 8) -> bytes:
    """A table of keys and values, in blocks of a few."""
    content, places = b"", []
    for first in range(0, len(entries), per_block):
        some = entries[first : first + per_block]
        new = block(some)
        places.append((some[-1][0], varint(len(content)) + varint(len(new) - 5)))
        content += new
    meta = block([])
    meta_place = varint(len(content)) + varint(len(meta) - 5)
    content += meta
    index = block(places, share=False)
    return content + index + footer(meta_place + varint(len(content)) + varint(len(index) - 5))


def footer(places: bytes) -> bytes:
    return places + bytes(40 - len(places)) + MAGIC


def checkpoint(tensors: Mapping[str, Tensor], head: bytes | None = None) -> tuple[bytes, bytes]:
    """Return index and data of a checkpoint."""
    data, entries = b"", [(b"", header() if head is None else head)]
    for name in sorted(tensors, key=str.encode):
        entries.append((name.encode(), entry(tensors[name], len(data))))
        data += tensors[name].content
    return table(entries), data
