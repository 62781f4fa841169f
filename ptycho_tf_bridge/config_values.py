"""What became of a setting on its way between this project and the TensorFlow reference, and how values are spelled."""

from __future__ import annotations

import dataclasses
import math
from pathlib import PurePath
from typing import Any, Literal

from ptycho_torch.contracts.config_schema import ReferenceField, Setting, Value, load_schema, same_value

Change = Literal["same", "renamed", "converted", "default", "ignored", "collision", "not here", "not there", "unknown"]
"""What became of a field.

``same`` and ``renamed`` keep the value; ``converted`` spells it otherwise; ``default`` is stated on one side only, the
other has its default; ``ignored`` is stated, but the reference does something else, which is taken; ``collision`` is a
name that means something else on the other side; ``not here`` and ``not there`` have no counterpart; ``unknown`` is a
key of a file that the reference drops without a word.
"""

KEPT: tuple[Change, ...] = ("same", "renamed", "converted")
"""What survives the way there and back."""

UNKNOWN: Any = object()
"""What a backend does instead is not known: it does nothing of the kind."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one field or setting.

    Attributes:
        field_there: dataclass field with its section, or legacy key; empty if there is none.
        value_there: as it is there; text for what is no single value.
        field_here: the setting; empty if there is none.
        value_here: as it is here; None too where there is no setting.
        change: see ``Change``.
        reason: why, in whole sentences; empty where nothing changed.
        in_effect: whether the reference really runs with ``value_there``.
    """

    field_there: str
    value_there: Value
    field_here: str
    value_here: Value
    change: Change
    reason: str = ""
    in_effect: bool = True


class NoCounterpartError(Exception):
    """A value that the other side does not have; the message says what it has."""


def spelled_here(setting: Setting, value: Any) -> Value:
    """Spell a value as it is spelled here.

    Raises:
        NoCounterpartError: there is no such value here.
    """
    value = _pair(setting, value)
    for theirs, ours in setting.values_there.items():
        if same_value(value, theirs):
            return ours
    if isinstance(value, str) and setting.type in ("int", "float"):
        try:
            value = float(value)
        except ValueError:
            raise NoCounterpartError(f"is not a number; expected {setting.type}.") from None
    if setting.choices and value not in setting.choices:
        known = sorted({*map(str, setting.values_there), *setting.choices})
        raise NoCounterpartError(f"has no counterpart here; there is one for {', '.join(known)}.")
    if (
        value is None
        or isinstance(value, bool) != (setting.type == "bool")
        or isinstance(value, str) != (setting.type == "str")
    ):
        if value is None and setting.optional:
            return None
        raise NoCounterpartError(f"is no value of this kind here; expected {setting.type}.")
    if setting.type == "float":
        try:
            return float(value)
        except OverflowError:
            raise NoCounterpartError("is larger than any number here.") from None
    if setting.type == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value  # type: ignore[no-any-return]


def spelled_there(setting: Setting, value: Value, field: ReferenceField | None) -> Value:
    """Spell a value as it is spelled there: itself, or another one that means it."""
    for theirs in (value, *setting.values_there):
        try:
            means = spelled_here(setting, theirs)
        except NoCounterpartError:
            continue
        allowed = (
            field is None
            or theirs is None
            or (
                (not field.choices or theirs in field.choices)
                and (field.minimum is None or isinstance(theirs, str) or float(theirs) >= field.minimum)
            )
        )
        if allowed and same_value(means, value):
            return theirs
    known = f"; known: {', '.join(map(str, field.choices))}" if field is not None and field.choices else ""
    raise NoCounterpartError(f"cannot be said there{known}.")


def _pair(setting: Setting, value: Any) -> Any:
    if setting.name == "gridsize" and isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise NoCounterpartError("is no square grid; a group holds gridsize × gridsize patterns.")
        value = value[0]
    return plain(value)


def plain(value: Any) -> Value:
    """Return a single value as Python has it, and words for anything else.

    >>> plain(PurePath("a") / "b"), plain([1, 2])
    ('a/b', '[1, 2]')
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if value.shape == () and hasattr(value, "item"):
            value = value.item()
        else:
            return f"{value.dtype} array {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, PurePath) else repr(value)[:80]


def kept(name: str, setting: Setting) -> Change:
    """Return what became of a field that keeps its value."""
    return "same" if name.rpartition(".")[2] == setting.name else "renamed"


def is_unread(setting: Setting, backend: str) -> bool:
    """Whether a backend of the reference does not do what the setting's counterpart says."""
    if not setting.there:
        return False
    fixed = backend == "tensorflow" and "tensorflow" in setting.there and "tensorflow_code" in setting.defaults_there
    return fixed or setting.backend not in ("", backend)


def effect_of(setting: Setting, backend: str) -> Any:
    """Return what a backend does that does not read the setting's counterpart; ``UNKNOWN`` where it does nothing."""
    if backend == "tensorflow":
        return setting.defaults_there.get("tensorflow_code", UNKNOWN)
    return setting.default


def is_in_effect(setting: Setting, value: Value, source: str, backend: str) -> bool:
    """Whether a backend of the reference does what a value of ours says: it reads it, or happens to do the same."""
    effect = effect_of(setting, backend)
    if not is_unread(setting, backend) or same_value(value, effect):
        return True
    return effect is UNKNOWN and is_default(setting, value, source)


def is_default(setting: Setting, value: Value, source: str) -> bool:
    """Whether a value, in our terms, may be there because nobody has set it."""
    defaults = setting.defaults_there
    return any(same_value(value, defaults[side]) for side in ("tensorflow", source) if side in defaults)


def becomes(setting: Setting) -> bool:
    """Whether the dataclass puts something in the place of None."""
    field = load_schema().reference.get(setting.there.get("tensorflow", ""))
    return field is not None and field.becomes is not None


def not_followed(setting: Setting, backend: str) -> str:
    """Say that a backend of the reference does not do what a field says, and what it does."""
    effect = effect_of(setting, backend)
    side = "TensorFlow" if backend == "tensorflow" else "The reference's PyTorch side"
    says = f"{side} does not follow it" + ("." if effect is UNKNOWN else f"; it has {shown_as(effect)}.")
    return f"{says} {setting.note}".strip()


def shown_as(value: Value) -> str:
    """Write a value for people."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def flag_wins(field: ReferenceField, value: Value) -> tuple[str, Value]:
    """Say why the reference's command has the default of its flag, and which; nothing if it has the value."""
    if field.section == "inference" or field.required or field.default is None or same_value(value, field.default):
        return "", None
    advice = "write it into 'model:'." if field.section == "model" else f"pass {flag_of(field, value)} as well."
    if field.type == "bool" and not value:
        advice = f"its flag cannot say no, because {flag_of(field, value)} is true; set it in code."
    return (
        f"The flags of ptycho_train win over this line: it runs with {shown_as(field.default)}; {advice}",
        field.default,
    )


def flag_of(field: ReferenceField, value: Value) -> str:
    """Return the flag of the reference's command that sets a field."""
    return f"--{field.name} {value}"
