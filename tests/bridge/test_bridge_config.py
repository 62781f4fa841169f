"""Configurations of the reference become settings and come back; what cannot is reported, and nothing is guessed."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from conformance.checks.translation import ROWS
from ptycho_tf_bridge import config, config_export, config_values
from ptycho_tf_bridge.commands import config as command_config
from ptycho_tf_bridge.commands.config import report_lines
from ptycho_tf_bridge.config import (
    KEPT,
    Finding,
    Translation,
    from_dataclass,
    from_legacy,
    from_yaml,
    to_dataclass_fields,
    to_legacy,
    to_tensorflow_yaml,
)
from ptycho_torch.commands.settings_options import read_config
from ptycho_torch.config_params import GraveHint, Settings
from ptycho_torch.contracts.config_schema import (
    CONFIGURATION_FILE,
    ConfigurationSchema,
    Foreign,
    ReferenceField,
    Setting,
    load_schema,
    parse_schema,
)
from ptycho_torch.contracts.contract import read_yaml
from ptycho_torch.errors import ConfigError
from ptycho_torch.training import checkpoint
from tests.support.archives import stand_in_config as reference

# The reference's execution settings warn where the machine has no GPU.
pytestmark = pytest.mark.filterwarnings("ignore:no CUDA device:UserWarning")

SCHEMA = load_schema()
ROUTES = ("yaml", "legacy", "dataclass")
EXAMPLES = hypothesis_settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def value_of(settings: Settings, setting: Setting) -> Any:
    return getattr(getattr(settings, setting.owner), setting.name)


def of_field(report: tuple[Finding, ...], name: str) -> Finding:
    (found,) = (finding for finding in report if name in (finding.field_there, finding.field_here))
    return found


# ---------------------------------------------------------------------------------------------------------- drawing


def values(setting: Setting) -> st.SearchStrategy[Any]:
    """Draw values that a setting may have."""
    if setting.choices:
        drawn: st.SearchStrategy[Any] = st.sampled_from(setting.choices)
    elif setting.type == "bool":
        drawn = st.booleans()
    elif setting.type == "int":
        step = setting.multiple_of or 1
        least = int(setting.minimum or 0) // step
        most = 4294967295 if setting.maximum is not None else 10**6
        drawn = st.integers(least, most).map(lambda number: number * step) | st.sampled_from(
            [*map(int, setting.also), step * (least + 1)]
        )
    elif setting.type == "float":
        drawn = st.floats(
            setting.minimum if setting.above is None else setting.above,
            1e12 if setting.maximum is None and setting.below is None else (setting.maximum or setting.below),
            exclude_min=setting.above is not None,
            exclude_max=setting.below is not None,
        )
    else:
        drawn = st.text("abc Ω:#'\"-", max_size=8)
    return drawn | st.none() if setting.optional else drawn


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Draw settings that hold together; half of them at their default, so that combinations vary."""
    chosen: dict[str, Any] = {}
    for name, setting in SCHEMA.settings.items():
        if draw(st.booleans()):
            chosen[name] = draw(st.sampled_from(get_args(GraveHint)) if name == "accept" else values(setting))
    if chosen.get("group_sampler") == "reference":
        chosen.pop("n_subsample", None)
    for name, setting in SCHEMA.settings.items():
        for needed, value in setting.needs.items():
            has = chosen.get(needed, SCHEMA.settings[needed].default)
            if has != value if isinstance(value, str) else not has:
                chosen.pop(name, None)
    if not chosen.get("validation_fraction", 0.05):
        chosen.pop("early_stop_monitor", None)
    return Settings().override(chosen)


def there_and_back(settings: Settings, route: str, folder: Path) -> tuple[tuple[Finding, ...], Translation]:
    """Return what was reported on the way there, and the translation back."""
    if route == "legacy":
        dictionary, report = to_legacy(settings)
        return report, from_legacy(dictionary)
    if route == "yaml":
        text, report = to_tensorflow_yaml(settings)
        path = folder / "reference.yaml"
        path.write_text(text, encoding="utf-8")
        return report, from_yaml(path)
    fields, report = to_dataclass_fields(settings)
    training = reference.TrainingConfig(model=reference.ModelConfig(**fields["model"]), **fields["training"])
    return report, from_dataclass(training, reference.PyTorchExecutionConfig(**fields["execution"]))


def expected_to_be_kept(setting: Setting, value: Any, route: str) -> bool:
    """Say from the schema, and not from the code under test, whether a value survives."""
    name = setting.there.get("legacy" if route == "legacy" else "tensorflow")
    if name is None or (route == "yaml" and name.startswith("execution.")):
        return False
    field = SCHEMA.reference.get(setting.there.get("tensorflow", ""))
    if value is None:
        implied = setting.name in ("nll_weight", "mae_weight")
        return implied or (route != "legacy" and field is not None and field.optional and field.becomes is None)
    spelled = [theirs for theirs, ours in setting.values_there.items() if ours == value]
    if value not in setting.values_there and not (setting.name == "devices" and value < 1):
        spelled.append(value)
    if field is not None and field.choices:
        spelled = [each for each in spelled if each in field.choices]
    code = setting.defaults_there
    at_default = value in [code[side] for side in ("tensorflow", "legacy") if side in code]
    if route != "legacy":
        at_default = "tensorflow" in code and value == code["tensorflow"]
    hidden = field is not None and "tensorflow_code" in code and at_default and value != code["tensorflow_code"]
    return bool(spelled) and not hidden


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parity_clause("CONFIG-08")
@pytest.mark.parametrize("route", ROUTES)
@EXAMPLES
@given(settings=any_settings())
def test_settings_come_back_from_the_reference(settings: Settings, route: str, tmp_path: Path) -> None:
    report, back = there_and_back(settings, route, tmp_path)
    assert [finding.field_here for finding in report] == list(SCHEMA.settings), "every setting is reported, once"
    for finding in report:
        setting = SCHEMA.settings[finding.field_here]
        before, after = value_of(settings, setting), value_of(back.settings, setting)
        expected = expected_to_be_kept(setting, before, route)
        if setting.name == "gradient_clip_val" and settings.training.gradient_clip_algorithm == "adaptive":
            expected = False  # it counts median norms, and would be a norm there
        assert (finding.change in KEPT) == expected, finding
        if finding.change in KEPT:
            if before is None and setting.name in ("nll_weight", "mae_weight"):
                before = float(
                    settings.model.loss_function == {"nll_weight": "Poisson", "mae_weight": "MAE"}[setting.name]
                )
            if (route, finding.field_there, before) == ("dataclass", "execution.accelerator", "auto"):
                assert after == "cpu", "what the machine has takes the place of auto there"
                continue
            assert (type(after), after) == (type(before), before), finding
        else:
            assert finding.reason, finding


@EXAMPLES
@given(settings=any_settings())
def test_a_second_trip_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    _, once = there_and_back(settings, "yaml", tmp_path)
    _, twice = there_and_back(once.settings, "yaml", tmp_path)
    assert twice.settings == once.settings


def changed(field: ReferenceField) -> Any:
    """Return a value of a field of the reference that is not its default."""
    if field.choices:
        return next(each for each in field.choices if each != field.default)
    if field.type == "bool":
        return not field.default
    numbers: Mapping[str, Any] = {"int": 6, "float": 0.75, "str": "other", "Path": Path("elsewhere"), "list": [1]}
    return numbers[field.type]


FIELDS = [field for field in SCHEMA.reference.values() if field.type != "ModelConfig" and not field.retired]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.full_name)
def test_every_field_of_the_reference_ends_in_a_setting_or_in_a_finding(field: ReferenceField) -> None:
    model = reference.ModelConfig()
    others: dict[str, Any] = {
        "training": reference.TrainingConfig(model),
        "inference": reference.InferenceConfig(model, Path("a"), Path("b")),
        # "auto" becomes what the machine has as soon as the reference makes the dataclass.
        "execution": reference.PyTorchExecutionConfig(accelerator="cuda"),
    }
    base = from_dataclass(others["training"], others["execution"])
    value = changed(field)
    if field.section == "model":
        others["training"].model = dataclasses.replace(model, **{field.name: value})
    else:
        setattr(others[field.section], field.name, value)
    chosen = [others["inference"]] if field.section == "inference" else [others["training"], others["execution"]]
    what = SCHEMA.counterparts["tensorflow"][field.full_name]
    if isinstance(what, Foreign) and what.only:
        with pytest.raises(ConfigError, match=f"{field.name}.* = .*{value}.*has only"):
            from_dataclass(*chosen)
        return
    if isinstance(what, Foreign) and what.same_as:
        with pytest.raises(ConfigError, match=r"n_images.*n_groups"):
            from_dataclass(*chosen)
        return
    translation = from_dataclass(*chosen)
    finding = next(each for each in translation.report if each.field_there == field.full_name)
    assert finding.value_there == (value if field.type not in ("Path", "list") else str(value))
    moved = translation.settings != base.settings
    if isinstance(what, Foreign) or field.section == "inference":
        assert finding.reason
    else:
        # Of these two, TensorFlow does what the other value says, whatever the field has.
        idle = field.full_name in ("training.intensity_scale_trainable", "execution.deterministic")
        assert moved or idle or finding.change == "not here", finding
    assert finding.change in ("same", "renamed") or finding.reason


# Field there, a value of it, and what both are here: from the facts about the reference, and not from the table.
FACTS = [(there, said, here, value) for here, value, there, _, said in ROWS if there]


def misread(schema: ConfigurationSchema, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the settings that come out otherwise than the facts say, when the code reads this table."""
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}, "execution": {}}
    for name, value, _, _ in FACTS:
        section, _, field = name.partition(".")
        sections[section][field] = value
    with monkeypatch.context() as patched:
        for module in (config, config_export, config_values):
            patched.setattr(module, "load_schema", lambda: schema)
        read = from_dataclass(
            reference.TrainingConfig(model=reference.ModelConfig(**sections["model"]), **sections["training"]),
            reference.PyTorchExecutionConfig(**sections["execution"]),
        )
    return [here for _, _, here, value in FACTS if value_of(read.settings, SCHEMA.settings[here]) != value]


def test_values_of_the_reference_are_read_as_the_facts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert misread(SCHEMA, monkeypatch) == []
    shared = {setting.there["tensorflow"] for setting in SCHEMA.settings.values() if "tensorflow" in setting.there}
    # These two are what the run has at its default too, so a value of theirs shows nothing here.
    assert shared - {name for name, *_ in FACTS} == {"training.intensity_scale_trainable", "execution.deterministic"}


def a_row_removed(settings: dict[str, Any], content: Any) -> None:
    content["settings"].remove(settings["batch_size"])
    next(entry for entry in content["readers"] if "batch_size" in entry["names"])["names"].remove("batch_size")
    content["only_there"].append({"source": "tensorflow", "names": ["training.batch_size"], "reason": "Lost."})


def two_names_swapped(settings: dict[str, Any], content: Any) -> None:
    beta1, beta2 = settings["adam_beta1"], settings["adam_beta2"]
    beta1["there"], beta2["there"] = beta2["there"], beta1["there"]


def a_wrong_value(settings: dict[str, Any], content: Any) -> None:
    settings["loss_function"]["values_there"]["mae"] = "Poisson"


def a_value_forgotten(settings: dict[str, Any], content: Any) -> None:
    settings["devices"]["values_there"] = {"all": -1}


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (two_names_swapped, ["adam_beta1", "adam_beta2"]),
        (a_wrong_value, ["loss_function"]),
        (a_row_removed, ["batch_size"]),
    ],
)
def test_a_table_with_a_fault_is_caught(fault: Any, caught: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    content: Any = copy.deepcopy(read_yaml(CONFIGURATION_FILE))
    fault({entry["name"]: entry for entry in content["settings"]}, content)
    assert misread(parse_schema(content), monkeypatch) == caught


def test_a_value_that_the_table_forgot_is_an_error_or_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    content: Any = copy.deepcopy(read_yaml(CONFIGURATION_FILE))
    a_value_forgotten({entry["name"]: entry for entry in content["settings"]}, content)
    assert misread(parse_schema(content), monkeypatch) == ["devices"]


# ------------------------------------------------------------------------------------------------------------ rules


def written(folder: Path, content: Any) -> Path:
    path = folder / "reference.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_what_a_file_does_not_state_has_the_default_of_the_reference(tmp_path: Path) -> None:
    translation = from_yaml(written(tmp_path, {"model": {"N": 64}}))
    settings = translation.settings
    assert (settings.data.gridsize, settings.data.K, settings.data.nphotons, settings.data.n_groups) == (1, 4, 1e9, 512)
    assert (settings.model.offset, settings.model.max_position_jitter, settings.data.group_sampler) == (
        4,
        10,
        "reference",
    )
    assert (settings.training.scheduler, settings.training.gradient_clip_val) == ("ReduceLROnPlateau", None)
    for name in ("gridsize", "K", "nphotons", "n_groups", "offset", "group_sampler", "gradient_clip_val"):
        finding = of_field(translation.report, name)
        assert finding.change == "default"
        assert "Here the default is" in finding.reason


def test_conflicting_defaults_of_a_legacy_dictionary_are_reported() -> None:
    translation = from_legacy({})
    found = {finding.field_there: finding.value_here for finding in translation.report if finding.change == "default"}
    expected = {"N": 128, "probe.big": False, "probe.mask": True, "probe_scale": 10.0, "nphotons": 1e9, "nepochs": 60}
    assert expected.items() <= found.items()
    assert translation.settings.data.gridsize == 2, "2 on both sides, so there is nothing to report"


def test_a_line_outside_model_loses_against_the_flags_of_the_reference(tmp_path: Path) -> None:
    path = written(tmp_path, {"nepochs": 5, "batch_size": 32, "N": 128, "gridsize": 2, "n_groups": 99})
    stated, as_run = from_yaml(path), from_yaml(path, as_run=True)
    assert (stated.settings.training.max_epochs, stated.settings.data.N, stated.settings.data.gridsize) == (5, 128, 2)
    assert (as_run.settings.training.max_epochs, as_run.settings.data.N, as_run.settings.data.gridsize) == (50, 64, 1)
    assert (as_run.settings.training.batch_size, as_run.settings.data.n_groups) == (16, 99)
    for name, advice in (("max_epochs", "pass --nepochs 5"), ("N", "write it into 'model:'")):
        finding = of_field(stated.report, name)
        assert not finding.in_effect
        assert advice in finding.reason
    assert of_field(stated.report, "n_groups").in_effect
    nested = from_yaml(written(tmp_path, {"model": {"N": 128}}))
    assert of_field(nested.report, "N").in_effect


def test_a_flag_that_cannot_say_no_is_not_recommended(tmp_path: Path) -> None:
    finding = of_field(from_yaml(written(tmp_path, "probe_big: false")).report, "probe_big")
    assert "cannot say no" in finding.reason


def test_fields_that_tensorflow_does_not_read_are_taken_as_stated_unless_the_run_is_asked_for() -> None:
    dictionary = {"optimizer": "adamw", "weight_decay": 0.1, "scheduler": "Exponential", "N": 64}
    stated, as_run = from_legacy(dictionary), from_legacy(dictionary, as_run=True)
    assert (stated.settings.training.optimizer, stated.settings.training.weight_decay) == ("adamw", 0.1)
    assert (as_run.settings.training.optimizer, as_run.settings.training.weight_decay) == ("keras_adam", 0.0)
    assert as_run.settings.training.scheduler == "ReduceLROnPlateau"
    for translation in (stated, as_run):
        assert not of_field(translation.report, "optimizer").in_effect
        assert "TensorFlow does not follow it" in of_field(translation.report, "optimizer").reason


def test_a_default_that_tensorflow_does_not_read_is_nobodys_choice() -> None:
    training = reference.TrainingConfig(model=reference.ModelConfig())
    translation = from_dataclass(training)
    assert translation.settings.training.scheduler == "ReduceLROnPlateau"
    assert of_field(translation.report, "training.scheduler").change == "ignored"
    training.backend = "pytorch"
    assert from_dataclass(training).settings.training.scheduler == "Default"


def test_the_pytorch_side_of_the_reference_chooses_its_loss_by_name() -> None:
    training = reference.TrainingConfig(model=reference.ModelConfig(), backend="pytorch", torch_loss_mode="mae")
    settings = from_dataclass(training).settings
    weights = settings.training.loss_weights(settings.model.loss_function)
    assert (weights.nll_weight, weights.mae_weight) == (0.0, 1.0)
    training.backend = "tensorflow"
    settings = from_dataclass(training).settings
    weights = settings.training.loss_weights(settings.model.loss_function)
    assert (weights.nll_weight, weights.mae_weight) == (1.0, 0.0), "TensorFlow reads the weights"


@pytest.mark.parametrize("weights", ["", "nll_weight: 1.0\nmae_weight: 0.0\n"], ids=["unstated", "stated"])
def test_a_file_for_the_pytorch_side_leaves_the_loss_to_its_name(tmp_path: Path, weights: str) -> None:
    """That side does not read the weights, so that TensorFlow's defaults of them are nothing that it does."""
    path = tmp_path / "run.yaml"
    path.write_text(f"backend: pytorch\ntorch_loss_mode: mae\n{weights}")
    settings = from_yaml(path).settings
    assert (settings.training.nll_weight, settings.training.mae_weight) == (None, None)
    found = settings.training.loss_weights(settings.model.loss_function)
    assert (found.nll_weight, found.mae_weight) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["n_subsample", "n_images"])
def test_names_that_mean_something_else_change_nothing(name: str) -> None:
    base, translation = from_legacy({"N": 64}), from_legacy({"N": 64, name: 4})
    assert translation.settings == base.settings
    finding = next(each for each in translation.report if each.field_there == name)
    assert finding.change == "collision"
    assert finding.reason
    assert (finding.field_here, finding.value_here) == ("", None), "nothing here has the value None for it"


def test_a_field_that_another_setting_stands_for_names_it_and_leaves_it_alone() -> None:
    translation = from_legacy({"use_xla_compile": True})
    finding = of_field(translation.report, "use_xla_compile")
    assert (finding.field_here, finding.value_here) == ("", None)
    assert finding.reason.endswith("See the setting compile.")


def test_the_former_name_of_n_groups_is_taken_and_reported(tmp_path: Path) -> None:
    translation = from_yaml(written(tmp_path, "n_images: 300"))
    assert translation.settings.data.n_groups == 300
    assert next(each for each in translation.report if each.field_there == "training.n_images").change == "collision"


@pytest.mark.parametrize("name", ["momentum", "debug"])
def test_names_that_are_nowhere_else_are_no_collision(name: str) -> None:
    assert of_field(from_legacy({name: 1}).report, name).change == "not here"


def test_errors_of_a_legacy_dictionary_say_that_it_is_one() -> None:
    with pytest.raises(ConfigError, match=r"^the legacy dictionary: 'N'"):
        from_legacy({"N": "large"})


@pytest.mark.parametrize("mapping", [{}, {"N": 128, "gridsize": 2, "debug": True, "nephotons": 1e9}])
def test_every_reason_is_a_sentence(mapping: dict[str, Any]) -> None:
    reasons = [each.reason for each in from_legacy(mapping).report if each.reason]
    assert reasons
    assert [each for each in reasons if not re.search(r"[^.][.?]$", each)] == []


def test_every_public_name_is_there() -> None:
    assert all(hasattr(config, name) for name in config.__all__)


def test_keys_that_the_reference_drops_are_reported_all_at_once(tmp_path: Path) -> None:
    content = (
        "N: 64\ngridsize: 1\nnepoch: 3\nlearning_rate: 0.001\nstitch_crop_size: [20]\n"
        "model: {grid_size: 2}\nstages: {first: 1}"
    )
    translation = from_yaml(written(tmp_path, content))
    assert translation.settings == from_yaml(written(tmp_path, "N: 64\ngridsize: 1")).settings
    unknown = {each.field_there: each for each in translation.report if each.change == "unknown"}
    assert {name: each.value_there for name, each in unknown.items()} == {
        "model.grid_size": "2", "nepoch": "3", "learning_rate": "0.001", "stitch_crop_size": "a list",
        "stages": "a mapping",
    }  # fmt: skip
    assert "did you mean 'nepochs'?" in unknown["nepoch"].reason
    assert "gridsize" in unknown["model.grid_size"].reason
    assert "learning_rate is a setting here" in unknown["learning_rate"].reason
    assert not any(each.in_effect for each in unknown.values())
    lines = [*report_lines(translation.report)]
    assert lines[1].startswith("Not read"), "what is dropped is said first"


def test_a_file_without_any_field_is_refused_with_every_key(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"line 1: 'nepoch' is no field.*nepochs.*line 2: 'colour' is no field.*Nothing"
    ):
        from_yaml(written(tmp_path, "nepoch: 3\ncolour: red"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n_images: 300\nn_groups: 100", r"line 1.*n_images.*300.*n_groups.*100.*Keep n_groups"),
        ("N: 64\nmodel: {N: 128}", r"line 1: 'N' is 64 here and 128 in 'model'.*keep one"),
        ("nepoch: 3", r"line 1: 'nepoch' is no field of the reference; did you mean 'nepochs'\?"),
        ("model: {}\nobject.big: true", r"'object\.big' is no field of the reference; .*here: object_big"),
        ("model: {grid_size: 2}", r"'model\.grid_size' is no field of the reference; .*here: gridsize"),
        ("model: {gridsize: [2, 2]}", r"'model\.gridsize' is a list"),
        ("model: {model: {N: 64}}", r"line 1: 'model\.model' is no field of the reference"),
        ("nepoch: [3]", r"line 1: 'nepoch' is no field of the reference; did you mean 'nepochs'\?"),
        ("training: {max_epochs: 3}", r"line 1: 'training' is a section of .* ptycho-torch; .*--to tf-yaml"),
        ("model: {N: 64}\ndata: {N: 64}", r"line 2: 'data' is a section of .* ptycho-torch; .*--to tf-yaml"),
        ("model: 3", r"'model' holds no fields of the model"),
        ("nepochs: 3\nnepochs: 4", r"line 2: 'nepochs' is there twice"),
        ("nepochs: many", r"line 1: 'nepochs' = 'many' is not a number"),
        ("nepochs: 0", r"line 1: 'nepochs': TrainingSettings\.max_epochs = 0"),
        ("model: {probe_scale: -1}", r"line 1: 'model.probe_scale': ModelSettings\.probe_scale = -1"),
        ("model: {probe_big: 1}", r"'model\.probe_big' = 1 is no value of this kind here; expected bool"),
        ("model: {architecture: fno}", r"architecture.* = 'fno'; this project has only cnn"),
        ("model: {amp_activation: tanh}", r"amp_activation.*'tanh' has no counterpart here; .*sigmoid"),
        ("backend: jax", r"'backend' = 'jax'; the reference has tensorflow and pytorch"),
        ("backend: pytorch\noptimizer: sgd", r"'optimizer' = 'sgd' has no counterpart here; .*adamw"),
        ("nphotons: " + "9" * 400, r"nphotons.*larger than any number"),
        ("nphotons: 0x" + "f" * 5000, r"line 1: 'nphotons' is larger than any number"),
        ("nepochs: 1" + ":10" * 5000, r"line 1: 'nepochs' is larger than any number"),
        ("nphotons: .nan", r"nphotons = nan is not a finite number"),
        ("- nepochs", "the file holds no fields of the reference"),
        ("nepochs: !!python/object/apply:os.system ['true']", "a list|no valid YAML"),
        ("nepochs: !!python/name:os.system x", "no valid YAML"),
        ("[" * 100000, "more than 1000 brackets"),
        ("nepochs: [", "no valid YAML"),
        ("x" * 300000, "longer than 256 KiB"),
        ("nepochs: !!int ''", r"'nepochs' cannot be read \(''"),
        ("nepochs: !!timestamp soon", r"'nepochs' cannot be read \('soon'"),
        ("nepochs: !!bool perhaps", r"'nepochs' cannot be read \('perhaps'"),
        ("batch_size: &a [1]\nnepochs: [*a, *a]", "'batch_size' is a list; expected a single value"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_remedy(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_yaml(written(tmp_path, content))


SNIPPETS = [
    "nepochs",
    "model",
    "N",
    ":",
    " ",
    "\n",
    "{",
    "}",
    "[",
    "]",
    "&a",
    "*a",
    "<<",
    "!!int",
    "!!float",
    "1e5",
    "-",
    "?",
    "|",
    "'",
    "#",
]


@EXAMPLES
@given(
    content=st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=30).map("".join) | st.binary(max_size=60)
)
def test_no_file_brings_another_error_than_that_it_cannot_be_read(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        from_yaml(path)


@pytest.mark.parametrize("key", sorted(SCHEMA.counterparts["legacy"]))
def test_every_legacy_key_ends_in_a_setting_or_in_a_finding(key: str) -> None:
    fields = [field for field in FIELDS if field.legacy == key]
    what = SCHEMA.counterparts["legacy"][key]
    value = changed(fields[0]) if fields else 6
    if isinstance(what, Foreign) and what.only:
        with pytest.raises(ConfigError, match="has only"):
            from_legacy({key: value})
        return
    base, read = from_legacy({}), from_legacy({key: value})
    finding = next(each for each in read.report if each.field_there == key)
    assert finding.reason or finding.change in ("same", "renamed")
    if isinstance(what, Foreign):
        assert dataclasses.replace(read, report=()) == dataclasses.replace(base, report=()) or key == "backend"


def test_a_file_with_legacy_keys_is_a_legacy_dictionary(tmp_path: Path) -> None:
    dictionary = {"N": 64, "object.big": False, "nepochs": 5, "unheard_of": 1}
    read = from_yaml(written(tmp_path, dictionary))
    assert read.settings == from_legacy(dictionary).settings
    assert read.settings.model.probe_scale == 10.0, "the default of the dictionary"
    json_file = tmp_path / "parameters.json"
    json_file.write_text(json.dumps(dictionary), encoding="utf-8")
    assert from_yaml(json_file) == read


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the configuration cannot be read"):
        from_yaml(tmp_path / "none.yaml")


def test_a_number_that_yaml_reads_as_text_is_a_number_and_reported(tmp_path: Path) -> None:
    translation = from_yaml(written(tmp_path, "nphotons: 1e5"))
    assert translation.settings.data.nphotons == 1e5
    assert "text" in of_field(translation.report, "nphotons").reason


def test_an_empty_file_is_the_reference_with_its_defaults(tmp_path: Path) -> None:
    by_hand = from_dataclass(reference.TrainingConfig(model=reference.ModelConfig()))
    assert from_yaml(written(tmp_path, "")).settings == by_hand.settings


def test_values_of_an_archive_are_read_whatever_their_type() -> None:
    translation = from_legacy(
        {
            "N": np.int64(64), "probe_scale": np.float32(4.0), "object.big": np.True_, "gridsize": (2, 2),
            "probe": np.zeros((64, 64, 1), np.complex64), "output_prefix": Path("somewhere"), "n_groups": None,
            "batch_size": None, "intensity_scale": np.float32(988.5), "_version": "1.0", "stale_key": object(),
        }
    )  # fmt: skip
    settings = translation.settings
    assert (settings.data.N, settings.data.gridsize, settings.model.intensity_scale) == (64, 2, 988.5)
    assert (settings.data.n_groups, settings.training.batch_size) == (None, 16)
    shown = {finding.field_there: finding.value_there for finding in translation.report}
    assert (shown["probe"], shown["output_prefix"]) == ("complex64 array (64, 64, 1)", "somewhere")
    assert "Nobody knows it" in next(each.reason for each in translation.report if each.field_there == "stale_key")


@pytest.mark.parametrize("value", [(2, 3), (1, 2, 3), "two", [[2], [2]]])
def test_a_grid_that_is_not_square_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="gridsize"):
        from_legacy({"gridsize": value})


def test_a_value_that_counts_for_nothing_without_another_is_left_out_and_reported() -> None:
    translation = from_legacy({"N": 64, "tv_weight": 0.5})
    assert translation.settings.training.tv_weight == 0
    assert "realspace_weight" in of_field(translation.report, "tv_weight").reason
    assert from_legacy({"N": 64, "tv_weight": 0.5, "realspace_weight": 1}).settings.training.tv_weight == 0.5


def test_a_dataclass_of_another_year_is_known_by_its_fields() -> None:
    """One of 2024, and one of tomorrow."""
    older: Any = dataclasses.make_dataclass(
        "TrainingConfig", ["model", "batch_size", "nepochs", "nphotons", "output_dir"]
    )
    translation = from_dataclass(older(reference.ModelConfig(), 8, 5, 1e6, Path("out")))
    assert (translation.settings.training.batch_size, translation.settings.data.nphotons) == (8, 1e6)
    newer: Any = dataclasses.make_dataclass(
        "ModelConfig", [("novelty", int, 3)], bases=(reference.ModelConfig,), frozen=True
    )
    translation = from_dataclass(newer(N=128))
    assert translation.settings.data.N == 128
    assert "Nobody knows it" in of_field(translation.report, "model.novelty").reason


@pytest.mark.parametrize(
    "instance",
    [3, reference.ModelConfig, Settings(), *(getattr(Settings(), owner) for owner in ("model", "training", "data"))],
)
def test_an_instance_of_another_kind_is_refused(instance: Any) -> None:
    with pytest.raises(ConfigError, match="dataclass"):
        from_dataclass(instance)


def test_two_instances_of_one_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="Two instances hold model"):
        from_dataclass(reference.ModelConfig(), reference.TrainingConfig(model=reference.ModelConfig()))


def test_the_file_for_the_reference_names_the_flags_that_it_needs() -> None:
    text, report = to_tensorflow_yaml(Settings().override({"max_epochs": 7, "N": 128}))
    assert "ptycho_train --config FILE --nepochs 7" in text
    assert yaml.safe_load(text)["model"]["N"] == 128
    assert "--N" not in text
    assert not of_field(report, "max_epochs").in_effect
    plain, _ = to_tensorflow_yaml(from_dataclass(reference.TrainingConfig(model=reference.ModelConfig())).settings)
    assert not plain.startswith("#")


def test_a_report_cannot_be_changed() -> None:
    translation = from_legacy({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        translation.report[0].reason = ""  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------- command


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command_config.add_arguments(parser)
    return command_config.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_translates_in_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours, back = (tmp_path / name for name in ("theirs.yaml", "ours.yaml", "back.yaml"))
    theirs.write_text("nepochs: 5\nmodel: {N: 128, gridsize: 2}\nn_subsample: 100\n", encoding="utf-8")
    assert command(theirs, "--to", "torch", "-o", ours) == 0
    said = capsys.readouterr().out
    assert "training.nepochs = 5  " in said
    assert "A name that has another meaning too\n  training.n_subsample = 100  →  —\n" in said
    assert str(ours) in said
    assert Settings().override(read_config(ours)) == from_yaml(theirs).settings
    assert command(ours, "--to", "tf-yaml", "-o", back) == 0
    assert yaml.safe_load(back.read_text(encoding="utf-8"))["nepochs"] == 5
    with pytest.raises(ConfigError, match="is there already"):
        command(theirs, "--to", "torch", "-o", ours)
    assert command(theirs, "--to", "torch", "-o", ours, "--overwrite", "--as-run") == 0
    assert read_config(ours)["max_epochs"] == 50


def test_an_option_of_the_other_direction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--as-run belongs to --to torch, not to --to tf-yaml"):
        command(written(tmp_path, ""), "--to", "tf-yaml", "--as-run")


def test_the_command_writes_the_file_to_standard_output_and_its_report_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = written(tmp_path, "nepochs: 5\n")
    assert command(theirs, "--to", "torch", "--full") == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out)["training"]["max_epochs"] == 5
    assert "max_epochs = 5" in said.err
    assert "pass --nepochs 5" in said.err


def test_what_a_file_says_cannot_write_to_the_terminal() -> None:
    text = "\n".join(report_lines(from_legacy({"stale": "\x1b[31m" + "x" * 1000, "o\x1bther": "1\n2"}).report))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 400
    assert "= 1 2  " in text


@pytest.mark.parametrize("full", [True, False])
def test_the_report_shows_every_finding_or_counts_it(full: bool) -> None:
    report = from_legacy({"N": 64, "gridsize": 2, "n_images": 3, "optimizer": "sgd", "stale": 1}).report
    report += to_legacy(Settings())[1]
    text = "\n".join(report_lines(report, full=full))
    shown = [
        finding for finding in report if f"{finding.field_there} = " in text or f"→  {finding.field_here} = " in text
    ]
    if full:
        assert len(shown) == len(report)
    assert f"{len(report)} findings" in text
    for change in ("n_images", "stale", "optimizer"):
        assert change in text


def test_the_settings_of_a_checkpoint_can_be_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().override({"max_epochs": 9})
    (tmp_path / "last.ckpt").touch()
    monkeypatch.setattr(checkpoint, "read_checkpoint", lambda path: types.SimpleNamespace(settings=settings))
    assert command(tmp_path / "last.ckpt", "--to", "tf-yaml", "-o", tmp_path / "theirs.yaml") == 0
    assert from_yaml(tmp_path / "theirs.yaml").settings.training.max_epochs == 9
