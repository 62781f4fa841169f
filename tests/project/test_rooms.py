"""The rooms of the packages: imports go one way, in the order of docs/architecture.md, and no room is crowded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ptycho_torch", "ptycho_tf_bridge", "conformance")
ORDER = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
"""Rooms, and modules beside them, of all packages: each may import what stands before it."""

DOORS = {
    # ``DataConfig(N=64)``, as ptychodus writes it, is a value of its own class.
    ("ptycho_torch.config_params", "ptycho_torch.api"),
    # The reference's name: ``ptycho_torch.model.PtychoPINN_Lightning``.
    ("ptycho_torch.model", "ptycho_torch.training"),
}
"""Climbs within functions, for names that other programs expect in a place."""

WITHOUT_TORCH = {
    "ptycho_torch": ("contracts", "files"),
    "ptycho_tf_bridge": ("archives",),
    "conformance": ("spec", "oracle", "cases", "judge", "training", "report", "release"),
}
"""Rooms that import no PyTorch; ``conformance.provenance`` asks it for its version and device, when called."""

LIGHT = (
    "ptycho_torch.check",
    "ptycho_torch.commands",
    "ptycho_torch.config_params",
    "ptycho_torch.convert",
    "ptycho_torch.errors",
    "ptycho_tf_bridge.commands",
    "conformance.cli",
    "conformance.plugin",
)
"""What is imported before a command knows what it works on, or to look at scans alone: none waits for PyTorch."""

HEAVY = {"torch", "lightning", "tensordict", "matplotlib", "mlflow", "tensorflow", "keras"}

ROOMS = [name for name in ORDER if (ROOT / name.replace(".", "/")).is_dir()]
LARGEST = 15


def names_imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, at its top and in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported_on_load(module: str) -> Iterator[str]:
    """Yield what importing a module imports: what stands at its top, the packages that it lies in, and their rooms."""
    place = ROOT / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not path.is_file():
        return
    if "." in module:
        yield module.rpartition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def row_of(dotted: str) -> str:
    """Return the row of the architecture that a dotted name is part of."""
    return ".".join(dotted.split(".")[:2])


def modules_of(name: str) -> list[Path]:
    """Return the files of a row of the architecture."""
    place = ROOT / name.replace(".", "/")
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_down(name: str) -> None:
    package = name.split(".")[0]
    allowed = {*ORDER[: ORDER.index(name) + 1], *(to for at, to in DOORS if at == name)}
    climbs = {
        f"{path.relative_to(ROOT)} imports {each}"
        for path in modules_of(name)
        for each in names_imported(path)
        if each.startswith(f"{package}.") and row_of(each) in ORDER and row_of(each) not in allowed
    }
    assert climbs == set()


@pytest.mark.parametrize(("at", "to"), sorted(DOORS))
def test_a_door_is_used(at: str, to: str) -> None:
    assert any(row_of(each) == to for path in modules_of(at) for each in names_imported(path))


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_folder_is_crowded(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    # What conformance collects is tests, beside its rooms.
    counted = {
        folder: [
            path.stem
            for path in folder.glob("*.py")
            if not path.stem.startswith("__") and not (package == "conformance" and path.stem.startswith("test_"))
        ]
        for folder in folders
    }
    assert {str(folder): len(names) for folder, names in counted.items() if len(names) > LARGEST} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_may_be_changed_in_it(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert len(text.split("\n\n")) >= 2


@pytest.mark.parametrize("room", [f"{package}.{room}" for package, rooms in WITHOUT_TORCH.items() for room in rooms])
def test_a_room_without_pytorch_imports_none(room: str) -> None:
    assert [path for path in modules_of(room) if "torch" in {n.split(".")[0] for n in names_imported(path)}] == []


@pytest.mark.parametrize("name", LIGHT)
def test_what_commands_load_first_waits_for_nothing_heavy(name: str) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules_of(name)]
    ways = {module: module for module in modules}
    left = list(modules)
    while left:
        module = left.pop()
        for each in imported_on_load(module):
            if each not in ways:
                ways[each] = f"{ways[module]} → {each}"
                left.append(each)
    assert [way for each, way in ways.items() if each.split(".")[0] in HEAVY] == []
