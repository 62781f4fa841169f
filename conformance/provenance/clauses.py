"""Every clause of the specification with the tests that judge it.

A test names its clauses by the marker ``parity_clause``: each test of the suite, and some in the repository's folder
``tests``, of what the reference does not do. Which clauses there are, the files of ``specs`` say.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conformance.errors import DocumentError
from conformance.provenance.digest import specification
from conformance.suite import clauses_of, short_id
from ptycho_torch.contracts.contract import read_yaml

HERE = Path(__file__).parents[1]
TESTS = HERE.parent / "tests"


@dataclass(frozen=True)
class Entry:
    """One clause.

    Attributes:
        id: of the clause.
        title: in a few words.
        text: what it says.
        file: of the specs folder, that has it.
        untested: why no test can judge it; empty where one has to.
        equations: what a stage computes, one for each condition; empty for every other clause.
    """

    id: str
    title: str
    text: str
    file: str
    untested: str = ""
    equations: tuple[str, ...] = ()


@cache
def catalogue() -> Mapping[str, Entry]:
    """Return all clauses, by id, in the order of the files and of the clauses in them.

    Raises:
        SpecError: a file of the specs folder cannot be read.
        DocumentError: an id is there twice.
    """
    found: dict[str, Entry] = {}
    for path in sorted(specification().values(), key=lambda path: (path.name != "stages.yaml", path.name)):
        for entry in _entries(read_yaml(path.name)):
            if entry["id"] in found:
                raise DocumentError(f"{path.name}: clause {entry['id']} is in {found[entry['id']].file} too.")
            untested = entry.get("reason", "") if "test" in entry and entry["test"] is None else ""
            text = " ".join(str(entry.get("text", "")).split())
            found[entry["id"]] = Entry(entry["id"], entry["title"], text, path.name, untested, tuple(_equations(entry)))
    return found


def _equations(stage: Mapping[str, Any]) -> Iterator[str]:
    """Yield the equation of a stage, and that of each variant with its condition."""
    if "equation" in stage:
        yield stage["equation"]
    for variant in stage.get("variants", ()):
        if "equation" in variant:
            yield f"{variant['equation']}   where {variant['when']}"


def _entries(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what a list at the top of a file holds, if it has an id and a title: a clause."""
    lists = [value for value in content.values() if isinstance(value, list)]
    yield from (each for every in lists for each in every if isinstance(each, dict) and {"id", "title"} <= set(each))


def collect(tier: str = "full", *, suite_only: bool = False) -> dict[str, tuple[str, ...]]:
    """Return every test of the suite, and of the repository those that name a clause, with the ids of their clauses.

    No test runs. Tests that run on a device are those of the CPU.

    Args:
        tier: of the suite.
        suite_only: whether to leave the repository's tests out.

    Raises:
        DocumentError: the tests cannot be collected.
    """
    collector, said = _Collector(), io.StringIO()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--parity-tier", tier]
    options += ["--parity-device", "cpu"]
    plugins = [collector]
    places = [str(path) for path in (HERE, *(() if suite_only else files_with_clauses()))]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*options, *places], plugins=plugins)
    if status != pytest.ExitCode.OK or not collector.tests:
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        why = [line for line in lines if line.startswith("ERROR ")] or lines[-1:]
        raise DocumentError(f"the tests of the suite cannot be collected (pytest: {status!r}); {'; '.join(why)}")
    return collector.tests


def files_with_clauses() -> list[Path]:
    """Return the files in the repository's folder ``tests`` that name a clause; none in an installation."""
    return [path for path in sorted(TESTS.rglob("test_*.py")) if "parity_clause(" in path.read_text(encoding="utf-8")]


class _Collector:
    """A plugin that notes what was collected, without tests of the repository that name no clause."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[str, ...]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        named = {item: clauses_of(item) for item in session.items}
        self.tests = {short_id(item.nodeid): each for item, each in named.items() if each or HERE in item.path.parents}


def complaints(clauses: Mapping[str, Entry], tests: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Say which clause has no test, which test has no clause, and which names one that is not there."""
    judged = {clause for named in tests.values() for clause in named}
    for clause, entry in clauses.items():
        if clause not in judged and not entry.untested:
            yield f"clause {clause} ({entry.file}) has no test: mark one with @pytest.mark.parity_clause({clause!r})"
    for test, named in tests.items():
        if not named:
            yield f"test {test} has no clause: mark it with @pytest.mark.parity_clause(…)"
        for clause in named:
            if clause not in clauses:
                yield f"test {test} names clause {clause}, which no file of specs has"


def listing(clauses: Mapping[str, Entry], tests: Mapping[str, Sequence[str]], *, whole: bool = False) -> Iterator[str]:
    """Yield lines for people: each clause with its test functions, or with its text and every test."""
    for clause, entry in clauses.items():
        mine = [test for test, named in tests.items() if clause in named]
        yield f"{clause}  {entry.title}  ({entry.file})"
        if whole:
            yield f"    {entry.text}"
            yield from (f"    {test}" for test in mine)
        else:
            counted = Counter(test.partition("[")[0] for test in mine)
            yield from (
                f"    {function} × {count}" if count > 1 else f"    {function}" for function, count in counted.items()
            )
        if not mine:
            yield f"    no test{': ' + entry.untested if entry.untested else ''}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``python -m conformance clauses`` takes."""
    parser.add_argument("ids", nargs="*", metavar="CLAUSE", help="show only these, with their text and every test")


def run(options: argparse.Namespace) -> int:
    """List clauses and what is wrong with them; return 1 where a clause has no test, or a test no clause.

    Raises:
        DocumentError: no such clause, or the tests cannot be collected.
    """
    known = catalogue()
    for clause in options.ids:
        if clause not in known:
            raise DocumentError(f"no clause {clause!r}; `python -m conformance clauses` lists them all.")
    tests = collect()
    shown = {clause: known[clause] for clause in options.ids or known}
    print(*listing(shown, tests, whole=bool(options.ids)), sep="\n")  # noqa: T201 - what the command is for
    # An installation lacks the tests of the repository, which some clauses have alone.
    found = list(complaints(known, tests)) if TESTS.is_dir() else []
    for line in found:
        print(line, file=sys.stderr)  # noqa: T201
    return 1 if found else 0
