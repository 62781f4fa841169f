"""Mistakes outside the network: a check has to fail. What it then says of the cause is not judged here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.checks.bridge import other_decoder
from conformance.selftest.fault import Body, Fault, after, argument, instead, only, with_named
from ptycho_tf_bridge import config, config_export, export, migrate, weights
from ptycho_tf_bridge.archives import archive, keras_graph, stored_model
from ptycho_tf_bridge.layout import Layout
from ptycho_tf_bridge.weights import WeightEntry
from ptycho_torch import dset_loader_pt_mmap, helper, losses, model, train
from ptycho_torch.config_params import LossWeights, ModelSettings, NetworkSettings, Settings, TrainingSettings
from ptycho_torch.data import grouping, memory_map, probe
from ptycho_torch.reconstruction import reassembly
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training import lightning_module


def _named(name: str) -> Callable[[Any], bool]:
    return lambda each: bool(each.name == name)


def _is_central(entry: WeightEntry) -> bool:
    return entry.stage.endswith(".central")


def _other_names(rows: tuple[tuple[Any, ...], ...]) -> tuple[tuple[Any, ...], ...]:
    """Give the PyTorch names of the other decoder."""
    return tuple((name, shape, kind, other_decoder(theirs), other) for name, shape, kind, theirs, other in rows)


def _batch_fastest(patches: np.ndarray) -> np.ndarray:
    B, C = patches.shape[:2]
    return patches.reshape(C, B, *patches.shape[2:]).swapaxes(0, 1).copy()


def _decoders_exchanged(roles: keras_graph.Roles) -> keras_graph.Roles:
    names = roles.convolutions
    return dataclasses.replace(roles, convolutions={stage: names[other_decoder(stage)] for stage in names})


def _transposed_kernels(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: each.swapaxes(0, 1) if each.shape[:2] == (3, 3) else each for name, each in arrays.items()}


def _saved_probe_first(original: Body) -> Body:
    """Take the probe of the parameters, which training has changed since."""

    def wrong(stored: Any, source: str, parameters: Any, *rest: Any) -> Any:
        probe, where = original(stored, source, parameters, *rest)
        saved = parameters.get("probe")
        return (probe if saved is None else saved.reshape(np.shape(probe))), where

    return wrong


def _default(settings: type, name: str, value: Any) -> Callable[[Any], Any]:
    """Change one default of a settings class."""
    fields = [field.name for field in dataclasses.fields(settings) if field.init]

    def build(defaults: tuple[Any, ...]) -> tuple[Any, ...]:
        position = fields.index(name) - (len(fields) - len(defaults))
        return (*defaults[:position], value, *defaults[position + 1 :])

    return build


def _spelled(condition: Callable[[Any, Any], bool], value: Callable[[Any, Any], Any]) -> Callable[[Body], Body]:
    """Translate some values of a configuration in another way: (setting, value there) → value here."""
    return lambda original: lambda setting, each: (value if condition(setting, each) else original)(setting, each)


def _settings(**changed: Any) -> Callable[[Any], Any]:
    return lambda settings: dataclasses.replace(settings, **changed)


def _stored(table: str, name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Body], Body]:
    """Change what one column of an opened map holds."""

    def changed(found: memory_map.MemoryMap) -> memory_map.MemoryMap:
        columns = getattr(found, table).clone()
        columns[name] = change(columns[name])
        return dataclasses.replace(found, **{table: columns})

    return after(changed)


def _disk_about_a_pixel(N: int) -> Tensor:
    position = torch.arange(N, dtype=torch.float64) - N / 2
    return (torch.hypot(position[:, None], position) < N // 4).double()


def _rounded_late(shift_px: Tensor) -> Tensor:
    return shift_px - 1e-3 * (shift_px.frac().abs() < 1e-3)


def _real_part_alone(images: Tensor) -> Tensor:
    return images.real.diff(dim=-2).square().sum() + images.real.diff(dim=-1).square().sum()


def _clip_as_torch(parameters: Iterable[Tensor], limit: float, algorithm: str = "norm") -> None:
    clip = torch.nn.utils.clip_grad_norm_ if algorithm == "norm" else torch.nn.utils.clip_grad_value_
    clip(list(parameters), limit)


def _clip_alone(original: Body) -> Body:
    return lambda parameters, *given: [original([parameter], *given) for parameter in parameters] and None


_KERNEL, _VECTOR, _OFFSETS, _FLAT = map(_named, ("kernel", "vector", "offsets", "flat"))
_MAP = (dset_loader_pt_mmap, "open_map")

OUTSIDE: tuple[Fault, ...] = (
    # Configuration
    Fault(
        "legacy probe scale",
        "configuration.defaults",
        ModelSettings.__init__,
        "__defaults__",
        _default(ModelSettings, "probe_scale", 10.0),
    ),
    Fault(
        "ε of PyTorch",
        "configuration.defaults",
        TrainingSettings.__init__,
        "__defaults__",
        _default(TrainingSettings, "adam_eps", 1e-8),
    ),
    Fault(
        "shared head ignored",
        "bridge.weight_shapes",
        NetworkSettings,
        "amplitude_channels",
        instead(property(lambda self: self.phase_channels)),
    ),
    Fault(
        "scale over N",
        "configuration.intensity_scale",
        ModelSettings,
        "network",
        after(lambda network: dataclasses.replace(network, intensity_scale=network.intensity_scale / 2)),
    ),
    Fault("ε ignored", "configuration.used", lightning_module, "KerasAdam", with_named(eps=1e-7)),
    Fault(
        "clipping ignored", "configuration.used", train, "make_trainer", argument(0, _settings(gradient_clip_val=3.0))
    ),
    Fault(
        "blur ignored",
        "configuration.used",
        model.Illuminate,
        "__init__",
        argument(1, _settings(gaussian_smoothing_sigma=0.0)),
    ),
    Fault(
        "activation ignored",
        "configuration.used",
        model.HeadActivation,
        "__init__",
        argument(1, lambda kind: kind and "sigmoid"),
    ),
    Fault(
        "loss weights ignored",
        "configuration.loss",
        TrainingSettings,
        "loss_weights",
        instead(lambda self, loss_function: LossWeights()),
    ),
    Fault(
        "loss weights exchanged",
        "configuration.loss",
        TrainingSettings,
        "loss_weights",
        after(lambda each: dataclasses.replace(each, nll_weight=each.mae_weight, mae_weight=each.nll_weight)),
    ),
    Fault(
        "defaults of here",
        "configuration.unstated",
        config,
        "from_legacy",
        after(lambda found: dataclasses.replace(found, settings=Settings())),
    ),
    Fault(
        "offset not read",
        "configuration.stated",
        config,
        "spelled_here",
        _spelled(lambda setting, _: setting.name == "offset", lambda setting, _: setting.default),
    ),
    Fault("flags never win", "configuration.as_run", config, "flag_wins", instead(lambda field, value: ("", None))),
    Fault(
        "Adam of PyTorch",
        "configuration.spelled",
        config,
        "spelled_here",
        _spelled(lambda _, value: value == "adam", lambda _, value: value),
    ),
    Fault(
        "words of here in files",
        "configuration.written",
        config_export,
        "spelled_there",
        instead(lambda setting, value, field: value),
    ),
    # Bridge
    Fault("kernels transposed", "bridge.weights", Layout, "to_torch", only(_KERNEL, after(lambda k: k.swapaxes(2, 3)))),
    Fault(
        "kernels flipped",
        "bridge.weights",
        Layout,
        "to_torch",
        only(_KERNEL, after(lambda k: k[..., ::-1, ::-1].copy())),
    ),
    Fault("biases dropped", "bridge.weights", Layout, "to_torch", only(_VECTOR, after(np.zeros_like))),
    Fault("heads exchanged", "bridge.weights", WeightEntry, "arrays", only(_is_central, after(_other_names))),
    Fault("outer path of six channels", "bridge.weight_shapes", weights, "OUTER_CHANNELS", instead(6)),
    Fault(
        "kernels back transposed",
        "bridge.weights_back",
        Layout,
        "to_tensorflow",
        only(_KERNEL, after(lambda k: k.swapaxes(0, 1).copy())),
    ),
    Fault(
        "offsets as (y, x)", "bridge.layouts", Layout, "to_torch", only(_OFFSETS, after(lambda o: o[..., ::-1].copy()))
    ),
    Fault("batch fastest", "bridge.layouts", Layout, "to_torch", only(_FLAT, after(_batch_fastest))),
    Fault("archive's probe transposed", "bridge.probe", stored_model, "as_probe", after(np.transpose)),
    Fault("decoders of a graph exchanged", "bridge.graphs", keras_graph, "find_roles", after(_decoders_exchanged)),
    Fault("saved probe for the trained one", "bridge.saved_models", archive, "choose_probe", _saved_probe_first),
    Fault(
        "checkpoint's kernels transposed",
        "bridge.saved_models",
        stored_model,
        "read_tf_checkpoint",
        after(_transposed_kernels),
    ),
    Fault(
        "network keeps its first weights", "bridge.converted", migrate, "to_torch", instead(lambda weights, network: {})
    ),
    Fault("parameters as stated", "bridge.converted", migrate, "from_legacy", with_named(as_run=False)),
    Fault("probe transposed in conversion", "bridge.converted", migrate, "build_network", argument(2, np.transpose)),
    Fault("kernels exported transposed", "bridge.exported", export, "to_tensorflow", after(_transposed_kernels)),
    Fault(
        "kernels through float16",
        "bridge.converted",
        migrate,
        "to_torch",
        after(lambda each: {name: array.astype(np.float16).astype(np.float32) for name, array in each.items()}),
    ),
    # Data
    Fault("seed of groups ignored", "data.samplers", grouping, "group_scan", argument(1, _settings(group_seed=0))),
    Fault(
        "one neighbour too few",
        "data.samplers",
        grouping,
        "group_scan",
        argument(1, lambda settings: dataclasses.replace(settings, K=settings.K - 1)),
    ),
    Fault("groups sorted", "data.samplers", grouping, "group_scan", after(lambda rows: np.sort(rows, axis=1))),
    Fault("seed points never in sequence", "data.samplers", grouping, "reference_groups", with_named(sequential=False)),
    Fault(
        "centre in every group",
        "data.samplers",
        grouping,
        "group_scan",
        argument(
            1,
            lambda each: (
                each if each.group_sampler == "reference" else dataclasses.replace(each, group_sampler="with_centre")
            ),
        ),
    ),
    Fault("sign of offsets", "data.path", *_MAP, _stored("groups", "coords_relative", torch.neg)),
    Fault("stored offsets as (y, x)", "data.path", *_MAP, _stored("groups", "coords_relative", lambda o: o.flip(-1))),
    Fault("stored offsets of whole pixels", "data.path", *_MAP, _stored("groups", "coords_relative", torch.round)),
    Fault("centres as (y, x)", "data.path", *_MAP, _stored("groups", "coords_center", lambda c: c.flip(-1))),
    Fault("mean square of N²", "data.path", *_MAP, _stored("experiments", "scale", lambda s: 2 * s)),
    Fault("root of the scale missing", "data.path", *_MAP, _stored("experiments", "scale", torch.square)),
    Fault("stored probe conjugated", "data.path", *_MAP, _stored("experiments", "probe", torch.conj_physical)),
    Fault(
        "one probe for all scans",
        "data.path",
        *_MAP,
        _stored("experiments", "probe", lambda p: p[:1].expand_as(p).clone()),
    ),
    # Single operations
    Fault("disk about a pixel", "forward.probe", probe, "disk_mask", instead(_disk_about_a_pixel)),
    Fault(
        "modes normalised with their mean",
        "forward.probe",
        probe,
        "normalise_probe",
        lambda original: (
            lambda modes, *given: original(modes, *given) * math.sqrt(modes.shape[-3] if modes.ndim > 2 else 1)
        ),
    ),
    Fault("σ squared in the blur", "forward.illuminate", helper, "smooth", argument(1, lambda sigma_px: sigma_px**2)),
    Fault("whole pixels a little late", "forward.translate", helper, "shift_matrix", argument(0, _rounded_late)),
    Fault(
        "patches stitched with x for y",
        "forward.stitch",
        reassembly.ExperimentStitcher,
        "add",
        argument(2, lambda positions_px: positions_px.flip(1)),
    ),
    Fault(
        "known object cut at (y, x)",
        "forward.target",
        helper,
        "cut_patches",
        argument(1, lambda positions_px: positions_px.flip(1)),
    ),
    Fault("known object moved the other way", "forward.target", helper, "target_object", argument(1, torch.neg)),
    Fault("total variation of the real part", "forward.target", losses, "total_variation", instead(_real_part_alone)),
    # Training
    Fault(
        "mask ignored in training",
        "optimiser.masked_loss",
        lightning_module,
        "total_loss",
        with_named(good_pixels=None),
    ),
    Fault(
        "border of the object counted",
        "optimiser.masked_loss",
        lightning_module,
        "total_loss",
        with_named(probe_big=True),
    ),
    Fault(
        "amplitude weighted as the likelihood",
        "optimiser.masked_loss",
        lightning_module,
        "total_loss",
        argument(4, lambda each: dataclasses.replace(each, mae_weight=each.nll_weight)),
    ),
    Fault(
        "clipping as PyTorch does it", "optimiser.clipping", lightning_module, "clip_gradients", instead(_clip_as_torch)
    ),
    Fault("every tensor clipped alone", "optimiser.clipping", lightning_module, "clip_gradients", _clip_alone),
    Fault(
        "clipping by value for norm",
        "optimiser.clipping",
        lightning_module,
        "clip_gradients",
        lambda original: lambda parameters, limit, algorithm="norm": original(parameters, limit, "value"),
    ),
    Fault(
        "interrupted validation counts",
        "optimiser.epoch_loss",
        PtychoPINN,
        "on_validation_epoch_start",
        instead(lambda self: None),
    ),
    Fault(
        "kernels of the global generator",
        "optimiser.initial_weights",
        model.Convolution,
        "__init__",
        with_named(generator=None),
    ),
)
"""Configuration, bridge, data, single operations and training."""
