"""Mask, dark frames, flat field and probe in a file of a beamline.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from ptycho_torch.files.hdf5_files import Dataset
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.beamline_search import Search
from ptycho_torch.importer.detector_mask import read_mask
from ptycho_torch.importer.pattern_values import no_measurement_from
from ptycho_torch.importer.probe_axes import probe_axes

_MASK_BLOCK_BYTES = 8 * 2**20
_MASK_NAMES = r"mask|pixel_mask(_\d+)?"
_FLAT = r"data_white|white|flat_?field|qe_mask|flat"
DARK = r"data_dark|dark|darks|dark_?field|background"
"""Names of dark frames."""

_WITHOUT = {
    "the mask": "Leave it: `--mask-path none`",
    "dark frames": "Leave them: `--dark-path none`",
    "the flat field": "Leave --white-path out.",
}


class ImageFinder(Search):
    """Finds what belongs to every pixel of a frame."""

    def _mask(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.mask_path
        if path == "none":
            return None
        if path is not None:
            masks = [self._use(self._named(self._tree, path, "--mask-path"))]
        else:
            group = re.escape(self._detector_group)
            found = self._matching(
                r"/instrument[^/]*/mask",
                rf"/(data(_\d+)?)/({_MASK_NAMES})",
                at=[rf"{group}/(detectorSpecific/)?({_MASK_NAMES})"],
            )
            masks = list({dataset.mark: dataset for dataset in found}.values())
        bad = None
        for dataset in masks:
            self._use(dataset)
            mask = read_mask(
                self._frames(dataset, rows, columns, "the mask"),
                "NeXus" if "pixel_mask" in dataset.path.rsplit("/", 1)[1] else "CXI",
                self._wanted.mask_bits,
            )
            each = (
                " of every pattern, what is bad in one is bad in all"
                if dataset.shape[0] > 1 and len(dataset.shape) > 2
                else ""
            )
            self._notices.append(f"mask {dataset.path}{each}: {mask.words}")
            bad = mask.bad if bad is None else bad | mask.bad
        return bad

    def _dark(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.dark_path
        if path == "none":
            self._use_all(DARK)
            return None
        if path is not None:
            dataset: Dataset | None = self._named(self._tree, path, "--dark-path")
        else:
            dataset = self._detector("data_dark")
        if dataset is None:
            return None
        mean = self._mean(dataset, rows, columns, "dark frames")
        if (unknown := int(np.isnan(mean).sum())) == mean.size:
            raise self._wrong("no measurement", dataset.path, "dark frames", _WITHOUT["dark frames"])
        if unknown:
            self._notices.append(f"{unknown} pixels hold no measurement in any of the dark frames: taken for bad")
        self._notices.append(
            f"dark frames {dataset.path} are taken off, {np.nanmean(mean):.4g} counts a pixel; if they were before: "
            "`--dark-path none`"
        )
        return mean

    def _white(self, rows: int, columns: int) -> np.ndarray | None:
        if self._wanted.white_path is not None:
            dataset = self._named(self._tree, self._wanted.white_path, "--white-path")
            mean = self._mean(dataset, rows, columns, "the flat field")
            self._notices.append(f"counts are divided by the flat field {dataset.path}, whose mean is made 1")
            return mean
        for name in (_FLAT, rf"detectorSpecific/({_FLAT})"):
            flat = self._detector(name)
            if flat is None:
                continue
            applied = self._detector(r"(detectorSpecific/)?flatfield(_correction)?_applied")
            if applied is not None and self._one(applied, "", least=-math.inf) != 0:
                self._notices.append(f"flat field {flat.path}: the detector has divided by it already")
            else:
                option = adding("--white-path", flat.path)
                self._notices.append(f"flat field {flat.path} is not used; to divide by it: {option}")
        return None

    def _mean(self, dataset: Dataset, rows: int, columns: int, what: str) -> np.ndarray:
        """Return (rows, columns) mean; of dark frames without what is no measurement, NaN where nothing else is."""
        total, count, left_out = np.zeros((rows, columns)), np.zeros((rows, columns)), 0
        for frames in self._frames(self._use(dataset), rows, columns, what):
            if not np.isfinite(frames).all():
                raise self._wrong("numbers that are not finite", dataset.path, what, _WITHOUT[what])
            # A flat field may be scaled to the largest number of its type.
            measured = frames < (no_measurement_from(frames.dtype) if what == "dark frames" else math.inf)
            total += np.where(measured, frames, 0).sum(axis=0, dtype=np.float64)
            count += measured.sum(axis=0)
            left_out += int((~measured).sum())
        if left_out:
            self._notices.append(f"{what} {dataset.path}: {left_out} numbers are no measurement, and are left out")
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

    def _frames(self, dataset: Dataset, rows: int, columns: int, what: str) -> Iterator[np.ndarray]:
        """Yield (n, rows, columns) of a dataset of one frame or of many."""
        shape = dataset.shape
        stored = (columns, rows) if self._turned else (rows, columns)
        if dataset.dtype is None or dataset.dtype.kind not in "biuf" or shape[-2:] != stored or 0 in shape:
            raise self._wrong(
                f"shape {shape} of {'no numbers' if dataset.dtype is None else dataset.dtype}",
                dataset.path,
                f"{what}, {stored} as the patterns have",
                _WITHOUT[what],
            )
        frame_bytes = rows * columns * dataset.dtype.itemsize
        for block in self._tree.blocks([dataset], max(1, _MASK_BLOCK_BYTES // frame_bytes) * frame_bytes):
            frames = block.view(dataset.dtype).reshape(-1, *stored)
            yield frames.swapaxes(1, 2) if self._turned else frames

    def _probe(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.probe_path
        if path == "none":
            return None
        if path is not None:
            candidates = [self._named(self._tree, path, "--probe-path")]
        else:
            candidates = self._matching(
                r"/instrument[^/]*/source[^/]*/(illumination|data_illumination|probe)",
                r"/(instrument[^/]*/)?(beam|probe)[^/]*/(illumination|probe|data)",
            )
        chosen: Dataset | None = None
        for dataset in candidates:
            if chosen is not None and dataset.mark == chosen.mark:
                continue
            shape = dataset.shape
            if self._turned and len(shape) >= 2:
                shape = (*shape[:-2], shape[-1], shape[-2])
            axes = probe_axes(shape, rows, columns)
            if axes is None or dataset.dtype is None or dataset.dtype.kind != "c":
                found = f"shape {dataset.shape} of {'no numbers' if dataset.dtype is None else dataset.dtype}"
                if path is not None:
                    raise self._wrong(found, dataset.path, f"a complex probe of {rows} × {columns} pixels")
                self._notices.append(f"{dataset.path} is left out: {found} is no probe of these patterns")
                self._use(dataset)
            elif chosen is not None:
                self._notices.append(f"another probe is left out; to take it: {adding('--probe-path', dataset.path)}")
                self._use(dataset)
            else:
                chosen = self._use(dataset)
                self._say("probe", dataset)
                stored = self._tree.read(dataset)
                probe = axes.arranged(stored.swapaxes(-1, -2) if self._turned else stored)
                if axes.note:
                    self._notices.append(f"probe {dataset.path}: {axes.note}")
        if chosen is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # What is beyond float32 is refused with the new file.
            return np.ascontiguousarray(probe, np.complex64)
