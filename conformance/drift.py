"""The dataclasses of an installed reference against those that ``specs/configuration.yaml`` knows.

``pytest conformance --parity-tf-config PACKAGE.MODULE`` lists every drift. The module is the one that holds the
reference's configuration, normally ``ptycho.config.config``; nothing else of the reference is used.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import MappingProxyType, ModuleType
from typing import Any, Literal, get_args, get_origin

from conformance.errors import DriftError
from ptycho_torch.config_schema import ReferenceField, Value, load_schema, same_value
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

_MISSING = "no default"


@dataclasses.dataclass(frozen=True)
class Drift:
    """One difference between the reference that is installed and the table.

    Attributes:
        kind: a key of ``CLAUSES``.
        field: dataclass and field; a dataclass alone where all of it is new or gone.
        expected: what the table says.
        found: what the reference says.
    """

    kind: str
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{CLAUSES[self.kind]} {self.kind}: {self.field}: expected {self.expected}, found {self.found}"


def import_reference(name: str) -> ModuleType:
    """Import the module that holds the reference's dataclasses.

    Raises:
        DriftError: it cannot be imported, or holds none of them.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module(name)
    except Exception as err:
        raise DriftError(
            f"{name} cannot be imported ({_raised(err)}). Install the TensorFlow reference, and name the module that "
            "holds its dataclasses, for example ptycho.config.config."
        ) from err
    if not any(_dataclass(module, kind) for kind in DATACLASSES.values()):
        raise DriftError(
            f"{name} holds none of the reference's dataclasses ({', '.join(DATACLASSES.values())}); name the module "
            "that does, for example ptycho.config.config."
        )
    return module


def drifts(module: ModuleType) -> tuple[Drift, ...]:
    """Return every difference between the dataclasses of a module and the table, by dataclass.

    Args:
        module: of ``import_reference``. Its dataclasses are made, with defaults, to see what they become.
    """
    return tuple(_drifts(module))


def _drifts(module: ModuleType) -> Iterator[Drift]:
    known = load_schema().reference.values()
    for section, name in DATACLASSES.items():
        expected = {field.name: field for field in known if field.section == section}
        kind = _dataclass(module, name)
        if kind is None:
            yield Drift("vanished", name, f"a dataclass of {len(expected)} fields", "none of this name")
            continue
        found = {field.name: field for field in dataclasses.fields(kind)}
        for field in found:
            if field not in expected:
                shown = _default(found[field])
                yield Drift("new", f"{name}.{field}", "no such field", f"one with {_described(shown)}")
        annotations = _annotations(kind)
        for field, entry in expected.items():
            if field in found:
                yield from _differences(f"{name}.{field}", entry, _default(found[field]), annotations.get(field))
            elif not entry.retired:
                yield Drift("vanished", f"{name}.{field}", f"a field with {_wanted(entry)}", "none of this name")
        yield from _made(module, name, kind, expected, found)
    for name, value in vars(module).items():
        ours = isinstance(value, type) and value.__module__ == module.__name__
        if ours and dataclasses.is_dataclass(value) and name not in DATACLASSES.values():
            yield Drift("new", name, "no such dataclass", f"one of {len(dataclasses.fields(value))} fields")


def _differences(name: str, entry: ReferenceField, default: Any, annotation: Any) -> Iterator[Drift]:
    """Yield what differs in default, type and choices of one field."""
    required = default is dataclasses.MISSING
    if required != entry.required or (not required and not same_value(_plain(default), entry.default)):
        yield Drift("default", name, _wanted(entry), _described(default))
    if annotation is None:
        return
    choices, kinds = set(_choices(annotation)), set(_kinds(annotation))
    if choices and choices != set(entry.choices):
        yield Drift("choices", name, _listed(entry.choices), _listed(choices))
    if kinds and entry.type not in kinds:
        yield Drift("choices", name, entry.type, " or ".join(sorted(kinds)))


def _made(
    module: ModuleType, name: str, kind: Any, expected: Mapping[str, ReferenceField], found: Mapping[str, Any]
) -> Iterator[Drift]:
    """Yield what differs in the instance that a dataclass makes, and in the legacy keys of its fields."""
    try:
        instance = _instance(module, kind)
    except Exception as err:
        yield Drift("default", name, "a dataclass that its required fields make", _raised(err))
        return
    for field, entry in expected.items():
        if field in found and entry.becomes is not None:
            value = _plain(getattr(instance, field))
            if not same_value(value, entry.becomes):
                yield Drift("default", f"{name}.{field}", f"{entry.becomes} in place of None", f"{value}")
    if name == DATACLASSES["execution"]:
        return
    for field, entry in expected.items():
        if field in found and entry.legacy:
            try:
                keys = _legacy_keys(module, instance, field)
            except Exception as err:
                yield Drift("legacy name", f"{name}.{field}", entry.legacy, _raised(err))
                continue
            if keys is not None and entry.legacy not in keys:
                yield Drift("legacy name", f"{name}.{field}", entry.legacy, " and ".join(sorted(keys)) or "no key")


def has_legacy_names(module: ModuleType) -> bool:
    """Whether the module says which legacy key a field has."""
    return callable(getattr(module, "dataclass_to_legacy_dict", None)) or hasattr(module, "KEY_MAPPINGS")


def _legacy_keys(module: ModuleType, instance: Any, field: str) -> set[str] | None:
    """Return the keys whose value follows a field; None where the module does not say it."""
    spread = getattr(module, "dataclass_to_legacy_dict", None)
    if not callable(spread):
        renamed = getattr(module, "KEY_MAPPINGS", None)
        return None if renamed is None else {renamed.get(field, field)}
    with warnings.catch_warnings(action="ignore"):
        before = dict(spread(instance))
        after = dict(spread(dataclasses.replace(instance, **{field: _other(getattr(instance, field))})))
    return {key for key in {*before, *after} if before.get(key) != after.get(key)}


def _other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, PurePath):
        return value / "other"
    return f"{value}_other" if isinstance(value, str) else 7 if value is None else value + 1


def _instance(module: ModuleType, kind: Any) -> Any:
    """Make a dataclass with its defaults, and with what its required fields need."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if _default(field) is dataclasses.MISSING:
            model = _dataclass(module, DATACLASSES["model"])
            given[field.name] = model() if field.name == "model" and model is not None else PurePath("somewhere")
    with warnings.catch_warnings(action="ignore"):
        return kind(**given)


def _dataclass(module: ModuleType, name: str) -> Any:
    kind = getattr(module, name, None)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _annotations(kind: Any) -> Mapping[str, Any]:
    """Return the annotations of a dataclass; those alone that can be read."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):
        return {field.name: field.type for field in dataclasses.fields(kind) if not isinstance(field.type, str)}


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    elif annotation is not types.NoneType:
        yield annotation


def _choices(annotation: Any) -> Iterator[Any]:
    for each in _alternatives(annotation):
        if get_origin(each) is Literal:
            yield from (value for value in get_args(each) if value is not None)


def _kinds(annotation: Any) -> Iterator[str]:
    for each in _alternatives(annotation):
        if get_origin(each) is Literal:
            yield from (type(value).__name__ for value in get_args(each) if value is not None)
        elif isinstance(kind := get_origin(each) or each, type):
            yield kind.__name__


def _raised(err: Exception) -> str:
    return f"{type(err).__name__}: {one_line(str(err))}"


def _plain(value: Any) -> Value:
    return str(value) if isinstance(value, PurePath) else value


def _described(default: Any) -> str:
    return _MISSING if default is dataclasses.MISSING else f"default {_plain(default)!r}"


def _wanted(entry: ReferenceField) -> str:
    return _MISSING if entry.required else f"default {entry.default!r}"


def _listed(values: Any) -> str:
    return ", ".join(sorted(map(str, values))) or "any"
