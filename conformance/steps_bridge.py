"""Bridge and configuration, step by step: axis orders, weight names, and what becomes of settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from conformance.draws import GRAPHS
from conformance.hypotheses import Arrays, Hypothesis, spatial_mistakes
from conformance.oracle import Oracle
from conformance.oracle_operations import disk_mask
from conformance.step import Outcome, Step, StepBench
from ptycho_tf_bridge import stored_model
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import tensorflow_shapes, to_tensorflow, to_torch, torch_shapes
from ptycho_torch.config_params import NetworkSettings, Settings

GRAPH = "n64_g2"
"""Graph whose weights are carried over: every kind of convolution is in it."""

B, C, M, H, W = 2, 3, 2, 5, 4


@cache
def _weights() -> dict[str, np.ndarray]:
    """Draw the graph's weights by the oracle's own shapes: the bridge's are what is judged."""
    rng = np.random.default_rng(1)
    shapes = Oracle(dataclasses.asdict(GRAPHS[GRAPH])).weight_shapes
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _layouts(_: StepBench) -> Outcome:
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
    batch_fastest = {
        "flat to torch": tensorflow["flat"][..., 0].reshape(C, B, H, W).swapaxes(0, 1),
        "flat to TensorFlow": images.swapaxes(0, 1).reshape(B * C, H, W, 1),
        "flat_modes to torch": np.moveaxis(tensorflow["flat_modes"].reshape(C, B, H, W, M), (1, 0, 4), (0, 1, 2)),
        "flat_modes to TensorFlow": np.moveaxis(waves.swapaxes(0, 1).reshape(B * C, M, H, W), 1, -1),
    }
    mistakes = [
        Hypothesis("rows and columns exchanged", {
            name: array.swapaxes(-2, -1) if name.endswith("torch") else array.swapaxes(1, 2)
            for name, array in expected.items() if not name.startswith("offsets")
        }),
        Hypothesis("modes and channels exchanged", {
            "flat_modes to torch": waves.swapaxes(1, 2),
            "flat_modes to TensorFlow": waves.transpose(0, 2, 3, 4, 1).reshape(B * M, H, W, C),
        }),
        Hypothesis("swapped x/y", {name: array[..., ::-1] if name.endswith("torch") else array[:, :, ::-1]
                                   for name, array in expected.items() if name.startswith("offsets")}),
        Hypothesis("batch fastest in the folded axis", batch_fastest),
        Hypothesis("channels-last/first mix-up", {
            "channels to torch": tensorflow["channels"].reshape(B, C, H, W),
            "channels to TensorFlow": images.reshape(B, H, W, C),
        }),
    ]  # fmt: skip
    return Outcome(expected, given, 0.0, mistakes)


def as_torch(weights: Arrays) -> dict[str, np.ndarray]:
    """Carry weights to PyTorch: a kernel (kh, kw, in, out) becomes (out, in, kh, kw), and is called ``weight``."""
    return {
        f"{name.removesuffix('kernel')}weight" if name.endswith(".kernel") else name: (
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        )
        for name, array in weights.items()
    }


def _kernels_changed(weights: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return {name: change(array) if array.ndim == 4 else array for name, array in weights.items()}


def _exchanged(weights: Arrays, one: str, other: str) -> Arrays:
    """Exchange the weights whose names differ in these parts alone; what has no partner of its shape stays."""
    marker = "\0"
    partner = {name: name.replace(one, marker).replace(other, one).replace(marker, other) for name in weights}
    shapes = {name: array.shape for name, array in weights.items()}
    return {
        name: weights[partner[name] if shapes.get(partner[name]) == array.shape else name]
        for name, array in weights.items()
    }


def weight_mistakes(weights: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield what can go wrong with weights by TensorFlow name."""
    yield "kernels transposed in space", _kernels_changed(weights, lambda kernel: kernel.swapaxes(0, 1))
    yield "kernels flipped", _kernels_changed(weights, lambda kernel: kernel[::-1, ::-1])
    yield "input and output of kernels exchanged", _kernels_changed(weights, lambda kernel: kernel.swapaxes(2, 3))
    for one, other, what in (
        ("decoder_amp", "decoder_phase", "amplitude and phase decoder exchanged"),
        ("conv1", "conv2", "conv1 and conv2 exchanged"),
        ("central", "outer.head", "heads exchanged"),
    ):
        yield what, _exchanged(weights, one, other)


def _map_mistakes(weights: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield what can go wrong with the table of weights, by TensorFlow name."""
    yield (
        "channels-last/first mix-up of kernels",
        _kernels_changed(weights, lambda k: k.reshape(k.shape[3], k.shape[2], 3, 3).transpose(2, 3, 1, 0)),
    )
    yield "biases dropped", {name: array if array.ndim == 4 else 0 * array for name, array in weights.items()}
    # What is narrower comes first: the exchange of all of a head, or of all of a decoder, explains it too.
    yield "biases of the heads exchanged", _exchanged(weights, "amp.central.bias", "phase.central.bias")
    for part in ("central", "outer.head", "outer.conv1", "outer.conv2", "0.conv1", "0.conv2", "1.conv1", "1.conv2"):
        exchanged = _exchanged(weights, f"decoder_amp.{part}.", f"decoder_phase.{part}.")
        yield "wrong head order (amplitude and phase exchanged)", exchanged
    yield from weight_mistakes(weights)


def _weight_map(_: StepBench) -> Outcome:
    weights, settings = _weights(), GRAPHS[GRAPH]
    mistakes = [Hypothesis(what, as_torch(wrong)) for what, wrong in _map_mistakes(weights)]
    return Outcome(as_torch(weights), to_torch(weights, settings), 0.0, mistakes)


def _weights_back(_: StepBench) -> Outcome:
    weights, settings = _weights(), GRAPHS[GRAPH]
    return Outcome(weights, to_tensorflow(as_torch(weights), settings))


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


def _weight_order(_: StepBench) -> Outcome:
    """Names come in the order in which Keras lists the convolutions."""
    expected, given, exchanged = {}, {}, {}
    for name, settings in GRAPHS.items():
        stages = stages_in_order(settings)
        expected[name] = np.array([f"{stage}.{kind}" for stage in stages for kind in ("kernel", "bias")])
        exchanged[name] = np.array([other_decoder(each) for each in expected[name]])
        given[name] = np.array(list(tensorflow_shapes(settings)))
    heads = (".central", ".outer.head")
    blocks = {
        name: np.array([each if any(head in each for head in heads) else other_decoder(each) for each in names])
        for name, names in expected.items()
    }
    mistakes = [Hypothesis("phase before amplitude", exchanged), Hypothesis("phase before amplitude", blocks)]
    return Outcome(expected, given, 0.0, mistakes)


def other_decoder(name: str) -> str:
    """Return a name, or a stage, of the amplitude's decoder for one of the phase's, and the other way round."""
    other = {"decoder_amp": "decoder_phase", "decoder_phase": "decoder_amp"}
    part, _, rest = name.partition(".")
    return f"{other.get(part, part)}.{rest}"


def _weight_shapes(_: StepBench) -> Outcome:
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
    return Outcome(expected, given)


def probe_mistakes(probe: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what can go wrong with a (N, N) probe."""
    for what, change in spatial_mistakes(-2, -1):
        yield what, change(probe)


def _stored_probe(_: StepBench) -> Outcome:
    """Read a probe in each shape that archives have."""
    rng = np.random.default_rng(3)
    right = (rng.standard_normal((H, H)) + 1j * rng.standard_normal((H, H))).astype(np.complex64)
    shapes = {"of a file": right, "of a layer": right[..., None], "of a model": right[None, ..., None]}
    return Outcome(
        dict.fromkeys(shapes, right),
        {name: stored_model.as_probe(array, H, name) for name, array in shapes.items()},
        mistakes=[Hypothesis(what, dict.fromkeys(shapes, wrong)) for what, wrong in probe_mistakes(right)],
    )


BRIDGE: tuple[Step, ...] = (
    Step("bridge.layouts", ("STEP-BRIDGE",), _layouts),
    Step("bridge.weights", ("STEP-BRIDGE",), _weight_map),
    Step("bridge.weights_back", ("STEP-BRIDGE",), _weights_back),
    Step("bridge.weight_order", ("STEP-BRIDGE",), _weight_order),
    Step("bridge.weight_shapes", ("STEP-BRIDGE",), _weight_shapes),
    Step("bridge.probe", ("STEP-BRIDGE",), _stored_probe),
)


def _defaults(_: StepBench) -> Outcome:
    """Every default is what ``specs/configuration.yaml`` says."""
    from ptycho_torch.config_schema import load_schema

    settings = Settings().as_dict()
    schema = load_schema().settings
    expected = {name: np.array(repr(_plain(setting.default))) for name, setting in schema.items()}
    given = {
        name: np.array(repr(_plain(settings[setting.owner][name]))) for name, setting in schema.items()
        if name in settings[setting.owner]
    }  # fmt: skip
    mistakes = [
        Hypothesis(f"the default of the reference's {source}", {name: np.array(repr(_plain(value)))})
        for name, setting in schema.items()
        for source, value in setting.defaults_there.items()
    ]
    return Outcome(expected, given, 0.0, mistakes)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _geometry(_: StepBench) -> Outcome:
    """Canvas, widths and heads of every graph, against the oracle's own network."""
    expected, given = {}, {}
    mistakes = []
    for name, settings in GRAPHS.items():
        oracle = Oracle(dataclasses.asdict(settings))

        def side(stage: str, axis: int, oracle: Oracle = oracle) -> int:
            return oracle.stage_shape(stage, 1)[axis]

        last = "output" if not settings.pad_object else "central"
        numbers = {
            "canvas_px": side("merged", 1),
            "encoder_widths": [side(f"encoder.{i}.conv1", 3) for i in range(len(settings.encoder_widths))],
            "decoder_widths": [side(f"decoder_amp.{i}.conv1", 3) for i in range(len(settings.decoder_widths))],
            "phase_channels": side(f"decoder_phase.{last}", 3),
            "amplitude_channels": side(f"decoder_amp.{last}", 3),
        }
        if "decoder_amp.outer.conv1" in oracle.stages:
            numbers["outer_width"] = side("decoder_amp.outer.conv1", 3)
        for field, number in numbers.items():
            expected[f"{name} {field}"] = np.array(number)
            given[f"{name} {field}"] = np.array(getattr(settings, field))
    without = {
        f"{name} canvas_px": np.array(settings.N + (settings.gridsize - 1) * settings.offset)
        for name, settings in GRAPHS.items()
    }
    mistakes.append(Hypothesis("canvas without the jitter", without))
    once = {
        f"{name} canvas_px": np.array(
            settings.N + (settings.gridsize - 1) * settings.offset + settings.max_position_jitter // 2
        )
        for name, settings in GRAPHS.items()
    }
    mistakes.append(Hypothesis("half of the jitter", once))
    one_side = {
        f"{name} canvas_px": np.array(settings.N + (expected[f"{name} canvas_px"] - settings.N) // 2)
        for name, settings in GRAPHS.items()
    }
    mistakes.append(Hypothesis("padding on one side alone", one_side))
    return Outcome(expected, given, 0.0, mistakes)


UNUSUAL: Mapping[str, Any] = {
    "amp_activation": "softplus", "probe_scale": 3.0, "n_filters_scale": 2, "object_big": False, "probe_big": False,
    "probe_mask": True, "gaussian_smoothing_sigma": 0.6, "offset": 6, "max_position_jitter": 12, "gridsize": 3,
    "nphotons": 4096.0, "learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_eps": 1e-5,
    "scheduler": "ReduceLROnPlateau", "plateau_factor": 0.7, "plateau_min_lr": 2e-5,
    "plateau_threshold": 3e-3, "gradient_clip_val": 0.3, "gradient_clip_algorithm": "value", "max_epochs": 7,
    "early_stop_patience": 6, "accumulate_grad_batches": 3, "nll_weight": 0.4, "mae_weight": 0.7,
    "realspace_weight": 0.2, "tv_weight": 0.1, "device": "cpu", "validation_fraction": 0.0,
}  # fmt: skip
"""Settings of which none is a default, so that one that is ignored shows."""


def _used(_: StepBench) -> Outcome:
    """What was set is what the network, the optimiser and the trainer have."""
    import torch

    from ptycho_torch.lightning_module import PtychoPINN, quiet_lightning
    from ptycho_torch.train import make_trainer

    settings = Settings().override(UNUSUAL)
    probe = torch.ones(64, 64, dtype=torch.complex64)
    data = {"gridsize": settings.data.gridsize, "nphotons": UNUSUAL["nphotons"]}
    module = PtychoPINN(settings, settings.model.network(N=64, **data, offset=1, max_position_jitter=1), probe)
    optimiser = module.configure_optimizers()
    with quiet_lightning():
        trainer = make_trainer(settings.training, Path(), validate=False, progress=False)
    group, network, schedule, weights = optimiser.param_groups[0], module.network, module._schedule, module._weights
    first = network.get_parameter("encoder.0.conv1.weight")
    found: dict[str, Any] = {
        "amp_activation": network.decoder_amp.activation.kind,
        "probe_scale": float(1 / np.abs(network.probe.detach().numpy()[0] * disk_mask(64)).mean()),
        "n_filters_scale": first.shape[0] // 32,
        "object_big": network.merged.object_big,
        "probe_big": network.decoder_amp.has_outer_path,
        "probe_mask": network.exit_wave.disk is not None,
        "gaussian_smoothing_sigma": network.exit_wave.smoothing_sigma,
        "offset": network.settings.offset,
        "max_position_jitter": network.settings.max_position_jitter,
        "gridsize": int(first.shape[1] ** 0.5),
        "nphotons": round(float((network.log_scale.exp() * 32) ** 2), 2),
        "learning_rate": group["lr"],
        "adam_beta1": group["betas"][0],
        "adam_beta2": group["betas"][1],
        "adam_eps": group["eps"],
        "plateau_factor": schedule.factor,
        "plateau_min_lr": schedule.min_lr,
        "plateau_threshold": schedule.threshold,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(getattr(trainer.gradient_clip_algorithm, "value", "norm")),
        "max_epochs": trainer.max_epochs,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "nll_weight": weights.nll_weight,
        "mae_weight": weights.mae_weight,
        "realspace_weight": weights.realspace_weight,
        "tv_weight": weights.tv_weight,
    }
    expected = {name: _rounded(UNUSUAL[name]) for name in found}
    given = {name: _rounded(value) for name, value in found.items()}
    defaults = {name: _rounded(value) for owner in Settings().as_dict().values() for name, value in owner.items()}
    mistakes = [Hypothesis("setting ignored (the default in its place)", defaults)]
    return Outcome(expected, given, 0.0, mistakes)


def _rounded(value: Any) -> np.ndarray:
    return np.array(
        repr(float(f"{value:.6g}") if isinstance(value, int | float) and not isinstance(value, bool) else value)
    )


def _derived_scale(_: StepBench) -> Outcome:
    """s_I = √nphotons / (N/2) [reference page §5]."""
    expected, given, naive, whole = {}, {}, {}, {}
    for N in (64, 128, 256):
        for nphotons in (1e5, 1e9):
            name = f"N = {N}, nphotons = {nphotons:g}"
            network = Settings().model.network(N=N, gridsize=1, nphotons=nphotons, offset=0, max_position_jitter=0)
            expected[name] = np.array(np.sqrt(nphotons) / (N / 2))
            given[name] = np.array(network.intensity_scale)
            naive[name], whole[name] = np.array(nphotons / (N / 2) ** 2), np.array(np.sqrt(nphotons) / N)
    mistakes = [
        Hypothesis("intensity for amplitude", naive),
        Hypothesis("N for N/2", whole),
        Hypothesis("setting ignored", {name: np.array(1.0) for name in expected}),
    ]
    return Outcome(expected, given, 1e-14, mistakes)


CONFIGURATION: tuple[Step, ...] = (
    Step("configuration.defaults", ("STEP-CONFIGURATION",), _defaults),
    Step("configuration.geometry", ("STEP-CONFIGURATION",), _geometry),
    Step("configuration.intensity_scale", ("STEP-CONFIGURATION",), _derived_scale),
    Step("configuration.used", ("STEP-CONFIGURATION",), _used, ("lightning",)),
)
