"""The weight table: Keras' order, both directions, and a name for whatever does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from ptycho_tf_bridge.errors import WeightMapError
from ptycho_tf_bridge.weights import (
    tensorflow_shapes,
    to_tensorflow,
    to_torch,
    torch_shapes,
    weight_table,
)
from ptycho_torch.config_params import NetworkSettings

RECORDING = Path(__file__).parents[2] / "conformance" / "recordings" / "n64_g2_base.npz"

# (settings, convolutions, parameters) measured on the reference, n_filters_scale 2.
MEASURED = [
    ({"N": 64, "gridsize": 1}, 22, 2_331_772),
    ({"N": 64, "gridsize": 2}, 22, 2_340_208),
    ({"N": 128, "gridsize": 1}, 28, 4_661_212),
    ({"N": 128, "gridsize": 2}, 28, 4_667_056),
    ({"N": 256, "gridsize": 1}, 34, 12_912_268),
    ({"N": 64, "gridsize": 2, "pad_object": False}, 20, 2_405_000),
    ({"N": 64, "gridsize": 2, "probe_big": False}, 16, 2_257_000),
    ({"N": 64, "gridsize": 2, "object_big": False}, 22, 2_333_500),
]


def _weights(settings, dtype="float32"):
    rng = np.random.default_rng(11)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in tensorflow_shapes(settings).items()}


@pytest.fixture
def settings():
    return NetworkSettings(N=64, gridsize=2, n_filters_scale=1)


@pytest.fixture
def weights(settings):
    return _weights(settings)


@pytest.mark.parametrize(("changes", "convolutions", "parameters"), MEASURED)
def test_the_table_has_the_reference_s_convolutions_and_parameters(changes, convolutions, parameters):
    settings = NetworkSettings(**changes)
    assert len(weight_table(settings)) == convolutions
    assert sum(int(np.prod(shape)) for shape in tensorflow_shapes(settings).values()) == parameters
    assert sum(int(np.prod(shape)) for shape in torch_shapes(settings).values()) == parameters


def test_the_order_is_that_of_the_reference_s_saved_model():
    table = weight_table(NetworkSettings(N=64, gridsize=2))
    blocks = [f"{i}.conv{k}" for i in range(2) for k in (1, 2)]
    roles = [*blocks, "outer.conv1", "outer.conv2", "outer.head", "central"]
    encoder = [f"encoder.{i}.conv{k}" for i in range(3) for k in (1, 2)]
    assert [entry.stage for entry in table] == encoder + [
        f"decoder_{decoder}.{role}" for role in roles for decoder in ("amp", "phase")
    ]
    # Kernel shapes by row of the archive, as measured.
    assert [entry.kernel_shape for entry in table[6:]] == [
        (3, 3, *ends)
        for ends in ((256, 128), (128, 128), (128, 64), (64, 64), (4, 64), (64, 64), (64, 4), (60, 4))
        for _ in range(2)
    ]


def test_an_older_archive_has_one_amplitude_channel():
    shapes = tensorflow_shapes(NetworkSettings(N=64, gridsize=2, shared_amplitude_head=True))
    assert shapes["decoder_amp.central.kernel"] == (3, 3, 60, 1)
    assert shapes["decoder_amp.outer.head.bias"] == (1,)
    assert shapes["decoder_phase.central.kernel"] == (3, 3, 60, 4)


def test_the_table_has_every_weight_of_a_recording():
    with np.load(RECORDING) as recording:
        config = json.loads(str(recording["config"]))
        names = [key.removeprefix("weight/") for key in recording.files if key.startswith("weight/")]
        found = {name: recording[f"weight/{name}"].shape for name in names}
    known = {name: value for name, value in config.items() if name in NetworkSettings.field_names()}
    assert tensorflow_shapes(NetworkSettings(**known)) == found


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_round_trip_is_bit_exact(settings, dtype):
    weights = _weights(settings, dtype)
    state = to_torch(weights, settings)
    assert {name: array.shape for name, array in state.items()} == torch_shapes(settings)
    back = to_tensorflow(state, settings)
    assert list(back) == list(weights)
    for name, array in back.items():
        assert array.dtype == weights[name].dtype
        assert array.flags["C_CONTIGUOUS"]
        assert array.tobytes() == weights[name].tobytes()


def test_a_kernel_element_lands_on_its_row_column_and_channels(settings, weights):
    state = to_torch(weights, settings)
    theirs, ours = weights["encoder.0.conv2.kernel"], state["encoder.0.conv2.weight"]
    assert ours[5, 7, 2, 1] == theirs[2, 1, 7, 5]
    # Broken subjects: this kernel is square, so a swap of channels or of rows and columns keeps its shape.
    for axes in ((2, 3, 0, 1), (3, 2, 1, 0)):
        broken = theirs.transpose(axes)
        assert broken.shape == ours.shape
        assert not np.array_equal(broken, ours)


def test_a_renamed_weight_is_named_with_the_nearest_one(settings, weights):
    weights["decoder_amp.outer.haed.kernel"] = weights.pop("decoder_amp.outer.head.kernel")
    hint = r"outer\.haed\.kernel'.*Did you mean 'decoder_amp\.outer\.head\.kernel'"
    with pytest.raises(WeightMapError, match=hint):
        to_torch(weights, settings)


def test_a_missing_bias_is_named_with_its_shape(settings, weights):
    del weights["decoder_phase.central.bias"]
    message = r"decoder_phase\.central\.bias' is missing: expected shape \(4,\)"
    with pytest.raises(WeightMapError, match=message):
        to_torch(weights, settings)


def test_a_kernel_in_torch_s_layout_is_named_with_both_shapes(settings, weights):
    weights["encoder.0.conv1.kernel"] = weights["encoder.0.conv1.kernel"].transpose(3, 2, 0, 1)
    message = r"encoder\.0\.conv1\.kernel' has shape \(32, 4, 3, 3\); expected \(3, 3, 4, 32\)"
    with pytest.raises(WeightMapError, match=message):
        to_torch(weights, settings)


def test_the_way_back_names_what_does_not_fit_too(settings, weights):
    state = to_torch(weights, settings)
    with pytest.raises(WeightMapError, match=r"PyTorch weight 'log_scale' of shape \(\) has no place"):
        to_tensorflow({**state, "log_scale": np.zeros(())}, settings)
    with pytest.raises(WeightMapError, match=r"'encoder\.0\.conv1\.weight' is missing"):
        to_tensorflow({k: v for k, v in state.items() if k != "encoder.0.conv1.weight"}, settings)


def test_weights_of_another_configuration_are_refused(weights):
    other = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, probe_big=False)
    with pytest.raises(WeightMapError, match="has no place in this network"):
        to_torch(weights, other)
