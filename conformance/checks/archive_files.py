"""Archives of the reference, written from only the facts about its files: neither Keras nor TensorFlow is needed."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.checks.bridge import stages_in_order
from conformance.checks.light import draw_wave
from conformance.oracle.network import Oracle
from ptycho_torch.config_params import NetworkSettings

FIRST_NUMBER = 7
"""Number of the first convolution: of a session that had built other networks before."""

Members = dict[str, bytes]
Ends = dict[str, str]


@dataclass(frozen=True)
class Stored:
    """A model without symmetry: its weights by TensorFlow name, float32, and its (N, N) complex64 probe."""

    settings: NetworkSettings
    weights: Mapping[str, np.ndarray]
    probe: np.ndarray


def draw_stored(settings: NetworkSettings, seed: int) -> Stored:
    """Draw a model by the oracle's own shapes: the bridge's are what is judged."""
    rng = np.random.default_rng(seed)
    shapes = Oracle(dataclasses.asdict(settings)).weight_shapes
    names = [f"{stage}.{kind}" for stage in stages_in_order(settings) for kind in ("kernel", "bias")]
    weights = {
        name: (rng.standard_normal(shapes[name]) / math.sqrt(max(math.prod(shapes[name][:-1]), 9))).astype(np.float32)
        for name in names
    }
    return Stored(settings, weights, draw_wave(rng, settings.N, settings.N).astype(np.complex64))


def zipped(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def pickled(value: object) -> bytes:
    """Return ``params.dill`` or ``manifest.dill``."""
    return pickle.dumps(value, 4)


def hdf5(build: Callable[[Any], object]) -> bytes:
    """Return an HDF5 file."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        build(root)
    return file.getvalue()


def scale_file(scale: float | np.floating) -> bytes:
    """Return ``model.h5``, whose only content is the intensity scale."""
    return hdf5(lambda root: root.attrs.__setitem__("intensity_scale", scale))


# ------------------------------------------------------------------------------------------------------------ Keras


def layer_names(settings: NetworkSettings) -> dict[str, str]:
    """Return the layer of each convolution, numbered as the reference constructs them, which is not the file's order.

    For each decoder: the inner head, the outer head, the blocks, the outer block.
    """
    stages = stages_in_order(settings)

    def rank(stage: str) -> int:
        return (stage.endswith(".central"), stage.endswith(".outer.head"), ".outer." not in stage, True).index(True)

    order = [stage for stage in stages if stage.startswith("encoder.")]
    for decoder in ("decoder_amp.", "decoder_phase."):
        order += sorted((stage for stage in stages if stage.startswith(decoder)), key=rank)
    return {stage: f"conv2d_{number}" for number, stage in enumerate(order, FIRST_NUMBER)}


class GraphFile:
    """``config.json`` of the reference's network.

    Args:
        settings: of the network.
        activation: how the amplitude's is spelled.
        as_keras: amplitude and phase through Keras' own layers of activation, in place of the reference's.
    """

    def __init__(self, settings: NetworkSettings, activation: str, *, as_keras: bool = False) -> None:
        self.settings, self.names = settings, layer_names(settings)
        self.layers: list[dict[str, Any]] = []
        self._as_keras = as_keras
        last = self._blocks(self._encoder())
        self._object(self._heads(last, {"decoder_amp": (activation, 1.0), "decoder_phase": ("tanh", np.pi)}))

    def content(self) -> bytes:
        """Return the file."""
        model = {
            "name": "functional_3",
            "trainable": True,
            "layers": self.layers,
            "input_layers": [["input", 0, 0], ["input_positions", 0, 0]],
            "output_layers": [["trimmed_obj", 0, 0]],
        }
        return json.dumps(
            {"module": "keras.src.models.functional", "class_name": "Functional", "config": model}
        ).encode()

    def _add(
        self, kind: str, name: str, /, *inputs: str, module: str = "keras.layers", call: Any = (), **config: Any
    ) -> str:
        tensors: list[Any] = [
            {"class_name": "__keras_tensor__", "config": {"shape": [], "keras_history": [each, 0, 0]}}
            for each in inputs
        ]
        if module == "ptycho.custom_layers" and len(inputs) > 1:
            tensors = [tensors]
        self.layers.append(
            {
                "module": module,
                "class_name": kind,
                "registered_name": None if module.startswith("keras") else f"ptycho>{kind}",
                "name": name,
                "config": {"name": name, **config},
                "inbound_nodes": [{"args": [*tensors, *call], "kwargs": {}}] if inputs else [],
            }
        )
        return name

    def _convolve(self, stage: str, source: str) -> str:
        relu = not stage.endswith((".head", ".central"))
        config: dict[str, Any] = {"kernel_size": [3, 3], "strides": [1, 1], "padding": "same", "use_bias": True}
        return self._add("Conv2D", self.names[stage], source, activation="relu" if relu else "linear", **config)

    def _both(self, ends: Ends, stage: str) -> Ends:
        return {decoder: self._convolve(f"{decoder}.{stage}", source) for decoder, source in ends.items()}

    def _doubled(self, ends: Ends, name: str) -> Ends:
        return {
            decoder: self._add("UpSampling2D", f"{name}_{decoder}", source, size=[2, 2], interpolation="nearest")
            for decoder, source in ends.items()
        }

    def _channels(self, ends: Ends, start: int | None, stop: int | None) -> Ends:
        part = {"class_name": "__slice__", "config": {"start": start, "stop": stop, "step": None}}
        call = [[{"class_name": "__ellipsis__", "config": {}}, part]]
        return {
            decoder: self._add(
                "GetItem", f"get_item_{decoder}_{start}", source, module="keras.src.ops.numpy", call=call
            )
            for decoder, source in ends.items()
        }

    def _encoder(self) -> str:
        s = self.settings
        self._add("InputLayer", "input", batch_shape=[None, s.N, s.N, s.gridsize**2])
        features = self._add("IntensityScaler", "intensity_scaler", "input", module="ptycho.model")
        for block in range(len(s.encoder_widths)):
            features = self._convolve(f"encoder.{block}.conv2", self._convolve(f"encoder.{block}.conv1", features))
            pool: dict[str, Any] = {"pool_size": [2, 2], "strides": [2, 2], "padding": "same"}
            features = self._add("MaxPooling2D", f"max_pooling2d_{block + 4}", features, **pool)
        return features

    def _blocks(self, features: str) -> Ends:
        ends = dict.fromkeys(("decoder_amp", "decoder_phase"), features)
        for block in range(len(self.settings.decoder_widths)):
            ends = self._both(self._both(ends, f"{block}.conv1"), f"{block}.conv2")
            ends = self._doubled(ends, f"up_{block}")
        return ends

    def _heads(self, last: Ends, functions: Mapping[str, tuple[str, float]]) -> Ends:
        """Add the branches of both decoders, and return their amplitude and phase."""
        s, border = self.settings, {}
        if s.probe_big or not s.pad_object:
            ends = self._channels(last, -4, None) if s.pad_object else last
            ends = self._doubled(self._both(self._both(ends, "outer.conv1"), "outer.conv2"), "outer_up")
            border = self._both(ends, "outer.head")
        inner = self._both(self._channels(last, None, -4), "central") if s.pad_object else border
        ends = {decoder: self._function(decoder, inner[decoder], *functions[decoder]) for decoder in inner}
        if not s.pad_object:
            return ends
        for decoder, source in ends.items():
            margin = [[s.N // 4, s.N // 4], [s.N // 4, s.N // 4]]
            ends[decoder] = self._add("ZeroPadding2D", f"padded_{decoder}", source, padding=margin)
            if border:
                ends[decoder] = self._with_border(decoder, ends[decoder], border[decoder])
        return ends

    def _function(self, decoder: str, source: str, name: str, factor: float) -> str:
        if not self._as_keras:
            config = {"activation_name": name, "scale": factor}
            return self._add("ActivationLayer", f"function_{decoder}", source, module="ptycho.custom_layers", **config)
        bent = self._add("Activation", f"function_{decoder}", source, activation=name)
        return self._add("Rescaling", f"scaled_{decoder}", bent, scale=factor, offset=0.0)

    def _with_border(self, decoder: str, padded: str, border: str) -> str:
        operation = "keras.src.ops.numpy"
        outer = self._add("Silu", f"silu_{decoder}", border, module="keras.src.ops.nn")
        mask = self._add("CenterMaskLayer", f"mask_{decoder}", outer, module="ptycho.tf_helper", kind="border")
        masked = self._add("Multiply", f"multiply_{decoder}", outer, mask, module=operation)
        return self._add("Add", f"add_{decoder}", padded, masked, module=operation)

    def _object(self, ends: Ends) -> None:
        s, custom = self.settings, "ptycho.custom_layers"
        padding = (s.gridsize - 1) * s.offset + s.max_position_jitter
        self._add("CombineComplexLayer", "obj", *ends.values(), module=custom, use_polar=True)
        self._add("InputLayer", "input_positions", batch_shape=[None, 1, 2, s.gridsize**2])
        sizes = {"padded_size": s.N + padding, "N": s.N, "gridsize": s.gridsize}
        self._add("ReassemblePatchesLayer", "padded_obj_2", "obj", "input_positions", module=custom, **sizes)
        self._add("TrimReconstructionLayer", "trimmed_obj", "padded_obj_2", module=custom, output_size=s.N)


_GROUPS = {"Conv2D": "conv2d", "MaxPooling2D": "max_pooling2d", "UpSampling2D": "up_sampling2d"}
"""Class of a layer → its group in a file of weights."""


def weights_file(graph: GraphFile, weights: Mapping[str, np.ndarray], *, named: bool) -> bytes:
    """Return ``model.weights.h5``: groups are numbered within a class in the order of the graph.

    Args:
        graph: of the model.
        weights: by TensorFlow name.
        named: whether a group says the name of its layer, as newer Keras has it.
    """
    stages = {layer: stage for stage, layer in graph.names.items()}

    def build(root: Any) -> None:
        counts: dict[str, int] = {}
        for layer in graph.layers:
            kind = _GROUPS.get(layer["class_name"])
            if kind is None:
                continue
            counts[kind] = number = counts.get(kind, -1) + 1
            group = root.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
            if named:
                group.attrs["name"] = layer["name"]
            if kind == "conv2d":
                group["0"] = weights[f"{stages[layer['name']]}.kernel"]
                group["1"] = weights[f"{stages[layer['name']]}.bias"]
        root["optimizer/vars/0"] = np.int64(12)
        root["optimizer/vars/1"] = np.float32(1e-3)

    return hdf5(build)


def keras_file(stored: Stored, activation: str, *, named: bool = True) -> bytes:
    """Return a ``.keras`` file."""
    graph = GraphFile(stored.settings, activation)
    members = {
        "metadata.json": json.dumps({"keras_version": "3.15.1", "date_saved": "2026-03-01@12:00:00"}).encode(),
        "config.json": graph.content(),
        "model.weights.h5": weights_file(graph, stored.weights, named=named),
    }
    return zipped(members, zipfile.ZIP_STORED)


# ------------------------------------------------------------------------------------------------------ TensorFlow

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Behind the name of every variable."""


def variables_of(
    settings: NetworkSettings, weights: Mapping[str, np.ndarray], probe: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the variables of a SavedModel; its layers are numbered as the saved network lists its weights."""
    stages = stages_in_order(settings)
    variables = {f"keras_api/metrics/0/total{SUFFIX}": np.array(1.5, np.float32)}
    for number, stage in enumerate(stages):
        for kind in ("kernel", "bias"):
            variables[f"layer_with_weights-{number}/{kind}{SUFFIX}"] = weights[f"{stage}.{kind}"]
    if probe is not None:
        variables[f"layer_with_weights-{len(stages)}/w{SUFFIX}"] = probe[None, ..., None]
    return variables


_NUMBERS = {np.dtype(np.float32): 1, np.dtype(np.complex64): 8}
_MAGIC = 0xDB4775248B80FB57


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits; a negative one as protocol buffers write it."""
    number &= 2**64 - 1
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def field(number: int, content: int | bytes) -> bytes:
    """Return a field of a message: a number, or text or a message of its own."""
    if isinstance(content, bytes):
        return varint(number << 3 | 2) + varint(len(content)) + content
    return varint(number << 3) + varint(content)


def masked_crc(content: bytes) -> int:
    """Return CRC-32C as TensorFlow stores it, turned and shifted."""
    import google_crc32c

    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc(content))


def _entry(array: np.ndarray, offset: int) -> bytes:
    """Return ``BundleEntryProto``: dtype, shape, first byte, length and checksum."""
    lengths = b"".join(field(2, field(1, length)) for length in array.shape)
    content = array.tobytes()
    numbers = field(1, _NUMBERS[array.dtype]) + field(2, lengths) + field(4, offset) + field(5, len(content))
    return numbers + varint(6 << 3 | 5) + _checksum(content)


def _block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a block of LevelDB's tables with its trailer: a key says how much of the one before it repeats."""
    content, last = b"", b""
    for key, value in entries:
        shared = next((k for k, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += struct.pack("<II", 0, 1) + b"\0"
    return content + _checksum(content)


def _table(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    content, places = b"", []

    def place(block: bytes) -> bytes:
        nonlocal content
        content += block
        return varint(len(content) - len(block)) + varint(len(block) - 5)

    for first in range(0, len(entries), 8):
        some = entries[first : first + 8]
        places.append((some[-1][0], place(_block(some))))
    footer = place(_block([])) + place(_block(places))
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", _MAGIC)


def checkpoint_members(variables: Mapping[str, np.ndarray]) -> Members:
    """Return index and data of a checkpoint of TensorFlow."""
    data, entries = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(variables):
        entries.append((name.encode(), _entry(variables[name], len(data))))
        data += variables[name].tobytes()
    return {"variables/variables.index": _table(entries), "variables/variables.data-00000-of-00001": data}
