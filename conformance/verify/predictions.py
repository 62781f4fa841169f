"""Predictions that the TensorFlow reference made with an archived model, as one NPZ file without pickles.

The format is described in <doc-ref type="contract">specs/README.md</doc-ref>, "Recorded predictions".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from conformance.cases.scan import channels_last
from conformance.errors import PredictionsError
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.data.scan import Scan, open_scan
from ptycho_torch.files.npz import NpzFile
from ptycho_torch.reconstruction.reassembly import REFERENCE_CROP_PX

MAX_BYTES = 4 * 2**30
"""Unpacked size above which a file is refused."""

_SHAPES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "X": ("n N N C", "f"),
        "offsets": ("n 1 2 C", "f"),
        "object": ("n N N 1", "c"),
        "amplitude": ("n N N C", "f"),
        "nn_indices": ("L C", "iu"),
        "coords_offsets": ("L 1 2 1", "f"),
        "coords_relative": ("L 1 2 C", "f"),
        "stitched": ("S S 1", "c"),
        "M": ("", "iu"),
    }
)
"""Key → shape as letters, and kinds of dtype."""

_BESIDE = ("intensity_scale", "loss", "val_loss", "seconds")
"""Of the archive, and of the training that made it: allowed, and not read."""

_REQUIRED = ("X", "offsets", "object")
_STITCHING = ("nn_indices", "coords_offsets", "coords_relative", "stitched")

_FOLDED_PATCHES = 64
"""Patches a call from which on the reference merges a batch into one object (REF-01)."""

_KERAS_BATCH = 32
"""Groups that Keras predicts at once unless it is told otherwise; the reference's inference does not."""

_SAME_POSITION_PX = 1e-3
_SAME_AMPLITUDE = 1e-4
"""Largest difference, in units of the RMS, between amplitude of one scan that was normalised in float32 or float64."""


@dataclass(frozen=True)
class StitchedPrediction:
    """A whole object that the reference stitched.

    Attributes:
        nn_indices: (L, C) patterns of each group, counted in the scan.
        centres_px: (L, 2) float64 (x, y) where each group's object was placed.
        offsets_px: (L, 1, 2, C) o_c of each group.
        canvas: (S, S) complex.
        crop_px: M, side of the central square of each object that was used.
    """

    nn_indices: np.ndarray
    centres_px: np.ndarray
    offsets_px: np.ndarray
    canvas: np.ndarray
    crop_px: int


@dataclass(frozen=True)
class Predictions:
    """What the reference predicted.

    Attributes:
        path: the file.
        diffraction: (n, N, N, C) float32 normalised amplitude; the network's input is this times the intensity scale.
        offsets_px: (n, 1, 2, C) float32 o_c.
        recorded: stage id → what was predicted for them: ``object``, and ``predicted_amplitude`` where it was kept.
        stitched: the whole object; None if it was not kept.
    """

    path: Path
    diffraction: np.ndarray
    offsets_px: np.ndarray
    recorded: Mapping[str, np.ndarray]
    stitched: StitchedPrediction | None


def read_predictions(path: Path, network: NetworkSettings) -> Predictions:
    """Read predictions of one network.

    Raises:
        DataContractError: NPZ-01 … NPZ-03, a file that is damaged, pickled or out of proportion.
        PredictionsError: a key that is unknown or missing, or an array that is not of this network.
    """
    file = NpzFile(Path(path))
    for key in file.keys:
        if key not in _SHAPES and key not in _BESIDE:
            raise PredictionsError(
                f"{path}: found the unknown key {key!r}; expected {', '.join((*_SHAPES, *_BESIDE))}. Drop or rename it."
            )
    for key in _REQUIRED:
        if key not in file:
            raise PredictionsError(f"{path}: key {key!r} is missing; predictions are {', '.join(_REQUIRED)}, and more.")
    stitching = [key for key in _STITCHING if key in file]
    if stitching and len(stitching) < len(_STITCHING):
        missing = ", ".join(key for key in _STITCHING if key not in file)
        raise PredictionsError(
            f"{path}: found {', '.join(stitching)} without {missing}; a stitched object needs all of them. "
            "Add what is missing, or drop the others."
        )
    _refuse_folded(file, network)
    found = _arrays(file, network)
    recorded = {"object": found["object"]}
    if "amplitude" in found:
        recorded["predicted_amplitude"] = found["amplitude"]
    return Predictions(
        path=Path(path),
        diffraction=found["X"].astype(np.float32),
        offsets_px=found["offsets"].astype(np.float32),
        recorded=recorded,
        stitched=_stitched(path, found, network) if stitching else None,
    )


def _refuse_folded(file: NpzFile, network: NetworkSettings) -> None:
    """Refuse predictions of fewer objects than groups that are few because whole batches became one (REF-01)."""
    shapes = file.header("X").shape, file.header("object").shape
    if not network.object_big or not all(shapes):
        return
    groups, objects = (shape[0] for shape in shapes)
    batches = (_KERAS_BATCH, *range(1, groups + 1))
    batch = next((size for size in batches if _objects_of(groups, size, network.C) == objects < groups), None)
    if batch is not None:
        raise PredictionsError(
            f"{file.path}: key 'object' holds {objects} objects for {groups} groups, as the reference returns them "
            f"from batches of {batch}: from {_FOLDED_PATCHES} patches a call on, it merges all groups of a batch into "
            "one object (REF-01), in its inference script too, and what it stitches of them is no reconstruction. "
            f"Predict again with at most {max((_FOLDED_PATCHES - 1) // network.C, 1)} groups a call; "
            "docs/migration.md has a script."
        )


def _objects_of(groups: int, batch: int, C: int) -> int:
    """Return how many objects the reference returns for groups of C patches, predicted in batches."""
    full, rest = divmod(groups, batch)
    return sum(1 if size * C >= _FOLDED_PATCHES else size for size in [batch] * full + [rest])


def _arrays(file: NpzFile, network: NetworkSettings) -> dict[str, np.ndarray]:
    sizes = {"N": network.N, "C": network.C}
    read: dict[str, np.ndarray] = {}
    present = [key for key in _SHAPES if key in file]
    total = sum(file.header(key).content_bytes for key in present)
    if total > MAX_BYTES:
        raise PredictionsError(f"{file.path}: found {total:,} bytes of arrays; expected at most {MAX_BYTES:,}.")
    for key in present:
        shape, kinds = _SHAPES[key]
        header = file.header(key)
        letters = shape.split()
        fits = len(header.shape) == len(letters) and header.dtype.kind in kinds
        for letter, size in zip(letters, header.shape, strict=False):
            expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            fits = fits and size == expected and size > 0
        if not fits:
            known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if letter in letters)
            raise PredictionsError(
                f"{file.path}: key {key!r} has shape {header.shape} of {header.dtype}; expected ({', '.join(letters)}) "
                f"of kind {' or '.join(kinds)}, with {known or 'a single value'}. Are they predictions of this archive?"
            )
        read[key] = file.read(key)
    for key in ("X", "offsets", "coords_offsets", "coords_relative"):
        if key in read and not np.isfinite(read[key]).all():
            raise PredictionsError(f"{file.path}: key {key!r} has values that are not finite; expected numbers.")
    return read


def _stitched(path: Path, found: Mapping[str, np.ndarray], network: NetworkSettings) -> StitchedPrediction:
    crop_px = int(found.get("M", REFERENCE_CROP_PX))
    if crop_px % 2 or not 0 < crop_px <= network.N:
        raise PredictionsError(f"{path}: M = {crop_px}; expected an even number of pixels up to N = {network.N}.")
    return StitchedPrediction(
        nn_indices=found["nn_indices"].astype(np.int64),
        centres_px=found["coords_offsets"][:, 0, :, 0].astype(np.float64),
        offsets_px=found["coords_relative"].astype(np.float32),
        canvas=found["stitched"][..., 0],
        crop_px=crop_px,
    )


@dataclass(frozen=True)
class GroupAmplitude:
    """Amplitude of groups of a scan, gathered as it is asked for.

    Attributes:
        patterns: (M, N, N) float32 normalised amplitude.
        members: (L, C) patterns of each group.
    """

    patterns: np.ndarray
    members: np.ndarray

    def of(self, groups: slice) -> np.ndarray:
        """Return the (groups, N, N, C) float32 amplitude of some groups."""
        return channels_last(self.patterns[self.members[groups]])


def scan_amplitude(predictions: Predictions, scan_path: Path, network: NetworkSettings) -> GroupAmplitude:
    """Return the amplitude of the groups that were stitched, from the scan itself.

    X = amplitude · √((N/2)² / mean Σ_xy amplitude²), the mean over groups and channels, as the reference has it.

    Raises:
        DataContractError: a clause that the scan breaks.
        PredictionsError: the predictions have no stitched object, or their groups are not of this scan.
    """
    stitched = predictions.stitched
    if stitched is None:
        raise PredictionsError(f"{predictions.path}: no stitched object is recorded, so no scan is needed.")
    scan = open_scan(scan_path)
    _check_groups(predictions.path, stitched, scan, network)
    amplitude = np.empty((scan.stack.count, network.N, network.N), np.float32)
    energy = np.empty(scan.stack.count)
    for first, some, energies in scan.stack.chunks(scan.stack.audit()):
        amplitude[first : first + len(some)] = some
        energy[first : first + len(some)] = energies
    mean = energy[stitched.nn_indices].mean()
    if not mean > 0:
        raise PredictionsError(f"{predictions.path}: the groups hold only dark patterns of {scan_path}.")
    amplitude *= network.N / 2 / np.sqrt(mean)
    groups = GroupAmplitude(amplitude, stitched.nn_indices)
    n = len(predictions.diffraction)
    if n <= len(stitched.nn_indices) and np.array_equal(stitched.offsets_px[:n], predictions.offsets_px):
        given = predictions.diffraction.astype(np.float64)
        if np.abs(groups.of(slice(n)) - given).max() > _SAME_AMPLITUDE * np.sqrt(np.mean(given**2)):
            raise PredictionsError(
                f"{predictions.path}: key 'X' is not what the first {n} groups of {scan_path} are; expected the same "
                f"patterns within {_SAME_AMPLITUDE:g} of their RMS. Give the scan that the predictions were made from."
            )
    return groups


def _check_groups(path: Path, stitched: StitchedPrediction, scan: Scan, network: NetworkSettings) -> None:
    if scan.stack.frame_px != network.N:
        raise PredictionsError(
            f"{scan.path}: patterns have side {scan.stack.frame_px}; the archive's network has N = {network.N}. Give "
            "the scan that the predictions were made from."
        )
    most = scan.stack.count - 1
    if stitched.nn_indices.min() < 0 or stitched.nn_indices.max() > most:
        raise PredictionsError(
            f"{path}: 'nn_indices' reach from {stitched.nn_indices.min()} to {stitched.nn_indices.max()}; {scan.path} "
            f"has patterns 0 to {most}. Give the scan that the predictions were made from."
        )
    members = scan.positions_px[stitched.nn_indices]  # (L, C, 2)
    centres = members.mean(axis=1)
    offsets = (centres[:, None] - members).transpose(0, 2, 1)[:, None]
    for key, found, expected in (
        ("coords_offsets", stitched.centres_px, centres),
        ("coords_relative", stitched.offsets_px, offsets),
    ):
        furthest = float(np.abs(found - expected).max())
        if furthest > _SAME_POSITION_PX:
            raise PredictionsError(
                f"{path}: {key!r} lies up to {furthest:.3g} pixels from the groups' places in {scan.path}; expected "
                f"{_SAME_POSITION_PX:g} at most. Give the scan that the predictions were made from."
            )
