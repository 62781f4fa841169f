"""A ``.keras`` file written without Keras: amplitude and phase of the patches, from layers that Keras has.

The rest of the forward model – merging, illumination, diffraction – is no layer of Keras, and the reference does not
need it in the file: it builds its model itself and takes ``get_weights()`` over, whose order is that of the weight
table. So the same file serves the reference, and anyone who has nothing but Keras.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ptycho_tf_bridge.weights import WeightEntry, check_weights, tensorflow_shapes, weight_table
from ptycho_torch.config_params import OUTER_CHANNELS, NetworkSettings

WRITER = "ptycho-torch"

KERAS_VERSION = "3.0.0"
"""The first version with this layout; Keras reads it only as information."""

_KERAS_LAYERS = "keras.layers"


def write_keras(settings: NetworkSettings, weights: Mapping[str, np.ndarray]) -> bytes:
    """Return a ``.keras`` file whose model turns scaled amplitude into amplitude and phase of the patches.

    It takes s_I·X (B, N, N, C) and returns amplitude (B, N, N, A) and phase in rad (B, N, N, K), as
    ``decoder_amp.output`` and ``decoder_phase.output`` are. ``get_weights()`` has the order of the weight table.

    Args:
        settings: of the network.
        weights: by TensorFlow name, float32.

    Raises:
        WeightMapError: weights that are not those of this network.
    """
    check_weights(weights, tensorflow_shapes(settings), "TensorFlow")
    layers = _Network(settings).ordered()
    saved = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d@%H:%M:%S")
    metadata = {"keras_version": KERAS_VERSION, "date_saved": saved, "written_by": WRITER}
    members = {
        "metadata.json": json.dumps(metadata).encode(),
        "config.json": json.dumps(_model(list(layers.values()))).encode(),
        "model.weights.h5": _weights_file(layers, weights),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _model(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {
            "name": "patches",
            "trainable": True,
            "layers": entries,
            "input_layers": [["input", 0, 0]],
            "output_layers": [["amplitude", 0, 0], ["phase", 0, 0]],
        },
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
        "compile_config": {},
    }


def layer_name(stage: str) -> str:
    """Return the name of a layer. PyTorch, which may be Keras' backend, allows no dot in it.

    >>> layer_name("encoder.0.conv1")
    'encoder_0_conv1'
    """
    return stage.replace(".", "_")


def _weights_file(layers: Mapping[str, dict[str, Any]], weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the HDF5 file: a group for each layer, numbered within its class in the order of the model."""
    file = io.BytesIO()
    counts: dict[str, int] = {}
    with h5py.File(file, "w") as root:
        root.create_group("vars").attrs["name"] = "patches"
        for stage, entry in layers.items():
            if entry["module"] != _KERAS_LAYERS:
                continue  # operations have no variables
            kind = group_name(entry["class_name"])
            number = counts[kind] = counts.get(kind, -1) + 1
            variables = root.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
            variables.attrs["name"] = entry["name"]
            if entry["class_name"] == "Conv2D":
                variables["0"] = weights[f"{stage}.kernel"]
                variables["1"] = weights[f"{stage}.bias"]
    return file.getvalue()


def group_name(kind: str) -> str:
    """Return the name that Keras gives a layer's group in a weights file, from its class.

    >>> group_name("MaxPooling2D"), group_name("Conv2D"), group_name("UpSampling2D")
    ('max_pooling2d', 'conv2d', 'up_sampling2d')
    """
    letters = []
    for k, letter in enumerate(kind):
        # A new word begins with a capital letter that follows a small one or a digit, or that is followed by one.
        follows = k > 0 and (kind[k - 1].islower() or (kind[k - 1].isdigit() and kind[k + 1 : k + 2].islower()))
        precedes = k > 0 and kind[k - 1].isupper() and kind[k + 1 : k + 2].islower()
        letters.append(("_" if letter.isupper() and (follows or precedes) else "") + letter.lower())
    return "".join(letters)


class _Network:
    """The graph, layer by layer, as entries of ``config.json``."""

    def __init__(self, settings: NetworkSettings) -> None:
        self.settings = settings
        self.table: dict[str, WeightEntry] = {entry.stage: entry for entry in weight_table(settings)}
        self.entries: dict[str, dict[str, Any]] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self._build()

    def ordered(self) -> dict[str, dict[str, Any]]:
        """Return stage → entry as Keras orders layers: by depth, and at equal depth as the outputs lead to them."""
        depths = dict.fromkeys(self.entries, 0)
        # Every entry was added behind what it reads.
        for name in reversed(self.entries):
            for source in self.inputs[name]:
                depths[source] = max(depths[source], depths[name] + 1)
        met: dict[str, int] = {}

        def meet(name: str) -> None:
            if name not in met:
                for source in self.inputs[name]:
                    meet(source)
                met[name] = len(met)

        for output in ("amplitude", "phase"):
            meet(output)
        return {name: self.entries[name] for name in sorted(self.entries, key=lambda name: (-depths[name], met[name]))}

    def _build(self) -> None:
        N, C = self.settings.N, self.settings.C
        shape = [None, N, N, C]
        self._add("InputLayer", "input", (), {"batch_shape": shape, "dtype": "float32"}, (N, C))
        features = self._layer(
            "Rescaling", "normalized_input", ("input",), scale=1 / self.settings.intensity_scale, offset=0.0
        )
        for i in range(len(self.settings.encoder_widths)):
            for name in (f"encoder.{i}.conv1", f"encoder.{i}.conv2"):
                features = self._convolve(name, features)
            features = self._resize("MaxPooling2D", f"encoder.{i}.pool", features, pool_size=[2, 2], strides=[2, 2])
        # Both paths get the same depth, so that Keras orders each pair with the amplitude first.
        self._decode("decoder_amp", features, self.settings.amp_activation.replace("swish", "silu"), 1.0, "amplitude")
        self._decode("decoder_phase", features, "tanh", math.pi, "phase")

    def _decode(self, prefix: str, features: str, activation: str, factor: float, output: str) -> None:
        for i in range(len(self.settings.decoder_widths)):
            for name in (f"{prefix}.{i}.conv1", f"{prefix}.{i}.conv2"):
                features = self._convolve(name, features)
            features = self._up(f"{prefix}.{i}.up", features)
        if not self.settings.pad_object:
            head = self._outer_path(prefix, features)
            self._activate(prefix, head, activation, factor, output)
            return
        margin = self.settings.N // 4
        inner = self._slice(f"{prefix}.inner", features, (None, -OUTER_CHANNELS))
        centre = self._convolve(f"{prefix}.central", inner, relu=False)
        activated = self._activate(prefix, centre, activation, factor, f"{prefix}.activation")
        has_border = self.settings.has_outer_path
        padded = self._pad(output if not has_border else f"{prefix}.padded", activated, margin)
        if not has_border:
            return
        last = self._slice(f"{prefix}.outer.channels", features, (-OUTER_CHANNELS, None))
        head = self._outer_path(prefix, last)
        swish = self._layer("Activation", f"{prefix}.outer.swish", (head,), activation="silu")
        # x − x is 0 in the centre and x − 0 is x elsewhere, to the last digit: the border mask without a constant.
        centre = self._resize("Cropping2D", f"{prefix}.outer.centre", swish, cropping=[[margin] * 2] * 2)
        centre = self._pad(f"{prefix}.outer.centre_padded", centre, margin)
        border = self._layer("Subtract", f"{prefix}.outer.border", (swish, centre))
        self._layer("Add", output, (padded, border))

    def _outer_path(self, prefix: str, features: str) -> str:
        for name in (f"{prefix}.outer.conv1", f"{prefix}.outer.conv2"):
            features = self._convolve(name, features)
        return self._convolve(f"{prefix}.outer.head", self._up(f"{prefix}.outer.up", features), relu=False)

    def _activate(self, prefix: str, head: str, activation: str, factor: float, name: str) -> str:
        activated = self._layer("Activation", f"{prefix}.function", (head,), activation=activation)
        return self._layer("Rescaling", name, (activated,), scale=factor, offset=0.0)

    def _convolve(self, name: str, source: str, *, relu: bool = True) -> str:
        entry = self.table[name]
        return self._layer(
            "Conv2D",
            name,
            (source,),
            channels=entry.outputs,
            filters=entry.outputs,
            kernel_size=[3, 3],
            padding="same",
            activation="relu" if relu else "linear",
        )

    def _up(self, name: str, source: str) -> str:
        return self._resize("UpSampling2D", name, source, size=[2, 2], interpolation="nearest")

    def _pad(self, name: str, source: str, margin: int) -> str:
        return self._resize("ZeroPadding2D", name, source, padding=[[margin] * 2] * 2)

    def _resize(self, kind: str, name: str, source: str, **config: Any) -> str:
        side, channels = self.shapes[source]
        sides = {"MaxPooling2D": side // 2, "UpSampling2D": side * 2}
        margins = {"Cropping2D": -2, "ZeroPadding2D": 2}
        new = sides[kind] if kind in sides else side + margins[kind] * (self.settings.N // 4)
        return self._add(kind, name, (source,), config, (new, channels))

    def _layer(self, kind: str, name: str, sources: tuple[str, ...], channels: int | None = None, **config: Any) -> str:
        side, same = self.shapes[sources[0]]
        return self._add(kind, name, sources, config, (side, same if channels is None else channels))

    def _slice(self, name: str, source: str, channels: tuple[int | None, int | None]) -> str:
        """Read some of the channels, by the operation that ``x[..., start:stop]`` is in Keras."""
        side, count = self.shapes[source]
        start, stop = channels
        key = [
            {"class_name": "__ellipsis__", "config": {}},
            {"class_name": "__slice__", "config": {"start": start, "stop": stop, "step": None}},
        ]
        shape = (side, len(range(count)[start:stop]))
        return self._add("GetItem", name, (source,), {}, shape, "keras.src.ops.numpy", key)

    def _add(
        self,
        kind: str,
        name: str,
        sources: tuple[str, ...],
        config: dict[str, Any],
        shape: tuple[int, int],
        module: str = _KERAS_LAYERS,
        *arguments: Any,
    ) -> str:
        tensors = [self._tensor(source) for source in sources]
        first: Any = tensors[0] if len(tensors) == 1 else tensors
        self.entries[name] = {
            "module": module,
            "class_name": kind,
            # Without a dtype a layer takes that of the program that opens it, float16 under its mixed precision.
            "config": {"name": layer_name(name), **({"dtype": "float32"} if module == _KERAS_LAYERS else {}), **config},
            "registered_name": None if module == _KERAS_LAYERS else kind,
            "name": layer_name(name),
            "inbound_nodes": [{"args": [first, *arguments], "kwargs": {}}] if sources else [],
        }
        self.inputs[name] = sources
        self.shapes[name] = shape
        return name

    def _tensor(self, name: str) -> dict[str, Any]:
        side, channels = self.shapes[name]
        shape = [None, side, side, channels]
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": shape, "dtype": "float32", "keras_history": [layer_name(name), 0, 0]},
        }
