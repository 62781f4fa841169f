"""The document of the suite says what was measured, and says so where nothing was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from conformance.errors import DocumentError
from conformance.provenance.evidence import Goal, committed_evidence, measured_here
from conformance.release import document
from conformance.release.policy import read_policy

ROOT = Path(__file__).parents[2]
RELEASE = read_policy("release")
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def test_the_committed_numbers_are_those_of_the_evidence() -> None:
    text = (ROOT / document.NUMBERS_FILE).read_text(encoding="utf-8")
    written = document.with_numbers(text, document.numbers(committed_evidence(), RELEASE))
    assert text == written, "write it again: python -m conformance document"


def test_what_nobody_measured_says_so() -> None:
    text = document.numbers([], RELEASE)
    assert "### Fault matrix\n\nOn cpu: not measured yet." in text
    assert "### Parity on a GPU\n\nOn cuda: not measured yet." in text


def test_a_number_stands_beside_its_goal() -> None:
    found = measured_here(
        "faults",
        "python -m conformance clauses",
        {"detected": 0.975, "faults": 1200},
        goals={"detected": Goal(at_least=0.98)},
        meanings={"detected": "detected | of all"},
        notes=["One of them is equivalent."],
    )
    text = document.numbers([found], RELEASE)
    assert "| detected \\| of all | 0.975 | ≥ 0.98 – **missed** |" in text
    assert "| faults | 1,200 |  |" in text
    assert "One of them is equivalent." in text
    assert "Stale" not in text


def test_a_stale_number_says_so() -> None:
    found = measured_here("faults", "python -m conformance clauses", {"detected": 0.99})
    assert "**Stale: the sources have changed since.**" in document.numbers(
        [dataclasses.replace(found, numerical_digest="0" * 64)], RELEASE
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- numbers: begin -->",
        "<!-- numbers: end --><!-- numbers: begin -->",
        2 * "<!-- numbers: begin --><!-- numbers: end -->",
    ],
)
def test_a_document_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="expected <!-- numbers: begin --> once"):
        document.with_numbers(text, "x")
