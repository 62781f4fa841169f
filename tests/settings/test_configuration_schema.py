"""The configuration schema says what the code does: names, owners, types, defaults, choices, and ranges by trial."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonschema
import pytest

from ptycho_torch.config_params import DataSettings, ModelSettings, TrainingSettings
from ptycho_torch.contracts.config_schema import (
    CONFIGURATION_FILE,
    ConfigurationSchema,
    Setting,
    hint,
    load_schema,
    parse_schema,
)
from ptycho_torch.contracts.contract import SpecError, read_yaml, specs_dir
from ptycho_torch.errors import ConfigError

OWNERS: Mapping[str, Any] = {"model": ModelSettings, "training": TrainingSettings, "data": DataSettings}
SETTINGS = list(load_schema().settings.values())
NUMBERS = [setting for setting in SETTINGS if setting.type in ("int", "float")]

# What the other sides have, from their sources (dataclasses: without the section, because some fields are in several).
TENSORFLOW = {
    "model": """N gridsize n_filters_scale model_type architecture fno_modes fno_width fno_blocks fno_cnn_blocks
        learned_input_channels max_hidden_channels resnet_width fno_input_transform generator_output_mode amp_activation
        object_big probe_big probe_mask probe_mask_sigma probe_mask_diameter pad_object probe_scale
        gaussian_smoothing_sigma""",
    "training": """model train_data_file test_data_file batch_size nepochs mae_weight nll_weight realspace_mae_weight
        realspace_weight nphotons n_groups n_images n_subsample subsample_seed neighbor_count enable_oversampling
        neighbor_pool_size positions_provided probe_trainable intensity_scale_trainable output_dir sequential_sampling
        backend torch_loss_mode torch_mae_pred_l2_match_target gradient_clip_val gradient_clip_algorithm optimizer
        momentum weight_decay adam_beta1 adam_beta2 scheduler lr_warmup_epochs lr_min_ratio plateau_factor
        plateau_patience plateau_min_lr plateau_threshold data_source""",
    "inference": """model model_path test_data_file n_groups n_images n_subsample subsample_seed neighbor_count
        enable_oversampling neighbor_pool_size debug output_dir backend""",
    "execution": """accelerator devices strategy deterministic precision gradient_clip_val gradient_clip_algorithm
        accum_steps num_workers pin_memory persistent_workers prefetch_factor learning_rate scheduler
        enable_progress_bar enable_checkpointing checkpoint_save_top_k checkpoint_monitor_metric checkpoint_mode
        early_stop_patience logger_backend recon_log_every_n_epochs recon_log_num_patches recon_log_fixed_indices
        recon_log_stitch recon_log_max_stitch_samples ffno_encoder_blocks ffno_encoder_modes ffno_encoder_share_weights
        ffno_encoder_gate_init ffno_encoder_norm ffno_encoder_mlp_ratio spectral_bottleneck_blocks
        spectral_bottleneck_modes spectral_bottleneck_share_weights spectral_bottleneck_gate_init
        spectral_bottleneck_gate_mode inference_batch_size middle_trim pad_eval""",
}
LEGACY = {
    "N": 128, "gridsize": 2, "n_filters_scale": 2, "amp_activation": "sigmoid", "object.big": True, "probe.big": False,
    "probe.mask": True, "pad_object": True, "probe_scale": 10.0, "gaussian_smoothing_sigma": 0.0, "batch_size": 16,
    "nepochs": 60, "mae_weight": 0, "nll_weight": 1, "realspace_weight": 0, "nphotons": 1e9, "probe.trainable": False,
    "intensity_scale.trainable": False, "offset": 4, "max_position_jitter": 10, "tv_weight": 0.0, "npseed": 42,
}  # fmt: skip
LEGACY_ONLY = """model_type realspace_mae_weight positions.provided output_prefix outer_offset_train outer_offset_test
    big_gridsize sim_jitter_scale default_probe_scale nimgs_train nimgs_test data_source set_phi label size h5_path
    use_xla_translate use_xla_compile probe timestamp bigN debug model_path train_data_file_path test_data_file_path
    _version object_layout training_canvas training_patch_weighting"""
SEED = {
    "data.nphotons": 1e5, "data.N": 128, "data.K": 6, "data.n_subsample": 10, "data.grid_size": 2,
    "data.probe_dir_get": True, "data.normalize": True, "model.intensity_scale_trainable": False,
    "model.intensity_scale": 15000.0, "model.max_position_jitter": 10, "model.n_filters_scale": 2,
    "model.object.big": False, "model.probe.big": True, "model.offset": 4, "model.loss_function": "MAE",
    "training.device": "cuda", "training.strategy": "ddp",
}  # fmt: skip
SEED_ONLY = "data.C data.probes data.n_images training.nll"


def named(setting: Setting) -> str:
    return setting.name


@pytest.fixture
def content() -> Any:
    return copy.deepcopy(read_yaml(CONFIGURATION_FILE))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((specs_dir() / "schema" / "configuration.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def entry(content: Any, name: str) -> Any:
    return next(each for each in content["settings"] if each["name"] == name)


# --------------------------------------------------------------------------------------------------------- the file


def test_the_file_follows_its_json_schema(content: Any, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("N", {"owner": "anyone"}),
        ("N", {"type": "integer"}),
        ("N", {"default": None}),
        ("N", {"default": 64.5}),
        ("N", {"above": 0}),
        ("N", {"tensor_flow": "model.N"}),
        ("N", {"there": {"tensorflow": "N"}}),
        ("N", {"choices": ["64", "128"]}),
        ("N", {"meaning": "Side"}),
        ("offset", {"none": ""}),
        ("scheduler", {"minimum": 0}),
        ("normalize", {"default": 1}),
        ("normalize", {"optional": True, "none": "unknown"}),
    ],
)
def test_a_field_that_is_wrong_breaks_the_json_schema(content: Any, validator: Any, name: str, change: Any) -> None:
    entry(content, name).update(change)
    assert not validator.is_valid(content)


def test_a_setting_that_may_be_none_says_what_that_means(content: Any, validator: Any) -> None:
    del entry(content, "offset")["none"]
    assert not validator.is_valid(content)


def test_a_name_that_is_there_twice_is_refused(content: Any) -> None:
    content["settings"].append(entry(content, "N"))
    with pytest.raises(SpecError, match="'N' is there twice"):
        parse_schema(content)


def test_a_counterpart_that_is_there_twice_is_refused(content: Any) -> None:
    entry(content, "K")["there"]["tensorflow"] = "model.N"
    with pytest.raises(SpecError, match=r"'model\.N' of tensorflow is there twice"):
        parse_schema(content)


def test_a_name_with_two_meanings_is_refused(content: Any) -> None:
    content["only_there"].append({"source": "torch", "names": ["training.nll"], "here": "nll_weight", "reason": "—"})
    with pytest.raises(SpecError, match=r"'training\.nll' has two meanings"):
        parse_schema(content)


@pytest.mark.parametrize("where", ["needs", "here"])
def test_a_reference_to_no_setting_is_refused(content: Any, where: str) -> None:
    if where == "needs":
        entry(content, "n_groups")["needs"] = {"sampler": "reference"}
    else:
        content["only_there"][0]["here"] = "sampler"
    with pytest.raises(SpecError, match="'sampler', which is no setting"):
        parse_schema(content)


def test_the_schema_cannot_be_changed() -> None:
    schema = load_schema()
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.settings["N"].default = 128  # type: ignore[misc]
    with pytest.raises(TypeError):
        schema.settings["N"].there["tensorflow"] = "N"  # type: ignore[index]


# --------------------------------------------------------------------------------------------------------- the code


def test_names_and_owners_are_those_of_the_code() -> None:
    ours = {(owner, name) for owner, kind in OWNERS.items() for name in kind.field_names()}
    assert {(setting.owner, setting.name) for setting in SETTINGS} == ours
    assert {owner: len(load_schema().of(owner)) for owner in OWNERS} == {
        owner: len(dataclasses.fields(kind)) for owner, kind in OWNERS.items()
    }


def test_a_name_has_one_owner() -> None:
    names = [name for kind in OWNERS.values() for name in kind.field_names()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_type_choices_and_default_are_those_of_the_code(setting: Setting) -> None:
    kind = OWNERS[setting.owner]
    annotation = get_type_hints(kind)[setting.name]
    alternatives = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    assert (types.NoneType in alternatives) == setting.optional
    (value,) = (each for each in alternatives if each is not types.NoneType)
    choices = get_args(value) if get_origin(value) is Literal else ()
    assert choices == setting.choices
    assert ("str" if choices else value.__name__) == setting.type
    default = getattr(kind(), setting.name)
    assert (type(default), default) == (type(setting.default), setting.default)


def build(setting: Setting, value: object, *, alone: bool = False) -> None:
    """Make the owner's settings with one value; whatever it needs is given unless it stands alone."""
    needs = {} if alone else dict(setting.needs)
    OWNERS[setting.owner](**(needs | {setting.name: value}))


def inside(setting: Setting) -> Iterator[float]:
    """Yield the outermost values that the schema accepts, and a large one where there is no upper bound."""
    whole = setting.type == "int"
    yield from setting.also
    if setting.minimum is not None:
        yield setting.minimum
    if setting.above is not None:
        yield setting.above + 1 if whole else math.nextafter(setting.above, math.inf)
    if setting.maximum is not None:
        yield setting.maximum
    elif setting.below is not None:
        yield setting.below - 1 if whole else math.nextafter(setting.below, -math.inf)
    else:
        yield 10**12 if whole else 1e300


def outside(setting: Setting) -> Iterator[float]:
    """Yield the nearest values that the schema refuses."""
    step = (setting.multiple_of or 1) if setting.type == "int" else 0
    if setting.minimum is not None:
        yield setting.minimum - step if step else math.nextafter(setting.minimum, -math.inf)
    if setting.above is not None:
        yield setting.above
    if setting.maximum is not None:
        yield setting.maximum + step if step else math.nextafter(setting.maximum, math.inf)
    if setting.below is not None:
        yield setting.below
    if setting.multiple_of:
        yield setting.multiple_of + 1
    for value in setting.also:
        yield from (value - 1, value + 1)


@pytest.mark.parametrize("setting", NUMBERS, ids=named)
def test_the_edge_of_a_range_is_accepted_and_the_value_beyond_is_refused(setting: Setting) -> None:
    # Every number has a lower bound, so that none goes untried.
    assert setting.minimum is not None or setting.above is not None
    for value in inside(setting):
        build(setting, value)
    for value in outside(setting):
        with pytest.raises(ConfigError, match=setting.name):
            build(setting, value)


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_a_value_of_another_type_is_refused(setting: Setting) -> None:
    wrong: dict[str, tuple[object, ...]] = {
        "int": (1.0, True, "1"),
        "float": (True, "1", math.nan, math.inf),
        "bool": (1, "true"),
        "str": (1, True),
    }
    for value in (*wrong[setting.type], [], *(() if setting.optional else (None,))):
        with pytest.raises(ConfigError, match=setting.name):
            build(setting, value)
    if setting.optional:
        build(setting, None)


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.choices], ids=named)
def test_every_choice_is_accepted_and_no_other(setting: Setting) -> None:
    for choice in setting.choices:
        build(setting, choice)
    with pytest.raises(ConfigError, match=f"choose one of {', '.join(setting.choices)}"):
        build(setting, "another")


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.needs], ids=named)
def test_a_setting_without_what_it_needs_is_refused(setting: Setting) -> None:
    value = True if setting.type == "bool" else 1
    build(setting, value)
    with pytest.raises(ConfigError, match=setting.name):
        build(setting, value, alone=True)
    build(setting, setting.default, alone=True)


# --------------------------------------------------------------------------------------------------- the other sides


def unexplained(schema: ConfigurationSchema) -> list[str]:
    """Return the settings whose default differs without a reason, or that have a reason without a difference."""
    return [each.name for each in schema.settings.values() if bool(each.differences()) != bool(each.reason)]


def test_every_difference_of_defaults_has_a_reason_and_no_other_setting_has_one() -> None:
    assert unexplained(load_schema()) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pad_object", {"reason": "It is the same everywhere."}),
        ("pad_object", {"defaults_there": {"legacy": False}}),
        ("N", {"reason": ""}),
        ("normalize", {"defaults_there": {"seed": 1}}),
        ("run_name", {"defaults_there": {"seed": ""}}),
    ],
)
def test_a_difference_without_a_reason_is_seen(content: Any, name: str, change: Any) -> None:
    entry(content, name).update(change)
    assert unexplained(parse_schema(content)) == [name]


def names_of(source: str) -> list[str]:
    return list(load_schema().counterparts[source])


def test_every_field_of_the_tensorflow_dataclasses_is_accounted_for() -> None:
    fields = {f"{section}.{name}" for section, names in TENSORFLOW.items() for name in names.split()}
    assert set(names_of("tensorflow")) == fields


def test_every_key_of_the_legacy_dictionary_is_accounted_for() -> None:
    # Fields without a key of their own are copied into the dictionary under their own names.
    copied = {name for names in TENSORFLOW.values() for name in names.split()}
    found, expected = set(names_of("legacy")), {*LEGACY, *LEGACY_ONLY.split(), "intensity_scale"}
    assert expected <= found
    assert found - expected <= copied


def test_every_key_of_the_seed_singletons_is_accounted_for() -> None:
    # A key that is read without a default is none of the default dictionaries.
    assert set(names_of("seed")) == {*SEED, *SEED_ONLY.split(), "model.probe_mask"}


@pytest.mark.parametrize(("source", "defaults"), [("legacy", LEGACY), ("seed", SEED)])
def test_defaults_there_are_those_of_the_sources(source: str, defaults: Mapping[str, object]) -> None:
    named_there = {each.there[source]: each for each in SETTINGS if source in each.there}
    recorded = {key: each.defaults_there[source] for key, each in named_there.items() if source in each.defaults_there}
    assert recorded == defaults


def test_legacy_key_and_dataclass_default_of_a_setting_are_those_of_its_field() -> None:
    schema = load_schema()
    for setting in (each for each in SETTINGS if "tensorflow" in each.there):
        field = schema.reference[setting.there["tensorflow"]]
        assert setting.there.get("legacy", "") == field.legacy
        assert setting.defaults_there["tensorflow"] in (field.default, field.becomes, *setting.values_there.values())
    assert schema.settings["object_big"].there["legacy"] == "object.big"
    assert schema.settings["n_groups"].defaults_there["tensorflow"] == 512
    assert "legacy" not in schema.settings["learning_rate"].there


def test_a_setting_that_is_no_field_of_the_reference_is_refused(content: Any) -> None:
    entry(content, "K")["there"]["tensorflow"] = "training.neighbours"
    with pytest.raises(SpecError, match=r"'training\.neighbours' there, which is no field"):
        parse_schema(content)


def test_a_field_of_the_reference_that_nobody_explains_is_refused(content: Any) -> None:
    content["reference"]["training"]["new_field"] = {"type": "int", "default": 1}
    with pytest.raises(SpecError, match=r"nothing is said about 'training\.new_field'"):
        parse_schema(content)


def test_fields_of_the_reference_are_those_of_its_sources() -> None:
    fields = {f"{section}.{name}" for section, names in TENSORFLOW.items() for name in names.split()}
    assert set(load_schema().reference) == fields


def test_values_there_are_values_here() -> None:
    for setting in (each for each in SETTINGS if each.values_there):
        for value in setting.values_there.values():
            build(setting, value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("object.big", "here: object_big (model)"),
        ("model.N", "here: N (data)"),
        ("training.nepochs", "here: max_epochs (training)"),
        ("nepochs", "here: max_epochs (training)"),
        ("epochs", "here: max_epochs (training)"),
        ("neighbor_count", "here: K (data)"),
        ("grid_size", "here: gridsize (data)"),
        ("C", "here: gridsize (data)"),
        ("nll", "here: loss_function (model)"),
        ("n_images", "here: n_groups (data)"),
        ("realspace_mae_weight", "not here: It needs a target"),
        ("training.n_subsample", "not here: It keeps that many images"),
        ("probes", "not here: An argument"),
    ],
)
def test_a_name_from_there_gets_its_name_here(name: str, expected: str) -> None:
    assert (hint(name) or "").startswith(expected)


@pytest.mark.parametrize("name", ["zzz", "", "data.zzz", *(setting.name for setting in SETTINGS)])
def test_no_hint_for_an_unknown_name_or_one_of_ours(name: str) -> None:
    assert hint(name) is None
