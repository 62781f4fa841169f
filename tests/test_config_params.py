"""Settings: what the network can have, and what the error says when it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_torch.config_params import (
    DataConfig,
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


# ------------------------------------------------------------------------------------------------------- singletons


@pytest.fixture
def fresh() -> Iterator[None]:
    """The singletons with their defaults; afterwards they are as they were."""
    before = [(singleton(), dataclasses.asdict(singleton().snapshot())) for singleton in SINGLETONS]
    for singleton, defaults in zip(SINGLETONS, DEFAULTS, strict=True):
        singleton().set_settings(defaults)
    yield
    for singleton, values in before:
        singleton.set_settings(values)


each_singleton = pytest.mark.parametrize(
    ("singleton", "changes"), zip(SINGLETONS, CHANGES, strict=True), ids=lambda value: getattr(value, "__name__", "")
)


@pytest.mark.usefixtures("fresh")
@each_singleton
def test_every_call_returns_the_same_object_and_resets_nothing(singleton: Any, changes: dict[str, object]) -> None:
    ((name, value),) = changes.items()
    singleton().add(name, value)
    assert singleton() is singleton()
    assert singleton().get(name) == value


@pytest.mark.usefixtures("fresh")
def test_the_three_singletons_are_three() -> None:
    assert len({id(singleton()) for singleton in SINGLETONS}) == 3
    DataConfig().add("N", 128)
    assert ModelConfig().snapshot() == ModelSettings()
    assert TrainingConfig().snapshot() == TrainingSettings()


@pytest.mark.usefixtures("fresh")
@each_singleton
def test_the_caller_s_dictionary_is_neither_changed_nor_kept(singleton: Any, changes: dict[str, object]) -> None:
    given_values, ((name, value),) = dict(changes), changes.items()
    singleton().set_settings(given_values)
    before = singleton().snapshot()
    assert given_values == changes
    given_values[name] = None
    assert singleton().snapshot() == before
    singleton().add(name, value)
    assert given_values == {name: None}


@pytest.mark.usefixtures("fresh")
@each_singleton
def test_what_set_settings_leaves_out_has_its_default(singleton: Any, changes: dict[str, object]) -> None:
    default = singleton().snapshot()
    singleton().set_settings(changes)
    assert singleton().snapshot() == dataclasses.replace(default, **changes)
    singleton().set_settings({})
    assert singleton().snapshot() == default


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_the_default_dictionaries_cannot_be_changed(defaults: Any) -> None:
    with pytest.raises(TypeError):
        defaults["N"] = 128
    assert "N" not in defaults or defaults["N"] == 64


@pytest.mark.usefixtures("fresh")
def test_a_snapshot_does_not_follow_later_changes() -> None:
    snapshot, every = DataConfig().snapshot(), Settings.current()
    DataConfig().add("N", 128)
    assert snapshot.N == every.data.N == 64
    assert Settings.current().data.N == 128


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("singleton", "name", "value", "message"),
    [
        (ModelConfig, "object_bigg", True, "'object_bigg' of ModelSettings; did you mean 'object_big'"),
        (TrainingConfig, "max_epoch", 3, "did you mean 'max_epochs'"),
        (DataConfig, "grid_size", 2, "did you mean 'gridsize'"),
        (DataConfig, "zzz", 2, "known settings: K, N, detector_bin"),
        (TrainingConfig, "max_epochs", "3", "max_epochs = '3' is str; expected int"),
        (TrainingConfig, "max_epochs", 0, "max_epochs = 0; expected 1 or more"),
        (TrainingConfig, "lr_gamma", 2.0, "lr_gamma = 2.0; expected above 0, at most 1"),
        (TrainingConfig, "validation_fraction", 1, "expected 0 or more, below 1"),
        (TrainingConfig, "device", "gpu", "choose one of auto, cpu, cuda, mps"),
        (TrainingConfig, "devices", 0, "expected 1 or more, or -1 for all GPUs"),
        (TrainingConfig, "learning_rate", math.inf, "not a finite number"),
        (TrainingConfig, "weight_decay", 0.1, "belongs to optimizer = 'adamw'"),
        (TrainingConfig, "tv_weight", 0.1, "realspace_weight above 0"),
        (ModelConfig, "loss_function", "Poison", "choose one of Poisson, MAE"),
        (ModelConfig, "probe_scale", 0, "probe_scale = 0; expected above 0"),
        (ModelConfig, "probe_mask", None, "probe_mask = None is NoneType; expected bool"),
        (DataConfig, "N", 63, "N = 63; expected an even number"),
        (DataConfig, "nphotons", 0.0, "expected a number above 0, or None"),
        (DataConfig, "group_seed", 2**32, "expected 0 … 2³² − 1"),
        (DataConfig, "n_groups", 9, "n_groups belongs to group_sampler = 'reference'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_changes_nothing(
    singleton: Any, name: str, value: object, message: str
) -> None:
    before = singleton().snapshot()
    with pytest.raises(ConfigError, match=message):
        singleton().add(name, value)
    with pytest.raises(ConfigError, match=message):
        singleton().set_settings({name: value})
    assert singleton().snapshot() is before


@pytest.mark.usefixtures("fresh")
def test_set_settings_takes_all_or_nothing() -> None:
    DataConfig().add("gridsize", 3)
    with pytest.raises(ConfigError, match="expected int"):
        DataConfig().set_settings({"N": 128, "K": "six"})
    assert (DataConfig().get("N"), DataConfig().get("gridsize")) == (64, 3)


def test_get_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gridsize'"):
        DataConfig().get("grid_size")


# --------------------------------------------------------------------------------------------------- all settings


def test_override_finds_the_owner_of_each_name() -> None:
    before = Settings()
    after = before.override({"loss_function": "MAE", "max_epochs": 3, "N": 128, "gridsize": 1})
    assert (after.model.loss_function, after.training.max_epochs, after.data.N, after.data.gridsize) == (
        "MAE", 3, 128, 1,
    )  # fmt: skip
    assert before == Settings()
    assert after == Settings(
        ModelSettings(loss_function="MAE"), TrainingSettings(max_epochs=3), DataSettings(N=128, gridsize=1)
    )
    assert before.override({}) == before


def test_override_sets_names_that_need_each_other_at_once() -> None:
    after = Settings().override({"n_groups": 9, "group_sampler": "reference"})
    assert after.data == DataSettings(n_groups=9, group_sampler="reference")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epoch": 3}, "'max_epoch'; did you mean 'max_epochs'"),
        ({"zzz": 3}, "known settings: K, N, accumulate_grad_batches"),
        ({"max_epochs": 0}, "expected 1 or more"),
        ({"training": {}}, "Unknown setting 'training'"),
    ],
)
def test_override_names_what_does_not_fit(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings().override(values)


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ({"modell": {}}, "Unknown section 'modell' of the configuration; known sections: data, model, training"),
        ({"data": 64}, "Section 'data' of the configuration is int"),
        ({"data": {"max_epochs": 3}}, "Unknown setting 'max_epochs' of DataSettings"),
        ({"data": {"N": 64.0}}, "expected int"),
    ],
)
def test_from_dict_names_what_does_not_fit(owners: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict(owners)


def test_from_dict_takes_the_defaults_for_what_is_missing() -> None:
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
def test_settings_survive_the_way_through_plain_values(every: Settings) -> None:
    plain = every.as_dict()
    assert Settings.from_dict(plain) == every
    names = {name: value for values in plain.values() for name, value in values.items()}
    assert Settings().override(names) == every


# ------------------------------------------------------------------------------------------------ what data decide


def test_the_network_takes_from_the_data_what_is_not_set() -> None:
    network = ModelSettings(n_filters_scale=1, probe_mask=True).network(
        N=128, gridsize=2, nphotons=1e6, offset=7, max_position_jitter=11
    )
    assert network == NetworkSettings(
        N=128,
        gridsize=2,
        n_filters_scale=1,
        probe_mask=True,
        offset=7,
        max_position_jitter=11,
        intensity_scale=1000 / 64,
    )


def test_the_network_keeps_what_is_set() -> None:
    chosen = ModelSettings(offset=0, max_position_jitter=0, intensity_scale=3.0)
    network = chosen.network(N=64, gridsize=2, nphotons=1e6, offset=7, max_position_jitter=11)
    assert (network.offset, network.max_position_jitter, network.intensity_scale) == (0, 0, 3.0)


def test_a_network_that_cannot_be_is_refused_when_it_is_completed() -> None:
    with pytest.raises(ConfigError, match="choose 64, 128 or 256"):
        ModelSettings().network(N=96, gridsize=1, nphotons=1e6, offset=4, max_position_jitter=10)
    with pytest.raises(ConfigError, match="REF-03"):
        ModelSettings(offset=5).network(N=64, gridsize=2, nphotons=1e6, offset=4, max_position_jitter=10)


@pytest.mark.parametrize(
    ("loss_function", "given_weights", "expected"),
    [
        ("Poisson", {}, (1.0, 0.0)),
        ("MAE", {}, (0.0, 1.0)),
        ("Poisson", {"mae_weight": 0.5}, (1.0, 0.5)),
        ("MAE", {"nll_weight": 2.0, "mae_weight": 0.0}, (2.0, 0.0)),
    ],
)
def test_a_loss_weight_that_is_set_wins(loss_function: Any, given_weights: Any, expected: tuple[float, float]) -> None:
    weights = TrainingSettings(**given_weights).loss_weights(loss_function)
    assert (weights.nll_weight, weights.mae_weight) == expected


def test_patterns_that_would_count_for_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="both 0"):
        TrainingSettings(nll_weight=0.0).loss_weights("Poisson")
