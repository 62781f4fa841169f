"""Settings: what the network can have, and what the error says when it cannot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_torch.config_params import (
    DataConfig,
    DataSettings,
    LossWeights,
    ModelConfig,
    ModelSettings,
    NetworkSettings,
    Settings,
    TrainingConfig,
    TrainingSettings,
    data_config_default,
    model_config_default,
    training_config_default,
)
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
        NetworkSettings.check_names({"gridsze": 2})
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


SINGLETONS = (
    (ModelConfig, model_config_default, "n_filters_scale", 3, "n_filter_scale"),
    (TrainingConfig, training_config_default, "max_epochs", 7, "max_epoch"),
    (DataConfig, data_config_default, "gridsize", 3, "gridsze"),
)


@pytest.fixture
def _restored() -> Iterator[None]:
    before = [(kind, dataclasses.asdict(kind().snapshot())) for kind, *_ in SINGLETONS]
    yield
    for kind, values in before:
        kind().set_settings(values)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(("kind", "defaults", "name", "value", "misspelt"), SINGLETONS)
def test_a_singleton_is_one_object_that_checks_what_it_is_given(
    kind: type[ModelConfig], defaults: dict[str, object], name: str, value: int, misspelt: str
) -> None:
    assert kind() is kind()
    kind().set_settings(defaults)
    frozen = kind().snapshot()
    kind().add(name, value)
    assert kind().get(name) == value
    assert getattr(frozen, name) == defaults[name]
    for wrong, message in ((misspelt, f"did you mean {name!r}"), ("zzz", "known settings")):
        with pytest.raises(ConfigError, match=message):
            kind().add(wrong, 1)
        with pytest.raises(ConfigError, match=message):
            kind().get(wrong)
    for bad in ("three", -3, True, 2.5):
        with pytest.raises(ConfigError, match="expected"):
            kind().add(name, bad)
    with pytest.raises(ConfigError, match="expected"):
        kind().set_settings({name: -3})
    assert kind().get(name) == value


@pytest.mark.usefixtures("_restored")
def test_setting_neither_changes_nor_keeps_the_caller_s_dictionary() -> None:
    given = dict(training_config_default) | {"max_epochs": 4}
    before = dict(given)
    TrainingConfig().set_settings(given)
    TrainingConfig().add("max_epochs", 5)
    assert given == before
    given["max_epochs"] = 6
    assert TrainingConfig().get("max_epochs") == 5
    with pytest.raises(TypeError):
        training_config_default["max_epochs"] = 1  # type: ignore[index]


def test_settings_survive_the_way_through_plain_values() -> None:
    settings = Settings().override({"max_epochs": 3, "N": 128, "loss_function": "MAE", "offset": 5})
    assert Settings.from_dict(settings.as_dict()) == settings
    assert (settings.training.max_epochs, settings.data.N, settings.model.offset) == (3, 128, 5)
    with pytest.raises(ConfigError, match="Unknown section 'modell'"):
        Settings.from_dict({"modell": {}})
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        settings.override({"learnin_rate": 1.0})


def test_what_a_user_sets_of_the_network_stays_and_the_rest_follows_from_the_data() -> None:
    derived = {"N": 64, "gridsize": 2, "nphotons": 1024.0, "offset": 8, "max_position_jitter": 20}
    network = ModelSettings().network(**derived)  # type: ignore[arg-type]
    assert (network.offset, network.max_position_jitter, network.intensity_scale) == (8, 20, 1.0)
    network = ModelSettings(offset=4, max_position_jitter=10, intensity_scale=7.0).network(**derived)  # type: ignore[arg-type]
    assert (network.offset, network.max_position_jitter, network.intensity_scale) == (4, 10, 7.0)


def test_the_loss_function_gives_the_weights_that_are_not_set() -> None:
    assert TrainingSettings().loss_weights("Poisson") == LossWeights(nll_weight=1.0, mae_weight=0.0)
    assert TrainingSettings().loss_weights("MAE") == LossWeights(nll_weight=0.0, mae_weight=1.0)
    assert TrainingSettings(mae_weight=0.5).loss_weights("Poisson") == LossWeights(nll_weight=1.0, mae_weight=0.5)
    with pytest.raises(ConfigError, match="both 0"):
        TrainingSettings(nll_weight=0.0).loss_weights("Poisson")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "auto, cpu, cuda, mps"),
        ({"devices": 0}, "-1 for all"),
        ({"weight_decay": 0.1}, "adamw"),
        ({"tv_weight": 0.1}, "realspace_weight"),
        ({"early_stop_monitor": "val_loss", "validation_fraction": 0.0}, "validation_fraction"),
        ({"experiment_name": 3}, "expected str"),
    ],
)
def test_training_that_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(("kind", "defaults", "name", "value", "misspelt"), SINGLETONS)
def test_what_set_settings_leaves_out_has_its_default(
    kind: Any, defaults: Mapping[str, object], name: str, value: int, misspelt: str
) -> None:
    kind().set_settings({name: value})
    assert dataclasses.asdict(kind().snapshot()) == {**defaults, name: value}
    kind().set_settings({})
    assert dataclasses.asdict(kind().snapshot()) == defaults


@pytest.mark.usefixtures("_restored")
def test_one_singleton_is_no_other_and_a_snapshot_does_not_follow() -> None:
    for kind, defaults, *_ in SINGLETONS:
        kind().set_settings(defaults)
    before = Settings.current()
    assert before == Settings()
    DataConfig().add("N", 128)
    assert before == Settings()
    assert Settings.current() == Settings(data=DataSettings(N=128))


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (ModelConfig, "object.big", False, "'object.big' of ModelSettings; .*here: object_big"),
        (ModelConfig, "probe_scale", 0, "probe_scale = 0; expected above 0"),
        (ModelConfig, "probe_mask", None, "probe_mask = None is NoneType; expected bool"),
        (ModelConfig, "loss_function", "Poison", "choose one of Poisson, MAE"),
        (TrainingConfig, "max_epochs", "3", "max_epochs = '3' is str; expected int"),
        (TrainingConfig, "lr_gamma", 2.0, "lr_gamma = 2.0; expected above 0, at most 1"),
        (TrainingConfig, "validation_fraction", 1, "expected 0 or more, below 1"),
        (TrainingConfig, "learning_rate", math.inf, "not a finite number"),
        (TrainingConfig, "learning_rate", 10**400, "not a finite number"),
        (DataConfig, "grid_size", 2, "here: gridsize"),
        (DataConfig, "N", 63, "N = 63; expected an even number"),
        (DataConfig, "nphotons", 0.0, "expected a number above 0, or None"),
        (DataConfig, "group_seed", 2**32, "expected 0 … 2³² − 1"),
        (DataConfig, "n_groups", 9, "n_groups belongs to group_sampler = 'reference'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_value_that_does_not_fit_is_named_and_changes_nothing(
    kind: Any, name: str, value: object, message: str
) -> None:
    before = kind().snapshot()
    with pytest.raises(ConfigError, match=message):
        kind().add(name, value)
    # Values that would fit do not get in beside the one that does not.
    fitting = {"loss_function": "MAE"} if kind is ModelConfig else {"max_epochs": 9} if kind is TrainingConfig else {}
    with pytest.raises(ConfigError, match=message):
        kind().set_settings(fitting | {name: value})
    assert kind().snapshot() is before


def test_override_finds_the_owner_of_each_name() -> None:
    before = Settings()
    after = before.override({"loss_function": "MAE", "max_epochs": 3, "N": 128, "gridsize": 1})
    assert after == Settings(
        ModelSettings(loss_function="MAE"), TrainingSettings(max_epochs=3), DataSettings(N=128, gridsize=1)
    )
    assert before == Settings()
    assert before.override({}) == before


def test_override_sets_names_that_need_each_other_at_once() -> None:
    after = Settings().override({"n_groups": 9, "group_sampler": "reference"})
    assert after.data == DataSettings(n_groups=9, group_sampler="reference")


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ({"data": 64}, "Section 'data' of the configuration is int"),
        ({"data": {"max_epochs": 3}}, "Unknown setting 'max_epochs' of DataSettings"),
        ({"data": {"N": 64.0}}, "expected int"),
    ],
)
def test_plain_values_that_do_not_fit_are_refused(owners: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict(owners)


def test_plain_values_that_are_missing_have_their_defaults() -> None:
    assert Settings.from_dict({}) == Settings()
    assert Settings.from_dict({"data": {"N": 128}}) == Settings(data=DataSettings(N=128))


positive = st.floats(0, 1e9, exclude_min=True)
every_settings = st.builds(
    Settings,
    st.builds(
        ModelSettings,
        object_big=st.booleans(),
        probe_scale=positive,
        amp_activation=st.sampled_from(["sigmoid", "swish", "softplus", "relu"]),
        offset=st.none() | st.integers(0, 40),
        intensity_scale=st.none() | positive,
    ),
    st.builds(
        TrainingSettings,
        devices=st.just(-1) | st.integers(1, 8),
        learning_rate=positive,
        gradient_clip_val=st.none() | positive,
        validation_fraction=st.floats(0, 1, exclude_max=True),
        experiment_name=st.text(max_size=9),
        run_name=st.none() | st.text(max_size=9),
    ),
    st.builds(
        DataSettings,
        N=st.integers(1, 200).map(lambda half: 2 * half),
        gridsize=st.integers(1, 5),
        group_sampler=st.just("reference"),
        n_groups=st.none() | st.integers(1, 999),
        nphotons=st.none() | positive,
    ),
)


@settings(max_examples=25)
@given(every=every_settings)
def test_any_settings_survive_the_way_through_plain_values(every: Settings) -> None:
    plain = every.as_dict()
    assert Settings.from_dict(plain) == every
    names = {name: value for values in plain.values() for name, value in values.items()}
    assert Settings().override(names) == every


def test_the_completed_network_has_every_setting_of_the_model() -> None:
    assert not NetworkSettings().probe_mask
    chosen = ModelSettings(n_filters_scale=1, probe_mask=True, amp_activation="relu", probe_trainable=True)
    network = chosen.network(N=128, gridsize=3, nphotons=1e6, offset=7, max_position_jitter=12)
    for name in NetworkSettings.field_names():
        if getattr(chosen, name, None) is not None:
            assert getattr(network, name) == getattr(chosen, name), name
    assert (network.N, network.gridsize, network.offset, network.max_position_jitter) == (128, 3, 7, 12)
    assert network.intensity_scale == 1000 / 64
    # A zero that is set is no value that is missing.
    zeros = ModelSettings(offset=0, max_position_jitter=0)
    network = zeros.network(N=64, gridsize=2, nphotons=1e6, offset=7, max_position_jitter=12)
    assert (network.offset, network.max_position_jitter) == (0, 0)


def test_a_network_that_cannot_be_is_refused_when_it_is_completed() -> None:
    with pytest.raises(ConfigError, match="choose 64, 128 or 256"):
        ModelSettings().network(N=96, gridsize=1, nphotons=1e6, offset=4, max_position_jitter=10)
    with pytest.raises(ConfigError, match="REF-03"):
        ModelSettings(offset=5).network(N=64, gridsize=2, nphotons=1e6, offset=4, max_position_jitter=10)
