"""Evidence is kept with what it is valid for, and a damaged or hostile file of it is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conformance.errors import DocumentError
from conformance.provenance import evidence as module
from conformance.provenance.evidence import (
    Evidence,
    Goal,
    committed_evidence,
    measured_here,
    read_evidence,
    write_evidence,
)


def example() -> Evidence:
    return measured_here(
        "clean",
        "pytest conformance --parity-tier study",
        {"runs": 1000, "false_alarms": 0, "largest_share": 0.61},
        goals={"false_alarms": Goal(at_most=0), "runs": Goal(at_least=1000)},
        meanings={"false_alarms": "clean runs that a clause failed"},
        notes=["Seeds are new in every run."],
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_evidence(tmp_path / "new", example())
    assert path == tmp_path / "new" / "clean-cpu.json"
    assert read_evidence(path) == example_at(path)


def example_at(path: Path) -> Evidence:
    """The example with the time of the file, which is the only thing that passes."""
    return dataclasses.replace(example(), created_utc=json.loads(path.read_text())["created_utc"])


def test_the_same_evidence_gives_the_same_bytes(tmp_path: Path) -> None:
    one = example()
    other = dataclasses.replace(one, numbers=dict(reversed(one.numbers.items())))
    first, second = write_evidence(tmp_path / "a.json", one), write_evidence(tmp_path / "b.json", other)
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_evidence(tmp_path, example())
    before = path.read_bytes()

    def no_rename(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(OSError, match="no"):
        write_evidence(tmp_path, dataclasses.replace(example(), command="other"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_evidence_is_fresh_until_a_source_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = example()
    assert found.is_fresh()
    monkeypatch.setattr(module, "numerical_digest", lambda kind: "0" * 64 if kind == found.kind else "1" * 64)
    assert not found.is_fresh()


@pytest.mark.parametrize(
    ("goal", "number", "is_met"),
    [
        (Goal(at_least=0.98), 0.98, True),
        (Goal(at_least=0.98), 0.979, False),
        (Goal(at_most=0), 1, False),
        (Goal(at_least=1, at_most=2), 3, False),
        (Goal(at_most=1), math.nan, False),
    ],
)
def test_a_goal_is_a_bound(goal: Goal, number: float, is_met: bool) -> None:
    assert goal.is_met(number) is is_met


def test_a_missed_goal_is_named() -> None:
    assert dataclasses.replace(example(), numbers={"runs": 999, "false_alarms": 0}).missed == ("runs",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"numbers": {"runs": math.inf}, "goals": {}, "meanings": {}}, "number runs is inf"),
        ({"goals": {"speed": Goal(at_least=1)}}, "found no speed"),
        ({"kind": "../up"}, "kind '../up' is no name"),
    ],
)
def test_evidence_that_says_nothing_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DocumentError, match=complaint):
        dataclasses.replace(example(), **change)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[:200], "is no JSON"),
        (lambda text: text.replace('"runs": 1000', '"runs": NaN'), "NaN is not finite"),
        (lambda text: text.replace('"runs": 1000', '"runs": 1e999'), "1e999 is not finite"),
        (lambda text: text.replace('"runs": 1000', '"runs": ' + "9" * 400), "999… is not finite"),
        (lambda text: text.replace('"runs": 1000', '"runs": 1, "runs": 2'), "key 'runs' is there twice"),
        (lambda text: text.replace('"kind": "clean"', '"kind": "../up"'), "kind"),
        (lambda text: text.replace('"kind": "clean"', '"kind": "clean", "more": 1'), "'more' was unexpected"),
        (lambda text: text.replace('"command"', '"commands"'), "command"),
        (lambda text: text.replace("study", "\\ud800"), "surrogates not allowed"),
        (lambda text: "[" * 100_000, "is no JSON"),
        (lambda text: "[]", "is not of type 'object'"),
        (lambda text: text + " " * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Any, complaint: str) -> None:
    path = write_evidence(tmp_path, example())
    path.write_text(damage(path.read_text()))
    with pytest.raises(DocumentError, match=complaint) as caught:
        read_evidence(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"nowhere\.json: found a file that cannot be read"):
        read_evidence(tmp_path / "nowhere.json")


def test_a_file_of_evidence_has_its_name(tmp_path: Path) -> None:
    write_evidence(tmp_path / "faults-cpu.json", example())
    with pytest.raises(DocumentError, match=r"call the file clean-cpu\.json"):
        committed_evidence(tmp_path)


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="nowhere: found no folder of evidence"):
        committed_evidence(tmp_path / "nowhere")


def test_committed_evidence_can_be_read() -> None:
    names = [evidence.name for evidence in committed_evidence()]
    assert len(names) == len(set(names))
