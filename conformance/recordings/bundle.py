"""Reading a bundle: one recorded run of the TensorFlow reference with its float64 truth.

The format is described in <doc-ref type="contract">specs/README.md</doc-ref>, "Bundles".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.errors import BundleError
from conformance.recordings.manifest import Manifest, RecordedErrors, read_envelope, read_manifest
from conformance.spec.loader import load_stages
from ptycho_tf_bridge.weights import tensorflow_shapes
from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.files.npz import NpzFile

RECORDINGS = Path(__file__).parent

MAX_BYTES = 4 * 2**30
"""Unpacked size above which a bundle is refused; a real one holds megabytes."""

_INPUTS = ("diffraction", "offsets", "probe")
_LOSSES = ("nll", "mae", "total")


@dataclass(frozen=True)
class Sampled:
    """A recorded tensor: whole, or samples at flat indices of the channels-last array."""

    values: np.ndarray
    shape: tuple[int, ...]
    index: np.ndarray | None

    def pick(self, whole: np.ndarray) -> np.ndarray:
        """Return the elements of ``whole`` that were recorded, flat."""
        return whole.reshape(-1) if self.index is None else whole.reshape(-1)[self.index]


@dataclass(frozen=True)
class Bundle:
    """A recording.

    Attributes:
        path: the file.
        case: settings, inputs and weights.
        stages: stage id → what the reference computed.
        gradients: weight name → gradient of the total loss.
        losses: the reference's losses.
        truth_stages: stage id → float64 truth at the same samples.
        truth_gradients: weight name → likewise.
        truth_losses: likewise.
        rms: ``stage/ID`` or ``grad/NAME`` → RMS of the whole truth tensor.
        train_losses: loss before each update of Keras Adam(1e-3) on this batch; empty if none was recorded.
        trained: weight name → value after all updates.
        provenance: versions and device of the recording.
        manifest: digests; None in a recording of format 1, which has none.
        envelope: how far the reference was from the truth in several runs; None if that was not recorded.
    """

    path: Path
    case: Case
    stages: Mapping[str, Sampled]
    gradients: Mapping[str, Sampled]
    losses: Mapping[str, float]
    truth_stages: Mapping[str, np.ndarray]
    truth_gradients: Mapping[str, np.ndarray]
    truth_losses: Mapping[str, float]
    rms: Mapping[str, float]
    train_losses: tuple[float, ...]
    trained: Mapping[str, Sampled]
    provenance: Mapping[str, Any]
    manifest: Manifest | None = None
    envelope: RecordedErrors | None = None


def read_arrays(path: Path, keys: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Read the given members of an NPZ file, or all of them; no pickles, bounded sizes.

    Raises:
        BundleError: a damaged file, or a member that is missing.
    """
    try:
        npz = NpzFile(path)
        total = sum(member.content_bytes for member in npz.digest())
        if total > MAX_BYTES:
            raise BundleError(f"{path}: unpacks to {total} bytes, more than the {MAX_BYTES} allowed here.")
        return {key: npz.read(key) for key in keys or npz.keys}
    except DataContractError as err:
        raise BundleError(str(err)) from err


def _read_settings(path: Path) -> tuple[NetworkSettings, LossWeights]:
    """Read the configuration, which says what the other keys must be."""
    config = _json(path, "config", read_arrays(path, ("config",))["config"])
    settings_names, loss_names = NetworkSettings.field_names(), LossWeights.field_names()
    try:
        NetworkSettings.check_names(config, also_known=loss_names)
        settings = NetworkSettings(**{key: config[key] for key in config if key in settings_names})
        weights = LossWeights(**{key: config[key] for key in config if key in loss_names})
    except ConfigError as err:
        raise BundleError(f"{path}: key 'config': {err}") from err
    if weights.realspace_weight and weights.realspace_mae_weight:
        raise BundleError(
            f"{path}: key 'config': realspace_mae_weight needs a known object, and a bundle holds none; set it to 0."
        )
    return settings, weights


def read_bundle(path: Path) -> Bundle:
    """Read and check a whole bundle.

    Raises:
        BundleError: names the file, the key, what was found and what was expected.
    """
    settings, loss_weights = _read_settings(path)
    arrays = read_arrays(path)
    known = _known_keys(settings)
    for key in arrays:
        if key not in known:
            raise BundleError(
                f"{path}: unknown key {key!r}. This configuration has no such input, stage, weight or record; "
                "see specs/README.md, 'Bundles', for the keys of a bundle."
            )
    missing = [key for key, required in known.items() if required and key not in arrays]
    if missing:
        raise BundleError(f"{path}: key {missing[0]!r} is missing ({len(missing)} missing in all); record it again.")
    trained = [key for key in known if key.startswith("trained/")]
    if {"train/loss", *trained} & set(arrays) and not {"train/loss", *trained} <= set(arrays):
        raise BundleError(f"{path}: 'train/loss' and 'trained/…' belong together, for every weight; record it again.")
    _check_dtypes(path, arrays)
    said = {key: _json(path, key, arrays[key]) for key in ("manifest", "envelope") if key in arrays}
    manifest = read_manifest(path, said["manifest"], arrays) if "manifest" in said else None
    case = _case(path, arrays, settings, loss_weights)
    stages = _sampled(path, arrays, "stage")
    gradients = _sampled(path, arrays, "grad")
    trained_weights = _sampled(path, arrays, "trained")
    _check_shapes(path, case, stages, gradients, trained_weights)
    return Bundle(
        path=path,
        case=case,
        stages=stages,
        gradients=gradients,
        losses={name: _number(path, arrays, f"loss/{name}") for name in _LOSSES},
        truth_stages=_truth(path, arrays, "stage", stages),
        truth_gradients=_truth(path, arrays, "grad", gradients),
        truth_losses={name: _number(path, arrays, f"truth/loss/{name}") for name in _LOSSES},
        rms={key.removeprefix("rms/"): _number(path, arrays, key) for key in arrays if key.startswith("rms/")},
        train_losses=tuple(float(loss) for loss in arrays.get("train/loss", np.empty(0)).ravel()),
        trained=trained_weights,
        provenance=_json(path, "provenance", arrays["provenance"]),
        manifest=manifest,
        envelope=read_envelope(path, said["envelope"], load_stages().expand(settings)) if "envelope" in said else None,
    )


def _json(path: Path, key: str, text: np.ndarray) -> dict[str, Any]:
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{path}: key {key!r} is not JSON text ({err}).") from err
    if not isinstance(value, dict):
        raise BundleError(f"{path}: key {key!r} holds {type(value).__name__}; expected a JSON object.")
    return value


def _known_keys(settings: NetworkSettings) -> dict[str, bool]:
    """Every key that a bundle of these settings may have, and whether it must."""
    weights = tuple(tensorflow_shapes(settings))
    known = {"config": True, "provenance": True, "manifest": False, "envelope": False, "train/loss": False}
    known |= {f"input/{name}": True for name in _INPUTS}
    known |= {f"weight/{name}": True for name in weights}
    known |= {f"{prefix}/{name}": True for prefix in ("loss", "truth/loss") for name in _LOSSES}
    recorded = [f"stage/{stage.id}" for stage in load_stages().expand(settings)]
    recorded += [f"grad/{name}" for name in weights]
    known |= {f"{prefix}{key}": True for prefix in ("", "truth/", "rms/", "shape/") for key in recorded}
    known |= {f"index/{key}": False for key in recorded}
    trained = [f"trained/{name}" for name in weights]
    known |= {f"{prefix}{key}": False for prefix in ("", "shape/", "index/") for key in trained}
    return known


_KINDS = {
    "config": "U",
    "provenance": "U",
    "manifest": "U",
    "envelope": "U",
    "index": "iu",
    "shape": "iu",
    "input/diffraction": "fiu",
    "input/offsets": "fiu",
    "input/probe": "cf",
    "stage": "cf",
    "truth/stage": "cf",
}
"""Kinds of dtype by the longest prefix of a key that stands here; everything else is real."""


def _check_dtypes(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse text for numbers, complex for real, and NaN in what everything is measured with."""
    for key, array in arrays.items():
        parts = key.split("/")
        prefixes = ("/".join(parts[:length]) for length in range(min(len(parts), 2), 0, -1))
        kinds = next((_KINDS[prefix] for prefix in prefixes if prefix in _KINDS), "f")
        if array.dtype.kind not in kinds:
            names = {"U": "text", "i": "integer", "u": "unsigned integer", "f": "real", "c": "complex"}
            expected = " or ".join(names[kind] for kind in kinds)
            raise BundleError(f"{path}: key {key!r} has dtype {array.dtype}; expected {expected}.")
        if parts[0] == "rms" and not (array > 0).all() and not (array == 0).all():
            raise BundleError(f"{path}: key {key!r} is {array}; an RMS is zero or more.")


def _number(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> float:
    if arrays[key].size != 1 or not np.isrealobj(arrays[key]):
        raise BundleError(f"{path}: key {key!r} has shape {arrays[key].shape}; expected one real number.")
    return float(arrays[key].reshape(()))


def _case(path: Path, arrays: Mapping[str, np.ndarray], settings: NetworkSettings, loss_weights: LossWeights) -> Case:
    N, C = settings.N, settings.C
    diffraction, offsets = arrays["input/diffraction"], arrays["input/offsets"]
    probe = arrays["input/probe"]
    batch = diffraction.shape[0] if diffraction.ndim else 0
    expected: dict[str, tuple[int, ...]] = {"input/diffraction": (batch, N, N, C), "input/offsets": (batch, 1, 2, C)}
    expected["input/probe"] = (max(probe.shape[0], 1), N, N) if probe.ndim == 3 else (N, N)
    expected |= {f"weight/{name}": shape for name, shape in tensorflow_shapes(settings).items()}
    for key, shape in expected.items():
        if arrays[key].shape != shape or batch == 0:
            raise BundleError(f"{path}: key {key!r} has shape {arrays[key].shape}, expected {shape}.")
        if not np.isfinite(arrays[key]).all():
            raise BundleError(f"{path}: key {key!r} holds NaN or infinity.")
    return Case(
        name=path.stem,
        settings=settings,
        loss_weights=loss_weights,
        diffraction=diffraction,
        offsets_px=offsets,
        probe=probe.reshape(-1, N, N),
        weights={name: arrays[f"weight/{name}"] for name in tensorflow_shapes(settings)},
    )


def _sampled(path: Path, arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, Sampled]:
    found = {}
    for key in arrays:
        if not key.startswith(f"{kind}/"):
            continue
        if f"shape/{key}" not in arrays:
            raise BundleError(f"{path}: key 'shape/{key}' is missing; record the bundle again.")
        shape = tuple(int(length) for length in arrays[f"shape/{key}"].ravel())
        size = int(np.prod(shape, dtype=np.int64))
        index = arrays.get(f"index/{key}")
        values = arrays[key].reshape(-1)
        if index is not None and (index.ndim != 1 or index.size == 0 or index.min() < 0 or index.max() >= size):
            raise BundleError(f"{path}: key 'index/{key}' points outside shape {shape}.")
        if values.size != (size if index is None else index.size):
            raise BundleError(f"{path}: key {key!r} has {values.size} values for shape {shape} and its index.")
        found[key.removeprefix(f"{kind}/")] = Sampled(values, shape, index)
    return found


def _truth(
    path: Path, arrays: Mapping[str, np.ndarray], kind: str, recorded: Mapping[str, Sampled]
) -> dict[str, np.ndarray]:
    truth = {}
    for name, sampled in recorded.items():
        values = arrays[f"truth/{kind}/{name}"].reshape(-1)
        if values.shape != sampled.values.shape or values.dtype not in (np.float64, np.complex128):
            raise BundleError(
                f"{path}: key 'truth/{kind}/{name}' has shape {values.shape} and dtype {values.dtype}; expected "
                f"{sampled.values.shape} in float64 or complex128."
            )
        truth[name] = values
    return truth


def _check_shapes(
    path: Path,
    case: Case,
    stages: Mapping[str, Sampled],
    gradients: Mapping[str, Sampled],
    trained: Mapping[str, Sampled],
) -> None:
    weights = tensorflow_shapes(case.settings)
    for kind, recorded in (("grad", gradients), ("trained", trained)):
        for name, sampled in recorded.items():
            if sampled.shape != weights[name]:
                raise BundleError(
                    f"{path}: key 'shape/{kind}/{name}' is {sampled.shape}, expected the weight's, {weights[name]}."
                )
    batch, modes = case.diffraction.shape[0], case.probe.shape[0]
    for stage in load_stages().expand(case.settings):
        expected = stage.shape_tensorflow(batch, modes)
        if stages[stage.id].shape != expected:
            raise BundleError(
                f"{path}: key 'shape/stage/{stage.id}' is {stages[stage.id].shape}, expected {expected} "
                f"(clause {stage.clause.id})."
            )
