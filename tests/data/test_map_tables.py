"""Every table of a map in plain NumPy: for every setting, whose probe is whose, and what a change builds again."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.memory_map import Inputs, fingerprint
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from tests.support.scan_scenes import (
    FRAME_PX,
    PLAIN,
    Arrays,
    MapTables,
    Scans,
    all_tables,
    draw_unlike_scans,
    found_tables,
    group_tables,
    pattern_tables,
    stacked_probes,
    write_scans,
)

# ------------------------------------------------------------------------------------------------------- settings

MAPS = {
    "nominal positions": {"position_source": "nominal", "positions_swap_xy": True},
    "three groups a point": {"n_subsample": 3, "positions_flip_y": True},
    "not normalised": {"normalize": False, "group_sampler": "without_centre"},
    "groups of one": {"gridsize": 1},
    "oversampled": {"group_sampler": "reference", "n_groups": 30, "enable_oversampling": True},
    "binned and turned": {
        "N": FRAME_PX // 2, "detector_bin": 2, "detector_transpose": True, "detector_flip": "horizontal",
        "n_subsample": 2,
    },
    "cut out, binned and turned": {
        "N": 2, "detector_bin": 2, "detector_crop": True, "detector_centre_row_px": 3, "detector_centre_column_px": 5,
        "detector_transpose": True, "detector_flip": "vertical", "positions_swap_xy": True, "positions_flip_x": True,
    },
}  # fmt: skip


@pytest.mark.parity_clause("STEP-DATA", "MAP-01", "SCAN-07", "GROUP-02", "GROUP-03", "GROUP-04", "PREP-01")
@pytest.mark.parametrize("name", MAPS)
def test_every_table_is_what_the_settings_ask_for(tmp_path: Path, name: str) -> None:
    settings, scans = dataclasses.replace(PLAIN, **MAPS[name]), draw_unlike_scans()
    write_scans(tmp_path / "scans", scans)
    # Neither of these is a scan.
    for other in (".hidden.npz", "notes.txt"):
        (tmp_path / "scans" / other).write_bytes(b"notes")
    dataset = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=settings)
    right = all_tables(scans, settings)
    scale = right["scale"][right["experiment_id"]][:, None, None, None]
    right["images"] = right["amplitude"][right["nn_indices"]] * scale
    found = found_tables(dataset) | {"images": dataset[:].images.numpy()}
    assert_agrees(right, found, FLOAT32)
    if settings.detector_bin == 1:
        assert_agrees({name: right[name] for name in ("amplitude", "positions_px")}, found)


# ---------------------------------------------------------------------------------------------------- whose probe


def draw_probe(seed: int, *shape: int) -> np.ndarray:
    return draw_wave(np.random.default_rng(seed), *shape, FRAME_PX, FRAME_PX)


PROBE_FILES: dict[str, Arrays] = {
    # In the order of their names none of these is the probe of the scan of its number.
    "a_first": {"probe": draw_probe(60, 4)},
    "a_second": {"probe": draw_probe(61)},
    "aa_other": {"probe": draw_probe(62, 2)},
    "b_third": {"probeGuess": np.asfortranarray(draw_probe(63, 3)).astype(np.complex64)},
    "c_first": {"probe": draw_probe(64)[..., None], "probeGuess": draw_probe(65)},
}
ONE_MODE, THREE_MODES = draw_probe(70), draw_probe(71, 3)
OWN = [scan["probeGuess"] for scan in draw_unlike_scans().values()]


def of_file(name: str) -> np.ndarray:
    """Return (modes, N, N) of a probe file: ``probe`` before ``probeGuess``."""
    stored = next(iter(PROBE_FILES[name].values()))
    return stored.reshape(-1, FRAME_PX, FRAME_PX)


PROBES: dict[str, tuple[Callable[[Path], dict[str, Any]], list[np.ndarray]]] = {
    "a file for each scan": (
        lambda root: {"probe_dir": root / "probes"}, [of_file(name) for name in draw_unlike_scans()]
    ),
    "one file in the folder": (lambda root: {"probe_dir": root / "probe"}, [of_file("b_third")] * 3),
    "one file": (lambda root: {"probe_dir": root / "probes" / "c_first.npz"}, [of_file("c_first")] * 3),
    "not those of the folder": (
        lambda root: {
            "probe_dir": root / "probes", "settings": dataclasses.replace(PLAIN, probe_dir_get=False)
        },
        OWN,
    ),
    "those of the scans": (lambda root: {}, OWN),
    "one mode given": (lambda root: {"probe": torch.from_numpy(ONE_MODE)}, [ONE_MODE] * 3),
    "three modes given": (lambda root: {"probe": THREE_MODES}, [THREE_MODES] * 3),
}  # fmt: skip


@pytest.mark.parity_clause("STEP-DATA", "PROBE-01", "PROBE-02", "BATCH-03")
@pytest.mark.parametrize("name", PROBES)
def test_each_scan_has_its_probe(tmp_path: Path, name: str) -> None:
    """In the dataset, in the dataset that another process opens, and in batches."""
    options, right = PROBES[name]
    write_scans(tmp_path / "scans", draw_unlike_scans())
    write_scans(tmp_path / "probes", PROBE_FILES)
    write_scans(tmp_path / "probe", {"any": {"other": np.zeros(2), **PROBE_FILES["b_third"]}})
    named = {"settings": PLAIN, "data_dir": tmp_path / "map", **options(tmp_path)}
    dataset = PtychoDataset(tmp_path / "scans", **named)
    # The last group of each scan: batches have the probe of every pattern.
    last = np.searchsorted(dataset.experiment_ids.numpy(), np.arange(1, 4)) - 1
    batch = dataset[last].probe[:, 0].numpy()
    found = {
        "dataset": dataset.probes.numpy(),
        "out of a pickle": pickle.loads(pickle.dumps(dataset)).probes.numpy(),
        "batch": batch if batch.ndim == 4 else batch[:, None],
    }
    assert_agrees(dict.fromkeys(found, stacked_probes(right)), found, FLOAT32)


# ------------------------------------------------------------------------------------- what a map depends on

NOTHING, GROUPS, ALL = (False, False), (False, True), (True, True)
"""Whether patterns, and whether groups, are built again."""

Parts = tuple[bool, bool]
REFERENCE = dataclasses.replace(PLAIN, group_sampler="reference")

DEPENDS: dict[str, tuple[DataSettings, object, Parts]] = {
    "N": (PLAIN, 4, ALL),
    "gridsize": (PLAIN, 1, GROUPS),
    "K": (PLAIN, 5, GROUPS),
    "n_subsample": (PLAIN, 2, GROUPS),
    "group_sampler": (PLAIN, "without_centre", GROUPS),
    "group_seed": (PLAIN, 4, GROUPS),
    "n_groups": (REFERENCE, 5, GROUPS),
    "sequential_sampling": (REFERENCE, True, GROUPS),
    "enable_oversampling": (REFERENCE, True, GROUPS),
    "neighbor_pool_size": (REFERENCE, 7, GROUPS),
    "position_source": (PLAIN, "nominal", GROUPS),
    "normalize": (PLAIN, False, GROUPS),
    "probe_dir_get": (PLAIN, False, GROUPS),
    "nphotons": (PLAIN, 1e5, NOTHING),
    "detector_bin": (PLAIN, 2, ALL),
    "detector_crop": (PLAIN, True, ALL),
    "detector_centre_row_px": (PLAIN, 3, ALL),
    "detector_centre_column_px": (PLAIN, 3, ALL),
    "detector_transpose": (PLAIN, True, ALL),
    "detector_flip": (PLAIN, "both", ALL),
    "positions_swap_xy": (PLAIN, True, GROUPS),
    "positions_flip_x": (PLAIN, True, GROUPS),
    "positions_flip_y": (PLAIN, True, GROUPS),
}
"""Setting → settings to start from, another value, and the parts of a map that depend on it."""


def differ(one: tuple[Inputs, DataSettings], other: tuple[Inputs, DataSettings]) -> Parts:
    first, second = fingerprint(*one), fingerprint(*other)
    return first["patterns"] != second["patterns"], first["groups"] != second["groups"]


@pytest.mark.parity_clause("STEP-DATA", "MAP-02")
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DataSettings)])
def test_a_part_of_the_map_depends_on_a_setting(tmp_path: Path, name: str) -> None:
    inputs = Inputs(tuple(sorted(write_scans(tmp_path / "scans", draw_unlike_scans()).iterdir())))
    settings, value, parts = DEPENDS[name]
    assert differ((inputs, settings), (inputs, dataclasses.replace(settings, **{name: value}))) == parts


@pytest.mark.parity_clause("STEP-DATA", "MAP-02")
def test_a_part_of_the_map_depends_on_an_input(tmp_path: Path) -> None:
    scans = tuple(sorted(write_scans(tmp_path / "scans", draw_unlike_scans()).iterdir()))
    probe = np.ones((FRAME_PX, FRAME_PX), np.complex64)
    place = write_scans(tmp_path / "probes", {"one": {"probe": probe}, "other": {"probe": 1j * probe}})
    plain, given, one = Inputs(scans), Inputs(scans, probe=probe), Inputs(scans, (place / "one.npz",) * 3)
    two_and_other = Inputs(scans, (*[place / "one.npz"] * 2, place / "other.npz"))
    for what, start, changed, parts in (
        ("a given probe", plain, given, GROUPS),
        ("another given probe", given, Inputs(scans, probe=1j * probe), GROUPS),
        ("probe files", plain, one, GROUPS),
        ("other probe files", one, Inputs(scans, (place / "other.npz",) * 3), GROUPS),
        ("one probe file of three", one, two_and_other, GROUPS),
        ("one scan less", plain, Inputs(scans[:2]), ALL),
    ):
        assert differ((start, PLAIN), (changed, PLAIN)) == parts, what


# ------------------------------------------------------------------------------------- what is built again


@dataclasses.dataclass(frozen=True)
class State:
    """What a map is made of."""

    scans: Scans
    settings: DataSettings
    probe: np.ndarray | None = None

    def member(self, key: str, change: Callable[[np.ndarray], np.ndarray]) -> State:
        """Change a member of the second scan."""
        name = list(self.scans)[1]
        changed = self.scans[name] | {key: change(self.scans[name][key])}
        return dataclasses.replace(self, scans={**self.scans, name: changed})

    def setting(self, **changed: Any) -> State:
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changed))


FIRST = State(draw_unlike_scans(), dataclasses.replace(PLAIN, gridsize=1))
PROBE = FIRST.scans["a_second"]["probeGuess"]

SCENES: dict[str, tuple[Callable[[State], State], Parts]] = {
    "nothing": (lambda now: now, NOTHING),
    "photons": (lambda now: now.setting(nphotons=7e4), NOTHING),
    "patterns": (lambda now: now.member("diff3d", lambda frames: frames[::-1] + np.float32(1)), ALL),
    "positions": (lambda now: now.member("xcoords", lambda x: x[::-1] + 2.5), GROUPS),
    "probe of a scan": (lambda now: now.member("probeGuess", lambda probe: 2 * probe.conj()), GROUPS),
    "mask": (lambda now: now.member("bad_pixels", lambda bad: bad[::-1, ::-1]), ALL),
    "flip": (lambda now: now.setting(detector_flip="vertical"), ALL),
    "transpose": (lambda now: now.setting(detector_transpose=True), ALL),
    "swap": (lambda now: now.setting(positions_swap_xy=True), GROUPS),
    "gridsize": (lambda now: now.setting(gridsize=2), GROUPS),
    "seed": (lambda now: now.setting(group_seed=8), GROUPS),
    "a given probe": (lambda now: dataclasses.replace(now, probe=2 * PROBE), GROUPS),
    "another given probe": (lambda now: dataclasses.replace(now, probe=PROBE.T), GROUPS),
    "a scan less": (lambda now: dataclasses.replace(now, scans=dict(list(now.scans.items())[:-1])), ALL),
    "a scan more": (
        lambda now: dataclasses.replace(now, scans={**now.scans, "d_other": FIRST.scans["b_third"]}), ALL
    ),
    "side of the patterns": (lambda now: now.setting(N=FRAME_PX // 2, detector_bin=2), ALL),
    "asked for": (lambda now: now, ALL),
    "patterns cut short": (lambda now: now, ALL),
    "groups cut short": (lambda now: now, GROUPS),
}  # fmt: skip
"""Change since the scene before → what it makes of that, and what has to be built."""

DAMAGES = {"patterns cut short": "patterns-*/energy.memmap", "groups cut short": "groups-*/experiments/scale.memmap"}


@pytest.mark.parity_clause("STEP-DATA", "MAP-02", "MAP-01")
def test_only_what_a_change_concerns_is_built_again(tmp_path: Path) -> None:
    """One map is opened again and again; what is not built again stays as it was computed from the scene before."""
    manifest, state = tmp_path / "map" / "manifest.json", FIRST
    tables: MapTables = {}
    folders: dict[str, str] = {}
    for what, (change, new) in {"first": (lambda now: now, ALL), **SCENES}.items():
        state = change(state)
        write_scans(tmp_path / "scans", state.scans)
        for path in (tmp_path / "map").glob(DAMAGES[what]) if what in DAMAGES else ():
            path.write_bytes(path.read_bytes()[:-1])
        dataset = PtychoDataset(
            tmp_path / "scans",
            data_dir=tmp_path / "map",
            settings=state.settings,
            probe=state.probe,
            remake_map=what == "asked for",
        )
        before, folders = folders, {part: each["folder"] for part, each in parts_of(manifest).items()}
        assert tuple(folders[part] != before.get(part) for part in ("patterns", "groups")) == new, what
        patterns = pattern_tables(state.scans, state.settings) if new[0] else {}
        tables = tables | patterns
        if new[1]:
            tables = tables | group_tables(state.scans, state.settings, tables["energy"], state.probe)
        assert_agrees(
            {f"{name} after {what}": each for name, each in tables.items()},
            {f"{name} after {what}": each for name, each in found_tables(dataset).items()},
            FLOAT32,
        )


def parts_of(manifest: Path) -> dict[str, Any]:
    """Return the parts of a map: the manifest names the folders in use (MAP-01)."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    return {part: content[part] for part in ("patterns", "groups")}
