"""The configuration schema, <doc-ref type="contract">specs/configuration.yaml</doc-ref>, as frozen values.

It says for each setting whose it is, what it may be, and what the TensorFlow reference calls it; ``hint`` helps someone
who brings a name from there. The settings themselves check their values in ``ptycho_torch.config_params``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ptycho_torch.contracts.contract import SpecError, read_yaml

CONFIGURATION_FILE = "configuration.yaml"

Value = bool | int | float | str | None

_SECTIONS = ("model", "training", "inference", "execution", "data")

_HERE, _NOT_HERE = "here: ", "not here: "


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting; ``specs/README.md`` explains the fields.

    Attributes:
        name: as in the settings class of its owner.
        owner: ``model``, ``training`` or ``data``.
        type: ``int``, ``float``, ``bool`` or ``str``.
        default: None only where ``optional``.
        meaning: one sentence.
        optional: whether it may be None.
        none: what None means.
        minimum: the least value, or None.
        above: a bound that is itself out of range, or None.
        maximum: the largest value, or None.
        below: a bound that is itself out of range, or None.
        also: values outside the range that are accepted.
        multiple_of: the value is a multiple of it, or None.
        choices: accepted texts; empty for any.
        needs: values of other settings without which a value other than the default is refused.
        unit: of its value; empty for none.
        there: its names there, by source: ``tensorflow`` (dataclasses), ``legacy`` (dictionary), ``seed`` (singletons
            of the guide's era).
        values_there: value of the dataclass or the legacy dictionary → value here, where they are not the same.
        backend: the only backend of the reference that reads its counterpart, ``tensorflow`` or ``pytorch``; empty if
            both do.
        defaults_there: the defaults there, in the terms of this setting; ``tensorflow_code`` is what TensorFlow's
            training code does whatever a field says.
        reason: why one of them is not the default here.
        note: whatever else there is to say.
    """

    name: str
    owner: str
    type: str
    default: Value
    meaning: str
    optional: bool = False
    none: str = ""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    needs: Mapping[str, Value] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    unit: str = ""
    there: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    values_there: Mapping[str, Value] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    backend: str = ""
    defaults_there: Mapping[str, Value] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    reason: str = ""
    note: str = ""

    def differences(self) -> tuple[str, ...]:
        """Return the sources whose default is another one."""
        return tuple(source for source, value in self.defaults_there.items() if not same_value(value, self.default))


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Names that exist there and not here.

    Attributes:
        source: as in ``Setting.there``, or ``torch``, the reference's own PyTorch side today.
        names: with the section they stand in, where the source has sections.
        reason: why not.
        here: the setting that takes their place; empty for none.
        only: the values that this project stands for, so that another one is refused; empty for any.
        same_as: the name that they are a former spelling of; empty for none.
    """

    source: str
    names: tuple[str, ...]
    reason: str
    here: str = ""
    only: tuple[Value, ...] = ()
    same_as: str = ""


@dataclasses.dataclass(frozen=True)
class Readers:
    """Who reads a setting.

    Attributes:
        names: the settings.
        by: ``torch`` (this project), ``keras`` (our model of the reference) and ``tensorflow`` (the reference).
        reason: why these and not the others.
    """

    names: tuple[str, ...]
    by: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class ReferenceField:
    """One field of a dataclass of the reference.

    Attributes:
        section: ``model``, ``training``, ``inference`` or ``execution``.
        name: of the field.
        type: ``int``, ``float``, ``bool``, ``str``, ``Path``, ``list`` or ``ModelConfig``.
        default: that of the dataclass; None too where it is required.
        optional: whether it may be None.
        required: whether it has no default.
        becomes: what ``__post_init__`` puts in the place of None; None for nothing.
        minimum: the least value, or None.
        choices: accepted values; empty for any.
        unlisted: whether the annotation of the field does not list the choices.
        also: values of another type that the annotation lists.
        legacy: its key in the legacy dictionary; empty for none.
        retired: whether the reference has given it up.
    """

    section: str
    name: str
    type: str
    default: Value = None
    optional: bool = False
    required: bool = False
    becomes: Value = None
    minimum: float | None = None
    choices: tuple[Value, ...] = ()
    unlisted: bool = False
    also: tuple[Value, ...] = ()
    legacy: str = ""
    retired: bool = False

    @property
    def full_name(self) -> str:
        """Name with its section, as in ``Setting.there``."""
        return f"{self.section}.{self.name}"


@dataclasses.dataclass(frozen=True)
class ConfigurationSchema:
    """Everything that ``specs/configuration.yaml`` says.

    Attributes:
        settings: by name, in the order of the file.
        only_there: what only the other sides have.
        readers: who reads a setting, by its name.
        reference: the reference's dataclass fields, by name with section.
        counterparts: source → name there → the setting that it is here, or why there is none.
        hints: what to say about a name from there that is none here.
    """

    settings: Mapping[str, Setting]
    only_there: tuple[Foreign, ...]
    readers: Mapping[str, Readers]
    reference: Mapping[str, ReferenceField]
    counterparts: Mapping[str, Mapping[str, Setting | Foreign]]
    hints: Mapping[str, str]

    def of(self, owner: str) -> tuple[Setting, ...]:
        """Return the settings of one owner, in order."""
        return tuple(setting for setting in self.settings.values() if setting.owner == owner)


def parse_schema(content: Mapping[str, Any]) -> ConfigurationSchema:
    """Make the schema from the content of ``configuration.yaml``.

    Raises:
        SpecError: a name that is there twice, that refers to a setting or field that is not there, a field of the
            reference that nothing is said about, or a setting without readers.
    """
    reference = _reference_fields(content["reference"])
    settings: dict[str, Setting] = {}
    for entry in content["settings"]:
        setting = _setting(entry, reference)
        if setting.name in settings:
            raise SpecError(f"{CONFIGURATION_FILE}: setting {setting.name!r} is there twice.")
        settings[setting.name] = setting
    only_there = tuple(
        Foreign(**{key: _frozen(value) for key, value in entry.items()}) for entry in content["only_there"]
    )
    referred = [(setting.name, name) for setting in settings.values() for name in setting.needs]
    referred += [(", ".join(foreign.names), foreign.here) for foreign in only_there if foreign.here]
    for where, name in referred:
        if name not in settings:
            raise SpecError(f"{CONFIGURATION_FILE}: {where} refers to {name!r}, which is no setting.")
    counterparts = _counterparts(settings, only_there, reference)
    for name in reference:
        if name not in counterparts["tensorflow"]:
            raise SpecError(f"{CONFIGURATION_FILE}: nothing is said about {name!r} of the reference.")
    return ConfigurationSchema(
        settings=MappingProxyType(settings),
        only_there=only_there,
        readers=_readers(content["readers"], settings),
        reference=reference,
        counterparts=counterparts,
        hints=MappingProxyType(_hints(settings, counterparts)),
    )


@functools.cache
def load_schema() -> ConfigurationSchema:
    """Read ``specs/configuration.yaml`` once.

    Raises:
        SpecError: as ``ptycho_torch.contracts.contract.read_yaml`` and ``parse_schema``.

    >>> load_schema().settings["max_epochs"].there["tensorflow"]
    'training.nepochs'
    """
    return parse_schema(read_yaml(CONFIGURATION_FILE))


def hint(name: str) -> str | None:
    """Say what a name of the TensorFlow reference is here; None for a setting of ours and for an unknown name.

    Args:
        name: a dataclass field or a key, with or without the section it stands in.

    >>> hint("object.big")
    'here: object_big (model)'
    >>> hint("training.nphotons")
    'here: nphotons (data)'
    >>> hint("backend")
    'not here: This package is the PyTorch side.'
    """
    return load_schema().hints.get(name)


def _reference_fields(sections: Mapping[str, Mapping[str, Any]]) -> Mapping[str, ReferenceField]:
    fields: dict[str, ReferenceField] = {}
    for section, names in sections.items():
        for name, entry in names.items():
            # PyTorchExecutionConfig never goes to the dictionary, and the nested model is spread over it.
            goes = section != "execution" and entry["type"] != "ModelConfig"
            values = {key: _frozen(value) for key, value in entry.items()}
            field = ReferenceField(section, name, **({"legacy": name if goes else ""} | values))
            fields[field.full_name] = field
    return MappingProxyType(fields)


def _readers(entries: list[Mapping[str, Any]], settings: Mapping[str, Setting]) -> Mapping[str, Readers]:
    found: dict[str, Readers] = {}
    for entry in entries:
        readers = Readers(**{key: _frozen(value) for key, value in entry.items()})
        for name in readers.names:
            if name not in settings or name in found:
                what = "twice" if name in found else "no setting"
                raise SpecError(f"{CONFIGURATION_FILE}: {name!r} under readers is {what}.")
            found[name] = readers
    for name in settings:
        if name not in found:
            raise SpecError(f"{CONFIGURATION_FILE}: nothing is said about who reads {name!r}.")
    return MappingProxyType(found)


def _setting(entry: Mapping[str, Any], reference: Mapping[str, ReferenceField]) -> Setting:
    """Make a setting; its legacy key and the dataclass default follow from the field that it is there."""
    setting = Setting(**{key: _frozen(value) for key, value in entry.items()})
    name = setting.there.get("tensorflow")
    if name is None:
        return setting
    if name not in reference:
        raise SpecError(f"{CONFIGURATION_FILE}: {setting.name} is {name!r} there, which is no field of the reference.")
    field = reference[name]
    there = {"tensorflow": name, **({"legacy": field.legacy} if field.legacy else {})}
    default = field.default if field.becomes is None else field.becomes
    defaults: dict[str, Value] = {"tensorflow": setting.values_there.get(str(default), default)}
    return dataclasses.replace(
        setting,
        there=MappingProxyType(there | dict(setting.there)),
        defaults_there=MappingProxyType(defaults | dict(setting.defaults_there)),
    )


def _counterparts(
    settings: Mapping[str, Setting], only_there: tuple[Foreign, ...], reference: Mapping[str, ReferenceField]
) -> Mapping[str, Mapping[str, Setting | Foreign]]:
    found: dict[str, dict[str, Setting | Foreign]] = {"tensorflow": {}, "legacy": {}, "seed": {}, "torch": {}}

    def add(source: str, name: str, what: Setting | Foreign) -> None:
        if name in found[source]:
            raise SpecError(f"{CONFIGURATION_FILE}: {name!r} of {source} is there twice.")
        found[source][name] = what

    for setting in settings.values():
        for source, name in setting.there.items():
            add(source, name, setting)
    for foreign in only_there:
        for name in foreign.names:
            add(foreign.source, name, foreign)
            # A field that is no setting has a key in the dictionary all the same; training and inference share some.
            key = reference[name].legacy if name in reference else ""
            if foreign.source == "tensorflow" and key:
                found["legacy"].setdefault(key, foreign)
    return MappingProxyType({source: MappingProxyType(names) for source, names in found.items()})


def _hints(
    settings: Mapping[str, Setting], counterparts: Mapping[str, Mapping[str, Setting | Foreign]]
) -> dict[str, str]:
    hints: dict[str, str] = {}
    every = [(name, what) for names in counterparts.values() for name, what in names.items()]
    # Settings first: what takes a name's place says more than the reason why nothing does.
    for name, what in sorted(every, key=lambda each: isinstance(each[1], Foreign)):
        here = settings[what.here] if isinstance(what, Foreign) and what.here else what
        text = f"{_NOT_HERE}{here.reason}" if isinstance(here, Foreign) else f"{_HERE}{here.name} ({here.owner})"
        for spelling in _spellings(name):
            known = hints.get(spelling, _NOT_HERE)
            if text.startswith(_HERE) and known.startswith(_HERE) and text != known:
                raise SpecError(f"{CONFIGURATION_FILE}: {spelling!r} has two meanings, {known} and {text}.")
            # A replacement says more than the reason why there is none; of two reasons, the first one stays.
            if spelling not in settings and (spelling not in hints or text.startswith(_HERE)):
                hints[spelling] = text
    return hints


def _spellings(name: str) -> Iterator[str]:
    """Yield a name with and without its section.

    >>> list(_spellings("model.object.big"))
    ['model.object.big', 'object.big']
    """
    yield name
    section, _, rest = name.partition(".")
    if section in _SECTIONS and rest:
        yield rest


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return MappingProxyType(value) if isinstance(value, dict) else value


def same_value(one: Value, other: Value) -> bool:
    """Compare values; a truth value is not a number, and 1 is 1.0.

    >>> same_value(1, 1.0), same_value(True, 1)
    (True, False)
    """
    return isinstance(one, bool) == isinstance(other, bool) and one == other
