"""The bridge: axis orders, names, order and shapes of weights, and a stored probe."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np

from conformance.cases.draws import GRAPHS
from conformance.judge.agreement import Arrays, Compared
from conformance.oracle.network import Oracle
from ptycho_tf_bridge.archives import stored_model
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import tensorflow_shapes, to_tensorflow, to_torch, torch_shapes
from ptycho_torch.config_params import NetworkSettings

GRAPH = "n64_g2"
"""Graph whose weights are carried over: every kind of convolution is in it."""

B, C, M, H, W = 2, 3, 2, 5, 4


@cache
def _weights() -> dict[str, np.ndarray]:
    """Draw the graph's weights by the oracle's own shapes: the bridge's are what is judged."""
    rng = np.random.default_rng(1)
    shapes = Oracle(dataclasses.asdict(GRAPHS[GRAPH])).weight_shapes
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def layouts() -> Compared:
    """Carry images, waves and offsets both ways."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((B, C, H, W))
    waves = rng.standard_normal((B, C, M, H, W))
    offsets = rng.standard_normal((B, C, 1, 2))
    # By hand: channels last, patches folded into the batch with the channel fastest, (x, y) on axis 2.
    tensorflow = {
        "channels": np.stack([images[:, c] for c in range(C)], axis=-1),
        "flat": np.stack([images[b, c] for b in range(B) for c in range(C)])[..., None],
        "flat_modes": np.stack([np.moveaxis(waves[b, c], 0, -1) for b in range(B) for c in range(C)]),
        "offsets": np.stack([offsets[:, c] for c in range(C)], axis=-1),
    }
    torch = {"channels": images, "flat": images, "flat_modes": waves, "offsets": offsets}
    given = {f"{name} to torch": LAYOUTS[name].to_torch(array, C) for name, array in tensorflow.items()}
    given |= {f"{name} to TensorFlow": LAYOUTS[name].to_tensorflow(array) for name, array in torch.items()}
    expected = {f"{name} to torch": array for name, array in torch.items()}
    expected |= {f"{name} to TensorFlow": array for name, array in tensorflow.items()}
    return Compared(expected, given)


def as_torch(weights: Arrays) -> dict[str, np.ndarray]:
    """Carry weights to PyTorch: a kernel (kh, kw, in, out) becomes (out, in, kh, kw), and is called ``weight``."""
    return {
        f"{name.removesuffix('kernel')}weight" if name.endswith(".kernel") else name: (
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        )
        for name, array in weights.items()
    }


def weights_to_torch() -> Compared:
    """Carry every weight to PyTorch."""
    weights, settings = _weights(), GRAPHS[GRAPH]
    return Compared(as_torch(weights), to_torch(weights, settings))


def weights_to_tensorflow() -> Compared:
    """Carry every weight back."""
    weights, settings = _weights(), GRAPHS[GRAPH]
    return Compared(weights, to_tensorflow(as_torch(weights), settings))


def stages_in_order(settings: NetworkSettings) -> list[str]:
    """List the convolutions as Keras does: by depth in the graph and, at equal depth, amplitude before phase."""

    def both(role: str) -> list[str]:
        return [f"decoder_{which}.{role}" for which in ("amp", "phase")]

    stages = [f"encoder.{i}.conv{j}" for i in range(len(settings.encoder_widths)) for j in (1, 2)]
    for i in range(len(settings.decoder_widths)):
        stages += both(f"{i}.conv1") + both(f"{i}.conv2")
    if settings.probe_big or not settings.pad_object:
        stages += both("outer.conv1") + both("outer.conv2") + both("outer.head")
    if settings.pad_object:
        stages += both("central")
    return stages


def weight_order() -> Compared:
    """Names come in the order in which Keras lists the convolutions."""
    expected, given = {}, {}
    for name, settings in GRAPHS.items():
        stages = stages_in_order(settings)
        expected[name] = np.array([f"{stage}.{kind}" for stage in stages for kind in ("kernel", "bias")])
        given[name] = np.array(list(tensorflow_shapes(settings)))
    return Compared(expected, given)


def other_decoder(name: str) -> str:
    """Return a name, or a stage, of the amplitude's decoder for one of the phase's, and the other way round."""
    other = {"decoder_amp": "decoder_phase", "decoder_phase": "decoder_amp"}
    part, _, rest = name.partition(".")
    return f"{other.get(part, part)}.{rest}"


def weight_shapes() -> Compared:
    """Both sides of the table, against the oracle's own network."""
    expected, given = {}, {}
    for name, settings in GRAPHS.items():
        shapes = Oracle(dataclasses.asdict(settings)).weight_shapes
        theirs, ours = tensorflow_shapes(settings), torch_shapes(settings)
        expected[f"{name} TensorFlow"] = np.array([str((key, shapes[key])) for key in sorted(shapes)])
        given[f"{name} TensorFlow"] = np.array([str((key, tuple(theirs[key]))) for key in sorted(theirs)])
        turned = {
            key.removesuffix("kernel") + "weight" if len(shape) == 4 else key: shape
            if len(shape) == 1
            else (shape[3], shape[2], 3, 3)
            for key, shape in shapes.items()
        }
        expected[f"{name} torch"] = np.array([str((key, turned[key])) for key in sorted(turned)])
        given[f"{name} torch"] = np.array([str((key, tuple(ours[key]))) for key in sorted(ours)])
    return Compared(expected, given)


def stored_probe() -> Compared:
    """Read a probe in each shape that archives have."""
    rng = np.random.default_rng(3)
    right = (rng.standard_normal((H, H)) + 1j * rng.standard_normal((H, H))).astype(np.complex64)
    shapes = {"of a file": right, "of a layer": right[..., None], "of a model": right[None, ..., None]}
    return Compared(
        dict.fromkeys(shapes, right), {name: stored_model.as_probe(array, H, name) for name, array in shapes.items()}
    )
