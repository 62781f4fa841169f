"""What becomes of a setting of ptychodus: it becomes one of ours, or is refused by name with the reason.

<doc-ref type="guide">docs/ptychodus.md</doc-ref> has the rule of every field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ptycho_torch.config_params import Settings
from ptycho_torch.errors import ConfigError

_KEY = "rule"
_NOTHING: Any = object()


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of one field.

    Attributes:
        says: what becomes of it, and why not of other values.
        setting: the setting of ours that the value becomes, or empty.
        values: (value, ours) of all values that are taken; None takes any that ``setting`` takes or, without one, that
            is of the default's type.
        replaced: a value that is taken and replaced by what this network has, with a warning.
        least: the lowest number.
    """

    says: str
    setting: str = ""
    values: tuple[tuple[Any, Any], ...] | None = None
    replaced: Any = _NOTHING
    least: float = -math.inf

    def ours(self, value: Any) -> Any:
        """Return what a value that is taken becomes."""
        return value if self.values is None else next(ours for theirs, ours in self.values if _same(theirs, value))

    def theirs(self, ours: Any, default: Any) -> Any:
        """Return the value that becomes a setting of ours; the default where none does."""
        return ours if self.values is None else next((value for value, each in self.values if each == ours), default)

    def replaces(self, value: Any) -> bool:
        """Whether a value is taken and replaced."""
        return _same(value, self.replaced)

    def complaint(self, value: Any, default: Any) -> str:
        """Say why a value is not taken; empty where it is."""
        if self.replaces(value):
            return ""
        if self.values is not None:
            return "" if any(_same(value, each) for each, _ in self.values) else self.says
        if not self.setting or (value is None and default is not None):
            return "" if _is_like(value, default) and self._in_range(value) else self._expected(default)
        try:
            Settings().override({self.setting: value})
        except ConfigError as err:
            return str(err)
        return ""

    def _in_range(self, value: Any) -> bool:
        return not isinstance(value, int | float) or value >= self.least

    def _expected(self, default: Any) -> str:
        bound = "" if self.least == -math.inf else f", {self.least:g} or more"
        return f"expected {type(default).__name__}, as {default!r}{bound}"


def ruled(default: Any, rule: Rule) -> Any:
    """Return a dataclass field with its rule."""
    return dataclasses.field(default=default, metadata={_KEY: rule})


def becomes(default: Any, setting: str, says: str = "", values: Mapping[Any, Any] | None = None) -> Any:
    """Return a field that becomes a setting of ours."""
    pairs = None if values is None else tuple(values.items())
    return ruled(default, Rule(says or f"becomes our `{setting}`", setting, pairs))


def only(default: Any, says: str, *values: Any, replaced: Any = _NOTHING) -> Any:
    """Return a field of which only some values are taken."""
    return ruled(default, Rule(says, values=tuple((each, each) for each in values), replaced=replaced))


def used(default: Any, says: str, least: float = -math.inf) -> Any:
    """Return a field that is used, or kept, by itself."""
    return ruled(default, Rule(says, least=least))


def belongs_to(default: Any, other: str) -> Any:
    """Return a field that takes effect only with a choice that is refused."""
    return ruled(default, Rule(f"takes effect only with {other}, which is refused"))


class Ruled:
    """A value whose fields have rules; they are checked at once, and again when one is set.

    Raises:
        ConfigError: every field that is refused, by name and with the reason.
    """

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        complaints = [each for name, value in values.items() if (each := self._complaint(name, value))]
        if complaints := complaints or self._together():
            raise ConfigError(" ".join(complaints))
        object.__setattr__(self, "_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_made" in vars(self) and (complaint := self._complaint(name, value)):
            raise ConfigError(complaint)
        object.__setattr__(self, name, value)

    def _together(self) -> list[str]:
        """Say which fields do not go together."""
        return []

    @classmethod
    def rules(cls) -> dict[str, tuple[Any, Rule]]:
        """Return default and rule of every field by name."""
        return {field.name: (field.default, field.metadata[_KEY]) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Any:
        """Make the value from names and values.

        Raises:
            ConfigError: a name that no field has, or as the class.
        """
        known = cls.rules()
        for name in values:
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no {name!r}; it has {', '.join(known)}.")
        return cls(**values)

    def _complaint(self, name: str, value: Any) -> str:
        known = self.rules()
        if name not in known:
            return f"{type(self).__name__} has no {name!r}; it has {', '.join(known)}."
        default, rule = known[name]
        complaint = rule.complaint(value, default)
        return complaint and f"{type(self).__name__}.{name} = {value!r} is refused: {complaint.removesuffix('.')}."

    def ours(self) -> dict[str, Any]:
        """Return the settings of ours that fields become."""
        return {
            rule.setting: rule.ours(getattr(self, name))
            for name, (_, rule) in self.rules().items()
            if rule.setting and not rule.replaces(getattr(self, name))
        }

    def replaced(self) -> list[str]:
        """Say which values are taken and replaced, and by what."""
        return [
            f"{type(self).__name__}.{name} = {getattr(self, name)!r}: {rule.says}"
            for name, (_, rule) in self.rules().items()
            if rule.replaces(getattr(self, name))
        ]


def _same(value: Any, other: Any) -> bool:
    # True is 1 in Python, and a tensor's comparison is a tensor.
    return type(value) is type(other) and bool(value == other)


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(default))
