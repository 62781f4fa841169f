"""Settings: what the network can have, and what the error says when it cannot."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"N": 96}, "choose 64, 128 or 256"),
        ({"N": 64.0}, "expected int"),
        ({"gridsize": 0}, "at least 1 × 1"),
        ({"gridsize": True}, "expected int"),
        ({"n_filters_scale": 0}, "expected 1 or more"),
        ({"amp_activation": "tanh"}, "sigmoid, swish, softplus, relu"),
        ({"gaussian_smoothing_sigma": -1.0}, "negative"),
        ({"gaussian_smoothing_sigma": float("nan")}, "not a finite number"),
        ({"offset": -4}, "0 or more pixels"),
        ({"max_position_jitter": 9}, "REF-03"),
        ({"gridsize": 2, "offset": 5}, "change offset or max_position_jitter"),
        ({"intensity_scale": 0.0}, "above 0"),
        ({"object_big": 1}, "expected bool"),
        ({"object_big": False, "shared_amplitude_head": True}, "needs object_big"),
    ],
)
def test_a_setting_the_network_cannot_have_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkSettings(**wrong)  # type: ignore[arg-type]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gridsize'"):
        NetworkSettings.check_names({"grid_size": 2})
    with pytest.raises(ConfigError, match="known settings"):
        NetworkSettings.check_names({"zzz": 2})


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NetworkSettings().N = 128  # type: ignore[misc]


def test_a_negative_loss_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="tv_weight is negative"):
        LossWeights(tv_weight=-1.0)


@given(
    N=st.sampled_from([64, 128, 256]),
    gridsize=st.integers(1, 5),
    offset=st.integers(0, 20),
    jitter=st.integers(0, 30),
    object_big=st.booleans(),
)
def test_the_canvas_is_centred_or_refused(N: int, gridsize: int, offset: int, jitter: int, object_big: bool) -> None:
    total = (gridsize - 1) * offset + jitter
    settings = {"N": N, "gridsize": gridsize, "offset": offset, "max_position_jitter": jitter, "object_big": object_big}
    if object_big and total % 2:
        with pytest.raises(ConfigError):
            NetworkSettings(**settings)  # type: ignore[arg-type]
        return
    found = NetworkSettings(**settings)  # type: ignore[arg-type]
    assert found.canvas_px - N == 2 * found.padding_px
    assert 0 <= total - (found.canvas_px - N) <= 1
