"""Configurations of the TensorFlow reference as settings of this project, and back.

Both directions read one table, <doc-ref type="contract">specs/configuration.yaml</doc-ref>. Rules, and no guesses:

* What a source states is taken as stated, spelled as it is spelled here.
* What it does not state has the reference's default, not this project's: that of the dataclass or of the legacy
  dictionary, or what TensorFlow's code does whatever a field says.
* Many fields are read only by the reference's PyTorch side. With backend ``tensorflow`` they count as stated where
  they are not at their default, since this is a PyTorch side; with ``as_run`` what TensorFlow did counts.
* Names that mean something else here, and names without a counterpart, are reported and change nothing.

>>> translation = from_legacy({"N": 64, "gridsize": 1, "nepochs": 5})
>>> translation.settings.training.max_epochs, translation.settings.model.probe_scale
(5, 10.0)
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ptycho_tf_bridge.config_export import to_dataclass_fields, to_legacy, to_tensorflow_yaml
from ptycho_tf_bridge.config_values import (
    KEPT,
    UNKNOWN,
    Change,
    Finding,
    NoCounterpartError,
    becomes,
    effect_of,
    flag_wins,
    is_default,
    is_in_effect,
    is_unread,
    kept,
    not_followed,
    plain,
    shown_as,
    spelled_here,
)
from ptycho_torch.commands.settings_options import compose_yaml, yaml_errors, yaml_pairs, yaml_scalar
from ptycho_torch.config_params import Settings
from ptycho_torch.contracts.config_schema import Foreign, ReferenceField, Setting, Value, hint, load_schema, same_value
from ptycho_torch.errors import ConfigError

__all__ = [
    "KEPT",
    "Change",
    "Finding",
    "Translation",
    "from_dataclass",
    "from_legacy",
    "from_yaml",
    "to_dataclass_fields",
    "to_legacy",
    "to_tensorflow_yaml",
]


_AT_THE_TOP = ("training", "model", "inference")
"""Sections whose fields stand at the top of a YAML file, the one that is looked in first first."""

_ALIKE = 0.75
"""Likeness from which a name may be a slip for another one."""

_LEAST_SHARE = 0.75
"""Of the fields of an instance, how many the table has to know to take it for one of the reference."""


@dataclasses.dataclass(frozen=True)
class Translation:
    """Settings, and what became of every field that they come from.

    Attributes:
        settings: complete and checked.
        report: settings first, in the order of the table, then what has no setting.
    """

    settings: Settings
    report: tuple[Finding, ...]


@dataclasses.dataclass(frozen=True)
class _Stated:
    """A value of the source; ``overruled`` says why the reference runs with ``instead``; empty: it does not."""

    value: Any
    at: str
    overruled: str = ""
    instead: Value = None


def from_yaml(path: Path, *, as_run: bool = False) -> Translation:
    """Translate a YAML file of the reference, with its fields at the top or in a ``model:`` mapping.

    The reference's command lets the defaults of its own flags win over all lines outside ``model:``, unless that
    default is None. Such a line is taken as the file says, and the report says what the command ran with. A file with
    keys of the legacy dictionary is read as ``from_legacy`` reads it; JSON is YAML.

    Args:
        path: its size and nesting are bounded, and nothing but single values is made of it.
        as_run: take what ``ptycho_train --config FILE`` ran with in place of what the file says.

    Keys that no dataclass of the reference has are reported, and change nothing: its own reader of such files drops
    them without a word. A file in which no key is known is refused.

    Raises:
        ConfigError: no such YAML, no field in it that the reference has, two values for one thing, or a value that
            cannot be here. It names file, line and field.
    """
    schema = load_schema()
    names = {field.name for field in schema.reference.values()}
    with yaml_errors(path):
        top = yaml_pairs(path, compose_yaml(path), "the file", "fields of the reference")
        own = [name for name in ("training", "data") if name in top and isinstance(top[name][1], yaml.MappingNode)]
        if own:
            raise ConfigError(
                f"{top[own[0]][0]} {own[0]!r} is a section of a configuration of ptycho-torch; the reference's has its "
                "fields at the top or in 'model'. ptycho-bridge config --to tf-yaml translates from ptycho-torch."
            )
        nested = yaml_pairs(path, top.pop("model")[1], "'model'", "fields of the model") if "model" in top else None
        if nested is None and any(name in schema.counterparts["legacy"] and name not in names for name in top):
            stated = {name: _read(at, name, node) for name, (at, node) in top.items()}
            return _translate(stated, "legacy", f"{path}", as_run=as_run)
        stated, unknown = {}, {}
        for name, (at, node) in (nested or {}).items():
            field = _field(name, "model")
            if field is None:
                unknown[f"model.{name}"] = _Stated(_text(node), at)
            else:
                stated[field.full_name] = _read(at, field.full_name, node)
        for name, (at, node) in top.items():
            field = _field(name, *_AT_THE_TOP)
            if field is None:
                unknown[name] = _Stated(_text(node), at)
                continue
            entry, known = _read(at, name, node), stated.get(field.full_name)
            if known is not None and not same_value(known.value, entry.value):
                raise ConfigError(
                    f"{entry.at} is {entry.value!r} here and {known.value!r} in 'model', which wins in the reference; "
                    "keep one of them."
                )
            if known is None:
                overruled, instead = flag_wins(field, plain(entry.value))
                stated[field.full_name] = dataclasses.replace(entry, overruled=overruled, instead=instead)
    if unknown and not stated:
        every = " ".join(f"{entry.at} {name!r} {_no_field(name)}" for name, entry in unknown.items())
        raise ConfigError(f"{every} Nothing else is in the file.")
    translation = _translate(stated, "tensorflow", f"{path}", as_run=as_run)
    ignored = [
        Finding(name, entry.value, "", None, "unknown", f"It {_no_field(name)}", in_effect=False)
        for name, entry in unknown.items()
    ]
    return dataclasses.replace(translation, report=(*translation.report, *ignored))


def _read(at: str, name: str, node: yaml.Node) -> _Stated:
    return _Stated(yaml_scalar(f"{at} {name!r}", node), f"{at} {name!r}")


def _text(node: yaml.Node) -> str:
    """Return what stands in the file for a key that counts for nothing."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)[:80]
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _field(name: str, *sections: str) -> ReferenceField | None:
    """Return the field of a name, in the first of the sections that has one."""
    fields = load_schema().reference
    return next((fields[f"{section}.{name}"] for section in sections if f"{section}.{name}" in fields), None)


def _no_field(name: str) -> str:
    """Say of an unknown key what may have been meant."""
    bare = name.removeprefix("model.")
    return f"is no field of the reference; {_nearest(bare, *(_AT_THE_TOP if bare == name else ('model',)))}"


def from_dataclass(*instances: Any, as_run: bool = False) -> Translation:
    """Translate instances of the reference's dataclasses, which need not be installed here.

    Args:
        instances: of one configuration: ``TrainingConfig``, ``InferenceConfig``, ``ModelConfig`` or
            ``PyTorchExecutionConfig``, each known by its fields; a model inside another instance comes along.
        as_run: take what TensorFlow did in place of fields that it does not read.

    Raises:
        ConfigError: an instance that is none of them, the same one twice, or a value that cannot be here.
    """
    stated: dict[str, _Stated] = {}
    for instance in instances:
        if not dataclasses.is_dataclass(instance) or isinstance(instance, type):
            raise ConfigError(f"{type(instance).__name__} is no instance of a dataclass of the reference.")
        for section, name, value in _fields_of(instance):
            if f"{section}.{name}" in stated:
                raise ConfigError(f"Two instances hold {section}.{name}; give one for each part of the configuration.")
            stated[f"{section}.{name}"] = _Stated(value, f"{type(instance).__name__}.{name}")
    where = " and ".join(type(instance).__name__ for instance in instances) or "no instance"
    return _translate(stated, "tensorflow", where, as_run=as_run)


def from_legacy(
    mapping: Mapping[str, Any], *, where: str = "the legacy dictionary", as_run: bool = False
) -> Translation:
    """Translate a legacy dictionary, or the saved parameters of an archive, which are one.

    Args:
        mapping: legacy key → value; NumPy scalars and paths are read as plain values, arrays are only described.
        where: what to call it in errors.
        as_run: take what TensorFlow did in place of keys that it does not read. This is the reading for an archive.

    Raises:
        ConfigError: a value that cannot be here; it names the key. A key that nobody knows is reported: nothing is ever
            removed from such a dictionary.
    """
    stated = {str(name): _Stated(value, f"{where}: {name!r}") for name, value in mapping.items()}
    return _translate(stated, "legacy", where, as_run=as_run)


def _translate(given: Mapping[str, _Stated], source: str, where: str, *, as_run: bool) -> Translation:
    schema = load_schema()
    counterparts = schema.counterparts[source]
    backend = _backend(given, where, as_run=as_run)
    stated, others = _former_name(dict(given), source)
    for name, entry in stated.items():
        what = counterparts.get(name)
        if not isinstance(what, Setting):
            others.append(_without_setting(name, entry, what, source))
    sections = {name.partition(".")[0] for name in given} | {"model", "training"}
    found = [
        finding
        for setting in schema.settings.values()
        if (finding := _setting_finding(setting, stated, source, backend, sections, as_run=as_run)) is not None
    ]
    found = [_with_needs(finding, found) for finding in found]
    values = {finding.field_here: finding.value_here for finding in found}
    try:
        settings = Settings().override(values)
    except ConfigError as err:
        blamed = (
            stated[each.field_there].at
            for each in found
            if each.field_there in stated and f".{each.field_here} " in str(err)
        )
        raise ConfigError(f"{next(blamed, where)}: {err}") from err
    return Translation(settings, (*found, *others))


def _setting_finding(
    setting: Setting, stated: Mapping[str, _Stated], source: str, backend: str, sections: set[str], *, as_run: bool
) -> Finding | None:
    """Say which value a setting has; None if neither the source nor the reference says anything that is new here."""
    name = setting.there.get(source, "")
    entry = stated.get(name)
    if entry is not None and not _counts_as_none(setting, entry.value, source):
        finding = _stated_finding(setting, name, entry, source, backend)
        unread = is_unread(setting, backend)
        at_default = unread and is_default(setting, finding.value_here, source)
        # The reference's PyTorch side does not read weights of the loss, and here they would win over torch_loss_mode.
        if (
            finding.change == "not here"
            or finding.in_effect
            or not (as_run or at_default or (unread and backend == "pytorch"))
        ):
            return finding
        instead = (
            spelled_here(setting, entry.instead) if entry.overruled and not unread else effect_of(setting, backend)
        )
        return finding if instead is UNKNOWN else dataclasses.replace(finding, value_here=instead, change="ignored")
    value, name_there = _absent(setting, source, backend, sections)
    if same_value(value, setting.default):
        return None
    why = "It is not stated, so the default there counts."
    if not name_there:
        why = "TensorFlow does so, and no field says otherwise."
    here = f"Here the default is {shown_as(setting.default)}: {setting.reason}"
    return Finding(name_there, value, setting.name, value, "default", f"{why} {here}")


def _stated_finding(setting: Setting, name: str, entry: _Stated, source: str, backend: str) -> Finding:
    shown, unread, effect = plain(entry.value), is_unread(setting, backend), effect_of(setting, backend)
    why_unread = not_followed(setting, backend)
    try:
        value = spelled_here(setting, entry.value)
    except NoCounterpartError as err:
        if not unread:
            raise ConfigError(f"{entry.at} = {shown!r} {err}") from err
        instead = setting.default if effect is UNKNOWN else effect
        return Finding(name, shown, setting.name, instead, "not here", f"The value {err} {why_unread}", in_effect=False)
    reasons = []
    change: Change = kept(name, setting)
    if isinstance(shown, str) and not isinstance(value, str) and shown not in setting.values_there:
        change, reasons = "converted", ["The reference gets text here, which YAML 1.1 makes of a number such as 1e9."]
    elif not same_value(shown, value):
        change = "converted"
    overruled = bool(entry.overruled) and not unread
    if overruled:
        reasons.append(entry.overruled)
    in_effect = not overruled and is_in_effect(setting, value, source, backend)
    if unread and not in_effect:
        reasons.append(why_unread)
    return Finding(name, shown, setting.name, value, change, " ".join(reasons), in_effect)


def _without_setting(name: str, entry: _Stated, what: Foreign | Setting | None, source: str) -> Finding:
    shown = plain(entry.value)
    if not isinstance(what, Foreign):
        bare = name.rpartition(".")[2] if source == "tensorflow" else name
        return Finding(
            name, shown, "", None, "not here", f"Nobody knows it; {_nearest_of(bare, source)}", in_effect=False
        )
    if what.only and shown is not None and shown not in what.only:
        raise ConfigError(
            f"{entry.at} = {shown!r}; this project has only {', '.join(map(str, what.only))}. {what.reason}"
        )
    # The setting that takes its place keeps its own value.
    reason = f"{what.reason} See the setting {what.here}." if what.here else what.reason
    return Finding(name, shown, "", None, "collision" if _collides(name, what) else "not here", reason)


def _collides(name: str, what: Foreign) -> bool:
    """Whether the bare name is a setting here, or means something else elsewhere."""
    schema = load_schema()
    bare = name.rpartition(".")[2]
    elsewhere = [
        each
        for section in ("model", "training", "data")
        if (each := schema.counterparts["seed"].get(f"{section}.{bare}"))
    ]
    return bare in schema.settings or any(each is not what for each in elsewhere)


def _former_name(stated: dict[str, _Stated], source: str) -> tuple[dict[str, _Stated], list[Finding]]:
    """Let a former spelling stand for the name that it became; two that differ are an error.

    In a legacy dictionary, where nothing is ever removed, it may count images or be of another run, and is reported.
    """
    schema = load_schema()
    found: list[Finding] = []
    for name, entry in list(stated.items()):
        what = schema.counterparts[source].get(name)
        if source != "tensorflow" or not isinstance(what, Foreign) or not what.same_as:
            continue
        del stated[name]
        now = stated.get(what.same_as)
        if entry.value is not None and (now is None or now.value is None):
            stated[what.same_as] = dataclasses.replace(entry)
        elif entry.value is not None and now is not None and not same_value(plain(entry.value), plain(now.value)):
            raise ConfigError(
                f"{entry.at} = {plain(entry.value)!r}, but {now.at} = {plain(now.value)!r}. {what.reason} "
                f"Keep {what.same_as.partition('.')[2]}, and leave {name.partition('.')[2]} out."
            )
        value = plain(entry.value)
        found.append(Finding(name, value, what.here, value, "collision", what.reason))
    return stated, found


def _absent(setting: Setting, source: str, backend: str, sections: set[str]) -> tuple[Value, str]:
    """Return what the reference has where nothing is stated, in our terms, and the name it has it under."""
    if backend != "tensorflow" and is_unread(setting, backend):
        return effect_of(setting, backend), ""
    there, defaults = setting.there, setting.defaults_there
    chain: list[tuple[str, str]] = []
    if source == "legacy":
        chain.append(("legacy", there.get("legacy", "")))
    # What __post_init__ puts in the place of None is the dataclass's doing, and not in a dictionary without one.
    if there.get("tensorflow", "").partition(".")[0] in sections and (source == "tensorflow" or not becomes(setting)):
        chain.append(("tensorflow", there.get(source, "")))
    chain.append(("legacy", there.get("legacy", "")))
    code = ("tensorflow_code", "")
    if backend == "tensorflow":
        chain = [code, *chain] if is_unread(setting, backend) or not there.get(source) else [*chain, code]
    for side, name in chain:
        if side in defaults and (defaults[side] is not None or setting.optional):
            return defaults[side], name
    return setting.default, ""


def _with_needs(finding: Finding, found: list[Finding]) -> Finding:
    """Leave a value out that counts for nothing without another setting, and is refused here."""
    schema = load_schema()
    setting = schema.settings[finding.field_here]
    if same_value(finding.value_here, setting.default):
        return finding
    chosen = {each.field_here: each.value_here for each in found}
    for name, needed in setting.needs.items():
        value = chosen.get(name, schema.settings[name].default)
        if value != needed if isinstance(needed, str) else not value:
            why = f"It counts only with {name} = {needed}, and {name} is {shown_as(value)}."
            return dataclasses.replace(finding, value_here=setting.default, change="not here", reason=why)
    return finding


def _backend(stated: Mapping[str, _Stated], where: str, *, as_run: bool) -> str:
    """Name the backend of the reference that the source is for."""
    for name in ("training.backend", "inference.backend", "backend"):
        if name in stated and stated[name].value is not None:
            entry = stated[name]
            chosen = entry.instead if as_run and entry.overruled else entry.value
            if chosen not in ("tensorflow", "pytorch"):
                raise ConfigError(f"{entry.at} = {plain(chosen)!r}; the reference has tensorflow and pytorch.")
            return str(chosen)
    return "tensorflow"


def _counts_as_none(setting: Setting, value: Any, source: str) -> bool:
    """Whether None says nothing: the setting cannot be None, or the dataclass puts something in its place."""
    return value is None and (not setting.optional or (source == "tensorflow" and becomes(setting)))


def _fields_of(instance: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield section, name and value of an instance, and of the model inside it.

    Raises:
        ConfigError: its fields are those of none of the reference's dataclasses.
    """
    fields = {field.name for field in dataclasses.fields(instance)}
    known: dict[str, set[str]] = {}
    for field in load_schema().reference.values():
        known.setdefault(field.section, set()).add(field.name)
    # An older or newer dataclass has fewer fields or others besides, but hardly any that the table does not know.
    shares = {section: len(fields & names) / max(len(fields), 1) for section, names in known.items()}
    section = max(shares, key=lambda each: (shares[each], -len(known[each])))
    if shares[section] < _LEAST_SHARE:
        raise ConfigError(
            f"{type(instance).__name__} has the fields of none of the reference's dataclasses "
            "(ModelConfig, TrainingConfig, InferenceConfig, PyTorchExecutionConfig)."
        )
    for name in sorted(fields):
        value = getattr(instance, name)
        if name == "model" and dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _fields_of(value)
        else:
            yield section, name, value


def _nearest(name: str, *sections: str) -> str:
    """Give advice for a name that no field has."""
    if (elsewhere := hint(name)) is not None:
        return f"a name of the reference from elsewhere; {elsewhere.removesuffix('.')}."
    if name in load_schema().settings:
        return f"{name} is a setting here, for the file that this translation gives."
    known = [field.name for field in load_schema().reference.values() if field.section in sections]
    near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    return f"did you mean {near[0]!r}?" if near else "remove it, or look it up in specs/configuration.yaml."


def _nearest_of(name: str, source: str) -> str:
    known = [each.rpartition(".")[2] if source == "tensorflow" else each for each in load_schema().counterparts[source]]
    near = difflib.get_close_matches(name, known, n=1)
    return f"the nearest known name is {near[0]!r}." if near else "no known name is near."
