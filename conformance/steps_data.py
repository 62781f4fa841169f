"""The data path, step by step: from scan files on disk to the batches that the network is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from conformance import oracle_operations as oracle
from conformance.hypotheses import OFFSETS, Hypothesis
from conformance.oracle_data import draw_groups, neighbours, oriented
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import (
    CENTRED,
    FLOAT32,
    GRID,
    PREPARED,
    SEED,
    WANTED,
    C,
    K,
    MappedScans,
    N,
    Scan,
    Tables,
    joined,
    measured,
    of_images,
)


def _patterns(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, found = mapped.scans, mapped.tables()
    right = np.concatenate([measured(scan) for scan in scans.values()])
    reverse = np.concatenate([measured(scan) for scan in reversed(scans.values())])
    mistakes = [
        Hypothesis("scans in another order", {"amplitude": reverse}),
        Hypothesis("missing mask (bad pixels not set to zero)", {"amplitude": joined(scans, "diff3d")}),
        *of_images("amplitude", right),
        Hypothesis("amplitude for intensity", {"amplitude": np.sqrt(right)}),
    ]
    return Outcome({"amplitude": right}, {"amplitude": found.amplitude}, 0.0, mistakes)


def _prepared(bench: StepBench) -> Outcome:
    mapped = bench.once(MappedScans)
    scans, dataset = mapped.scans.values(), mapped.dataset(PREPARED)
    found = Tables.of(dataset)

    def turned(images: np.ndarray) -> np.ndarray:
        return oriented(images, transpose=True, flip="vertical")

    frames = np.concatenate([measured(scan) for scan in scans])
    x_y = np.stack([joined(mapped.scans, "xcoords"), joined(mapped.scans, "ycoords")], axis=1)
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
    x, y = joined(scans, "xcoords"), joined(scans, "ycoords")
    nominal = np.stack([joined(scans, "xcoords_start"), joined(scans, "ycoords_start")], axis=1)
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
        *of_images("images", right),
        *of_images("probe", probe),
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
        *of_images("probe", right),
    ]
    return Outcome(
        {"probe": right, "good_pixels": good}, {"probe": found.probe, "good_pixels": found.good_pixels}, 0.0, mistakes
    )


def _step(name: str, clauses: tuple[str, ...], run: Callable[[StepBench], Outcome]) -> Step:
    return Step(f"data.{name}", clauses, run, ("tensordict",))


DATA: tuple[Step, ...] = (
    _step("patterns", ("STEP-DATA", "MAP-01"), _patterns),
    _step("positions", ("STEP-DATA", "MAP-01"), _positions),
    _step("groups", ("STEP-DATA", "GROUP-02", "REF-08"), _groups),
    _step("offsets", ("STEP-DATA", "GROUP-03"), _offsets),
    _step("scale", ("STEP-DATA", "GROUP-04"), _scale),
    _step("probe", ("STEP-DATA", "PROBE-01"), _probe),
    _step("prepared_map", ("STEP-DATA", "PREP-01", "MAP-01"), _prepared),
    _step("batch", ("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04", "BATCH-05"), _batch),
)
"""In the order of the data path. Each step takes what the one before has made, right or wrong."""
