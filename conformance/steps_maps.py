"""Maps of settings and scans other than the usual ones: every table of them, and whose probe is whose."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis, spatial_mistakes
from conformance.step import Outcome, Step, StepBench
from conformance.steps_light import draw_wave
from conformance.steps_map_tables import (
    FRAME_PX,
    MapTables,
    Scans,
    all_tables,
    draw_unlike_scans,
    found_tables,
    group_tables,
    pattern_tables,
    scale_of,
    stacked_probes,
    with_settings,
    write_scans,
)
from conformance.steps_samplers import wanted_groups
from conformance.steps_scans import FLOAT32, Arrays, named, small_files
from ptycho_torch.config_params import DataSettings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

PLAIN = DataSettings(N=FRAME_PX, K=6, group_seed=3)
MAPS: Mapping[str, DataSettings] = {
    "nominal positions": with_settings(PLAIN, position_source="nominal", positions_swap_xy=True),
    "three groups a point": with_settings(PLAIN, n_subsample=3, positions_flip_y=True),
    "not normalised": with_settings(PLAIN, normalize=False, group_sampler="without_centre"),
    "groups of one": with_settings(PLAIN, gridsize=1),
    "oversampled": with_settings(PLAIN, group_sampler="reference", n_groups=30, enable_oversampling=True),
    "binned and turned": with_settings(
        PLAIN, N=FRAME_PX // 2, detector_bin=2, detector_transpose=True, detector_flip="horizontal", n_subsample=2
    ),
}


@contextmanager
def folder_of_scans(scans: Scans) -> Iterator[Path]:
    """Give a folder with the scans in its folder ``scans`` for a while."""
    with small_files() as root:
        write_scans(root / "scans", scans)
        yield root


def _maps(_: StepBench) -> Outcome:
    """Make maps of three scans with each of the settings."""
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    scans, given = draw_unlike_scans(), {}
    with folder_of_scans(scans) as root:
        # Neither of these is a scan.
        for other in (".hidden.npz", "notes.txt"):
            (root / "scans" / other).write_bytes(b"notes")
        for number, (name, settings) in enumerate(MAPS.items()):
            dataset = PtychoDataset(root / "scans", data_dir=root / f"map_{number}", settings=settings)
            given[name] = found_tables(dataset) | {"images": dataset[:].images.numpy()}
    right = _each_map(lambda settings: all_tables(scans, settings))
    return Outcome(named(right), named(given), FLOAT32, lambda: _mistakes(scans, right))


def _each_map(tables_of: Callable[[DataSettings], MapTables]) -> dict[str, MapTables]:
    return {name: _with_images(tables_of(settings)) for name, settings in MAPS.items()}


def _with_images(tables: MapTables) -> MapTables:
    scale = tables["scale"][tables["experiment_id"]][:, None, None, None]
    return tables | {"images": tables["amplitude"][tables["nn_indices"]] * scale}


def _mistakes(scans: Scans, right: Mapping[str, MapTables]) -> Iterator[Hypothesis]:
    def with_changes(name: str, **changed: object) -> Hypothesis:
        return Hypothesis(
            name, named(_each_map(lambda settings: all_tables(scans, with_settings(settings, **changed))))
        )

    def with_groups(name: str, groups_of: Callable[[np.ndarray, DataSettings], np.ndarray]) -> Hypothesis:
        def tables(settings: DataSettings) -> MapTables:
            patterns = pattern_tables(scans, settings)
            return patterns | group_tables(scans, settings, patterns["energy"], groups_of=groups_of)

        return Hypothesis(name, named(_each_map(tables)))

    def with_scans(name: str, changed: Scans) -> Hypothesis:
        return Hypothesis(name, named(_each_map(lambda settings: all_tables(changed, settings))))

    def changed(name: str, change: Callable[[MapTables], MapTables]) -> Hypothesis:
        return Hypothesis(name, named({what: _with_images(each | change(each)) for what, each in right.items()}))

    yield with_changes("corrected for nominal positions", position_source="corrected")
    yield with_changes("nominal for corrected positions", position_source="nominal")
    yield with_scans("x and y of nominal positions exchanged", _nominal_exchanged(scans))
    yield with_changes("x and y of positions not swapped", positions_swap_xy=False)
    yield with_changes("positions not mirrored", positions_flip_y=False)
    yield with_changes("the same groups with every seed", group_seed=0)
    yield with_groups("a group twice at one point", partial(wanted_groups, distinct=False))
    yield with_changes("normalised although it is switched off", normalize=True)
    yield with_changes("not normalised", normalize=False)
    yield with_changes("the frames not turned", detector_transpose=False, detector_flip="none")
    yield changed("a pattern counts once, however many groups hold it", partial(_scale_of_patterns, scans))
    yield changed("median for mean", _medians)
    yield changed("the first position for the mean", _firsts)
    yield changed(
        "rows of a scan not counted from its first",
        lambda each: {"nn_indices": each["nn_indices"] - each["first_row"][each["experiment_id"]][:, None]},
    )
    yield changed("all groups of one scan", lambda each: {"experiment_id": np.zeros_like(each["experiment_id"])})
    yield changed("mask inverted", lambda each: {"good_pixels": ~each["good_pixels"]})


def _nominal_exchanged(scans: Scans) -> Scans:
    found = {name: dict(scan) for name, scan in scans.items()}
    for scan in found.values():
        if "xcoords_start" in scan:
            scan["xcoords_start"], scan["ycoords_start"] = scan["ycoords_start"], scan["xcoords_start"]
    return found


def _scale_of_patterns(scans: Scans, tables: MapTables) -> MapTables:
    lengths = [len(scan["xcoords"]) for scan in scans.values()]
    if (tables["scale"] == 1).all():
        return {}
    parts = np.split(tables["energy"], np.cumsum(lengths)[:-1])
    return {"scale": np.array([scale_of(each, tables["amplitude"].shape[-1]) for each in parts])}


def _medians(tables: MapTables) -> MapTables:
    places = tables["positions_px"][tables["nn_indices"]]
    middle = np.median(places, axis=1)
    return {"centres_px": middle, "coords_relative": middle[:, None] - places}


def _firsts(tables: MapTables) -> MapTables:
    places = tables["positions_px"][tables["nn_indices"]]
    return {"centres_px": places[:, 0], "coords_relative": places[:, :1] - places}


# ------------------------------------------------------------------------------------------------ whose probe


def _draw_probe(seed: int, *shape: int) -> np.ndarray:
    return draw_wave(np.random.default_rng(seed), *shape, FRAME_PX, FRAME_PX)


PROBE_FILES: Mapping[str, dict[str, np.ndarray]] = {
    # In the order of their names none of these is the probe of the scan of its number.
    "a_first": {"probe": _draw_probe(60, 4)},
    "a_second": {"probe": _draw_probe(61)},
    "aa_other": {"probe": _draw_probe(62, 2)},
    "b_third": {"probeGuess": np.asfortranarray(_draw_probe(63, 3)).astype(np.complex64)},
    "c_first": {"probe": _draw_probe(64)[..., None], "probeGuess": _draw_probe(65)},
}
GIVEN = {"one mode": _draw_probe(70), "three modes": _draw_probe(71, 3)}


def _of_file(name: str) -> np.ndarray:
    """Return (modes, N, N) of a probe file: ``probe`` before ``probeGuess``."""
    stored = next(iter(PROBE_FILES[name].values()))
    return stored.reshape(-1, FRAME_PX, FRAME_PX)


def _probe_folder(_: StepBench) -> Outcome:
    """Make maps with probes of a folder, of one file, of the scans, and as they are given."""
    scans = draw_unlike_scans()
    own = [scan["probeGuess"] for scan in scans.values()]
    right = {
        "a file for each scan": [_of_file(name) for name in scans],
        "one file in the folder": [_of_file("b_third")] * len(scans),
        "one file": [_of_file("c_first")] * len(scans),
        "not those of the folder": own,
        "those of the scans": own,
        "one mode given": [GIVEN["one mode"]] * len(scans),
        "three modes given": [GIVEN["three modes"]] * len(scans),
    }
    with folder_of_scans(scans) as root:
        given = _found_probes(root)
    expected = _named_probes({what: stacked_probes(probes) for what, probes in right.items()})

    def mistakes() -> Iterator[Hypothesis]:
        def instead(name: str, probes: list[np.ndarray]) -> Hypothesis:
            wrong = right | {"a file for each scan": probes}
            return Hypothesis(name, _named_probes({what: stacked_probes(each) for what, each in wrong.items()}))

        files = [_of_file(name) for name in sorted(PROBE_FILES)]
        yield instead("probe of the first scan for all", [_of_file(next(iter(scans)))] * len(scans))
        yield instead("probes in the order of their files", files[: len(scans)])
        yield instead("the first file for all scans", [files[0]] * len(scans))
        yield instead("probes of the scans in place of those of the folder", own)
        yield instead("probes in the reverse order", [_of_file(name) for name in reversed(scans)])
        yield Hypothesis(
            "probes of the folder in place of those of the scans",
            expected | _named_probes({"not those of the folder": expected["probes, a file for each scan"]}),
        )
        yield Hypothesis(
            "the probe lost on the way to another process",
            {name: stacked_probes(own) if "pickle" in name else array for name, array in expected.items()},
        )
        for name, fill in (("the last mode again in place of zeros", _last_again), ("zeros before the modes", _behind)):
            yield Hypothesis(name, _named_probes({what: fill(probes) for what, probes in right.items()}))
        stacks = {what: stacked_probes(probes) for what, probes in right.items()}
        yield Hypothesis("the first mode alone", _named_probes({what: each[:, :1] for what, each in stacks.items()}))
        yield Hypothesis("conjugation", _named_probes({what: each.conj() for what, each in stacks.items()}))
        yield Hypothesis(
            "modes in reverse order", _named_probes({what: each[:, ::-1] for what, each in stacks.items()})
        )
        for name, change in spatial_mistakes(-2, -1):
            yield Hypothesis(name, _named_probes({what: change(each) for what, each in stacks.items()}))

    return Outcome(expected, given, FLOAT32, mistakes)


def _found_probes(root: Path) -> Arrays:
    """Return the probes of every way to give them, and those of the dataset that comes out of a pickle."""
    import torch

    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    write_scans(root / "probes", PROBE_FILES)
    write_scans(root / "probe", {"any": {"other": np.zeros(2), **PROBE_FILES["b_third"]}})

    def dataset(number: int, **named: object) -> PtychoDataset:
        named = {"settings": PLAIN, **named}
        return PtychoDataset(root / "scans", data_dir=root / f"map_{number}", **named)  # type: ignore[arg-type]

    datasets = {
        "a file for each scan": dataset(0, probe_dir=root / "probes"),
        "one file in the folder": dataset(1, probe_dir=root / "probe"),
        "one file": dataset(2, probe_dir=root / "probes" / "c_first.npz"),
        "not those of the folder": dataset(
            3, probe_dir=root / "probes", settings=with_settings(PLAIN, probe_dir_get=False)
        ),
        "those of the scans": dataset(4),
        "one mode given": dataset(5, probe=torch.from_numpy(GIVEN["one mode"])),
        "three modes given": dataset(6, probe=GIVEN["three modes"]),
    }
    given: Arrays = {}
    for what, each in datasets.items():
        there = pickle.loads(pickle.dumps(each))
        # The last group of each scan: batches have the probe of every pattern.
        last = np.searchsorted(each.experiment_ids.numpy(), np.arange(1, len(each.names) + 1)) - 1
        batch = each[last].probe[:, 0].numpy()
        given |= {
            f"probes, {what}": each.probes.numpy(),
            f"probes out of a pickle, {what}": there.probes.numpy(),
            f"probes of a batch, {what}": batch if batch.ndim == 4 else batch[:, None],
        }
    return given


def _named_probes(probes: Mapping[str, np.ndarray]) -> Arrays:
    return {
        f"{which}, {what}": each
        for what, each in probes.items()
        for which in ("probes", "probes out of a pickle", "probes of a batch")
    }


def _last_again(probes: list[np.ndarray]) -> np.ndarray:
    found = stacked_probes(probes)
    for row, probe in zip(found, probes, strict=True):
        modes = probe.reshape(-1, FRAME_PX, FRAME_PX)
        row[len(modes) :] = modes[-1]
    return found


def _behind(probes: list[np.ndarray]) -> np.ndarray:
    found = stacked_probes(probes)
    for row, probe in zip(found, probes, strict=True):
        row[:] = np.roll(row, -len(probe.reshape(-1, FRAME_PX, FRAME_PX)), axis=0)
    return found


MAPPING: tuple[Step, ...] = (
    Step("data.probe_folder", ("STEP-DATA", "PROBE-01", "PROBE-02", "BATCH-03"), _probe_folder, ("tensordict",)),
    Step("data.maps", ("STEP-DATA", "MAP-01", "SCAN-07", "GROUP-02", "GROUP-03", "GROUP-04"), _maps, ("tensordict",)),
)
