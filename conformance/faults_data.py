"""Seeded faults of the data path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from conformance.seeding import Body, Fault, after, argument, instead, of_area
from ptycho_torch import data_module, dset_loader_pt_mmap, grouping, memory_map, preparation
from ptycho_torch.dset_loader_pt_mmap import GroupSampler, PtychoDataset
from ptycho_torch.preparation import FramePreparation


def _images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Body], Body]:
    """Change patterns as they are written to the map; every other table is left."""

    def build(original: Body) -> Body:
        def wrong(file: Any, array: np.ndarray) -> None:
            if array.ndim == 3 and array.dtype == np.float32:
                array = np.ascontiguousarray(change(array), np.float32)
            original(file, array)

        return wrong

    return build


def _coordinates(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Body], Body]:
    """Change offsets; the replacement sees the places (L, C, 2) of each group and its offsets."""

    def build(original: Body) -> Body:
        def wrong(positions_px: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            centres, coords = original(positions_px, members)
            return centres, change(positions_px[members], coords).astype(coords.dtype)

        return wrong

    return build


def _first_probe(original: Body) -> Body:
    scans: list[Any] = []

    def wrong(scan: Any, number: int, inputs: Any) -> Any:
        if number == 0:
            scans[:] = [scan]
        return original(scans[0], number, inputs)

    return wrong


def _scale_of_patterns(original: Body) -> Body:
    def wrong(scan: Any, energy: np.ndarray, members: np.ndarray, settings: Any) -> Any:
        return original(scan, energy, np.arange(len(energy))[:, None], settings)

    return wrong


def _table_of_zeros(original: Body) -> Body:
    def wrong(folder: Any, table: str) -> Any:
        found = original(folder, table)
        if table == "patterns":
            found["amplitude"].zero_()
        return found

    return wrong


def _gathered(change: Callable[[Any], dict[str, Any]]) -> Callable[[Body], Body]:
    return after(lambda batch: dataclasses.replace(batch, **change(batch)))


def _gathered_by_workers(change: Callable[[Any], dict[str, Any]]) -> Callable[[Body], Body]:
    """Change the batches that workers gather, and leave those that are gathered when asked."""

    def build(original: Body) -> Body:
        def wrong(*given: Any, single_thread: bool = False, **named: Any) -> Any:
            batch = original(*given, single_thread=single_thread, **named)
            return dataclasses.replace(batch, **change(batch)) if single_thread else batch

        return wrong

    return build


def _of_one_scan(original: Body) -> Body:
    """Leave batches of a single scan as they were measured."""

    def wrong(self: PtychoDataset, *given: Any, **named: Any) -> Any:
        batch = original(self, *given, **named)
        if len(self.names) > 1:
            return batch
        return dataclasses.replace(batch, images=batch.images / batch.scale[:, None, None, None])

    return wrong


def _one_memory_for_all(original: Body) -> Body:
    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def wrong(self: Any, groups: int) -> torch.Tensor:
        fresh: torch.Tensor = original(self, groups)
        return kept.setdefault(tuple(fresh.shape), fresh)

    return wrong


def _loaders_with(**changed: Any) -> Callable[[Body], Body]:
    """Give some arguments of every loader that training makes another value, where it is given."""
    return lambda original: (
        lambda *given, **named: original(*given, **(named | {key: changed[key] for key in changed if key in named}))
    )


def _amplitudes_added(original: Body) -> Body:
    def wrong(self: FramePreparation, amplitude: np.ndarray) -> np.ndarray:
        if self.settings.detector_bin == 1:
            return np.asarray(original(self, amplitude))
        added = self._bins(self._window(amplitude)).sum(axis=(-3, -1))
        return np.ascontiguousarray(self._oriented(added))

    return wrong


def _mirrored_first(original: Body, prepared: FramePreparation, frames: np.ndarray) -> np.ndarray:
    settings = prepared.settings
    flips, turn = ({"detector_transpose": False}, {"detector_flip": "none"})
    for change in (flips, turn):
        prepared = dataclasses.replace(prepared, settings=dataclasses.replace(settings, **change))
        frames = original(prepared, frames)
    return frames


def _split_in_front(original: Body) -> Body:
    def wrong(self: PtychoDataset, *given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        training, validation = original(self, *given, **named)
        groups = torch.cat([training, validation])
        return groups[len(validation) :], groups[: len(validation)]

    return wrong


def _with_itself(original: Body) -> Body:
    def wrong(positions_px: np.ndarray, seeds: np.ndarray, K: int) -> np.ndarray:
        right: np.ndarray = original(positions_px, seeds, K)
        return np.concatenate([right[:, :1], right[:, :-1]], axis=1)

    return wrong


_data = of_area("data")


DATA: tuple[Fault, ...] = (
    _data("binning adds amplitudes", "prepare", FramePreparation, "frames", _amplitudes_added, "adds amplitudes"),
    _data(
        "frames mirrored about their edges",
        "prepare",
        preparation,
        "flip_about_zero_frequency",
        instead(np.flip),
        "zero frequency one pixel off",
    ),
    _data(
        "frames mirrored before they are transposed",
        "prepare",
        FramePreparation,
        "_oriented",
        lambda original: lambda self, frames: _mirrored_first(original, self, frames),
        "mirrored before it is transposed",
    ),
    _data(
        "frames cropped one pixel off",
        "prepare",
        FramePreparation,
        "_window",
        lambda original: lambda self, frames: original(self, np.roll(frames, -1, axis=-1)),
        None,
    ),
    _data(
        "positions not scaled with the window",
        "prepare",
        FramePreparation,
        "positions",
        lambda original: (
            lambda self, xy: original(self, xy) * (self.frame_px / (self.settings.N * self.settings.detector_bin))
        ),
        "pixels of the frame that is cropped",
    ),
    _data(
        "probe not scaled with the window",
        "prepare",
        FramePreparation,
        "probe",
        lambda original: (
            lambda self, modes: original(self, modes) * (self.frame_px / (self.settings.N * self.settings.detector_bin))
        ),
        "factor of the probe missing",
    ),
    _data(
        "positions read as (y, x)",
        "positions",
        memory_map,
        "chosen_positions",
        after(lambda xy: xy[:, ::-1]),
        "swapped x/y",
    ),
    _data(
        "y counted upwards",
        "positions",
        memory_map,
        "chosen_positions",
        after(lambda xy: xy * np.array([1, -1])),
        "sign of y",
    ),
    _data(
        "nominal positions for corrected ones",
        "positions",
        memory_map,
        "chosen_positions",
        lambda original: (
            lambda scan, settings: original(scan, dataclasses.replace(settings, position_source="nominal"))
        ),
        "nominal for corrected",
    ),
    _data(
        "positions in float32",
        "positions",
        memory_map,
        "chosen_positions",
        after(lambda xy: xy.astype(np.float32).astype(np.float64)),
        "positions of float32",
    ),
    _data("a point in its own group", "groups", grouping, "_nearest", _with_itself, "a point in its own group"),
    _data(
        "seed of the groups ignored",
        "groups",
        memory_map,
        "group_scan",
        argument(1, lambda settings: dataclasses.replace(settings, group_seed=0)),
        "another seed",
    ),
    _data(
        "one neighbour too few",
        "groups",
        memory_map,
        "group_scan",
        argument(1, lambda settings: dataclasses.replace(settings, K=settings.K - 1)),
        "K one off",
    ),
    _data(
        "groups sorted", "groups", memory_map, "group_scan", after(lambda rows: np.sort(rows, axis=1)), "channel order"
    ),
    _data(
        "sign of offsets",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda _, coords: -coords),
        "sign of offsets",
    ),
    _data(
        "offsets as (y, x)",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda _, coords: coords[..., ::-1]),
        "swapped x/y",
    ),
    _data(
        "absolute positions",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda places, _: places[:, :, None]),
        "absolute positions",
    ),
    _data(
        "relative to the first of the group",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda places, _: (places[:, :1] - places)[:, :, None]),
        "relative to the first",
    ),
    _data(
        "offsets one pixel off",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda _, coords: coords + np.array([1, 0])),
        "one-pixel shift",
    ),
    _data(
        "offsets of whole pixels",
        "offsets",
        memory_map,
        "_coordinates",
        _coordinates(lambda _, coords: np.round(coords)),
        "whole pixels",
    ),
    _data("mean square of N²", "scale", memory_map, "_scale", after(lambda scale: 2 * scale), "N² for (N/2)²"),
    _data(
        "mean over patterns for mean over groups",
        "scale",
        memory_map,
        "_scale",
        _scale_of_patterns,
        "mean over patterns",
    ),
    _data(
        "root of the normalisation missing",
        "scale",
        memory_map,
        "_scale",
        after(lambda scale: scale**2),
        "root missing",
    ),
    _data(
        "frames transposed", "patterns", memory_map, "_write", _images(lambda a: a.swapaxes(1, 2)), "spatial transpose"
    ),
    _data("frames upside down", "patterns", memory_map, "_write", _images(lambda a: a[:, ::-1]), "spatial flip"),
    _data(
        "frames one pixel off",
        "patterns",
        memory_map,
        "_write",
        _images(lambda a: np.roll(a, 1, axis=2)),
        "one-pixel shift",
    ),
    _data(
        "frames not shifted",
        "patterns",
        memory_map,
        "_write",
        _images(lambda a: np.fft.fftshift(a, axes=(1, 2))),
        "missing fftshift",
    ),
    _data("counts for amplitude", "patterns", memory_map, "_write", _images(np.square), "intensity for amplitude"),
    _data("frames of half precision", "patterns", memory_map, "_write", _images(lambda a: a.astype(np.float16)), None),
    _data("an opened map is zero", "patterns", memory_map, "_open_table", _table_of_zeros, "nothing comes through"),
    _data("probe of the first scan for all", "probe", memory_map, "_probe", _first_probe, "probe of another scan"),
    _data("probe conjugated", "probe", memory_map, "_probe", after(np.conj), "conjugation"),
    _data(
        "probe transposed",
        "probe",
        memory_map,
        "_probe",
        after(lambda probe: probe.swapaxes(1, 2)),
        "spatial transpose",
    ),
    _data("mask upside down", "prepare", FramePreparation, "good_pixels", after(np.logical_not), "mask inverted"),
    _data(
        "batches not normalised",
        "batch",
        PtychoDataset,
        "gather",
        _gathered(lambda b: {"images": b.images / b.scale[:, None, None, None]}),
        "not normalised",
    ),
    _data(
        "channels of a batch reversed",
        "batch",
        PtychoDataset,
        "gather",
        _gathered(lambda b: {"images": b.images.flip(1)}),
        "channel order",
    ),
    _data(
        "offsets of other groups",
        "batch",
        PtychoDataset,
        "gather",
        _gathered(lambda b: {"coords": b.coords.roll(1, dims=0)}),
        None,
    ),
    _data(
        "probe of other scans in a batch",
        "batch",
        PtychoDataset,
        "gather",
        _gathered(lambda b: {"probe_ids": 1 - b.probe_ids, "masks": b.masks.flip(0)}),
        "probe of another scan",
    ),
    _data("validation from the front", "epoch", PtychoDataset, "validation_split", _split_in_front, "from the front"),
    _data(
        "last batch left out",
        "epoch",
        GroupSampler,
        "__len__",
        instead(lambda self: len(self.groups) // self.batch_size),
        "smaller batch left out",
    ),
    _data(
        "one order for all epochs",
        "epoch",
        dset_loader_pt_mmap,
        "_permutation",
        argument(2, lambda epoch: 0),
        "same order each epoch",
    ),
    _data(
        "counts of a whole group",
        "derived_of_scans",
        dset_loader_pt_mmap,
        "derive",
        lambda original: lambda *, mean_counts, **named: original(mean_counts=4 * mean_counts, **named),
        "sum over the channels",
    ),
    _data(
        "canvas that clips",
        "derived_of_scans",
        dset_loader_pt_mmap,
        "derive",
        lambda original: lambda *, reach_px, **named: original(reach_px=reach_px / 2, **named),
        "half the reach",
    ),
    _data(
        "batches of workers divided by the scale",
        "loader",
        PtychoDataset,
        "gather",
        _gathered_by_workers(lambda b: {"images": b.images / b.scale.square()[:, None, None, None]}),
        "divided in place of multiplied",
    ),
    _data(
        "orientation of the detector lost on the way to the map",
        "prepared_map",
        memory_map,
        "FramePreparation",
        lambda original: (
            lambda frame_px, settings, path: original(
                frame_px, dataclasses.replace(settings, detector_transpose=False, detector_flip="none"), path
            )
        ),
        "not oriented",
    ),
    _data("batches of one scan not normalised", "loader", PtychoDataset, "gather", _of_one_scan, "not normalised"),
    _data(
        "memory of batches used again too soon",
        "loader",
        dset_loader_pt_mmap.TensorDictDataLoader,
        "_memory",
        _one_memory_for_all,
        "memory of a batch used again",
    ),
    _data(
        "training groups not shuffled",
        "split",
        data_module,
        "TensorDictDataLoader",
        _loaders_with(shuffle=False),
        "not shuffled",
    ),
    _data(
        "seed of training ignored",
        "split",
        data_module,
        "TensorDictDataLoader",
        _loaders_with(seed=0),
        "the same order with every seed",
    ),
    _data(
        "validation groups in training",
        "split",
        data_module,
        "TensorDictDataLoader",
        lambda original: (
            lambda dataset, size, *, groups, shuffle=False, **named: original(
                dataset, size, groups=None if shuffle else groups, shuffle=shuffle, **named
            )
        ),
        "validation groups in training as well",
    ),
    _data(
        "an epoch that was broken off begins again",
        "epoch",
        dset_loader_pt_mmap.TensorDictDataLoader,
        "load_state_dict",
        argument(1, lambda state: {**state, "batch": 0}),
        "begins again",
    ),
)
