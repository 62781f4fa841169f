"""Settings that a scan decides, each derived unless it is given, for every combination of what is given."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle_operations import intensity_scale
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_map_tables import FRAME_PX, Scans, all_tables, draw_unlike_scans, with_settings
from conformance.steps_maps import PLAIN, folder_of_scans
from conformance.steps_scans import FLOAT32, Arrays, named
from ptycho_torch import preparation
from ptycho_torch.config_params import ModelSettings
from ptycho_torch.preparation import DerivedSettings
from ptycho_torch.scaling import intensity_scale as our_intensity_scale

REFERENCE_OFFSET_PX, REFERENCE_JITTER_PX = 4, 10
REACHES_PX = np.array([0.0, 2.25, 5.0, 6.5, 7.0, 7.5, 8.75, 11.5, 3.0])
NPHOTONS, OFFSET_PX, JITTER_PX = 3.5e4, 6, 8


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user gives, and the numbers of a scan.

    Attributes:
        mean_counts: mean of Σ amplitude² over the patterns of all groups.
        step_px: median over scans of the ``step_px`` of each.
        reach_px: largest |offset| of each group.
        gridsize: of the groups.
        nphotons, offset, max_position_jitter: as given; None is derived.
    """

    mean_counts: float
    step_px: float
    reach_px: np.ndarray
    gridsize: int
    nphotons: float | None = None
    offset: int | None = None
    max_position_jitter: int | None = None

    def without(self, name: str) -> Given:
        """Return the same with one setting not given."""
        return dataclasses.replace(self, **{name: None})  # type: ignore[arg-type]

    def derived(self, whole: float | None = None) -> Arrays:
        """Return the settings and numbers by their definition (PREP-02)."""
        offset = math.floor(self.step_px + 0.5) if self.offset is None else self.offset
        widest = float(self.reach_px.max())
        spread = (self.gridsize - 1) * offset
        jitter = self.max_position_jitter
        if jitter is None:
            # The least that is not negative, makes the sum even, and holds the widest group.
            needed = math.ceil(widest) if whole is None else whole
            jitter = next(
                each for each in itertools.count() if not (spread + each) % 2 and (spread + each) / 2 >= needed
            )
        padding = (spread + jitter) // 2
        fixed = ((self.gridsize - 1) * REFERENCE_OFFSET_PX + REFERENCE_JITTER_PX) // 2
        return _numbers(
            nphotons=self.mean_counts if self.nphotons is None else self.nphotons,
            offset=offset,
            max_position_jitter=jitter,
            step_px=self.step_px,
            reach_px=widest,
            padding_px=padding,
            groups=len(self.reach_px),
            clipped_groups=sum(each > padding for each in self.reach_px.tolist()),
            clipped_by_reference=sum(each > fixed for each in self.reach_px.tolist()),
            reference_padding_px=fixed,
        )

    def by_us(self) -> Arrays:
        """Return what the package derives."""
        return _found(
            preparation.derive(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        )


def _numbers(**numbers: float) -> Arrays:
    return {name: np.array(float(number)) for name, number in numbers.items()}


def _found(derived: DerivedSettings) -> Arrays:
    return _numbers(**{name: value for name, value in vars(derived).items() if name != "nphotons_source"})


def _combinations() -> Iterator[tuple[str, Given]]:
    choices = ((1, 2, 3), (None, NPHOTONS), (None, OFFSET_PX), (None, JITTER_PX), (2.75, 6.25), (3, len(REACHES_PX)))
    for gridsize, nphotons, offset, jitter, step, groups in itertools.product(*choices):
        name = f"gridsize {gridsize}, step {step} px, {groups} groups"
        for what, value in (("photons", nphotons), ("offset", offset), ("jitter", jitter)):
            name += f", {what} given" if value is not None else ""
        yield name, Given(1.25e4, step, REACHES_PX[:groups], gridsize, nphotons, offset, jitter)


def _derived_given(_: StepBench) -> Outcome:
    """Derive settings from numbers, with every combination of them given."""
    cases = dict(_combinations())
    right = {name: case.derived() for name, case in cases.items()}

    def mistakes() -> Iterator[Hypothesis]:
        for setting, what in (("nphotons", "photons"), ("offset", "offset"), ("max_position_jitter", "jitter")):
            ignored = {name: case.without(setting).derived() for name, case in cases.items()}
            yield Hypothesis(f"given {what} ignored", named(ignored))
        wrong = {name: case.derived(float(case.reach_px.max())) for name, case in cases.items()}
        yield Hypothesis("reach of the groups not rounded up", named(wrong))
        wrong = {name: case.derived(math.ceil(float(np.median(case.reach_px)))) for name, case in cases.items()}
        yield Hypothesis("reach of the middle group for the widest", named(wrong))
        wrong = {name: case.derived(math.ceil(float(case.reach_px.max())) / 2) for name, case in cases.items()}
        yield Hypothesis("the canvas too small by half", named(wrong))
        square = {name: dataclasses.replace(case, gridsize=case.gridsize + 1).derived() for name, case in cases.items()}
        yield Hypothesis("gridsize for gridsize − 1", named(square))

    return Outcome(named(right), named({name: case.by_us() for name, case in cases.items()}), FLOAT64, mistakes)


# -------------------------------------------------------------------------------------------- of a dataset


def step_px(positions_px: np.ndarray, *, distinct: bool = True) -> float:
    """Return the median distance from a place of (M, 2) positions to the nearest other one, by looking at all.

    Args:
        positions_px: of one scan.
        distinct: whether positions at the same place are one place.
    """
    places = np.array(sorted(set(map(tuple, positions_px.tolist())))) if distinct else positions_px
    if len(places) < 2:
        return 0.0
    far = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(far, np.inf)
    return float(np.median(far.min(axis=1)))


def _repeated_scans() -> Scans:
    """Return scans of different density, one of which stood at some places twice and saw the same there."""
    scans = draw_unlike_scans()
    for number, scan in enumerate(scans.values()):
        for key in ("xcoords", "ycoords"):
            scan[key] = scan[key] * (1 + 0.5 * number)
    first = next(iter(scans.values()))
    for key in ("xcoords", "ycoords", "diff3d"):
        first[key][4:8] = first[key][:4]
    return scans


DATASETS: Mapping[str, dict[str, float]] = {
    "nothing given": {},
    "photons given": {"nphotons": NPHOTONS},
    "offset given": {"offset": OFFSET_PX},
    "jitter given": {"max_position_jitter": JITTER_PX},
    "all given": {"nphotons": NPHOTONS, "offset": OFFSET_PX, "max_position_jitter": JITTER_PX},
}
SETTINGS = with_settings(PLAIN, n_subsample=2)


def _derived_of_scans(_: StepBench) -> Outcome:
    """Derive settings from a dataset of three scans, with some of them given, and complete a network with them."""
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    scans, given = _repeated_scans(), {}
    with folder_of_scans(scans) as root:
        for name, settings in DATASETS.items():
            ours = dict(settings)
            photons = ours.pop("nphotons", None)
            dataset = PtychoDataset(
                root / "scans", data_dir=root / "map", settings=with_settings(SETTINGS, nphotons=photons)
            )
            derived = dataset.derived(**ours)  # type: ignore[arg-type]
            given[name] = _found(derived) | _of_network(derived)
    positions = {name: np.stack([scan["xcoords"], scan["ycoords"]], axis=1) for name, scan in scans.items()}
    given["steps"] = {
        name: np.array(preparation.median_step(each))
        for name, each in {**positions, "one place": np.ones((4, 2))}.items()
    }
    tables = all_tables(scans, SETTINGS)
    steps = {name: step_px(each) for name, each in positions.items()}
    numbers = Given(
        mean_counts=float(tables["energy"][tables["nn_indices"]].mean()),
        step_px=float(np.median([*steps.values()])),
        reach_px=np.abs(tables["coords_relative"]).max(axis=(1, 2)),
        gridsize=SETTINGS.gridsize,
    )
    right = _of_dataset(numbers) | {"steps": _numbers(**steps, **{"one place": 0.0})}

    def mistakes() -> Iterator[Hypothesis]:
        def instead(name: str, **wrong: Any) -> Hypothesis:
            return Hypothesis(name, named(right | _of_dataset(dataclasses.replace(numbers, **wrong))))

        yield Hypothesis("given photons ignored", named(right | _of_dataset(numbers, ignored="nphotons")))
        yield Hypothesis("given offset ignored", named(right | _of_dataset(numbers, ignored="offset")))
        yield Hypothesis("given jitter ignored", named(right | _of_dataset(numbers, ignored="max_position_jitter")))
        twice = {name: step_px(each, distinct=False) for name, each in positions.items()}
        wrong = dataclasses.replace(numbers, step_px=float(np.median([*twice.values()])))
        same = {"steps": right["steps"] | _numbers(**twice)}
        yield Hypothesis("repeated positions are neighbours", named(right | _of_dataset(wrong) | same))
        yield Hypothesis("repeated positions are neighbours", named(right | same))
        yield instead("mean over scans for their median", step_px=float(np.mean([*steps.values()])))
        yield instead("step of the first scan", step_px=next(iter(steps.values())))
        yield instead("mean over patterns for mean over groups", mean_counts=float(tables["energy"].mean()))
        amplitude = tables["amplitude"].sum(axis=(1, 2))[tables["nn_indices"]]
        yield instead("amplitude for intensity", mean_counts=float(amplitude.mean()))
        yield instead("sum over the channels of a group", mean_counts=SETTINGS.C * numbers.mean_counts)
        yield instead("the reference's fixed jitter", max_position_jitter=REFERENCE_JITTER_PX)
        yield instead("half the reach of the groups", reach_px=numbers.reach_px / 2)

    return Outcome(named(right), named(given), FLOAT32, mistakes)


def _of_network(derived: DerivedSettings) -> Arrays:
    """Return the intensity scale that a network gets for these photons."""
    network = ModelSettings().network(
        N=64, gridsize=2, nphotons=derived.nphotons, offset=OFFSET_PX, max_position_jitter=JITTER_PX
    )
    assert network.intensity_scale is not None
    return _numbers(
        intensity_scale=network.intensity_scale,
        intensity_scale_of_patterns=our_intensity_scale(derived.nphotons, FRAME_PX),
    )


def _of_dataset(numbers: Given, *, ignored: str = "") -> dict[str, Arrays]:
    """Return what is derived of the numbers of the scans for each of what is given, but for a setting ignored."""
    found = {}
    for name, given in DATASETS.items():
        case = dataclasses.replace(numbers, **{key: value for key, value in given.items() if key != ignored})  # type: ignore[arg-type]
        derived = case.derived()
        photons = float(derived["nphotons"])
        found[name] = derived | _numbers(
            intensity_scale=intensity_scale(photons, N=64),
            intensity_scale_of_patterns=intensity_scale(photons, N=FRAME_PX),
        )
    return found


DERIVING: tuple[Step, ...] = (
    Step("data.derived_given", ("STEP-DATA", "PREP-02"), _derived_given),
    Step("data.derived_of_scans", ("STEP-DATA", "PREP-02"), _derived_of_scans, ("tensordict",)),
)
