"""Settings that a scan decides, each derived unless it is given, for every combination of what is given."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.judge.agreement import FLOAT32, FLOAT64, assert_agrees
from conformance.oracle.operations import intensity_scale
from ptycho_torch.config_params import ModelSettings
from ptycho_torch.data import preparation, scaling
from ptycho_torch.data.preparation import DerivedSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from tests.support.scan_scenes import FRAME_PX, PLAIN, Arrays, Given, Scans, all_tables, draw_unlike_scans, write_scans
from tests.support.scan_scenes import step_px as nearest_step_px

REACHES_PX = np.array([0.0, 2.25, 5.0, 6.5, 7.0, 7.5, 8.75, 11.5, 3.0])
CHOSEN: dict[str, Any] = {"nphotons": 3.5e4, "offset": 6, "max_position_jitter": 8}
GIVEN = {
    " ".join(names) or "nothing": {name: CHOSEN[name] for name in names}
    for count in range(4)
    for names in itertools.combinations(CHOSEN, count)
}


def numbers_of(derived: DerivedSettings) -> Arrays:
    return {name: np.array(float(value)) for name, value in vars(derived).items() if name != "nphotons_source"}


@pytest.mark.parity_clause("STEP-DATA", "PREP-02")
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_settings_follow_from_numbers_unless_they_are_given(gridsize: int, given: str) -> None:
    for step_px, groups in itertools.product((2.75, 6.25), (3, len(REACHES_PX))):
        case = Given(1.25e4, step_px, REACHES_PX[:groups], gridsize, **GIVEN[given])
        ours = preparation.derive(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)})
        assert_agrees(case.derived(), numbers_of(ours), FLOAT64)


def repeated_scans() -> Scans:
    """Return scans of different density, one of which stood at some places twice and saw the same there."""
    scans = draw_unlike_scans()
    for number, scan in enumerate(scans.values()):
        for key in ("xcoords", "ycoords"):
            scan[key] = scan[key] * (1 + 0.5 * number)
    first = next(iter(scans.values()))
    for key in ("xcoords", "ycoords", "diff3d"):
        first[key][4:8] = first[key][:4]
    return scans


@pytest.mark.parity_clause("STEP-DATA", "PREP-02")
@pytest.mark.parametrize("given", GIVEN)
def test_settings_follow_from_scans_unless_they_are_given(tmp_path: Path, given: str) -> None:
    """The network gets the intensity scale of these photons."""
    scans, settings, chosen = repeated_scans(), dataclasses.replace(PLAIN, n_subsample=2), dict(GIVEN[given])
    numbers = Given.of_tables(all_tables(scans, settings), scans, settings.gridsize)
    right = dataclasses.replace(numbers, **chosen).derived()
    write_scans(tmp_path / "scans", scans)
    settings = dataclasses.replace(settings, nphotons=chosen.pop("nphotons", None))
    derived = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=settings).derived(**chosen)
    network = ModelSettings().network(
        N=64, gridsize=2, nphotons=derived.nphotons, offset=derived.offset, max_position_jitter=8
    )
    found = numbers_of(derived) | {
        "scale of the network": np.array(network.intensity_scale),
        "scale of these patterns": np.array(scaling.intensity_scale(derived.nphotons, FRAME_PX)),
    }
    right |= {
        "scale of the network": np.array(intensity_scale(float(right["nphotons"]), N=64)),
        "scale of these patterns": np.array(intensity_scale(float(right["nphotons"]), N=FRAME_PX)),
    }
    assert_agrees(right, found, FLOAT32)


@pytest.mark.parity_clause("STEP-DATA", "PREP-02")
def test_the_step_of_a_scan_is_the_median_to_the_nearest_other_place() -> None:
    places = [np.stack([scan["xcoords"], scan["ycoords"]], axis=1) for scan in repeated_scans().values()]
    for positions_px in (*places, np.ones((4, 2))):
        assert preparation.median_step(positions_px) == pytest.approx(nearest_step_px(positions_px), rel=1e-12)
