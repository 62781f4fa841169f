"""HDF5 files of Keras, through the process that reads untrusted HDF5: ``ptycho_torch.files.hdf5_process``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ptycho_tf_bridge.errors import ArchiveError, refusal
from ptycho_torch.errors import breaking
from ptycho_torch.files.hdf5_process import ChildLimits, Refusal, started

MEMORY_BYTES = 256 * 2**20
"""Address space that the child may take beyond its imports and four times the file: copies and arrays."""

CPU_S = 1
"""CPU time for any file, counted in whole seconds; large ones get more, at ``CPU_BYTES_S``."""

CPU_BYTES_S = 50 * 10**6
PATIENCE_S = 300.0
"""How long the child may be silent. CPU time decides about files; that a machine is busy is not their fault."""

MAX_OBJECTS = 4096
MAX_ATTRIBUTES = 64
MAX_DEPTH = 16
MAX_AXES = 8
MAX_TEXT_BYTES = 4096

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


@breaking("FILE-03")
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

    def refuse(said: Refusal) -> ArchiveError:
        return refusal(f"{where}: {said.key}" if said.key else where, said.found, expected=_EXPECTED)

    memory_bytes, cpu_s = MEMORY_BYTES + 4 * len(data), CPU_S + int(len(data) / CPU_BYTES_S)
    with started(data, ChildLimits(memory_bytes, cpu_s, PATIENCE_S), refuse) as process, process.understood():
        process.refuse_closed(0)
        said = process.whole(
            {
                "bytes": len(data),
                "objects": MAX_OBJECTS,
                "attributes": MAX_ATTRIBUTES,
                "depth": MAX_DEPTH,
                "axes": MAX_AXES,
                "text_bytes": MAX_TEXT_BYTES,
            }
        )
        headers, attributes = _headers(said["arrays"], len(data)), _attributes(said["attributes"])
        arrays = {path: np.empty(shape, dtype) for path, (dtype, shape) in headers.items()}
        for array in arrays.values():
            process.content(array.reshape(-1).view(np.uint8).data)
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
