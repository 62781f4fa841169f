"""The module that is trained, before its first update: what data decide of it, and what a checkpoint brings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformance.checks.light import draw_wave, normalised
from conformance.judge.agreement import FLOAT32, FLOAT64, assert_agrees
from conformance.oracle.operations import intensity_scale
from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError
from ptycho_torch.training import checkpoint
from tests.support.scan_scenes import Arrays, Given, found_tables, write_scans
from tests.support.training_runs import draw_two_scans, two_modes

PROBE_SCALE = 3.0
COMMON = {"n_filters_scale": 1, "gridsize": 2, "probe_scale": PROBE_SCALE, "precision": "64-true", "device": "cpu"}
OF_NETWORK = ("N", "gridsize", "offset", "max_position_jitter", "intensity_scale")
"""Settings of the network that data decide."""

OF_SCANS = ("nphotons", "step_px", "reach_px", "groups", "clipped_groups")
"""Numbers of the scans that a module keeps."""


def content_of(module: train.PtychoPINN) -> dict[str, Any]:
    network = dataclasses.asdict(module.network.settings)
    return {**module.statistics, **{name: network[name] for name in OF_NETWORK}}


def arrays(content: dict[str, Any]) -> Arrays:
    return {name: np.array(each) for name, each in content.items()}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("two") / "scans", draw_two_scans())


@pytest.mark.parity_clause("RUN-01", "PREP-02")
@pytest.mark.parametrize(
    ("one_probe", "given"),
    [
        (False, {}),
        (False, {"offset": 7}),
        # Its sum with the offset of 2 is even, and too small for the groups.
        (False, {"max_position_jitter": 2}),
        (True, {"offset": 3, "max_position_jitter": 5, "intensity_scale": 2.5}),
    ],
    ids=["nothing", "offset", "jitter", "all and one probe"],
)
def test_data_decide_what_nobody_gives(scans: Path, tmp_path: Path, one_probe: bool, given: dict[str, Any]) -> None:
    drawn, settings = draw_two_scans(), Settings().override({**COMMON, **given})
    probe = two_modes(drawn) if one_probe else None
    dataset = PtychoDataset(scans, data_dir=tmp_path / "map", settings=settings.data, probe=probe)
    numbers = Given.of_tables(found_tables(dataset), drawn, 2)
    derived = dataclasses.replace(
        numbers, **{name: given.get(name) for name in ("offset", "max_position_jitter")}
    ).derived()
    module = train.PtychoPINN.for_dataset(dataset, settings)
    right = {name: derived[name] for name in ("offset", "max_position_jitter", *OF_SCANS)} | arrays(
        {
            "N": 64,
            "gridsize": 2,
            "intensity_scale": given.get("intensity_scale", intensity_scale(float(derived["nphotons"]), N=64)),
            "probe_modes": 2 if one_probe else 1,
            "one_probe": one_probe,
            "patterns": 17,
            "scans": ["scan_0.npz", "scan_1.npz"],
            "positions_sum_px": sum(
                float(scan[key].sum()) for scan in drawn.values() for key in ("xcoords", "ycoords")
            ),
        }
    )
    modes = drawn["scan_0"]["probeGuess"][None] if probe is None else probe
    right["probe"] = normalised(modes.astype(np.complex128), PROBE_SCALE)
    found = arrays(content_of(module)) | {"probe": module.network.probe.detach().numpy()}
    assert_agrees(right, found, FLOAT32)


@pytest.mark.parity_clause("RUN-01", "PREP-02")
@pytest.mark.parametrize(
    "chosen",
    [
        {"nphotons": 5e3},
        {"nphotons": 5e3, "offset": 6},
        {"nphotons": 5e3, "max_position_jitter": 16},
        {"intensity_scale": 7.5, "gridsize": 1},
    ],
    ids=str,
)
def test_without_data_the_canvas_is_that_of_the_reference(chosen: dict[str, Any]) -> None:
    found = content_of(train.PtychoPINN(Settings().override({**COMMON, **chosen})))
    right = {"N": 64, "gridsize": 2, "offset": 4, "max_position_jitter": 10} | chosen
    right["intensity_scale"] = chosen.get("intensity_scale", intensity_scale(5e3, N=64))
    right.pop("nphotons", None)
    assert_agrees(arrays(right), arrays(found), FLOAT64)


@pytest.mark.parity_clause("RUN-01")
def test_one_trained_probe_for_several_of_the_scans_is_refused(scans: Path, tmp_path: Path) -> None:
    settings = Settings().override({**COMMON, "probe_trainable": True})
    dataset = PtychoDataset(scans, data_dir=tmp_path / "map", settings=settings.data)
    with pytest.raises(ConfigError, match="probe_trainable needs one probe"):
        train.PtychoPINN.for_dataset(dataset, settings)


@pytest.mark.parity_clause("STEP-OPTIMISER", "REF-02", "WEIGHT-01")
def test_a_new_run_takes_the_weights_of_a_checkpoint_and_a_prediction_takes_all_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    scales, trained_by = {"old": 2.5, "new": 7.25}, 0.3
    probes = {name: draw_wave(rng, 64, 64) for name in scales}
    modules = {
        name: train.PtychoPINN(
            Settings().override({**COMMON, "intensity_scale": scale, "seed": seed}),
            probe=torch.from_numpy(probes[name]),
        )
        for seed, (name, scale) in enumerate(scales.items())
    }
    old, new = modules["old"], modules["new"]
    with torch.no_grad():
        # What training has done to it, its scale among it.
        for name, each in old.network.named_parameters():
            each.add_(0 if name == "probe_parts" else trained_by)

    def content(module: train.PtychoPINN) -> Arrays:
        state = {name: each.detach().double().numpy() for name, each in module.network.state_dict().items()}
        parts, log_scale = state.pop("probe_parts"), state.pop("log_scale")
        weights = np.concatenate([state[name].ravel() for name in sorted(state)])
        probe = parts[..., 0] + 1j * parts[..., 1]
        return {"weights": weights, "probe": probe, "log_scale": log_scale, "scale": np.array(module.scale)}

    def wanted(name: str, log_scale: float) -> Arrays:
        return {
            "weights": weights,
            "probe": normalised(probes[name][None], PROBE_SCALE),
            "log_scale": np.array(log_scale),
            "scale": np.array(scales[name]),
        }

    weights = content(old)["weights"].copy()
    path = tmp_path / "old.ckpt"
    checkpoint.write_checkpoint(
        path, old.settings, old.network.settings, old.statistics, old.network.state_dict(), overwrite=False
    )
    train._start_from(new, checkpoint.read_checkpoint(path))
    assert_agrees(wanted("new", math.log(7.25)), content(new), FLOAT64)
    loaded = train.PtychoPINN.from_checkpoint(path)
    assert_agrees(wanted("old", math.log(2.5) + trained_by), content(loaded), FLOAT64)
