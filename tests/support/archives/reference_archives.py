"""Archives as the reference writes them, made from its layout alone: graph, names, order and files."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from conformance.checks.archive_files import scale_file, zipped
from conformance.checks.archives import saved_parameters
from ptycho_tf_bridge.weights import tensorflow_shapes, weight_table
from ptycho_torch.config_params import NetworkSettings
from tests.support.checkpoint_files import checkpoint, tensor

Edit = Callable[[list[dict[str, Any]]], None]


def draw_weights(settings: NetworkSettings, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights whose outputs are of order one."""
    draw = np.random.default_rng(seed)
    return {
        name: (
            draw.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 1)) * (1 if len(shape) > 1 else 0.1)
        ).astype(np.float32)
        for name, shape in tensorflow_shapes(settings).items()
    }


def draw_probe(N: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng([seed, N])
    return (draw.standard_normal((N, N)) + 1j * draw.standard_normal((N, N))).astype(np.complex64)


def run_parameters(settings: NetworkSettings, **more: Any) -> dict[str, Any]:
    """The reference's dictionary beside a model that was trained."""
    run = {
        "probe.trainable": False,
        "intensity_scale.trainable": True,
        "nphotons": 1e6,
        "nepochs": 7,
        "probe_scale": 4.0,
        "intensity_scale": settings.intensity_scale,
    }
    return saved_parameters(settings, **(run | more))


class Graph:
    """``config.json`` of the reference's autoencoder, layer by layer."""

    def __init__(self, settings: NetworkSettings, first_number: int = 0, *, masked: bool = True) -> None:
        self.settings = settings
        self.masked = masked
        self.entries: list[dict[str, Any]] = []
        self.names = self._numbered(first_number)
        self._build()

    def _numbered(self, first: int) -> dict[str, str]:
        """Convolutions are numbered as they are constructed, which is not the order of the file."""
        stages = [entry.stage for entry in weight_table(self.settings)]
        order = [stage for stage in stages if stage.startswith("encoder")]
        for decoder in ("decoder_amp", "decoder_phase"):
            own = [stage for stage in stages if stage.startswith(decoder)]
            heads = [stage for stage in own if stage.endswith(".central")] + [
                s for s in own if s.endswith(".outer.head")
            ]
            outer = [stage for stage in own if ".outer.conv" in stage]
            order += [*heads, *(stage for stage in own if stage not in heads and stage not in outer), *outer]
        return {stage: "conv2d" + (f"_{number}" if number else "") for number, stage in enumerate(order, start=first)}

    def add(
        self, kind: str, name: str, *inputs: str, module: str = "keras.layers", call: Any = (), **config: Any
    ) -> str:
        tensors = [
            {
                "class_name": "__keras_tensor__",
                "config": {"shape": [], "dtype": "float32", "keras_history": [each, 0, 0]},
            }
            for each in inputs
        ]
        first: Any = tensors if kind in ("CombineComplexLayer", "ReassemblePatchesLayer") else None
        arguments = [first] if first else [*tensors, *call]
        self.entries.append(
            {
                "module": module,
                "class_name": kind,
                "config": {"name": name, **config},
                "registered_name": f"ptycho>{kind}" if module.startswith("ptycho") else None,
                "name": name,
                "inbound_nodes": [{"args": arguments, "kwargs": {}}] if inputs else [],
            }
        )
        return name

    def convolve(self, stage: str, source: str) -> str:
        is_head = stage.endswith((".head", ".central"))
        (entry,) = [each for each in weight_table(self.settings) if each.stage == stage]
        return self.add(
            "Conv2D",
            self.names[stage],
            source,
            filters=entry.outputs,
            kernel_size=[3, 3],
            strides=[1, 1],
            padding="same",
            activation="linear" if is_head else "relu",
            use_bias=True,
        )

    def slice(self, name: str, source: str, start: int | None, stop: int | None) -> str:
        key = [
            {"class_name": "__ellipsis__", "config": {}},
            {"class_name": "__slice__", "config": {"start": start, "stop": stop, "step": None}},
        ]
        return self.add("GetItem", name, source, module="keras.src.ops.numpy", call=[key])

    def _build(self) -> None:
        s = self.settings
        self.add("InputLayer", "input", batch_shape=[None, s.N, s.N, s.C])
        features = self.add("IntensityScaler", "intensity_scaler", "input", module="ptycho.model")
        for i in range(len(s.encoder_widths)):
            for role in ("conv1", "conv2"):
                features = self.convolve(f"encoder.{i}.{role}", features)
            features = self.add("MaxPooling2D", f"pool{i}", features, pool_size=[2, 2], strides=[2, 2], padding="same")
        ends = dict.fromkeys(("decoder_amp", "decoder_phase"), features)

        def pair(role: str, **sources: str) -> None:
            for decoder in ends:
                ends[decoder] = self.convolve(f"{decoder}.{role}", sources.get(decoder, ends[decoder]))

        def both(kind: str, role: str, **config: Any) -> None:
            for decoder in ends:
                ends[decoder] = self.add(kind, f"{decoder}_{role}", ends[decoder], **config)

        for i in range(len(s.decoder_widths)):
            pair(f"{i}.conv1")
            pair(f"{i}.conv2")
            both("UpSampling2D", f"up{i}", size=[2, 2], interpolation="nearest")
        last = dict(ends)
        if s.has_outer_path:
            if s.pad_object:
                for decoder in ends:
                    ends[decoder] = self.slice(f"{decoder}_last", last[decoder], -4, None)
            pair("outer.conv1")
            pair("outer.conv2")
            both("UpSampling2D", "outer_up", size=[2, 2], interpolation="nearest")
            pair("outer.head")
        border = dict(ends)
        if s.pad_object:
            for decoder in ends:
                ends[decoder] = self.slice(f"{decoder}_first", last[decoder], None, -4)
            pair("central")
        self._activate(ends, border)
        self.add("CombineComplexLayer", "obj", *ends.values(), module="ptycho.custom_layers", use_polar=True)
        self.add("InputLayer", "input_positions", batch_shape=[None, 1, 2, s.C])
        self.add(
            "ReassemblePatchesLayer",
            "padded_obj_2",
            "obj",
            "input_positions",
            module="ptycho.custom_layers",
            padded_size=s.canvas_px,
            N=s.N,
            gridsize=s.gridsize,
        )
        self.add("TrimReconstructionLayer", "trimmed_obj", "padded_obj_2", module="ptycho.custom_layers")

    def _activate(self, ends: dict[str, str], border: Mapping[str, str]) -> None:
        s, custom = self.settings, "ptycho.custom_layers"
        kinds = {"decoder_amp": (s.amp_activation, 1.0), "decoder_phase": ("tanh", np.pi)}
        for decoder, (activation, scale) in kinds.items():
            name = "amp" if decoder == "decoder_amp" else "phi"
            ends[decoder] = self.add(
                "ActivationLayer", name, ends[decoder], module=custom, activation_name=activation, scale=scale
            )
            if not s.pad_object:
                continue
            margin = [[s.N // 4] * 2] * 2
            ends[decoder] = self.add("ZeroPadding2D", f"{name}_padded", ends[decoder], padding=margin)
            if not s.has_outer_path:
                continue
            outer = self.add("Silu", f"silu_{name}", border[decoder], module="keras.src.ops.nn")
            if self.masked:
                mask = self.add("CenterMaskLayer", f"mask_{name}", outer, module="ptycho.tf_helper")
                outer = self.add("Multiply", f"multiply_{name}", outer, mask, module="keras.src.ops.numpy")
            ends[decoder] = self.add("Add", f"add_{name}", ends[decoder], outer, module="keras.src.ops.numpy")

    def config(self) -> bytes:
        inner = {
            "name": "functional",
            "trainable": True,
            "layers": self.entries,
            "input_layers": [["input", 0, 0], ["input_positions", 0, 0]],
            "output_layers": [["trimmed_obj", 0, 0]],
        }
        return json.dumps({"module": "keras", "class_name": "Functional", "config": inner}).encode()


def weights_file(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    *,
    named: bool = True,
    edit: Callable[[h5py.File], None] | None = None,
) -> bytes:
    """``model.weights.h5``: convolutions are numbered in the order of the graph; newer Keras says their names too."""
    file = io.BytesIO()
    stages = {name: stage for stage, name in graph.names.items()}
    convolutions = [entry["name"] for entry in graph.entries if entry["class_name"] == "Conv2D"]
    with h5py.File(file, "w") as root:
        for number, name in enumerate(convolutions):
            group = root.create_group(f"layers/conv2d_{number}/vars" if number else "layers/conv2d/vars")
            if named:
                group.attrs["name"] = name
            group["0"] = weights[f"{stages[name]}.kernel"]
            group["1"] = weights[f"{stages[name]}.bias"]
        optimizer = root.create_group("optimizer/vars")
        optimizer["0"] = np.int64(3)
        if edit is not None:
            edit(root)
    return file.getvalue()


def keras_file(
    graph: Graph, weights: Mapping[str, np.ndarray], *, saved: str = "2026-03-01@12:00:00", **names: Any
) -> bytes:
    return zipped(
        {
            "metadata.json": json.dumps({"keras_version": "3.15.1", "date_saved": saved}).encode(),
            "config.json": graph.config(),
            "model.weights.h5": weights_file(graph, weights, **names),
        },
        zipfile.ZIP_STORED,
    )


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_members(
    models: Mapping[str, bytes], parameters: Mapping[str, Any], scale: float | None = None
) -> dict[str, bytes]:
    """Members of ``wts.h5.zip`` with these ``model.keras`` files."""
    members = {"manifest.dill": pickle.dumps({"models": list(models), "version": "1.0"}, 4)}
    for name, model in models.items():
        members |= {
            f"{name}/custom_objects.dill": b"\x80\x04cos\nsystem\n.",
            f"{name}/model.keras": model,
            f"{name}/params.dill": pickle.dumps(dict(parameters), 4),
        }
        if scale is not None:
            members[f"{name}/model.h5"] = scale_file(scale)
    return members


def savedmodel_archive(
    model: str, variables: Mapping[str, np.ndarray], parameters: Mapping[str, Any], code: bytes = b"code"
) -> dict[str, bytes]:
    """Members of ``wts.h5.zip`` as it was before Keras 3; ``code`` stands where the graph is, which nobody opens."""
    index, data = checkpoint({name: tensor(array) for name, array in variables.items()})
    return {
        "manifest.dill": pickle.dumps({"models": [model], "version": "1.0"}, 4),
        f"{model}/saved_model.pb": code,
        f"{model}/keras_metadata.pb": code,
        f"{model}/params.dill": pickle.dumps(dict(parameters), 4),
        f"{model}/variables/variables.index": index,
        f"{model}/variables/variables.data-00000-of-00001": data,
    }


def write_reference_archive(
    path: Path,
    settings: NetworkSettings,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    probe: np.ndarray | None = None,
    first_number: int = 0,
    named: bool = True,
    **parameters: Any,
) -> Path:
    """Write ``wts.h5.zip`` as Keras 3 has it since 2026."""
    weights = draw_weights(settings) if weights is None else weights
    probe = draw_probe(settings.N) if probe is None else probe
    model = keras_file(Graph(settings, first_number), weights, named=named)
    saved = run_parameters(settings, probe=probe[..., None], **parameters)
    models = dict.fromkeys(("autoencoder", "diffraction_to_obj"), model)
    path.write_bytes(zipped(archive_members(models, saved, settings.intensity_scale)))
    return path
