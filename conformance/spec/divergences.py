"""The findings of ``specs/divergences.yaml``: where the reference and its ports disagree, and what catches each."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conformance.spec.loader import check_schema
from ptycho_torch.contracts.contract import SpecError, read_yaml

FILE = "divergences.yaml"
COUNT = 62


@dataclass(frozen=True)
class Divergence:
    """One finding.

    Attributes:
        number: 1 … 62.
        clause: of the specification, that says what is done here; empty where there is none to say it.
        tests: node ids of tests that fail if it occurs here.
        cannot_occur: why it cannot; empty where tests show that it does not.
    """

    number: int
    clause: str
    tests: tuple[str, ...]
    cannot_occur: str


@dataclass(frozen=True)
class DataPath:
    """Where our decision about a file may differ from the reference's.

    Attributes:
        stricter: clause that refuses → what the reference does with such a file.
        looser: what the reference refuses and is read here → why.
    """

    stricter: Mapping[str, str]
    looser: Mapping[str, str]


@cache
def load_divergences() -> tuple[tuple[Divergence, ...], DataPath]:
    """Read and check the file.

    Raises:
        SpecError: it does not follow its schema, or a number is missing or there twice.
    """
    return parse_divergences(read_yaml(FILE))


def parse_divergences(content: Any) -> tuple[tuple[Divergence, ...], DataPath]:
    """Check what was read from the file, and return it as values."""
    check_schema(content, FILE)
    found = tuple(
        Divergence(
            number=entry["number"],
            clause=entry.get("clause", ""),
            tests=tuple(entry.get("tests", ())),
            cannot_occur=entry.get("cannot_occur", ""),
        )
        for entry in content["divergences"]
    )
    numbers = [each.number for each in found]
    if numbers != list(range(1, COUNT + 1)):
        missing = sorted(set(range(1, COUNT + 1)) - set(numbers))
        raise SpecError(f"{FILE}: the numbers are not 1 … {COUNT}, each once and in order; missing: {missing}.")
    return found, DataPath(**content["data_path"])


def missing_tests(divergences: tuple[Divergence, ...], folder: Path) -> Iterator[str]:
    """Yield the named tests of a folder's files that are not there; files of other folders are left alone.

    Args:
        divergences: the findings.
        folder: ``conformance`` or ``tests``, as node ids begin with.
    """
    named = sorted({test for each in divergences for test in each.tests if test.startswith(f"{folder.name}/")})
    for test in named:
        file, _, function = test.removeprefix(f"{folder.name}/").partition("::")
        path = folder / file
        if not path.is_file() or function not in _functions(path):
            yield test


@cache
def _functions(path: Path) -> frozenset[str]:
    """Return the tests that a file defines, without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
