"""Every clause has a test, and every test a clause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.provenance.clauses import Entry, catalogue, collect, complaints, files_with_clauses, listing

ENTRIES = {
    "FLOAT64": Entry("FLOAT64", "In float64 the candidate is the truth", "Text.", "stages.yaml"),
    "REF-09": Entry("REF-09", "Nothing can show it", "Text.", "reference_defects.yaml", "it shows on no machine"),
}


def test_every_clause_has_a_test_and_every_test_a_clause(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conformance", "clauses"]
    # From elsewhere, as after an installation.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [line.partition("  ")[0] for line in lines] == [*catalogue()]


@pytest.mark.parity_clause("SPEC")
def test_a_test_of_the_repository_counts_for_its_clause() -> None:
    assert Path(__file__) in files_with_clauses()
    found = collect()
    assert found["test_clauses.py::test_a_test_of_the_repository_counts_for_its_clause"] == ("SPEC",)
    assert not any(test.startswith("test_clauses.py::test_one_clause_is_shown_whole") for test in found)
    assert any("merged-FORWARD-FORCED-n64_g2_base" in test for test in found if "FORWARD-FORCED" in found[test])
    assert any("BATCH-01" in test for test in found if "BATCH-01" in found[test])


@pytest.mark.parametrize(
    ("tests", "complaint"),
    [
        ({}, "clause FLOAT64 (stages.yaml) has no test"),
        ({"test_a.py::test_b": ("FLOAT64",), "test_a.py::test_c": ()}, "test test_a.py::test_c has no clause"),
        ({"test_a.py::test_b": ("FLOAT64", "FLOAT65")}, "names clause FLOAT65, which no file of specs has"),
    ],
)
def test_a_gap_is_seen(tests: dict[str, tuple[str, ...]], complaint: str) -> None:
    (found,) = complaints(ENTRIES, tests)
    assert complaint in found


def test_a_clause_that_cannot_be_tested_says_why() -> None:
    tests = {"test_a.py::test_b[1]": ("FLOAT64",), "test_a.py::test_b[2]": ("FLOAT64",)}
    assert not list(complaints(ENTRIES, tests))
    lines = list(listing(ENTRIES, tests))
    assert "    test_a.py::test_b × 2" in lines
    assert "    no test: it shows on no machine" in lines


def test_one_clause_is_shown_whole() -> None:
    assert "    Text." in list(listing(ENTRIES, {}, whole=True))
