"""The configuration schema and the code say the same."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import typing
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from ptycho_torch import config_params
from ptycho_torch.config_params import DataSettings, ModelSettings, Settings, TrainingSettings
from ptycho_torch.config_schema import FILE, SettingSpec, hint, load_schema, parse_schema
from ptycho_torch.contract import SpecError, read_yaml, specs_dir
from ptycho_torch.errors import ConfigError

OWNERS = {"model": ModelSettings, "training": TrainingSettings, "data": DataSettings}
SETTINGS = load_schema().settings

COMPANIONS: dict[str, dict[str, Any]] = {
    "n_groups": {"group_sampler": "reference"},
    "neighbor_pool_size": {"group_sampler": "reference"},
    "weight_decay": {"optimizer": "adamw"},
    "tv_weight": {"realspace_weight": 1.0},
}
"""What a setting needs beside it to be of use."""


def code_fields() -> Iterator[tuple[str, str, str, object]]:
    for owner, settings in OWNERS.items():
        for field in dataclasses.fields(settings):
            yield owner, field.name, str(field.type), field.default


def test_the_file_holds_its_schema() -> None:
    schema = json.loads((specs_dir() / "schema" / "configuration.schema.json").read_text(encoding="utf-8"))
    content = read_yaml(FILE)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    content["settings"][0]["owner"] = "nobody"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_names_owners_types_choices_and_defaults_are_those_of_the_code() -> None:
    found = {}
    for owner, name, annotation, default in code_fields():
        assert name not in found, f"{name} has two owners"
        kind = annotation.removesuffix(" | None")
        choices = None
        if kind not in ("int", "float", "bool", "str"):
            kind, choices = "str", typing.get_args(getattr(config_params, kind))
        found[name] = (owner, kind, annotation.endswith(" | None"), choices, default)
    specified = {
        name: (each.owner, each.type, each.optional, each.choices, each.default) for name, each in SETTINGS.items()
    }
    assert specified == found
    # 1 and 1.0 and True are equal in Python; here they are not.
    assert {name: type(each.default) for name, each in SETTINGS.items()} == {
        name: type(values[-1]) for name, values in found.items()
    }


def changed(setting: SettingSpec, value: object) -> None:
    OWNERS[setting.owner](**(COMPANIONS.get(setting.name, {}) | {setting.name: value}))


@pytest.mark.parametrize("name", [name for name, each in SETTINGS.items() if each.range is not None])
def test_a_value_in_the_range_is_taken_and_one_beyond_is_refused(name: str) -> None:
    setting = SETTINGS[name]
    interval = setting.range
    assert interval is not None
    step = 1 if setting.type == "int" else 1e-9
    convert = int if setting.type == "int" else float
    for end, belongs, outwards in (
        (interval.least, interval.least_belongs, -step),
        (interval.most, interval.most_belongs, step),
    ):
        if math.isinf(end):
            changed(setting, convert(10**6 if name != "N" else 1024))
            continue
        inside = convert(end) if belongs else convert(end - outwards)
        outside = convert(end + outwards) if belongs else convert(end)
        assert interval.holds(inside)
        assert not interval.holds(outside)
        changed(setting, inside)
        with pytest.raises(ConfigError, match=f"{name}.*expected"):
            changed(setting, outside)


@pytest.mark.parametrize("name", [name for name, each in SETTINGS.items() if each.type in ("int", "float")])
def test_a_number_without_a_range_has_a_reason_to_have_none(name: str) -> None:
    assert SETTINGS[name].range is not None or name == "devices"


@pytest.mark.parametrize("name", [name for name, each in SETTINGS.items() if each.choices])
def test_every_choice_is_taken_and_no_other(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.choices is not None
    for choice in setting.choices:
        changed(setting, choice)
    with pytest.raises(ConfigError, match="choose one of"):
        changed(setting, "something else")


def test_every_difference_of_defaults_has_its_reason_and_nothing_else_has_one() -> None:
    for name, setting in SETTINGS.items():
        differs = any(each.default != setting.default for each in setting.counterparts)
        assert differs == (setting.reason is not None), name


def test_a_name_of_the_reference_is_explained() -> None:
    assert hint("object.big") == "of the reference; here: object_big."
    assert hint("neighbor_count") == "of the reference; here: K."
    assert hint("grid_size") is not None
    assert hint("zzz") is None
    with pytest.raises(ConfigError, match=r"here: max_epochs"):
        Settings().override({"nepochs": 3})
    with pytest.raises(ConfigError, match=r"here: probe_big"):
        ModelSettings.from_mapping({"probe.big": True})


def test_a_name_that_is_there_twice_is_refused() -> None:
    content = read_yaml(FILE)
    for part in ("settings", "only_there"):
        twice = copy.deepcopy(content)
        twice[part].append(twice[part][0])
        with pytest.raises(SpecError, match="twice"):
            parse_schema(twice)
