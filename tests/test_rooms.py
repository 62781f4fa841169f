"""The rooms of conformance: imports go one way, and no room is crowded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).parents[1] / "conformance"
ROOMS = (
    *("spec", "provenance", "oracle", "cases", "judge", "training", "subjects", "recordings", "checks", "session"),
    *("report", "verify", "release", "commands", "selftest"),
)
"""From below to above."""

BELOW_ALL = {"errors", "progress", "suite"}
"""Modules beside the rooms that every room may use."""

WITHOUT_TORCH = ("spec", "oracle", "cases", "judge", "training", "report", "release")
"""Rooms that import no PyTorch at all; ``provenance`` asks it for its version and device, when called."""

LARGEST = 15


def names_imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, at its top and in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "conformance":
            yield from (f"conformance.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported(path: Path) -> Iterator[str]:
    """Yield what a module imports of conformance, without the name of the package."""
    return (name.removeprefix("conformance.") for name in names_imported(path) if name.startswith("conformance."))


def test_every_folder_of_modules_is_a_room() -> None:
    folders = {path.parent.relative_to(CONFORMANCE).parts[0] for path in CONFORMANCE.glob("*/**/*.py")}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_it_only(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *BELOW_ALL}
    climbs = {
        f"{path.relative_to(CONFORMANCE)} imports {name}"
        for path in (CONFORMANCE / room).rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] not in allowed
    }
    assert climbs == set()


@pytest.mark.parametrize("name", sorted(BELOW_ALL))
def test_what_every_room_uses_imports_no_room(name: str) -> None:
    assert [each for each in imported(CONFORMANCE / f"{name}.py") if each not in BELOW_ALL] == []


def test_no_folder_is_crowded() -> None:
    folders = {path.parent for path in CONFORMANCE.rglob("*.py")}
    counts = {
        folder.relative_to(CONFORMANCE): sum(
            not path.name.startswith(("test_", "__init__")) for path in folder.glob("*.py")
        )
        for folder in folders
    }
    assert {folder: count for folder, count in counts.items() if count > LARGEST} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_may_be_changed_in_it(room: str) -> None:
    text = ast.get_docstring(ast.parse((CONFORMANCE / room / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert len(text.split("\n\n")) >= 2


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_without_pytorch_imports_none(room: str) -> None:
    modules = [
        path
        for path in (CONFORMANCE / room).rglob("*.py")
        if "torch" in {n.split(".")[0] for n in names_imported(path)}
    ]
    assert modules == []
