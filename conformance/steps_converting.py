"""``convert-scan``: stacks whose axes lie in any order, and frames, masks, probes and positions on their way."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conformance.hypotheses import Hypothesis, spatial_mistakes
from conformance.oracle_data import Preparation, oriented
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32, Arrays, named, small_files

ROWS_PX, COLUMNS_PX, PATTERNS = 14, 10, 9


@dataclass(frozen=True)
class Conversion:
    """A way to convert a scan.

    Attributes:
        arguments: of the command.
        axes: of the patterns in the file.
        order: of every array of the file, ``C`` or ``F``.
        dtype: of the patterns in the file.
        counts: whether they are counts.
        N: side of the frames that come out.
        bins: side of the square of pixels that are added up.
        centre_px: row and column of the zero frequency; (-1, -1) is the centre of mass of the counts.
        transpose: of the frames.
        flip: of the frames.
        mirror: of the positions: x and y swapped, x mirrored, y mirrored.
        stretch: of the positions.
        given_m: wavelength, distance and detector pixel, in place of those of the file.
    """

    arguments: str
    axes: str = "mhw"
    order: str = "C"
    dtype: str = "<f4"
    counts: bool = False
    N: int = 8
    bins: int = 1
    centre_px: tuple[int, int] = (ROWS_PX // 2, COLUMNS_PX // 2)
    transpose: bool = False
    flip: str = "none"
    mirror: tuple[bool, bool, bool] = (False, False, False)
    stretch: float = 1.0
    given_m: tuple[float, float, float] | None = None


CONVERSIONS: Mapping[str, Conversion] = {
    "patterns first": Conversion("--crop 8"),
    "patterns first, Fortran order": Conversion("--crop 8", order="F"),
    "patterns last": Conversion("--crop 8 --axes hwm", "hwm"),
    "patterns last, Fortran order": Conversion("--crop 8 --axes hwm --compress", "hwm", "F", ">f8"),
    "a channel": Conversion("--crop 8 --axes mhw1", "mhw1", dtype="<f2"),
    "a channel, Fortran order": Conversion("--crop 8 --axes mhw1", "mhw1", "F"),
    "counts, binned and turned": Conversion(
        "--from-intensity --crop 4 --bin 2 --centre 8,5 --transpose --flip vertical --positions-scale 1.5 "
        "--positions-swap-xy --positions-flip-y",
        dtype="<u2", counts=True, N=4, bins=2, centre_px=(8, 5), transpose=True, flip="vertical",
        mirror=(True, False, True), stretch=1.5,
    ),
    "counts, mirrored, Fortran order": Conversion(
        "--from-intensity --crop 6 --centre 6,4 --flip horizontal --positions-flip-x",
        order="F", dtype=">i4", counts=True, N=6, centre_px=(6, 4), flip="horizontal", mirror=(False, True, False),
    ),
    "about the centre of mass": Conversion(
        "--from-intensity --crop 6 --centre auto --wavelength-m 2e-10 --distance-m 3 --pixel-m 6e-5",
        dtype="<u4", counts=True, N=6, centre_px=(-1, -1), given_m=(2e-10, 3.0, 6e-5),
    ),
}  # fmt: skip


def _draw() -> Arrays:
    """Draw whole counts and the small members of a scan whose frames are not square."""
    rng = np.random.default_rng(43)
    frame = (ROWS_PX, COLUMNS_PX)
    real, imaginary = rng.standard_normal((2, 2, *frame))
    bad = np.zeros(frame, np.uint8)
    bad[7, 4] = bad[5, 6] = 1
    rows, columns = np.indices(frame)
    x, y, x_start, y_start = rng.uniform(20, 90, (4, PATTERNS))
    return {
        # Brighter towards one corner: their centre is not the middle, and a window around it lies in the frame.
        "diff3d": rng.poisson(rng.gamma(2.0, 30.0, (PATTERNS, *frame)) * 1.07 ** (rows - 2 * columns)),
        "xcoords": x, "ycoords": y, "xcoords_start": x_start, "ycoords_start": y_start,
        "probeGuess": real + 1j * imaginary,
        "bad_pixels": bad,
        "scan_index": rng.integers(0, 5, PATTERNS),
        "wavelength_m": np.array(1.5e-10), "detector_distance_m": np.array(2.0), "detector_pixel_m": np.array(5e-5),
    }  # fmt: skip


def _stored(members: Arrays, how: Conversion) -> Arrays:
    """Return the members as the file has them."""
    counts = members["diff3d"]
    frames = (counts if how.counts else np.sqrt(counts)).astype(how.dtype)
    frames = {"mhw": frames, "hwm": np.moveaxis(frames, 0, -1), "mhw1": frames[..., None]}[how.axes]
    lie = np.asfortranarray if how.order == "F" else np.ascontiguousarray
    return {name: lie(array) if array.ndim else array for name, array in {**members, "diff3d": frames}.items()}


def _wanted(members: Arrays, how: Conversion) -> Arrays:
    """Return the members of the new file by what the options say (PREP-01)."""
    window = how.N * how.bins
    prepared = Preparation(frame_px=window, N=how.N, bins=how.bins)
    counts, bad = members["diff3d"], members["bad_pixels"].astype(bool)
    centre = how.centre_px if min(how.centre_px) >= 0 else _centre_of_mass(np.where(bad, 0, counts))
    rows, columns = (slice(each - window // 2, each - window // 2 + window) for each in centre)
    amplitude = np.sqrt(counts) if how.counts else np.sqrt(counts).astype(how.dtype).astype(np.float64)
    amplitude = np.where(bad, 0.0, amplitude)[:, rows, columns]
    good = prepared.good_pixels(~bad[rows, columns])

    def turned(images: np.ndarray) -> np.ndarray:
        return oriented(images, transpose=how.transpose, flip=how.flip)

    swap, x, y = how.mirror
    keys = ("wavelength_m", "detector_distance_m", "detector_pixel_m")
    wavelength, distance, pixel = how.given_m or tuple(float(members[key]) for key in keys)
    found = {
        # A binned pixel of which one is bad is bad, and so it holds nothing.
        "diff3d": turned(np.where(good, prepared.amplitude(amplitude), 0.0)),
        "bad_pixels": turned(~good).astype(np.uint8),
        "probeGuess": prepared.probe(members["probeGuess"]),
        "scan_index": members["scan_index"],
        "wavelength_m": np.array(wavelength),
        "detector_distance_m": np.array(distance),
        "detector_pixel_m": np.array(pixel * how.bins),
    }
    for suffix in ("", "_start"):
        places = np.stack([members[f"xcoords{suffix}"] / COLUMNS_PX, members[f"ycoords{suffix}"] / ROWS_PX], axis=1)
        moved = prepared.positions_px(places * window, swap_xy=swap, flip_x=x, flip_y=y) * how.stretch
        found |= {f"xcoords{suffix}": moved[:, 0], f"ycoords{suffix}": moved[:, 1]}
    return found


def _centre_of_mass(counts: np.ndarray) -> tuple[int, int]:
    """Return the row and column nearest to the centre of mass of all frames."""
    row, column = (int(np.rint((counts * each).sum() / counts.sum())) for each in np.indices(counts.shape)[1:])
    return row, column


def _convert(_: StepBench) -> Outcome:
    """Convert a scan in every way."""
    members, given = _draw(), {}
    with small_files() as root:
        for number, (name, how) in enumerate(CONVERSIONS.items()):
            given[name] = _converted(root / f"{number}.npz", _stored(members, how), how.arguments.split())
    right = {name: _wanted(members, how) for name, how in CONVERSIONS.items()}
    return Outcome(named(right), named(given), FLOAT32, lambda: _mistakes(members, right))


def _converted(path: Path, members: Arrays, arguments: list[str]) -> Arrays:
    """Return the numbers of what the command makes of a scan."""
    from ptycho_torch import command_convert, convert

    np.savez(path, **members)  # type: ignore[arg-type]
    new = path.with_name(f"new_{path.name}")
    parser = argparse.ArgumentParser()
    command_convert.add_arguments(parser)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert.run(parser.parse_args([str(path), "-o", str(new), *arguments]))
    with np.load(new, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if file[key].dtype.kind != "U"}


def _mistakes(members: Arrays, right: Mapping[str, Arrays]) -> Iterator[Hypothesis]:
    def where(name: str, wrong: Mapping[str, Arrays]) -> Hypothesis:
        return Hypothesis(name, named({what: each | wrong.get(what, {}) for what, each in right.items()}))

    def fortran(what: str) -> bool:
        return CONVERSIONS[what].order == "F"

    transposed = {what: _misread(members, CONVERSIONS[what]) for what in right if fortran(what)}
    yield where("Fortran order of the patterns not heeded", transposed)
    yield where("Fortran order of patterns that lie first not heeded", _only(transposed, first=True))
    yield where("Fortran order of patterns that lie last not heeded", _only(transposed, first=False))
    yield where(
        "positions keep the pixels of the whole frame",
        {
            what: {
                key: each[key] * size / (CONVERSIONS[what].N * CONVERSIONS[what].bins)
                for key, size in _sides(CONVERSIONS[what])
            }
            for what, each in right.items()
        },
    )
    squared = {**members, "diff3d": members["diff3d"] ** 2}
    rootless = {what: _wanted(squared, how) for what, how in CONVERSIONS.items() if how.counts}
    yield where("root of the counts missing", rootless)
    yield where("mask inverted", {what: {"bad_pixels": 1 - each["bad_pixels"]} for what, each in right.items()})
    bins = {what: how.bins for what, how in CONVERSIONS.items()}
    pixel = {what: {"detector_pixel_m": each["detector_pixel_m"] / bins[what]} for what, each in right.items()}
    yield where("the detector pixel is not widened by the bin", pixel)
    for key in ("diff3d", "probeGuess", "bad_pixels"):
        for name, change in spatial_mistakes(-2, -1):
            yield where(name, {what: {key: change(each[key])} for what, each in right.items()})


def _sides(how: Conversion) -> Iterator[tuple[str, int]]:
    """Yield each key of positions with the side of the frame that it belongs to."""
    for suffix in ("", "_start"):
        x, y = (ROWS_PX, COLUMNS_PX) if how.mirror[0] else (COLUMNS_PX, ROWS_PX)
        yield f"xcoords{suffix}", x
        yield f"ycoords{suffix}", y


def _misread(members: Arrays, how: Conversion) -> Arrays:
    """Return the patterns of a file in Fortran order whose columns are taken for rows."""
    counts = members["diff3d"].swapaxes(1, 2).reshape(members["diff3d"].shape)
    return {"diff3d": _wanted({**members, "diff3d": counts}, how)["diff3d"]}


def _only(wrong: Mapping[str, Arrays], *, first: bool) -> dict[str, Arrays]:
    """Return those whose content runs over the patterns slowest: in Fortran order, those whose axes end with them."""
    return {what: each for what, each in wrong.items() if (CONVERSIONS[what].axes == "hwm") == first}


CONVERTING: tuple[Step, ...] = (Step("data.convert", ("STEP-DATA", "SCAN-02", "PREP-01"), _convert),)
