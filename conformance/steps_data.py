"""The data path, step by step: from scan files on disk to the batches that the network is given."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance import oracle_operations as oracle
from conformance.data_parity import ROUNDINGS
from conformance.hypotheses import OFFSETS, Hypothesis, spatial_mistakes
from conformance.judge import UNIT_ROUNDOFF
from conformance.oracle_data import Preparation, draw_groups, neighbours, oriented
from conformance.step import Outcome, Step, StepBench
from ptycho_torch.config_params import DataSettings, TrainingSettings
from ptycho_torch.preparation import FramePreparation

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset

N, GRID, K, SEED = 16, 2, 7, 3
C = GRID**2
FLOAT32 = ROUNDINGS * UNIT_ROUNDOFF["float32"]
"""What the map stores in float32 is as many roundings away from float64 as input of the network."""

SETTINGS = DataSettings(N=N, gridsize=GRID, K=K, group_sampler="reference", group_seed=SEED)
CENTRED = DataSettings(N=N, gridsize=GRID, K=K, group_sampler="with_centre", group_seed=SEED)

WANTED = Preparation(frame_px=N, N=6, bins=2, centre_px=(7, 9))
PREPARED = dataclasses.replace(
    SETTINGS,
    N=WANTED.N,
    detector_bin=WANTED.bins,
    detector_crop=True,
    detector_centre_row_px=7,
    detector_centre_column_px=9,
    detector_transpose=True,
    detector_flip="vertical",
    positions_swap_xy=True,
    positions_flip_x=True,
)

Scan = Mapping[str, np.ndarray]


def draw_scans() -> dict[str, dict[str, np.ndarray]]:
    """Draw two scans that differ in length, counts and probe, with neither symmetry nor whole numbers in them."""
    scans: dict[str, dict[str, np.ndarray]] = {}
    for number, patterns in enumerate((24, 31)):
        rng = np.random.default_rng(11 + number)
        bad = np.zeros((N, N), bool)
        bad[2, 5 + number] = bad[9, 3] = True
        positions = rng.uniform((20, 90), (45, 130), (patterns, 2))
        scans[f"scan_{number}.npz"] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, N, N)).astype(np.float32),
            "xcoords": positions[:, 0],
            "ycoords": positions[:, 1],
            "xcoords_start": positions[:, 0] + rng.uniform(-1, 1, patterns),
            "ycoords_start": positions[:, 1] + rng.uniform(-1, 1, patterns),
            "probeGuess": (rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N))).astype(np.complex64),
            "bad_pixels": bad,
        }
    return scans


class MappedScans:
    """The drawn scans on disk, and the datasets over their memory maps, each made on first use."""

    def __init__(self) -> None:
        self.scans = draw_scans()
        self._root = Path(tempfile.mkdtemp(prefix="conformance-scans-"))
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        (self._root / "scans").mkdir()
        for name, scan in self.scans.items():
            np.savez(self._root / "scans" / name, **scan)  # type: ignore[arg-type]
        self._datasets: dict[DataSettings, PtychoDataset] = {}

    def dataset(self, settings: DataSettings = SETTINGS) -> PtychoDataset:
        """Return the dataset of a map that was there already, as any run after the first finds it."""
        from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

        if settings not in self._datasets:
            place = self._root / f"map_{len(self._datasets)}"
            PtychoDataset(self._root / "scans", data_dir=place, settings=settings)
            self._datasets[settings] = PtychoDataset(self._root / "scans", data_dir=place, settings=settings)
        return self._datasets[settings]

    @cached_property
    def alone(self) -> PtychoDataset:
        """The first scan in a map of its own, with a probe of two modes."""
        from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

        name, scan = next(iter(self.scans.items()))
        modes = np.stack([scan["probeGuess"], 0.5 * scan["probeGuess"].T])
        return PtychoDataset(
            self._root / "scans" / name, data_dir=self._root / "map_alone", settings=SETTINGS, probe=modes
        )

    def tables(self, settings: DataSettings = SETTINGS) -> _Tables:
        """Return what the map holds."""
        return _Tables.of(self.dataset(settings))


@dataclass(frozen=True)
class _Tables:
    """What one map holds, as arrays."""

    amplitude: np.ndarray
    positions_px: np.ndarray
    members: np.ndarray
    coords: np.ndarray
    centres: np.ndarray
    scale: np.ndarray
    experiment_id: np.ndarray
    probe: np.ndarray
    good_pixels: np.ndarray

    @classmethod
    def of(cls, dataset: PtychoDataset) -> _Tables:
        found = dataset.map

        def array(table: str, name: str) -> np.ndarray:
            return np.array(getattr(found, table)[name].numpy())

        return cls(
            array("patterns", "amplitude"),
            array("scan", "positions_px"),
            array("groups", "nn_indices").astype(np.int64),
            array("groups", "coords_relative"),
            array("groups", "coords_center"),
            array("experiments", "scale"),
            array("groups", "experiment_id").astype(np.int64),
            array("experiments", "probe"),
            array("experiments", "good_pixels"),
        )


def _joined(scans: Mapping[str, Scan], key: str) -> np.ndarray:
    return np.concatenate([scan[key] for scan in scans.values()])


def _measured(scan: Scan) -> np.ndarray:
    return np.where(scan["bad_pixels"], np.float32(0), scan["diff3d"])


PREPARATIONS: Mapping[str, Preparation] = {
    "cropped and binned": Preparation(frame_px=16, N=6, bins=2, centre_px=(7, 9)),
    "cropped": Preparation(frame_px=16, N=12),
    "binned": Preparation(frame_px=16, N=8, bins=2),
    "as they are": Preparation(frame_px=16, N=16),
}

TURNS = tuple(itertools.product((False, True), ("none", "vertical", "horizontal", "both")))
"""Every orientation of the detector: transposed or not, and which way it is mirrored."""

MIRRORS = tuple(itertools.product((False, True), repeat=3))
"""Every orientation of the positions: x and y swapped, x mirrored, y mirrored."""


def _prepared_by_us(wanted: Preparation, **orientation: bool | str) -> FramePreparation:
    row, column = (None, None) if wanted.centre_px is None else wanted.centre_px
    settings = DataSettings(
        N=wanted.N,
        detector_bin=wanted.bins,
        detector_crop=wanted.window_px < wanted.frame_px,
        detector_centre_row_px=row,
        detector_centre_column_px=column,
        **orientation,  # type: ignore[arg-type]
    )
    return FramePreparation(wanted.frame_px, settings)


Turned = Callable[[np.ndarray, bool, str], np.ndarray]
Images = Callable[[Preparation, np.ndarray], np.ndarray]


def _turned(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    return oriented(images, transpose=transpose, flip=flip)


def _every_turn(images: np.ndarray, turned: Turned = _turned) -> np.ndarray:
    """Return (8, …, N, N): square images in every orientation."""
    return np.stack([turned(images, *turn) for turn in TURNS])


def _every_turn_of(images: Images, frames: np.ndarray, wanted: Preparation) -> np.ndarray:
    return _every_turn(images(wanted, frames))


def _of_edges(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    images = images.swapaxes(-1, -2) if transpose else images
    images = images[..., ::-1, :] if flip in ("vertical", "both") else images
    return images[..., ::-1] if flip in ("horizontal", "both") else images


def _flipped_first(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    return _turned(_turned(images, False, flip), transpose, "none")


_OTHER_WAY = {"vertical": "horizontal", "horizontal": "vertical"}

WRONG_TURNS: Mapping[str, Turned] = {
    "mirrored about the edges (zero frequency one pixel off)": _of_edges,
    "vertical and horizontal exchanged": lambda images, transpose, flip: _turned(
        images, transpose, _OTHER_WAY.get(flip, flip)
    ),
    "mirrored before it is transposed": _flipped_first,
    "not transposed": lambda images, transpose, flip: _turned(images, False, flip),
    "not mirrored": lambda images, transpose, flip: _turned(images, transpose, "none"),
    "both mirrored one way only": lambda images, transpose, flip: _turned(
        images, transpose, "vertical" if flip == "both" else flip
    ),
    "not oriented": lambda images, transpose, flip: images,
}


def _of_middle(wanted: Preparation) -> Preparation:
    return dataclasses.replace(wanted, centre_px=None)


def _centre_moved(rows: int, columns: int) -> Callable[[Preparation], Preparation]:
    def change(wanted: Preparation) -> Preparation:
        if wanted.window_px == wanted.frame_px:
            return wanted
        row, column = (wanted.frame_px // 2,) * 2 if wanted.centre_px is None else wanted.centre_px
        return dataclasses.replace(wanted, centre_px=(row + rows, column + columns))

    return change


def _centre_exchanged(wanted: Preparation) -> Preparation:
    return dataclasses.replace(wanted, centre_px=wanted.centre_px and wanted.centre_px[::-1])


def _centre_twice(of: int) -> Callable[[Preparation], Preparation]:
    return lambda wanted: dataclasses.replace(wanted, centre_px=wanted.centre_px and (wanted.centre_px[of],) * 2)


WRONG_WINDOWS: tuple[tuple[str, Callable[[Preparation], Preparation]], ...] = (
    ("cropped about the middle of the frame, not the zero frequency", _of_middle),
    ("row and column of the zero frequency exchanged", _centre_exchanged),
    ("row of the zero frequency for its column", _centre_twice(0)),
    ("column of the zero frequency for its row", _centre_twice(1)),
    *(
        ("cropped one pixel off", _centre_moved(rows, columns))
        for rows, columns in itertools.product((-1, 0, 1), repeat=2)
        if (rows, columns) != (0, 0)
    ),
)


def _added(power: float, *, mean: bool = False, root: float = 0.5) -> Images:
    """Make bins of pixels from the sum, or mean, of a power of their amplitude."""

    def images(wanted: Preparation, frames: np.ndarray) -> np.ndarray:
        pixels = wanted.windows(frames.astype(np.float64))
        if wanted.bins == 1:
            return np.asarray(pixels[..., 0])
        found = (pixels**power).mean(axis=-1) if mean else (pixels**power).sum(axis=-1)
        return np.asarray(found**root)

    return images


def _first_pixel(wanted: Preparation, frames: np.ndarray) -> np.ndarray:
    return wanted.windows(frames.astype(np.float64))[..., 0]


WRONG_BINS: Mapping[str, Images] = {
    "binning adds amplitudes, not counts": _added(1, root=1),
    "binning takes the mean of amplitudes": _added(1, root=1, mean=True),
    "binning takes the mean of counts, not their sum": _added(2, mean=True),
    "root of the counts missing": _added(2, root=1),
    "one pixel of a bin for all": _first_pixel,
}


def _prepare(bench: StepBench) -> Outcome:
    frames, mask, probe, positions_px = _to_prepare()
    expected, given = {}, {}
    for what, wanted in PREPARATIONS.items():
        expected[f"frames, {what}"] = _every_turn(wanted.amplitude(frames))
        expected[f"good pixels, {what}"] = _every_turn(wanted.good_pixels(mask))
        ours = [_prepared_by_us(wanted, detector_transpose=turn, detector_flip=flip) for turn, flip in TURNS]
        given[f"frames, {what}"] = np.stack([each.frames(frames) for each in ours])
        given[f"good pixels, {what}"] = np.stack([each.good_pixels(mask) for each in ours])
    for what, wanted in PREPARATIONS.items():
        expected[f"probe, {what}"] = wanted.probe(probe)
        given[f"probe, {what}"] = _prepared_by_us(wanted, detector_transpose=True, detector_flip="both").probe(probe)
        expected[f"positions, {what}"] = _every_mirror(wanted, positions_px)
        given[f"positions, {what}"] = np.stack([
            _prepared_by_us(wanted, positions_swap_xy=swap, positions_flip_x=x, positions_flip_y=y).positions(
                positions_px
            )
            for swap, x, y in MIRRORS
        ])  # fmt: skip

    def mistakes() -> Iterator[Hypothesis]:
        for name, images in WRONG_BINS.items():
            yield _with_all(name, "frames", partial(_every_turn_of, images, frames))
        for name, turned in WRONG_TURNS.items():
            yield _with_all_images(name, frames, mask, turned=turned)
        for name, window in WRONG_WINDOWS:
            yield _with_all_images(name, frames, mask, window=window)
        yield _with_all("mask inverted", "good pixels", lambda wanted: ~_every_turn(wanted.good_pixels(mask)))
        yield _with_all(
            "a binned pixel good if one of its pixels is",
            "good pixels",
            lambda wanted: _every_turn(np.asarray(wanted.windows(mask).any(axis=-1))),
        )
        yield from _of_probes(probe)
        yield from _of_prepared_positions(positions_px)

    return Outcome(expected, given, FLOAT32, mistakes)


def _to_prepare() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw (n, frame, frame) frames, a mask, (modes, frame, frame) of a probe, and (M, 2) positions."""
    rng = np.random.default_rng(17)
    frames = rng.gamma(2.0, 3.0, (3, 16, 16)).astype(np.float32)
    mask = rng.random((16, 16)) > 0.2
    probe = rng.standard_normal((2, 16, 16)) + 1j * rng.standard_normal((2, 16, 16))
    return frames, mask, probe.astype(np.complex64), rng.uniform((20, 90), (45, 130), (5, 2))


def _with_all(name: str, kind: str, change: Callable[[Preparation], np.ndarray]) -> Hypothesis:
    """Make a mistake with everything of one kind, however it is prepared."""
    return Hypothesis(name, {f"{kind}, {what}": change(wanted) for what, wanted in PREPARATIONS.items()})


def _with_all_images(
    name: str,
    frames: np.ndarray,
    mask: np.ndarray,
    *,
    turned: Turned = _turned,
    window: Callable[[Preparation], Preparation] = lambda wanted: wanted,
) -> Hypothesis:
    """Make a mistake with frames and masks, which go the same way."""
    of_frames = _with_all(name, "frames", lambda wanted: _every_turn(window(wanted).amplitude(frames), turned))
    of_masks = _with_all(name, "good pixels", lambda wanted: _every_turn(window(wanted).good_pixels(mask), turned))
    return Hypothesis(name, {**of_frames.gives, **of_masks.gives})


def _of_probes(probe: np.ndarray) -> Iterator[Hypothesis]:
    def middle(wanted: Preparation) -> np.ndarray:
        start = wanted.frame_px // 2 - wanted.N // 2
        return probe[..., start : start + wanted.N, start : start + wanted.N]

    def corner(wanted: Preparation) -> np.ndarray:
        return dataclasses.replace(wanted, N=wanted.window_px, bins=1).probe(probe)[..., : wanted.N, : wanted.N]

    def shifted(wanted: Preparation) -> np.ndarray:
        """Multiply with the plane wave that is left where frequencies are not shifted back."""
        sign = 1 - 2 * (np.indices((wanted.window_px,) * 2).sum(axis=0) % 2)
        whole = dataclasses.replace(wanted, N=wanted.window_px, bins=1).probe(probe)
        start = wanted.window_px // 2 - wanted.N // 2
        whole = whole * sign if wanted.window_px < wanted.frame_px else whole
        return np.asarray(whole[..., start : start + wanted.N, start : start + wanted.N])

    yield _with_all("the probe keeps the pixels of the frame that is cropped", "probe", middle)
    yield _with_all("factor of the probe missing", "probe", lambda w: w.probe(probe) * (w.frame_px / w.window_px))
    yield _with_all("factor of the probe twice", "probe", lambda w: w.probe(probe) * (w.window_px / w.frame_px))
    yield _with_all(
        "factor of the probe the wrong way", "probe", lambda w: w.probe(probe) * (w.frame_px / w.window_px) ** 2
    )
    yield _with_all("missing fftshift", "probe", shifted)
    yield _with_all("a corner of the probe in place of its middle", "probe", corner)
    yield _with_all("conjugation", "probe", lambda wanted: wanted.probe(probe).conj())
    yield _with_all(
        "the probe oriented as the detector is", "probe", lambda wanted: _turned(wanted.probe(probe), True, "both")
    )


def _every_mirror(wanted: Preparation, positions_px: np.ndarray) -> np.ndarray:
    return np.stack([wanted.positions_px(positions_px, swap_xy=s, flip_x=x, flip_y=y) for s, x, y in MIRRORS])


def _of_prepared_positions(positions_px: np.ndarray) -> Iterator[Hypothesis]:
    def scaled(power: float) -> Callable[[Preparation], np.ndarray]:
        return lambda w: _every_mirror(w, positions_px) * (w.window_px / w.frame_px) ** power

    def each(change: Callable[[bool, bool, bool], tuple[bool, bool, bool]]) -> Callable[[Preparation], np.ndarray]:
        order = [MIRRORS.index(change(*mirror)) for mirror in MIRRORS]
        return lambda wanted: _every_mirror(wanted, positions_px)[order]

    yield _with_all("positions in pixels of the frame that is cropped", "positions", scaled(-1))
    yield _with_all("positions shrunk the wrong way", "positions", scaled(-2))
    yield _with_all("binning shrinks positions", "positions", lambda w: _every_mirror(w, positions_px) / w.bins)
    yield _with_all(
        "mirrored before they are swapped", "positions", each(lambda s, x, y: (s, y, x) if s else (s, x, y))
    )
    yield _with_all("x mirrored for y", "positions", each(lambda s, x, y: (s, y, x)))
    yield _with_all("x and y not swapped", "positions", each(lambda s, x, y: (False, x, y)))
    yield _with_all("positions not mirrored", "positions", each(lambda s, x, y: (s, False, False)))


def _patterns(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found = mapped.scans, mapped.tables()
    right = np.concatenate([_measured(scan) for scan in scans.values()])
    reverse = np.concatenate([_measured(scan) for scan in reversed(scans.values())])
    mistakes = [
        Hypothesis("scans in another order", {"amplitude": reverse}),
        Hypothesis("missing mask (bad pixels not set to zero)", {"amplitude": _joined(scans, "diff3d")}),
        *_of_images("amplitude", right),
        Hypothesis("amplitude for intensity", {"amplitude": np.sqrt(right)}),
    ]
    return Outcome({"amplitude": right}, {"amplitude": found.amplitude}, 0.0, mistakes)


def _of_images(name: str, images: np.ndarray) -> Iterator[Hypothesis]:
    """Yield what can go wrong with (…, N, N) images."""
    for mistake, change in spatial_mistakes(-2, -1):
        yield Hypothesis(mistake, {name: change(images)})


def _prepared(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, dataset = mapped.scans.values(), mapped.dataset(PREPARED)
    found = _Tables.of(dataset)

    def turned(images: np.ndarray) -> np.ndarray:
        return oriented(images, transpose=True, flip="vertical")

    frames = np.concatenate([_measured(scan) for scan in scans])
    x_y = np.stack([_joined(mapped.scans, "xcoords"), _joined(mapped.scans, "ycoords")], axis=1)
    amplitude = turned(WANTED.amplitude(frames))
    right = {
        "amplitude": amplitude,
        "counts": np.square(amplitude).sum(axis=(1, 2)),
        "positions": WANTED.positions_px(x_y, swap_xy=True, flip_x=True, flip_y=False),
        "probe": np.stack([WANTED.probe(scan["probeGuess"][None]) for scan in scans]),
        "good pixels": np.stack([turned(WANTED.good_pixels(~scan["bad_pixels"])) for scan in scans]),
    }
    given = {
        "amplitude": found.amplitude,
        "counts": np.array(dataset.map.patterns["energy"].numpy()),
        "positions": found.positions_px,
        "probe": found.probe,
        "good pixels": found.good_pixels,
    }
    mistakes = [
        Hypothesis("counts of frames that are not prepared", {"counts": np.square(frames, dtype=float).sum((1, 2))}),
        Hypothesis("positions not prepared", {"positions": x_y}),
        Hypothesis("mask inverted", {"good pixels": ~right["good pixels"]}),
        Hypothesis("missing mask", {"good pixels": np.ones_like(right["good pixels"])}),
        Hypothesis(
            "not oriented",
            {
                "amplitude": WANTED.amplitude(frames),
                "good pixels": np.stack([WANTED.good_pixels(~scan["bad_pixels"]) for scan in scans]),
            },
        ),
    ]
    return Outcome(right, given, FLOAT32, mistakes)


def _positions(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found = mapped.scans, mapped.tables()
    x, y = _joined(scans, "xcoords"), _joined(scans, "ycoords")
    nominal = np.stack([_joined(scans, "xcoords_start"), _joined(scans, "ycoords_start")], axis=1)
    right = np.stack([x, y], axis=1)
    mistakes = [
        Hypothesis("swapped x/y", {"positions_px": right[:, ::-1]}),
        Hypothesis("sign of positions", {"positions_px": -right}),
        Hypothesis("sign of x", {"positions_px": right * [-1, 1]}),
        Hypothesis("sign of y", {"positions_px": right * [1, -1]}),
        Hypothesis("nominal for corrected positions", {"positions_px": nominal}),
        Hypothesis("positions rounded to whole pixels", {"positions_px": np.round(right)}),
        Hypothesis("positions of float32", {"positions_px": right.astype(np.float32).astype(np.float64)}),
    ]
    return Outcome({"positions_px": right}, {"positions_px": found.positions_px}, 0.0, mistakes)


def _reference_groups(positions_px: np.ndarray, *, seed: int = SEED, K: int = K) -> np.ndarray:
    """Draw the groups of a scan as the reference does (REF-08): C of the K nearest, never the point itself."""
    return draw_groups(positions_px, gridsize=GRID, K=K, n_groups=len(positions_px), seed=seed)


def _nearest(positions_px: np.ndarray) -> np.ndarray:
    """Return the K + 1 points nearest to each, (M, K + 1): itself first."""
    return np.array([[point, *neighbours(positions_px, point, K)] for point in range(len(positions_px))])


def _groups_with_itself(positions_px: np.ndarray) -> np.ndarray:
    draw = np.random.RandomState(SEED)
    return np.array([draw.choice(row[:K], C, replace=False) for row in _nearest(positions_px)])


def _each_scan(scans: Mapping[str, Scan], positions_px: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([len(scan["xcoords"]) for scan in scans.values()])
    return np.split(positions_px, ends[:-1])


def _counted_through(points_of: Callable[[np.ndarray], np.ndarray], scans_px: Sequence[np.ndarray]) -> np.ndarray:
    """Join what each scan gives, with its points counted on from those of the scans before."""
    firsts = np.cumsum([0, *map(len, scans_px)])
    return np.concatenate([points_of(each) + first for each, first in zip(scans_px, firsts, strict=False)])


def _groups(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found, centred = mapped.scans, mapped.tables(), mapped.tables(CENTRED)
    # Positions have a step of their own: groups are judged by those that the map has.
    parts = _each_scan(scans, found.positions_px)
    right, near = _counted_through(_reference_groups, parts), _counted_through(_nearest, parts)
    inside = (centred.members[:, :, None] == near[:, None]).any(axis=-1)
    expected = {
        "nn_indices": right,
        "first of a group": np.arange(len(right)),
        "neighbours": np.ones((len(right), C), bool),
        "different": np.full(len(right), C),
    }
    given = {
        "nn_indices": found.members,
        "first of a group": centred.members[:, 0],
        "neighbours": inside,
        "different": np.array([len(set(group.tolist())) for group in centred.members]),
    }

    def mistakes() -> Iterator[Hypothesis]:
        yield Hypothesis("a point in its own group", {"nn_indices": _counted_through(_groups_with_itself, parts)})
        for name, seed, k in (
            ("another seed", 0, K),
            ("another seed", SEED + 1, K),
            ("K one off", SEED, K + 1),
            ("K one off", SEED, K - 1),
        ):
            groups = _counted_through(partial(_reference_groups, seed=seed, K=k), parts)
            yield Hypothesis(name, {"nn_indices": groups})
        alone = np.concatenate([_reference_groups(part) for part in parts])
        yield Hypothesis("rows of a scan not counted from its first", {"nn_indices": alone})
        yield Hypothesis("channel order of a group lost (sorted)", {"nn_indices": np.sort(right, axis=1)})
        yield Hypothesis("channel order reversed", {"nn_indices": right[:, ::-1]})
        yield Hypothesis("groups over the borders of scans", {"nn_indices": _reference_groups(found.positions_px)})

    return Outcome(expected, given, 0.0, mistakes)


def _offsets(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    found = mapped.tables()
    places = found.positions_px[found.members]  # (L, C, 2)
    layout = places.transpose(0, 2, 1)[:, None]  # (L, 1, 2, C)
    right = oracle.relative_offsets(layout)
    centres = places.mean(axis=1)

    def ours(offsets: np.ndarray) -> np.ndarray:
        return np.asarray(offsets[:, 0].transpose(0, 2, 1)[:, :, None])

    mistakes = [Hypothesis(name, {"coords_relative": ours(change(right))}) for name, change in OFFSETS]
    mistakes += [
        Hypothesis("absolute positions for relative ones", {"coords_relative": ours(layout)}),
        Hypothesis("relative to the first of the group", {"coords_relative": ours(layout[..., :1] - layout)}),
        Hypothesis(
            "relative to the mean of all groups",
            {"coords_relative": ours(layout.mean(axis=(0, 3), keepdims=True) - layout)},
        ),
        Hypothesis("median for mean", {"coords_relative": ours(np.median(layout, axis=-1, keepdims=True) - layout)}),
        Hypothesis("swapped x/y", {"coords_center": centres[:, None, None, ::-1]}),
        Hypothesis("the first position for the mean", {"coords_center": places[:, :1, None]}),
    ]
    expected = {"coords_relative": ours(right), "coords_center": centres[:, None, None]}
    return Outcome(expected, {"coords_relative": found.coords, "coords_center": found.centres}, FLOAT32, mistakes)


def _scale(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found = mapped.scans, mapped.tables()
    members = [found.members[found.experiment_id == number] for number in range(len(scans))]
    patterns = [found.amplitude[rows].transpose(0, 2, 3, 1).astype(np.float64) for rows in members]

    def factor(images: np.ndarray) -> float:
        if not images.any():
            return float("nan")
        return float(oracle.normalise_amplitude(images, N)[images > 0][0] / images[images > 0][0])

    right = np.array([factor(images) for images in patterns])
    every = _each_scan(scans, found.amplitude)
    alone = [factor(images.transpose(1, 2, 0)[None].astype(np.float64)) for images in every]
    mistakes = [
        Hypothesis("mean over patterns for mean over groups", {"scale": np.array(alone)}),
        Hypothesis("root mean square of N² for (N/2)²", {"scale": 2 * right}),
        Hypothesis("root missing", {"scale": right**2}),
        Hypothesis("divided in place of multiplied", {"scale": 1 / right}),
        Hypothesis("sum over channels in place of mean", {"scale": right / np.sqrt(C)}),
        Hypothesis("mean over pixels in place of sum", {"scale": right * N}),
        Hypothesis("not normalised", {"scale": np.ones_like(right)}),
        Hypothesis("one scale for all scans", {"scale": np.full_like(right, right[0])}),
        Hypothesis("scales of scans exchanged", {"scale": right[::-1]}),
        Hypothesis("square root of the normalisation", {"scale": np.sqrt(right)}),
    ]
    return Outcome({"scale": right}, {"scale": found.scale}, FLOAT32, mistakes)


def _batch(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    table, chosen = mapped.tables(), np.array([40, 3, 17, 54, 0])
    batch = mapped.dataset()[chosen]
    rows = table.members[chosen]
    scan = table.experiment_id[chosen]
    scale = table.scale[scan].astype(np.float64)
    raw = table.amplitude[rows].astype(np.float64)
    right = raw * scale[:, None, None, None]
    probe = np.repeat(table.probe[scan], C, axis=1)
    expected = {
        "images": right,
        "coords": table.coords[chosen],
        "scale": scale,
        "centres": table.centres[chosen],
        "indices": rows,
        "experiment_ids": scan,
        "probe": probe,
        "good_pixels": table.good_pixels[scan][:, None],
    }
    given = {
        name: np.asarray(getattr(batch, name).numpy(force=True))
        for name in ("images", "coords", "scale", "centres", "indices", "experiment_ids", "probe", "good_pixels")
    }
    given |= {name: given[name].astype(np.int64) for name in ("indices", "experiment_ids")}
    other = 1 - scan
    wrong = table.scale[other].astype(np.float64)
    mistakes = [
        Hypothesis("not normalised", {"images": raw}),
        Hypothesis("normalised twice", {"images": right * scale[:, None, None, None]}),
        Hypothesis("divided in place of multiplied", {"images": raw / scale[:, None, None, None]}),
        Hypothesis("scale of another scan", {"images": raw * wrong[:, None, None, None], "scale": wrong}),
        Hypothesis("scale of another scan", {"images": raw * table.scale[0]}),
        Hypothesis("the pattern of the first channel for all", {"images": np.repeat(right[:, :1], C, axis=1)}),
        Hypothesis("channel order reversed", {"images": right[:, ::-1]}),
        Hypothesis("channel order reversed", {"coords": table.coords[chosen][:, ::-1]}),
        Hypothesis("intensity for amplitude", {"images": right**2}),
        Hypothesis("sign of offsets", {"coords": -table.coords[chosen]}),
        Hypothesis("swapped x/y", {"coords": table.coords[chosen][..., ::-1]}),
        Hypothesis("probe of another scan", {"probe": np.repeat(table.probe[other], C, axis=1)}),
        Hypothesis("probe of another scan", {"probe": np.repeat(table.probe[np.zeros_like(scan)], C, axis=1)}),
        Hypothesis("conjugation", {"probe": probe.conj()}),
        Hypothesis("mask inverted", {"good_pixels": ~table.good_pixels[scan][:, None]}),
        *_of_images("images", right),
        *_of_images("probe", probe),
    ]
    return Outcome(expected, given, FLOAT32, mistakes)


def _probe(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found = mapped.scans, mapped.tables()
    right = np.stack([scan["probeGuess"][None] for scan in scans.values()])
    good = np.stack([~scan["bad_pixels"] for scan in scans.values()])
    mistakes = [
        Hypothesis("conjugation", {"probe": right.conj()}),
        Hypothesis("probe of another scan", {"probe": right[::-1]}),
        Hypothesis("probe of another scan", {"probe": np.stack([right[0], right[0]])}),
        Hypothesis("amplitude of the probe alone", {"probe": np.abs(right)}),
        Hypothesis("mask inverted", {"good_pixels": ~good}),
        Hypothesis("spatial transpose", {"good_pixels": good.swapaxes(-1, -2)}),
        Hypothesis("mask of another scan", {"good_pixels": good[::-1]}),
        Hypothesis("missing mask", {"good_pixels": np.ones_like(good)}),
        *_of_images("probe", right),
    ]
    return Outcome(
        {"probe": right, "good_pixels": good}, {"probe": found.probe, "good_pixels": found.good_pixels}, 0.0, mistakes
    )


def _derived(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, table, derived = mapped.scans, mapped.tables(), mapped.dataset().derived()
    counts = np.square(table.amplitude.astype(np.float64)).sum(axis=(1, 2))
    steps = []
    for part in _each_scan(scans, table.positions_px):
        distance = np.linalg.norm(part[:, None] - part[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        steps.append(np.median(distance.min(axis=1)))
    reach = float(np.abs(table.coords).max())
    offset = round(float(np.median(steps)))
    jitter = max(2 * int(np.ceil(reach)) - (GRID - 1) * offset, 0)
    jitter += ((GRID - 1) * offset + jitter) % 2
    right = {
        "nphotons": np.array(counts[table.members].mean()),
        "step_px": np.array(np.median(steps)),
        "offset": np.array(offset),
        "max_position_jitter": np.array(jitter),
    }
    given = {name: np.array(getattr(derived, name)) for name in right}
    mistakes = [
        Hypothesis("mean over patterns for mean over groups", {"nphotons": np.array(counts.mean())}),
        Hypothesis("amplitude for intensity", {"nphotons": np.array(table.amplitude.sum(axis=(1, 2)).mean())}),
        Hypothesis("sum over the channels of a group", {"nphotons": C * right["nphotons"]}),
        Hypothesis("the reference's fixed jitter", {"max_position_jitter": np.array(10)}),
        Hypothesis("the canvas too small by half", {"max_position_jitter": np.array(jitter // 2)}),
    ]
    return Outcome(right, given, FLOAT32, mistakes)


def _epoch(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    from ptycho_torch.dset_loader_pt_mmap import GroupSampler, TensorDictDataLoader

    size, dataset = 5, mapped.dataset()
    training, validation = dataset.validation_split()

    def loader(seed: int = 5) -> TensorDictDataLoader:
        return TensorDictDataLoader(dataset, size, groups=training, shuffle=True, seed=seed)

    ours, again, other = loader(), loader(), loader(seed=6)
    epochs = [list(ours) for _ in range(2)]
    count = len(dataset)
    orders = [_order(epoch) for epoch in epochs]
    lengths = np.array([len(batch.groups) for batch in epochs[0]])
    kept = int(np.floor(0.95 * count))
    full, rest = divmod(kept, size)
    broken = iter(again)
    before = _order([next(broken) for _ in range(3)])
    resumed = loader()
    resumed.load_state_dict(again.state_dict())
    # Of an odd number of groups, two processes take one twice: none of them waits for the other.
    odd = training[: kept - kept % 6 + 3]
    alone = np.concatenate([each.numpy() for each in GroupSampler(odd, 3, shuffle=True, seed=5)])
    parts = [GroupSampler(odd, 3, shuffle=True, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    pairs = [np.concatenate(pair) for pair in zip(*([each.numpy() for each in part] for part in parts), strict=True)]
    expected = {
        "validation": np.arange(kept, count),
        "every training group once an epoch": np.arange(kept),
        "lengths of batches": np.array([size] * full + ([rest] if rest else [])),
        "another order than the map's": np.array(True),
        "another order each epoch": np.array(True),
        "another order with another seed": np.array(True),
        "an epoch that was broken off goes on": orders[0],
        "groups of two processes": np.append(alone, alone[0]),
    }
    given = {
        "validation": validation.numpy(),
        "every training group once an epoch": np.sort(orders[0]),
        "lengths of batches": lengths,
        "another order than the map's": np.array(not np.array_equal(orders[0], np.sort(orders[0]))),
        "another order each epoch": np.array(not np.array_equal(orders[0], orders[1])),
        "another order with another seed": np.array(not np.array_equal(orders[0], _order(other))),
        "an epoch that was broken off goes on": np.concatenate([before, _order(resumed)]),
        "groups of two processes": np.concatenate(pairs),
    }
    mistakes = [
        Hypothesis("validation groups taken from the front", {"validation": np.arange(count - kept)}),
        Hypothesis(
            "the last, smaller batch left out",
            {"lengths of batches": np.array([size] * full), "every training group once an epoch": np.sort(orders[0])},
        ),
        Hypothesis("the same order each epoch", {"another order each epoch": np.array(False)}),
        Hypothesis("the same order with every seed", {"another order with another seed": np.array(False)}),
        NEVER_SHUFFLED,
        Hypothesis(
            "an epoch that was broken off begins again",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0]])},
        ),
        Hypothesis(
            "an epoch that was broken off goes on one batch too late",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0][4 * size :]])},
        ),
        Hypothesis(
            "an epoch that was broken off goes on one batch too early",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0][2 * size :]])},
        ),
    ]
    return Outcome(expected, given, 0.0, mistakes)


NEVER_SHUFFLED = Hypothesis(
    "training groups not shuffled",
    {
        name: np.array(False)
        for name in (
            "another order than the map's",
            "another order each epoch",
            "another order with another seed",
        )
    },
)


def _order(batches: Iterable[PtychoBatch]) -> np.ndarray:
    """Return the numbers of the groups in the order in which batches have them."""
    return np.concatenate([batch.groups.numpy() for batch in batches])


Parts = dict[str, np.ndarray]


def _streamed(dataset: PtychoDataset, workers: int) -> tuple[Parts, Parts, dict[str, Parts]]:
    """Return what an epoch of a loader should give, what it gave, and what it would give by each mistake."""
    from ptycho_torch.dset_loader_pt_mmap import TensorDictDataLoader

    size, table = 5, _Tables.of(dataset)
    # All batches of an epoch are held: none may be in memory that another was given.
    loader = TensorDictDataLoader(dataset, size, shuffle=True, seed=SEED, num_workers=workers)
    batches, groups = list(loader), np.concatenate([each.numpy() for each in loader.sampler.batches(0)])
    scan, rows, coords = table.experiment_id[groups], table.members[groups], table.coords[groups]
    scale = table.scale[scan].astype(np.float64)
    factor, raw = scale[:, None, None, None], table.amplitude[rows].astype(np.float64)
    images = raw * factor

    def probe_of(scans: np.ndarray) -> np.ndarray:
        modes = np.repeat(table.probe[scans][:, None], C, axis=1)  # (B, C, modes, N, N)
        return modes[:, :, 0] if modes.shape[2] == 1 else modes

    probe = probe_of(scan)
    right = {"images": images, "coords": coords, "probe": probe, "scale": scale}
    # Training takes a batch apart in the same way.
    unpacked = zip(right, zip(*batches, strict=True), strict=True)
    found = {part: np.concatenate([each.numpy() for each in those]) for part, those in unpacked}
    right |= {"groups": groups, "patterns": rows, "good pixels": table.good_pixels[scan][:, None]}
    found["groups"] = _order(batches)
    found["patterns"] = np.concatenate([batch.indices.numpy() for batch in batches]).astype(np.int64)
    found["good pixels"] = np.concatenate([np.asarray(batch.good_pixels) for batch in batches])
    full = len(groups) // size * size
    used_again = np.concatenate([np.tile(images[full - size : full], (full // size, 1, 1, 1)), images[full:]])
    wrong = {
        "not normalised": {"images": raw},
        "divided in place of multiplied": {"images": raw / factor},
        "normalised twice": {"images": images * factor},
        "scale of another scan": {"images": raw * table.scale[0]},
        "memory of a batch used again while it is held": {"images": used_again},
        "channel order reversed": {"images": images[:, ::-1]},
        "sign of offsets": {"coords": -coords},
        "swapped x/y": {"coords": coords[..., ::-1]},
        "probe of another scan": {"probe": probe_of(np.zeros_like(scan))},
        "modes of the probe exchanged": {"probe": probe[:, :, ::-1]},
        "conjugation": {"probe": probe.conj()},
        "mask inverted": {"good pixels": ~right["good pixels"]},
    }
    return right, found, wrong


def _loader(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    expected: Parts = {}
    given: Parts = {}
    wrong: dict[str, Parts] = {}
    for dataset, whose in ((mapped.dataset(), "two scans"), (mapped.alone, "one scan of two modes")):
        for workers, how in ((0, "when asked"), (2, "by workers")):
            right, found, mistakes = _streamed(dataset, workers)
            name = f"{whose}, gathered {how}"
            expected |= {f"{part}: {name}": values for part, values in right.items()}
            given |= {f"{part}: {name}": values for part, values in found.items()}
            for mistake, parts in mistakes.items():
                wrong.setdefault(mistake, {}).update({f"{part}: {name}": each for part, each in parts.items()})
    return Outcome(expected, given, FLOAT32, [Hypothesis(mistake, gives) for mistake, gives in wrong.items()])


def _if_another_order(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return what was found if it is the same groups in another order, else what is right."""
    return found if np.array_equal(np.sort(found), np.sort(right)) else right


def _split(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    from ptycho_torch.train import loaders

    dataset, size, workers = mapped.dataset(), 6, 2
    count = len(dataset)
    kept = int(np.floor(0.8 * count))
    every = np.arange(count)
    at_random = TrainingSettings(batch_size=size, seed=4, num_workers=workers, validation_fraction=0.2, device="cpu")
    the_last = dataclasses.replace(at_random, validation_selection="last")
    expected: Parts = {}
    given: Parts = {}
    wrong: dict[str, Parts] = {}

    def lengths(groups: int) -> np.ndarray:
        return np.array([size] * (groups // size) + [groups % size] * bool(groups % size))

    for settings in (at_random, the_last):
        training, validation = loaders(dataset, settings)
        other, other_validation = loaders(dataset, dataclasses.replace(settings, seed=5))
        if validation is None or other_validation is None:
            raise ValueError("no group is left for validation")
        epochs = [list(training) for _ in range(2)]
        first, second = map(_order, epochs)
        kept_back, later = (_order(validation) for _ in range(2))
        rest = np.setdiff1d(every, kept_back)
        judged = {
            "training": (rest, np.sort(first)),
            "training of the next epoch": (rest, np.sort(second)),
            "another order than that of the split": (True, not np.array_equal(first, training.sampler.groups)),
            "another order each epoch": (True, not np.array_equal(first, second)),
            "another order with another seed": (True, not np.array_equal(first, _order(other))),
            "the same order with the same seed": (first, _order(loaders(dataset, settings)[0])),
            "lengths of batches": (lengths(kept), np.array([len(batch.groups) for batch in epochs[0]])),
            "validation of the next epoch": (kept_back, later),
            "lengths of validation": (lengths(count - kept), np.array([len(each.groups) for each in validation])),
            "workers": (np.full(2, workers), np.array([training.num_workers, validation.num_workers])),
        }
        mistakes: dict[str, dict[str, np.ndarray | bool]] = {
            "validation groups shuffled": {"validation of the next epoch": _if_another_order(later, kept_back)},
            "the same order with every seed": {"another order with another seed": False},
            "the same order each epoch": {"another order each epoch": False},
            "training groups not shuffled": {
                "another order than that of the split": False,
                "another order each epoch": False,
                "another order with another seed": settings is at_random,
            },
            "validation groups in training as well": {
                "training": every, "training of the next epoch": every, "lengths of batches": lengths(count)
            },
            "training and validation exchanged": {
                "lengths of batches": lengths(count - kept), "lengths of validation": lengths(kept)
            },
            "the default fraction for validation": {
                "lengths of batches": lengths(int(np.floor(0.95 * count))),
                "lengths of validation": lengths(count - int(np.floor(0.95 * count))),
            },
        }  # fmt: skip
        if settings is the_last:
            judged["validation"] = (every[kept:], kept_back)
            judged["validation with another seed"] = (every[kept:], _order(other_validation))
            mistakes["validation groups taken from the front"] = dict.fromkeys(
                ("validation", "validation with another seed"), every[: count - kept]
            )
            mistakes["validation groups taken at random"] = {
                f"validation{seed}": given[f"groups of validation{seed}"] for seed in ("", " with another seed")
            }
        else:
            judged["validation at random"] = (True, not np.array_equal(np.sort(kept_back), every[kept:]))
            judged["validation with another seed"] = (True, not np.array_equal(kept_back, _order(other_validation)))
            given["groups of validation"] = kept_back
            given["groups of validation with another seed"] = _order(other_validation)
            mistakes["validation groups not taken at random"] = {
                "validation at random": False, "validation with another seed": False
            }  # fmt: skip
            mistakes["the same validation groups with every seed"] = {"validation with another seed": False}
        name = settings.validation_selection
        expected |= {f"{part}: {name}": np.asarray(right) for part, (right, _) in judged.items()}
        given |= {f"{part}: {name}": np.asarray(found) for part, (_, found) in judged.items()}
        for mistake, gives in mistakes.items():
            parts = {f"{part}: {name}": np.asarray(each) for part, each in gives.items()}
            wrong.setdefault(mistake, {}).update(parts)
    whole, none = loaders(dataset, dataclasses.replace(at_random, validation_fraction=0.0))
    expected |= {"no validation": np.array(True), "all groups in training": every}
    given |= {"no validation": np.array(none is None), "all groups in training": np.sort(_order(whole))}
    return Outcome(expected, given, 0.0, [Hypothesis(mistake, gives) for mistake, gives in wrong.items()])


def _step(name: str, clauses: tuple[str, ...], run: Callable[[StepBench], Outcome]) -> Step:
    return Step(f"data.{name}", clauses, run, ("tensordict",))


DATA: tuple[Step, ...] = (
    Step("data.prepare", ("STEP-DATA", "PREP-01"), _prepare),
    _step("patterns", ("STEP-DATA", "MAP-01"), _patterns),
    _step("positions", ("STEP-DATA", "MAP-01"), _positions),
    _step("groups", ("STEP-DATA", "GROUP-02", "REF-08"), _groups),
    _step("offsets", ("STEP-DATA", "GROUP-03"), _offsets),
    _step("scale", ("STEP-DATA", "GROUP-04"), _scale),
    _step("probe", ("STEP-DATA", "PROBE-01"), _probe),
    _step("prepared_map", ("STEP-DATA", "PREP-01", "MAP-01"), _prepared),
    _step("batch", ("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04", "BATCH-05"), _batch),
    _step("derived", ("STEP-DATA", "PREP-02"), _derived),
    _step("epoch", ("STEP-DATA",), _epoch),
    _step("loader", ("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04"), _loader),
    Step("data.split", ("STEP-DATA",), _split, ("lightning", "tensordict")),
)
"""In the order of the data path. Each step takes what the one before has made, right or wrong."""
