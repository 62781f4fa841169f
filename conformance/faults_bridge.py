"""Seeded faults of bridge and configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conformance.faults_runs import RUN_CONFIGURATION
from conformance.seeding import Body, Fault, after, argument, instead, of_area, only
from conformance.steps_bridge import other_decoder
from ptycho_tf_bridge import config, stored_model, weights
from ptycho_tf_bridge.layout import Layout
from ptycho_tf_bridge.weights import WeightEntry
from ptycho_torch import config_params, lightning_module, model, train
from ptycho_torch.config_params import ModelSettings, NetworkSettings, TrainingSettings

Rows = tuple[tuple[Any, ...], ...]


def _named(name: str) -> Callable[[Any], bool]:
    return lambda each: bool(each.name == name)


def _exchanged(rows: Rows) -> Rows:
    """Give the PyTorch names of the other decoder."""
    return tuple((name, shape, kind, other_decoder(theirs), other) for name, shape, kind, theirs, other in rows)


def _is_central(entry: WeightEntry) -> bool:
    return entry.stage.endswith(".central")


def _is_block(entry: WeightEntry) -> bool:
    return entry.stage.startswith("decoder_") and not entry.stage.endswith((".central", ".head"))


def _phase_first(role: str, inputs: int, outputs: int) -> Iterator[WeightEntry]:
    for decoder in ("phase", "amp"):
        yield WeightEntry(f"decoder_{decoder}.{role}", inputs, outputs)


def _mixed_kernel(kernel: np.ndarray) -> np.ndarray:
    """Take the memory of (out, in, kh, kw) for that of (kh, kw, in, out)."""
    out, taken = kernel.shape[:2]
    right = kernel.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(right.reshape(out, taken, 3, 3).transpose(2, 3, 1, 0).transpose(3, 2, 0, 1))


def _batch_fastest(patches: np.ndarray) -> np.ndarray:
    B, C = patches.shape[:2]
    return patches.reshape(C, B, *patches.shape[2:]).swapaxes(0, 1).copy()


def _default(settings: type, name: str, value: Any) -> Callable[[Any], Any]:
    """Change one default of a settings class."""

    def build(defaults: tuple[Any, ...]) -> tuple[Any, ...]:
        with_default = [field.name for field in dataclasses.fields(settings) if field.init]
        position = with_default.index(name) - (len(with_default) - len(defaults))
        return (*defaults[:position], value, *defaults[position + 1 :])

    return build


def _without(*names: str) -> Callable[[Body], Body]:
    """Make an optimiser without some of what it was given."""

    def build(original: Body) -> Body:
        def wrong(parameters: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-7) -> Any:
            given = {"lr": lr, "betas": betas, "eps": eps}
            return original(parameters, **{name: value for name, value in given.items() if name not in names})

        return wrong

    return build


def _training_with(**changed: Any) -> Callable[[Body], Body]:
    """Call a function of the training settings with some of them replaced."""
    return argument(0, lambda training: dataclasses.replace(training, **changed))


def _activation_fixed(original: Body) -> Body:
    return lambda self, kind: original(self, None if kind is None else "sigmoid")


def _sigma_ignored(original: Body) -> Body:
    return lambda self, settings: original(self, dataclasses.replace(settings, gaussian_smoothing_sigma=0.0))


def _scaled_network(factor: Callable[[int], float]) -> Callable[[Body], Body]:
    def build(original: Body) -> Body:
        def wrong(self: ModelSettings, *, N: int, nphotons: float, **named: Any) -> NetworkSettings:
            network: NetworkSettings = original(self, N=N, nphotons=nphotons, **named)
            return dataclasses.replace(network, intensity_scale=network.intensity_scale * factor(N))

        return wrong

    return build


_bridge, _configuration = of_area("bridge"), of_area("configuration")


_MODEL, _TRAINING = ModelSettings.__init__, TrainingSettings.__init__


_READ = "to_torch"


BRIDGE: tuple[Fault, ...] = (
    Fault(
        "probe of an archive transposed",
        "bridge",
        "bridge.probe",
        stored_model,
        "as_probe",
        after(np.transpose),
        "spatial transpose",
    ),
    _bridge(
        "kernels transposed in space",
        "weights",
        Layout,
        _READ,
        only(_named("kernel"), after(lambda k: k.swapaxes(2, 3))),
        "kernels transposed in space",
    ),
    _bridge(
        "kernels flipped",
        "weights",
        Layout,
        _READ,
        only(_named("kernel"), after(lambda k: k[..., ::-1, ::-1].copy())),
        "kernels flipped",
    ),
    _bridge(
        "kernels of channels-first memory",
        "weights",
        Layout,
        _READ,
        only(_named("kernel"), after(_mixed_kernel)),
        "channels-last/first mix-up",
    ),
    _bridge(
        "biases not carried over",
        "weights",
        Layout,
        _READ,
        only(_named("vector"), after(np.zeros_like)),
        "biases dropped",
    ),
    _bridge(
        "heads of the decoders exchanged",
        "weights",
        WeightEntry,
        "arrays",
        only(_is_central, after(_exchanged)),
        "wrong head order",
    ),
    _bridge(
        "blocks of the decoders exchanged", "weights", WeightEntry, "arrays", only(_is_block, after(_exchanged)), None
    ),
    _bridge(
        "phase before amplitude", "weight_order", weights, "_pair", instead(_phase_first), "phase before amplitude"
    ),
    _bridge(
        "offsets read as (y, x)",
        "layouts",
        Layout,
        _READ,
        only(_named("offsets"), after(lambda o: o[..., ::-1].copy())),
        None,
    ),
    _bridge(
        "batch fastest in folded patches",
        "layouts",
        Layout,
        _READ,
        only(_named("flat"), after(_batch_fastest)),
        "batch fastest",
    ),
    _bridge(
        "kernels carried back transposed",
        "weights_back",
        Layout,
        "to_tensorflow",
        only(_named("kernel"), after(lambda k: k.swapaxes(0, 1).copy())),
        "spatial transpose",
    ),
    _bridge(
        "outer path of six channels",
        "weights",
        weights,
        "OUTER_CHANNELS",
        instead(6),
        None,
    ),
)


CONFIGURATION: tuple[Fault, ...] = (
    _configuration(
        "default probe scale of the legacy dictionary",
        "defaults",
        _MODEL,
        "__defaults__",
        _default(ModelSettings, "probe_scale", 10.0),
        "default of the reference",
    ),
    _configuration(
        "default ε of PyTorch",
        "defaults",
        _TRAINING,
        "__defaults__",
        _default(TrainingSettings, "adam_eps", 1e-8),
        None,
    ),
    _configuration(
        "default probe mask on",
        "defaults",
        _MODEL,
        "__defaults__",
        _default(ModelSettings, "probe_mask", True),
        "default of the reference",
    ),
    _configuration(
        "canvas without the jitter",
        "geometry",
        NetworkSettings,
        "padding_px",
        instead(property(lambda self: (self.gridsize - 1) * self.offset // 2)),
        "canvas without the jitter",
    ),
    _configuration(
        "outer path always 32 channels wide",
        "geometry",
        NetworkSettings,
        "outer_width",
        instead(property(lambda self: 33 * self.n_filters_scale)),
        None,
    ),
    _configuration(
        "shared amplitude head ignored",
        "geometry",
        NetworkSettings,
        "amplitude_channels",
        instead(property(lambda self: self.phase_channels)),
        None,
    ),
    _configuration(
        "intensity scale over N",
        "intensity_scale",
        ModelSettings,
        "network",
        _scaled_network(lambda N: 0.5),
        "N for N/2",
    ),
    _configuration("ε ignored", "used", lightning_module, "KerasAdam", _without("eps"), "setting ignored"),
    _configuration(
        "decay of moments ignored", "used", lightning_module, "KerasAdam", _without("betas"), "setting ignored"
    ),
    _configuration("learning rate ignored", "used", lightning_module, "KerasAdam", _without("lr"), "setting ignored"),
    _configuration(
        "clipping ignored", "used", train, "make_trainer", _training_with(gradient_clip_val=3.0), "setting ignored"
    ),
    _configuration(
        "amplitude activation ignored", "used", model.HeadActivation, "__init__", _activation_fixed, "setting ignored"
    ),
    _configuration("blur ignored", "used", model.Illuminate, "__init__", _sigma_ignored, "setting ignored"),
    _configuration(
        "loss weights ignored",
        "used",
        TrainingSettings,
        "loss_weights",
        instead(lambda self, loss_function: config_params.LossWeights()),
        None,
    ),
    _configuration(
        "offset of the legacy dictionary not read",
        "stated",
        config,
        "spelled_here",
        lambda original: (
            lambda setting, value: original(setting, setting.default if setting.name == "offset" else value)
        ),
        "this project's default in place of the reference's",
    ),
    *RUN_CONFIGURATION,
)
