"""One scan file checked against the data contract: headers first, then the small arrays, then the patterns as a stream.

``open_scan`` raises at the first broken clause; ``examine`` continues and reports them all. Both run the same checks.
Clauses SCAN-… and PROBE-… of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import Key, load_contract, shape_fits, violation
from ptycho_torch.data.photons import METADATA, PATTERNS_LOOKED_AT, StatedPhotons, are_counts, stated_photons
from ptycho_torch.data.preparation import object_pixel_m
from ptycho_torch.data.scan_arrays import Members, ScanArrays, ScanSource, open_members, path_of
from ptycho_torch.errors import DataContractError
from ptycho_torch.files import remedies
from ptycho_torch.files.npz import CHUNK_BYTES, ArrayHeader, NpzFile, listed

State = Literal["holds", "broken", "notice", "not judged"]

MAX_FRAME_PX = 8192
MAX_MODES = 64
MAX_TEXT_BYTES = 1024
MAX_POSITION_PX = 1e12
"""float64 then still knows a position to a thousandth of a pixel."""

_LEAST_AMPLITUDE, _LARGEST_AMPLITUDE = 1e-18, 1e17
_DISTINCT_COUNTS = 8
"""Different whole numbers in one pattern from which on a stack of whole numbers is taken for counts."""

_AMPLITUDE = ("amplitude", "normalized_amplitude")
_INTENSITY = ("intensity", "count_intensity")
_PIXELS_LOOKED_AT = 256
_SAMPLED_PATTERNS, _SAMPLED_PIXELS = 256, 2**22


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one clause.

    Attributes:
        clause: its id.
        state: ``holds``, ``broken``, ``notice`` (holds, and there is something to know), or ``not judged``.
        text: what was found.
        error: the error that ``open_scan`` raises, where it is broken.
    """

    clause: str
    state: State
    text: str = ""
    error: DataContractError | None = None


@dataclasses.dataclass(frozen=True)
class PatternStack:
    """The patterns of one scan file, whose header holds; they are read when they are asked for.

    Attributes:
        path: the file.
        npz: its members.
        key: ``diff3d`` or ``diffraction``.
        count: M.
        frame_px: N of the file.
        good_pixels: (N, N) bool, or None where all are good.
        declared_domain: ``amplitude``, ``intensity``, or None where the file does not say.
    """

    path: Path
    npz: Members
    key: str
    count: int
    frame_px: int
    good_pixels: np.ndarray | None = None
    declared_domain: str | None = None

    def audit(self) -> PatternAudit:
        """Return a fresh audit for these patterns."""
        half = self.npz.header(self.key).dtype.itemsize == 2
        whole_from = 2.0 ** np.finfo(np.float16 if half else np.float32).nmant
        return PatternAudit(self.path, self.key, self.declared_domain, whole_from)

    def chunks(
        self, audit: PatternAudit, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (number of the first pattern, (n, N, N) float32 amplitude, (n,) float64 energies), each checked.

        Bad pixels are 0. A chunk is good until the next one is drawn; its memory is then used again. A thread reads
        the next chunk while the caller works on this one.

        Raises:
            DataContractError: SCAN-04 or SCAN-05, or the file is damaged.
        """
        first = 0
        for chunk in read_ahead(self.npz.stream(self.key, chunk_bytes, depth=2)):
            with np.errstate(over="ignore", invalid="ignore"):
                amplitude = chunk.astype(np.float32, copy=False)
            if self.good_pixels is not None:
                amplitude[:, ~self.good_pixels] = 0
            yield first, amplitude, audit.update(first, amplitude)
            first += len(chunk)
        audit.finish()


def read_ahead(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Draw each chunk in a thread while the one before is in use; memory must not be used again at once."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-patterns") as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan file whose headers and small arrays hold.

    Attributes:
        stack: the patterns.
        positions_px: (M, 2) float64, (x, y).
        nominal_positions_px: the same before correction, or None.
        probe: (modes, N, N) complex64 as stored, or None.
        scan_index: (M,) int64.
        wavelength_m: λ, or None.
        detector_distance_m: z, or None.
        detector_pixel_m: p, or None.
        nphotons: mean counts of a pattern, where ``_metadata`` says it, or None.
    """

    stack: PatternStack
    positions_px: np.ndarray
    nominal_positions_px: np.ndarray | None
    probe: np.ndarray | None
    scan_index: np.ndarray
    wavelength_m: float | None = None
    detector_distance_m: float | None = None
    detector_pixel_m: float | None = None
    nphotons: float | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.stack.path

    @property
    def object_pixel_m(self) -> float | None:
        """λ·z / (N·p), side of an object pixel in metres, or None where the geometry is unknown."""
        if self.wavelength_m is None or self.detector_distance_m is None or self.detector_pixel_m is None:
            return None
        return object_pixel_m(self.wavelength_m, self.detector_distance_m, self.detector_pixel_m, self.stack.frame_px)


def chosen_positions(scan: Scan, settings: DataSettings) -> np.ndarray:
    """Return the (M, 2) positions that ``position_source`` chooses; corrected ones where no nominal ones are there."""
    if settings.position_source == "nominal" and scan.nominal_positions_px is not None:
        return scan.nominal_positions_px
    return scan.positions_px


@dataclasses.dataclass
class PatternAudit:
    """Checks a stream of patterns and gathers what is known when it ends [clauses SCAN-04 and SCAN-05].

    Attributes:
        path: the scan, for errors.
        key: the member, for errors.
        declared_domain: what the file says it holds, or None.
        whole_from: from here on every number of the type is whole, so that being whole says nothing.
        converting: whether ``convert-scan`` makes these patterns, so that options can be added to it.
        count: patterns seen.
        dark: patterns without a single count.
        largest: the largest amplitude.
        total_counts: Σ amplitude² over all patterns.
    """

    path: Path
    key: str
    declared_domain: str | None = None
    whole_from: float = 2.0**23
    converting: bool = False
    count: int = 0
    dark: int = 0
    largest: float = 0.0
    total_counts: float = 0.0
    _whole: bool = True
    _distinct: int = 0

    def update(self, first: int, amplitude: np.ndarray) -> np.ndarray:
        """Check (n, N, N) float32 patterns, the first of which has this number; return their (n,) energies.

        Raises:
            DataContractError: SCAN-04.
        """
        values = amplitude.reshape(len(amplitude), -1)
        energies: np.ndarray = np.einsum("mp,mp->m", values, values, dtype=np.float64)
        highest = values.max(axis=1)
        least, largest = float(values.min()), float(highest.max())
        # Infinity and NaN reach the energies.
        if not np.isfinite(energies).all() or least < 0 or largest > _LARGEST_AMPLITUDE:
            raise self._bad_value(first, amplitude)
        if self._whole and self.declared_domain is None:
            self._whole = bool((values == np.floor(values)).all())
            self._count_distinct(values, highest)
        self.count += len(amplitude)
        self.dark += int((highest == 0).sum())
        self.largest = max(self.largest, largest)
        self.total_counts += float(energies.sum())
        return energies

    @property
    def _mending(self) -> remedies.Mending:
        return remedies.adding if self.converting else functools.partial(remedies.converting, self.path)

    def finish(self) -> None:
        """Check what only the whole stack can tell.

        Raises:
            DataContractError: SCAN-04 or SCAN-05.
        """
        if self.largest < _LEAST_AMPLITUDE:
            raise violation(
                "SCAN-04",
                f"amplitudes of at most {self.largest:.3g}",
                path=self.path,
                key=self.key,
                remedy=remedies.of_faint(self.path, self.key, self.largest),
            )
        if self.declared_domain is None and self._whole and self._distinct >= _DISTINCT_COUNTS:
            raise violation(
                "SCAN-05",
                f"only whole numbers, up to {self.largest:.0f}, as counts are",
                path=self.path,
                key=self.key,
                remedy=remedies.of_counts(self._mending),
            )

    def _count_distinct(self, values: np.ndarray, highest: np.ndarray) -> None:
        """Look for one pattern that holds enough different whole numbers; the first in a stack of counts does."""
        for number in np.flatnonzero(highest >= _DISTINCT_COUNTS - 1):
            if not self._whole or self._distinct >= _DISTINCT_COUNTS:
                return
            telling = values[number][values[number] < self.whole_from]
            self._distinct = max(self._distinct, len(np.unique(telling)))

    def _bad_value(self, first: int, amplitude: np.ndarray) -> DataContractError:
        bad = ~(np.isfinite(amplitude) & (amplitude >= 0) & (amplitude <= _LARGEST_AMPLITUDE))
        number, row, column = (int(index) for index in np.argwhere(bad)[0])
        return violation(
            "SCAN-04",
            f"{amplitude[number, row, column]:.6g} at row {row}, column {column} of pattern {first + number}",
            path=self.path,
            key=self.key,
            remedy=remedies.of_values(first, bad, self._mending),
        )


class _Examiner:
    """Runs the checks of one scan. Strict, it raises the first broken clause; else it notes what it finds."""

    def __init__(self, source: ScanSource, strict: bool, named: Path | None = None) -> None:
        self.path, self._strict = path_of(source) if named is None else named, strict
        self._source = source
        # What convert-scan reads back was made by a command, to which options can be added; arrays are no file yet.
        file = None if isinstance(source, ScanArrays) else self.path
        self._mending = remedies.adding if named is not None else functools.partial(remedies.converting, file)
        self._members: remedies.Shapes = {}
        self.findings: dict[str, Finding] = {}
        self.keys: Mapping[str, Key] = load_contract().files["scan"].keys
        self.judged: set[str] = set()
        self._letters: dict[str, int] = {}
        self._photons = StatedPhotons(None)

    def broken(self, error: DataContractError) -> None:
        if self._strict:
            raise error
        assert error.clause is not None
        # The first break of a clause stands; the rest follows from it as a rule.
        known = self.findings.get(error.clause)
        if known is None or known.state != "broken":
            self.findings[error.clause] = Finding(error.clause, "broken", str(error), error)

    def note(self, clause: str, text: str, state: State = "notice") -> None:
        known = self.findings.get(clause)
        if known is None:
            self.findings[clause] = Finding(clause, state, text)
        elif known.state == "notice":
            self.findings[clause] = dataclasses.replace(known, text=f"{known.text}; {text}")

    def check(
        self, clause: str, condition: bool, found: str, *, key: str, expected: str = "", remedy: str = ""
    ) -> bool:
        if not condition:
            self.broken(violation(clause, found, path=self.path, key=key, expected=expected, remedy=remedy))
        return condition

    def run(self) -> tuple[PatternStack | None, Scan | None]:
        """Return what can be read: the patterns where their header holds, and the scan where nothing is broken."""
        try:
            npz = open_members(self._source)
        except DataContractError as err:
            self.broken(err)
            return None, None
        headers = self._headers(npz)
        self._members = {key: (header.shape, header.dtype.kind) for key, header in headers.items()}
        self._judged("NPZ-01", "NPZ-02", "NPZ-03", "SCAN-01", "SCAN-13")
        patterns_key = self._patterns_key(npz, headers)
        if patterns_key is None:
            return None, None
        declared = self._declared_domain(npz, headers)
        self._judged("SCAN-02", "SCAN-03")
        if not self._patterns_header(headers[patterns_key], patterns_key, headers, declared):
            return None, None
        count, frame_px = headers[patterns_key].shape[:2]
        self._letters = {"M": count, "N": frame_px}
        self._judged(*(self.keys[name].clause for name in self.keys if name not in ("diff3d", "measurement_domain")))
        positions = self._positions(npz, headers, ("xcoords", "ycoords"), required=True)
        nominal = self._positions(npz, headers, ("xcoords_start", "ycoords_start"), required=False)
        probe = self._probe(npz, headers, frame_px)
        self._shape_alone(headers, "objectGuess")
        scan_index = self._scan_index(npz, headers)
        good_pixels = self._good_pixels(npz, headers)
        geometry = {name: self._length(npz, headers, name) for name in _GEOMETRY}
        if self.findings.get("SCAN-03", _HOLDS).state == "broken":
            return None, None
        stack = PatternStack(self.path, npz, patterns_key, count, frame_px, good_pixels, declared)
        if positions is None or any(finding.state == "broken" for finding in self.findings.values()):
            return stack, None
        return stack, Scan(
            stack=stack,
            positions_px=positions,
            nominal_positions_px=nominal,
            probe=probe,
            scan_index=np.zeros(count, np.int64) if scan_index is None else scan_index,
            nphotons=self._photons.nphotons,
            **geometry,
        )

    def _judged(self, *clauses: str) -> None:
        """Say that these clauses are about to be judged; one that finds nothing holds."""
        self.judged.update(clauses)

    def _headers(self, npz: Members) -> dict[str, ArrayHeader]:
        """Read the header of every member that the contract names; of the others, see that they are no pickles.

        ``_metadata``, which is one, is read for what it says of photons.
        """
        headers: dict[str, ArrayHeader] = {}
        named = load_contract().files["scan"].names
        unread = []
        for key in npz.keys:
            if key == METADATA:
                self._photons = stated_photons(npz)
                self.note("NPZ-02", self._photons.note)
                continue
            try:
                headers[key] = npz.header(key)
            except DataContractError as err:
                if key in named or err.clause == "NPZ-02":
                    self.broken(err)
                    continue
            if key not in named:
                unread.append(key)
        if unread:
            self.note("SCAN-13", f"not read: {listed(unread)}")
        return headers

    def _patterns_key(self, npz: Members, headers: Mapping[str, ArrayHeader]) -> str | None:
        names = self.keys["diff3d"].names
        there = [name for name in names if name in npz]
        if not there:
            found = f"neither of these; present: {listed(npz.keys)}"
            remedy = remedies.without_patterns(self.path, self._members, self._mending)
            self.broken(violation("SCAN-01", found, path=self.path, key="diff3d", remedy=remedy))
            return None
        if len(there) > 1:
            same = len({(d.crc32, d.content_bytes) for d in npz.digest() if d.key in there}) == 1
            self.check(
                "SCAN-01",
                same,
                f"{' and '.join(map(repr, there))} with different content",
                key=there[0],
                remedy=f"Keep one of them: {self._mending('--patterns', there[0])} or "
                f"{self._mending('--patterns', there[1])}",
            )
            if same:
                self.note("SCAN-01", f"{' and '.join(map(repr, there))} are the same")
        elif there[0] != "diff3d":
            self.note("SCAN-01", f"the older name {there[0]!r}")
        return there[0] if there[0] in headers else None

    def _patterns_header(
        self, header: ArrayHeader, key: str, headers: Mapping[str, ArrayHeader], declared: str | None
    ) -> bool:
        shape, kind = header.shape, header.dtype.kind
        counts = remedies.of_counts(self._mending)
        if kind in "iu":
            found = f"{header.dtype}, a whole-number type, as counts are"
            self.check("SCAN-05", declared == "amplitude", found, key=key, remedy=counts)
        else:
            remedy = remedies.of_type(self.path, key, kind)
            self.check("SCAN-03", kind == "f", f"dtype {header.dtype}", key=key, remedy=remedy)
        found = "intensity, as 'measurement_domain' says"
        self.check("SCAN-05", declared != "intensity", found, key=key, remedy=counts)
        positions = headers.get("xcoords")
        count = positions.shape[0] if positions is not None and len(positions.shape) == 1 else None
        singleton = len(shape) == 4 and shape[3] == 1
        if len(shape) == 3 and count is not None and shape[2] == count != shape[0]:
            return self.check(
                "SCAN-02",
                False,
                f"shape {shape} for {count} positions: the older order, with patterns along the last axis",
                key=key,
                remedy=f"Turn it: {self._mending('--axes', 'hwm')}",
            )
        if singleton:
            return self.check(
                "SCAN-02",
                False,
                f"shape {shape} with a channel axis at the end",
                key=key,
                remedy=f"Drop it: {self._mending('--axes', 'mhw1')}",
            )
        square = len(shape) == 3 and shape[0] >= 1 and shape[1] == shape[2] and 2 <= shape[1] <= MAX_FRAME_PX
        remedy = remedies.of_frames(self.path, key, shape, self._mending)
        return self.check("SCAN-02", square, f"shape {shape}", key=key, remedy=remedy)

    def _declared_domain(self, npz: Members, headers: Mapping[str, ArrayHeader]) -> str | None:
        key = "measurement_domain"
        if key not in npz:
            return None
        header = headers.get(key)
        if header is None:
            return None
        text, found = "", f"shape {header.shape} of {header.dtype}"
        if header.shape == () and header.dtype.kind == "U" and header.content_bytes <= MAX_TEXT_BYTES:
            stored = self._read(npz, key)
            if stored is None:
                return None
            text = str(stored)
            found = f"{text!r}"
        self.check(
            "SCAN-05",
            text in _AMPLITUDE + _INTENSITY,
            found,
            key=key,
            expected=f"one of {', '.join(_AMPLITUDE + _INTENSITY)}",
            remedy=remedies.of_counts(self._mending),
        )
        if text in _AMPLITUDE:
            return "amplitude"
        return "intensity" if text in _INTENSITY else None

    def _read(self, npz: Members, key: str) -> np.ndarray | None:
        try:
            return npz.read(key)
        except DataContractError as err:
            self.broken(err)
            return None

    def _shape_alone(self, headers: Mapping[str, ArrayHeader], name: str) -> bool:
        """Check shape and kind of an optional member; True where it is there and both fit."""
        spec, header = self.keys[name], headers.get(name)
        if header is None:
            return False
        fits = any(shape_fits(shape, header.shape, self._letters) for shape in spec.shapes)
        letters = ", ".join(f"{letter} = {number}" for letter, number in self._letters.items())
        found = f"shape {header.shape} of {header.dtype} ({letters})"
        remedy = remedies.of_member(self.path, name, header.shape, header.dtype.kind, self._letters["M"], self._mending)
        return self.check(spec.clause, fits and header.dtype.kind in spec.kinds, found, key=name, remedy=remedy)

    def _without(self, name: str) -> str:
        """Return what to do about a member whose values are wrong."""
        return remedies.of_member(self.path, name, (), "", self._letters["M"], self._mending)

    def _array(self, npz: Members, headers: Mapping[str, ArrayHeader], name: str) -> np.ndarray | None:
        return self._read(npz, name) if self._shape_alone(headers, name) else None

    def _positions(
        self, npz: Members, headers: Mapping[str, ArrayHeader], names: tuple[str, str], *, required: bool
    ) -> np.ndarray | None:
        clause = self.keys[names[0]].clause
        there = [name for name in names if name in npz]
        if not there and not required:
            return None
        columns = []
        for name in names:
            if name not in npz:
                found = f"no such member; present: {listed(npz.keys)}"
                remedy = remedies.without_positions(self.path, self._members, self._letters["M"], self._mending)
                if not required:
                    remedy = self._without(names[0]) if there == [names[0]] else self._without(names[1])
                self.broken(violation(clause, found, path=self.path, key=name, remedy=remedy))
                continue
            values = self._array(npz, headers, name)
            if values is None:
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(np.float64)
            wrong = np.flatnonzero(~(np.abs(values) <= MAX_POSITION_PX))
            found = f"{values[wrong[0]]} at pattern {wrong[0]}" if len(wrong) else ""
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            remedy = self._without(name)
            if required and 0 < len(wrong) < len(values):
                keep = remedies.kept(wrong.tolist(), len(values))
                remedy = f"Leave such patterns out: {self._mending('--select', keep)}"
            if self.check(clause, not len(wrong), found + more, key=name, remedy=remedy):
                columns.append(values)
        if len(columns) < 2:
            return None
        positions = np.stack(columns, axis=1)
        # Sorting takes long where there are many, and a strict examiner hands no notices on.
        places = len(positions) if self._strict else len(np.unique(positions, axis=0))
        if places < len(positions):
            self.note(clause, f"{len(positions)} patterns at {places} different places")
        return positions

    def _probe(self, npz: Members, headers: Mapping[str, ArrayHeader], frame_px: int) -> np.ndarray | None:
        values = self._array(npz, headers, "probeGuess")
        if values is None:
            if "probeGuess" not in npz:
                self.note("SCAN-08", "no probe in this file; a probe folder or the caller must give one")
            return None
        try:
            return probe_modes(values, frame_px, "SCAN-08", self.path, "probeGuess", self._without("probeGuess"))
        except DataContractError as err:
            self.broken(err)
            return None

    def _scan_index(self, npz: Members, headers: Mapping[str, ArrayHeader]) -> np.ndarray | None:
        values = self._array(npz, headers, "scan_index")
        if values is None:
            return None
        largest = int(values.max())
        fits = self.check(
            "SCAN-10",
            largest <= np.iinfo(np.int64).max,
            f"{largest}, beyond int64",
            key="scan_index",
            remedy=self._without("scan_index"),
        )
        return values.astype(np.int64) if fits else None

    def _good_pixels(self, npz: Members, headers: Mapping[str, ArrayHeader]) -> np.ndarray | None:
        values = self._array(npz, headers, "bad_pixels")
        if values is None:
            return None
        flags = np.isin(values, (0, 1)).all()
        bad = values.astype(bool)
        found = f"{int(bad.sum())} bad pixels of {bad.size}" if flags else "other values than 0 and 1"
        remedy = self._without("bad_pixels")
        if not self.check("SCAN-11", bool(flags) and not bad.all(), found, key="bad_pixels", remedy=remedy):
            return None
        if not bad.any():
            return None
        self.note("SCAN-11", found)
        return np.asarray(~bad)

    def _length(self, npz: Members, headers: Mapping[str, ArrayHeader], name: str) -> float | None:
        values = self._array(npz, headers, name)
        if values is None:
            return None
        number = float(values)
        remedy = self._without(name)
        return number if self.check("SCAN-12", 0 < number < math.inf, f"{number}", key=name, remedy=remedy) else None


_HOLDS = Finding("", "holds")
_GEOMETRY = ("wavelength_m", "detector_distance_m", "detector_pixel_m")


def probe_modes(values: np.ndarray, frame_px: int, clause: str, path: Path, key: str, remedy: str = "") -> np.ndarray:
    """Return a probe as (modes, N, N) complex64, whether it was stored or given.

    Args:
        values: (N, N), (N, N, 1) or (modes, N, N).
        frame_px: N.
        clause: id of the clause that a wrong probe breaks.
        path: the file, for errors.
        key: its member, for errors.
        remedy: for errors; empty is the clause's.

    Raises:
        DataContractError: the clause given.
    """
    if values.shape == (frame_px, frame_px, 1):
        values = values[..., 0]
    modes = values.reshape(-1, frame_px, frame_px)
    if len(modes) > MAX_MODES:
        raise violation(
            clause, f"{len(modes)} modes", path=path, key=key, expected=f"at most {MAX_MODES}", remedy=remedy
        )
    with np.errstate(over="ignore", invalid="ignore"):
        modes = modes.astype(np.complex64)
    if not np.isfinite(modes).all():
        raise violation(clause, "NaN, infinity, or a number beyond float32", path=path, key=key, remedy=remedy)
    disk = central_disk(frame_px)
    # Frames below 4 × 4 are smaller than the disk's least radius, and so have only themselves to judge.
    if not modes[:, disk if disk.any() else ~disk].any():
        found = f"zeros within {frame_px // 4} pixels of the centre"
        raise violation(clause, found, path=path, key=key, remedy=remedy)
    return modes


def central_disk(N: int) -> np.ndarray:
    """Return where the probe has to have light, (N, N) bool: ``ptycho_torch.data.probe.disk_mask`` without PyTorch.

    >>> int(central_disk(4).sum())
    4
    """
    position = np.arange(N) - N / 2 + 0.5
    squared_radius = np.square(position)[:, None] + np.square(position)
    inside: np.ndarray = squared_radius < (N // 4) ** 2
    return inside


def open_scan(source: ScanSource, *, named: Path | None = None) -> Scan:
    """Open a scan, a file or arrays; every clause that headers and small arrays can break is checked.

    Patterns are checked while they are read: ``scan.stack.chunks(scan.stack.audit())``.

    Args:
        source: the scan.
        named: the file that errors are about, where this one was made from it.

    Raises:
        DataContractError: names file, key, clause, what was found, what was expected, and what to do.
    """
    _, scan = _Examiner(source, strict=True, named=named).run()
    assert scan is not None  # Strict, the examiner raises in place of returning None.
    return scan


@dataclasses.dataclass(frozen=True)
class PatternSample:
    """Some patterns of a scan, evenly spread, and how bright it is.

    Attributes:
        amplitude: (n, N, N) float32; bad pixels are 0.
        energies: (m,) Σ amplitude² of these patterns or of all.
        energy_numbers: (m,) which patterns those are.
    """

    amplitude: np.ndarray
    energies: np.ndarray
    energy_numbers: np.ndarray

    @functools.cached_property
    def mean_counts(self) -> np.ndarray:
        """(N, N) mean of amplitude²."""
        return np.asarray(np.square(self.amplitude).mean(axis=0, dtype=np.float64))

    @functools.cached_property
    def lit(self) -> np.ndarray:
        """(n,) whether a pattern holds any count."""
        return np.asarray(self.amplitude.any(axis=(1, 2)))


def sample_numbers(count: int, frame_px: int) -> np.ndarray:
    """Return the numbers of at most 256 patterns, evenly spread, whose pixels memory holds easily.

    >>> sample_numbers(5, 64)
    array([0, 1, 2, 3, 4])
    """
    n = min(count, _SAMPLED_PATTERNS, max(_SAMPLED_PIXELS // frame_px**2, PATTERNS_LOOKED_AT))
    return np.linspace(0, count - 1, n).round().astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Examination:
    """What became of every clause of one scan file.

    Attributes:
        path: the file.
        findings: one for each clause about NPZ files and scans, in the order of the contract.
        scan: the open scan where all clauses hold, else None.
        mean_counts: (N, N) float64 mean of amplitude², or None where the patterns could not be read.
        mean_energy: mean Σ amplitude² of a pattern, or None.
        are_counts: whether the patterns look like roots of counts, or None where that is not known.
        sample: some of the patterns, or None where they could not be read.
    """

    path: Path
    findings: tuple[Finding, ...]
    scan: Scan | None
    mean_counts: np.ndarray | None = None
    mean_energy: float | None = None
    are_counts: bool | None = None
    sample: PatternSample | None = None

    @property
    def passed(self) -> bool:
        """Whether every clause holds."""
        return self.scan is not None


def examine(path: Path) -> Examination:
    """Hold one scan file against every clause, patterns included, and report all that is found."""
    path = Path(path)
    examiner = _Examiner(path, strict=False)
    stack, scan = examiner.run()
    mean_counts, mean_energy, counts, sample = None, None, None, None
    if stack is not None:
        examiner.judged.update(("SCAN-04", "SCAN-05"))
        sums = np.zeros((stack.frame_px, stack.frame_px))
        numbers = sample_numbers(stack.count, stack.frame_px)
        pixel_step = -(-stack.frame_px // _PIXELS_LOOKED_AT)
        looked_at, energies = [], []
        try:
            audit = stack.audit()
            for first, amplitude, energy in stack.chunks(audit):
                sums += np.square(amplitude).sum(axis=0, dtype=np.float64)
                looked_at.append(amplitude[_within(numbers, first, len(amplitude))])
                energies.append(energy)
        except DataContractError as err:
            examiner.broken(err)
            scan = None
        else:
            mean_counts, mean_energy = sums / audit.count, audit.total_counts / audit.count
            sample = PatternSample(np.concatenate(looked_at), np.concatenate(energies), np.arange(stack.count))
            step = max(1, len(numbers) // PATTERNS_LOOKED_AT)
            counts = are_counts(sample.amplitude[::step, ::pixel_step, ::pixel_step])
            if audit.dark:
                examiner.note("SCAN-04", f"{audit.dark} of {audit.count} patterns are dark")
    findings = []
    for clause in load_contract().of("npz", "scan"):
        if clause.id != "SCAN-14":
            silent: State = "holds" if clause.id in examiner.judged else "not judged"
            findings.append(examiner.findings.get(clause.id, Finding(clause.id, silent)))
    return Examination(path, tuple(findings), scan, mean_counts, mean_energy, counts, sample)


def _within(numbers: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return which of ascending numbers lie among ``count`` from ``first`` on, counted from there."""
    low, high = np.searchsorted(numbers, (first, first + count))
    return numbers[low:high] - first


def sample_patterns(scan: Scan) -> PatternSample:
    """Read some patterns of a scan, whose values are known to hold; of stored members no others are read.

    Raises:
        DataContractError: NPZ-…, the file is damaged.
    """
    stack = scan.stack
    numbers = sample_numbers(stack.count, stack.frame_px)
    amplitude = stack.npz.rows(stack.key, numbers).astype(np.float32, copy=False)
    if stack.good_pixels is not None:
        amplitude[:, ~stack.good_pixels] = 0
    return PatternSample(amplitude, np.square(amplitude, dtype=np.float64).sum(axis=(1, 2)), numbers)


def read_probe(path: Path, frame_px: int) -> np.ndarray:
    """Read a probe file.

    Args:
        path: an NPZ file with ``probe``, or only ``probeGuess``.
        frame_px: N of the scan that it is for.

    Returns:
        (modes, N, N) complex64.

    Raises:
        DataContractError: NPZ-… or PROBE-01.
    """
    npz, spec = NpzFile(path), load_contract().files["probe"].keys["probe"]
    key = next((name for name in spec.names if name in npz), None)
    if key is None:
        raise violation("PROBE-01", f"no such member; present: {listed(npz.keys)}", path=path, key="probe")
    header = npz.header(key)
    fits = any(shape_fits(shape, header.shape, {"N": frame_px}) for shape in spec.shapes)
    if not fits or header.dtype.kind not in spec.kinds:
        found = f"shape {header.shape} of {header.dtype} for frames of {frame_px} × {frame_px}"
        raise violation("PROBE-01", found, path=path, key=key)
    return probe_modes(npz.read(key), frame_px, "PROBE-01", path, key)
