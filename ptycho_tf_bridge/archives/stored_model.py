"""One stored model of an archive: its weights under the names of the weight table, and what its graph says.

A ``.keras`` file has a graph, from which each convolution's part follows. A TensorFlow checkpoint numbers its layers in
the order of the weight table, and shapes confirm it. Neither needs TensorFlow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ptycho_tf_bridge.archives.hdf5 import Hdf5Content, read_hdf5
from ptycho_tf_bridge.archives.keras_file import group_name
from ptycho_tf_bridge.archives.keras_graph import Graph, find_roles, read_graph
from ptycho_tf_bridge.archives.members import Members
from ptycho_tf_bridge.archives.recognise import FoundNetwork, find_network
from ptycho_tf_bridge.archives.tf_checkpoint import MAX_INDEX_BYTES, read_tf_checkpoint
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.errors import one_line

GRAPH_BYTES = 8 * 2**20
"""Longest ``config.json``: the reference's has 47 kB."""

_METADATA_BYTES = 2**16

_VARIABLE = re.compile(r"layer_with_weights-(\d{1,4})/(kernel|bias|w)/\.ATTRIBUTES/VARIABLE_VALUE")


@dataclass(frozen=True)
class StoredModel:
    """One model of an archive.

    Attributes:
        weights: by TensorFlow name, float32, in the order of the weight table.
        network: what their shapes say.
        amp_activation: of the graph, or None where it says nothing.
        masks_border: whether the graph keeps the outer path away from the centre; None where there is nothing to mask,
            or no graph.
        canvas_px: side of a group's canvas, of the graph, or None.
        probe: (N, N) complex64 of the checkpoint, or None.
        saved: when, as the file says; empty if it does not.
        writer: the program, where it is not Keras.
    """

    weights: Mapping[str, np.ndarray]
    network: FoundNetwork
    amp_activation: str | None = None
    masks_border: bool | None = None
    canvas_px: int | None = None
    probe: np.ndarray | None = None
    saved: str = ""
    writer: str = ""
    policies: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------- Keras 3


def read_keras_model(file: Members) -> StoredModel:
    """Read a ``.keras`` file.

    Raises:
        ArchiveError: it is damaged, or holds another network than the reference's.
    """
    graph = read_graph(file.read("config.json", GRAPH_BYTES), file.place("config.json"))
    roles = find_roles(graph)
    where = file.place("model.weights.h5")
    content = read_hdf5(file.read("model.weights.h5"), where=where)
    groups = _groups(graph, content, where)
    found = {stage: _convolution(content, groups[layer], where) for stage, layer in roles.convolutions.items()}
    _refuse_others(content, {groups[layer] for layer in roles.convolutions.values()}, where)
    # The roles are complete, but which network has them all only their shapes tell.
    network = find_network([found[stage][0].shape for stage in _in_table_order(roles.convolutions)], where)
    weights = _named(found, network, where)
    metadata = _metadata(file)
    return StoredModel(
        weights=weights,
        network=network,
        amp_activation=roles.amp_activation,
        masks_border=roles.masks_border,
        canvas_px=roles.canvas_px,
        saved=metadata.get("date_saved", ""),
        writer=metadata.get("written_by", ""),
        policies=graph.policies,
    )


def _in_table_order(stages: Mapping[str, str]) -> list[str]:
    """Sort stage ids as the weight table does, before it is known which network it is."""

    def key(stage: str) -> tuple[int, int, str, str]:
        part, *rest = stage.split(".")
        if part == "encoder":
            return 0, int(rest[0]), rest[1], ""
        if rest[0].isdigit():
            return 1, int(rest[0]), rest[1], part
        return (2, 0, rest[1], part) if rest[0] == "outer" else (3, 0, "", part)

    return sorted(stages, key=key)


def _groups(graph: Graph, content: Hdf5Content, where: str) -> dict[str, str]:
    """Return the HDF5 group of each layer: its class, numbered within the class in the order of the graph.

    That is where Keras looks for it. A file that also says a layer's name has to say the same one.
    """
    counts: dict[str, int] = {}
    groups: dict[str, str] = {}
    for layer in graph.layers.values():
        if layer.operation:
            continue
        kind = group_name(layer.kind)
        number = counts[kind] = counts.get(kind, -1) + 1
        group = f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars"
        said = content.attributes.get(group, {}).get("name", layer.name)
        if said != layer.name:
            raise ArchiveError(
                f"{where}: {group!r} is said to be layer {said!r}, and stands where config.json has {layer.name!r}."
            )
        groups[layer.name] = group
    return groups


def _convolution(content: Hdf5Content, group: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return content.arrays[f"{group}/0"], content.arrays[f"{group}/1"]
    except KeyError as err:
        raise ArchiveError(
            f"{where}: no dataset {err.args[0]!r}; expected kernel and bias of each convolution."
        ) from err


def _refuse_others(content: Hdf5Content, groups: set[str], where: str) -> None:
    for name in content.arrays:
        if name.startswith("layers/") and name.rpartition("/")[0] not in groups:
            raise ArchiveError(f"{where}: {name!r} belongs to no convolution; the reference has no other weights.")


def _metadata(file: Members) -> dict[str, str]:
    if "metadata.json" not in file:
        return {}
    try:
        content = json.loads(file.read("metadata.json", _METADATA_BYTES))
        return {str(key): one_line(str(value), 80) for key, value in content.items()}
    except (ValueError, AttributeError, RecursionError) as err:
        if isinstance(err, ArchiveError):
            raise
        raise ArchiveError(f"{file.place('metadata.json')}: no JSON object ({type(err).__name__}).") from err


# --------------------------------------------------------------------------------------------------------- SavedModel


def read_savedmodel(members: Members, prefix: str) -> StoredModel:
    """Read the checkpoint of a SavedModel; its graph is never opened, since it may hold code.

    Args:
        members: of the archive.
        prefix: of the folder with ``variables``, empty or ending in a slash.

    Raises:
        ArchiveError: it is damaged, or holds another network than the reference's.
    """
    index = f"{prefix}variables/variables.index"
    data = f"{prefix}variables/variables.data-00000-of-00001"
    where = members.place(index)
    variables = read_tf_checkpoint(members.read(index, MAX_INDEX_BYTES), members.read(data), where=where)
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, array in variables.items():
        if found := _VARIABLE.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = array
    convolutions = [layers[number] for number in sorted(layers) if "w" not in layers[number]]
    probes = [layer["w"] for layer in layers.values() if "w" in layer]
    if not convolutions or any(set(layer) != {"kernel", "bias"} for layer in convolutions):
        names = ", ".join(sorted(variables)[:3])
        raise ArchiveError(
            f"{where}: {len(convolutions)} layers with kernel and bias among {len(variables)} variables ({names} …); "
            "expected layer_with_weights-0/kernel, layer_with_weights-0/bias, …"
        )
    if len(probes) > 1:
        raise ArchiveError(f"{where}: {len(probes)} layers have a variable w; expected only the probe.")
    network = find_network([layer["kernel"].shape for layer in convolutions], where)
    table = weight_table(network.settings)
    found_weights = {
        entry.stage: (layer["kernel"], layer["bias"]) for entry, layer in zip(table, convolutions, strict=True)
    }
    probe = as_probe(probes[0], network.settings.N, f"{where}: w") if probes else None
    return StoredModel(weights=_named(found_weights, network, where), network=network, probe=probe)


def as_probe(array: np.ndarray, N: int, where: str) -> np.ndarray:
    """Return a stored probe as (N, N) complex64.

    Raises:
        ArchiveError: another shape than (N, N), (N, N, 1) or (1, N, N, 1), or values that are not finite.
    """
    array = np.asarray(array)
    if array.shape not in ((N, N), (N, N, 1), (1, N, N, 1)) or array.dtype.kind not in "fc":
        raise ArchiveError(f"{where} is {array.dtype} of shape {array.shape}; expected a complex probe ({N}, {N}, 1).")
    probe = np.ascontiguousarray(array.reshape(N, N).astype(np.complex64))
    if not np.isfinite(probe).all() or not probe.any():
        raise ArchiveError(f"{where} is zero everywhere or not finite; expected a probe.")
    return probe


def _named(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], network: FoundNetwork, where: str
) -> dict[str, np.ndarray]:
    """Return the weights by TensorFlow name in the order of the table, checked."""
    weights: dict[str, np.ndarray] = {}
    for entry in weight_table(network.settings):
        if entry.stage not in found:
            raise ArchiveError(f"{where}: no convolution has the part of {entry.stage}.")
        kernel, bias = found[entry.stage]
        for name, array, shape in (
            (entry.kernel_name, kernel, entry.kernel_shape),
            (entry.bias_name, bias, entry.bias_shape),
        ):
            if array.dtype != np.float32 or array.shape != shape:
                raise ArchiveError(
                    f"{where}: {name} is {array.dtype} of shape {array.shape}; expected float32 of shape {shape}."
                )
            if not np.isfinite(array).all():
                raise ArchiveError(f"{where}: {name} has values that are not finite; this model cannot predict.")
            weights[name] = array
    return weights
