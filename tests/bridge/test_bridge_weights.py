"""The weight table: Keras' order, both directions, and a name for whatever does not fit."""

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
