"""What looks wrong in a scan that holds every clause: one function for all commands that read scans.

A hint is never an error by itself, for the data alone cannot prove it. But a scan with a hint of a grave kind is not
trained on until the user accepts it. Hints are cheap: they take the small arrays of a scan and a few of its patterns.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

import numpy as np
from scipy.ndimage import maximum_filter, median_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ptycho_torch.config_params import DataSettings, GraveHint, TrainingSettings
from ptycho_torch.data.grouping import group_scan
from ptycho_torch.data.photons import are_counts
from ptycho_torch.data.preparation import flip_about_zero_frequency, median_step
from ptycho_torch.data.scan import PatternSample, Scan, chosen_positions, open_scan, sample_numbers
from ptycho_torch.data.scan_arrays import ScanSource
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.files.remedies import Mending, converting, kept, pixels
from ptycho_torch.importer.orientation import OrientationHint
from ptycho_torch.importer.pattern_choice import DARK_SHARE, ONE_PLACE_PX
from ptycho_torch.importer.pattern_survey import corner_centred

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

log = logging.getLogger(__name__)

GRAVE = frozenset(get_args(GraveHint))
"""Kinds that make a reconstruction worthless where they are true."""

WIDEST_SCAN_FRAMES = 1000
"""Scans wider than this many frames are hardly in pixels; the largest published ones span a few hundred."""

LEAST_SPREAD_FRAMES = 1 / 32
PLACES_FOR_SPREAD = 9
LEAST_SPACING_PX = 0.5
"""Nine places within 2 of 64 pixels, or two a pixel, tell little that one place does not: the unit is a larger one."""

MOST_AT_ONE_PLACE = 0.1
"""Share of groups at one place from which on a scan is told of them."""

MOST_FAR = 0.1
FAR_FRAMES, FAR_STEPS = 1.0, 10.0
"""Patterns are far from a scan where a gap of a frame and of ten steps lies between, and they are a tenth at most."""

HOT_SHARE = 0.1
HOT_OVER_NEIGHBOURS, HOT_OVER_PROBE = 30.0, 10.0
"""Hot pixels hold a tenth of the counts; each 30 times what pixels around it hold, or the same in every pattern; and 10
times what the probe's far field puts there, in whatever orientation."""

BRIGHT_TIMES = 10.0
"""Counts of a bright pattern over the median of those that are not dark."""

SATURATED_SHARE, SATURATED_PATTERNS = 0.05, 3
"""Patterns whose brightest pixel is exactly the brightest of the scan. Counts reach their largest number about once."""

_FULL_SCALES = tuple(2.0**bits - 1 for bits in (12, 14, 16, 20, 24, 32))
"""Largest counts of detectors."""

_FAINT = 1e-3
"""Counts of a hot pixel over those of the brightest one."""

PATTERNS_FOR_STATIC = 8
STATIC_SIGMAS = 5.0
"""Patterns differ where their variance exceeds that of photons by more than five of its standard errors."""

OFF_CENTRE_PX = 2.0
OFF_CENTRE_SHARE = 1 / 16
"""How far the mean pattern may lie off the probe's own far field, in pixels, and off the middle where no probe is at
hand, as a share of the frame. A tilted probe moves both: real frames of 128 and 64 pixels lie 2.8 and 2.5 pixels off
the middle, and 0.1 off their probe's far field. A detector cut around the wrong pixel is many off."""

PROBE_OFF_CENTRE_SHARE = 1 / 8
LEAST_CONCENTRATION = 0.1
"""A probe whose light is spread over the whole frame has no centre; of even light the concentration is 0."""

_NAMED = 5
_GIB = 2**30

_UNITS = MappingProxyType({"metres": 1.0, "millimetres": 1e-3, "micrometres": 1e-6, "nanometres": 1e-9})


@dataclasses.dataclass(frozen=True)
class Hint:
    """One thing that looks wrong.

    Attributes:
        kind: its name, which ``--accept`` takes where it is grave.
        text: what was found, what comes of it, and what to do.
    """

    kind: str
    text: str

    @property
    def grave(self) -> bool:
        """Whether training stops for it."""
        return self.kind in GRAVE

    def __str__(self) -> str:
        return f"hint ({self.kind}): {self.text.removesuffix('.')}."


@dataclasses.dataclass(frozen=True)
class ScanView:
    """What hints are drawn from: one file, as it is or as settings prepare it.

    Attributes:
        path: the file.
        positions_px: (M, 2) of its patterns.
        scan_index: (M,) int64.
        frame_px: N of the patterns.
        probe: (modes, N, N), or None.
        settings: how groups are made.
        object_pixel_m: side of an object pixel, or None.
        sample: some of the patterns, or None where none was read yet.
        batch_size: groups in a batch, for the memory that they take.
    """

    path: Path
    positions_px: np.ndarray
    scan_index: np.ndarray
    frame_px: int
    probe: np.ndarray | None
    settings: DataSettings
    object_pixel_m: float | None = None
    sample: PatternSample | None = None
    batch_size: int = TrainingSettings.batch_size

    @classmethod
    def of_scan(cls, scan: Scan, settings: DataSettings, sample: PatternSample | None = None, **more: int) -> ScanView:
        """Return a file as it is, with or without some of its patterns."""
        positions_px = chosen_positions(scan, settings)
        return cls(
            scan.path, positions_px, scan.scan_index, scan.stack.frame_px, scan.probe, settings, scan.object_pixel_m,
            sample, **more,
        )  # fmt: skip

    def mending(self, *options: str) -> str:
        """Return the command that writes a repaired copy of the file."""
        return converting(self.path, *options)


def scan_hints(view: ScanView) -> tuple[Hint, ...]:
    """Return what looks wrong in one file, the gravest first.

    Without a sample, that is what its small arrays tell; the hints about patterns are those of ``pattern_hints``.
    """
    found = [*_hint_places(view)]
    if view.probe is not None:
        found += hint_probe(view.probe, view.mending)
    if view.sample is not None:
        found += pattern_hints(view, view.sample)
    return tuple(sorted(found, key=lambda hint: not hint.grave))


def heed_scans(
    scans: Iterable[ScanSource], settings: DataSettings, accepted: str | None, *, batch_size: int = 4
) -> None:
    """Log what looks wrong in the small arrays of scans, before their patterns are read.

    Args:
        scans: files or arrays.
        settings: how groups are made.
        accepted: see ``heed``.
        batch_size: groups in a batch.

    Raises:
        DataContractError: a scan that breaks a clause.
        ConfigError: as ``heed``.
    """
    for scan in scans:
        view = ScanView.of_scan(open_scan(scan), settings, batch_size=batch_size)
        heed(view.path, scan_hints(view), accepted)


def heed_patterns(dataset: PtychoDataset, accepted: str | None) -> None:
    """Log what looks wrong in the patterns of a dataset, of which a few are read.

    Raises:
        ConfigError: as ``heed``.
    """
    import torch

    for path in dict.fromkeys(dataset.paths):
        numbers = [number for number, each in enumerate(dataset.paths) if each == path]
        rows = np.sort(np.concatenate([dataset.rows[number] for number in numbers]))
        chosen = sample_numbers(len(rows), dataset.settings.N)
        sample = PatternSample(
            amplitude=dataset.amplitude[torch.from_numpy(rows[chosen])].numpy(),
            energies=dataset.map.patterns["energy"].numpy()[rows],
            energy_numbers=np.arange(len(rows)),
        )
        settings = dataset.settings
        as_stored = not (settings.detector_crop or settings.detector_transpose) and settings.detector_bin == 1
        kind = ScanView if as_stored and settings.detector_flip == "none" else _PreparedView
        view = kind(
            path, dataset.positions_px.numpy()[rows], dataset.map.scan["scan_index"].numpy()[rows], dataset.settings.N,
            dataset.probes[numbers[0]].numpy(), dataset.settings,
        )  # fmt: skip
        heed(path, pattern_hints(view, sample), accepted)


class _PreparedView(ScanView):
    """Frames may be cut, binned and turned, so that rows and columns are not those of the file."""

    def mending(self, *options: str) -> str:
        return f"`ptycho-torch check-data {shlex.quote(str(self.path))}` names the command"


def heed(path: Path, hints: Iterable[Hint], accepted: str | None) -> None:
    """Log the hints about a file; stop for grave ones.

    Args:
        path: the file.
        hints: what looks wrong in it.
        accepted: kinds that the user accepts, with commas between; None stops for none.

    Raises:
        ConfigError: hints of grave kinds that are not accepted.
    """
    stopping = []
    for hint in hints:
        if accepted is not None and hint.grave and hint.kind not in accepted.split(","):
            stopping.append(hint)
        else:
            log.warning("%s: %s", path, hint)
    if stopping:
        kinds = ",".join(dict.fromkeys([*filter(None, (accepted or "").split(",")), *(hint.kind for hint in stopping)]))
        raise ConfigError(
            f"{path}: {' '.join(map(str, stopping))} Training does not begin with such a scan. If it is right as it "
            f"is, add --accept {kinds}."
        )


# ------------------------------------------------------------------------------------------------------- positions


def _hint_places(view: ScanView) -> Iterator[Hint]:
    """Yield hints about the positions of each scan of a file."""
    indices, counts = np.unique(view.scan_index, return_counts=True)
    if len(indices) > 1:
        yield _hint_scans(view, dict(zip(indices.tolist(), counts.tolist(), strict=True)))
    for index in indices:
        own = np.flatnonzero(view.scan_index == index)
        where = "" if len(indices) == 1 else f"scan_index {index}: "
        far = far_patterns(view.positions_px[own], view.frame_px)
        near = np.delete(view.positions_px[own], far, axis=0)
        for hint in (
            *_hint_far(view, own, far),
            *hint_positions(near, view.frame_px, view.mending, object_pixel_m=view.object_pixel_m),
            *_hint_one_place(view, own),
        ):
            yield dataclasses.replace(hint, text=where + hint.text)


def _hint_scans(view: ScanView, counts: Mapping[int, int]) -> Hint:
    told = ", ".join(f"{index}: {count} patterns" for index, count in list(counts.items())[:_NAMED])
    more = ", …" if len(counts) > _NAMED else ""
    text = f"{len(counts)} scans in one file by their scan_index ({told}{more})"
    if np.median(list(counts.values())) < view.settings.C + 1:
        return Hint(
            "scan-index",
            f"{text}: most are too short for an object of their own. 'scan_index' says to which scan a pattern "
            "belongs, not which pattern it is; if this is one scan, leave the key out: "
            f"{view.mending('--drop', 'scan_index')}",
        )
    return Hint("several-scans", f"{text}: each gets groups and an object of its own.")


def far_patterns(positions_px: np.ndarray, frame_px: int) -> np.ndarray:
    """Return the numbers of the few patterns that a wide gap separates from all others.

    Args:
        positions_px: (M, 2).
        frame_px: N.

    >>> far_patterns(np.array([[0.0, 0], [5, 0], [0, 5], [5, 5], [9, 0], [0, 9], [9, 9], [5, 9], [9, 5], [9e3, 0]]), 64)
    array([9])
    """
    gap = max(FAR_FRAMES * frame_px, FAR_STEPS * median_step(positions_px))
    cells, of_pattern = np.unique(np.floor(positions_px / gap).astype(np.int64), axis=0, return_inverse=True)
    pairs = KDTree(cells).query_pairs(1.5, p=np.inf, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(cells), len(cells)))
    _, region_of_cell = connected_components(links, directed=False)
    regions = region_of_cell[of_pattern.ravel()]
    sizes = np.bincount(regions)
    far = np.flatnonzero(regions != sizes.argmax())
    return far if len(far) <= MOST_FAR * len(positions_px) else far[:0]


def _hint_far(view: ScanView, own: np.ndarray, far: np.ndarray) -> Iterator[Hint]:
    """Yield a line that names far patterns and what they cost."""
    if not len(far):
        return
    positions = view.positions_px[own]
    near = np.delete(positions, far, axis=0)
    width, height = np.ptp(near, axis=0)
    x, y = positions[far[0]]
    away = float(np.linalg.norm(near - positions[far[0]], axis=1).min())
    one = len(far) == 1
    what = (
        f"{_numbered(own[far])} {'lies' if one else 'lie'} far from the others, which span {width:.4g} × {height:.4g} "
        f"px; {'it' if one else 'the first'} is at x = {x:.6g}, y = {y:.6g}, {away:.4g} px away."
    )
    C = view.settings.C
    before, after = _group_px(view, positions), _group_px(view, near)
    if before is not None and after is not None and before > after:
        memory = view.batch_size * C * before**2 * 8
        what += (
            f" {'It decides' if one else 'They decide'} the canvas of all groups: {before} × {before} px in place of "
            f"{after} × {after}, {_bytes(memory)} for one tensor of a batch of {view.batch_size} groups, and training "
            "holds several."
        )
    with_far, without = (np.ceil(np.ptp(each, axis=0)).astype(int) + view.frame_px for each in (positions, near))
    # Two halves, each of four sums in float64; Python's integers do not overflow.
    memory = int(with_far[0]) * int(with_far[1]) * 64
    what += (
        f" The object becomes {with_far[0]} × {with_far[1]} px in place of {without[0]} × {without[1]}, "
        f"{_bytes(memory)}."
    )
    keep = kept(own[far].tolist(), len(view.positions_px))
    yield Hint("position-outlier", f"{what} Leave {'it' if one else 'them'} out: {view.mending('--select', keep)}")


def _group_px(view: ScanView, positions_px: np.ndarray) -> int | None:
    """Return the side of the canvas that holds every group [clause PREP-02]; None where no groups can be made."""
    reach = _reach_px(view, positions_px)
    return None if reach is None else view.frame_px + 2 * int(np.ceil(reach.max()))


def _reach_px(view: ScanView, positions_px: np.ndarray) -> np.ndarray | None:
    """Return (L,) largest |o_c| component of each group; None where no groups can be made."""
    try:
        places = positions_px[group_scan(positions_px, view.settings)]
    except DataContractError:
        return None
    return np.asarray(np.abs(places - places.mean(axis=1, keepdims=True)).max(axis=(1, 2)))


def hint_positions(
    positions_px: np.ndarray, frame_px: int, mending: Mending, *, object_pixel_m: float | None = None
) -> Iterator[Hint]:
    """Yield a line where positions are hardly in object pixels.

    Args:
        positions_px: (M, 2) of one scan.
        frame_px: N.
        mending: the command for options.
        object_pixel_m: side of an object pixel, from which the factor follows, or None.

    >>> from ptycho_torch.files.remedies import adding
    >>> next(hint_positions(np.array([[0.0, 0.0], [1e-6, 0.0]]), 64, adding)).text[:44]
    'Positions span 1e-06 px: hardly object pixel'
    """
    width, height = np.ptp(positions_px, axis=0)
    extent = float(max(width, height))
    places = len(np.unique(positions_px, axis=0))
    if places < 2:
        return
    spacing = _spacing(float(width), float(height), places)
    crowded = extent < 1 or (
        places >= PLACES_FOR_SPREAD and (extent < LEAST_SPREAD_FRAMES * frame_px or spacing < LEAST_SPACING_PX)
    )
    scattered = extent > WIDEST_SCAN_FRAMES * frame_px or median_step(positions_px) > frame_px
    if crowded or scattered:
        unit = _unit(spacing, extent, frame_px, object_pixel_m, mending)
        yield Hint("position-unit", f"Positions span {extent:.3g} px: hardly object pixels. {unit}")


def _spacing(width: float, height: float, places: int) -> float:
    """Return the mean distance of places that fill a rectangle, or a line."""
    narrow, wide = sorted((width, height))
    return max(float(np.sqrt(narrow * wide / places)), wide / places)


def _unit(spacing: float, extent: float, frame_px: int, object_pixel_m: float | None, mending: Mending) -> str:
    """Return what to do about positions in another unit: the factors, where the size of a pixel is known."""
    if object_pixel_m is None:
        command = mending("--positions-scale", "16e6")
        return (
            "Divide them by the side of an object pixel, λ·z / (N·p), in the unit that they are in; for metres and "
            f"62.5 nm: {command}"
        )
    ways = []
    for unit, metres in _UNITS.items():
        factor = metres / object_pixel_m
        if LEAST_SPACING_PX <= factor * spacing <= frame_px and factor * extent <= WIDEST_SCAN_FRAMES * frame_px:
            command = mending("--positions-scale", f"{factor:.6g}")
            ways.append(f"As {unit} they would span {factor * extent:.3g} px: {command}")
    if not ways:
        return f"No unit fits an object pixel of {object_pixel_m:.3g} m; check positions and geometry."
    return " ".join(ways)


def _hint_one_place(view: ScanView, own: np.ndarray) -> Iterator[Hint]:
    """Yield a line where the patterns of groups show one place."""
    positions = view.positions_px[own]
    extent = float(np.ptp(positions, axis=0).max())
    if len(own) > 1 and extent == 0:
        x, y = positions[0]
        yield Hint(
            "static",
            f"All {len(own)} patterns lie at one place (x = {x:.6g}, y = {y:.6g}), and nothing but overlap of "
            "different places determines an object. Write the positions of the stage.",
        )
        return
    if extent < 1:
        return  # It is the unit that looks wrong.
    reach = _reach_px(view, positions)
    if reach is None or view.settings.C == 1:
        return
    narrow = int((2 * reach < ONE_PLACE_PX).sum())
    if narrow > MOST_AT_ONE_PLACE * len(reach):
        places = len(np.unique(np.round(positions / ONE_PLACE_PX), axis=0))
        yield Hint(
            "one-place",
            f"{narrow} of {len(reach)} groups hold exposures of one place (their positions differ by less than "
            f"{ONE_PLACE_PX} px), so they have no overlap to learn from: {len(own)} patterns at {places} places. Add "
            f"the exposures of each place: {view.mending('--merge-repeats')}",
        )


# -------------------------------------------------------------------------------------------------------- patterns


def pattern_hints(view: ScanView, sample: PatternSample) -> Iterator[Hint]:
    """Yield hints about the patterns of a file."""
    yield from hint_brightness(view, sample)
    static = _hint_static(sample)
    if static is not None:
        yield static
    counts = sample.mean_counts
    hot = None if static is not None else hot_pixels(sample, view.probe)
    if hot is not None:
        yield _hint_hot(view, counts, hot)
        counts = np.where(hot, 0, counts)
    elif static is None:
        yield from hint_saturation(sample)
    yield from hint_centre(counts, view.probe, view.mending)


def hint_brightness(view: ScanView, sample: PatternSample) -> Iterator[Hint]:
    """Yield lines where patterns are dark, or far brighter than the others."""
    count = len(view.positions_px)
    energies, of = sample.energies, sample.energy_numbers
    dark = of[energies < DARK_SHARE * np.quantile(energies, 0.9)]
    if len(dark):
        yield Hint(
            "dark-frames",
            f"{_numbered(dark)} of {count} {'is' if len(dark) == 1 else 'are'} dark: less than {DARK_SHARE:.0%} of the "
            f"counts of others. If the shutter was closed, leave them out: {view.mending('--drop-dark')}",
        )
    median = float(np.median(energies[energies >= DARK_SHARE * np.quantile(energies, 0.9)]))
    bright = of[energies > BRIGHT_TIMES * median]
    if len(bright):
        keep = kept(bright.tolist(), count)
        yield Hint(
            "bright-frames",
            f"{_numbered(bright)} of {count} {'holds' if len(bright) == 1 else 'hold'} more than {BRIGHT_TIMES:.0f} "
            f"times the counts of others, up to {energies.max() / median:.3g} times. If the detector failed, leave "
            f"them out: {view.mending('--select', keep)}",
        )


def hint_saturation(sample: PatternSample) -> Iterator[Hint]:
    """Yield a line where many patterns are exactly as bright as the brightest one, or at a detector's full scale."""
    highest = sample.amplitude.max(axis=(1, 2))
    largest = float(highest.max())
    at_it = int((highest == largest).sum())
    plateau = at_it >= max(SATURATED_PATTERNS, SATURATED_SHARE * len(highest)) and largest != 1
    full = next((scale for scale in _FULL_SCALES if np.isclose(largest**2, scale, rtol=1e-6, atol=0)), None)
    if full is None and not plateau:
        return
    pixels = int((sample.amplitude == largest).sum(axis=(1, 2)).max())
    scale = "" if full is None else f", the full scale of a detector of {int(np.log2(full + 1))} bits"
    yield Hint(
        "saturated",
        f"{at_it} of {len(highest)} patterns that were looked at reach exactly the largest amplitude {largest:.6g} "
        f"({largest**2:.6g} counts{scale}), in up to {pixels} pixels: the detector was saturated there, and the true "
        "counts are higher. Mark such pixels in 'bad_pixels', or measure with less light.",
    )


def _hint_static(sample: PatternSample) -> Hint | None:
    """Return a line where the patterns do not differ by more than photon noise."""
    amplitude = sample.amplitude[sample.lit]
    n = len(amplitude)
    if n < PATTERNS_FOR_STATIC:
        return None
    alike = sum(bool(np.array_equal(one, other)) for one, other in itertools.pairwise(amplitude))
    if alike >= (n - 1) / 2:
        return Hint(
            "static",
            f"{alike + 1} of {n} patterns that were looked at are the same number for number, at different positions: "
            "was one frame written again and again, or the same file read for every point? Read the patterns again.",
        )
    if are_counts(amplitude[:: max(1, n // 16)]) is not True:
        return None
    counts = np.square(amplitude, dtype=np.float64).reshape(n, -1)
    # A beam that flickers is no change of the object.
    factors = counts.sum(axis=1).mean() / counts.sum(axis=1, keepdims=True)
    counts *= factors
    mean = counts.mean(axis=0) * factors.mean()
    seen = mean > 1 / n
    excess = counts[:, seen].var(axis=0, ddof=1) / mean[seen] - 1
    # Of n Poisson numbers of mean m the ratio of variance and mean has the variance 2 / (n − 1) + 1 / (n m).
    error = np.sqrt((2 / (n - 1) + 1 / (n * mean[seen])).sum())
    if excess.sum() > STATIC_SIGMAS * error:
        return None
    return Hint(
        "static",
        f"The {n} patterns that were looked at differ by no more than their photon noise, as if the stage had not "
        "moved: they determine no object. Check shutter, stage, and the order of patterns and positions.",
    )


def hot_pixels(sample: PatternSample, probe: np.ndarray | None) -> np.ndarray | None:
    """Return (N, N) bool of pixels that hold a large part of the counts and are no diffraction; None where none is.

    Args:
        sample: of the scan.
        probe: (modes, N, N), or None; then the middle of the frame is never hot, for light may fall there.
    """
    counts = sample.mean_counts
    around = median_filter(counts, size=5, mode="nearest")
    spikes = counts > HOT_OVER_NEIGHBOURS * around
    amplitude = sample.amplitude[sample.lit]
    same = np.zeros_like(spikes)
    if len(amplitude) >= PATTERNS_FOR_STATIC:
        same = (amplitude.min(axis=0) == amplitude.max(axis=0)) & (amplitude[0] > 0)
    hot = spikes | same
    # A single count where there is no other is a spike too.
    hot &= counts > _FAINT * counts[hot].max(initial=0)
    rows, columns = np.abs(np.indices(counts.shape) - len(counts) // 2)
    middle = np.maximum(rows, columns) <= OFF_CENTRE_SHARE * len(counts)
    if probe is None:
        hot &= ~middle
    else:
        hot &= (same | ~middle) & (counts > HOT_OVER_PROBE * _light_of_probe(counts, probe))
    return hot if counts[hot].sum() > HOT_SHARE * counts.sum() else None


def _light_of_probe(counts: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """Return (N, N) counts of the probe's far field, the brightest of all orientations and of the pixels around."""
    far_field = np.fft.fftshift((np.abs(np.fft.fft2(probe)) ** 2).sum(axis=0))
    bright = far_field > 0.01 * far_field.max()
    # A median does not mind some hot pixels.
    light = far_field * np.median(counts[bright] / far_field[bright])
    turned = [turn(each) for each in (light, light.T) for turn in _turns()]
    return np.asarray(maximum_filter(np.max(turned, axis=0), size=3))


def _turns() -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    flip = flip_about_zero_frequency
    return (lambda f: f, lambda f: flip(f, 0), lambda f: flip(f, 1), lambda f: flip(flip(f, 0), 1))


def _hint_hot(view: ScanView, counts: np.ndarray, hot: np.ndarray) -> Hint:
    places = np.argwhere(hot)
    share = float(counts[hot].sum() / counts.sum())
    row, column = (int(each) for each in places[np.argmax(counts[hot])])
    what = "One pixel holds" if len(places) == 1 else f"{len(places)} pixels hold"
    of_them = f"row {row}, column {column}" if len(places) == 1 else f"the brightest at row {row}, column {column}"
    full = next((scale for scale in _FULL_SCALES if np.isclose(counts[row, column], scale, rtol=1e-6, atol=0)), None)
    sentinel = (
        ""
        if full is None
        else f" The brightest holds {full:.0f}, which detectors write where they have no measurement."
    )
    return Hint(
        "hot-pixel",
        f"{what} {share:.0%} of the counts ({of_them}), where neither its neighbours nor the probe have light. The "
        f"photon number and all scores are those of a defect.{sentinel} Mark what is defective: "
        f"{view.mending('--bad-pixels', pixels(places.tolist(), len(hot)))}",
    )


def hint_centre(mean_counts: np.ndarray, probe: np.ndarray | None, mending: Mending) -> Iterator[Hint]:
    """Yield a line where the mean pattern does not lie where the light of the probe falls.

    The object spreads the light about evenly, so the centre of mass of the mean counts is that of the probe's far
    field, Σ_m |FFT2(P_m)|², in whatever orientation the frames are.

    Args:
        mean_counts: (N, N) mean of amplitude².
        probe: (modes, N, N), or None; then the middle (N // 2, N // 2) stands in, with more room.
        mending: the command for options.
    """
    found = _centre_of_mass(mean_counts)
    if found is None:
        return
    N = len(mean_counts)
    middle = np.array([N // 2, N // 2])
    expected, limit = np.zeros(2), OFF_CENTRE_SHARE * N
    if probe is not None:
        far_field = np.fft.fftshift((np.abs(np.fft.fft2(probe)) ** 2).sum(axis=0))
        light = _centre_of_mass(far_field)
        if light is not None:
            expected, limit = light - middle, OFF_CENTRE_PX
    off = found - middle
    turned = [np.array(signs) * each for each in (expected, expected[::-1]) for signs in _SIGNS]
    if corner_centred(mean_counts):
        yield Hint(
            "off-centre",
            "The patterns look centred on the corner of the frame, as numpy.fft has them, and the zero frequency "
            f"belongs into its middle: {mending('--fftshift')}",
        )
    elif min(float(np.abs(off - each).max()) for each in turned) > limit:
        row, column = np.rint(found).astype(int).tolist()
        side = 2 * min(row, column, N - row, N - column)
        yield Hint(
            "off-centre",
            f"The mean pattern is centred on row {found[0]:.1f}, column {found[1]:.1f}, where neither the middle "
            f"({N // 2}, {N // 2}) nor the probe explains it: is the frame cut around the zero frequency? Cut it anew: "
            f"{mending('--crop', str(max(side, 2)), '--centre', f'{row},{column}')}",
        )


_SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _centre_of_mass(light: np.ndarray) -> np.ndarray | None:
    """Return (row, column), or None where there is no light."""
    total = float(light.sum())
    if not total > 0:
        return None
    pixels = np.arange(len(light))
    return np.array([(light.sum(axis=1) * pixels).sum(), (light.sum(axis=0) * pixels).sum()]) / total


def hint_probe(probe: np.ndarray, mending: Mending) -> Iterator[Hint]:
    """Yield a line where a probe does not lie in the middle of its frame.

    The centre is that of a circle, arg Σ |P|² e^{2πi r/N}, so that a probe that is split over the corners has one too.
    """
    light = (np.abs(probe).astype(np.float64) ** 2).sum(axis=0)
    N = len(light)
    turns = np.exp(2j * np.pi * (np.arange(N) - N // 2) / N)
    moments = np.array([light.sum(axis=1) @ turns, light.sum(axis=0) @ turns]) / light.sum()
    if (np.abs(moments) < LEAST_CONCENTRATION).any():
        return
    off = np.angle(moments) * N / (2 * np.pi)
    if np.abs(off).max() > PROBE_OFF_CENTRE_SHARE * N:
        row, column = np.rint(off).astype(int).tolist()
        where = f"The probe lies {row} rows and {column} columns off the middle of its frame, and the network looks for"
        mend = f"Shift it and store it again: numpy.roll(probe, ({-row}, {-column}), (-2, -1))."
        if corner_centred(light):
            mend = f"It is split over the corners, as numpy.fft has it: {mending('--fftshift')}"
        yield Hint("probe-off-centre", f"{where} light in the middle. {mend}")


def hint_orientation(orientation: OrientationHint, mending: Mending) -> Iterator[Hint]:
    """Yield a line where another orientation, or the root of the patterns, fits the positions better."""
    if orientation.looks_like_intensity:
        yield Hint(
            "intensity",
            f"The patterns look like intensity: held-out patterns are predicted {orientation.intensity_gain:.1f} times "
            f"better from their square root. Convert them: {mending('--from-intensity')}",
        )
    if orientation.looks_wrong:
        yield Hint("orientation", orientation.describe())


def _bytes(size: float) -> str:
    """Return an amount of memory for people.

    >>> _bytes(3 * 2**20), _bytes(2.44 * 2**30)
    ('3 MiB', '2.44 GiB')
    """
    return f"{size / _GIB:.3g} GiB" if size >= _GIB else f"{size / 2**20:.3g} MiB"


def _numbered(numbers: np.ndarray) -> str:
    """Return patterns by number: the first few, and how many more there are.

    >>> _numbered(np.array([60])), _numbered(np.arange(7))
    ('Pattern 60', 'Patterns 0, 1, 2, 3, 4 and 2 more')
    """
    if len(numbers) == 1:
        return f"Pattern {numbers[0]}"
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"Patterns {', '.join(map(str, numbers[:_NAMED].tolist()))}{more}"
