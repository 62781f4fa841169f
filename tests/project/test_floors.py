"""The oldest versions that pyproject.toml allows are those that ``make test-oldest`` installs and tests."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)")
UNTESTED = {"types-PyYAML", "types-tqdm"}
"""Types of other packages, for mypy alone."""


def requirements() -> Iterator[str]:
    """Yield what the package and the extras that are tested need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    (extras,) = re.findall(r"^OLDEST_EXTRAS := (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for extra in extras.split(","):
        yield from project["optional-dependencies"][extra]


def floors() -> dict[str, str]:
    return dict(found.groups() for text in requirements() if (found := REQUIREMENT.match(text)))


def number(version: str) -> tuple[int, ...]:
    """Return a version without the zeros at its end.

    >>> number("2.6.0")
    (2, 6)
    """
    return tuple(map(int, re.sub(r"(\.0)+$", "", version).split(".")))


def test_every_requirement_has_a_floor() -> None:
    assert {text for text in requirements() if not REQUIREMENT.match(text)} == UNTESTED


def test_the_oldest_versions_are_the_floors() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: number(version) for name, version in oldest.items()} == {
        name: number(version) for name, version in floors().items()
    }


def test_the_tests_that_run_with_the_oldest_versions_are_there() -> None:
    (listed,) = re.findall(r"^OLDEST_TESTS := ((?:.*\\\n)+.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    tests = listed.replace("\\", "").split()
    assert len(tests) > 3
    for test in tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_versions_that_crash_or_have_known_holes_are_not_allowed() -> None:
    """The first releases in which what is called here works, and releases of strangers."""
    found = floors()
    assert number(found["torch"]) >= (2, 10)  # torch.load(weights_only=True): CVE-2025-32434, CVE-2026-24747
    assert number(found["filelock"]) >= (3, 20, 3)  # FileLock: CVE-2025-68146, CVE-2026-22701
    assert number(found["lightning"]) >= (2, 6)  # Trainer.fit(weights_only=…), without which no run resumes
    (lightning,) = (text for text in requirements() if text.startswith("lightning"))
    assert {"!=2.6.2", "!=2.6.3"} <= set(lightning.split(","))
