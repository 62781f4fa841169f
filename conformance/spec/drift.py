"""The dataclasses of a reference against those that ``specs/configuration.yaml`` knows.

``pytest conformance --parity-tf-config PACKAGE.MODULE`` lists every drift, with what it means for a converted
configuration and the row of the table that would be right. The module is the one that holds the reference's
configuration, normally ``ptycho.config.config``; nothing else of the reference is used.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType, ModuleType
from typing import Any, Literal, get_args, get_origin

import yaml

from conformance.errors import DriftError
from ptycho_tf_bridge.config_values import NoCounterpartError, spelled_here
from ptycho_tf_bridge.errors import LiveReferenceError
from ptycho_tf_bridge.reference_path import import_name
from ptycho_torch.contracts.config_schema import Foreign, ReferenceField, Setting, Value, load_schema, same_value
from ptycho_torch.errors import one_line

CLAUSES: Mapping[str, str] = MappingProxyType(
    {
        "new": "CONFIG-01",
        "vanished": "CONFIG-02",
        "default": "CONFIG-03",
        "choices": "CONFIG-04",
        "legacy name": "CONFIG-05",
    }
)
"""Kind of drift → the clause that it breaks."""

DATACLASSES: Mapping[str, str] = MappingProxyType(
    {
        "model": "ModelConfig",
        "training": "TrainingConfig",
        "inference": "InferenceConfig",
        "execution": "PyTorchExecutionConfig",
    }
)
"""Section of the table → name of the dataclass."""

_CONFIGURATION = "config.config"
"""Module of the reference's package that holds the dataclasses."""

_KNOWN_AS = {
    "default": ("default", "required", "becomes"),
    "choices": ("type", "optional", "choices", "unlisted", "also"),
}
"""Kind of drift → attributes of a row that it is about."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """One difference between a reference and the table.

    Attributes:
        kind: a key of ``CLAUSES``.
        field: dataclass and field; a dataclass alone where all of it is new or gone.
        expected: what the table says.
        found: what the reference says.
        means: what it means for a converted configuration, in whole sentences.
    """

    kind: str
    field: str
    expected: str
    found: str
    means: str

    def __str__(self) -> str:
        """Return one line."""
        what = f"expected {self.expected}, found {self.found}"
        return f"{CLAUSES[self.kind]} {self.kind}: {self.field}: {what}. {self.means}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A reference beside the table.

    Attributes:
        fields: of its dataclasses, in order, as rows of the table would have them.
        drifts: every difference, by dataclass.
    """

    fields: tuple[ReferenceField, ...]
    drifts: tuple[Drift, ...]


def import_reference(name: str) -> ModuleType:
    """Import the module that holds the reference's dataclasses.

    Args:
        name: of the module, or the path of a checkout of the reference or of its package.

    Raises:
        DriftError: it cannot be imported, or holds none of them.
    """
    try:
        package = import_name(name)
    except LiveReferenceError as err:
        raise DriftError(str(err)) from err
    module_name = name if package == name else f"{package}.{_CONFIGURATION}"
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module(module_name)
    except Exception as err:
        raise DriftError(
            f"{name} cannot be imported ({_raised(err)}). Install the TensorFlow reference, and name the module that "
            "holds its dataclasses, for example ptycho.config.config, or name the path of a checkout."
        ) from err
    if not any(_dataclass(module, kind) for kind in DATACLASSES.values()):
        raise DriftError(
            f"{name} holds none of the reference's dataclasses ({', '.join(DATACLASSES.values())}); name the module "
            "that does, for example ptycho.config.config."
        )
    return module


def compare(module: ModuleType) -> Comparison:
    """Read the dataclasses of a module, and hold each field against its row of the table.

    Args:
        module: of ``import_reference``. Its dataclasses are made, with defaults and with each choice of the table, to
            see what they become.
    """
    known = load_schema().reference.values()
    fields: list[ReferenceField] = []
    drifts: list[Drift] = []
    for section, name in DATACLASSES.items():
        expected = {field.name: field for field in known if field.section == section}
        kind = _dataclass(module, name)
        if kind is None:
            means = "No configuration of this kind can be converted."
            drifts.append(Drift("vanished", name, f"a dataclass of {len(expected)} fields", "none of this name", means))
            continue
        instance, error = _instance(module, kind)
        if instance is None:
            means = "What its fields become, and their legacy keys, cannot be seen."
            drifts.append(Drift("default", name, "a dataclass that its required fields make", error, means))
        read = {each.name: _row(module, section, each, instance, kind, expected) for each in dataclasses.fields(kind)}
        fields += read.values()
        drifts += _drifts(name, expected, read)
        drifts += _refused(name, expected, read, instance)
    for name, value in vars(module).items():
        ours = isinstance(value, type) and value.__module__ == module.__name__
        if ours and dataclasses.is_dataclass(value) and name not in DATACLASSES.values():
            found = f"one of {len(dataclasses.fields(value))} fields"
            drifts.append(Drift("new", name, "no such dataclass", found, "Nothing of it is read or written here."))
    return Comparison(tuple(fields), tuple(drifts))


def has_legacy_names(module: ModuleType) -> bool:
    """Whether the module says which legacy key a field has."""
    return callable(getattr(module, "dataclass_to_legacy_dict", None)) or hasattr(module, "KEY_MAPPINGS")


# ------------------------------------------------------------------------------------------------- reading a dataclass


def _row(
    module: ModuleType,
    section: str,
    field: dataclasses.Field[Any],
    instance: Any,
    kind: Any,
    table: Mapping[str, ReferenceField],
) -> ReferenceField:
    """Describe a field of a dataclass as its row of the table would."""
    entry = table.get(field.name)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    made = None if instance is None or required else _plain(getattr(instance, field.name))
    # What replaces another value than None depends on the machine: "auto" becomes what is there.
    becomes = made if default is None else None
    if instance is None and entry is not None:
        becomes = entry.becomes
    names, literals, optional = _annotation(kind, field)
    also, choices = (literals, ()) if names and literals else ((), literals)
    types_named = names or tuple(dict.fromkeys(type(each).__name__ for each in literals))
    unlisted = entry is not None and entry.unlisted and not literals
    return ReferenceField(
        section=section,
        name=field.name,
        type=" or ".join(types_named),
        default=None if required else _plain(default),
        optional=optional,
        required=required,
        becomes=becomes,
        minimum=None if entry is None else entry.minimum,
        choices=entry.choices if entry is not None and unlisted else choices,
        unlisted=unlisted,
        also=also,
        legacy=_legacy_key(module, section, field.name, instance, entry, types_named, choices),
        retired=entry is not None and entry.retired,
    )


def _annotation(kind: Any, field: dataclasses.Field[Any]) -> tuple[tuple[str, ...], tuple[Value, ...], bool]:
    """Return the names of the types that a field may have, the values that it lists, and whether it may be None."""
    module = importlib.import_module(kind.__module__)
    try:
        annotation = typing.get_type_hints(types.SimpleNamespace(__annotations__={"_": field.type}), vars(module))["_"]
    except Exception as err:
        return (f"{field.type} ({_raised(err)})",), (), False
    alternatives = list(_alternatives(annotation))
    literals = [value for each in alternatives if get_origin(each) is Literal for value in get_args(each)]
    names = [
        (get_origin(each) or each).__name__ if isinstance(get_origin(each) or each, type) else str(each)
        for each in alternatives
        if get_origin(each) is not Literal and each is not types.NoneType
    ]
    optional = None in literals or types.NoneType in alternatives
    return tuple(dict.fromkeys(names)), tuple(each for each in literals if each is not None), optional


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation


def _legacy_key(
    module: ModuleType,
    section: str,
    name: str,
    instance: Any,
    entry: ReferenceField | None,
    types_named: Sequence[str],
    choices: Sequence[Value],
) -> str:
    """Return the key whose value follows a field: that of the table where it is one of them; else all, or why none."""
    expected = "" if entry is None else entry.legacy
    # PyTorchExecutionConfig never goes there, and the nested model is spread over the dictionary.
    if section == "execution" or instance is None or (entry is not None and not expected):
        return expected
    spread, renamed = getattr(module, "dataclass_to_legacy_dict", None), getattr(module, "KEY_MAPPINGS", None)
    if not callable(spread):
        return expected if renamed is None else str(renamed.get(name, name))
    keys: set[str] = set()
    raised = ""
    for other in _others(getattr(instance, name), types_named, choices):
        try:
            with warnings.catch_warnings(action="ignore"):
                changed = dataclasses.replace(instance, **{name: other})
                before, after = (dict(spread(each)) for each in (instance, changed))
        except Exception as err:
            raised = _raised(err)
            continue
        keys |= {key for key in {*before, *after} if before.get(key) != after.get(key)}
    if expected in keys or (entry is None and not keys):
        return expected or name
    return " and ".join(sorted(keys)) or raised or "no key"


def _others(value: Any, types_named: Sequence[str], choices: Sequence[Value]) -> list[Any]:
    """Return other values that a field may have."""
    if choices or "bool" in types_named:
        return [each for each in (choices or (True, False)) if each != value]
    if isinstance(value, PurePath):
        return [value / "other"]
    return [f"{value}_other" if isinstance(value, str) else 7 if value is None else value + 1]


def _instance(module: ModuleType, kind: Any) -> tuple[Any, str]:
    """Make a dataclass with its defaults, and with what its required fields need; or say what it raised."""
    given: dict[str, Any] = {}
    model = _dataclass(module, DATACLASSES["model"])
    try:
        for field in dataclasses.fields(kind):
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                is_model = field.name == "model" and model is not None
                given[field.name] = model() if is_model else PurePath("somewhere")
        with warnings.catch_warnings(action="ignore"):
            return kind(**given), ""
    except Exception as err:
        return None, _raised(err)


def _dataclass(module: ModuleType, name: str) -> Any:
    kind = getattr(module, name, None)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _raised(err: Exception) -> str:
    return f"{type(err).__name__}: {one_line(str(err))}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value


# --------------------------------------------------------------------------------------------------------- differences


def _drifts(dataclass: str, table: Mapping[str, ReferenceField], read: Mapping[str, ReferenceField]) -> Iterator[Drift]:
    gone = {name: entry for name, entry in table.items() if name not in read and not entry.retired}
    fresh = {name: found for name, found in read.items() if name not in table}
    for name, found in fresh.items():
        former = [each for each, entry in gone.items() if _alike(entry, found)]
        means = "No row of the table has it: a file that sets it sets nothing here, and it is reported or refused."
        yield Drift("new", f"{dataclass}.{name}", "no such field", row(found), _perhaps(means, former))
    for name, entry in gone.items():
        now = [each for each, found in fresh.items() if _alike(entry, found)]
        means = _perhaps(_what_vanishing_means(entry), now)
        yield Drift("vanished", f"{dataclass}.{name}", row(entry), "none of this name", means)
    for name in [each for each in table if each in read]:
        entry, found = table[name], read[name]
        for kind, attributes in _KNOWN_AS.items():
            if not all(_equal(getattr(entry, each), getattr(found, each)) for each in attributes):
                meaning = _what_default_means if kind == "default" else _what_choices_mean
                there, here = (_shown(each, kind) for each in (entry, found))
                yield Drift(kind, f"{dataclass}.{name}", there, here, meaning(entry, found))
        if entry.legacy != found.legacy:
            yield Drift("legacy name", f"{dataclass}.{name}", entry.legacy, found.legacy, _what_key_means(entry, found))


def _refused(
    dataclass: str, table: Mapping[str, ReferenceField], read: Mapping[str, ReferenceField], instance: Any
) -> Iterator[Drift]:
    """Yield each choice of the table that the dataclass lists, or lists none, and refuses all the same."""
    for name in [each for each in table if each in read and instance is not None]:
        for choice in [each for each in table[name].choices if each in read[name].choices]:
            try:
                with warnings.catch_warnings(action="ignore"):
                    dataclasses.replace(instance, **{name: choice})
            except Exception as err:
                means = f"An exported configuration that says {choice!r} is refused there."
                yield Drift("choices", f"{dataclass}.{name}", f"{choice!r} among the choices", _raised(err), means)


def _equal(one: Any, other: Any) -> bool:
    """Compare values, or sets of them; a truth value is not a number."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return {(type(each), each) for each in one} == {(type(each), each) for each in other}
    return same_value(one, other)


def _alike(one: ReferenceField, other: ReferenceField) -> bool:
    """Whether two fields of different names may be one that was renamed."""
    described = [dataclasses.replace(each, name="", legacy="", minimum=None) for each in (one, other)]
    return described[0] == described[1]


def _perhaps(means: str, names: Sequence[str]) -> str:
    return f"{means} Perhaps it is {names[0]} under another name." if len(names) == 1 else means


def _shown(field: ReferenceField, kind: str) -> str:
    if kind == "default":
        text = "no default" if field.required else f"default {field.default!r}"
        return text if field.becomes is None else f"{text} that becomes {field.becomes!r}"
    values = ", ".join(sorted(map(str, field.also or field.choices)))
    text = field.type + (f" or {values}" if field.also else f", one of {values}" if values else "")
    text += " (listed by no annotation)" if field.unlisted else ""
    return f"{text}, or None" if field.optional else text


def row(field: ReferenceField) -> str:
    """Return a field as its row of ``specs/configuration.yaml``.

    >>> row(ReferenceField("training", "nepochs", "int", default=50, legacy="nepochs"))
    '{type: int, default: 50}'
    """
    default = {} if field.required else {"default": field.default}
    set_ones = {
        name: list(value) if isinstance(value, tuple) else value
        for name in ("type", "required", "optional", "minimum", "choices", "unlisted", "also", "becomes", "retired")
        if (value := getattr(field, name)) not in (None, False, ())
    }
    legacy = {"legacy": field.legacy} if field.legacy not in ("", field.name) else {}
    return yaml.safe_dump(set_ones | default | legacy, default_flow_style=True, sort_keys=False, width=10_000).strip()


# --------------------------------------------------------------------------------------------------- what a drift means


def _counterpart(field: ReferenceField) -> Setting | Foreign:
    return load_schema().counterparts["tensorflow"][field.full_name]


def _unchanged(what: Foreign) -> str:
    return f"It has no counterpart here, so a converted configuration stays as it is. {what.reason}"


def _here(setting: Setting, value: Value) -> str:
    """Say what a value there becomes here."""
    try:
        return f"{setting.name} = {spelled_here(setting, value)!r}"
    except NoCounterpartError as err:
        return f"no {setting.name} here, since it {str(err).rstrip('.')}"


def _what_vanishing_means(entry: ReferenceField) -> str:
    what = _counterpart(entry)
    if isinstance(what, Foreign):
        return _unchanged(what)
    default = entry.default if entry.becomes is None else entry.becomes
    return (
        f"A configuration of this reference says nothing of it, and is converted to {_here(what, default)}; an "
        "exported one that says it is refused there."
    )


def _what_default_means(entry: ReferenceField, found: ReferenceField) -> str:
    what = _counterpart(entry)
    if isinstance(what, Foreign):
        return _unchanged(what)
    before, now = (each.default if each.becomes is None else each.becomes for each in (entry, found))
    if found.required:
        return f"Every file of this reference says it; one that leaves it out is converted to {_here(what, before)}."
    return (
        f"A file that leaves it out is converted to {_here(what, before)}, and this reference runs with {now!r}, which "
        f"is {_here(what, now)}."
    )


def _what_choices_mean(entry: ReferenceField, found: ReferenceField) -> str:
    what = _counterpart(entry)
    if isinstance(what, Foreign):
        only = f" Only {', '.join(map(str, what.only))} is converted; anything else is refused." if what.only else ""
        return _unchanged(what) + only
    known, now = ({*each.choices, *each.also} for each in (entry, found))
    means = [f"{value!r} is converted to {_here(what, value)}." for value in sorted(now - known, key=str)]
    # Where no values are listed, every one of the type is taken.
    lost = [each for each in known - now if now or type(each).__name__ not in found.type.split(" or ")]
    means += [f"An exported {value!r} is refused there." for value in sorted(lost, key=str)]
    if entry.optional != found.optional:
        means.append(
            f"None is converted to {_here(what, None)}." if found.optional else "An exported None is refused there."
        )
    if not means:
        means.append(f"Values of {found.type} are converted to {what.name} where they are {what.type}, else refused.")
    return " ".join(means)


def _what_key_means(entry: ReferenceField, found: ReferenceField) -> str:
    what = _counterpart(entry)
    lost = f"Saved parameters and archives of this reference hold nothing under {entry.legacy!r}"
    if isinstance(what, Foreign):
        return f"{lost}; it has no counterpart here, so a converted model stays as it is."
    default = what.defaults_there.get("legacy", what.defaults_there.get("tensorflow", what.default))
    return f"{lost}, so a converted model gets {what.name} = {default!r}, whatever {found.legacy!r} says."


# --------------------------------------------------------------------------------------------------------- for a report


def patch(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of the table that differ, − as it is and + as this reference has it, by section."""
    known = load_schema().reference
    found = {field.full_name: field for field in comparison.fields}
    for section in DATACLASSES:
        lines = []
        for name in [each for each in {**known, **found} if each.startswith(f"{section}.")]:
            one, other = known.get(name), found.get(name)
            if one is None or other is None or not _same_row(one, other):
                if other is None and one is not None and one.retired:
                    continue
                lines += [f"-   {one.name}: {row(one)}"] if one is not None else []
                lines += [f"+   {other.name}: {row(other)}"] if other is not None else []
        if lines:
            yield f"  {section}:"
            yield from lines


def _same_row(one: ReferenceField, other: ReferenceField) -> bool:
    return one.legacy == other.legacy and all(
        _equal(getattr(one, each), getattr(other, each)) for attributes in _KNOWN_AS.values() for each in attributes
    )


def as_markdown(about: str, comparison: Comparison) -> str:
    """Return a page: every drift with what it means, the table's lines that change, and a row for each field.

    Args:
        about: which reference it is, one line.
        comparison: of ``compare``.
    """
    counterparts = load_schema().counterparts["tensorflow"]
    count = f"{len(comparison.drifts)} drifts from specs/configuration.yaml in {len(comparison.fields)} fields"
    lines = ["# The reference's configuration beside the table", "", about, "", f"{count}.", ""]
    lines += [f"- {drift}" for drift in comparison.drifts] + [""] * bool(comparison.drifts)
    changed = list(patch(comparison))
    if changed:
        lines += ["What `reference:` of `specs/configuration.yaml` would have to say:", ""]
        lines += ["```diff", *changed, "```", ""]
    lines += ["| field | type | default | legacy key | here |", "|---|---|---|---|---|"]
    for field in comparison.fields:
        what = counterparts.get(field.full_name)
        if isinstance(what, Setting):
            here = f"`{what.name}` ({what.owner})"
        elif isinstance(what, Foreign):
            here = f"{f'see `{what.here}`' if what.here else 'has no counterpart'} because: {what.reason}"
        else:
            here = "**not in the table**"
        name = f"`{DATACLASSES[field.section]}.{field.name}`"
        default = _shown(field, "default").removeprefix("default ")
        cells = (name, _shown(field, "choices"), default, field.legacy and f"`{field.legacy}`", here)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])
