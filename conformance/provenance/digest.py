"""Digests: for which code and which specification does a number hold?

A measured number is valid for what the sources do and the specification demands, not for its wording: the digest of a
Python source is taken over its syntax tree without docstrings, that of a specification over its content without
prose. So comments, line ends, docstrings and the layout of a file do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from ptycho_torch.contracts.contract import specs_dir

PACKAGES = ("ptycho_torch", "ptycho_tf_bridge", "conformance")

MEASURED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "faults": ("conformance.session.bench",),
        "clean": ("conformance.session.clean",),
        "capture": ("conformance.cases.draws", "conformance.subjects.torch"),
        "mutation": (
            "conformance.judge.rules",
            "conformance.judge.measure",
            "conformance.judge.condition",
            "conformance.judge.gains",
        ),
        "training": ("conformance.session.study",),
    }
)
"""Kind of evidence → modules in which its measurement begins; any other kind stands on every source."""

POLICY_FILES = frozenset({"release_policy.yaml", "merge_policy.yaml"})
"""What the specs folder says about releases and not about the network."""

PROSE = frozenset({"meaning", "note", "reason", "remedy", "symptom", "text", "title"})
"""Keys of specifications that speak only to people."""

SELFTEST = "selftest"
"""Folder of ``conformance`` that no wheel has and no verdict needs."""


def numerical_digest(kind: str = "") -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of what the sources do and the specification demands.

    Two checkouts with one digest compute and judge the same.

    Args:
        kind: of evidence. Where ``MEASURED_BY`` has it, the sources are those that its measurement can reach, and the
            specification is the files that these name; otherwise both are whole.
    """
    sources, specified = python_sources(), specification()
    if kind in MEASURED_BY:
        sources = reached(MEASURED_BY[kind], sources)
        named = frozenset[str]().union(*(_read(path).named for path in sources.values()))
        specified = {name: path for name, path in specified.items() if path.name in named}
    return meaning_digest(sources | specified)


def reached(entries: Iterable[str], sources: Mapping[str, Path]) -> dict[str, Path]:
    """Return the sources that some modules, themselves among them, reach by imports, wherever in a file these stand.

    Args:
        entries: modules, as ``conformance.session.study``.
        sources: ``package/module.py`` → file. A module that is none of them ends the way.
    """
    found: dict[str, Path] = {}
    waiting = [file for entry in entries for file in _files(entry)]
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
        meaning: SHA-256 of its syntax tree without docstrings.
    """

    imported: tuple[str, ...]
    named: frozenset[str]
    meaning: bytes


@cache
def _said(text: str) -> _Said:
    imported: list[str] = []
    named: set[str] = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += (file for each in node.names for file in _files(each.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported += _files(node.module)
            imported += (file for each in node.names for file in _files(f"{node.module}.{each.name}"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".yaml"):
            named.add(node.value)
    return _Said(tuple(imported), frozenset(named), hashlib.sha256("\n".join(_said_by(tree)).encode()).digest())


def _files(module: str) -> tuple[str, str]:
    place = module.replace(".", "/")
    return f"{place}.py", f"{place}/__init__.py"


def _said_by(tree: ast.Module) -> Iterator[str]:
    """Write a syntax tree down, node by node, breadth first, alike in every version of Python; docstrings are left out.

    A text that stands alone as a statement does nothing, wherever it is.
    """
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                value = [each for each in value if not _is_text(each)]
            # Newer versions have more fields, all of them empty in what an older one can read.
            if value is None or value == [] or name == "kind":
                continue
            parts = value if isinstance(value, list) else [value]
            waiting.extend(each for each in parts if isinstance(each, ast.AST))
            yield f"{name} {len(parts)} {[None if isinstance(each, ast.AST) else repr(each) for each in parts]}"


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _read(path: Path) -> _Said:
    return _said(path.read_text(encoding="utf-8"))


def spec_digest() -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of only the specification."""
    return meaning_digest(specification())


def python_sources() -> dict[str, Path]:
    """Return all modules of the packages, in folders of any depth, as ``package/folder/module.py`` → file.

    The folder ``SELFTEST`` is left out.
    """
    return {
        f"{package}/{path.relative_to(folder).as_posix()}": path
        for package in PACKAGES
        for folder in [_folder(package)]
        for path in folder.rglob("*.py")
        if path.relative_to(folder).parts[0] != SELFTEST or package != "conformance"
    }


def specification() -> dict[str, Path]:
    """Return the files of the specification, as ``specs/NAME.yaml`` → file."""
    return {f"specs/{path.name}": path for path in specs_dir().glob("*.yaml") if path.name not in POLICY_FILES}


def _folder(package: str) -> Path:
    specification = importlib.util.find_spec(package)
    assert specification is not None
    assert specification.submodule_search_locations
    return Path(specification.submodule_search_locations[0])


def meaning_digest(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 over names and meanings of Python sources and specifications, in the order of the names."""
    whole = hashlib.sha256()
    for name in sorted(files):
        meaning = _read(files[name]).meaning if name.endswith(".py") else _demanded(files[name].read_bytes())
        # The digest of each part has a fixed length, so that nothing can move from one part into the next.
        whole.update(hashlib.sha256(name.encode()).digest() + meaning)
    return whole.hexdigest()


@cache
def _demanded(content: bytes) -> bytes:
    """Return the SHA-256 of what a specification demands, without its prose."""
    demanded = _without_prose(yaml.safe_load(content))
    return hashlib.sha256(json.dumps(demanded, sort_keys=True, default=str).encode()).digest()


def _without_prose(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_prose(value) for key, value in content.items() if key not in PROSE}
    return [_without_prose(each) for each in content] if isinstance(content, list) else content


def file_digest(path: Path | str) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of the bytes of one file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
