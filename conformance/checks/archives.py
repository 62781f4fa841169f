"""Archives of the reference become plain arrays and values: graphs, weights, probe, scale and parameters."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from conformance.checks.archive_files import (
    GraphFile,
    Members,
    Stored,
    checkpoint_members,
    draw_stored,
    keras_file,
    layer_names,
    pickled,
    scale_file,
    variables_of,
    zipped,
)
from conformance.checks.light import draw_wave
from conformance.checks.translation import texts
from conformance.judge.agreement import Arrays, Compared
from ptycho_torch.config_params import NetworkSettings

TODAY = NetworkSettings(
    N=64, gridsize=2, n_filters_scale=1, probe_mask=True, amp_activation="swish", gaussian_smoothing_sigma=0.7,
    offset=5, max_position_jitter=7, intensity_scale=23.625,
)  # fmt: skip
OLD = NetworkSettings(
    N=64, gridsize=2, n_filters_scale=1, probe_big=False, shared_amplitude_head=True, amp_activation="softplus",
    offset=3, max_position_jitter=9, intensity_scale=11.25,
)  # fmt: skip
ALONE = NetworkSettings(
    N=64, gridsize=2, n_filters_scale=1, pad_object=False, amp_activation="swish", gaussian_smoothing_sigma=0.4,
    offset=4, max_position_jitter=6,
)  # fmt: skip
SAVED_MODEL = NetworkSettings(
    N=64, gridsize=2, n_filters_scale=1, shared_amplitude_head=True, amp_activation="swish", probe_mask=True,
    gaussian_smoothing_sigma=0.3, offset=7, max_position_jitter=5, intensity_scale=float(np.float32(19.3)),
)  # fmt: skip
FOLDER = NetworkSettings(
    N=64, gridsize=2, n_filters_scale=1, object_big=False, probe_big=False, amp_activation="relu", offset=2,
    max_position_jitter=13, intensity_scale=6.5,
)  # fmt: skip


def saved_parameters(settings: NetworkSettings, **more: Any) -> dict[str, Any]:
    """Return the reference's dictionary beside a model, as far as the model depends on it, and more of it."""
    return {
        "N": settings.N, "gridsize": settings.gridsize, "n_filters_scale": settings.n_filters_scale,
        "object.big": settings.object_big, "probe.big": settings.probe_big, "pad_object": settings.pad_object,
        "probe.mask": settings.probe_mask, "amp_activation": settings.amp_activation,
        "gaussian_smoothing_sigma": settings.gaussian_smoothing_sigma, "offset": settings.offset,
        "max_position_jitter": settings.max_position_jitter, "_version": "1.0", **more,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- graphs

SPELLINGS: Mapping[str, str] = {
    "sigmoid": "sigmoid", "swish": "swish", "silu": "swish", "softplus": "softplus", "relu": "relu",
}  # fmt: skip
"""How the reference, or a newer Keras, spells an activation → what it is."""

GRAPH_KINDS: Mapping[str, NetworkSettings] = {
    "both paths": TODAY,
    "centre alone": OLD,
    "whole patch": ALONE,
    "five blocks": NetworkSettings(N=256, gridsize=1, n_filters_scale=1, max_position_jitter=4),
}


def graphs() -> Compared:
    """Read from a graph which convolution is which stage, the activation, the border and the canvas."""
    from ptycho_tf_bridge.archives.keras_graph import find_roles, read_graph

    expected, found = {}, {}
    for kind, settings in GRAPH_KINDS.items():
        names = layer_names(settings)
        canvas = settings.N + (settings.gridsize - 1) * settings.offset + settings.max_position_jitter
        roles = find_roles(read_graph(GraphFile(settings, "sigmoid").content(), kind))
        expected[f"{kind}: convolutions"] = _listed(names)
        found[f"{kind}: convolutions"] = _listed(roles.convolutions)
        masks = True if settings.pad_object and settings.probe_big else None
        expected |= texts(f"{kind}: ", {"canvas_px": canvas, "masks_border": masks})
        found |= texts(f"{kind}: ", {"canvas_px": roles.canvas_px, "masks_border": roles.masks_border})
        for spelling, activation in SPELLINGS.items():
            for as_keras in (False, True):
                name = f"{kind}: {spelling}{', a layer of Keras' if as_keras else ''}"
                roles = find_roles(read_graph(GraphFile(settings, spelling, as_keras=as_keras).content(), kind))
                expected[name] = np.array(activation)
                found[name] = np.array(roles.amp_activation)
    return Compared(expected, found)


def _listed(names: Mapping[str, str]) -> np.ndarray:
    return np.array([f"{stage} = {names[stage]}" for stage in sorted(names)])


# ---------------------------------------------------------------------------------------------------------- archives


@dataclass(frozen=True)
class Kind:
    """One archive on disk, and what is in it.

    Attributes:
        files: path → content.
        place: path that is read.
        stored: the model in it.
        parameters: the saved ones, as they are read.
        facts: layout, sources and what is missing.
        probe: that counts; None for none.
    """

    files: Members
    place: str
    stored: Stored
    parameters: Mapping[str, Any]
    facts: Mapping[str, Any]
    probe: np.ndarray | None

    def expected(self, name: str) -> dict[str, np.ndarray]:
        """Return what reading gives."""
        return _read_as(name, self.stored.settings, self.stored.weights, self.probe, self.parameters, self.facts)

    def found(self, name: str) -> dict[str, np.ndarray]:
        """Write the archive and read it."""
        from ptycho_tf_bridge.archives.archive import read_archive

        with tempfile.TemporaryDirectory(prefix="conformance-archive-") as folder:
            for path, content in self.files.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_bytes(content)
            archive = read_archive(Path(folder) / self.place)
        facts = {fact: getattr(archive, fact) for fact in self.facts}
        return _read_as(name, archive.network, archive.weights, archive.probe, archive.parameters, facts)


def _read_as(
    name: str,
    network: NetworkSettings,
    weights: Arrays,
    probe: np.ndarray | None,
    parameters: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Name everything that an archive holds."""
    arrays = {f"{name}: {weight}": array for weight, array in weights.items()}
    arrays[f"{name}: names"] = np.array([f"{weight} {array.dtype}" for weight, array in weights.items()])
    if probe is not None:
        arrays |= {f"{name}: probe": probe, f"{name}: probe dtype": np.array(str(probe.dtype))}
    arrays |= texts(f"{name}: ", dataclasses.asdict(network)) | texts(f"{name}: ", facts)
    arrays[f"{name}: parameters"] = np.array(sorted(parameters))
    plain = {key: value for key, value in parameters.items() if not isinstance(value, np.ndarray)}
    held = {key: value for key, value in parameters.items() if isinstance(value, np.ndarray)}
    arrays |= texts(f"{name}: parameter ", plain)
    return arrays | {f"{name}: parameter {key}": value for key, value in held.items()}


def _today() -> Kind:
    """Two models that agree; parameters and ``model.h5`` do not, and the parameters count."""
    stored = draw_stored(TODAY, 1)
    model, stale = keras_file(stored, "silu"), 1.5 * TODAY.intensity_scale
    parameters = saved_parameters(
        TODAY, amp_activation="SiLU", intensity_scale=23.625, nphotons=571536.0, nepochs=7, output_prefix="out",
        n_images=None, probe=stored.probe[..., None],
    )  # fmt: skip
    members = {"manifest.dill": pickled({"models": ["autoencoder", "diffraction_to_obj"], "version": "1.0"})}
    for name in ("autoencoder", "diffraction_to_obj"):
        members |= {
            f"{name}/custom_objects.dill": b"\x80\x04cos\nsystem\n.",
            f"{name}/model.keras": model,
            f"{name}/params.dill": pickled(parameters),
        }
    members["diffraction_to_obj/model.h5"] = scale_file(stale)
    content, source = zipped(members), "diffraction_to_obj/params.dill"
    facts = {
        "layout": "keras", "probe_source": source, "intensity_scale_source": source, "missing": (),
        "digest": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    return Kind({"wts.h5.zip": content}, "wts.h5.zip", stored, parameters, facts, stored.probe)


def _old() -> Kind:
    """One model, without names in its file of weights, with the scale only in ``model.h5``."""
    stored = draw_stored(OLD, 2)
    parameters = saved_parameters(OLD, probe=stored.probe)
    members = {
        "manifest.dill": pickled({"models": ["diffraction_to_obj"], "version": "1.0"}),
        "diffraction_to_obj/model.keras": keras_file(stored, "softplus", named=False),
        "diffraction_to_obj/model.h5": scale_file(np.float32(11.25)),
        "diffraction_to_obj/params.dill": pickled(parameters),
    }
    facts = {
        "layout": "keras", "probe_source": "diffraction_to_obj/params.dill",
        "intensity_scale_source": "diffraction_to_obj/model.h5", "missing": (),
    }  # fmt: skip
    return Kind({"wts.h5.zip": zipped(members)}, "wts.h5.zip", stored, parameters, facts, stored.probe)


def _alone() -> Kind:
    """A ``.keras`` file beside parameters that leave some things open; offset and jitter follow from the canvas."""
    stored = draw_stored(ALONE, 3)
    left_out = ("probe.mask", "offset", "max_position_jitter")
    parameters = {key: value for key, value in saved_parameters(ALONE).items() if key not in left_out}
    facts = {
        "layout": "bare_keras", "probe_source": "", "intensity_scale_source": "",
        "missing": ("probe", "intensity_scale", "probe_mask"),
    }  # fmt: skip
    files = {"a/model.keras": keras_file(stored, "silu"), "a/params.dill": pickled(parameters)}
    return Kind(files, "a/model.keras", stored, parameters, facts, None)


def _saved_model() -> Kind:
    """A zip from before Keras 3: one of its two models has the probe, which was trained since it was saved."""
    stored = draw_stored(SAVED_MODEL, 4)
    before = draw_wave(np.random.default_rng(5), 64, 64).astype(np.complex64)
    parameters = saved_parameters(
        SAVED_MODEL, amp_activation="silu", intensity_scale=SAVED_MODEL.intensity_scale,
        output_prefix="out/run", probe=before[..., None],
    )  # fmt: skip
    pickle = pickled(parameters | {
        "intensity_scale": np.float32(SAVED_MODEL.intensity_scale), "output_prefix": PurePosixPath("out/run"),
    })  # fmt: skip
    members = {"manifest.dill": pickled({"models": ["autoencoder", "diffraction_to_obj"], "version": "1.0"})}
    for name, probe in (("autoencoder", stored.probe), ("diffraction_to_obj", None)):
        variables = variables_of(SAVED_MODEL, stored.weights, probe)
        files = {"saved_model.pb": b"", "params.dill": pickle, **checkpoint_members(variables)}
        members |= {f"{name}/{file}": content for file, content in files.items()}
    facts = {
        "layout": "savedmodel", "probe_source": "autoencoder/variables",
        "intensity_scale_source": "diffraction_to_obj/params.dill", "missing": (),
    }  # fmt: skip
    return Kind({"wts.h5.zip": zipped(members)}, "wts.h5.zip", stored, parameters, facts, stored.probe)


def _folder() -> Kind:
    """The folder of a SavedModel without a probe of its own."""
    stored = draw_stored(FOLDER, 6)
    parameters = saved_parameters(FOLDER, intensity_scale=6.5, probe=stored.probe[..., None])
    variables = variables_of(FOLDER, stored.weights)
    files = {"saved_model.pb": b"", "params.dill": pickled(parameters), **checkpoint_members(variables)}
    facts = {
        "layout": "savedmodel_folder", "probe_source": "params.dill", "intensity_scale_source": "params.dill",
        "missing": (),
    }  # fmt: skip
    return Kind({f"model/{file}": content for file, content in files.items()}, "model", stored, parameters, facts,
                stored.probe)  # fmt: skip


@cache
def keras_kinds() -> Mapping[str, Kind]:
    """Return archives of Keras 3."""
    return {"zip": _today(), "zip with one amplitude": _old(), ".keras alone": _alone()}


@cache
def saved_model_kinds() -> Mapping[str, Kind]:
    """Return archives of Keras 2."""
    return {"SavedModel": _saved_model(), "folder": _folder()}


def _compared(kinds: Mapping[str, Kind]) -> Compared:
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, kind in kinds.items():
        expected |= kind.expected(name)
        found |= kind.found(name)
    return Compared(expected, found)


def keras_archives() -> Compared:
    """Read a zip of today, one of the year before, and only a ``.keras`` file."""
    return _compared(keras_kinds())


def saved_models() -> Compared:
    """Read a zip and a folder from before Keras 3."""
    return _compared(saved_model_kinds())
