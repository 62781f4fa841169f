"""``ptycho-torch convert-scan``: repair a scan, or import a CXI/HDF5 file, so that every clause of the contract holds.

Patterns go from file to file as a stream, twice where their centre is sought, so a scan may be larger than the memory.
What comes out holds every clause NPZ-… and SCAN-… of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from ptycho_torch.amend import amended
from ptycho_torch.config_params import DataSettings
from ptycho_torch.contract import violation
from ptycho_torch.cxi import is_hdf5
from ptycho_torch.errors import ConfigError, PtychoError
from ptycho_torch.folders import existing_folder
from ptycho_torch.npz_writer import NpzWriter, replacing
from ptycho_torch.preparation import FramePreparation, object_pixel_m
from ptycho_torch.raw_scan import (
    AMPLITUDE,
    CHUNK_BYTES,
    GEOMETRY,
    INTENSITY,
    Passes,
    Source,
    Stack,
    member_blocks,
    open_cxi,
    read_npz,
)
from ptycho_torch.remedies import adding, of_values
from ptycho_torch.scan import PatternAudit, open_scan

_LARGEST_AMPLITUDE = 1e17


# ------------------------------------------------------------------------------------------- what is made of it


@dataclasses.dataclass(frozen=True)
class Frames:
    """From the frames of a file to N × N amplitude [clause PREP-01].

    The window may be cut out of frames that are not square; from then on it is ``FramePreparation`` of the window.

    Attributes:
        stack: the patterns.
        window_px: side of the window that is kept, N·b.
        first_row: of the window.
        first_column: of the window.
        preparation: of the window; None leaves it as it is.
        from_intensity: whether the root is taken.
        bad_pixels: (H, W) bool, or None.
    """

    stack: Stack
    window_px: int
    first_row: int
    first_column: int
    preparation: FramePreparation | None
    from_intensity: bool
    bad_pixels: np.ndarray | None

    @property
    def N(self) -> int:
        """Side of the prepared frames."""
        return self.window_px if self.preparation is None else self.preparation.settings.N

    @property
    def keeps_object_pixel(self) -> bool:
        """Whether the window is the whole frame, so that λ·z / (N·p) is what it was."""
        return self.window_px == self.stack.rows_px == self.stack.columns_px

    def amplitude(self, first: int, frames: np.ndarray) -> np.ndarray:
        """Return (n, window, window) float32 of (n, H, W) as stored, as ``amplitude_of`` does."""
        return amplitude_of(self, first, frames, *self._window)

    def prepared(self, amplitude: np.ndarray) -> np.ndarray:
        """Return (n, N, N) float32 of (n, window, window); bad pixels are 0."""
        if self.preparation is None:
            return amplitude
        frames = self.preparation.frames(amplitude)
        bad = self.prepared_bad_pixels()
        if bad is not None:
            frames[:, bad] = 0
        return frames

    def prepared_bad_pixels(self) -> np.ndarray | None:
        """Return (N, N) bool, or None where the file has no mask."""
        if self.bad_pixels is None:
            return None
        bad = self.bad_pixels[self._window]
        return bad if self.preparation is None else ~self.preparation.good_pixels(~bad)

    def positions(self, positions_px: np.ndarray, scale: float) -> np.ndarray:
        """Return (M, 2) in pixels of the prepared frames' object; x belongs to W and y to H of the file's frames."""
        window = np.array([self.window_px / self.stack.columns_px, self.window_px / self.stack.rows_px])
        return self.oriented(positions_px * window, scale)

    def oriented(self, positions_px: np.ndarray, scale: float) -> np.ndarray:
        """Return (M, 2) positions after swapping, flipping and scaling alone."""
        if self.preparation is not None:
            positions_px = self.preparation.positions(positions_px)
        return positions_px * scale

    def probe(self, probe: np.ndarray) -> np.ndarray:
        """Return (N, N) or (modes, N, N) complex64 of a probe for the file's frames.

        The far field is cut to the window about its zero frequency, and so the probe gets coarser; the factor
        window/√(H·W) keeps the amplitude on each detector pixel.
        """
        H, W, window = self.stack.rows_px, self.stack.columns_px, self.window_px
        modes = probe.reshape(-1, H, W)
        if not self.keeps_object_pixel:
            far_field = np.fft.fftshift(np.fft.fft2(modes.astype(np.complex128)), axes=(-2, -1))
            row, column = H // 2 - window // 2, W // 2 - window // 2
            cut = far_field[:, row : row + window, column : column + window]
            modes = np.fft.ifft2(np.fft.ifftshift(cut, axes=(-2, -1))) * (window / math.sqrt(H * W))
        if self.preparation is not None:
            modes = self.preparation.probe(modes)
        with np.errstate(over="ignore", invalid="ignore"):
            modes = modes.astype(np.complex64)
        return modes.reshape(*probe.shape[:-2], self.N, self.N)

    @property
    def _window(self) -> tuple[slice, slice]:
        return (
            slice(self.first_row, self.first_row + self.window_px),
            slice(self.first_column, self.first_column + self.window_px),
        )


def plan_frames(
    source: Source, options: argparse.Namespace, centre: tuple[int, int] | None, *, from_intensity: bool
) -> Frames:
    """Decide which window of the frames is kept and what becomes of it.

    Args:
        source: the scan.
        options: of the command.
        centre: (row, column) of the zero frequency, or None for (H // 2, W // 2).
        from_intensity: whether the root is taken.

    Raises:
        DataContractError: SCAN-02 or PREP-01, frames that the options do not bring to N × N.
        ConfigError: options that make no frames.
    """
    stack, b = source.stack, options.bin
    H, W = stack.rows_px, stack.columns_px
    if options.crop is None:
        if H != W:
            raise violation(
                "SCAN-02",
                f"frames of {H} × {W} pixels",
                path=stack.path,
                key=stack.key,
                remedy=f"Keep a square around the centre: {adding('--crop', str(min(H, W) // (2 * b) * 2))}",
            )
        if H % b:
            raise violation(
                "PREP-01",
                f"frames of {H} × {W} pixels for --bin {b}",
                path=stack.path,
                expected=f"a multiple of {b}",
                remedy=f"Cut them as well: {adding('--crop', str(H // (2 * b) * 2))}",
            )
    N = H // b if options.crop is None else options.crop
    window = N * b
    row, column = centre or (H // 2, W // 2)
    first_row, first_column = row - window // 2, column - window // 2
    if min(first_row, first_column) < 0 or first_row + window > H or first_column + window > W:
        raise violation(
            "PREP-01",
            f"a window of {window} × {window} pixels around row {row}, column {column} of frames of {H} × {W}",
            path=stack.path,
            expected="a window inside the frame",
            remedy="Lower --crop or --bin, or correct --centre.",
        )
    orientation = {
        "detector_transpose": options.transpose,
        "positions_swap_xy": options.positions_swap_xy,
        "positions_flip_x": options.positions_flip_x,
        "positions_flip_y": options.positions_flip_y,
    }
    preparation = None
    if b > 1 or options.flip or any(orientation.values()):
        if N % 2:
            raise ConfigError(
                f"Frames of {N} × {N} pixels cannot be turned or binned; cut them to an even side: --crop."
            )
        preparation = FramePreparation(
            window, DataSettings(N=N, detector_bin=b, detector_flip=options.flip or "none", **orientation), stack.path
        )
    return Frames(stack, window, first_row, first_column, preparation, from_intensity, source.bad_pixels)


def amplitude_of(frames: Frames, first: int, stored: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return float32 amplitude of a part of some frames as stored: bad pixels 0, the root taken where it is due.

    amplitude = √counts

    Args:
        frames: what is known of them.
        first: number of the first pattern, for errors.
        stored: (n, H, W) real numbers.
        rows: of the part.
        columns: of the part.

    Raises:
        DataContractError: SCAN-04 for a value on a good pixel that is no amplitude, or no intensity.
    """
    # float16 could not even be compared with the bounds.
    dtype = np.dtype(np.float32) if stored.dtype.itemsize == 2 and stored.dtype.kind == "f" else stored.dtype
    values = np.array(stored[:, rows, columns], dtype=dtype.newbyteorder("="), order="C")
    if frames.bad_pixels is not None:
        values[:, frames.bad_pixels[rows, columns]] = 0
    largest = _LARGEST_AMPLITUDE**2 if frames.from_intensity else _LARGEST_AMPLITUDE
    # A minimum or maximum that is NaN compares as False.
    if not (values.min() >= 0 and values.max() <= largest):
        wrong = ~((values >= 0) & (values <= largest))
        number, row, column = (int(index) for index in np.argwhere(wrong)[0])
        place = f"row {row + rows.start}, column {column + columns.start} of pattern {first + number}"
        raise violation(
            "SCAN-04",
            f"{values[number, row, column]:.6g} at {place}",
            path=frames.stack.path,
            key=frames.stack.key,
            expected="finite counts ≥ 0" if frames.from_intensity else "",
            remedy=of_values(first, _in_frame(wrong, frames.stack, rows, columns), adding),
        )
    if not frames.from_intensity:
        return values.astype(np.float32, copy=False)
    # Whole numbers of more than 16 bits and float64 are more than float32 holds before the root is taken.
    small = values.dtype == np.float32 or values.dtype.itemsize <= 2
    return np.sqrt(values, dtype=np.float32 if small else np.float64).astype(np.float32, copy=False)


def _in_frame(part: np.ndarray, stack: Stack, rows: slice, columns: slice) -> np.ndarray:
    """Return (n, H, W) bool of a part of the frames; the rest is False."""
    whole = np.zeros((len(part), stack.rows_px, stack.columns_px), bool)
    whole[:, rows, columns] = part
    return whole


def centre_of_mass(passes: Passes, frames: Frames) -> tuple[int, int]:
    """Return (row, column) of the centre of mass of the mean counts, to the nearest pixel.

    r̄ = Σ r·⟨counts⟩ / Σ ⟨counts⟩; bad pixels count as dark. A background draws it towards the middle of the frame.

    Args:
        passes: starts a pass over the patterns.
        frames: what is known of them; their window is not used.

    Raises:
        DataContractError: SCAN-04, as ``amplitude_of``, or no counts at all.
    """
    stack = frames.stack
    counts, first = np.zeros((stack.rows_px, stack.columns_px)), 0
    with _bar(stack, "centre") as bar:
        for chunk in passes():
            values = amplitude_of(frames, first, chunk, slice(0, stack.rows_px), slice(0, stack.columns_px))
            counts += np.square(values, out=values).sum(axis=0, dtype=np.float64)
            first += len(chunk)
            bar.update(len(chunk))
    total = counts.sum()
    if not total > 0:
        raise violation("SCAN-04", "no counts at all", path=stack.path, key=stack.key)
    row = counts.sum(axis=1) @ np.arange(stack.rows_px) / total
    column = counts.sum(axis=0) @ np.arange(stack.columns_px) / total
    return round(float(row)), round(float(column))


def _domain(source: Source, options: argparse.Namespace) -> tuple[bool, str | None]:
    """Return whether the root is taken, and what the new file says of its patterns."""
    stack, said = source.stack, source.domain
    if options.from_intensity:
        if said in AMPLITUDE:
            raise ConfigError(
                f"{stack.path}: 'measurement_domain' says {said}, so the root was taken already; leave "
                "--from-intensity out."
            )
        return True, AMPLITUDE[0]
    if options.declare_amplitude:
        if said in INTENSITY:
            _notice(f"'measurement_domain' said {said} and is now amplitude, as you say")
        return False, said if said in AMPLITUDE else AMPLITUDE[0]
    if source.metres:
        # CXI patterns are intensity by definition.
        return True, AMPLITUDE[0]
    if said in INTENSITY or (said is None and stack.dtype.kind in "iu"):
        found = (
            f"{said}, as 'measurement_domain' says" if said else f"{stack.dtype}, a whole-number type, as counts are"
        )
        raise violation(
            "SCAN-05",
            found,
            path=stack.path,
            key=stack.key,
            remedy="Take the root: `--from-intensity`; if it is amplitude, say so: `--declare-amplitude`",
        )
    return False, said


# -------------------------------------------------------------------------------------------------- the command


def run(options: argparse.Namespace) -> int:
    """Convert one file; return 0. On any error nothing is left of the new file.

    Raises:
        DataContractError: what no option repairs, or what the options leave broken.
        ConfigError: options that contradict each other or the file.
        PtychoError: no space on the disk.
    """
    target: Path = options.output
    with _ended_in_order(), _opened(options) as source:
        for notice in source.notices:
            _notice(notice)
        count, N, keys = _convert(source, options, target)
    size = target.stat().st_size
    print(f"{target}: {count} patterns of {N} × {N} pixels, {size} bytes: {', '.join(keys)}")  # noqa: T201
    return 0


@contextlib.contextmanager
def _opened(options: argparse.Namespace) -> Iterator[Source]:
    """Open the file that is to be converted, whatever it is."""
    path: Path = options.source
    if path.is_file() and is_hdf5(path):
        if options.patterns is not None:
            raise ConfigError("--patterns is for NPZ files; --data-path names the patterns in an HDF5 file.")
        if options.rename or options.drop:
            raise ConfigError("--rename and --drop are for NPZ files; --data-path names the patterns in an HDF5 file.")
        paths = {name: getattr(options, name) for name in ("data_path", "positions_path")}
        given = [name for name in GEOMETRY.values() if getattr(options, name) is not None]
        with open_cxi(path, axes=options.axes, given=given, **paths) as source:
            yield source
        return
    for name in ("data_path", "positions_path"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for HDF5 files, and {path} is none.")
    yield read_npz(
        path,
        axes=options.axes,
        patterns=options.patterns,
        drop_pickles=options.drop_pickles,
        rename=dict(options.rename),
        drop=options.drop,
        any_length=bool(options.select),
        any_domain=options.from_intensity or options.declare_amplitude,
    )


def _convert(source: Source, options: argparse.Namespace, target: Path) -> tuple[int, int, tuple[str, ...]]:
    """Write the new file; return M, N and the keys in it."""
    from_intensity, domain = _domain(source, options)
    told = len(source.notices)
    source = amended(source, options, existing_folder(target.parent), from_intensity=from_intensity)
    for notice in source.notices[told:]:
        _notice(notice)
    stack = source.stack
    centre = None if options.centre == "auto" else options.centre
    frames = plan_frames(source, options, centre, from_intensity=from_intensity)
    geometry = _geometry(source, options)
    needed = 0 if options.compress else stack.count * frames.N**2 * 4
    needed += stack.total_bytes if stack.patterns_last else 0
    free = shutil.disk_usage(existing_folder(target.parent)).free
    if needed > free:
        raise PtychoError(
            f"{target}: {needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free. Free some space, or "
            "choose another folder."
        )
    with (
        replacing(target, overwrite=options.overwrite, check=functools.partial(_check_result, stack.path)) as file,
        NpzWriter(file, compress=options.compress) as npz,
        stack.passes(target.parent) as passes,
    ):
        if options.centre == "auto":
            centre = centre_of_mass(passes, frames)
            _notice(f"centre of mass of the mean counts: row {centre[0]}, column {centre[1]}")
            frames = plan_frames(source, options, centre, from_intensity=from_intensity)
        with npz.stream("diff3d", (stack.count, frames.N, frames.N), np.dtype(np.float32)) as write:
            for amplitude in _audited(passes, frames, domain):
                write(amplitude)
        for key, array in _small(source, options, frames, geometry, domain).items():
            npz.array(key, array)
        _copy_object(source, options, frames, npz)
    return stack.count, frames.N, npz.keys


def _audited(passes: Passes, frames: Frames, domain: str | None) -> Iterator[np.ndarray]:
    """Yield (n, N, N) prepared amplitude; at the end all of it has been judged as ``examine`` does.

    Whole numbers, which counts are, are looked for before binning, whose roots are none.
    """
    stack = frames.stack
    before = PatternAudit(stack.path, stack.key, domain, converting=True)
    after = PatternAudit(stack.path, stack.key, domain, converting=True)
    first = 0
    with _bar(stack, "patterns") as bar:
        for chunk in passes():
            amplitude = frames.amplitude(first, chunk)
            before.update(first, amplitude)
            prepared = frames.prepared(amplitude)
            if prepared is not amplitude:
                after.update(first, prepared)
            yield prepared
            first += len(chunk)
            bar.update(len(chunk))
    before.finish()
    if after.count:
        after.finish()
    dark = (after if after.count else before).dark
    if dark:
        _notice(f"{dark} of {stack.count} patterns are dark")


def _small(
    source: Source,
    options: argparse.Namespace,
    frames: Frames,
    geometry: Mapping[str, float],
    domain: str | None,
) -> dict[str, np.ndarray]:
    """Return everything but patterns and object, prepared like the frames."""
    arrays: dict[str, np.ndarray] = {}
    scale = options.positions_scale
    for pair, stored in source.positions.items():
        if source.metres:
            positions = metres_to_px(stored, frames, scale, **geometry)
        else:
            positions = frames.positions(stored, scale)
        arrays |= dict(zip(pair, positions.T, strict=True))
    if source.probe is not None:
        arrays["probeGuess"] = frames.probe(source.probe)
    if source.scan_index is not None:
        arrays["scan_index"] = source.scan_index
    bad = frames.prepared_bad_pixels()
    if bad is not None:
        arrays["bad_pixels"] = bad.astype(np.uint8)
    if domain is not None:
        arrays["measurement_domain"] = np.array(domain)
    for key, metres in geometry.items():
        arrays[key] = np.array(metres * options.bin if key == "detector_pixel_m" else metres)
    return arrays


def metres_to_px(
    translation_m: np.ndarray,
    frames: Frames,
    scale: float,
    *,
    wavelength_m: float,
    detector_distance_m: float,
    detector_pixel_m: float,
) -> np.ndarray:
    """Return positions of the probe in object pixels, of translations of the sample.

    position = −translation / dx, dx = λ·z / (W·p)   [clause CXI-01; W·p is the width of the kept window]

    The probe stands still and the sample moves, so in the frame of the object the probe moves the other way. Positions
    are then swapped, flipped and scaled as asked for, and shifted so that the smallest x and y are N/2: the first
    patch begins at the object's first pixel.

    Args:
        translation_m: (M, 2), x with columns and y with rows.
        frames: the plan.
        scale: factor on the positions.
        wavelength_m: λ.
        detector_distance_m: z.
        detector_pixel_m: p, before binning.
    """
    pixel_m = object_pixel_m(wavelength_m, detector_distance_m, detector_pixel_m, frames.window_px)
    positions = frames.oriented(-translation_m / pixel_m, scale)
    return np.asarray(positions - positions.min(axis=0) + frames.N / 2)


def _geometry(source: Source, options: argparse.Namespace) -> dict[str, float]:
    """Return λ, z and unbinned p as the options or the file have them."""
    geometry = dict(source.geometry)
    for key, name in GEOMETRY.items():
        given = getattr(options, name)
        if given is None:
            continue
        if key in geometry and geometry[key] != given:
            _notice(f"{key} is {given:.6g} as you say, in place of the file's {geometry[key]:.6g}")
        geometry[key] = given
    return {key: geometry[key] for key in GEOMETRY if key in geometry}


def _copy_object(source: Source, options: argparse.Namespace, frames: Frames, npz: NpzWriter) -> None:
    header = source.object_header
    if header is None or source.npz is None:
        return
    moved = options.positions_swap_xy or options.positions_flip_x or options.positions_flip_y
    if not frames.keeps_object_pixel or moved or options.positions_scale != 1:
        _notice("'objectGuess' is left out: it has the pixels and positions of the old file")
        return
    with npz.stream("objectGuess", header.shape, header.dtype, fortran_order=header.fortran_order) as write:
        for block in member_blocks(source.npz, "objectGuess", header, CHUNK_BYTES):
            write(block)


def _check_result(source: Path, result: Path) -> None:
    """Hold headers and small arrays of the new file against the contract; errors name the file they come from."""
    open_scan(result, named=source)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let a request to end the process unwind it, so that nothing is left of the new file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bar(stack: Stack, what: str) -> tqdm:
    return tqdm(total=stack.count, desc=what, unit=" patterns", disable=None, leave=False)


def _notice(text: str) -> None:
    # Names of members come from the file, and may hold what a terminal obeys.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    print(f"notice: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own words
