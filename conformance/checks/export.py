"""A checkpoint becomes an archive, which is read by other means, and comes back as it was."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.checks.archive_files import Stored, draw_stored
from conformance.checks.archives import OLD, TODAY, saved_parameters
from conformance.checks.bridge import as_torch, stages_in_order
from conformance.checks.conversion import COUNTS, of_network
from conformance.checks.translation import ROWS, every_setting, texts
from conformance.judge.agreement import FLOAT64, Arrays, Compared
from conformance.oracle.network import Constants, Oracle
from conformance.oracle.stages import ACTIVATIONS, correlate
from ptycho_torch.config_params import NetworkSettings, Settings

if TYPE_CHECKING:
    from ptycho_tf_bridge.export import Export

TRAINED = dataclasses.replace(TODAY, intensity_scale_trainable=True)
LOG_SCALE = np.float32(np.log(TODAY.intensity_scale) + 0.25)
"""ln(s_I) behind training, which is not that of the settings."""

SHARED = dataclasses.replace(OLD, intensity_scale=11.3, probe_trainable=True)
"""A network whose scale stayed as it was set: 11.3, not what its logarithm in float32 gives back."""

MODELS = ("autoencoder", "diffraction_to_obj")
PARTS = ("custom_objects.dill", "model.keras", "model.h5", "params.dill")
"""Of each model in an archive."""


@dataclass(frozen=True)
class _Run:
    """A network in a checkpoint, and what the archive has of it.

    Attributes:
        stored: as it is in the checkpoint.
        log_scale: ln(s_I) in the checkpoint.
        scale: s_I.
        network: as exported.
        weights: as exported.
    """

    stored: Stored
    log_scale: np.float32
    scale: float
    network: NetworkSettings
    weights: Arrays

    @property
    def widens(self) -> bool:
        """Whether the amplitude head is widened."""
        return self.stored.settings.shared_amplitude_head


def _runs() -> dict[str, _Run]:
    """Draw a network whose scale was trained, and one whose amplitude head is widened."""
    trained, shared = draw_stored(TRAINED, 21), draw_stored(SHARED, 22)
    set_scale = np.float32(np.log(SHARED.intensity_scale))
    wide = dataclasses.replace(SHARED, shared_amplitude_head=False)
    return {
        "trained": _Run(trained, LOG_SCALE, math.exp(float(LOG_SCALE)), TRAINED, trained.weights),
        "shared": _Run(shared, set_scale, SHARED.intensity_scale, wide, _widened(shared)),
    }


class Exported:
    """Checkpoints of two networks on disk, and the archives that they became."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.runs = _runs()
        self.settings = Settings().override(
            of_network(TODAY) | {"nphotons": COUNTS, "max_epochs": 7, "batch_size": 8, "nll_weight": 0.4,
                                  "mae_weight": 0.75, "probe_scale": 7.0, "K": 9, "group_sampler": "reference",
                                  "gradient_clip_algorithm": "norm"}
        )  # fmt: skip
        self.written: dict[str, Export] = {}

    def archive(self, name: str) -> Path:
        """Return the archive of a network, exported on first use."""
        from ptycho_tf_bridge.export import export

        place = self.folder / name / "wts.h5.zip"
        if name not in self.written:
            checkpoint, run = self.folder / f"{name}.ckpt", self.runs[name]
            self._write(checkpoint, run)
            self.written[name] = export(checkpoint, place, widen_amplitude_head=run.widens)
        return place

    def _write(self, path: Path, run: _Run) -> None:
        """Write a checkpoint as training leaves it."""
        import torch

        from ptycho_torch.training.checkpoint_file import write_content

        stored = run.stored
        parts = np.stack([stored.probe.real, stored.probe.imag], axis=-1)[None]
        state = {**as_torch(stored.weights), "probe_parts": parts, "log_scale": np.array(run.log_scale)}
        own = {
            "format": 1, "settings": self.settings.as_dict(), "network": dataclasses.asdict(stored.settings),
            "statistics": {"probe_modes": 1, "one_probe": True}, "history": {}, "finished": True,
        }  # fmt: skip
        tensors = {f"network.{key}": torch.from_numpy(np.ascontiguousarray(array)) for key, array in state.items()}
        write_content(path, {"epoch": 7, "global_step": 70, "state_dict": tensors, "ptycho_torch": own})


@cache
def exported() -> Exported:
    """Return the archives, the same for every check of this process."""
    return Exported()


def _widened(stored: Stored) -> dict[str, np.ndarray]:
    """Repeat the one channel of the amplitude head for each pattern of a group."""
    C = stored.settings.gridsize**2
    return {
        name: np.stack([array[..., 0]] * C, axis=-1) if name.startswith("decoder_amp.central.") else array
        for name, array in stored.weights.items()
    }


def _archive_of(name: str, path: Path, network: NetworkSettings) -> dict[str, np.ndarray]:
    """Read an archive with nothing of the bridge."""
    import h5py

    with zipfile.ZipFile(path) as file:
        members = {member: file.read(member) for member in file.namelist()}
    first, second = MODELS
    # Our own pickles, which hold no code.
    parameters = pickle.loads(members[f"{second}/params.dill"])
    with h5py.File(io.BytesIO(members[f"{second}/model.h5"])) as root:
        file_scale = float(root.attrs["intensity_scale"])
    facts = {
        "members": tuple(sorted(members)),
        "manifest": pickle.loads(members["manifest.dill"]),
        "custom objects": pickle.loads(members[f"{second}/custom_objects.dill"]),
        "models alike": all(members[f"{first}/{part}"] == members[f"{second}/{part}"] for part in PARTS),
        "scale of model.h5": file_scale,
    }
    found = texts(f"{name}: ", facts) | {f"{name}: parameters": np.array(sorted(parameters))}
    found[f"{name}: probe"] = parameters.pop("probe")
    found[f"{name}: probe dtype"] = np.array(str(found[f"{name}: probe"].dtype))
    found |= texts(f"{name}: parameter ", parameters)
    layers, arrays = _keras_model(members[f"{second}/model.keras"])
    convolutions = [layer["name"] for layer in layers if layer["class_name"] == "Conv2D"]
    for stage, layer in zip(stages_in_order(network), convolutions, strict=True):
        found |= {f"{name}: {stage}.{kind}": arrays[layer, kind] for kind in ("kernel", "bias")}
    amplitude, phase = run_layers(layers, arrays, _input(network))
    return found | {f"{name}: amplitude of the patches": amplitude, f"{name}: phase of the patches": phase}


def _keras_model(content: bytes) -> tuple[list[dict[str, Any]], dict[tuple[str, str], np.ndarray]]:
    """Return the layers of a ``.keras`` file, and kernel and bias of each convolution, where Keras looks for them."""
    import h5py

    with zipfile.ZipFile(io.BytesIO(content)) as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
        weights = io.BytesIO(file.read("model.weights.h5"))
    arrays: dict[tuple[str, str], np.ndarray] = {}
    with h5py.File(weights) as root:
        names = [layer["name"] for layer in layers if layer["class_name"] == "Conv2D"]
        for number, layer in enumerate(names):
            group = root[f"layers/conv2d_{number}/vars" if number else "layers/conv2d/vars"]
            arrays |= {(layer, "kernel"): group["0"][()], (layer, "bias"): group["1"][()]}
    return layers, arrays


def _input(network: NetworkSettings) -> np.ndarray:
    """Draw the scaled amplitude of one group, channels last."""
    return np.random.default_rng(23).gamma(2.0, 3.0, (1, network.N, network.N, network.gridsize**2))


def run_layers(
    layers: list[dict[str, Any]], arrays: Mapping[tuple[str, str], np.ndarray], given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Run a model of Keras' own layers by what each is said to do, and return its last two outputs' values."""
    values: dict[str, np.ndarray] = {}
    for layer in layers:
        name, config = layer["name"], layer["config"]
        call = layer["inbound_nodes"][0]["args"] if layer["inbound_nodes"] else []
        first = call[:1] if call and isinstance(call[0], dict) else (call[0] if call else [])
        x, *others = [values[each["config"]["keras_history"][0]] for each in first] or [given]
        match layer["class_name"]:
            case "InputLayer":
                values[name] = x
            case "Conv2D":
                y = correlate(x, arrays[name, "kernel"].astype(np.float64)) + arrays[name, "bias"]
                values[name] = np.maximum(y, 0) if config["activation"] == "relu" else y
            case "MaxPooling2D":
                values[name] = np.maximum.reduce([x[:, j::2, i::2] for j in (0, 1) for i in (0, 1)])
            case "UpSampling2D":
                values[name] = x.repeat(2, axis=1).repeat(2, axis=2)
            case "GetItem":
                part = call[1][1]["config"]
                values[name] = x[..., slice(part["start"], part["stop"])]
            case "Activation":
                values[name] = _function(config["activation"], x)
            case "Rescaling":
                values[name] = x * config["scale"] + config["offset"]
            case "ZeroPadding2D":
                values[name] = np.pad(x, ((0, 0), *config["padding"], (0, 0)))
            case "Cropping2D":
                (top, bottom), (left, right) = config["cropping"]
                values[name] = x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]
            case "Subtract":
                values[name] = x - others[0]
            case "Add":
                values[name] = x + others[0]
            case other:
                raise ValueError(f"a layer of class {other}")
    return values["amplitude"], values["phase"]


def _function(name: str, x: np.ndarray) -> np.ndarray:
    """Return what Keras does under a name."""
    return np.tanh(x) if name == "tanh" else ACTIVATIONS["swish" if name == "silu" else name][0](x)


def _patches(run: _Run) -> list[np.ndarray]:
    """Return amplitude and phase of the patches by the oracle."""
    network = run.network
    oracle = Oracle(dataclasses.asdict(network))
    offsets_px = np.zeros((1, 1, 2, network.gridsize**2))
    constants = Constants.of(run.weights, offsets_px, run.stored.probe, run.scale)
    values = {"input": _input(network)}
    for stage in oracle.stages:
        if stage == "patches":
            break
        values[stage] = oracle.node(stage).evaluate([values[name] for name in oracle.inputs[stage]], constants)
    return [values["decoder_amp.output"], values["decoder_phase.output"]]


def _model_keys(network: NetworkSettings, scale: float) -> dict[str, Any]:
    """Return the reference's dictionary of a run of ``Exported``."""
    return saved_parameters(
        network,
        **{"probe.trainable": network.probe_trainable, "intensity_scale.trainable": network.intensity_scale_trainable},
        intensity_scale=scale, nphotons=COUNTS, nepochs=7, batch_size=8, nll_weight=0.4, mae_weight=0.75,
        probe_scale=7.0, neighbor_count=9,
    )  # fmt: skip


def exported_archives() -> Compared:
    """Export a network whose scale was trained, and one whose amplitude head is widened."""
    archives = exported()
    settings = every_setting(archives.settings)
    # What is left open is not written.
    of_settings = {there for here, _, _, there, _ in ROWS if there and settings[here] is not None}
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, run in archives.runs.items():
        facts = {
            "members": tuple(sorted(["manifest.dill", *(f"{model}/{part}" for model in MODELS for part in PARTS)])),
            "manifest": {"models": list(MODELS), "version": "1.0"}, "custom objects": {}, "models alike": True,
            "scale of model.h5": run.scale,
        }  # fmt: skip
        expected |= {f"{name}: {weight}": array for weight, array in run.weights.items()}
        expected |= {f"{name}: probe": run.stored.probe[..., None], f"{name}: probe dtype": np.array("complex64")}
        keys = _model_keys(run.network, run.scale)
        expected |= texts(f"{name}: parameter ", keys) | texts(f"{name}: ", facts)
        expected[f"{name}: parameters"] = np.array(sorted({"probe", *keys, *of_settings}))
        amplitude, phase = _patches(run)
        expected |= {f"{name}: amplitude of the patches": amplitude, f"{name}: phase of the patches": phase}
        found |= _archive_of(name, archives.archive(name), run.network)
    return Compared(expected, found, FLOAT64)
