"""PyTorch → archive → PyTorch is bit-exact for every configuration of the weight table, and Keras loads the archive."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_tf_bridge.archives.archive import read_archive
from ptycho_tf_bridge.archives.keras_file import group_name, layer_name, write_keras
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.export import export
from ptycho_tf_bridge.migrate import build_network, convert
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.errors import ConfigError
from ptycho_torch.model import PtychoNet
from ptycho_torch.training.checkpoint import read_checkpoint, write_checkpoint
from tests.support.archives.reference_archives import draw_probe, draw_weights

ACTIVATIONS = ("sigmoid", "swish", "softplus", "relu")


def every_configuration() -> list[NetworkSettings]:
    """Both pad_object, probe_big and object_big, N, g and both amplitude heads; wide and large ones are few."""
    found = []
    for N, g, pad, probe_big, object_big, shared in itertools.product(
        (64, 128, 256), (1, 2, 3), *([(True, False)] * 4)
    ):
        if (shared and (g == 1 or not object_big)) or (N == 256 and (g == 3 or not object_big or shared)):
            continue
        found.append(
            NetworkSettings(
                N=N, gridsize=g, n_filters_scale=1 if N > 64 else 2, pad_object=pad, probe_big=probe_big,
                object_big=object_big, shared_amplitude_head=shared, amp_activation=ACTIVATIONS[len(found) % 4],
                intensity_scale=3.7 + len(found), gaussian_smoothing_sigma=0.1 * (g - 1), probe_mask=pad,
            )
        )  # fmt: skip
    return found


def describe(settings: NetworkSettings) -> str:
    flags = [
        name for name in ("pad_object", "probe_big", "object_big", "shared_amplitude_head") if getattr(settings, name)
    ]
    return f"n{settings.N} g{settings.gridsize} {' '.join(flags)}"


def settings_of(network: NetworkSettings) -> Settings:
    names = {*Settings().model.field_names(), *Settings().data.field_names()}
    return Settings().override({name: value for name, value in dataclasses.asdict(network).items() if name in names})


def write_run(path: Path, network: NetworkSettings, seed: int = 0, **changed: torch.Tensor) -> PtychoNet:
    """Write a checkpoint of a network with random weights and probe."""
    generator = torch.Generator().manual_seed(seed)
    model = PtychoNet(network, torch.from_numpy(draw_probe(network.N, seed)), generator=generator)
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if name.endswith(".bias"):
            state[name] = torch.randn(tensor.shape, generator=generator)
    model.load_state_dict(state | changed)
    statistics = {"probe_modes": 1, "one_probe": True}
    write_checkpoint(path, settings_of(network), network, statistics, model.state_dict(), overwrite=True)
    return model


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("network", every_configuration(), ids=describe)
def test_there_and_back_is_bit_exact(network: NetworkSettings, tmp_path: Path) -> None:
    model = write_run(tmp_path / "a.ckpt", network)
    export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    archive = read_archive(tmp_path / "wts.h5.zip", model="diffraction_to_obj")
    assert archive.network == network
    assert archive.missing == ()
    assert same_bits(dict(build_network(archive).state_dict()), dict(model.state_dict()))


def test_a_converted_archive_is_the_checkpoint_that_was_exported(tmp_path: Path) -> None:
    network = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=12.5)
    write_run(tmp_path / "a.ckpt", network)
    written = export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    archive = read_archive(written.path)
    assert archive.era.startswith("exported by ptycho-torch")
    migration = convert(archive, tmp_path / "converted")
    first, second = read_checkpoint(tmp_path / "a.ckpt"), read_checkpoint(migration.checkpoint)
    assert same_bits(dict(second.weights), dict(first.weights))
    assert second.network == first.network


def test_what_the_report_says_is_in_the_archive(tmp_path: Path) -> None:
    """Canvas, scale and counts were derived from the scans; the settings of the run do not have them."""
    network = NetworkSettings(
        N=64, gridsize=2, n_filters_scale=1, intensity_scale=31.25, offset=8, max_position_jitter=16
    )
    model = write_run(tmp_path / "a.ckpt", network)
    statistics = {"probe_modes": 1, "one_probe": True, "nphotons": 1e6}
    derived = Settings().override({"gridsize": 2, "n_filters_scale": 1})
    write_checkpoint(tmp_path / "a.ckpt", derived, network, statistics, model.state_dict(), overwrite=True)
    written = export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    with zipfile.ZipFile(written.path) as file:
        held = pickle.loads(file.read("diffraction_to_obj/params.dill"))
    said = {each.field_there: each.value_there for each in written.findings}
    assert {key: said[key] for key in ("offset", "max_position_jitter", "intensity_scale", "nphotons")} == {
        "offset": 8, "max_position_jitter": 16, "intensity_scale": 31.25, "nphotons": 1e6,
    }  # fmt: skip
    assert {key: held[key] for key in said if key in held} == {key: said[key] for key in said if key in held}
    converted = convert(read_archive(written.path), tmp_path / "converted")
    assert read_checkpoint(converted.checkpoint).statistics["nphotons"] == 1e6


def test_a_trained_scale_and_probe_survive(tmp_path: Path) -> None:
    network = NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=12.5, intensity_scale_trainable=True)
    log_scale = torch.tensor(math.log(12.5) + 0.125)
    write_run(tmp_path / "a.ckpt", network, log_scale=log_scale)
    archive = read_archive(export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip").path)
    assert archive.intensity_scale == pytest.approx(12.5 * math.exp(0.125), rel=1e-6)
    assert torch.equal(build_network(archive).log_scale, log_scale)


def test_a_single_amplitude_channel_can_be_repeated(tmp_path: Path) -> None:
    network = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, shared_amplitude_head=True)
    model = write_run(tmp_path / "a.ckpt", network).eval()
    plain = export(tmp_path / "a.ckpt", tmp_path / "plain.zip")
    assert any("--widen-amplitude-head" in note for note in plain.notes)
    wide = export(tmp_path / "a.ckpt", tmp_path / "wide.zip", widen_amplitude_head=True)
    archive = read_archive(wide.path)
    assert archive.network == dataclasses.replace(network, shared_amplitude_head=False)
    amplitude, offsets = torch.rand(2, 4, 64, 64), torch.zeros(2, 4, 1, 2)
    with torch.no_grad():
        ours, theirs = model(amplitude, offsets), build_network(archive)(amplitude, offsets)
    # A convolution of more channels may add in another order.
    assert torch.allclose(ours.object, theirs.object, rtol=1e-5, atol=1e-6)


def test_a_weight_that_changes_on_the_way_is_seen(tmp_path: Path) -> None:
    """The comparison above would catch a single changed bit, and two arrays of one shape that are exchanged."""
    network = NetworkSettings(N=64, gridsize=2, n_filters_scale=1)
    model = write_run(tmp_path / "a.ckpt", network)
    archive = read_archive(export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip").path)
    weights = archive.weights
    bit = weights["encoder.0.conv1.kernel"].copy()
    bit.flat[0] = np.nextafter(bit.flat[0], np.float32(math.inf))
    amplitude, phase = (f"{decoder}.0.conv1.kernel" for decoder in ("decoder_amp", "decoder_phase"))
    for wrong in (
        {"encoder.0.conv1.kernel": bit},
        {amplitude: weights[phase], phase: weights[amplitude]},
    ):
        broken = build_network(dataclasses.replace(archive, weights={**weights, **wrong}))
        assert not same_bits(dict(broken.state_dict()), dict(model.state_dict()))


def test_what_no_archive_can_hold_is_refused(tmp_path: Path) -> None:
    network = NetworkSettings(N=64, gridsize=1, n_filters_scale=1)
    modes = torch.from_numpy(np.stack([draw_probe(64, 1), draw_probe(64, 2)]))
    model = PtychoNet(network, modes)
    statistics = {"probe_modes": 2, "one_probe": True}
    write_checkpoint(
        tmp_path / "a.ckpt", settings_of(network), network, statistics, model.state_dict(), overwrite=False
    )
    with pytest.raises(ArchiveError, match="2 modes"):
        export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    assert not (tmp_path / "wts.h5.zip").exists()
    with pytest.raises(ConfigError, match="--overwrite"):
        write_checkpoint(
            tmp_path / "a.ckpt", settings_of(network), network, statistics, model.state_dict(), overwrite=False
        )


def test_float64_weights_are_rounded_and_said_to_be(tmp_path: Path) -> None:
    network = NetworkSettings(N=64, gridsize=1, n_filters_scale=1)
    model = PtychoNet(network, dtype=torch.float64)
    write_checkpoint(tmp_path / "a.ckpt", settings_of(network), network, {}, model.state_dict(), overwrite=False)
    written = export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    assert any("float64" in note for note in written.notes)
    archive = read_archive(written.path)
    assert torch.equal(build_network(archive).encoder[0].conv1.weight, model.encoder[0].conv1.weight.float())


# ------------------------------------------------------------------------------------------------------------- Keras


def keras() -> Any:
    pytest.importorskip("tensorflow", reason="Keras loads the archive here")
    from ptycho_tf_bridge import backend

    return backend.keras()


KERAS_CASES = [
    NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=7.3),
    NetworkSettings(
        N=64, gridsize=2, n_filters_scale=1, probe_big=False, shared_amplitude_head=True, amp_activation="swish"
    ),
    NetworkSettings(N=64, gridsize=1, n_filters_scale=2, pad_object=False, amp_activation="softplus"),
    NetworkSettings(N=128, gridsize=2, n_filters_scale=1, object_big=False, amp_activation="relu"),
    NetworkSettings(N=256, gridsize=1, n_filters_scale=1, intensity_scale=31.25),
]


@pytest.mark.parametrize("network", KERAS_CASES, ids=describe)
def test_keras_loads_the_model_and_gives_the_same_outputs(network: NetworkSettings, tmp_path: Path) -> None:
    module = keras()
    model = write_run(tmp_path / "a.ckpt", network).eval()
    export(tmp_path / "a.ckpt", tmp_path / "wts.h5.zip")
    with zipfile.ZipFile(tmp_path / "wts.h5.zip") as file:
        (tmp_path / "model.keras").write_bytes(file.read("diffraction_to_obj/model.keras"))
    loaded = module.models.load_model(tmp_path / "model.keras")
    archive = read_archive(tmp_path / "wts.h5.zip")
    # The reference takes this list over, in this order.
    for ours, theirs in zip(archive.weights.values(), loaded.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    amplitude = network.intensity_scale * torch.rand(3, network.C, network.N, network.N)
    theirs = [np.moveaxis(each, -1, 1) for each in loaded.predict(np.moveaxis(amplitude.numpy(), 1, -1), verbose=0)]
    with torch.no_grad():
        features = model.encoder(model.normalized_input(amplitude, model.log_scale))
        ours = [model.decoder_amp(features).numpy(), model.decoder_phase(features).numpy()]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        # Twenty convolutions in float32: some tens of units in the last place of the largest value.
        assert np.abs(one - other).max() <= 5e-6 * np.abs(other).max()


@pytest.mark.parametrize("network", KERAS_CASES[:2], ids=describe)
def test_our_keras_reference_agrees_with_the_exported_model(network: NetworkSettings, tmp_path: Path) -> None:
    module = keras()
    from ptycho_tf_bridge.keras_reference import build_reference, run_stages, set_named_weights

    weights = draw_weights(network)
    (tmp_path / "model.keras").write_bytes(write_keras(network, weights))
    loaded = module.models.load_model(tmp_path / "model.keras")
    reference = build_reference(network, draw_probe(network.N))
    set_named_weights(reference, weights)
    amplitude = np.random.default_rng(3).random((2, network.N, network.N, network.C), np.float32)
    seen: dict[str, np.ndarray] = {}

    def watch(stage: str, value: Any) -> Any:
        seen[stage] = np.asarray(value)
        return value

    run_stages(reference, amplitude, np.zeros((2, 1, 2, network.C), np.float32), watch)
    for stage, theirs in zip(
        ("decoder_amp.output", "decoder_phase.output"), loaded.predict(amplitude, verbose=0), strict=True
    ):
        assert np.abs(theirs - seen[stage]).max() <= 1e-6 * np.abs(seen[stage]).max()
    # The reference copies the list into a model of its own, in which it has to mean the same.
    for ours, theirs in zip(reference.get_weights(), loaded.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_the_exported_model_computes_in_float32_under_any_policy(tmp_path: Path) -> None:
    """A program that trains in mixed precision sets a policy for all of its layers."""
    module = keras()
    network = NetworkSettings(N=64, gridsize=1, n_filters_scale=1)
    (tmp_path / "model.keras").write_bytes(write_keras(network, draw_weights(network)))
    before = module.config.dtype_policy()
    module.config.set_dtype_policy("mixed_float16")
    try:
        loaded = module.models.load_model(tmp_path / "model.keras")
    finally:
        module.config.set_dtype_policy(before)
    layers = [layer for layer in loaded.layers if isinstance(layer, module.layers.Conv2D)]
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    assert {str(output.dtype) for output in loaded.outputs} == {"float32"}


def test_keras_opens_the_model_with_pytorch_as_its_backend(tmp_path: Path) -> None:
    keras()
    network = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=2.5)
    (tmp_path / "model.keras").write_bytes(write_keras(network, draw_weights(network)))
    code = (
        "import keras, numpy as np, sys; x = np.random.default_rng(0).random((2, 64, 64, 4), np.float32); "
        "outputs = keras.models.load_model(sys.argv[1]).predict(x, verbose=0); np.savez(sys.argv[2], *outputs)"
    )
    found = {}
    for backend in ("tensorflow", "torch"):
        output = tmp_path / f"{backend}.npz"
        command = [sys.executable, "-c", code, str(tmp_path / "model.keras"), str(output)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"KERAS_BACKEND": backend})
        with np.load(output) as outputs:
            found[backend] = [outputs[name] for name in outputs.files]
    for one, other in zip(found["tensorflow"], found["torch"], strict=True):
        # Twenty convolutions in float32.
        assert np.abs(one - other).max() <= 5e-6 * np.abs(other).max()


def test_keras_names_groups_as_we_do() -> None:
    module = keras()
    kinds = {entry["class_name"] for entry in _entries(KERAS_CASES[0])} - {"GetItem"}
    assert kinds >= {"Conv2D", "MaxPooling2D", "UpSampling2D", "ZeroPadding2D", "Cropping2D", "Rescaling"}
    for kind in (*kinds, "CenterMaskLayer", "IntensityScaler_inv", "PadAndDiffractLayer"):
        assert group_name(kind) == module.src.utils.naming.to_snake_case(kind)


def _entries(network: NetworkSettings) -> list[dict[str, Any]]:
    import json

    with zipfile.ZipFile(io.BytesIO(write_keras(network, draw_weights(network)))) as file:
        entries: list[dict[str, Any]] = json.loads(file.read("config.json"))["config"]["layers"]
        return entries


@pytest.mark.parametrize("network", KERAS_CASES, ids=describe)
def test_convolutions_stand_in_the_order_of_the_weight_table(network: NetworkSettings) -> None:
    order = [entry["name"] for entry in _entries(network) if entry["class_name"] == "Conv2D"]
    assert order == [layer_name(entry.stage) for entry in weight_table(network)]
