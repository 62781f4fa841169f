"""Digests: for which code and which specification does a number hold?

A measured number holds for the sources that compute and judge, and for the clauses. It does not hold for less because a
report looks different, or because the number itself was committed: what only speaks is left out by name. Line ends do
not count, so that a checkout on any system, and an installed wheel, have the same digest.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ptycho_torch.contract import specs_dir

PACKAGES = ("ptycho_torch", "ptycho_tf_bridge", "conformance")

NOT_NUMERICAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ptycho_torch": (
            *("__init__", "__main__", "arguments", "check", "cli", "command_infer", "command_plot", "command_train"),
            *("errors", "hints", "orientation", "pictures", "plots", "settings_options", "tracking"),
        ),
        "ptycho_tf_bridge": (
            "__init__",
            "__main__",
            "cli",
            "command_config",
            "command_export",
            "command_inspect",
            "errors",
            "reference_path",
            "start",
        ),
        "conformance": (
            *("__init__", "__main__", "certificate", "clauses", "cli", "command_calibrate", "command_gate"),
            *("command_record", "command_study", "command_verify", "command_words", "difference"),
            *("digest", "document", "errors", "evidence", "gate", "json_files", "machine", "page", "plugin", "policy"),
            *("reference_package", "report", "report_page", "sign_off", "suite", "worst"),
            *("test_data_contract", "test_reference_defects", "test_spec"),
        ),
    }
)
"""Modules, by package, that print, draw, parse or look up, and compute no number that a verdict stands on.

Every other module counts, and a new one counts until it is named here.
"""

MEASURED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "faults": ("conformance.matrix",),
        "clean": ("conformance.clean",),
        "capture": ("conformance.draws", "conformance.torch_subject"),
        "mutation": ("conformance.judge", "conformance.parity", "conformance.condition", "conformance.gains"),
        "training": ("conformance.study",),
        "updates": ("conformance.updates",),
    }
)
"""Kind of evidence → modules in which its measurement begins; any other kind stands on every numerical source."""

POLICY_FILES = frozenset({"release_policy.yaml", "merge_policy.yaml", "waivers.yaml"})
"""What the specs folder says about releases and not about the network."""

_CHUNK = 1 << 20


def numerical_digest(kind: str = "") -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of numerical sources and of the specification.

    Two checkouts with one digest compute and judge the same.

    Args:
        kind: of evidence. Where ``MEASURED_BY`` has it, the sources are those that its measurement can reach, and the
            specification is the files that these name; otherwise both are whole.
    """
    sources, specified = numerical_sources(), specification()
    if kind in MEASURED_BY:
        sources = reached(MEASURED_BY[kind], sources)
        named = frozenset[str]().union(*(_read(path).named for path in sources.values()))
        specified = {name: path for name, path in specified.items() if path.name in named}
    return text_digest(sources | specified)


def reached(entries: Iterable[str], sources: Mapping[str, Path]) -> dict[str, Path]:
    """Return the sources that some modules, themselves among them, reach by imports, wherever in a file these stand.

    Args:
        entries: modules, as ``conformance.study``.
        sources: ``package/module.py`` → file. A module that is none of them ends the way: what computes no number has
            none behind it that a verdict stands on.
    """
    found: dict[str, Path] = {}
    waiting = [f"{entry.replace('.', '/')}.py" for entry in entries]
    while waiting:
        name = waiting.pop()
        if name not in found and name in sources:
            found[name] = sources[name]
            waiting += _read(sources[name]).imported
    return found


class _Said(NamedTuple):
    """What a source says that a digest has to know.

    Attributes:
        imported: ``package/module.py`` of everything that may be a module that it imports.
        named: texts in it that are names of files of the specification.
    """

    imported: tuple[str, ...]
    named: frozenset[str]


@cache
def _said(text: str) -> _Said:
    imported: list[str] = []
    named: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported += (f"{each.name.replace('.', '/')}.py" for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            folder = node.module.replace(".", "/")
            imported += (f"{folder}.py", *(f"{folder}/{each.name}.py" for each in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".yaml"):
            named.add(node.value)
    return _Said(tuple(imported), frozenset(named))


def _read(path: Path) -> _Said:
    return _said(path.read_text(encoding="utf-8"))


def spec_digest() -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of the specification alone."""
    return text_digest(specification())


def numerical_sources() -> dict[str, Path]:
    """Return the modules that compute or judge, as ``package/module.py`` → file."""
    return {
        f"{package}/{path.name}": path
        for package in PACKAGES
        for path in _folder(package).glob("*.py")
        if path.stem not in NOT_NUMERICAL[package]
    }


def specification() -> dict[str, Path]:
    """Return the files of the specification, as ``specs/NAME.yaml`` → file."""
    return {f"specs/{path.name}": path for path in specs_dir().glob("*.yaml") if path.name not in POLICY_FILES}


def _folder(package: str) -> Path:
    specification = importlib.util.find_spec(package)
    assert specification is not None
    assert specification.submodule_search_locations
    return Path(specification.submodule_search_locations[0])


def text_digest(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 over names and texts, in the order of the names; all line ends are taken as one."""
    whole = hashlib.sha256()
    for name in sorted(files):
        text = files[name].read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # The digest of each part has a fixed length, so that nothing can move from one part into the next.
        whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(text).digest())
    return whole.hexdigest()


def file_digest(path: Path | str) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of the bytes of one file."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()
