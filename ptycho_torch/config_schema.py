"""The configuration schema, <doc-ref type="contract">specs/configuration.yaml</doc-ref>, as frozen values."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ptycho_torch.contract import SpecError, read_yaml

FILE = "configuration.yaml"


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers."""

    least: float
    most: float
    least_belongs: bool
    most_belongs: bool

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read an interval such as ``(0, 1]``; the schema has checked its form."""
        least, most = (float(part) for part in text[1:-1].split(","))
        return cls(least, most, text[0] == "[", text[-1] == "]" and math.isfinite(most))

    def holds(self, value: float) -> bool:
        """Say whether a number lies inside."""
        above = value >= self.least if self.least_belongs else value > self.least
        return above and (value <= self.most if self.most_belongs else value < self.most)


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """The same setting somewhere else.

    Attributes:
        name: field ``owner.name`` of a TensorFlow dataclass, or key of a dictionary.
        default: its default there.
    """

    name: str
    default: Any


@dataclasses.dataclass(frozen=True)
class SettingSpec:
    """One setting; ``specs/README.md`` explains the fields."""

    name: str
    owner: str
    type: str
    optional: bool
    choices: tuple[str, ...] | None
    range: Range | None
    unit: str | None
    default: Any
    meaning: str
    tensorflow: Counterpart | None
    legacy: Counterpart | None
    guide_era: Counterpart | None
    reason: str | None
    note: str | None

    @property
    def counterparts(self) -> tuple[Counterpart, ...]:
        """The counterparts that there are."""
        return tuple(each for each in (self.tensorflow, self.legacy, self.guide_era) if each is not None)


@dataclasses.dataclass(frozen=True)
class ConfigurationSchema:
    """All settings, by name, and the names that exist only elsewhere with what takes their place here."""

    settings: Mapping[str, SettingSpec]
    only_there: Mapping[str, str]


@functools.cache
def load_schema() -> ConfigurationSchema:
    """Read the schema of the configuration, once.

    Raises:
        SpecError: it is missing, no YAML, or names something twice.
    """
    return parse_schema(read_yaml(FILE))


def parse_schema(content: Mapping[str, Any]) -> ConfigurationSchema:
    """Make the schema from the content of ``configuration.yaml``.

    Raises:
        SpecError: a name that is there twice.
    """
    settings = {entry["name"]: _setting(entry) for entry in content["settings"]}
    names = [(name, entry["here"]) for entry in content["only_there"] for name in entry["names"]]
    only_there = dict(names)
    if len(settings) != len(content["settings"]) or len(only_there) != len(names):
        raise SpecError(f"{FILE}: a name is there twice.")
    return ConfigurationSchema(MappingProxyType(settings), MappingProxyType(only_there))


def _setting(entry: Mapping[str, Any]) -> SettingSpec:
    def counterpart(key: str, name: str) -> Counterpart | None:
        return Counterpart(entry[key][name], entry[key]["default"]) if key in entry else None

    return SettingSpec(
        name=entry["name"],
        owner=entry["owner"],
        type=entry["type"],
        optional=entry.get("optional", False),
        choices=tuple(entry["choices"]) if "choices" in entry else None,
        range=Range.parse(entry["range"]) if "range" in entry else None,
        unit=entry.get("unit"),
        default=entry["default"],
        meaning=entry["meaning"],
        tensorflow=counterpart("tensorflow", "field"),
        legacy=counterpart("legacy", "key"),
        guide_era=counterpart("guide_era", "key"),
        reason=entry.get("reason"),
        note=entry.get("note"),
    )


def hint(name: str) -> str | None:
    """Say what a name of the reference or of the guide's era is here, or None for a name that is none.

    >>> hint("nepochs")
    'of the reference; here: max_epochs.'
    """
    schema = load_schema()
    if name in schema.only_there:
        return f"of the reference; here: {schema.only_there[name]}"
    for setting in schema.settings.values():
        if name in {each.name.split(".", 1)[-1] for each in setting.counterparts}:
            return f"of the reference; here: {setting.name} ({setting.owner})."
    return None
