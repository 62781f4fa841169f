"""Scans as their files have them: NPZ files that break clauses, and HDF5 files. What ``convert-scan`` starts from.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Literal, cast

import numpy as np
from tqdm import tqdm

from ptycho_torch.contracts.contract import load_contract, violation
from ptycho_torch.data.photons import METADATA, stated_photons
from ptycho_torch.data.preparation import HC_J_M, object_pixel_m
from ptycho_torch.data.scan import MAX_FRAME_PX, MAX_TEXT_BYTES, read_ahead
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.files.hdf5_files import BUFFERS
from ptycho_torch.files.npz import ArrayHeader, NpzFile
from ptycho_torch.files.remedies import (
    adding,
    of_frames,
    of_member,
    of_raster,
    rewriting,
    without_patterns,
    without_positions,
)
from ptycho_torch.importer.beamline import open_beamline
from ptycho_torch.importer.beamline_search import Wanted, frame_axes
from ptycho_torch.importer.probe_axes import probe_axes

Axes = Literal["mhw", "mwh", "hwm", "whm", "mhw1"]
"""How the axes of the patterns lie: M patterns, H rows, W columns, and a singleton. A raster of four axes, (rows,
columns, H, W), is patterns in C order."""

CHUNK_BYTES = 8 * 2**20
"""Bytes of patterns that are handed out at once, unless one frame alone is larger."""

TURN_BYTES = 32 * 2**20
"""Bytes that are held at once while the axes of a stack are turned."""

POSITION_PAIRS = (("xcoords", "ycoords"), ("xcoords_start", "ycoords_start"))
GEOMETRY = {"wavelength_m": "wavelength_m", "detector_distance_m": "distance_m", "detector_pixel_m": "pixel_m"}
"""Key of the contract → name in ``BeamlineScan.numbers`` and of the option."""

PTYCHODUS_PATTERNS = "patterns"
"""Name of the patterns in a file of diffraction data of ptychodus, which are counts."""

ELECTRONVOLT_J = 1.602176634e-19

AMPLITUDE = ("amplitude", "normalized_amplitude")
INTENSITY = ("intensity", "count_intensity")

Passes = Callable[[], Iterator[np.ndarray]]
"""Starts a pass over the patterns, in chunks of (n, H, W) as the file has them."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """The patterns as they lie in a file.

    Attributes:
        path: the file.
        key: name in the file.
        count: M.
        rows_px: H.
        columns_px: W.
        dtype: of the stored numbers, real.
        patterns_last: whether the content runs over the patterns fastest, in place of slowest.
        columns_first: whether it runs over rows faster than over columns.
        blocks: start a pass over the content as uint8 blocks of as many bytes as is asked for.
        raster: (rows, columns) of a stack of four axes, or None.
    """

    path: Path
    key: str
    count: int
    rows_px: int
    columns_px: int
    dtype: np.dtype
    patterns_last: bool
    columns_first: bool
    blocks: Callable[[int], Iterator[np.ndarray]]
    raster: tuple[int, int] | None = None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.rows_px * self.columns_px * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of all frames."""
        return self.count * self.frame_bytes

    @contextlib.contextmanager
    def passes(self, folder: Path) -> Iterator[Passes]:
        """Give a function that starts a pass over the frames.

        Where patterns lie along the last axis, they are first turned in an unnamed file of the folder.
        """
        if not self.patterns_last:
            yield self._frames
            return
        with tempfile.TemporaryFile(dir=folder) as file:
            self._turn(file)
            yield functools.partial(self._turned_frames, file)

    def _frames(self) -> Iterator[np.ndarray]:
        for block in read_ahead(self.blocks(max(1, CHUNK_BYTES // self.frame_bytes) * self.frame_bytes)):
            yield self._oriented(block.view(self.dtype))

    def _oriented(self, numbers: np.ndarray) -> np.ndarray:
        if self.columns_first:
            return numbers.reshape(-1, self.columns_px, self.rows_px).swapaxes(1, 2)
        return numbers.reshape(-1, self.rows_px, self.columns_px)

    @property
    def _group(self) -> int:
        """How many frames are gathered at once."""
        return max(1, TURN_BYTES // self.frame_bytes)

    def _turn(self, file: IO[bytes]) -> None:
        """Turn (pixels, M) into groups of frames, (pixels, group) each, one group behind the other.

        A block of the source is cut into one tile for each group, so both sides are read and written in large pieces.
        """
        row_bytes = self.count * self.dtype.itemsize
        done = 0
        with tqdm(total=self.total_bytes, desc="turning", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            for block in self.blocks(max(1, TURN_BYTES // row_bytes) * row_bytes):
                pixels = block.view(self.dtype).reshape(-1, self.count)
                for first in range(0, self.count, self._group):
                    tile = np.ascontiguousarray(pixels[:, first : first + self._group])
                    file.seek(first * self.frame_bytes + done * tile.shape[1] * self.dtype.itemsize)
                    file.write(tile.reshape(-1).view(np.uint8).data)
                done += len(pixels)
                bar.update(len(block))
        file.flush()

    def _turned_frames(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        at_once = max(1, CHUNK_BYTES // self.frame_bytes)
        for first in range(0, self.count, self._group):
            group = min(self._group, self.count - first)
            content = np.empty(group * self.frame_bytes, np.uint8)
            file.seek(first * self.frame_bytes)
            _fill(file, content)
            frames = content.view(self.dtype).reshape(-1, group).T  # (group, pixels)
            for start in range(0, group, at_once):
                yield self._oriented(np.ascontiguousarray(frames[start : start + at_once]))


@dataclasses.dataclass(frozen=True)
class Source:
    """A scan as its file has it.

    Attributes:
        stack: the patterns.
        domain: ``amplitude`` or ``intensity`` (or the longer names) as the file says, or None.
        positions: the two keys → (K, 2) float64 (x, y), in object pixels, or translations of the sample in metres;
            not finite where the file has no number, and K may differ from M until patterns are chosen.
        metres: whether positions are in metres.
        states_units: whether the file or the user states that unit.
        counts: whether the patterns are counts by the definition of the format.
        probe: (H, W) or (modes, H, W), or None.
        bad_pixels: (H, W) bool, or None.
        gaps: (H, W) bool of pixels without measurement that the patterns tell, or None.
        geometry: keys of the contract → metres.
        dark: (H, W) float32 counts to take off, or None.
        white: (H, W) float32 to divide by, or None.
        limits: smallest and largest value that is a measurement; infinite where the file does not say.
        bits: of a pixel's value, or None where the file does not say.
        beam_centre: (row, column) of the direct beam, or None.
        scan_index: (K,), or None.
        object_header: the header of ``objectGuess``, or None.
        npz: the file, where it is one.
        files: those that the patterns lie in, beside the one that was given.
        notices: what a user should know.
    """

    stack: Stack
    domain: str | None
    positions: Mapping[tuple[str, str], np.ndarray]
    metres: bool
    probe: np.ndarray | None
    bad_pixels: np.ndarray | None
    geometry: Mapping[str, float]
    states_units: bool = True
    counts: bool = False
    gaps: np.ndarray | None = None
    dark: np.ndarray | None = None
    white: np.ndarray | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    bits: int | None = None
    beam_centre: tuple[float, float] | None = None
    scan_index: np.ndarray | None = None
    object_header: ArrayHeader | None = None
    npz: NpzFile | None = None
    files: Collection[Path] = ()
    notices: tuple[str, ...] = ()


class _NpzReader:
    """Reads the members of a scan that breaks clauses, as far as it can be repaired."""

    def __init__(
        self, npz: NpzFile, *, axes: Axes | None, patterns: str | None, drop_pickles: bool, any_domain: bool
    ) -> None:
        self._path, self._axes, self._patterns = npz.path, axes, patterns
        self._drop_pickles, self._any_domain = drop_pickles, any_domain
        self._notices: list[str] = []
        self._npz = npz
        self._others: dict[str, ArrayHeader] = {}
        self._headers = self._readable()

    def source(self, product: Path | None) -> Source:
        """Return what is there; of a product of ptychodus, where one is given, positions, geometry and probe.

        Raises:
            DataContractError: what no option of the command repairs.
        """
        stack = self._stack()
        H, W = stack.rows_px, stack.columns_px
        self._count = stack.count
        bad = self._array("bad_pixels", (H, W))
        if bad is not None and not np.isin(bad, (0, 1)).all():
            remedy = of_member(self._path, "bad_pixels", (), "", stack.count, adding)
            raise violation("SCAN-11", "other values than 0 and 1", path=self._path, key="bad_pixels", remedy=remedy)
        source = Source(
            stack=stack,
            domain=self._domain(),
            positions={},
            metres=False,
            probe=self._probe(H, W),
            bad_pixels=None if bad is None else bad.astype(bool),
            geometry=self._geometry(),
            counts=stack.key == PTYCHODUS_PATTERNS,
            scan_index=self._column("scan_index"),
            object_header=self._object_header(),
            npz=self._npz,
        )
        if product is None:
            source = dataclasses.replace(source, positions=self._position_pairs())
        else:
            source = _with_product(source, product, self._indexes(), self._notices)
        return dataclasses.replace(source, notices=tuple(self._notices))

    def _position_pairs(self) -> dict[tuple[str, str], np.ndarray]:
        positions = {}
        for pair in POSITION_PAIRS:
            columns = [self._column(name) for name in pair]
            if pair == POSITION_PAIRS[0] or any(column is not None for column in columns):
                positions[pair] = self._positions(pair, columns)
        return positions

    def _geometry(self) -> dict[str, float]:
        values = {name: self._scalar(name) for name in GEOMETRY}
        return {name: self._above_zero(name, float(value)) for name, value in values.items() if value is not None}

    def _object_header(self) -> ArrayHeader | None:
        header = self._headers.get("objectGuess")
        if header is not None and len(header.shape) == 3 and 0 not in header.shape and header.dtype.kind in "cf":
            self._notices.append(
                f"'objectGuess' is left out: {header.shape} has layers, and one object has (rows, columns)"
            )
            return None
        if header is not None:
            self._check("objectGuess", header, len(header.shape) == 2 and 0 not in header.shape)
        return header

    def _indexes(self) -> np.ndarray | None:
        """Return the pattern numbers that a file of ptychodus gives its patterns."""
        if "indexes" not in self._npz:
            return None
        header = self._npz.header("indexes")
        return self._npz.read("indexes") if len(header.shape) == 1 and header.dtype.kind in "iu" else None

    def _readable(self) -> dict[str, ArrayHeader]:
        """Read the headers of what the contract names; say what is left out."""
        named = load_contract().files["scan"].names
        if not {"diff3d", "diffraction"} & set(self._npz.keys):
            named = named | {PTYCHODUS_PATTERNS}
        headers, pickles, unknown = {}, [], []
        for key in self._npz.keys:
            try:
                header = self._npz.header(key)
            except DataContractError as err:
                if err.clause == "NPZ-02" and (key == METADATA or self._drop_pickles):
                    pickles.append(key)
                elif err.clause == "NPZ-02":
                    raise violation(
                        "NPZ-02",
                        err.found,
                        path=self._path,
                        key=key,
                        remedy="Leave such members out: `--drop-pickles`",
                    ) from err
                elif key in named:
                    raise
                else:
                    unknown.append(key)
                continue
            self._others[key] = header
            if key in named:
                headers[key] = header
            else:
                unknown.append(key)
        if pickles:
            self._notices.append(f"left out, because only unpickling could read them: {', '.join(pickles)}")
        if METADATA in pickles and (stated := stated_photons(self._npz)).nphotons is not None:
            self._notices.append(f"{METADATA!r} says the photon number; train with --nphotons {stated.nphotons:.12g}")
        if unknown := [key for key in unknown if key != "indexes" or PTYCHODUS_PATTERNS not in named]:
            self._notices.append(f"left out, because the contract does not know them: {', '.join(unknown)}")
        return headers

    @property
    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {key: (header.shape, header.dtype.kind) for key, header in self._others.items()}

    def _stack(self) -> Stack:
        key = self._patterns_key()
        header, axes = self._headers[key], self._axes
        shape, raster = header.shape, None
        positions = self._headers.get("xcoords")
        count = math.prod(positions.shape) if positions is not None and len(positions.shape) in (1, 2) else None
        if header.dtype.kind not in "fiu":
            raise violation("SCAN-03", f"dtype {header.dtype}", path=self._path, key=key)
        if axes is None and len(shape) == 3 and count is not None and shape[2] == count != shape[0]:
            raise violation(
                "SCAN-02",
                f"shape {shape} for {count} positions: the older order, with patterns along the last axis",
                path=self._path,
                key=key,
                remedy="Turn it: `--axes hwm`",
            )
        if len(shape) == 4 and axes in (None, "mhw") and shape[3] != 1 and not header.fortran_order:
            self._notices.append(f"patterns: a raster of {shape[0]} × {shape[1]} places, row by row")
            raster = (shape[0], shape[1])
            shape = (shape[0] * shape[1], *shape[2:])
        axes = axes or "mhw"
        try:
            M, H, W = frame_axes(shape, axes)
        except ValueError:
            singleton = len(shape) == 4 and shape[3] == 1
            remedy = "Drop the last axis: `--axes mhw1`" if singleton else of_frames(self._path, key, shape, adding)
            raise self._bad_shape(key, shape, f"axes {', '.join(axes)}", remedy) from None
        if axes == "hwm" and count == H != M:
            raise self._bad_shape(key, shape, f"{count} patterns along the last axis", "Leave --axes out.")
        if not (M and 2 <= H <= MAX_FRAME_PX and 2 <= W <= MAX_FRAME_PX):
            raise self._bad_shape(key, shape, "", "")
        # The content of an array in Fortran order is that of the reversed axes in C order.
        names = axes.removesuffix("1")
        names = names[::-1] if header.fortran_order else names
        return Stack(
            self._path,
            key,
            M,
            H,
            W,
            header.dtype,
            patterns_last=names[-1] == "m",
            columns_first=names.index("w") < names.index("h"),
            blocks=functools.partial(member_blocks, self._npz, key, header),
            raster=raster,
        )

    def _bad_shape(self, key: str, shape: tuple[int, ...], expected: str, remedy: str) -> DataContractError:
        return violation("SCAN-02", f"shape {shape}", path=self._path, key=key, expected=expected, remedy=remedy)

    def _patterns_key(self) -> str:
        names = (*load_contract().files["scan"].keys["diff3d"].names, PTYCHODUS_PATTERNS)
        there, chosen = [name for name in names if name in self._headers], self._patterns
        if not there or chosen not in (None, *there):
            present = ", ".join(self._npz.keys) or "nothing"
            raise violation(
                "SCAN-01",
                f"no such member; present: {present}",
                path=self._path,
                key=chosen or names[0],
                remedy=without_patterns(self._path, self._shapes, adding),
            )
        same = len({(d.crc32, d.content_bytes) for d in self._npz.digest() if d.key in there}) == 1
        if chosen is None and not same:
            raise violation(
                "SCAN-01",
                f"{' and '.join(map(repr, there))} with different content",
                path=self._path,
                key=there[0],
                remedy=f"Choose one: `--patterns {'` or `--patterns '.join(there)}`",
            )
        key = chosen or there[0]
        left_out = [name for name in there if name != key]
        if left_out:
            self._notices.append(f"left out, because {key!r} holds the patterns: {', '.join(left_out)}")
        if key != names[0]:
            self._notices.append(f"{key!r} is now {names[0]!r}")
        return str(key)

    def _domain(self) -> str | None:
        key = "measurement_domain"
        header = self._headers.get(key)
        if header is None:
            return None
        text = ""
        if header.shape == () and header.dtype.kind == "U" and header.content_bytes <= MAX_TEXT_BYTES:
            text = str(self._npz.read(key))
        if text in AMPLITUDE + INTENSITY:
            return text
        if self._any_domain:
            return None
        raise violation(
            "SCAN-05",
            f"{text!r}" if text else "no text",
            path=self._path,
            key=key,
            expected=f"one of {', '.join(AMPLITUDE + INTENSITY)}",
            remedy="Say what the patterns hold: `--from-intensity` or `--declare-amplitude`",
        )

    def _positions(self, pair: tuple[str, str], columns: list[np.ndarray | None]) -> np.ndarray:
        clause = load_contract().files["scan"].keys[pair[0]].clause
        for name, column in zip(pair, columns, strict=True):
            if column is None:
                present = ", ".join(self._npz.keys)
                remedy = without_positions(self._path, self._shapes, self._count, adding)
                found = f"no such member; present: {present}"
                raise violation(clause, found, path=self._path, key=name, remedy=remedy)
        x, y = cast(list[np.ndarray], columns)
        if len(x) != len(y):
            remedy = of_raster(len(x), len(y), self._path) if len(x) * len(y) == self._count else ""
            raise violation(
                clause, f"{len(y)} values for {len(x)} in {pair[0]!r}", path=self._path, key=pair[1], remedy=remedy
            )
        return np.stack([x, y], axis=1).astype(np.float64)

    def _probe(self, H: int, W: int) -> np.ndarray | None:
        header = self._headers.get("probeGuess")
        if header is None:
            return None
        axes = probe_axes(header.shape, H, W)
        self._check("probeGuess", header, axes is not None, f" for patterns of {H} × {W}")
        assert axes is not None
        if axes.modes_last and header.shape[2] == 2 and header.dtype.kind != "c":
            parts = "a['probeGuess'] = a['probeGuess'][..., 0] + 1j * a['probeGuess'][..., 1]"
            modes = "a['probeGuess'] = np.moveaxis(a['probeGuess'], -1, 0)"
            raise violation(
                "SCAN-08",
                f"shape {header.shape} of {header.dtype}: two modes, or real and imaginary part",
                path=self._path,
                key="probeGuess",
                remedy=f"If they are real and imaginary part: {rewriting(self._path, parts)}; if they are modes: "
                f"{rewriting(self._path, modes)}",
            )
        if axes.note:
            self._notices.append(f"'probeGuess': {axes.note}")
        probe = axes.arranged(self._npz.read("probeGuess"))
        return probe[0] if header.shape == (H, W, 1) else probe

    def _column(self, name: str) -> np.ndarray | None:
        """Return one number for each pattern; of a raster row by row."""
        header = self._headers.get(name)
        if header is None:
            return None
        self._check(name, header, len(header.shape) in (1, 2), " where one number for each pattern is needed")
        return self._npz.read(name).reshape(-1)

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        header = self._headers.get(name)
        if header is None:
            return None
        self._check(name, header, header.shape == shape, f" where {shape} is needed")
        return self._npz.read(name)

    def _scalar(self, name: str) -> np.ndarray | None:
        """Return one number, which other programs keep in arrays of (1,) or (1, 1) too."""
        header = self._headers.get(name)
        if header is None:
            return None
        self._check(name, header, math.prod(header.shape) == 1, " where one number is needed")
        return self._npz.read(name).reshape(())

    def _above_zero(self, name: str, number: float) -> float:
        if not 0 < number < math.inf:
            remedy = of_member(self._path, name, (), "", self._count, adding)
            raise violation("SCAN-12", f"{number}", path=self._path, key=name, remedy=remedy)
        return number

    def _check(self, name: str, header: ArrayHeader, fits: bool, needed: str = "") -> None:
        spec = load_contract().files["scan"].keys[name]
        if not fits or header.dtype.kind not in spec.kinds:
            found = f"shape {header.shape} of {header.dtype}{needed}"
            remedy = of_member(self._path, name, header.shape, header.dtype.kind, self._count, adding)
            raise violation(spec.clause, found, path=self._path, key=name, remedy=remedy)


def member_blocks(npz: NpzFile, key: str, header: ArrayHeader, block_bytes: int) -> Iterator[np.ndarray]:
    """Yield the content of a member as it lies in the file; the CRC-32 is checked at its end.

    The memory of a block is used again for the third one after it.

    Raises:
        DataContractError: NPZ-01.
    """
    left = header.content_bytes
    turn = itertools.cycle(np.empty((BUFFERS, min(block_bytes, left)), np.uint8))
    try:
        with zipfile.ZipFile(npz.path) as archive:
            (member,) = [info for info in archive.infolist() if info.filename == npz.stored_name(key)]
            with archive.open(member) as file:
                _fill(file, np.empty(header.start, np.uint8))
                while left:
                    block = next(turn)[:left]
                    _fill(file, block)
                    left -= len(block)
                    if not left and file.read(1):
                        raise zipfile.BadZipFile("content behind the array")
                    yield block
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as err:
        raise violation("NPZ-01", f"a damaged member ({err})", path=npz.path, key=key) from err


def _fill(file: IO[bytes], buffer: np.ndarray) -> None:
    filled = 0
    while filled < len(buffer):
        got = file.readinto(buffer[filled:].data)  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"{filled} bytes of {len(buffer)} are there")
        filled += got


def _with_product(source: Source, path: Path, indexes: np.ndarray | None, notices: list[str]) -> Source:
    """Take positions, geometry and probe from the product file of ptychodus, which has metres [clause PRODUCT-01]."""
    try:
        npz = NpzFile(path)
    except DataContractError as err:
        raise ConfigError(f"--positions-file {path}: {err.found}; it must be a product of ptychodus (.npz).") from err
    names = ("probe_position_x_m", "probe_position_y_m")
    missing = [name for name in names if name not in npz]
    if missing:
        raise ConfigError(f"--positions-file {path} has no {missing[0]!r}, as a product of ptychodus has.")
    x, y = (npz.read(name).reshape(-1).astype(np.float64) for name in names)
    if len(x) != len(y):
        raise ConfigError(f"--positions-file {path}: {len(x)} x for {len(y)} y.")
    positions = np.stack([x, y], axis=1)
    if indexes is not None and "probe_position_indexes" in npz:
        numbers = npz.read("probe_position_indexes").reshape(-1)
        place = {int(number): row for row, number in enumerate(numbers)}
        rows = [place.get(int(index)) for index in indexes]
        positions = np.array([positions[row] if row is not None else (math.nan, math.nan) for row in rows])
    geometry = dict(source.geometry)
    if "detector_object_distance_m" in npz:
        geometry.setdefault("detector_distance_m", _product_number(npz, "detector_object_distance_m"))
    if "probe_energy_eV" in npz:
        energy_j = _product_number(npz, "probe_energy_eV") * ELECTRONVOLT_J
        geometry.setdefault("wavelength_m", HC_J_M / energy_j if energy_j > 0 else math.nan)
    H, W = source.stack.rows_px, source.stack.columns_px
    if "probe_pixel_width_m" in npz and {"detector_distance_m", "wavelength_m"} <= set(geometry):
        side = _product_number(npz, "probe_pixel_width_m")
        pixel = object_pixel_m(geometry["wavelength_m"], geometry["detector_distance_m"], side, W)
        geometry.setdefault("detector_pixel_m", pixel)
    probe = source.probe
    axes = probe_axes(npz.header("probe").shape, H, W) if probe is None and "probe" in npz else None
    if axes is not None:
        probe = axes.arranged(npz.read("probe"))
    notices.append(f"positions{', probe' if axes is not None else ''} and geometry are those of {path.name}")
    # The product has the probe's positions on the object: minus the translation of the sample.
    return dataclasses.replace(
        source, positions={POSITION_PAIRS[0]: -positions}, metres=True, probe=probe, geometry=geometry
    )


def _product_number(npz: NpzFile, name: str) -> float:
    """Return one number of a product, which may lie in an array of one."""
    header = npz.header(name)
    if math.prod(header.shape) != 1 or header.dtype.kind not in "fiu":
        raise ConfigError(f"--positions-file {npz.path}: {name!r} is {header.shape} of {header.dtype}, and no number.")
    return float(npz.read(name).reshape(()))


def read_npz(
    path: Path,
    *,
    axes: Axes | None,
    patterns: str | None = None,
    drop_pickles: bool = False,
    any_domain: bool = False,
    rename: Mapping[str, str] = MappingProxyType({}),
    drop: Collection[str] = (),
    product: Path | None = None,
) -> Source:
    """Read headers and small members of a scan in an NPZ file, as far as it can be repaired.

    Args:
        path: the file.
        axes: how the axes of the patterns lie; None is patterns first.
        patterns: ``diff3d`` or ``diffraction``; None takes the one that is there.
        drop_pickles: leave out members that only unpickling could read.
        any_domain: accept a ``measurement_domain`` that says nothing known.
        rename: names of members → what they are read as.
        drop: members that are left out.
        product: a product file of ptychodus that has the positions.

    Raises:
        DataContractError: NPZ-… and SCAN-…, what is wrong and not repaired by these arguments.
        ConfigError: the product is none.
    """
    npz = NpzFile(path, rename=rename, drop=drop)
    reader = _NpzReader(npz, axes=axes, patterns=patterns, drop_pickles=drop_pickles, any_domain=any_domain)
    return reader.source(product)


@contextlib.contextmanager
def open_source(path: Path, wanted: Wanted) -> Iterator[Source]:
    """Open a scan in an HDF5 file; arguments and errors are those of ``open_beamline``."""
    with open_beamline(path, wanted) as scan:
        M, H, W = frame_axes(scan.shape, scan.axes)
        letters = scan.axes.removesuffix("1")
        yield Source(
            stack=Stack(
                path,
                scan.key,
                M,
                H,
                W,
                scan.dtype,
                patterns_last=letters[-1] == "m",
                columns_first=letters.index("w") < letters.index("h"),
                blocks=scan.blocks,
                raster=scan.raster,
            ),
            domain=None,
            positions={POSITION_PAIRS[0]: scan.translation_m},
            metres=True,
            states_units=scan.states_units,
            counts=True,
            probe=scan.probe,
            bad_pixels=scan.bad_pixels,
            geometry={key: scan.numbers[name] for key, name in GEOMETRY.items() if name in scan.numbers},
            dark=scan.dark,
            white=scan.white,
            limits=scan.limits,
            bits=scan.bits,
            beam_centre=scan.beam_centre,
            files=scan.files,
            notices=scan.notices,
        )
