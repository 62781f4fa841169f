"""The process that reads untrusted HDF5 files, for ``ptycho_torch.files.hdf5_process``, which starts it.

A damaged HDF5 file can crash the library, keep it busy for ever or take control of it, so h5py is imported here alone,
with bounded memory and time. Before the first byte is parsed, the process gives up all that it does not need:
``ptycho_torch.files.child_limits``. The two speak over pipes:

    parent → child   a line of JSON that names the files, or says how many bytes of one follow; a line for each command
    child → parent   messages of a letter (J JSON, A array, E error), a length in 8 bytes, and the content

Clause CXI-02 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ptycho_torch.files.child_limits import allow_files, allow_no_files, limit_cpu, limit_memory

MAX_ROW_BYTES = 2**30
MAX_RATIO = 250
RATIO_FROM_BYTES = 256 * 2**20
MAX_JSON_BYTES = 8 * 2**20
MAX_OBJECTS = 20_000
MAX_PARTS = 20_000
MESSAGE = struct.Struct("<cQ")

_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 8 * 2**20, 256 * 2**20
_PIECE_BYTES = 4 * 2**20
_PIPE_BYTES = 2**20
_MAX_LISTING_BYTES = 6 * 2**20
_MAX_DEPTH = 32
_MAX_LINKS = 16
_MAX_ATTRIBUTE_BYTES = 1024
_LONGEST_NAME = 80
_CPU_BYTES_S = 4e6

# Deflate, shuffle, Fletcher-32, scale-offset, and h5py's own LZF; none of these is ever loaded from a plugin.
_BUILT_IN = (1, 2, 3, 6, 32000)
_FROM_PLUGIN = {32004: "LZ4", 32008: "bitshuffle/LZ4", 32015: "Zstd"}
"""Filters of the package hdf5plugin that are used; its own import registers them, and no library of the file's or the
user's choice is loaded."""

_UNITS = ("units", "unit", "Units", "Unit")
_LOCKED = ("unable to lock file", "already open for write", "already open for SWMR")


class _Refused(Exception):  # noqa: N818 - it never leaves this process
    """The child's reason to stop, on its way to the parent."""

    def __init__(self, clause: str | None, found: str, key: str = "", *, expected: str = "", remedy: str = "") -> None:
        super().__init__(found)
        self.said = {"clause": clause, "found": found, "key": key, "expected": expected, "remedy": remedy}


class _Answers:
    """The child's end of the pipe to its parent."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def json(self, letter: bytes, said: Any) -> None:
        content = json.dumps(said).encode()
        self._file.write(MESSAGE.pack(letter, len(content)) + content)
        self._file.flush()

    def array(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), _PIECE_BYTES):
            piece = content[start : start + _PIECE_BYTES]
            self._file.write(MESSAGE.pack(b"A", len(piece)))
            self._file.write(piece)
        self._file.flush()


@dataclasses.dataclass(frozen=True)
class _Elsewhere:
    """An external link on the way to an object: the file that it names, and the path that is left to go in it."""

    file: str
    target: str


class _File:
    """One open HDF5 file. Links are followed by hand, and datasets are judged before anything is read of them."""

    def __init__(self, file: Any, file_bytes: int, request: Mapping[str, Any]) -> None:
        self._file, self._file_bytes, self._request = file, file_bytes, request

    def listing(self, root: str) -> list[dict[str, Any]]:
        """Describe the object at a path and, if it is a group, all that is in it; paths are relative to it."""
        entries: list[dict[str, Any]] = []
        size = 0
        for entry in self._walk(root):
            size += len(json.dumps(entry)) + 2
            if len(entries) == MAX_OBJECTS or size > _MAX_LISTING_BYTES:
                entries.append({"path": "", "kind": "cut"})
                break
            entries.append(entry)
        return entries

    def _walk(self, root: str) -> Iterator[dict[str, Any]]:
        import h5py

        todo: list[tuple[str, Any, tuple[object, ...]]] = [("", self._follow(root), ())]
        while todo:
            path, here, ancestors = todo.pop()
            if isinstance(here, _Elsewhere):
                yield {"path": path, "kind": "link", "file": here.file, "target": here.target}
            elif isinstance(here, h5py.Dataset):
                yield _described(path, here)
            elif isinstance(here, h5py.Group):
                mark = _address(here)
                yield {"path": path, "kind": "group", "class": _text_of(here, "NX_class"), "axes": _axes_of(here)}
                if mark in ancestors or len(ancestors) == _MAX_DEPTH:
                    continue
                names = sorted(_members(here), reverse=True)
                todo += [(f"{path}/{name}", self._member(here, name), (*ancestors, mark)) for name in names]
            elif path:
                yield {"path": path, "kind": "nothing"}

    def _member(self, group: Any, name: str) -> Any:
        """Follow one name; what is damaged there matters only to who asks for it."""
        try:
            return self._follow(name, group)
        except Exception:
            return None

    def checked(self, key: str) -> list[dict[str, Any]]:
        """Refuse a dataset whose content may not be read; nothing of it is."""
        self._readable(key)
        return []

    def sources(self, key: str) -> list[dict[str, Any]]:
        """Return the parts of a virtual dataset: where each lies, and which of its elements go where."""
        dataset = self._dataset(key)
        parts = dataset.virtual_sources()
        if len(parts) > MAX_PARTS:
            raise _Refused("CXI-02", f"a virtual dataset of {len(parts)} parts", key)
        return [
            {
                "file": part.file_name,
                "dataset": part.dset_name,
                "to": _selection(part.vspace, key),
                "from": _selection(part.src_space, key),
            }
            for part in parts
        ]

    def whole(self, limits: Mapping[str, int], answers: _Answers) -> None:
        """Send all attributes and datasets of a file of plain arrays."""
        from ptycho_torch.files.hdf5_whole import NotPlain, WholeFile

        try:
            file = WholeFile(self._file.id, limits)
        except NotPlain as err:
            raise _Refused("CXI-02", err.found, err.path) from err
        answers.json(b"J", [{"arrays": file.headers(), "attributes": file.attributes}])
        for array in file.contents():
            answers.array(array)

    def rows(self, key: str, first: int, stop: int, answers: _Answers) -> None:
        """Send the entries first … stop of the first axis of a dataset; a scalar is one entry."""
        dataset = self._readable(key)
        if dataset.dtype.names is not None:
            answers.array(_complex(dataset[first:stop] if dataset.shape else dataset[()]))
            return
        dtype = dataset.dtype.newbyteorder("=")
        if not dataset.shape:
            answers.array(np.asarray(dataset[()], dtype))
            return
        shape = dataset.shape
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        limit_cpu(self._request["cpu_s"] + int((stop - first) * row_bytes / _CPU_BYTES_S))
        # A block is made of whole chunks, or each chunk would be unpacked again and again.
        chunk_rows = 1 if dataset.chunks is None else min(dataset.chunks[0], shape[0])
        rows = chunk_rows * max(1, _BLOCK_BYTES // (chunk_rows * row_bytes))
        rows = min(rows, shape[0], max(1, _LARGEST_BLOCK_BYTES // row_bytes))
        buffer = np.empty((rows, *shape[1:]), dtype)
        while first < stop:
            block = buffer[: min(rows - first % rows, stop - first)]
            dataset.read_direct(block, np.s_[first : first + len(block)])
            answers.array(block)
            first += len(block)

    def _readable(self, key: str) -> Any:
        """Return a dataset of this file whose content may be read."""
        import h5py

        dataset = self._dataset(key)
        layout = dataset.id.get_create_plist()
        if dataset.external:
            raise _Refused("CXI-02", "external storage, which lies in another file", key)
        if layout.get_layout() == h5py.h5d.VIRTUAL:
            raise _Refused("CXI-02", "a virtual dataset of virtual datasets", key)
        for number in range(layout.get_nfilters()):
            code = layout.get_filter(number)[0]
            if code in _FROM_PLUGIN and not h5py.h5z.filter_avail(code):
                raise _Refused(
                    "CXI-02",
                    f"content packed with {_FROM_PLUGIN[code]} (filter {code}), and hdf5plugin is not installed",
                    key,
                    expected="hdf5plugin, which unpacks it",
                    remedy="pip install 'ptycho-torch[beamline]' (or hdf5plugin), or repack the file where hdf5plugin "
                    "is installed: h5repack -f GZIP=1 FILE NEW.h5",
                )
            if code not in _BUILT_IN and code not in _FROM_PLUGIN:
                raise _Refused(
                    "CXI-02",
                    f"filter {code}, which is neither built in nor one of {', '.join(_FROM_PLUGIN.values())}",
                    key,
                    remedy="Repack the file where that filter is installed: h5repack -f GZIP=1 FILE NEW.h5",
                )
        itemsize = dataset.dtype.itemsize
        stored, content = dataset.id.get_storage_size(), math.prod(dataset.shape) * itemsize
        if stored > self._file_bytes:
            raise _Refused("CXI-02", f"{stored} bytes stored, more than the file has", key)
        if dataset.chunks is not None and math.prod(dataset.chunks) * itemsize > MAX_ROW_BYTES:
            raise _Refused("CXI-02", f"chunks of {dataset.chunks}", key, expected="chunks of at most 1 GiB")
        if math.prod(dataset.shape[1:]) * itemsize > MAX_ROW_BYTES:
            raise _Refused(
                "CXI-02", f"shape {dataset.shape}", key, expected="at most 1 GiB for an entry of the first axis"
            )
        if content > max(RATIO_FROM_BYTES, MAX_RATIO * stored):
            raise _Refused("CXI-02", f"shape {dataset.shape} with {stored} bytes stored", key)
        return dataset

    def _dataset(self, key: str) -> Any:
        import h5py

        dataset = self._follow(key)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise _Refused("CXI-01", "no such dataset", key)
        return dataset

    def _follow(self, key: str, start: Any = None) -> Any:
        """Return the object at a path, where it leaves this file, or None; soft links inside the file are followed."""
        import h5py

        here, hops = self._file["/"] if start is None else start, 0
        names = _names(key)
        while names:
            name = names.pop(0).encode("utf-8", "surrogateescape")
            if not isinstance(here, h5py.Group) or not here.id.links.exists(name):
                return None
            kind = here.id.links.get_info(name).type
            if kind == h5py.h5l.TYPE_SOFT:
                hops += 1
                target = here.id.links.get_val(name)
                if hops > _MAX_LINKS:
                    raise _Refused("CXI-02", "links that lead in a circle", key)
                if target.startswith(b"/"):
                    here = self._file["/"]
                names = _names(target.decode("utf-8", "surrogateescape")) + names
            elif kind == h5py.h5l.TYPE_HARD:
                opened = h5py.h5o.open(here.id, name)
                if isinstance(opened, h5py.h5d.DatasetID):
                    here = h5py.Dataset(opened)
                else:
                    here = h5py.Group(opened) if isinstance(opened, h5py.h5g.GroupID) else None
            elif kind == h5py.h5l.TYPE_EXTERNAL:
                file, inside = (each.decode("utf-8", "surrogateescape") for each in here.id.links.get_val(name))
                return _Elsewhere(file, "/".join([inside, *names]))
            else:
                raise _Refused("CXI-02", "a link of an unknown kind", key)
        return here


def _members(group: Any) -> Iterator[str]:
    """Yield the names in a group, as many as a listing may have."""
    try:
        for number, name in enumerate(group):
            if number == MAX_OBJECTS:
                return
            yield name
    except Exception:
        return


def _described(path: str, dataset: Any) -> dict[str, Any]:
    try:
        shape = None if dataset.shape is None else list(dataset.shape)
        virtual = bool(dataset.is_virtual)
        mark = _address(dataset)
    except Exception:
        return {"path": path, "kind": "nothing"}
    return {
        "path": path,
        "kind": "dataset",
        "shape": shape,
        "dtype": _dtype(dataset),
        "units": next(filter(None, (_text_of(dataset, name) for name in _UNITS)), ""),
        "vector": _vector_of(dataset),
        "virtual": virtual,
        "fill": _fill_of(dataset) if virtual else 0,
        "mark": mark,
    }


def _fill_of(dataset: Any) -> float | int | None:
    """Return the number that stands where a virtual dataset has no source; None if it is no finite number."""
    try:
        fill = dataset.fillvalue.item()
    except Exception:
        return None
    return fill if isinstance(fill, int | float) and math.isfinite(fill) else None


def _dtype(dataset: Any) -> str:
    """Return the type of the elements as NumPy writes it; empty where it is no type of numbers, flags or text."""
    try:
        dtype = dataset.dtype
    except Exception:
        return ""
    if dtype.names is not None:
        parts = [dtype[name] for name in dtype.names]
        if len(parts) == 2 and parts[0] == parts[1] and parts[0].kind == "f" and parts[0].itemsize in (4, 8):
            return f"<c{2 * parts[0].itemsize}"
        return ""
    if dtype.kind in "fiubc" and dtype.itemsize <= (16 if dtype.kind == "c" else 8) and dtype.subdtype is None:
        return str(dtype.newbyteorder("<").str)
    return ""


def _complex(stored: np.ndarray) -> np.ndarray:
    """Return numbers of pairs (real, imaginary), whatever their names: MATLAB has real and imag."""
    first, second = stored.dtype.names or ("", "")
    wide = np.complex64 if stored.dtype[0].itemsize == 4 else np.complex128
    return np.asarray(stored[first] + 1j * stored[second], wide)


def _address(here: Any) -> str:
    import h5py

    found = h5py.h5o.get_info(here.id)
    return f"{found.fileno}:{found.addr}"


def _text_of(here: Any, name: str) -> str:
    """Return a short text attribute, or an empty text where none can be read."""
    value = _attribute(here, name)
    values = value.reshape(-1) if isinstance(value, np.ndarray) else [value]
    # One for each column, as a rule the same one; what differs is told as it stands, and is no unit.
    texts = dict.fromkeys(each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in values)
    if not all(isinstance(each, str) for each in texts):
        return ""
    return ", ".join(texts)[:_MAX_ATTRIBUTE_BYTES].strip()


def _vector_of(here: Any) -> list[float] | str | None:
    """Return the direction that NeXus keeps with a motor or an axis of a detector; its text if it is none, or None."""
    value = _attribute(here, "vector")
    if value is None:
        return None
    stated = np.asarray(value)
    if stated.size == 3 and stated.dtype.kind in "fiu":
        direction = [float(each) for each in stated.reshape(-1)]
        if all(map(math.isfinite, direction)) and any(direction):
            return direction
    return str(value)[:_LONGEST_NAME]


def _axes_of(group: Any) -> list[str]:
    """Return the names of the axes that NXdata states, ``.`` for none; empty where it states none."""
    value = _attribute(group, "axes")
    values = value.reshape(-1) if isinstance(value, np.ndarray) else [value]
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in values]
    if len(texts) == 1 and isinstance(texts[0], str):
        texts = re.split(r"[:,]", texts[0].strip("[]"))
    return [each.strip()[:_LONGEST_NAME] for each in texts] if all(isinstance(each, str) for each in texts) else []


def _attribute(here: Any, name: str) -> Any:
    import h5py

    try:
        if not h5py.h5a.exists(here.id, name.encode()):
            return None
        found = h5py.h5a.open(here.id, name.encode())
        if found.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
            return None
        return here.attrs[name]
    except Exception:
        return None


def _selection(space: Any, key: str) -> list[list[int]] | None:
    """Return start, stride, count and block of each axis, or None for all there is."""
    import h5py

    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return None
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        raise _Refused("CXI-02", "a virtual dataset whose parts are no blocks at equal steps", key)
    axes = [[int(number) for number in axis] for axis in zip(*space.get_regular_hyperslab(), strict=True)]
    if any(number >= 2**62 for axis in axes for number in axis):
        raise _Refused("CXI-02", "a virtual dataset of an unlimited number of files", key)
    return axes


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def main() -> int:
    """Be the child: read the request from standard input and answer on standard output until the input ends."""
    pipe = os.dup(1)
    _widen(pipe)
    answers = _Answers(os.fdopen(pipe, "wb"))
    # Whatever a library prints must not come between the answers.
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    try:
        _serve(request, answers)
    except _Refused as err:
        answers.json(b"E", err.said)
    except MemoryError:
        asked = f"content that asks for more than {request['memory_bytes'] / 2**30:.3g} GiB of memory"
        answers.json(b"E", _Refused("CXI-02", asked).said)
    except BrokenPipeError:
        return 1
    except Exception as err:
        # Whatever the HDF5 library raises on hostile bytes becomes one error that gives its reason.
        answers.json(b"E", _Refused("CXI-02", f"damaged content ({_reason(err)})").said)
    return 0


def _widen(pipe: int) -> None:
    """Let a pipe hold more, where the system has a word for it: fewer turns for the same content."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _reason(err: Exception) -> str:
    text = " ".join(str(each) for each in err.args)
    return text.strip().partition("\n")[0][:300] or type(err).__name__


def _serve(request: Mapping[str, Any], answers: _Answers) -> None:
    try:
        import h5py
    except ImportError as err:
        raise _Refused(None, str(err)) from err
    if request["paths"]:
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")  # which registers its filters
    # What is needed later is imported now: nothing can be opened then.
    import ptycho_torch.files.hdf5_whole  # noqa: F401

    limit_memory(request["memory_bytes"])
    limit_cpu(request["cpu_s"])
    image = sys.stdin.buffer.read(request["image_bytes"])
    allow_files(request["paths"])
    opened = [_opened(h5py, path, request) for path in request["paths"]] or [_opened(h5py, image, request)]
    allow_no_files()
    answers.json(b"J", {"files": [each.said if isinstance(each, _Refused) else None for each in opened]})
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        file = opened[asked["file"]]
        if isinstance(file, _Refused):
            raise file
        match asked["do"]:
            case "list":
                answers.json(b"J", file.listing(asked["path"]))
            case "check":
                answers.json(b"J", file.checked(asked["path"]))
            case "sources":
                answers.json(b"J", file.sources(asked["path"]))
            case "rows":
                file.rows(asked["path"], asked["first"], asked["stop"], answers)
            case "whole":
                file.whole(asked["limits"], answers)


def _opened(h5py: Any, source: str | bytes, request: Mapping[str, Any]) -> _File | _Refused:
    from ptycho_torch.files.hdf5_whole import open_image

    try:
        if isinstance(source, bytes):
            return _File(h5py.File(open_image(source)), len(source), request)
        return _File(h5py.File(source, "r"), Path(source).stat().st_size, request)
    except Exception as err:
        reason = _reason(err)
        if any(words in reason for words in _LOCKED):
            return _Refused(
                "CXI-02",
                "a file that is open for writing elsewhere (HDF5 lock)",
                expected="a file that no program is writing",
                remedy="Wait until the acquisition has closed it, or end the program that holds it; if that program "
                "has crashed: h5clear -s FILE",
            )
        return _Refused("CXI-02", f"damaged content ({reason})")


if __name__ == "__main__":
    sys.exit(main())
