"""Untrusted HDF5 files, and the files beside them that they link to, read by processes of their own.

``open_hdf5`` gives a tree of all datasets that can be reached from one file: in it, through external links, and as
virtual datasets. A link is followed to a regular file of the same folder only; each such file is opened by a process
of ``ptycho_torch.files.hdf5_child`` under the limits of the first one, and all that the process says is checked here.

Clause CXI-02 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError, one_line
from ptycho_torch.files.hdf5_process import ChildLimits, Hdf5Process, Refusal, started

MEMORY_BYTES = 4 * 2**30
"""Address space that a child may take beyond what its imports take."""

CPU_S = 120
"""CPU time for everything but content; each request for content gets as much again and a second for 4 MB."""

SILENCE_S = 300.0
"""How long a child may keep its parent waiting for the next bytes."""

MAX_READ_BYTES = 256 * 2**20
"""Largest dataset that is read whole; only patterns and masks of each pattern are streamed and may be larger."""

BUFFERS = 3
"""Blocks that are alive at once: one is read, one is worked on, one is written."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_USER_BLOCK = 2**26
_FILES_AT_ONCE = 200
_MAX_HOPS = 4
_MAX_FILES = 2_000
_MAX_OBJECTS = 50_000
_MAX_AXES = 8
_PART_BYTES = 8 * 2**20
_DTYPE = re.compile(r"[<|]([fiu][248]|[iub]1|c(8|16))")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset, wherever its file is.

    Attributes:
        path: as seen from the first file.
        shape: of its content.
        dtype: real or complex numbers or flags in the machine's byte order, or None for anything else.
        units: its attribute of that name, empty where there is none.
        vector: the direction (x, y, z) that NeXus gives a motor or an axis of a detector, or None.
        odd_vector: what stands in its place and is no direction.
        fill: the number where a virtual dataset has no source; NaN where it is no finite number.
        mark: two paths to the same dataset have the same.
        virtual: whether its content lies in other datasets.
        place: the process that reads it, the number of its file there, and its path in that file.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    units: str
    vector: tuple[float, float, float] | None
    mark: str
    virtual: bool
    place: tuple[Hdf5Process, int, str] = dataclasses.field(repr=False)
    odd_vector: str = ""
    fill: float = 0

    @property
    def content_bytes(self) -> int:
        """Length of the content."""
        return math.prod(self.shape) * (0 if self.dtype is None else self.dtype.itemsize)

    @property
    def file(self) -> Path:
        """The file it lies in."""
        reader, number, _ = self.place
        return reader.paths[number]


def is_hdf5(path: Path) -> bool:
    r"""Say whether a file has the HDF5 signature, ``\x89HDF\r\n\x1a\n``, at its begin or after a user block.

    A user block has 512 bytes or a doubling of that; MATLAB puts one in front.
    """
    try:
        with path.open("rb") as file:
            start, size = 0, path.stat().st_size
            while start < min(size, _MAX_USER_BLOCK):
                file.seek(start)
                if file.read(len(_SIGNATURE)) == _SIGNATURE:
                    return True
                start = 2 * start or 512
    except OSError:
        pass
    return False


def is_matlab(path: Path) -> bool:
    """Say whether an HDF5 file is one of MATLAB 7.3, whose arrays have their axes in reverse order."""
    try:
        with path.open("rb") as file:
            return file.read(10) == b"MATLAB 7.3"
    except OSError:
        return False


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Tree]:
    """Open an HDF5 file; the processes that read it and the files it links to end with the block.

    Raises:
        DataContractError: CXI-02, the file is damaged, hostile, or open for writing elsewhere.
        PtychoError: h5py is not installed.
    """
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_started([path]))
        reader.refuse_closed(0)
        yield Hdf5Tree(path, reader, stack)


class Hdf5Tree:
    """All that one file holds or links to.

    Attributes:
        path: the file.
        datasets: by path, with a slash at the begin.
        groups: path → NeXus class, or empty.
        axes: path of a group → names of the axes that it states, ``.`` for none.
        broken: path → why the link there cannot be followed.
        notices: what a user should know.
    """

    def __init__(self, path: Path, reader: Hdf5Process, stack: contextlib.ExitStack) -> None:
        self.path = path
        self.datasets: dict[str, Dataset] = {}
        self.groups: dict[str, str] = {}
        self.axes: dict[str, tuple[str, ...]] = {}
        self.broken: dict[str, DataContractError] = {}
        self.notices: list[str] = []
        self._stack = stack
        self._known_parts: dict[str, list[_Part]] = {}
        self._readers: dict[Path, tuple[Hdf5Process, int]] = {path.resolve(): (reader, 0)}
        self._add("", reader, 0, "/", 0)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that it links to so far as they have been opened."""
        return tuple(self._readers)

    def find(self, path: str) -> Dataset | None:
        """Return the dataset at a path, or None.

        Raises:
            DataContractError: CXI-02, the path leads through a link that cannot be followed.
        """
        path = "/" + "/".join(name for name in path.split("/") if name not in ("", "."))
        for broken, error in self.broken.items():
            if path == broken or path.startswith(f"{broken}/"):
                raise error
        return self.datasets.get(path)

    def check(self, dataset: Dataset) -> None:
        """Refuse a dataset whose content may not be read, before anything of it is.

        Raises:
            DataContractError: CXI-02.
        """
        if dataset.virtual:
            for part in self._parts_of(dataset):
                self.check(part.source)
            return
        reader, number, inside = dataset.place
        reader.ask("check", number, inside)

    def marks(self, dataset: Dataset) -> set[str]:
        """Return the marks of a dataset and, of a virtual one, of those that hold its content."""
        parts = self._parts_of(dataset) if dataset.virtual else []
        return {dataset.mark, *(part.source.mark for part in parts)}

    def read(self, dataset: Dataset) -> np.ndarray:
        """Read a dataset whole.

        Raises:
            DataContractError: CXI-02, it is too large, or its content is damaged.
        """
        if dataset.content_bytes > MAX_READ_BYTES:
            raise violation("CXI-02", f"{dataset.content_bytes} bytes", path=self.path, key=dataset.path)
        content = np.empty(dataset.content_bytes, np.uint8)
        for block in self.blocks([dataset], max(dataset.content_bytes, 1)):
            content[:] = block
        return content.view(dataset.dtype or np.uint8).reshape(dataset.shape)

    def blocks(self, datasets: Sequence[Dataset], block_bytes: int) -> Iterator[np.ndarray]:
        """Yield the content of some datasets, one behind the other in C order, as uint8 blocks of so many bytes.

        The memory of a block is used again for the third one after it.

        Raises:
            DataContractError: CXI-02, the content is damaged or lies where it may not.
        """
        left = sum(dataset.content_bytes for dataset in datasets)
        buffers = np.empty((BUFFERS, min(block_bytes, left)), np.uint8)
        turn = itertools.cycle(buffers)
        contents = (self._content(dataset) for dataset in datasets if dataset.content_bytes)
        content: _Content | None = None
        while left:
            block = next(turn)[:left]
            filled = 0
            while filled < len(block):
                content = content or next(contents)
                got = content.readinto(block[filled:].data)
                filled += got
                content = content if got else None
            left -= len(block)
            yield block

    def _content(self, dataset: Dataset) -> _Content:
        if dataset.virtual:
            return _Assembled(self._assembled(dataset))
        return _Plain(dataset, 0, dataset.shape[0] if dataset.shape else 1)

    # ------------------------------------------------------------------------------------------------ the tree

    def _add(self, prefix: str, reader: Hdf5Process, number: int, root: str, hops: int) -> None:
        """Add what is at a path of a file under a path of the tree, and what that links to."""
        links: dict[str, tuple[str, str]] = {}
        with reader.understood():
            self._note(prefix, reader, number, root, links)
        if len(self.datasets) + len(self.groups) + len(self.broken) > _MAX_OBJECTS:
            raise violation("CXI-02", f"links to more than {_MAX_OBJECTS} objects", path=self.path)
        self._follow(links, reader.paths[number], hops)

    def _note(
        self, prefix: str, reader: Hdf5Process, number: int, root: str, links: dict[str, tuple[str, str]]
    ) -> None:
        for said in reader.ask("list", number, root):
            path, kind = f"{prefix}{said['path']}", said["kind"]
            if kind == "cut":
                self.notices.append(
                    f"{reader.paths[number].name} holds more objects than are listed; what comes later is not looked at"
                )
            elif kind == "group":
                self.groups[path] = one_line(str(said["class"]))
                if said["axes"]:
                    self.axes[path] = tuple(one_line(str(name)) for name in said["axes"])
            elif kind == "link":
                links[path] = (str(said["file"]), str(said["target"]))
            elif kind == "dataset" and said["shape"] is not None:
                inside = f"{root}/{said['path']}"
                self.datasets[path] = _dataset(path, said, (reader, number, inside))

    def _follow(self, links: Mapping[str, tuple[str, str]], source: Path, hops: int) -> None:
        files: dict[str, Path] = {}
        for path, (name, _) in links.items():
            try:
                if hops == _MAX_HOPS:
                    raise self._elsewhere(path, name, f"a chain of more than {_MAX_HOPS} links to other files")
                files[path] = self._beside(path, name, source)
            except DataContractError as err:
                self.broken[path] = err
        self._open(files.values())
        for path, file in files.items():
            reader, number = self._readers[file]
            if number in reader.closed:
                self.broken[path] = reader.closed[number]
            else:
                self._add(path, reader, number, links[path][1], hops + 1)

    def _beside(self, path: str, name: str, source: Path) -> Path:
        """Return the file that a link names, if it lies beside the file that links to it."""
        folder = source.resolve().parent
        file = (folder / name).resolve()
        if file.parent != folder and Path(name).name == name and file.is_file():
            words = one_line(shlex.join(["cp", "--remove-destination", str(file), str(folder / name)]), 2000)
            raise violation(
                "CXI-02",
                f"a link to another file, {one_line(name)!r}, in another folder: a symbolic link leads there",
                path=self.path,
                key=path,
                expected="linked files in the same folder",
                remedy=f"Put a copy of the file in place of the symbolic link: `{words}`",
            )
        if file.parent != folder:
            raise self._elsewhere(path, name, f"a link to another file, {one_line(name)!r}, in another folder")
        if not file.is_file():
            raise violation(
                "CXI-02",
                f"a link to {file.name}, which is not there",
                path=self.path,
                key=path,
                expected=f"{file.name} beside {source.name}",
                remedy="Copy it there; or take what is there, one path behind the other: --data-path PATH PATH …",
            )
        return file

    def _elsewhere(self, path: str, name: str, found: str) -> DataContractError:
        return violation(
            "CXI-02",
            found,
            path=self.path,
            key=path,
            expected="linked files in the same folder",
            remedy=f"Put {one_line(Path(name).name)} beside {self.path.name} and link to it by its name only, or "
            "repack both into one file (h5repack, h5copy).",
        )

    def _open(self, files: Iterator[Path] | Any) -> None:
        """Start processes for the files that are not open yet."""
        new = [file for file in dict.fromkeys(files) if file not in self._readers]
        if len(self._readers) + len(new) > _MAX_FILES:
            raise violation("CXI-02", f"links to more than {_MAX_FILES} files", path=self.path)
        for first in range(0, len(new), _FILES_AT_ONCE):
            some = new[first : first + _FILES_AT_ONCE]
            reader = self._stack.enter_context(_started(some))
            self._readers |= {file: (reader, number) for number, file in enumerate(some)}

    # ---------------------------------------------------------------------------------------- virtual datasets

    def _parts(self, dataset: Dataset) -> list[_Part]:
        reader, number, inside = dataset.place
        with reader.understood():
            return self._parts_said(dataset, reader.ask("sources", number, inside), reader.paths[number].resolve())

    def _parts_said(self, dataset: Dataset, said: list[dict[str, Any]], here: Path) -> list[_Part]:
        files = [here if part["file"] == "." else self._beside(dataset.path, part["file"], here) for part in said]
        self._open(files)
        found: dict[tuple[Path, str], Dataset] = {}
        parts = []
        for part, file in zip(said, files, strict=True):
            reader, number = self._readers[file]
            reader.refuse_closed(number)
            place = (file, str(part["dataset"]))
            if place not in found:
                listed = reader.ask("list", number, place[1])
                if len(listed) != 1 or listed[0]["kind"] != "dataset" or listed[0]["virtual"]:
                    raise violation(
                        "CXI-02",
                        f"a virtual dataset of {one_line(place[1])!r} in {file.name}, where no plain dataset is",
                        path=self.path,
                        key=dataset.path,
                    )
                found[place] = _dataset(f"{dataset.path} in {file.name}", listed[0], (reader, number, place[1]))
            parts.append(_Part.from_said(found[place], part["to"], part["from"], dataset.shape))
        if any(part.source.dtype is None or not _safe(part.source.dtype, dataset.dtype) for part in parts):
            raise violation("CXI-02", "a virtual dataset of other types", path=self.path, key=dataset.path)
        missing = math.prod(dataset.shape) - sum(part.size for part in parts)
        if missing > 0:
            self.notices.append(
                f"{dataset.path}: {missing} numbers of this virtual dataset lie nowhere, and are {dataset.fill}, "
                "its fill value"
            )
        return parts

    def _assembled(self, dataset: Dataset) -> Iterator[np.ndarray]:
        """Yield the content of a virtual dataset, some entries of the first axis at a time."""
        parts, shape = self._parts_of(dataset), dataset.shape
        rows = max(1, _PART_BYTES * shape[0] // dataset.content_bytes)
        for first in range(0, shape[0], rows):
            block = np.full((min(rows, shape[0] - first), *shape[1:]), dataset.fill, dataset.dtype)
            for part in parts:
                part.copy_into(block, first)
            yield block

    def _parts_of(self, dataset: Dataset) -> list[_Part]:
        if dataset.path not in self._known_parts:
            self._known_parts[dataset.path] = self._parts(dataset)
        return self._known_parts[dataset.path]


def _safe(given: np.dtype, wanted: np.dtype | None) -> bool:
    return wanted is not None and np.can_cast(given, wanted, "safe")


def _dataset(path: str, said: Mapping[str, Any], place: tuple[Hdf5Process, int, str]) -> Dataset:
    reader, number, _ = place
    shape = tuple(int(length) for length in said["shape"])
    if len(shape) > _MAX_AXES or min(shape, default=0) < 0:
        raise reader.hostile("shape")
    dtype = np.dtype(said["dtype"]) if _DTYPE.fullmatch(said["dtype"]) else None
    odd_vector, vector = "", said["vector"]
    if isinstance(vector, str):
        odd_vector, vector = one_line(vector, 80), None
    if vector is not None and not (len(vector) == 3 and all(map(math.isfinite, map(float, vector)))):
        raise reader.hostile("vector")
    fill = math.nan if said["fill"] is None else said["fill"]
    np.array(fill, dtype)  # raises for a number that the type does not hold
    return Dataset(
        path=path,
        shape=shape,
        dtype=dtype,
        units=one_line(str(said["units"]), 40),
        vector=None if vector is None else (float(vector[0]), float(vector[1]), float(vector[2])),
        mark=f"{reader.paths[number]} {said['mark']}",
        virtual=bool(said["virtual"]) and dtype is not None,
        place=place,
        odd_vector=odd_vector,
        fill=fill,
    )


def _started(paths: Sequence[Path]) -> contextlib.AbstractContextManager[Hdf5Process]:
    def refuse(said: Refusal) -> DataContractError:
        path = paths[said.number]
        remedy = said.remedy.replace("FILE", str(path))
        return violation(
            said.clause, said.found, path=path, key=said.key or None, expected=said.expected, remedy=remedy
        )

    return started(paths, ChildLimits(MEMORY_BYTES, CPU_S, SILENCE_S), refuse)


# ------------------------------------------------------------------------------------------------------ content


class _Content(Protocol):
    def readinto(self, buffer: memoryview) -> int:
        """Fill the begin of a buffer; return how many bytes, 0 at the end."""


class _Plain:
    """Entries of the first axis of a dataset that lies in one file."""

    def __init__(self, dataset: Dataset, first: int, stop: int) -> None:
        self._reader, number, inside = dataset.place
        self._left = dataset.content_bytes // max(dataset.shape[0] if dataset.shape else 1, 1) * (stop - first)
        self._reader.ask_rows(number, inside, first, stop, self._left)

    def readinto(self, buffer: memoryview) -> int:
        part = buffer[: self._left]
        self._reader.content(part)
        self._left -= len(part)
        return len(part)


class _Assembled:
    """Content that comes in arrays."""

    def __init__(self, arrays: Iterator[np.ndarray]) -> None:
        self._arrays, self._rest = arrays, memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        if not self._rest:
            array = next(self._arrays, None)
            self._rest = memoryview(b"") if array is None else array.reshape(-1).view(np.uint8).data
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part of a virtual dataset: element k of one selection is element k of the other, both in C order.

    Attributes:
        source: where it lies.
        to: which entries of each axis of the virtual dataset, (n,) ascending each.
        of: which entries of each axis of the source.
    """

    source: Dataset
    to: tuple[np.ndarray, ...]
    of: tuple[np.ndarray, ...]

    @classmethod
    def from_said(cls, source: Dataset, to: Any, of: Any, shape: tuple[int, ...]) -> _Part:
        """Make it of what the child says."""
        part = cls(source, _axes(to, shape), _axes(of, source.shape or (1,)))
        if part.size != math.prod(map(len, part.of)):
            raise ValueError("selections of unlike size")
        return part

    @property
    def size(self) -> int:
        return math.prod(map(len, self.to))

    def copy_into(self, block: np.ndarray, first: int) -> None:
        """Copy what belongs to the entries first … of the first axis."""
        begin, end = (int(each) for each in np.searchsorted(self.to[0], [first, first + len(block)]))
        if begin == end:
            return
        each_to, each_of = self.size // len(self.to[0]), self.size // len(self.of[0])
        low, high = begin * each_to // each_of, -(-end * each_to // each_of)
        rows = self.of[0][low:high]
        start, stop = int(rows[0]), int(rows[-1]) + 1
        shape = (stop - start, *self.source.shape[1:])
        content = np.empty(math.prod(shape) * _itemsize(self.source), np.uint8)
        plain, filled = _Plain(self.source, start, stop), 0
        while filled < len(content):
            filled += plain.readinto(content[filled:].data)
        found = content.view(self.source.dtype or np.uint8).reshape(shape)
        for axis, chosen in enumerate((rows - start, *self.of[1:])):
            found = found[(slice(None),) * axis + (_slice(chosen),)]
        wanted = found.reshape(-1)[begin * each_to - low * each_of :][: (end - begin) * each_to]
        to = (self.to[0][begin:end] - first, *self.to[1:])
        place = tuple(map(_slice, to))
        index = place if all(isinstance(each, slice) for each in place) else np.ix_(*to)
        block[index] = wanted.reshape(tuple(map(len, to)))


def _itemsize(dataset: Dataset) -> int:
    return 0 if dataset.dtype is None else dataset.dtype.itemsize


def _axes(axes: list[list[int]] | None, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    if axes is None:
        axes = [[0, 1, 1, length] for length in shape]
    if len(axes) != len(shape):
        raise ValueError("axes")
    chosen = []
    for (start, stride, count, block), length in zip(axes, shape, strict=True):
        if min(start, stride, count, block) < 0 or count * block > length:
            raise ValueError("selection")
        entries = (start + stride * np.arange(count)[:, None] + np.arange(block)).reshape(-1)
        if not len(entries) or entries[-1] >= length or (np.diff(entries) <= 0).any():
            raise ValueError("selection")
        chosen.append(entries)
    return tuple(chosen)


def _slice(entries: np.ndarray) -> slice | np.ndarray:
    """Return the slice that takes these entries, where one does."""
    first, last = int(entries[0]), int(entries[-1])
    step = (last - first) // max(len(entries) - 1, 1) or 1
    same = len(entries) < 2 or bool((np.diff(entries) == step).all())
    return slice(first, last + 1, step) if same else entries
