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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import violation
from ptycho_torch.data.preparation import FramePreparation, object_pixel_m
from ptycho_torch.data.scan import PatternAudit, open_scan
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.files.folders import existing_folder, refuse_inputs
from ptycho_torch.files.hdf5_files import is_hdf5
from ptycho_torch.files.npz import listed
from ptycho_torch.files.npz_writer import NpzWriter, replacing
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.beamline_search import Wanted
from ptycho_torch.importer.pattern_choice import (
    DARK_SHARE,
    Choice,
    choose,
    mean_of_places,
    merged,
    places_of,
    with_light,
)
from ptycho_torch.importer.pattern_survey import Survey, corner_centred, find_gaps, survey
from ptycho_torch.importer.pattern_values import MOST_HIDDEN, ValueReader, ValueRules
from ptycho_torch.importer.raw_scan import (
    AMPLITUDE,
    CHUNK_BYTES,
    GEOMETRY,
    INTENSITY,
    POSITION_PAIRS,
    Passes,
    Source,
    Stack,
    member_blocks,
    open_source,
    read_npz,
)

_WIDEST_FRAMES = 1000
"""Positions without a unit that span more than this many frames are in no metres."""

_OFF_CENTRE_PX = 1.0

_HDF5_OPTIONS = (
    "data_path", "positions_path", "positions_units", "mask_path", "mask_bits", "dark_path", "white_path", "probe_path",
)  # fmt: skip
"""Options that speak of datasets of an HDF5 file."""


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
    """

    stack: Stack
    window_px: int
    first_row: int
    first_column: int
    preparation: FramePreparation | None

    @property
    def N(self) -> int:
        """Side of the prepared frames."""
        return self.window_px if self.preparation is None else self.preparation.settings.N

    @property
    def keeps_object_pixel(self) -> bool:
        """Whether the window is the whole frame, so that λ·z / (N·p) is what it was."""
        return self.window_px == self.stack.rows_px == self.stack.columns_px

    def reader(self, rules: ValueRules) -> ValueReader:
        """Return what brings the window of frames to amplitude."""
        return ValueReader(rules, *self._window)

    def prepared(self, amplitude: np.ndarray, bad_pixels: np.ndarray | None) -> np.ndarray:
        """Return (n, N, N) float32 of (n, window, window); bad pixels, (window, window), are 0."""
        if self.preparation is None:
            return amplitude
        frames = self.preparation.frames(amplitude)
        if bad_pixels is not None:
            frames[:, ~self.preparation.good_pixels(~bad_pixels)] = 0
        return frames

    def prepared_bad_pixels(self, bad_pixels: np.ndarray | None) -> np.ndarray | None:
        """Return (N, N) bool of (window, window), or None where there is no mask."""
        if bad_pixels is None or self.preparation is None:
            return bad_pixels
        return ~self.preparation.good_pixels(~bad_pixels)

    def windowed(self, bad_pixels: np.ndarray | None) -> np.ndarray | None:
        """Return (window, window) of a mask of the whole frame, or None where there is none."""
        return None if bad_pixels is None else bad_pixels[self._window]

    def positions(self, positions_px: np.ndarray, scale: float) -> np.ndarray:
        """Return (M, 2) in pixels of the prepared frames' object; x belongs to W and y to H of the file's frames."""
        window = np.array([self.window_px / self.stack.columns_px, self.window_px / self.stack.rows_px])
        return self.oriented(positions_px * window, scale)

    def oriented(self, positions_px: np.ndarray, scale: float) -> np.ndarray:
        """Return (M, 2) positions after only swapping, flipping and scaling."""
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


def plan_frames(source: Source, options: argparse.Namespace, centre: tuple[int, int] | None) -> Frames:
    """Decide which window of the frames is kept and what becomes of it.

    Frames that are not square are cut to the largest square about the beam centre that the file states.

    Args:
        source: the scan.
        options: of the command.
        centre: (row, column) of the zero frequency, or None for where the file has it, else (H // 2, W // 2).

    Raises:
        DataContractError: SCAN-02 or PREP-01, frames that the options do not bring to N × N.
        ConfigError: options that make no frames.
    """
    stack, b = source.stack, options.bin
    H, W = stack.rows_px, stack.columns_px
    crop, beam = options.crop, _beam_pixel(source)
    if centre is None and beam is not None and (crop is not None or H != W):
        centre = beam
    if crop is None and H != W and beam is not None:
        half = min(beam[0], H - beam[0], beam[1], W - beam[1])
        crop = 2 * (half // b) if half >= b else None
    if crop is None:
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
    N = H // b if crop is None else crop
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
    return Frames(stack, window, first_row, first_column, preparation)


def _beam_pixel(source: Source) -> tuple[int, int] | None:
    """Return the pixel of the direct beam, where the file states one inside the frame."""
    if source.beam_centre is None:
        return None
    row, column = (round(each) for each in source.beam_centre)
    inside = 0 < row < source.stack.rows_px and 0 < column < source.stack.columns_px
    return (row, column) if inside else None


def _say_beam(source: Source, options: argparse.Namespace, frames: Frames) -> None:
    """Say what became of the beam centre that the file states."""
    if source.beam_centre is None or options.centre is not None:
        return
    row, column = source.beam_centre
    where = f"the file has the beam centre at row {row:.1f}, column {column:.1f}"
    H, W = source.stack.rows_px, source.stack.columns_px
    if _beam_pixel(source) is None:
        _notice(f"{where}, outside of the frame: not used")
    elif frames.window_px < max(H, W):
        _notice(
            f"{where}: the {frames.window_px} × {frames.window_px} pixels around it are kept; else: --centre ROW,COLUMN"
        )
    elif max(abs(row - H // 2), abs(column - W // 2)) >= _OFF_CENTRE_PX:
        half = min(round(row), H - round(row), round(column), W - round(column))
        _notice(
            f"{where}, off the middle ({H // 2}, {W // 2}), and frames are kept whole; to cut them around it: --crop "
            f"{2 * half} or less"
        )


def centre_of_mass(found: Survey, stack: Stack) -> tuple[int, int]:
    """Return (row, column) of the centre of mass of the mean counts, to the nearest pixel.

    r̄ = Σ r·⟨counts⟩ / Σ ⟨counts⟩; bad pixels count as dark. A background draws it towards the middle of the frame.

    Raises:
        DataContractError: SCAN-04, no counts at all.
    """
    counts = found.counts
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
    if source.counts:
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
        refuse_inputs([target], source.files)
        for notice in source.notices:
            _notice(notice)
        outcome = _convert(source, options, target)
    size = target.stat().st_size
    print(f"{target}: {outcome.describe()}; {size} bytes: {', '.join(outcome.keys)}")  # noqa: T201
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
        with open_source(path, _wanted(options)) as source:
            yield source
        return
    for name in _HDF5_OPTIONS:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for HDF5 files, and {path} is none.")
    yield read_npz(
        path,
        axes=options.axes,
        patterns=options.patterns,
        drop_pickles=options.drop_pickles,
        any_domain=options.from_intensity or options.declare_amplitude,
        rename=dict(options.rename),
        drop=options.drop,
        product=options.positions_file,
    )


def _wanted(options: argparse.Namespace) -> Wanted:
    positions: Path | None = options.positions_file
    if positions is not None and not (positions.is_file() and is_hdf5(positions)):
        raise ConfigError(f"--positions-file {positions}: for an HDF5 scan it must be an HDF5 file, and it is none.")
    if len(options.positions_path or ()) > 2:
        raise ConfigError("--positions-path takes one dataset that holds x and y, or two: that of x and that of y.")
    return Wanted(
        data_paths=options.data_path or (),
        positions_paths=options.positions_path or (),
        positions_units=options.positions_units,
        positions_file=positions,
        mask_path=options.mask_path,
        mask_bits=options.mask_bits,
        dark_path=options.dark_path,
        white_path=options.white_path,
        probe_path=options.probe_path,
        axes=options.axes,
        given=[name for name in GEOMETRY.values() if getattr(options, name) is not None],
    )


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What the last line says.

    Attributes:
        N: side of the frames.
        patterns: how many were written.
        mean_counts: of a pattern.
        bad_pixels: how many, in the prepared frame.
        hidden_share: share of the counts that they hide.
        keys: of the new file.
    """

    N: int
    patterns: int
    mean_counts: float
    bad_pixels: int
    hidden_share: float
    keys: tuple[str, ...]

    def describe(self) -> str:
        """Return it as text."""
        bad = ""
        if self.bad_pixels:
            bad = f", bad pixels: {self.bad_pixels}, which hide {self.hidden_share:.2%} of the counts"
        return f"{self.patterns} patterns of {self.N} × {self.N} pixels, mean counts {self.mean_counts:.6g}{bad}"


def _convert(source: Source, options: argparse.Namespace, target: Path) -> _Outcome:
    """Write the new file."""
    mask = source.bad_pixels
    if options.bad_pixels:
        source = dataclasses.replace(source, bad_pixels=_with_bad_pixels(source, options.bad_pixels))
    from_intensity, domain = _domain(source, options)
    _refuse_idle(source, options, from_intensity)
    choice, without = choose(source, options.select, drop_nan=options.drop_nan_positions)
    if without:
        _notice(f"{without} patterns without a finite position are left out")
    geometry = _geometry(source, options)
    stack = source.stack
    _refuse_without_space(source, options, target, len(choice.numbers))
    with (
        replacing(target, overwrite=options.overwrite, check=functools.partial(_check_result, source)) as file,
        NpzWriter(file, compress=options.compress) as npz,
        stack.passes(target.parent) as all_passes,
    ):
        source, choice, passes, centre = _surveyed(source, options, choice, all_passes, from_intensity)
        frames = plan_frames(source, options, centre)
        _say_beam(source, options, frames)
        _refuse_nothing_left(source, frames, mask)
        positions = _positions(source, choice, options, frames, geometry)
        places = None
        if options.merge_repeats is not None:
            places = places_of(positions[POSITION_PAIRS[0]], choice.scan_index, options.merge_repeats)
            _notice(f"{len(places)} exposures at {places.max() + 1} places: those of a place are added")
        count = len(choice.numbers) if places is None else int(places.max()) + 1
        reader = frames.reader(_rules(source, options, choice, from_intensity))
        audit = _Audit(stack, domain)
        amplitudes = audit.watched(passes, frames, reader, len(choice.numbers), source)
        if places is not None:
            amplitudes = merged(amplitudes, places, frames.N, target.parent)
        with npz.stream("diff3d", (count, frames.N, frames.N), np.dtype(np.float32)) as write:
            _write_behind(amplitudes, write)
        window_bad, notices = reader.finish()
        for notice in notices:
            _notice(notice)
        bad = frames.prepared_bad_pixels(window_bad)
        _refuse_hiding(source, options, reader, window_bad, marked=mask is not None)
        index = choice.scan_index
        if places is not None:
            positions = {pair: mean_of_places(each, places) for pair, each in positions.items()}
            index = None if index is None else index[np.unique(places, return_index=True)[1]]
        small = _small(source, options, frames, geometry, domain, positions, bad, index)
        for key, array in small.items():
            npz.array(key, array)
        _copy_object(source, options, frames, npz)
    return _Outcome(
        frames.N,
        count,
        audit.total_counts / count,
        0 if bad is None else int(bad.sum()),
        reader.hidden_share,
        npz.keys,
    )


def _refuse_without_space(source: Source, options: argparse.Namespace, target: Path, count: int) -> None:
    """Raise where the disk has no space for the new file and what is needed on the way."""
    stack = source.stack
    frame_px = plan_frames(source, options, None if options.centre == "auto" else options.centre).N ** 2
    needed = 0 if options.compress else count * frame_px * 4
    needed += stack.total_bytes if stack.patterns_last else 0
    needed += 0 if options.merge_repeats is None else count * frame_px * 8
    free = shutil.disk_usage(existing_folder(target.parent)).free
    if needed > free:
        raise PtychoError(
            f"{target}: {needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free. Free some space, or "
            "choose another folder."
        )


def _surveyed(
    source: Source, options: argparse.Namespace, choice: Choice, all_passes: Passes, from_intensity: bool
) -> tuple[Source, Choice, Passes, tuple[int, int] | None]:
    """Look at all patterns first where an option asks for that; return what is known then, and the centre."""
    centre = None if options.centre == "auto" else options.centre
    marks = options.saturated not in (None, "keep")
    passes = choice.passes(all_passes)
    if from_intensity and source.stack.dtype.itemsize > 2 and options.saturated != "keep":
        gaps, passes = find_gaps(passes, source.bad_pixels)
        source = dataclasses.replace(source, gaps=gaps)
    if not (options.centre == "auto" or options.drop_dark or options.fftshift or marks):
        return source, choice, passes, centre
    shape = (source.stack.rows_px, source.stack.columns_px)
    rules = _rules(source, options, choice, from_intensity)
    bar = _bar(len(choice.numbers), "looking")
    found = survey(passes, shape, rules, options.saturated, bar)
    if options.drop_dark:
        choice = _with_light(choice, found)
    passes = choice.passes(all_passes)
    if options.fftshift:
        source, passes, found = _shifted(source, passes, found)
    if found.saturated.any():
        bad = found.saturated if source.bad_pixels is None else found.saturated | source.bad_pixels
        source = dataclasses.replace(source, bad_pixels=bad)
        _notice(f"{int(found.saturated.sum())} pixels have run over in some pattern: taken for bad")
    if options.centre == "auto":
        centre = centre_of_mass(found, source.stack)
        _notice(f"centre of mass of the mean counts: row {centre[0]}, column {centre[1]}")
    return source, choice, passes, centre


def _write_behind(amplitudes: Iterator[np.ndarray], write: Callable[[np.ndarray], None]) -> None:
    """Write each array in a thread while the next one is made."""
    with ThreadPoolExecutor(1, thread_name_prefix="write-patterns") as writer:
        written: Future[None] | None = None
        for amplitude in amplitudes:
            if written is not None:
                written.result()
            written = writer.submit(write, amplitude)
        if written is not None:
            written.result()


def _with_bad_pixels(source: Source, pixels: Sequence[tuple[int | None, int | None]]) -> np.ndarray:
    """Return (H, W) bool of the file's mask and these pixels; None stands for all rows, or all columns."""
    shape = source.stack.rows_px, source.stack.columns_px
    bad = np.zeros(shape, bool) if source.bad_pixels is None else source.bad_pixels.copy()
    for row, column in pixels:
        if (row or 0) >= shape[0] or (column or 0) >= shape[1]:
            raise ConfigError(f"--bad-pixels: {row},{column} lies outside frames of {shape[0]} × {shape[1]}.")
        bad[slice(None) if row is None else row, slice(None) if column is None else column] = True
    return bad


def _rules(source: Source, options: argparse.Namespace, choice: Choice, from_intensity: bool) -> ValueRules:
    return ValueRules(
        path=source.stack.path,
        key=source.stack.key,
        counts=from_intensity,
        numbers=choice.numbers,
        ranks=choice.ranks,
        bad_pixels=source.bad_pixels,
        gaps=source.gaps,
        dark=source.dark,
        white=source.white,
        limits=(-math.inf, math.inf) if options.saturated == "keep" else source.limits,
        bits=source.bits,
        keep_saturated=options.saturated == "keep",
        clip_negative=options.clip_negative,
    )


def _refuse_idle(source: Source, options: argparse.Namespace, from_intensity: bool) -> None:
    """Refuse options that can do nothing here, and amplitude where counts are needed."""
    if options.saturated == "auto" and source.stack.dtype.kind != "u" and source.bits is None:
        raise ConfigError(
            f"--saturated auto is for unsigned whole numbers, and {source.stack.key} is {source.stack.dtype}; give the "
            "value: --saturated VALUE"
        )
    if not from_intensity and (source.dark is not None or source.white is not None):
        raise ConfigError(
            "Dark frames and flat field belong to counts; leave them (--dark-path none), or the root is due."
        )


def _with_light(choice: Choice, found: Survey) -> Choice:
    """Leave out dark patterns, and say which."""
    light = with_light(found.totals)
    dark = choice.numbers[~light]
    numbers = f": {listed([str(number) for number in dark])}" if len(dark) else ""
    _notice(f"{len(dark)} patterns of less than {DARK_SHARE:.0%} of the counts are left out{numbers}")
    return choice.kept(light)


def _shifted(source: Source, passes: Passes, found: Survey) -> tuple[Source, Passes, Survey]:
    """Move the zero frequency from the corner to the middle, of what has it there."""
    patterns = corner_centred(found.counts)
    probe = source.probe is not None and corner_centred(_light(source.probe))
    if not patterns and not probe:
        raise ConfigError(
            f"--fftshift: neither the patterns of {source.stack.path} nor its probe are centred on the corner. Leave "
            "it out."
        )
    what = " and ".join(["patterns"] * patterns + ["probe"] * probe)
    _notice(f"centred on the corner, and shifted to the middle: {what}")

    def shift(frames: np.ndarray | None) -> np.ndarray | None:
        return None if frames is None else np.fft.fftshift(frames, axes=(-2, -1))

    if probe:
        source = dataclasses.replace(source, probe=shift(source.probe))
    if not patterns:
        return source, passes, found
    found = dataclasses.replace(found, counts=np.fft.fftshift(found.counts), saturated=np.fft.fftshift(found.saturated))

    def shifted() -> Iterator[np.ndarray]:
        for chunk in passes():
            yield np.fft.fftshift(chunk, axes=(1, 2))

    source = dataclasses.replace(
        source,
        bad_pixels=shift(source.bad_pixels),
        gaps=shift(source.gaps),
        dark=shift(source.dark),
        white=shift(source.white),
    )
    return source, shifted, found


def _light(probe: np.ndarray) -> np.ndarray:
    """Return (H, W) Σ |mode|²."""
    modes = np.abs(probe.reshape(-1, *probe.shape[-2:])).astype(np.float64)
    return np.asarray(np.square(modes).sum(axis=0))


class _Audit:
    """Holds what is written against the contract, as ``examine`` does, while it passes by."""

    def __init__(self, stack: Stack, domain: str | None) -> None:
        self._before = PatternAudit(stack.path, stack.key, domain)
        self._after = PatternAudit(stack.path, stack.key, domain)

    @property
    def total_counts(self) -> float:
        """Σ amplitude² of all patterns that were written."""
        return self._last.total_counts

    @property
    def _last(self) -> PatternAudit:
        return self._after if self._after.count else self._before

    def watched(
        self, passes: Passes, frames: Frames, reader: ValueReader, count: int, source: Source
    ) -> Iterator[np.ndarray]:
        """Yield (n, N, N) prepared amplitude; at the end all of it has been judged.

        Whole numbers, which counts are, are looked for before binning, whose roots are none.
        """
        first, window_bad = 0, frames.windowed(source.bad_pixels)
        looked_at = np.zeros((frames.N, frames.N))
        with _bar(count, "patterns") as bar:
            for chunk in passes():
                n = len(chunk)
                amplitude = reader.amplitude(first, chunk)
                reader.note_kept(float(self._before.update(first, amplitude).sum()))
                prepared = frames.prepared(amplitude, window_bad)
                if prepared is not amplitude:
                    self._after.update(first, prepared)
                looked_at += np.square(prepared[0], dtype=np.float64)
                yield prepared
                first += n
                bar.update(n)
        self._before.finish()
        if self._after.count:
            self._after.finish()
        if self._last.dark:
            _notice(f"{self._last.dark} of {count} patterns are dark; to leave them out: `--drop-dark`")
        if corner_centred(looked_at):
            _notice("the patterns look centred on the corner (FFT order): convert them again with `--fftshift`")
        if source.probe is not None and corner_centred(_light(source.probe)):
            _notice("the probe looks centred on the corner (FFT order): convert it again with `--fftshift`")


def _refuse_nothing_left(source: Source, frames: Frames, mask: np.ndarray | None) -> None:
    """Raise where no pixel of the window is good, and say what to do about the mask of the file, where that is why."""
    bad = frames.windowed(source.bad_pixels)
    if bad is None or not bad.all():
        return
    why = mask is not None and mask.all()
    raise violation(
        "SCAN-11",
        f"all {bad.size} pixels marked as bad",
        path=source.stack.path,
        key="bad_pixels",
        expected="pixels that are good",
        remedy="Mark fewer (--bad-pixels, --saturated), or keep more of the frame (--crop)." if not why
        else "Leave the mask out: `--drop bad_pixels`" if source.npz is not None
        else "If it marks good pixels: `--mask-bits zero`; to leave it: `--mask-path none`",
    )  # fmt: skip


def _refuse_hiding(
    source: Source, options: argparse.Namespace, reader: ValueReader, bad: np.ndarray | None, *, marked: bool
) -> None:
    """Raise where bad pixels hide more of the counts than they may without a word; ``marked``: by the file as well."""
    if bad is None or options.accept_mask or reader.hidden_share <= MOST_HIDDEN:
        return
    hdf5 = marked and source.npz is None
    inverted = "; if it marks good pixels: `--mask-bits zero`; to leave it: `--mask-path none`" if hdf5 else ""
    if not marked and options.saturated not in (None, "keep"):
        inverted = "; or take what has run over as it is: `--saturated keep`"
    raise violation(
        "SCAN-11",
        f"{int(bad.sum())} bad pixels that hide {reader.hidden_share:.1%} of the counts",
        path=source.stack.path,
        key="bad_pixels",
        expected=f"at most {MOST_HIDDEN:.0%}",
        remedy=f"If {'the mask is' if marked else 'they are'} right, say so: `--accept-mask`{inverted}",
    )


def _positions(
    source: Source, choice: Choice, options: argparse.Namespace, frames: Frames, geometry: Mapping[str, float]
) -> dict[tuple[str, str], np.ndarray]:
    """Return the positions of the patterns taken, in object pixels of the prepared frames."""
    scale = options.positions_scale
    if not source.metres:
        return {pair: frames.positions(stored, scale) for pair, stored in choice.positions.items()}
    missing = [f"--{name.replace('_', '-')}" for key, name in GEOMETRY.items() if key not in geometry]
    if missing:
        raise ConfigError(
            f"{source.stack.path}: positions are in metres, and the object pixel is not known; give "
            f"{' and '.join(f'{option} METRES' for option in missing)}"
        )
    found = {pair: metres_to_px(stored, frames, scale, **geometry) for pair, stored in choice.positions.items()}
    for places in found.values():
        extent = float(np.ptp(places, axis=0).max())
        if extent > _WIDEST_FRAMES * frames.N and not source.states_units:
            raise violation(
                "CXI-01",
                f"positions without a unit that span {extent / frames.N:.3g} frames, taken for metres",
                path=source.stack.path,
                expected="metres, or positions whose unit is stated",
                remedy="Say their unit, for example `--positions-units um` (or nm, mm, …)",
            )
    return found


def _small(
    source: Source,
    options: argparse.Namespace,
    frames: Frames,
    geometry: Mapping[str, float],
    domain: str | None,
    positions: Mapping[tuple[str, str], np.ndarray],
    bad: np.ndarray | None,
    scan_index: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return everything but patterns and object, prepared like the frames."""
    arrays: dict[str, np.ndarray] = {}
    for pair, places in positions.items():
        arrays |= dict(zip(pair, places.T, strict=True))
    if source.probe is not None:
        arrays["probeGuess"] = frames.probe(source.probe)
    if scan_index is not None:
        arrays["scan_index"] = scan_index
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


def _check_result(source: Source, result: Path) -> None:
    """Hold headers and small arrays of the new file against the contract; errors name the file they come from."""
    try:
        open_scan(result, named=source.stack.path)
    except DataContractError as err:
        if err.key != "probeGuess" or source.npz is not None:
            raise
        remedy = "Leave it out, and give a probe of these frames with --probe-dir: `--probe-path none`"
        raise violation(
            "SCAN-08", err.found, path=source.stack.path, key=err.key, expected=err.expected, remedy=remedy
        ) from err


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


def _bar(count: int, what: str) -> tqdm:
    return tqdm(total=count, desc=what, unit=" patterns", disable=None, leave=False)


def _notice(text: str) -> None:
    # Names of members come from the file, and may hold what a terminal obeys.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    print(f"notice: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own words
