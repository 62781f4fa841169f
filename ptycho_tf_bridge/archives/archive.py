"""What a trained model of the TensorFlow reference holds, in plain arrays and values."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_tf_bridge.archives.hdf5 import read_hdf5
from ptycho_tf_bridge.archives.members import Members, open_members, open_members_of
from ptycho_tf_bridge.archives.saved_parameters import (
    SCALE_KEY,
    choose_probe,
    choose_scale,
    era_of,
    peculiarities,
    settle,
)
from ptycho_tf_bridge.archives.stored_model import StoredModel, read_keras_model, read_savedmodel
from ptycho_tf_bridge.archives.torch_bundle import is_torch_bundle, torch_bundle_error
from ptycho_tf_bridge.archives.unpickle import read_pickle
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import breaking
from ptycho_torch.files.npz import listed
from ptycho_torch.files.restricted_pickle import MAX_BYTES

_ARCHIVE = "wts.h5.zip"
_MANIFEST, _PARAMETERS, _KERAS, _SCALE_FILE = "manifest.dill", "params.dill", "model.keras", "model.h5"
_SAVED_MODEL = ("saved_model.pb", "variables/variables.index")
_PREDICTING = "diffraction_to_obj"

_HDF5 = b"\x89HDF\r\n\x1a\n"
_WEIGHTS_ALONE = (
    "weights that Keras saved without their model (HDF5), which do not say what network they are of. Load them into "
    "the model where they were saved, and save it as model.keras."
)
_HDF5_KINDS = (
    (
        b"model_config",
        "a model that Keras saved as HDF5, the format before .keras. Where it was saved, load it with "
        "keras.models.load_model and save it as model.keras.",
    ),
    (b"layer_names", _WEIGHTS_ALONE),
    (b"vars\0\0\0\0", _WEIGHTS_ALONE),
)
"""Names in HDF5 files that Keras writes, and what such a file is; the first that is there decides."""
_OTHER_HDF5 = "an HDF5 file that Keras did not write, perhaps a scan or a reconstruction."

_LONGEST_NAME = max(len(name) for name, _ in _HDF5_KINDS)
_BLOCK_BYTES = 2**20

_MANIFEST_BYTES = 2**16
_SCALE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Archive:
    """One archive, read without running anything from it.

    Attributes:
        path: the file or folder.
        digest: SHA-256 of the file, or of its members' names and contents where it is a folder, in hexadecimal.
        layout: ``keras`` (``model.keras`` in a zip), ``bare_keras`` (only a ``.keras`` file), ``savedmodel`` (in a
            zip), ``savedmodel_folder`` or ``torch``.
        era: when such archives were written, in words.
        parameters: the saved parameters (``params.dill``): legacy key → plain value or array; empty if there are none.
        network: the network that the weights belong to, from the saved parameters and checked against the weights.
        weights: ``NAME.kernel`` (kh, kw, in, out) and ``NAME.bias`` (out,), NAME a stage id, float32, in the order of
            the weight table.
        probe: (N, N) complex64, used as it is; None if the archive holds none.
        probe_source: where it was found; empty if it was not.
        intensity_scale: s_I; None if the archive holds none.
        intensity_scale_source: where it was found; empty if it was not.
        missing: what the archive does not hold and a conversion has to be given, by name: ``probe``,
            ``intensity_scale``, or fields of ``network``, which has their defaults until then.
        notes: sentences about what is peculiar, for the migration report.
    """

    path: Path
    digest: str
    layout: str
    era: str
    parameters: Mapping[str, Any]
    network: NetworkSettings
    weights: Mapping[str, np.ndarray]
    probe: np.ndarray | None
    probe_source: str
    intensity_scale: float | None
    intensity_scale_source: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@breaking("FILE-01")
def read_archive(path: str | Path, *, model: str | None = None) -> Archive:
    """Read an archive of the TensorFlow reference without TensorFlow, and without running anything from it.

    What it is follows from what it contains, never from its name.

    Args:
        path: ``wts.h5.zip`` of any year, a ``.keras`` file, a folder of a SavedModel, an unpacked archive, or the
            folder of a training, in which ``archive_of`` finds the archive.
        model: name of the stored model to take, where an archive holds several; None takes
            ``diffraction_to_obj``, which the reference predicts with, and the other one has to have the same weights.

    Raises:
        ArchiveError: it is damaged, hostile, of a kind that cannot be converted, or its parts contradict each other;
            the message says which and why.
    """
    path = archive_of(Path(path))
    _refuse_hdf5(path)
    with open_members(path) as members:
        if is_torch_bundle(members):
            raise torch_bundle_error(members)
        layout, prefixes = _layout(members)
        notes = [*_manifest_notes(members, prefixes)]
        models = _models(members, layout, prefixes, model)
        name = next(iter(models))
        parameters, source = _parameters(members, prefixes[name], path)
        scales = [*_scales(members, prefixes[name], parameters, source)]
        digest = members.digest
    stored = models[name]
    if source and source != f"{prefixes[name]}{_PARAMETERS}":
        notes.append(f"The saved parameters are those of {source}, beside the model.")
    if not parameters and layout != "bare_keras":
        raise ArchiveError(
            f"{path}: no params.dill, which says how the model was built (activation, canvas, blur). The training that "
            "made the archive wrote one; put it beside the model."
        )
    network, unknown = settle(stored, parameters, f"{path}: {source or name or 'config.json'}")
    notes += peculiarities(layout, network)
    if stored.policies:
        notes.append(
            f"Layers compute in Keras' {listed(stored.policies)} there and in float32 here: the weights are the same, "
            "and predictions differ by what the shorter numbers lose."
        )
    # Of the two models of a SavedModel archive, one alone has the probe.
    probed, lit = next(((other, each) for other, each in models.items() if each.probe is not None), (name, stored))
    probe, probe_source = choose_probe(lit, f"{prefixes[probed]}variables", parameters, source, str(path), notes)
    scale, scale_source = choose_scale(scales, str(path), notes)
    if scale is not None:
        network = dataclasses.replace(network, intensity_scale=scale)
    given = {"probe": probe, "intensity_scale": scale}
    return Archive(
        path=path,
        digest=digest,
        layout=layout,
        era=era_of(layout, stored, network),
        parameters=parameters,
        network=network,
        weights=stored.weights,
        probe=probe,
        probe_source=probe_source,
        intensity_scale=scale,
        intensity_scale_source=scale_source,
        missing=(*(name for name, value in given.items() if value is None), *unknown),
        notes=tuple(notes),
    )


def archive_of(path: Path) -> Path:
    """Return the archive that a path means: itself, or in the folder of a training ``wts.h5.zip``, else its only ZIP.

    Raises:
        ArchiveError: the folder holds several ZIP files, and none of that name.
    """
    if (inside := path / _ARCHIVE).is_file() or not path.is_dir():
        return inside if inside.is_file() else path
    found = sorted(path.glob("*.zip"))
    if len(found) > 1:
        raise ArchiveError(f"{path}: holds {listed([each.name for each in found])}; give one of them, not the folder.")
    return found[0] if found else path


def _refuse_hdf5(path: Path) -> None:
    """Raise for an HDF5 file, and say what it is from the names in it; the HDF5 library does not open it."""
    if not path.is_file():
        return
    # A file that cannot be read is reported where archives are opened.
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_HDF5)) != _HDF5:
            return
        found: set[bytes] = set()
        end = b""
        while block := file.read(_BLOCK_BYTES):
            # A name may lie across the border of two blocks.
            found |= {name for name, _ in _HDF5_KINDS if name in end + block}
            end = block[-_LONGEST_NAME:]
        kind = next((kind for name, kind in _HDF5_KINDS if name in found), _OTHER_HDF5)
        raise ArchiveError(f"{path}: {kind} Expected the wts.h5.zip of a training, or a .keras file.")


# ------------------------------------------------------------------------------------------------------------- layout


def _layout(members: Members) -> tuple[str, dict[str, str]]:
    """Return the layout, and name → folder of every stored model, the one that predicts first."""
    names = members.names
    if {"config.json", "model.weights.h5"} <= set(names):
        return "bare_keras", {"": ""}
    for layout, files in (("keras", (_KERAS,)), ("savedmodel", _SAVED_MODEL)):
        folders = {name.removesuffix(file) for file in files for name in names if f"/{name}".endswith(f"/{file}")}
        if folders == {""} and layout == "savedmodel":
            return "savedmodel_folder", {"": ""}
        if folders:
            ordered = sorted(folders, key=lambda folder: (not folder.rstrip("/").endswith(_PREDICTING), folder))
            return layout, {folder.rstrip("/"): folder for folder in ordered}
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise ArchiveError(
            f"{members.where}: no archive of the reference but a file of torch.save, perhaps a checkpoint of this "
            "project. `ptycho-torch infer` and `ptycho-bridge export` take those; here give the wts.h5.zip of a "
            "training."
        )
    raise ArchiveError(
        f"{members.where}: no model of the reference; found {listed(names)}. Expected model.keras, saved_model.pb with "
        "variables, or config.json with model.weights.h5: give the wts.h5.zip of a training."
    )


def _manifest_notes(members: Members, prefixes: Mapping[str, str]) -> Iterator[str]:
    if _MANIFEST not in members:
        return
    manifest = read_pickle(members.read(_MANIFEST, _MANIFEST_BYTES), where=members.place(_MANIFEST))
    models = manifest.get("models") if isinstance(manifest, dict) else None
    if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
        raise ArchiveError(f"{members.place(_MANIFEST)}: no list of models; the archive is damaged.")
    if missing := sorted(set(models) - set(prefixes)):
        raise ArchiveError(
            f"{members.place(_MANIFEST)}: names the model {missing[0]!r}, which is not there; found {sorted(prefixes)}."
        )
    if extra := sorted(set(prefixes) - set(models)):
        yield f"The manifest does not name {', '.join(extra)}."


def _models(members: Members, layout: str, prefixes: Mapping[str, str], model: str | None) -> dict[str, StoredModel]:
    """Return every stored model, the one to take first, all with the same weights; or the one that was asked for."""
    if model is not None:
        if model not in prefixes:
            raise ArchiveError(f"{members.where}: no model {model!r}; there are {', '.join(map(repr, prefixes))}.")
        # The probe of another model than the one asked for would not be its own.
        return {model: _read_model(members, layout, prefixes[model])}
    models = {name: _read_model(members, layout, prefix) for name, prefix in prefixes.items()}
    first = next(iter(models))
    for name, other in models.items():
        if not _same_weights(models[first], other):
            raise ArchiveError(
                f"{members.where}: the models {first!r} and {name!r} have different weights; say which one to take "
                "(--model)."
            )
    return models


def _read_model(members: Members, layout: str, prefix: str) -> StoredModel:
    if layout == "bare_keras":
        return read_keras_model(members)
    if layout == "keras":
        place = f"{prefix}{_KERAS}"
        with open_members_of(members.read(place), members.place(place)) as file:
            return read_keras_model(file)
    return read_savedmodel(members, prefix)


def _same_weights(one: StoredModel, other: StoredModel) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        np.array_equal(array, other.weights[name]) for name, array in one.weights.items()
    )


# --------------------------------------------------------------------------------------- parameters, probe and scale


def _parameters(members: Members, prefix: str, path: Path) -> tuple[dict[str, Any], str]:
    """Return the saved parameters and where they were; of a model alone, from the file beside it."""
    source = f"{prefix}{_PARAMETERS}"
    beside = path.parent / _PARAMETERS
    if source in members:
        content, where = members.read(source, MAX_BYTES), members.place(source)
    elif not prefix and beside.is_file():
        source = where = str(beside)
        with beside.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    else:
        return {}, ""
    parameters = read_pickle(content, where=where)
    if not isinstance(parameters, dict) or not all(isinstance(key, str) for key in parameters):
        raise ArchiveError(f"{where}: {type(parameters).__name__} in place of a dictionary of parameters.")
    return parameters, source


def _scales(members: Members, prefix: str, parameters: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Yield every intensity scale with where it is, the one that counts first."""
    if parameters.get(SCALE_KEY) is not None:
        yield source, parameters[SCALE_KEY]
    name = f"{prefix}{_SCALE_FILE}"
    if name in members:
        content = read_hdf5(members.read(name, _SCALE_BYTES), where=members.place(name))
        value = content.attributes.get("", {}).get(SCALE_KEY)
        if value is not None:
            yield name, value
