"""HDF5 files from strangers, read by a process of its own.

A damaged HDF5 file can crash the library or keep it busy for ever, so ``hdf5_child`` beside it opens it, in a
child process with bounded memory and time that can open no other file. It answers with plain JSON and the bytes of the
arrays, all of which are checked here:

    parent → child   a line of JSON: the limits, the length of the file; then the file
    child → parent   a letter (J answer, E refusal), a length in 8 bytes, and JSON; then the arrays' bytes in that order
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import struct
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from ptycho_tf_bridge.errors import ArchiveError, refusal
from ptycho_torch.files.child_limits import start_child, why_ended

MEMORY_BYTES = 256 * 2**20
"""Address space that the child may take beyond its imports and four times the file: copies and arrays."""

CPU_S = 1
"""CPU time for any file, counted in whole seconds; large ones get more, at ``CPU_BYTES_S``."""

CPU_BYTES_S = 50 * 10**6
PATIENCE_S = 30.0
"""Time from start to answer, for a machine that is busy with other things."""

MAX_OBJECTS = 4096
MAX_ATTRIBUTES = 64
MAX_DEPTH = 16
MAX_AXES = 8
MAX_TEXT_BYTES = 4096
MAX_ANSWER_BYTES = 8 * 2**20

_MESSAGE = struct.Struct("<cQ")
_DTYPE = re.compile(r"[<>|]([iu][1248]|f[248])")
_EXPECTED = "groups, plain numbers and text as Keras writes them"


@dataclass(frozen=True)
class Hdf5Content:
    """All that one HDF5 file holds.

    Attributes:
        arrays: full path of a dataset, without a slash in front → its content.
        attributes: path of each object, empty groups among them and ``""`` for the root → name → number or text.
    """

    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Mapping[str, float | int | str]]


def read_hdf5(data: bytes, *, where: str) -> Hdf5Content:
    """Read every dataset and attribute of an HDF5 file.

    Datasets have to be whole numbers or floating-point numbers, stored as they are. Links of any kind but the plain
    one, filters, chunks, external or virtual storage, references, compound and variable-length types are refused,
    except for attributes that are text.

    Args:
        data: the file.
        where: it came from, for messages.

    Raises:
        ArchiveError: it is damaged, hostile, or none that Keras writes.
    """
    request = {
        "bytes": len(data),
        "memory_bytes": MEMORY_BYTES + 4 * len(data),
        "cpu_s": CPU_S + int(len(data) / CPU_BYTES_S),
        "objects": MAX_OBJECTS,
        "attributes": MAX_ATTRIBUTES,
        "depth": MAX_DEPTH,
        "axes": MAX_AXES,
        "text_bytes": MAX_TEXT_BYTES,
    }
    with tempfile.TemporaryFile() as words, start_child("ptycho_tf_bridge.archives.hdf5_child", errors=words) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(PATIENCE_S, end)
        watch.daemon = True
        watch.start()
        try:
            # A child that has ended says why below.
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(request).encode() + b"\n")
                pipe.write(data)
            return _answer(child.stdout, len(data), where)
        except EOFError as err:
            found = f"content that was not read in {PATIENCE_S:.0f} s" if late.is_set() else why_ended(child, words)
            raise refusal(where, found, expected=_EXPECTED) from err
        finally:
            watch.cancel()
            child.kill()


def _answer(pipe: IO[bytes], file_bytes: int, where: str) -> Hdf5Content:
    """Read what the child says, and believe nothing that cannot be checked.

    Raises:
        EOFError: the child has ended.
        ArchiveError: it refuses the file, or its answer makes no sense.
    """
    letter, length = _MESSAGE.unpack(_read_exactly(pipe, _MESSAGE.size))
    if letter not in (b"J", b"E") or length > MAX_ANSWER_BYTES:
        raise refusal(where, "an answer of the HDF5 reader that makes no sense", expected=_EXPECTED)
    try:
        said = json.loads(_read_exactly(pipe, length))
        if letter == b"E":
            place, found = str(said["path"]), str(said["found"])
            raise refusal(f"{where}: {place}" if place else where, found, expected=_EXPECTED)
        headers = _headers(said["arrays"], file_bytes)
        attributes = _attributes(said["attributes"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        if isinstance(err, ArchiveError):
            raise
        raise refusal(where, f"an answer of the HDF5 reader that makes no sense ({err})", expected=_EXPECTED) from err
    arrays = {path: _read_array(pipe, dtype, shape) for path, (dtype, shape) in headers.items()}
    return Hdf5Content(MappingProxyType(arrays), MappingProxyType(attributes))


def _headers(said: Any, file_bytes: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    headers: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    total_bytes = 0
    for path, name, lengths in said:
        shape = tuple(int(length) for length in lengths)
        if not isinstance(path, str) or path in headers or len(shape) > MAX_AXES or min(shape, default=0) < 0:
            raise ValueError("an array's path or shape")
        if not _DTYPE.fullmatch(name):
            raise ValueError("an array's dtype")
        headers[path] = np.dtype(name), shape
        total_bytes += math.prod(shape) * np.dtype(name).itemsize
    if total_bytes > file_bytes or len(headers) > MAX_OBJECTS:
        raise ValueError(f"{total_bytes} bytes in {len(headers)} arrays")
    return headers


def _attributes(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, float | int | str]]:
    attributes: dict[str, Mapping[str, float | int | str]] = {}
    for path, values in said.items():
        if not all(isinstance(value, float | int | str) for value in values.values()):
            raise TypeError("an attribute's type")
        attributes[path] = MappingProxyType(dict(values))
    return attributes


def _read_array(pipe: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    _fill(pipe, content.data)
    return content.view(dtype).reshape(shape)


def _read_exactly(pipe: IO[bytes], count: int) -> bytes:
    content = bytearray(count)
    _fill(pipe, memoryview(content))
    return bytes(content)


def _fill(pipe: IO[bytes], buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        got = pipe.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the reader has ended")
        filled += got
