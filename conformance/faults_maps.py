"""Seeded faults of samplers and of maps whose inputs and settings are other than the usual ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.seeding import Body, Fault, after, argument, instead, of_area
from ptycho_torch import dset_loader_pt_mmap, grouping, memory_map, preparation
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

_data = of_area("data")


def _with_settings(position: int, **changed: Any) -> Callable[[Body], Body]:
    """Change settings on their way into a function."""
    return argument(position, lambda settings: dataclasses.replace(settings, **changed))


# ---------------------------------------------------------------------------------------------------- samplers


def _with_repetition(original: Body) -> Body:
    def wrong(draw: np.random.RandomState, points: int, count: int, total: int) -> np.ndarray:
        lasts = range(total - count, total)
        return np.stack([draw.randint(0, last + 1, size=points, dtype=np.int64) for last in lasts], axis=1)

    return wrong


class _HalfMath:
    """``math`` with twice as many subsets, so that half of the seed points seem to do."""

    def __getattr__(self, name: str) -> Any:
        return getattr(math, name)

    def ceil(self, number: float) -> int:
        return math.ceil(number) // 2


def _first_dropped(original: Body) -> Body:
    def wrong(tree: Any, positions_px: np.ndarray, points: np.ndarray, K: int) -> np.ndarray:
        return np.asarray(tree.query(positions_px[points], k=[*range(2, K + 2)])[1], np.int64)

    return wrong


def _first_part_again(original: Body) -> Body:
    """Give the groups behind the first part the offsets of the first."""

    def wrong(positions_px: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centres, coords = original(positions_px, members)
        behind = len(members) - 2**18
        if behind > 0:
            coords[2**18 :] = coords[:behind]
        return centres, coords

    return wrong


SAMPLERS: tuple[Fault, ...] = (
    _data(
        "seed ignored by the samplers",
        "samplers",
        grouping,
        "group_scan",
        _with_settings(1, group_seed=0),
        "every seed",
    ),
    _data(
        "groups of a point drawn with repetition",
        "samplers",
        grouping,
        "_distinct_ranks",
        _with_repetition,
        "a group twice",
    ),
    _data("half as many seed points", "samplers", grouping, "math", instead(_HalfMath()), "half as many seed points"),
    _data(
        "neighbours farthest first",
        "samplers",
        grouping,
        "_subset",
        after(lambda subsets: subsets[..., ::-1]),
        "farthest first",
    ),
    _data(
        "pool of neighbours ignored",
        "samplers",
        grouping,
        "group_scan",
        _with_settings(1, neighbor_pool_size=None),
        "pool of neighbours ignored",
    ),
    _data("the first neighbour dropped", "same_place", grouping, "_neighbours", _first_dropped, None),
    _data("offsets of the first part again", "large_map", memory_map, "_coordinates", _first_part_again, None),
)


# -------------------------------------------------------------------------------------------------------- maps


def _last_mode_again(original: Body) -> Body:
    def wrong(path: Path, array: np.ndarray) -> None:
        if path.name == "probe.memmap":
            array = array.copy()
            for modes in array:
                count = int(modes.any(axis=(1, 2)).sum())
                modes[count:] = modes[count - 1]
        original(path, array)

    return wrong


def _in_order(original: Body) -> Body:
    def wrong(scans: Any, folder: Path) -> Any:
        files = original(scans, folder)
        every = sorted(Path(folder).glob("*.npz"))
        return tuple(every[: len(scans)]) if len(set(files)) > 1 else files

    return wrong


def _always_of_the_folder(original: Body) -> Body:
    def wrong(self: Any, scans: Any, probe_dir: Any = None, *given: Any, settings: Any = None, **named: Any) -> None:
        if probe_dir is not None:
            settings = dataclasses.replace(settings, probe_dir_get=True)
        original(self, scans, probe_dir, *given, settings=settings, **named)

    return wrong


_RIGHT = dset_loader_pt_mmap._reopen


def _without_its_probe(*arguments: Any) -> PtychoDataset:
    """Open the map of a dataset that was pickled, and forget the probe: by name, as a pickle finds it."""
    scans, probes, place, settings, _ = arguments
    return _RIGHT(scans, probes, place, settings, None)


MAPS: tuple[Fault, ...] = (
    _data(
        "the first probe file for all",
        "probe_folder",
        memory_map,
        "_probe",
        argument(1, lambda number: 0),
        "probe of the first scan for all",
    ),
    _data("probe files counted", "probe_folder", dset_loader_pt_mmap, "probe_paths", _in_order, "order of their files"),
    _data("the last mode again", "probe_folder", memory_map, "_write_array", _last_mode_again, "the last mode again"),
    _data(
        "probes of the folder though they are not wanted",
        "probe_folder",
        PtychoDataset,
        "__init__",
        _always_of_the_folder,
        "in place of those of the scans",
    ),
    _data(
        "a given probe lost in a pickle",
        "probe_folder",
        dset_loader_pt_mmap,
        "_reopen",
        instead(_without_its_probe),
        "lost on the way",
    ),
    _data(
        "corrected positions always",
        "maps",
        memory_map,
        "chosen_positions",
        _with_settings(1, position_source="corrected"),
        "corrected for nominal",
    ),
    _data(
        "a scale where there is none",
        "maps",
        memory_map,
        "_scale",
        _with_settings(3, normalize=True),
        "although it is switched off",
    ),
)


# -------------------------------------------------------------------------------------------------- rebuilding


def _fingerprint(change: Callable[[dict[str, Any]], None]) -> Callable[[Body], Body]:
    """Change a fingerprint before it is compared."""

    def build(original: Body) -> Body:
        def wrong(*given: Any) -> Any:
            found = original(*given)
            change(found)
            return found

        return wrong

    return build


def _without_orientation(found: dict[str, Any]) -> None:
    kept = found["patterns"]["settings"]
    found["patterns"]["settings"] = {name: kept[name] for name in ("N", "detector_bin")}


def _with_photons(original: Body) -> Body:
    def wrong(inputs: Any, settings: Any) -> Any:
        found = original(inputs, settings)
        found["groups"]["settings"]["nphotons"] = settings.nphotons
        return found

    return wrong


def _remake_unheard(original: Body) -> Body:
    return lambda root, manifest, part, wanted, trouble, remake: original(root, manifest, part, wanted, trouble, False)


REBUILDING: tuple[Fault, ...] = (
    _data(
        "fingerprint of lengths alone",
        "fingerprint",
        memory_map,
        "_members",
        after(lambda members: {key: numbers[1:] for key, numbers in members.items()}),
        "a change of values alone",
    ),
    _data(
        "orientation of the detector not in the fingerprint",
        "fingerprint",
        memory_map,
        "fingerprint",
        _fingerprint(_without_orientation),
        "how the detector lies",
    ),
    _data("photons in the fingerprint", "fingerprint", memory_map, "fingerprint", _with_photons, "on the photons"),
    _data(
        "seed not in the fingerprint",
        "fingerprint",
        memory_map,
        "fingerprint",
        _fingerprint(lambda found: found["groups"]["settings"].pop("group_seed")),
        "do not depend on group_seed",
    ),
    _data(
        "a mask that changes leaves the patterns",
        "rebuilt_map",
        memory_map,
        "_PATTERN_MEMBERS",
        instead(("diff3d", "diffraction")),
        "change of the mask",
    ),
    _data(
        "patterns built with the groups",
        "rebuilt_map",
        memory_map,
        "_build",
        argument(3, lambda kept: {}),
        "patterns built anew with the groups",
    ),
    _data("remake_map not heard", "rebuilt_map", memory_map, "_why_stale", _remake_unheard, "asked for anew"),
)


# ---------------------------------------------------------------------------------------------------- deriving


def _unheard(*names: str) -> Callable[[Body], Body]:
    """Leave out what is given under some names."""
    return lambda original: lambda **named: original(**(named | dict.fromkeys(names)))


def _without_distinct(original: Body) -> Body:
    def wrong(positions_px: np.ndarray) -> float:
        far = np.linalg.norm(positions_px[:, None] - positions_px[None], axis=-1)
        np.fill_diagonal(far, np.inf)
        return float(np.median(far.min(axis=1)))

    return wrong


DERIVING: tuple[Fault, ...] = (
    _data(
        "given photons not heard", "derived_given", preparation, "derive", _unheard("nphotons"), "given photons ignored"
    ),
    _data(
        "given jitter not heard",
        "derived_given",
        preparation,
        "derive",
        _unheard("max_position_jitter"),
        "given jitter ignored",
    ),
    _data(
        "photons of the settings not heard",
        "derived_of_scans",
        dset_loader_pt_mmap,
        "derive",
        _unheard("nphotons"),
        "given photons ignored",
    ),
    _data(
        "repeated positions as neighbours",
        "derived_of_scans",
        dset_loader_pt_mmap,
        "median_step",
        _without_distinct,
        "repeated positions",
    ),
)

OF_MAPS: tuple[Fault, ...] = (*SAMPLERS, *MAPS, *REBUILDING, *DERIVING)
