"""Checkpoints of TensorFlow that steps share, laid down byte for byte: no TensorFlow is needed."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from conformance.steps_archive_files import Members
from conformance.steps_bridge import stages_in_order
from ptycho_torch.config_params import NetworkSettings

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Behind the name of every variable."""


def variables_of(
    settings: NetworkSettings, weights: Mapping[str, np.ndarray], probe: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the variables of a SavedModel; its layers are numbered as the saved network lists its weights."""
    stages = stages_in_order(settings)
    variables = {f"keras_api/metrics/0/total{SUFFIX}": np.array(1.5, np.float32)}
    for number, stage in enumerate(stages):
        for kind in ("kernel", "bias"):
            variables[f"layer_with_weights-{number}/{kind}{SUFFIX}"] = weights[f"{stage}.{kind}"]
    if probe is not None:
        variables[f"layer_with_weights-{len(stages)}/w{SUFFIX}"] = probe[None, ..., None]
    return variables


_NUMBERS = {np.dtype(np.float32): 1, np.dtype(np.complex64): 8}
_MAGIC = 0xDB4775248B80FB57


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits; a negative one as protocol buffers write it."""
    number &= 2**64 - 1
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def field(number: int, content: int | bytes) -> bytes:
    """Return a field of a message: a number, or text or a message of its own."""
    if isinstance(content, bytes):
        return varint(number << 3 | 2) + varint(len(content)) + content
    return varint(number << 3) + varint(content)


def masked_crc(content: bytes) -> int:
    """Return CRC-32C as TensorFlow stores it, turned and shifted."""
    import google_crc32c

    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc(content))


def _entry(array: np.ndarray, offset: int) -> bytes:
    """Return ``BundleEntryProto``: dtype, shape, first byte, length and checksum."""
    lengths = b"".join(field(2, field(1, length)) for length in array.shape)
    content = array.tobytes()
    numbers = field(1, _NUMBERS[array.dtype]) + field(2, lengths) + field(4, offset) + field(5, len(content))
    return numbers + varint(6 << 3 | 5) + _checksum(content)


def _block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a block of LevelDB's tables with its trailer: a key says how much of the one before it repeats."""
    content, last = b"", b""
    for key, value in entries:
        shared = next((k for k, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += struct.pack("<II", 0, 1) + b"\0"
    return content + _checksum(content)


def _table(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    content, places = b"", []

    def place(block: bytes) -> bytes:
        nonlocal content
        content += block
        return varint(len(content) - len(block)) + varint(len(block) - 5)

    for first in range(0, len(entries), 8):
        some = entries[first : first + 8]
        places.append((some[-1][0], place(_block(some))))
    footer = place(_block([])) + place(_block(places))
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", _MAGIC)


def checkpoint_members(variables: Mapping[str, np.ndarray]) -> Members:
    """Return index and data of a checkpoint of TensorFlow."""
    data, entries = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(variables):
        entries.append((name.encode(), _entry(variables[name], len(data))))
        data += variables[name].tobytes()
    return {"variables/variables.index": _table(entries), "variables/variables.data-00000-of-00001": data}
