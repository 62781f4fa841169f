"""Settings from the command line and from YAML files: flags win over the file, the file over the defaults.

Flags, types, choices and help texts follow from the dataclasses of ``ptycho_torch.config_params``, so a setting is
written down once. Nothing heavy is imported here: ``--help`` has to be quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ptycho_torch.config_params import DataSettings, ModelSettings, Settings, TrainingSettings
from ptycho_torch.contracts.config_schema import hint
from ptycho_torch.contracts.nicknames import nearest
from ptycho_torch.errors import ConfigError, breaking

OWNERS: Mapping[str, type[ModelSettings] | type[TrainingSettings] | type[DataSettings]] = types.MappingProxyType(
    {"model": ModelSettings, "training": TrainingSettings, "data": DataSettings}
)
"""Section of the file → settings."""

MAX_CONFIG_BYTES = 256 * 2**10
"""A configuration has a hundred lines; whatever is longer is another file."""

MAX_BRACKETS = 1000
"""Lists and mappings in brackets; PyYAML takes a second for some ten thousand inside each other."""

_DEST = "setting."
_NONE = "none"


# ---------------------------------------------------------------------------------------------------------- flags


def add_setting_flags(
    parser: argparse.ArgumentParser, owners: Sequence[str] = tuple(OWNERS), *, first: Sequence[str] = ()
) -> None:
    """Add a flag for each setting, one group an owner; only flags that are given count.

    ``max_epochs`` becomes ``--max-epochs``, a truth value ``--x`` and ``--no-x``; a setting that may be None takes
    ``none``.

    Args:
        parser: gets the flags.
        owners: keys of ``OWNERS``.
        first: settings that ``add_setting_flag`` has added before.
    """
    for owner in owners:
        group = parser.add_argument_group(f"{owner} settings")
        for name in OWNERS[owner].field_names():
            if name not in first:
                add_setting_flag(group, owner, name)


def add_setting_flag(group: argparse._ActionsContainer, owner: str, name: str) -> None:
    """Add the flag of one setting to a parser or a group of it."""
    kind = OWNERS[owner]
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    text = f"{_texts(owner).get(name, '').removesuffix('.')} (default {_shown(field.default)})"
    group.add_argument(
        f"--{name.replace('_', '-')}",
        dest=_DEST + name,
        default=argparse.SUPPRESS,
        help=text.strip().replace("%", "%%"),
        **_accepting(_annotations(owner)[name]),
    )


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags gave, by name."""
    return {name.removeprefix(_DEST): value for name, value in vars(options).items() if name.startswith(_DEST)}


@functools.cache
def _annotations(owner: str) -> Mapping[str, Any]:
    return types.MappingProxyType(get_type_hints(OWNERS[owner]))


@functools.cache
def _texts(owner: str) -> Mapping[str, str]:
    return types.MappingProxyType(setting_texts(OWNERS[owner]))


def setting_texts(kind: type) -> dict[str, str]:
    """Return what the ``Attributes:`` of a docstring say, by name.

    >>> setting_texts(DataSettings)["gridsize"]
    'g; a group holds C = g² patterns.'
    """
    lines = iter(inspect.cleandoc(kind.__doc__ or "").splitlines())
    texts: dict[str, str] = {}
    name = ""
    for line in lines:
        if line == "Attributes:":
            break
    for line in lines:
        if line and not line.startswith("    "):
            break
        if found := re.match(r"    (\w+): (.*)", line):
            name, texts[found[1]] = found[1], found[2]
        elif name and line.strip():
            texts[name] += f" {line.strip()}"
    return {name: text.replace("``", "") for name, text in texts.items()}


def _accepting(annotation: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for values of a type."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    names = {int: "INT", float: "NUMBER", str: "TEXT"}
    return {"type": _or_none(kind) if types.NoneType in kinds else kind, "metavar": names[kind]}


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text.lower() == _NONE:
            return None
        try:
            return kind(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(f"{text!r} is neither {kind.__name__} nor {_NONE}") from err

    return read


def _shown(value: object) -> str:
    return _NONE if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


# ----------------------------------------------------------------------------------------------------------- file


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of 1.2: 1e-3 is a number."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like a number gets quotes."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def settings_from(options: argparse.Namespace, config: Path | None, base: Settings | None = None) -> Settings:
    """Return the settings of a command: flags over the file over ``base``.

    Args:
        options: parsed with the flags of ``add_setting_flags``.
        config: YAML file with the sections model, training and data, or None.
        base: settings that neither names; None takes the defaults.

    Raises:
        ConfigError: settings that cannot be; what the file is to blame for names it.
    """
    base = Settings() if base is None else base
    file = {} if config is None else read_config(config)
    given = given_flags(options)
    for name in file.keys() & given.keys():
        _check_overridden(base, name, file, given, config)
    try:
        return base.override(file | given)
    except ConfigError:
        if config is not None:
            try:
                base.override(file)
            except ConfigError as err:
                raise ConfigError(f"{config}: {err}") from err
        raise


def _check_overridden(
    base: Settings, name: str, file: dict[str, Any], given: dict[str, Any], config: Path | None
) -> None:
    """Raise where a value of the file is wrong, though a flag overrides it."""
    # A value may need others: those of the file, or those of the flags.
    wrong = None
    for values in (file | {key: value for key, value in given.items() if key != name}, file, {name: file[name]}):
        try:
            base.override(values)
        except ConfigError as err:
            wrong = err
        else:
            return
    raise ConfigError(f"{config}: {wrong}") from wrong


def config_text(settings: Settings) -> str:
    """Return all settings as YAML that ``read_config`` takes."""
    text: str = yaml.dump(settings.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


@breaking("FILE-07")
def read_config(path: Path) -> dict[str, Any]:
    """Read the settings that a YAML file names; a name belongs to one section, so sections are gone afterwards.

    Raises:
        ConfigError: a file that cannot be read or is too long, no YAML, an unknown or repeated name, a setting that is
            no single value. It says file, line, and the nearest name.
    """
    with yaml_errors(path):
        return _settings_in(path, compose_yaml(path, _Loader))


def compose_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> yaml.Node | None:
    """Read the nodes of a YAML file, which know their lines; nothing is made of them yet.

    Raises:
        ConfigError: a file that cannot be read, is too long or nested too deeply, or is no YAML.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"{path}: the configuration cannot be read ({err.strerror}).") from err
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_CONFIG_BYTES // 2**10} KiB; this is no configuration.")
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise ConfigError(f"{path}: more than {MAX_BRACKETS} brackets; a configuration has sections and settings.")
    with yaml_errors(path):
        return yaml.compose(content, loader)


@contextlib.contextmanager
def yaml_errors(path: Path) -> Iterator[None]:
    """Turn what PyYAML complains about into a ``ConfigError`` that names file and line."""
    try:
        yield
    except yaml.MarkedYAMLError as err:
        line = f" line {err.problem_mark.line + 1}:" if err.problem_mark is not None else ""
        raise ConfigError(f"{path}:{line} no valid YAML ({err.problem or err.context}).") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: no valid YAML ({' '.join(str(err).split())[:200]}).") from err
    except RecursionError as err:
        raise ConfigError(f"{path}: nested too deeply; a configuration has sections and settings.") from err


def _settings_in(path: Path, root: yaml.Node | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, (at, settings) in yaml_pairs(path, root, "the file", "sections model, training, data").items():
        if section not in OWNERS:
            owner = _owner(section)
            if owner is not None:
                raise ConfigError(f"{at} {section!r} stands outside the sections; it belongs into {owner!r}.")
            raise ConfigError(f"{at} unknown section {section!r}; {_nearest(section, OWNERS)}")
        for name, (line, value) in yaml_pairs(path, settings, f"section {section!r}", "names and values").items():
            values[name] = _value(line, section, name, value)
    return values


def yaml_pairs(path: Path, node: yaml.Node | None, what: str, expected: str) -> dict[str, tuple[str, yaml.Node]]:
    """Return key → place in the file and node of a mapping; nothing is an empty one."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_at(path, node)} {what} holds no {expected}; write them as 'name: value'.")
    pairs: dict[str, tuple[str, yaml.Node]] = {}
    for key, value in node.value:
        name, at = key.value if isinstance(key, yaml.ScalarNode) else f"a {_kind(key)}", _at(path, key)
        if name in pairs:
            raise ConfigError(f"{at} {name!r} is there twice in {what}; keep one.")
        pairs[name] = at, value
    return pairs


def _value(at: str, section: str, name: str, node: yaml.Node) -> Any:
    known = OWNERS[section].field_names()
    if name not in known:
        owner = _owner(name)
        if owner is not None:
            raise ConfigError(f"{at} {name!r} of section {section!r} belongs into {owner!r}.")
        every = [setting for kind in OWNERS.values() for setting in kind.field_names()]
        raise ConfigError(f"{at} unknown setting {name!r} in section {section!r}; {_nearest(name, known, every)}")
    value = yaml_scalar(f"{at} {section} setting {name!r}", node, _Loader)
    optional = types.NoneType in get_args(_annotations(section)[name])
    return None if optional and isinstance(value, str) and value.lower() == _NONE else value


def yaml_scalar(what: str, node: yaml.Node, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a node that is one value; ``what`` names it, with its place, in the error for another."""
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{what} is a {_kind(node)}; expected a single value.")
    try:
        value = loader("").construct_object(node)
    except (ValueError, ArithmeticError, LookupError, AttributeError) as err:
        # PyYAML does not check what a tag such as !!int or !!timestamp is given.
        raise ConfigError(
            f"{what} cannot be read ({node.value[:40]!r} is not what its tag {node.tag!r} says)."
        ) from err
    # Python refuses to write out an integer of thousands of digits, which any message about it would do.
    if isinstance(value, int) and value.bit_length() > sys.float_info.max_exp:
        raise ConfigError(f"{what} is larger than any number here.")
    return value


def _owner(name: str) -> str | None:
    return next((owner for owner, kind in OWNERS.items() if name in kind.field_names()), None)


def _nearest(name: str, *known: Any) -> str:
    """Return advice: what a name of the reference is here, the nearest of the first names, of the next ones, or all."""
    if elsewhere := hint(name):
        return f"a name of the reference; {elsewhere.removesuffix('.')}."
    for names in known:
        if near := nearest(name, names):
            owner = _owner(near)
            return f"did you mean {near!r}" + (f" of section {owner!r}?" if owner is not None else "?")
    return f"known: {', '.join(known[0])}."


def _kind(node: yaml.Node) -> str:
    return "list" if isinstance(node, yaml.SequenceNode) else "mapping"


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}: line {node.start_mark.line + 1}:"
