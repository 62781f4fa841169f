"""The module that is trained, before its first update: what data decide of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import oracle_operations as oracle
from conformance.hypotheses import Hypothesis
from conformance.small_runs import COMMON, GRID, PATTERNS, PROBE_SCALE, SIDE_PX, SmallScans
from conformance.step import Outcome, Step, StepBench
from conformance.steps_derived import Given, step_px
from conformance.steps_light import normalised
from conformance.steps_scans import FLOAT32, Tables
from ptycho_torch.config_params import Settings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
    from ptycho_torch.train import PtychoPINN


def _numbers_of(scans: SmallScans, dataset: PtychoDataset) -> Given:
    """Compute the numbers of the scans, from the groups and offsets of their map."""
    table = Tables.of(dataset)
    counts = np.square(table.amplitude.astype(np.float64)).sum(axis=(1, 2))
    steps = [step_px(np.stack([scan["xcoords"], scan["ycoords"]], axis=1)) for scan in scans.scans.values()]
    return Given(
        mean_counts=float(counts[table.members].mean()),
        step_px=float(np.median(steps)),
        reach_px=np.abs(table.coords).max(axis=(1, 2, 3)),
        gridsize=GRID,
    )


DERIVED = ("offset", "max_position_jitter", "nphotons", "step_px", "reach_px", "groups", "clipped_groups")
"""What a module has of the numbers of its scans."""


def _wanted(numbers: Given, *, intensity_scale: float | None = None, **given: int | None) -> dict[str, Any]:
    """Return what a module of these data has, with offset and jitter as they are given."""
    derived = dataclasses.replace(numbers, **given).derived()  # type: ignore[arg-type]
    if intensity_scale is None:
        intensity_scale = oracle.intensity_scale(float(derived["nphotons"]), N=SIDE_PX)
    decided = {name: derived[name] for name in DERIVED}
    return {"N": SIDE_PX, "gridsize": GRID, "intensity_scale": intensity_scale} | decided


FIELDS = ("N", "gridsize", "offset", "max_position_jitter", "intensity_scale")
"""Of the settings of a network, those that data decide."""


def _of_module(module: PtychoPINN) -> dict[str, Any]:
    network = dataclasses.asdict(module.network.settings)
    return {**module.statistics, **{name: network[name] for name in FIELDS}}


def _of_data(bench: StepBench) -> Outcome:
    """Make modules of datasets with one probe and with several, with what data decide given and not, or no data."""
    from ptycho_torch.errors import ConfigError
    from ptycho_torch.train import PtychoPINN

    scans = bench.once(SmallScans)
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    wrong: dict[str, dict[str, np.ndarray]] = {}
    numbers = _numbers_of(scans, scans.dataset(Settings().override(COMMON), one_probe=False))
    offset, jitter = (int(numbers.derived()[name]) for name in ("offset", "max_position_jitter"))
    # Its sum with the offset is even, and too small for the groups.
    little = 2 - offset % 2
    total = sum(float(scan[axis].sum()) for scan in scans.scans.values() for axis in ("xcoords", "ycoords"))
    cases: dict[str, tuple[bool, dict[str, Any]]] = {
        "own probes": (False, {}),
        "own probes, offset given": (False, {"offset": offset + 2}),
        "own probes, jitter given": (False, {"max_position_jitter": little}),
        "one probe, all given": (True, {"offset": 3, "max_position_jitter": 5, "intensity_scale": 2.5}),
    }
    for case, (one_probe, given) in cases.items():
        settings = Settings().override({**COMMON, **given})
        module = PtychoPINN.for_dataset(scans.dataset(settings, one_probe=one_probe), settings)
        right = _wanted(numbers, **given) | {
            "probe_modes": 1 + one_probe, "one_probe": one_probe, "patterns": sum(PATTERNS),
            "positions_sum_px": total, "scans": [f"{name}.npz" for name in scans.scans],
        }  # fmt: skip
        said = _of_module(module)
        expected |= {f"{case}: {name}": np.array(each) for name, each in right.items()}
        found |= {f"{case}: {name}": np.array(said[name]) for name in right}
        modes = scans.modes if one_probe else next(iter(scans.scans.values()))["probeGuess"][None]
        expected[f"{case}: probe"] = normalised(modes.astype(np.complex128), PROBE_SCALE)
        found[f"{case}: probe"] = module.network.probe.detach().numpy()
        for mistake, other in (
            ("jitter of another offset", _wanted(numbers, **{"max_position_jitter": jitter} | given)),
            ("given offset ignored", _wanted(numbers, **given | {"offset": None})),
            ("given jitter ignored", _wanted(numbers, **given | {"max_position_jitter": None})),
            ("one probe for all scans", {"one_probe": True}),
            ("a probe for each scan, whatever was given", {"one_probe": False}),
        ):
            gives = {f"{case}: {name}": np.array(each) for name, each in (right | other).items()}
            wrong.setdefault(mistake, {}).update(gives)
    judged, mistakes = _without_data()
    expected |= {name: each[0] for name, each in judged.items()}
    found |= {name: each[1] for name, each in judged.items()}
    try:
        trained = Settings().override({**COMMON, "probe_trainable": True})
        PtychoPINN.for_dataset(scans.dataset(trained, one_probe=False), trained)
        refused = False
    except ConfigError:
        refused = True
    expected["one trained probe for several refused"] = np.array(True)
    found["one trained probe for several refused"] = np.array(refused)
    return Outcome(expected, found, FLOAT32, [*(Hypothesis(name, gives) for name, gives in wrong.items()), *mistakes])


def _without_data() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[Hypothesis]]:
    """Return what modules without a dataset should have and have, and mistakes: the reference's canvas is theirs."""
    from ptycho_torch.train import PtychoPINN

    judged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    exchanged: dict[str, np.ndarray] = {}
    other: dict[str, np.ndarray] = {}
    cases: dict[str, dict[str, Any]] = {
        "nothing given": {"nphotons": 5e3},
        "offset given": {"nphotons": 5e3, "offset": 6},
        "jitter given": {"nphotons": 5e3, "max_position_jitter": 16},
        "scale given": {"intensity_scale": 7.5, "gridsize": 1},
    }
    for case, chosen in cases.items():
        module = PtychoPINN(Settings().override({**COMMON, **chosen}))
        right = {
            "N": SIDE_PX,
            "gridsize": GRID,
            "offset": 4,
            "max_position_jitter": 10,
            "intensity_scale": oracle.intensity_scale(5e3, N=SIDE_PX),
            **{name: value for name, value in chosen.items() if name != "nphotons"},
        }
        said = _of_module(module)
        for name in FIELDS:
            judged[f"without data, {case}: {name}"] = np.array(right[name]), np.array(said[name])
        exchanged[f"without data, {case}: max_position_jitter"] = np.array(right["offset"])
        other[f"without data, {case}: offset"] = np.array(right["max_position_jitter"])
    mistakes = [Hypothesis("offset for the jitter", exchanged), Hypothesis("jitter for the offset", other)]
    return judged, mistakes


MODULE: tuple[Step, ...] = (Step("optimiser.of_data", ("RUN-01", "PREP-02"), _of_data, ("lightning", "tensordict")),)
