"""The process that opens one HDF5 file from strangers; ``hdf5`` starts it and says how they speak.

It imports h5py and little else, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t

from ptycho_torch.files.child_limits import limit_cpu, limit_files, limit_memory


class _Refused(Exception):  # noqa: N818 - it never leaves this process
    """The reason to stop, on its way to the parent."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(found)
        self.path, self.found = path, found


class _Reader:
    """Goes once through all objects of a file."""

    def __init__(self, file: h5f.FileID, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._seen: set[int] = set()
        self._left_bytes = limits["bytes"]
        self.attributes: dict[str, dict[str, Any]] = {}
        self.datasets: dict[str, h5d.DatasetID] = {}
        self._group(h5g.open(file, b"/"), "", 0)

    def headers(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return path, dtype and shape of every dataset."""
        return [(path, dataset.dtype.str, dataset.shape) for path, dataset in self.datasets.items()]

    def contents(self) -> list[memoryview]:
        """Return the bytes of every dataset."""
        contents = []
        for dataset in self.datasets.values():
            array = np.zeros(dataset.shape, dataset.dtype)
            if array.size:
                dataset.read(h5s.ALL, h5s.ALL, array, mtype=dataset.get_type())
            contents.append(array.reshape(-1).view(np.uint8).data)
        return contents

    def _group(self, group: h5g.GroupID, path: str, depth: int) -> None:
        self._enter(group, path)
        if depth > self._limits["depth"]:
            raise _Refused(path, f"more than {self._limits['depth']} groups inside each other")
        for name in _names(group, self._limits["objects"], path):
            below = f"{path}/{_text(name, path)}".removeprefix("/")
            kind = group.links.get_info(name).type
            if kind != h5l.TYPE_HARD:
                found = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
                raise _Refused(below, found.get(kind, "a link of unknown kind"))
            thing = h5o.open(group, name)
            if isinstance(thing, h5g.GroupID):
                self._group(thing, below, depth + 1)
            elif isinstance(thing, h5d.DatasetID):
                self._dataset(thing, below)
            else:
                raise _Refused(below, "something that is neither group nor dataset")

    def _enter(self, thing: Any, path: str) -> None:
        """Take note of an object and its attributes, once."""
        address = h5o.get_info(thing).addr
        if address in self._seen:
            raise _Refused(path, "an object that is there twice, or inside itself")
        self._seen.add(address)
        if len(self._seen) > self._limits["objects"]:
            raise _Refused(path, f"more than {self._limits['objects']} objects")
        count = h5a.get_num_attrs(thing)
        if count > self._limits["attributes"]:
            raise _Refused(path, f"{count} attributes")
        values = self.attributes[path] = {}
        for index in range(count):
            attribute = h5a.open(thing, index=index)
            name = _text(attribute.name, path)
            values[name] = self._value(attribute, f"{path}@{name}")

    def _dataset(self, dataset: h5d.DatasetID, path: str) -> None:
        self._enter(dataset, path)
        layout = dataset.get_create_plist()
        if layout.get_external_count():
            raise _Refused(path, "external storage, which lies in another file")
        if layout.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT):
            found = "a virtual dataset" if layout.get_layout() == h5d.VIRTUAL else "a dataset in chunks"
            raise _Refused(path, found)
        if layout.get_nfilters():
            raise _Refused(path, f"filter {layout.get_filter(0)[0]}")
        kind = _number_type(dataset.get_type(), path)
        space = dataset.get_space()
        if space.get_simple_extent_type() not in (h5s.SCALAR, h5s.SIMPLE) or dataset.rank > self._limits["axes"]:
            raise _Refused(path, f"a dataset without content or of {dataset.rank} axes")
        content_bytes = math.prod(dataset.shape) * kind.itemsize
        stored_bytes = dataset.get_storage_size()
        self._left_bytes -= content_bytes
        if content_bytes != stored_bytes or self._left_bytes < 0:
            raise _Refused(path, f"shape {dataset.shape} of {kind} with {stored_bytes} bytes stored")
        self.datasets[path] = dataset

    def _value(self, attribute: h5a.AttrID, path: str) -> Any:
        """Return an attribute that is one number or one text."""
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
            raise _Refused(path, "an attribute that is no single value")
        kind, size = attribute.get_type(), attribute.get_storage_size()
        if size > self._limits["text_bytes"]:
            raise _Refused(path, f"an attribute of {size} bytes")
        if not isinstance(kind, h5t.TypeStringID):
            number = np.zeros((), _number_type(kind, path))
            attribute.read(number, mtype=kind)
            return number.item()
        text = np.empty((), h5py.string_dtype() if kind.is_variable_str() else f"S{kind.get_size()}")
        attribute.read(text)
        content = text.item()
        content = content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogateescape")
        if len(content) > self._limits["text_bytes"]:
            raise _Refused(path, f"text of {len(content)} bytes")
        return _text(content, path)


def _names(group: h5g.GroupID, limit: int, path: str) -> list[bytes]:
    if group.get_num_objs() > limit:
        raise _Refused(path, f"{group.get_num_objs()} entries")
    return list(group)


def _text(content: bytes, path: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() or len(text) > 512:
        raise _Refused(path, f"the name or text {content[:40]!r}")
    return text


def _number_type(kind: h5t.TypeID, path: str) -> np.dtype:
    """Return the dtype of a type that NumPy has exactly so."""
    if not isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID) or kind.get_size() not in (1, 2, 4, 8):
        raise _Refused(path, f"values of type {type(kind).__name__.removeprefix('Type').removesuffix('ID')}")
    dtype: np.dtype = np.dtype(kind.dtype)
    if not kind.equal(h5t.py_create(dtype)):
        raise _Refused(path, f"numbers that {dtype} holds in another way")
    return dtype


def _send(pipe: BinaryIO, letter: bytes, said: Mapping[str, Any]) -> None:
    content = json.dumps(said).encode()
    pipe.write(letter + len(content).to_bytes(8, "little") + content)


def main() -> int:
    """Read one file from standard input and answer on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not come between the answers.
    os.dup2(2, 1)
    limits = json.loads(sys.stdin.buffer.readline())
    limit_memory(limits["memory_bytes"])
    limit_cpu(limits["cpu_s"])
    limit_files()
    try:
        reader = _Reader(_opened(sys.stdin.buffer.read(limits["bytes"])), limits)
        # All is read before the answer begins: a refusal in the middle of it would be taken for content.
        contents = reader.contents()
        _send(answers, b"J", {"arrays": reader.headers(), "attributes": reader.attributes})
        for content in contents:
            answers.write(content)
    except _Refused as err:
        _send(answers, b"E", {"path": err.path, "found": err.found})
    except MemoryError:
        _send(answers, b"E", {"path": "", "found": f"content that asks for more than {limits['memory_bytes']} bytes"})
    except Exception as err:
        # Whatever the HDF5 library raises on hostile bytes becomes one error that gives its reason.
        reason = str(err.args[0] if err.args else "").strip().partition("\n")[0] or type(err).__name__
        _send(answers, b"E", {"path": "", "found": f"damaged content ({reason[:300]})"})
    answers.flush()
    return 0


def _opened(content: bytes) -> h5f.FileID:
    """Open a file that lies in memory; the library gets no name under which it could look for another."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(content)
    return h5f.open(b"archive", h5f.ACC_RDONLY, fapl=access)


if __name__ == "__main__":
    sys.exit(main())
