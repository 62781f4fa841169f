"""CXI and other HDF5 scans, read by a process of their own.

A damaged HDF5 file can crash the library or keep it busy for ever, so h5py is imported in a child process alone, with
bounded memory and time; once it has opened the file it cannot open another one. ``open_hdf5`` starts the child and
checks all it says; ``main`` is the child. They speak over pipes:

    parent → child   a line of JSON that says what is asked for; then a line for each pass over the patterns
    child → parent   messages of a letter (J JSON, A array, E error), a length in 8 bytes, and the content

Clauses CXI-01 and CXI-02 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>. The paths are those of CXI,
whose numbers are in SI units (Maia, Nature Methods 9, 854, 2012).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from ptycho_torch.child_limits import limit_cpu, limit_files, limit_memory, start_child, why_ended
from ptycho_torch.contract import violation
from ptycho_torch.errors import DataContractError, PtychoError, one_line

DATA_PATHS = ("/entry_1/data_1/data", "/entry_1/instrument_1/detector_1/data")
POSITION_PATHS = ("/entry_1/sample_1/geometry_1/translation", "/entry_1/data_1/translation")
PROBE_PATHS = ("/entry_1/instrument_1/source_1/illumination", "/entry_1/instrument_1/source_1/data_illumination")
_DETECTOR, _SOURCE = "/entry_1/instrument_1/detector_1", "/entry_1/instrument_1/source_1"

PLANCK_J_S = 6.62607015e-34
LIGHT_M_S = 299792458.0

MEMORY_BYTES = 4 * 2**30
"""Address space that the child may take beyond what its imports take."""

CPU_S = 120
"""CPU time for everything but the patterns; each pass over them gets as much again and a second for 4 MB."""

SILENCE_S = 300.0
"""How long the child may keep its parent waiting for the next bytes."""

MAX_FRAME_PX = 8192
MAX_MODES = 64
MAX_ROW_BYTES = 2**30
MAX_PATTERNS = 2**31 - 1
MAX_RATIO = 250
RATIO_FROM_BYTES = 256 * 2**20
_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 8 * 2**20, 256 * 2**20
_PIECE_BYTES = 4 * 2**20
_MAX_JSON_BYTES = 2**16
_MAX_LINKS = 16
_CPU_BYTES_S = 4e6

# Deflate, shuffle, Fletcher-32, scale-offset, and h5py's own LZF; none of these is ever loaded from a plugin.
_FILTERS = (1, 2, 3, 6, 32000)

_MESSAGE = struct.Struct("<cQ")
_PATTERN_DTYPE = re.compile(r"[<>|]([fiu][248]|[iu]1)")
_OPTIONS = {"wavelength_m": "--wavelength-m", "distance_m": "--distance-m", "pixel_m": "--pixel-m"}


@dataclasses.dataclass(frozen=True)
class Hdf5Scan:
    """What an HDF5 file says of a scan, checked.

    Attributes:
        key: path of the patterns in the file.
        shape: of the patterns, as they lie in the file.
        dtype: of the patterns.
        translation_m: (M, 2) float64, (x, y) of the sample in metres.
        numbers: ``wavelength_m``, ``distance_m``, ``pixel_m``, each where it was asked for.
        bad_pixels: (H, W) bool, or None.
        probe: (modes, H, W) or (H, W) complex64, or None.
        notices: what a user should know.
        blocks: start a pass over the content of the patterns, in C order, as uint8 blocks of as many bytes as is
            asked for; the memory of a block is used again.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    translation_m: np.ndarray
    numbers: Mapping[str, float]
    bad_pixels: np.ndarray | None
    probe: np.ndarray | None
    notices: tuple[str, ...]
    blocks: Callable[[int], Iterator[np.ndarray]]


def is_hdf5(path: Path) -> bool:
    r"""Say whether a file begins with the HDF5 signature, ``\x89HDF\r\n\x1a\n``."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------- the parent


@contextlib.contextmanager
def open_hdf5(
    path: Path,
    *,
    axes: str = "mhw",
    data_path: str | None = None,
    positions_path: str | None = None,
    given: Collection[str] = (),
) -> Iterator[Hdf5Scan]:
    """Open a scan in an HDF5 file; the process that reads it ends with the block.

    λ = h·c / E where the file has the photon energy E alone, which CXI gives in joule. Non-zero mask values are
    bad pixels; a mask for each pattern counts as bad what is bad in any.

    Args:
        path: the file.
        axes: how the axes of the patterns lie: ``mhw``, ``hwm``, or ``mhw1``.
        data_path: where the patterns are; None looks where CXI has them.
        positions_path: where the translations are, (M, 2) or (M, 3) in metres; None looks where CXI has them.
        given: numbers that are not asked for: ``wavelength_m``, ``distance_m``, ``pixel_m``.

    Raises:
        DataContractError: CXI-01 something is missing or of the wrong form; CXI-02 damaged or hostile content.
        PtychoError: h5py is not installed.
    """
    request = {
        "path": str(path.resolve()),
        "axes": axes,
        "data_paths": [data_path] if data_path else DATA_PATHS,
        "position_paths": [positions_path] if positions_path else POSITION_PATHS,
        "numbers": [name for name in _OPTIONS if name not in given],
        "memory_bytes": MEMORY_BYTES,
        "cpu_s": CPU_S,
    }
    with tempfile.TemporaryFile() as words:
        child = start_child("ptycho_torch.cxi", errors=words)
        try:
            yield _Parent(path, child, words).open(request)
        finally:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            child.wait()


class _Parent:
    """Asks the child, and believes nothing that it cannot check."""

    def __init__(self, path: Path, child: subprocess.Popen[bytes], words: IO[bytes]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._path, self._child, self._words = path, child, words
        self._commands, self._answers = child.stdin, child.stdout
        self._left = 0
        self._silent = False

    def open(self, request: Mapping[str, Any]) -> Hdf5Scan:
        self._ask(json.dumps(request))
        try:
            said = json.loads(self._message(b"J"))
            return self._scan(said, request)
        except DataContractError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError) as err:
            raise self._hostile(f"an answer that cannot be understood ({err})") from err

    def _scan(self, said: Mapping[str, Any], request: Mapping[str, Any]) -> Hdf5Scan:
        shape = tuple(int(length) for length in said["shape"])
        if not _PATTERN_DTYPE.fullmatch(said["dtype"]) or said["key"] not in request["data_paths"]:
            raise ValueError("patterns")
        dtype = np.dtype(said["dtype"])
        count, rows, columns = frame_axes(shape, str(request["axes"]))
        if not (0 < count <= MAX_PATTERNS and 0 < rows <= MAX_FRAME_PX and 0 < columns <= MAX_FRAME_PX):
            raise ValueError("shape")
        numbers = {name: float(said["numbers"][name]) for name in request["numbers"]}
        if not all(0 < number < math.inf for number in numbers.values()):
            raise ValueError("numbers")
        translation = self._array((count, 2), np.dtype("<f8"))
        bad_pixels = self._array((rows, columns), np.dtype("u1")).astype(bool) if said["mask"] else None
        probe = None
        if said["probe"] is not None:
            probe_shape = tuple(int(length) for length in said["probe"])
            if probe_shape[-2:] != (rows, columns) or math.prod(probe_shape[:-2]) > MAX_MODES:
                raise ValueError("probe")
            probe = self._array(probe_shape, np.dtype("<c8"))
        notices = tuple(one_line(str(notice)) for notice in said["notices"])

        def blocks(block_bytes: int) -> Iterator[np.ndarray]:
            return self._blocks(math.prod(shape) * dtype.itemsize, block_bytes)

        return Hdf5Scan(said["key"], shape, dtype, translation, numbers, bad_pixels, probe, notices, blocks)

    def _blocks(self, total_bytes: int, block_bytes: int) -> Iterator[np.ndarray]:
        self._ask("patterns")
        buffer = np.empty(min(block_bytes, total_bytes), np.uint8)
        while total_bytes:
            block = buffer[: min(len(buffer), total_bytes)]
            self._content(block.data)
            total_bytes -= len(block)
            yield block

    def _ask(self, line: str) -> None:
        try:
            self._commands.write(line.encode() + b"\n")
            self._commands.flush()
        except OSError as err:
            raise self._ended() from err

    def _array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        self._content(content.data)
        return content.view(dtype).reshape(shape)

    def _message(self, letter: bytes) -> bytes:
        """Return the next message whole."""
        length = self._begin(letter)
        if length > _MAX_JSON_BYTES:
            raise self._hostile(f"an answer of {length} bytes")
        content = bytearray(length)
        self._fill(memoryview(content))
        return bytes(content)

    def _content(self, buffer: memoryview) -> None:
        """Fill a buffer from as many array messages as it takes."""
        filled = 0
        while filled < len(buffer):
            if not self._left:
                self._left = self._begin(b"A")
            part = buffer[filled : filled + self._left]
            self._fill(part)
            filled += len(part)
            self._left -= len(part)

    def _begin(self, letter: bytes) -> int:
        head = bytearray(_MESSAGE.size)
        self._fill(memoryview(head))
        got, length = _MESSAGE.unpack(head)
        if got == b"E" and length <= _MAX_JSON_BYTES:
            content = bytearray(length)
            self._fill(memoryview(content))
            try:
                refusal = self._refusal(json.loads(content))
            except (ValueError, TypeError, KeyError) as err:
                raise self._hostile("an answer that cannot be understood") from err
            raise refusal
        if got != letter or not length:
            raise self._hostile("an answer that cannot be understood")
        return int(length)

    def _fill(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            watch = threading.Timer(SILENCE_S, self._end_silence)
            watch.daemon = True
            watch.start()
            try:
                got = self._answers.readinto(buffer[filled:])  # type: ignore[attr-defined]
            finally:
                watch.cancel()
            if not got:
                raise self._ended()
            filled += got

    def _end_silence(self) -> None:
        self._silent = True
        self._child.kill()

    def _refusal(self, said: Mapping[str, Any]) -> PtychoError:
        if said["clause"] is None:
            return PtychoError(f"{self._path}: HDF5 files need h5py ({one_line(said['found'])}): pip install h5py")
        clause = "CXI-01" if said["clause"] == "CXI-01" else "CXI-02"
        found, key, expected, remedy = (one_line(said[name]) for name in ("found", "key", "expected", "remedy"))
        return violation(clause, found, path=self._path, key=key or None, expected=expected, remedy=remedy)

    def _ended(self) -> DataContractError:
        """Say why no more bytes come."""
        if self._silent:
            return self._hostile(f"content that the HDF5 library did not read in {SILENCE_S:.0f} s")
        return self._hostile(why_ended(self._child, self._words))

    def _hostile(self, found: str) -> DataContractError:
        return violation("CXI-02", found, path=self._path)


def frame_axes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int]:
    """Return (M, H, W) of a shape whose axes lie as ``mhw``, ``hwm`` or ``mhw1`` say.

    Raises:
        ValueError: the shape has other axes.

    >>> frame_axes((64, 32, 100), "hwm")
    (100, 64, 32)
    """
    if len(shape) != len(axes) or (axes == "mhw1" and shape[3] != 1):
        raise ValueError(f"shape {shape} is no {axes}")
    return shape[axes.index("m")], shape[axes.index("h")], shape[axes.index("w")]


# -------------------------------------------------------------------------------------------------- the child


class _Refused(Exception):  # noqa: N818 - it never leaves this process
    """The child's reason to stop, on its way to the parent."""

    def __init__(self, clause: str | None, found: str, key: str = "", *, expected: str = "", remedy: str = "") -> None:
        super().__init__(found)
        self.said = {"clause": clause, "found": found, "key": key, "expected": expected, "remedy": remedy}


class _Answers:
    """The child's end of the pipe to its parent."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def json(self, letter: bytes, said: Mapping[str, Any]) -> None:
        content = json.dumps(said).encode()
        self._file.write(_MESSAGE.pack(letter, len(content)) + content)
        self._file.flush()

    def array(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), _PIECE_BYTES):
            piece = content[start : start + _PIECE_BYTES]
            self._file.write(_MESSAGE.pack(b"A", len(piece)))
            self._file.write(piece)
        self._file.flush()


class _Child:
    """One open HDF5 file. Links are followed by hand, and datasets are judged before anything is read of them."""

    def __init__(self, file: Any, request: Mapping[str, Any]) -> None:
        self._file, self._request = file, request
        self._file_bytes = Path(request["path"]).stat().st_size
        self._notices: list[str] = []

    def describe(self, answers: _Answers) -> None:
        """Say everything but the patterns."""
        key, patterns = self._patterns()
        count, rows, columns = frame_axes(patterns.shape, self._request["axes"])
        translation = self._translation(count)
        mask = self._mask(count, rows, columns)
        probe = self._probe(rows, columns)
        numbers = {name: getattr(self, f"_{name}")() for name in self._request["numbers"]}
        answers.json(
            b"J",
            {
                "key": key,
                "shape": patterns.shape,
                "dtype": patterns.dtype.newbyteorder("=").str,
                "numbers": numbers,
                "mask": mask is not None,
                "probe": None if probe is None else probe.shape,
                "notices": self._notices,
            },
        )
        for array in (translation, mask, probe):
            if array is not None:
                answers.array(array)

    def stream(self, answers: _Answers) -> None:
        """Send the content of the patterns once."""
        _, patterns = self._patterns()
        dtype = patterns.dtype.newbyteorder("=")
        shape, row_bytes = patterns.shape, math.prod(patterns.shape[1:]) * dtype.itemsize
        self._limit_cpu(shape[0] * row_bytes)
        # A block is made of whole chunks, or each chunk would be unpacked again and again.
        chunk_rows = 1 if patterns.chunks is None else min(patterns.chunks[0], shape[0])
        rows = chunk_rows * max(1, _BLOCK_BYTES // (chunk_rows * row_bytes))
        rows = min(rows, shape[0], max(1, _LARGEST_BLOCK_BYTES // row_bytes))
        buffer = np.empty((rows, *shape[1:]), dtype)
        for first in range(0, shape[0], rows):
            block = buffer[: min(rows, shape[0] - first)]
            patterns.read_direct(block, np.s_[first : first + len(block)])
            answers.array(block)

    def _limit_cpu(self, content_bytes: int) -> None:
        """Allow as much CPU time again as at first, and what reading so much may take."""
        limit_cpu(self._request["cpu_s"] + int(content_bytes / _CPU_BYTES_S))

    def _patterns(self) -> tuple[str, Any]:
        key, patterns = self._first(self._request["data_paths"], "patterns", "--data-path")
        shape, axes = patterns.shape, self._request["axes"]
        self._kind(key, patterns, "fiu", "real numbers, of at most 64 bits")
        if patterns.dtype.itemsize > 8:
            raise _Refused("CXI-01", f"dtype {patterns.dtype}", key, expected="real numbers, of at most 64 bits")
        try:
            count, rows, columns = frame_axes(shape, axes)
        except ValueError:
            raise _Refused(
                "CXI-01",
                f"shape {shape}",
                key,
                expected=f"axes {', '.join(axes)}",
                remedy="Say how the axes lie (--axes), or name another path (--data-path).",
            ) from None
        if not (0 < count <= MAX_PATTERNS and 0 < rows <= MAX_FRAME_PX and 0 < columns <= MAX_FRAME_PX):
            raise _Refused(
                "CXI-02", f"shape {shape}", key, expected=f"patterns of at most {MAX_FRAME_PX} pixels a side"
            )
        if math.prod(shape[1:]) * patterns.dtype.itemsize > MAX_ROW_BYTES:
            raise _Refused("CXI-02", f"shape {shape}", key, expected="at most 1 GiB for an entry of the first axis")
        return key, patterns

    def _translation(self, count: int) -> np.ndarray:
        key, translation = self._first(self._request["position_paths"], "translations", "--positions-path")
        self._kind(key, translation, "fiu", "real numbers")
        shape = translation.shape
        if len(shape) != 2 or shape[0] != count or shape[1] not in (2, 3):
            raise _Refused(
                "CXI-01",
                f"shape {shape} for {count} patterns",
                key,
                expected=f"({count}, 3), x, y, z of the sample in metres, or ({count}, 2)",
                remedy="Name the path of one translation for each pattern (--positions-path).",
            )
        metres = np.asarray(translation[...], np.float64)[:, :2]
        wrong = np.argwhere(~np.isfinite(metres))
        if len(wrong):
            raise _Refused(
                "CXI-01", f"{metres[tuple(wrong[0])]} at pattern {wrong[0][0]}", key, expected="finite metres"
            )
        return metres

    def _mask(self, count: int, rows: int, columns: int) -> np.ndarray | None:
        key = f"{_DETECTOR}/mask"
        mask = self._dataset(key)
        if mask is None:
            return None
        self._kind(key, mask, "biuf", "numbers, 0 where the pixel is good")
        if mask.shape == (rows, columns):
            return np.asarray(mask[...] != 0, np.uint8)
        if mask.shape not in ((1, rows, columns), (count, rows, columns)):
            raise _Refused("CXI-01", f"shape {mask.shape}", key, expected=f"({rows}, {columns}), as the patterns have")
        self._limit_cpu(math.prod(mask.shape) * mask.dtype.itemsize)
        bad = np.zeros((rows, columns), np.uint8)
        frames = max(1, _BLOCK_BYTES // (rows * columns * mask.dtype.itemsize))
        for first in range(0, len(mask), frames):
            bad |= (mask[first : first + frames] != 0).any(axis=0)
        if len(mask) > 1:
            self._notices.append("a pixel that the mask calls bad in one pattern is taken for bad in all")
        return bad

    def _probe(self, rows: int, columns: int) -> np.ndarray | None:
        for key in PROBE_PATHS:
            probe = self._dataset(key)
            if probe is None:
                continue
            shape = probe.shape
            fits = shape[-2:] == (rows, columns) and len(shape) in (2, 3) and math.prod(shape[:-2]) <= MAX_MODES
            if not fits or probe.dtype.kind != "c":
                self._notices.append(f"{key} is left out: shape {shape} of {probe.dtype} is no probe of these patterns")
                continue
            return np.asarray(probe[...], "<c8")
        return None

    def _distance_m(self) -> float:
        return self._number(f"{_DETECTOR}/distance", "distance_m")

    def _pixel_m(self) -> float:
        x, y = (self._number(f"{_DETECTOR}/{name}_pixel_size", "pixel_m") for name in ("x", "y"))
        if abs(x - y) > 1e-6 * x:
            raise _Refused(
                "CXI-01",
                f"x_pixel_size {x:.6g} m and y_pixel_size {y:.6g} m",
                _DETECTOR,
                expected="square pixels",
                remedy="If the pixels are square, give their side: --pixel-m.",
            )
        return x

    def _wavelength_m(self) -> float:
        energy = f"{_SOURCE}/energy"
        if self._dataset(f"{_SOURCE}/wavelength") is not None or self._dataset(energy) is None:
            return self._number(f"{_SOURCE}/wavelength", "wavelength_m", also=energy)
        joule = self._number(energy, "wavelength_m")
        # From infrared light to 6 MeV; electronvolts taken for joules are far outside.
        if not 1e-20 < joule < 1e-12:
            raise _Refused(
                "CXI-01",
                f"{joule:.6g}",
                energy,
                expected="the energy of one photon in joule",
                remedy="If it is in electronvolts, give the wavelength: --wavelength-m (1.23984e-6 / energy in eV).",
            )
        return PLANCK_J_S * LIGHT_M_S / joule

    def _number(self, key: str, name: str, also: str = "") -> float:
        remedy = f"Give it in metres: {_OPTIONS[name]}."
        value = self._dataset(key)
        if value is None:
            where = f"{key} or {also}" if also else key
            expected = f"{name.removesuffix('_m')}, one number above 0"
            raise _Refused("CXI-01", "nothing there", where, expected=expected, remedy=remedy)
        number = math.nan
        if value.dtype.kind in "fiu" and math.prod(value.shape) == 1:
            number = float(np.asarray(value[...]).reshape(-1)[0])
        if not 0 < number < math.inf:
            found = f"{number:.6g}" if math.prod(value.shape) == 1 else f"shape {value.shape}"
            raise _Refused("CXI-01", found, key, expected="one number above 0", remedy=remedy)
        return number

    def _kind(self, key: str, dataset: Any, kinds: str, expected: str) -> None:
        if dataset.dtype.kind not in kinds:
            raise _Refused("CXI-01", f"dtype {dataset.dtype}", key, expected=expected)

    def _first(self, keys: Collection[str], what: str, option: str) -> tuple[str, Any]:
        for key in keys:
            dataset = self._dataset(key)
            if dataset is not None:
                return key, dataset
        raise _Refused(
            "CXI-01",
            "no such dataset",
            " or ".join(keys),
            expected=f"the {what}",
            remedy=f"Name their path in the file: {option}.",
        )

    def _dataset(self, key: str) -> Any:
        """Return a dataset that may be read, or None where none is."""
        import h5py

        dataset = self._follow(key)
        if not isinstance(dataset, h5py.Dataset):
            return None
        layout = dataset.id.get_create_plist()
        if dataset.external:
            raise _Refused("CXI-02", "external storage, which lies in another file", key)
        if layout.get_layout() == h5py.h5d.VIRTUAL:
            raise _Refused("CXI-02", "a virtual dataset, whose content lies elsewhere", key)
        for number in range(layout.get_nfilters()):
            code = layout.get_filter(number)[0]
            if code not in _FILTERS:
                raise _Refused("CXI-02", f"filter {code}, which is not built in", key)
        if dataset.shape is None:
            raise _Refused("CXI-01", "no content", key)
        itemsize = dataset.dtype.itemsize
        stored, content = dataset.id.get_storage_size(), math.prod(dataset.shape) * itemsize
        if stored > self._file_bytes:
            raise _Refused("CXI-02", f"{stored} bytes stored, more than the file has", key)
        if dataset.chunks is not None and math.prod(dataset.chunks) * itemsize > MAX_ROW_BYTES:
            raise _Refused("CXI-02", f"chunks of {dataset.chunks}", key, expected="chunks of at most 1 GiB")
        if content > max(RATIO_FROM_BYTES, MAX_RATIO * stored):
            raise _Refused("CXI-02", f"shape {dataset.shape} with {stored} bytes stored", key)
        return dataset

    def _follow(self, key: str) -> Any:
        """Return the object at a path, or None; soft links inside the file are followed, others are refused."""
        import h5py

        here, hops = self._file["/"], 0
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
            else:
                raise _Refused("CXI-02", "a link to another file", key)
        return here


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def main() -> int:
    """Be the child: read the request from standard input and answer on standard output until the input ends."""
    answers = _Answers(os.fdopen(os.dup(1), "wb"))
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
        reason = str(err.args[0] if err.args else "").strip().partition("\n")[0] or type(err).__name__
        answers.json(b"E", _Refused("CXI-02", f"damaged content ({reason[:300]})").said)
    return 0


def _serve(request: Mapping[str, Any], answers: _Answers) -> None:
    try:
        import h5py
    except ImportError as err:
        raise _Refused(None, str(err)) from err
    limit_memory(request["memory_bytes"])
    limit_cpu(request["cpu_s"])
    with h5py.File(request["path"], "r") as file:
        limit_files()
        child = _Child(file, request)
        child.describe(answers)
        for _ in sys.stdin.buffer:
            child.stream(answers)


if __name__ == "__main__":
    sys.exit(main())
