"""Settings of this project as a configuration of the TensorFlow reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from ptycho_tf_bridge.config_values import (
    KEPT,
    UNKNOWN,
    Finding,
    NoCounterpartError,
    effect_of,
    flag_of,
    flag_wins,
    is_default,
    is_in_effect,
    is_unread,
    kept,
    not_followed,
    shown_as,
    spelled_there,
)
from ptycho_torch.config_params import Settings
from ptycho_torch.contracts.config_schema import Setting, Value, load_schema, same_value

_FLAGS_WIN = """\
# The defaults of ptycho_train's flags win over all lines outside 'model:', so it needs these too:
#   ptycho_train --config FILE {}
"""


def to_dataclass_fields(settings: Settings) -> tuple[dict[str, dict[str, Any]], tuple[Finding, ...]]:
    """Return the fields of ``ModelConfig``, ``TrainingConfig`` and ``PyTorchExecutionConfig``, by section.

    Returns:
        ``model``, ``training`` and ``execution``, each field → value; and what became of every setting. A field that is
        left out has the default of its dataclass.
    """
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}, "execution": {}}
    values, report = _export(settings, "tensorflow", tuple(sections))
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    return sections, report


def to_tensorflow_yaml(settings: Settings) -> tuple[str, tuple[Finding, ...]]:
    """Return a YAML file for the reference's ``--config``, and what became of every setting.

    Fields of the model stand in ``model:``, where they win over flags. Lines outside lose against the defaults of the
    reference's own flags, so the file begins with the flags that have to be given as well.
    """
    values, report = _export(settings, "tensorflow", ("model", "training"))
    content: dict[str, Any] = {"model": {}}
    for name, value in values.items():
        section, _, field = name.partition(".")
        (content["model"] if section == "model" else content)[field] = value
    flags: list[str] = []
    report = tuple(_with_flag(finding, flags) for finding in report)
    head = _FLAGS_WIN.format(" ".join(flags)) if flags else ""
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), report


def to_legacy(settings: Settings) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Return the keys of the legacy dictionary that the settings decide, and what became of every setting."""
    return _export(settings, "legacy", ("model", "training"))


def _export(settings: Settings, source: str, sections: tuple[str, ...]) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    values: dict[str, Any] = {}
    report = []
    for setting in load_schema().settings.values():
        value = getattr(getattr(settings, setting.owner), setting.name)
        finding = _export_finding(setting, value, settings, source, sections)
        if finding.change in KEPT:
            values[finding.field_there] = finding.value_there
        report.append(finding)
    return values, tuple(report)


def _export_finding(
    setting: Setting, value: Value, settings: Settings, source: str, sections: tuple[str, ...]
) -> Finding:
    name = setting.there.get(source, "")
    if not name or (source == "tensorflow" and name.partition(".")[0] not in sections):
        return _not_there(setting, value, name)
    weight = {"nll_weight": "Poisson", "mae_weight": "MAE"}.get(setting.name)
    implied = value is None and weight is not None
    written = float(settings.model.loss_function == weight) if implied else value
    field = load_schema().reference.get(setting.there.get("tensorflow", ""))
    if setting.name == "gradient_clip_val" and settings.training.gradient_clip_algorithm == "adaptive":
        why = "It counts median norms here, for which the reference has no clipping."
        return Finding(name, None, setting.name, value, "not there", why)
    if written is None and (source == "legacy" or field is None or not field.optional or field.becomes is not None):
        default = setting.defaults_there.get("tensorflow" if source == "tensorflow" else "legacy")
        why = f"None is {setting.none}. There, {name} is left out and has its default, {shown_as(default)}."
        return Finding(name, default, setting.name, None, "default", why)
    try:
        theirs = spelled_there(setting, written, field)
    except NoCounterpartError as err:
        return Finding(name, None, setting.name, value, "not there", f"The value {err}")
    effect = effect_of(setting, "tensorflow")
    in_effect = is_in_effect(setting, written, source, "tensorflow")
    reasons = [f"None is {setting.none}; the number is written out."] if implied else []
    if not in_effect:
        reasons.append(not_followed(setting, "tensorflow"))
        if effect is not UNKNOWN and is_default(setting, written, source):
            reasons.append("Being the default there, it could not be told from a field that nobody has set.")
            return Finding(name, theirs, setting.name, value, "ignored", " ".join(reasons), in_effect=False)
    if setting.name == "K" and settings.data.group_sampler != "reference":
        reasons.append("There a group is drawn only from the neighbours, without the point itself.")
    changed = implied or not same_value(theirs, value)
    return Finding(
        name,
        theirs,
        setting.name,
        value,
        "converted" if changed else kept(name, setting),
        " ".join(reasons),
        in_effect,
    )


def _not_there(setting: Setting, value: Value, name: str) -> Finding:
    """Say what the reference has in the place of a setting that the other side has no field for."""
    for side in ("tensorflow_code", "legacy"):
        if side in setting.defaults_there:
            theirs = setting.defaults_there[side]
            agrees = "does the same" if same_value(theirs, value) else "differs"
            why = f"There is no place for it, and the reference {agrees}: it has {shown_as(theirs)}."
            return Finding(name, theirs, setting.name, value, "not there", why)
    why = f"{name} is no part of it, and TensorFlow does not follow it." if name else "There is nothing like it there."
    return Finding(name, None, setting.name, value, "not there", why)


def _with_flag(finding: Finding, flags: list[str]) -> Finding:
    """Say that a line of the YAML file needs its flag too, and add that to the flags."""
    schema = load_schema()
    field = schema.reference.get(finding.field_there)
    if finding.change not in KEPT or field is None or field.section == "model":
        return finding
    if is_unread(schema.settings[finding.field_here], "tensorflow"):
        return finding
    why, _ = flag_wins(field, finding.value_there)
    if not why:
        return finding
    if finding.value_there is not False:
        flags.append(flag_of(field, finding.value_there))
    return dataclasses.replace(finding, reason=f"{finding.reason} {why}".strip(), in_effect=False)
