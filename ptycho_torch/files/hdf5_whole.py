"""HDF5 files of plain arrays, such as Keras writes, as ``ptycho_torch.files.hdf5_child`` reads them whole.

Whatever else a file holds (links, chunks, filters, types that NumPy has not) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t


class NotPlain(Exception):  # noqa: N818 - it never leaves this process
    """What no file of plain arrays has."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(found)
        self.path, self.found = path, found


def open_image(content: bytes) -> h5f.FileID:
    """Open a file that lies in memory; the library gets no name under which it could look for another."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(content)
    return h5f.open(b"archive", h5f.ACC_RDONLY, fapl=access)


class WholeFile:
    """Goes once through all objects of a file.

    Attributes:
        attributes: path of each object → name → number or text.
        datasets: by path.
    """

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

    def contents(self) -> Iterator[np.ndarray]:
        """Yield every dataset."""
        for dataset in self.datasets.values():
            array = np.zeros(dataset.shape, dataset.dtype)
            if array.size:
                dataset.read(h5s.ALL, h5s.ALL, array, mtype=dataset.get_type())
            yield array

    def _group(self, group: h5g.GroupID, path: str, depth: int) -> None:
        self._enter(group, path)
        if depth > self._limits["depth"]:
            raise NotPlain(path, f"more than {self._limits['depth']} groups inside each other")
        for name in _names(group, self._limits["objects"], path):
            below = f"{path}/{_text(name, path)}".removeprefix("/")
            kind = group.links.get_info(name).type
            if kind != h5l.TYPE_HARD:
                found = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
                raise NotPlain(below, found.get(kind, "a link of unknown kind"))
            thing = h5o.open(group, name)
            if isinstance(thing, h5g.GroupID):
                self._group(thing, below, depth + 1)
            elif isinstance(thing, h5d.DatasetID):
                self._dataset(thing, below)
            else:
                raise NotPlain(below, "something that is neither group nor dataset")

    def _enter(self, thing: Any, path: str) -> None:
        """Take note of an object and its attributes, once."""
        address = h5o.get_info(thing).addr
        if address in self._seen:
            raise NotPlain(path, "an object that is there twice, or inside itself")
        self._seen.add(address)
        if len(self._seen) > self._limits["objects"]:
            raise NotPlain(path, f"more than {self._limits['objects']} objects")
        count = h5a.get_num_attrs(thing)
        if count > self._limits["attributes"]:
            raise NotPlain(path, f"{count} attributes")
        values = self.attributes[path] = {}
        for index in range(count):
            attribute = h5a.open(thing, index=index)
            name = _text(attribute.name, path)
            values[name] = self._value(attribute, f"{path}@{name}")

    def _dataset(self, dataset: h5d.DatasetID, path: str) -> None:
        self._enter(dataset, path)
        layout = dataset.get_create_plist()
        if layout.get_external_count():
            raise NotPlain(path, "external storage, which lies in another file")
        if layout.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT):
            found = "a virtual dataset" if layout.get_layout() == h5d.VIRTUAL else "a dataset in chunks"
            raise NotPlain(path, found)
        if layout.get_nfilters():
            raise NotPlain(path, f"filter {layout.get_filter(0)[0]}")
        kind = _number_type(dataset.get_type(), path)
        space = dataset.get_space()
        if space.get_simple_extent_type() not in (h5s.SCALAR, h5s.SIMPLE) or dataset.rank > self._limits["axes"]:
            raise NotPlain(path, f"a dataset without content or of {dataset.rank} axes")
        content_bytes = math.prod(dataset.shape) * kind.itemsize
        stored_bytes = dataset.get_storage_size()
        self._left_bytes -= content_bytes
        if content_bytes != stored_bytes or self._left_bytes < 0:
            raise NotPlain(path, f"shape {dataset.shape} of {kind} with {stored_bytes} bytes stored")
        self.datasets[path] = dataset

    def _value(self, attribute: h5a.AttrID, path: str) -> Any:
        """Return an attribute that is one number or one text."""
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
            raise NotPlain(path, "an attribute that is no single value")
        kind, size = attribute.get_type(), attribute.get_storage_size()
        if size > self._limits["text_bytes"]:
            raise NotPlain(path, f"an attribute of {size} bytes")
        if not isinstance(kind, h5t.TypeStringID):
            number = np.zeros((), _number_type(kind, path))
            attribute.read(number, mtype=kind)
            return number.item()
        text = np.empty((), h5py.string_dtype() if kind.is_variable_str() else f"S{kind.get_size()}")
        attribute.read(text)
        content = text.item()
        content = content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogateescape")
        if len(content) > self._limits["text_bytes"]:
            raise NotPlain(path, f"text of {len(content)} bytes")
        return _text(content, path)


def _names(group: h5g.GroupID, limit: int, path: str) -> list[bytes]:
    if group.get_num_objs() > limit:
        raise NotPlain(path, f"{group.get_num_objs()} entries")
    return list(group)


def _text(content: bytes, path: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() or len(text) > 512:
        raise NotPlain(path, f"the name or text {content[:40]!r}")
    return text


def _number_type(kind: h5t.TypeID, path: str) -> np.dtype:
    """Return the dtype of a type that NumPy has exactly so."""
    if not isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID) or kind.get_size() not in (1, 2, 4, 8):
        raise NotPlain(path, f"values of type {type(kind).__name__.removeprefix('Type').removesuffix('ID')}")
    dtype: np.dtype = np.dtype(kind.dtype)
    if not kind.equal(h5t.py_create(dtype)):
        raise NotPlain(path, f"numbers that {dtype} holds in another way")
    return dtype
