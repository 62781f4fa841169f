"""Single operations of the forward model, judged against a recording of the reference's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.errors import BundleError
from conformance.oracle import operations as oracle
from conformance.recordings.bundle import read_arrays
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch import helper
from ptycho_torch.data import probe, scaling
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.npz import NpzFile
from ptycho_torch.reconstruction import reassembly

Arrays = Mapping[str, np.ndarray]
NPHOTONS = 1e5
PROBE_SCALE = 4.0
BLUR_SIGMA_PX = 0.8


@dataclass(frozen=True)
class Operation:
    """One operation on three sides.

    Attributes:
        name: id of the test.
        clause: stage clause, or section of the reference page, that it belongs to.
        reads: keys of its inputs.
        recorded: key of what the reference gave.
        truth: the oracle's answer, float64.
        candidate: the answer of PyTorch; its first argument brings an array to the candidate's device and dtype.
        reference_ceiling: largest scale-free e of the recording; what float32 costs the reference here.
    """

    name: str
    clause: str
    reads: tuple[str, ...]
    recorded: str
    truth: Callable[..., Any]
    candidate: Callable[..., Any]
    reference_ceiling: float


def _images(array: np.ndarray) -> np.ndarray:
    """(n, H, W, 1) → (n, H, W)."""
    return array[..., 0]


def _channels_first(array: np.ndarray) -> np.ndarray:
    return LAYOUTS["channels"].to_torch(array)


def _stitch(crop_px: int) -> Operation:
    return Operation(
        f"stitch_{crop_px}",
        "reference page §6",
        ("stitch.patches", "stitch.offsets"),
        f"stitch.out.M{crop_px}",
        lambda patches, xy: oracle.stitch(_images(patches), xy.reshape(-1, 2), crop_px)[..., None],
        lambda put, patches, xy: reassembly.stitch_patches(put(_images(patches)), put(xy).reshape(-1, 2), crop_px)[
            ..., None
        ],
        2e-5,
    )


def _default_probe(N: int) -> Operation:
    return Operation(
        f"default_probe_{N}",
        "exit_wave",
        (),
        f"probe.default.{N}",
        lambda: oracle.default_probe(N),
        lambda put: probe.default_probe(N),
        1e-15,
    )


def _disk_mask(N: int) -> Operation:
    return Operation(
        f"disk_mask_{N}",
        "exit_wave",
        (),
        f"probe.mask.{N}",
        lambda: oracle.disk_mask(N)[..., None],
        lambda put: probe.disk_mask(N)[..., None],
        0.0,
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation("translate", "merged", ("translate.image", "translate.offsets"), "translate.out",
              lambda images, offsets: oracle.translate(_images(oracle.wide(images)), oracle.wide(offsets))[..., None],
              lambda put, images, offsets: helper.translate(put(_images(images)), put(offsets))[..., None], 2e-6),
    _stitch(20),
    _stitch(32),
    _default_probe(64),
    _default_probe(128),
    _disk_mask(64),
    _disk_mask(128),
    Operation("normalise_probe", "exit_wave", ("probe.guess",), "probe.normalised",
              lambda guess: oracle.normalise_probe(guess, PROBE_SCALE)[..., None],
              lambda put, guess: probe.normalise_probe(put(guess), PROBE_SCALE)[..., None], 5e-7),
    Operation("smooth", "exit_wave", ("blur.in",), "blur.out.0.8",
              lambda waves: oracle.smooth(waves.transpose(0, 3, 1, 2), BLUR_SIGMA_PX).transpose(0, 2, 3, 1),
              lambda put, waves: helper.smooth(put(_channels_first(waves)), BLUR_SIGMA_PX).permute(0, 2, 3, 1), 5e-7),
    Operation("normalise_amplitude", "normalized_input", ("normalise.in",), "normalise.out",
              lambda amplitude: oracle.normalise_amplitude(amplitude, amplitude.shape[1]),
              lambda put, amplitude: put(amplitude) * scaling.normalisation_factor(put(_channels_first(amplitude))),
              5e-7),
    Operation("ground_truth_patches", "reference page §6", ("patches.object", "patches.xy"), "patches.out",
              lambda image, xy: oracle.ground_truth_patches(image, xy, 64)[..., None],
              lambda put, image, xy: helper.cut_patches(put(image), put(xy), 64)[..., None], 5e-6),
    Operation("relative_offsets", "merged", ("relative.in",), "relative.out", oracle.relative_offsets,
              lambda put, xy: helper.relative_offsets(put(LAYOUTS["offsets"].to_torch(xy))).permute(0, 2, 3, 1), 1e-15),
    Operation("diffract", "amplitude", ("diffract.in",), "diffract.out",
              lambda waves: oracle.diffract(_images(waves))[..., None],
              lambda put, waves: helper.diffract(put(_images(waves))[:, None, None])[:, 0, ..., None], 5e-7),
    Operation("intensity_scale", "predicted_amplitude", ("nphotons.in",), "nphotons.scale",
              lambda amplitude: np.array(oracle.intensity_scale(NPHOTONS, amplitude)),
              lambda put, amplitude: torch.tensor(scaling.intensity_scale_of(NPHOTONS, put(_channels_first(amplitude))),
                                                  dtype=torch.float64), 5e-7),
)  # fmt: skip


def is_operations_recording(path: Path) -> bool:
    """Say whether a file holds single operations and not a network.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        npz = NpzFile(path)
    except DataContractError as err:
        raise BundleError(str(err)) from err
    return "config" not in npz and any(operation.recorded in npz for operation in OPERATIONS)


def read_operations(path: Path) -> Arrays:
    """Read a recording of single operations.

    Raises:
        BundleError: a key that no operation reads or gives, or one that is missing.
    """
    known = {key for operation in OPERATIONS for key in (*operation.reads, operation.recorded)} | {"relative.centre"}
    arrays = read_arrays(path)
    for key in arrays:
        if key not in known:
            raise BundleError(f"{path}: unknown key {key!r}; operations read and give: {', '.join(sorted(known))}.")
    missing = sorted(known - set(arrays))
    if missing:
        raise BundleError(f"{path}: key {missing[0]!r} is missing; record it again.")
    return arrays
