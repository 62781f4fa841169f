"""A map knows what it was made from: what changes is built again, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import Outcome, Step, StepBench
from conformance.steps_map_tables import (
    FRAME_PX,
    MapTables,
    Scans,
    draw_unlike_scans,
    found_tables,
    group_tables,
    pattern_tables,
    with_settings,
    write_scans,
)
from conformance.steps_maps import PLAIN, folder_of_scans
from conformance.steps_scans import FLOAT32, named
from ptycho_torch.config_params import DataSettings

NOTHING, GROUPS, ALL = (False, False), (False, True), (True, True)
"""Whether patterns, and whether groups, are built anew."""

Parts = tuple[bool, bool]


@dataclass(frozen=True)
class Scene:
    """One opening of a map that has been there before, but for the first.

    Attributes:
        what: has changed since the scene before.
        kind: of change.
        new: whether patterns and groups have to be built.
        scans: as they are now.
        settings: as they are now.
        probe: given for every scan.
        remake: whether all is asked for anew.
        damage: pattern of the files of the map that are cut short before.
    """

    what: str
    kind: str
    new: Parts
    scans: Scans
    settings: DataSettings
    probe: np.ndarray | None = None
    remake: bool = False
    damage: str = ""


def _scenes() -> Iterator[Scene]:
    """Yield openings of one map, each a change of the one before."""
    scans, settings = draw_unlike_scans(), with_settings(PLAIN, gridsize=1)
    now = Scene("new", "new", ALL, scans, settings)

    def then(what: str, kind: str, new: Parts, **changed: object) -> Scene:
        nonlocal now
        once = {"remake": False, "damage": ""}
        now = dataclasses.replace(now, what=what, kind=kind, new=new, **{**once, **changed})  # type: ignore[arg-type]
        return now

    def values(key: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Scans]:
        second = list(now.scans)[1]
        return {"scans": {**now.scans, second: now.scans[second] | {key: change(now.scans[second][key])}}}

    yield now
    yield then("nothing", "nothing", NOTHING)
    yield then("photons", "photons", NOTHING, settings=with_settings(settings, nphotons=7e4))
    yield then("values of patterns", "values", ALL, **values("diff3d", lambda frames: frames[::-1] + np.float32(1)))
    yield then("values of positions", "values", GROUPS, **values("xcoords", lambda x: x[::-1] + 2.5))
    yield then("values of a probe", "values", GROUPS, **values("probeGuess", lambda probe: 2 * probe.conj()))
    yield then("values of a mask", "mask", ALL, **values("bad_pixels", lambda bad: bad[::-1, ::-1]))
    yield then("flip", "orientation", ALL, settings=with_settings(now.settings, detector_flip="vertical"))
    yield then("transpose", "orientation", ALL, settings=with_settings(now.settings, detector_transpose=True))
    yield then("swap", "settings", GROUPS, settings=with_settings(now.settings, positions_swap_xy=True))
    yield then("gridsize", "settings", GROUPS, settings=with_settings(now.settings, gridsize=2))
    yield then("seed", "settings", GROUPS, settings=with_settings(now.settings, group_seed=8))
    yield then("a given probe", "probe", GROUPS, probe=2 * scans["a_second"]["probeGuess"])
    yield then("another given probe", "probe", GROUPS, probe=scans["a_second"]["probeGuess"].T)
    yield then("a scan less", "scans", ALL, scans=dict(list(now.scans.items())[:-1]))
    yield then("a scan more", "scans", ALL, scans={**now.scans, "d_other": scans["b_third"]})
    yield then(
        "side of the patterns", "side", ALL, settings=with_settings(now.settings, N=FRAME_PX // 2, detector_bin=2)
    )
    yield then("asked for", "remake", ALL, remake=True)
    yield then("patterns cut short", "damage", ALL, damage="patterns-*/energy.memmap")
    yield then("groups cut short", "damage", GROUPS, damage="groups-*/experiments/scale.memmap")


def _simulated(scenes: list[Scene], builds: Callable[[Scene], Parts]) -> MapTables:
    """Return what the map holds after each opening, given what each builds."""
    patterns: MapTables = {}
    groups: MapTables = {}
    found = {}
    for scene in scenes:
        new_patterns, new_groups = ALL if scene is scenes[0] else builds(scene)
        if new_patterns:
            patterns = pattern_tables(scene.scans, scene.settings)
        if new_groups:
            probes = None if scene.probe is None else [scene.probe] * len(scene.scans)
            groups = group_tables(scene.scans, scene.settings, patterns["energy"], probes)
        flags = {"patterns built": np.array(new_patterns), "groups built": np.array(new_groups)}
        found[scene.what] = flags | patterns | groups
    return named(found)


def _rebuilt(_: StepBench) -> Outcome:
    """Open one map again and again, with something changed in between."""
    scenes = list(_scenes())
    with folder_of_scans(scenes[0].scans) as root:
        found = named({scene.what: _opened(root, scene) for scene in scenes})
    return Outcome(_simulated(scenes, lambda scene: scene.new), found, FLOAT32, lambda: _mistakes(scenes))


def _opened(root: Path, scene: Scene) -> MapTables:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    write_scans(root / "scans", scene.scans)
    for path in (root / "map").glob(scene.damage) if scene.damage else ():
        path.write_bytes(path.read_bytes()[:-1])
    before = _folders(root)
    dataset = PtychoDataset(
        root / "scans", data_dir=root / "map", settings=scene.settings, probe=scene.probe, remake_map=scene.remake
    )
    now = _folders(root)
    built = {f"{part} built": np.array(now[part] != before.get(part)) for part in ("patterns", "groups")}
    return built | found_tables(dataset)


def _folders(root: Path) -> dict[str, str]:
    """Return the folders in use: the manifest names them (MAP-01)."""
    path = root / "map" / "manifest.json"
    if not path.exists():
        return {}
    parts = json.loads(path.read_text(encoding="utf-8"))
    return {part: parts[part]["folder"] for part in ("patterns", "groups") if part in parts}


def _mistakes(scenes: list[Scene]) -> Iterator[Hypothesis]:
    def wrong(name: str, builds: Callable[[Scene], Parts]) -> Hypothesis:
        return Hypothesis(name, _simulated(scenes, builds))

    def unless(*kinds: str, built: Parts = NOTHING) -> Callable[[Scene], Parts]:
        """Build what is due, but where the change is of these kinds."""
        return lambda scene: built if scene.kind in kinds else scene.new

    yield wrong("a change of the mask leaves the patterns", unless("mask", built=GROUPS))
    yield wrong("a change of values alone is not noticed", unless("values", "mask"))
    yield wrong("a change of the detector's orientation leaves the patterns", unless("orientation", built=GROUPS))
    yield wrong("a change of the detector leaves the patterns", unless("orientation", "side", built=GROUPS))
    yield wrong("another given probe is not noticed", unless("probe"))
    yield wrong("a change of settings is not noticed", unless("settings", "orientation"))
    yield wrong("a map that is asked for anew is not made", unless("remake"))
    yield wrong("photons build the groups anew", unless("photons", built=GROUPS))
    yield wrong("photons build the map anew", unless("photons", built=ALL))
    yield wrong("patterns built anew with the groups", lambda scene: (scene.new[1],) * 2)
    yield wrong("built anew each time", lambda scene: ALL)


# ------------------------------------------------------------------------------------------- what it depends on

_REFERENCE = with_settings(PLAIN, group_sampler="reference")
CHANGES: Mapping[str, tuple[DataSettings, object, Parts]] = {
    "N": (PLAIN, 4, ALL),
    "gridsize": (PLAIN, 1, GROUPS),
    "K": (PLAIN, 5, GROUPS),
    "n_subsample": (PLAIN, 2, GROUPS),
    "group_sampler": (PLAIN, "without_centre", GROUPS),
    "group_seed": (PLAIN, 4, GROUPS),
    "n_groups": (_REFERENCE, 5, GROUPS),
    "sequential_sampling": (_REFERENCE, True, GROUPS),
    "enable_oversampling": (_REFERENCE, True, GROUPS),
    "neighbor_pool_size": (_REFERENCE, 7, GROUPS),
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


def _depends(_: StepBench) -> Outcome:
    """Change every setting, and every input, by itself, and see which parts of a map another fingerprint has."""
    from ptycho_torch.memory_map import Inputs, fingerprint

    fields = [field.name for field in dataclasses.fields(DataSettings)]
    expected: MapTables = {name: np.array(CHANGES[name][2]) for name in fields}
    given: MapTables = {}
    with folder_of_scans(draw_unlike_scans()) as root:
        inputs = Inputs(tuple(sorted((root / "scans").iterdir())))

        def differs(one: tuple[Inputs, DataSettings], other: tuple[Inputs, DataSettings]) -> np.ndarray:
            first, second = fingerprint(*one), fingerprint(*other)
            return np.array([first[part] != second[part] for part in ("patterns", "groups")])

        for name in fields:
            settings, value = CHANGES[name][:2]
            given[name] = differs((inputs, settings), (inputs, with_settings(settings, **{name: value})))
        probe = np.ones((FRAME_PX, FRAME_PX), np.complex64)
        write_scans(root / "probes", {"one": {"probe": probe}, "other": {"probe": 1j * probe}})
        one, other = ((root / "probes" / f"{name}.npz",) * 3 for name in ("one", "other"))
        for name, changed, start, new in (
            ("a given probe", Inputs(inputs.scans, probe=probe), inputs, GROUPS),
            ("another given probe", Inputs(inputs.scans, probe=1j * probe), Inputs(inputs.scans, probe=probe), GROUPS),
            ("probe files", Inputs(inputs.scans, one), inputs, GROUPS),
            ("other probe files", Inputs(inputs.scans, other), Inputs(inputs.scans, one), GROUPS),
            ("one probe file of three", Inputs(inputs.scans, (*one[:2], other[0])), Inputs(inputs.scans, one), GROUPS),
            ("one scan less", Inputs(inputs.scans[:2]), inputs, ALL),
        ):
            expected[name], given[name] = np.array(new), differs((start, PLAIN), (changed, PLAIN))
    return Outcome(expected, given, 0.0, lambda: _independent(expected))


def _independent(right: MapTables) -> Iterator[Hypothesis]:
    for name in right:
        yield Hypothesis(f"groups do not depend on {name}", right | {name: np.array([right[name][0], False])})
        yield Hypothesis(f"patterns do not depend on {name}", right | {name: np.array([False, right[name][1]])})
        yield Hypothesis(f"the map does not depend on {name}", right | {name: np.array(NOTHING)})
    values = ("other probe files", "one probe file of three")
    yield Hypothesis("a change of values alone is not noticed", right | dict.fromkeys(values, np.array(NOTHING)))
    turns = [name for name in right if name.startswith("detector_") and name != "detector_bin"]
    for names in (turns, [name for name in right if name.startswith("detector_")]):
        wrong = {name: np.array(GROUPS) for name in names}
        yield Hypothesis("patterns do not depend on how the detector lies", right | wrong)
    yield Hypothesis("groups depend on the photons", right | {"nphotons": np.array(GROUPS)})
    yield Hypothesis("patterns depend on all settings", right | {name: np.array(ALL) for name in CHANGES})


REBUILDING: tuple[Step, ...] = (
    Step("data.fingerprint", ("STEP-DATA", "MAP-02"), _depends),
    Step("data.rebuilt_map", ("STEP-DATA", "MAP-02", "MAP-01"), _rebuilt, ("tensordict",)),
)
