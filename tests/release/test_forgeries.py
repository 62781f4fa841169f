"""No report, evidence or sign-off that was forged makes the gate say `release`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conformance.errors import DocumentError
from conformance.provenance import evidence as evidence_module
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import committed_evidence, write_evidence
from conformance.provenance.json_files import as_text, sealed, write_json
from conformance.release import gate
from conformance.release.consistency import not_run
from conformance.release.sign_off import disagreements, read_sign_off, sign_off
from ptycho_torch.errors import PtychoError
from tests.support.release_files import (
    CPU,
    CUDA,
    FUNCTIONS,
    LARGE,
    NOW,
    RELEASE,
    STEP,
    complete,
    decided_from,
    measured,
    report,
    verdict,
)

Files = dict[str, Any]
"""Name of a file in the folder of a release → its content, or its text."""

Forge = Callable[[Files], object]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """All that a release asks for. Digests of the sources, which nobody edits meanwhile, are taken once."""
    folder = tmp_path_factory.mktemp("release")
    for each in measured():
        write_evidence(folder / "evidence", each)
    found: Files = {f"evidence/{path.name}": json.loads(path.read_text()) for path in folder.glob("evidence/*")}
    with pytest.MonkeyPatch.context() as patch:
        for module in (evidence_module, gate):
            patch.setattr(module, "numerical_digest", cache(numerical_digest))
        yield found | {"cpu.json": report(CPU), "cuda.json": report(CUDA)}


def answer(files: Files, folder: Path) -> tuple[str, str]:
    """What the gate decides from files, and why."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else as_text(content))
    try:
        inputs = [gate.read_input(folder / name) for name in files if "/" not in name]
        found = decided_from(inputs, list(committed_evidence(folder / "evidence")))
    except PtychoError as err:
        return gate.FAILED, str(err)
    return found.verdict, "\n".join([found.headline, *found.violations, *found.pending])


def test_honest_files_are_released(honest: Files, tmp_path: Path) -> None:
    assert answer(honest, tmp_path) == ("release", "release: cpu and cuda hold to release_policy.yaml")


def edit(name: str = "cpu.json", **change: Any) -> Forge:
    return lambda files: files[name].update(change)


def text(change: Callable[[str], str], name: str = "cpu.json") -> Forge:
    return lambda files: files.update({name: change(as_text(files[name]))})


def case(**change: Any) -> Forge:
    return lambda files: files["cpu.json"]["cases"][0].update(change)


def first_verdict(found: dict[str, Any]) -> Forge:
    return lambda files: files["cpu.json"]["cases"][0]["verdicts"].__setitem__(0, found)


def recounted(change: Callable[[dict[str, Any]], object]) -> Forge:
    """Change the CPU report, and count its tests again."""

    def forge(files: Files) -> None:
        change(files["cpu.json"])
        files["cpu.json"] = complete(files["cpu.json"])

    return forge


def without(*tests: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found["results"] = [each for each in found["results"] if each["test"] not in tests]

    return change


def written(days: float) -> str:
    """When something was written so many days ago."""
    return (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


EDITED: dict[str, tuple[Forge, str]] = {
    "a number made smaller": (
        lambda files: files["cpu.json"]["cases"][0]["verdicts"][0].update(share=0.1, candidate={"e": 1e-7, "m": 0.0}),
        "was changed after it was written",
    ),
    "dated a day younger": (edit(created_utc=written(1)), "was changed after it was written"),
    "cut off": (text(lambda whole: whole[: len(whole) // 2]), "is no JSON"),
    "only its first tests": (lambda files: files["cpu.json"].update(results=[]), "was changed after it was written"),
    "another command": (edit(command="pytest"), "was changed after it was written"),
    "its digest taken out": (lambda files: files["cpu.json"].pop("digest"), "has no digest of its content"),
    "evidence with a better number": (
        lambda files: files["evidence/clean-cpu.json"]["numbers"].update(e_factor_needed=1),
        "was changed after it was written",
    ),
    "evidence dated younger": (edit("evidence/clean-cpu.json", created_utc=written(0.01)), "was changed after"),
    "evidence without its digest": (lambda files: files["evidence/clean-cpu.json"].pop("digest"), "digest"),
    "a CPU's report for a GPU's": (
        lambda files: files.update({"cuda.json": text_of(files["cpu.json"], '"cpu"', '"cuda"')}),
        "was changed after it was written",
    ),
}
"""What people do in an editor."""

JUDGED = "test_network.py::test_stage[merged-FORWARD-FREE-case-cpu-float32]"
TOLERANT = verdict(40.0) | {"passed": True}

FORGED: dict[str, tuple[Forge, str]] = {
    "a test taken out": (recounted(without(JUDGED)), "test_stage: 1 of "),
    "a test and its verdict taken out": (
        recounted(lambda found: (without(JUDGED)(found), found["cases"][0]["verdicts"].pop(0))),
        "were not run",
    ),
    "a whole function taken out": (recounted(without(FUNCTIONS[1])), "test_training.py::test_state: 1 of 1 tests"),
    "half of the tests": (
        recounted(lambda found: found.update(results=found["results"][::2])),
        "were not run",
    ),
    "the tests of a smaller tier": (recounted(without(LARGE)), "test_spec.py::test_every_stage: 1 of 2 tests"),
    "a test without its verdict": (
        lambda files: files["cpu.json"]["cases"][0]["verdicts"].pop(0),
        f"{JUDGED} passed, and no verdict was found",
    ),
    "a whole case without its verdicts": (case(verdicts=[]), "and no verdict was found"),
    "a recording without its verdicts": (edit(recordings=[]), "test_recording[REFERENCE-case] passed, and no verdict"),
    "a failure called passed": (first_verdict(TOLERANT), "passed, with 40 budgets used"),
    "a failure with a small share": (first_verdict(TOLERANT | {"share": 0.4}), "0.4 budgets used, and 40 by its"),
    "a failure without a budget": (
        first_verdict(TOLERANT | {"share": 0.0, "budget": {"e": None, "m": None}}),
        "has no budget",
    ),
    "a failure that was excused": (first_verdict(verdict(40.0, waived=True)), "FORWARD-FREE merged does not hold"),
    "a case that raised": (case(error="RuntimeError: broken"), "with a verdict, an error or a stage that failed"),
    "a case that failed": (case(passed=False), "the run passed, and case cpu float32 did not"),
    "a case with a failing stage": (case(first_failing_stage="merged"), "or a stage that failed"),
    "a case that is there twice": (
        lambda files: files["cpu.json"]["cases"].append(files["cpu.json"]["cases"][0]),
        "case case cpu float32 is there twice",
    ),
    "a case of another device": (case(device="cuda"), "judged on cuda, with devices cpu"),
    "a test that is there twice": (
        recounted(lambda found: found["results"].append(found["results"][0])),
        "is there twice",
    ),
    "a test that claims more clauses": (
        lambda files: files["cpu.json"]["results"][0]["clauses"].append("FORWARD-FREE"),
        "says that it judges SPEC",
    ),
    "other counts": (
        lambda files: files["cpu.json"]["tests"].update(passed=9999),
        "9999 tests passed, and a list of",
    ),
    "the headline of a failure": (edit(headline="FAILED  merged"), "passed is True, and the headline 'FAILED"),
    "the status of a failure": (lambda files: files["cpu.json"]["tests"].update(exit_status=1), "with exit status 1"),
    "tests left out by options": (lambda files: files["cpu.json"]["tests"].update(deselected=9), "left 9 tests out"),
    "a skipped test that is required": (
        recounted(lambda found: found["results"][0].update(outcome="skipped")),
        "was skipped, and",
    ),
    "a step that failed": (lambda files: files["cpu.json"]["steps"][0].update(passed=False), "and its step did not"),
    "no steps": (edit(steps=[]), f"test_steps.py::test_step[{STEP}] passed, and its step did not"),
    "a CPU's report for a GPU's": (
        lambda files: files.update({"cuda.json": json.loads(text_of(files["cpu.json"], "cpu", "cuda"))}),
        "cuda with driver None",
    ),
    "the CPU's report twice": (lambda files: files.update({"cuda.json": files["cpu.json"]}), "no report of cuda"),
    "the report of other sources": (edit(numerical_digest="1" * 64), "stale"),
    "the report of another specification": (edit(spec_digest="1" * 64), "is valid for another specification"),
    "an old report": (edit(created_utc=written(31)), "31 days old"),
    "a report of tomorrow": (edit(created_utc=written(-1)), "which has not come yet"),
    "a report of no day": (edit(created_utc="2026-13-45T00:00:00Z"), "is no time"),
    "evidence of another commit": (edit("evidence/faults-cpu.json", numerical_digest="1" * 64), "is stale"),
    "evidence of tomorrow": (edit("evidence/faults-cpu.json", created_utc=written(-1)), "has not come yet"),
    "evidence without its goals": (
        lambda files: files["evidence/faults-cpu.json"].update(goals={}, numbers=bad_numbers(files)),
        "detected is 0.5; the goal is ≥ 0.98",
    ),
    "evidence with lower goals": (
        lambda files: files["evidence/faults-cpu.json"].update(
            goals={"detected": {"at_least": 0.4}}, numbers=bad_numbers(files)
        ),
        "detected is 0.5; the goal is ≥ 0.98",
    ),
    "evidence without a number": (
        edit("evidence/faults-cpu.json", goals={}, numbers={"rate": 1.0}, meanings={}),
        "has no number detected",
    ),
    "evidence of fewer runs": (
        lambda files: files["evidence/clean-cpu.json"].update(
            numbers=files["evidence/clean-cpu.json"]["numbers"] | {"runs": 10}, goals={}
        ),
        "runs is 10; the goal is ≥ 1000",
    ),
    "evidence under another name": (
        lambda files: files.update({"evidence/faults-cpu.json": files["evidence/clean-cpu.json"]}),
        "call the file clean-cpu.json",
    ),
    "a CPU's evidence for a GPU's report": (
        lambda files: (
            files.pop("cuda.json"),
            files.update({"evidence/parity-cuda.json": as_gpu(files["evidence/replay-cpu.json"])}),
        ),
        "contradicts itself: cuda with driver None",
    ),
}
"""What a program can write, each with a digest of its own."""


def text_of(content: dict[str, Any], old: str, new: str) -> str:
    return as_text(content).replace(old, new)


def bad_numbers(files: Files) -> dict[str, float]:
    numbers: dict[str, float] = files["evidence/faults-cpu.json"]["numbers"]
    return numbers | {"detected": 0.5}


def as_gpu(content: dict[str, Any]) -> dict[str, Any]:
    numbers = {"tests_passed": 9000, "verdicts": 9000, "largest_share": 0.5}
    return content | {"kind": "parity", "device": "cuda", "numbers": numbers, "goals": {}, "meanings": {}}


def refused(forge: Forge, because: str, files: Files, folder: Path, *, sealing: bool) -> None:
    files = copy.deepcopy(files)
    forge(files)
    if sealing:
        files = {name: sealed(content) for name, content in files.items()}
    found, why = answer(files, folder)
    assert found != "release"
    assert because in why


@pytest.mark.parametrize(("forge", "because"), EDITED.values(), ids=EDITED)
def test_an_edited_file_is_not_released(forge: Forge, because: str, honest: Files, tmp_path: Path) -> None:
    refused(forge, because, honest, tmp_path, sealing=False)


@pytest.mark.parametrize(("forge", "because"), FORGED.values(), ids=FORGED)
def test_a_forged_file_is_not_released(forge: Forge, because: str, honest: Files, tmp_path: Path) -> None:
    refused(forge, because, honest, tmp_path, sealing=True)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "CPU only"},
        {"violations": ["x"]},
        {"inputs": []},
        {"evidence": []},
        {"numerical_digest": "0" * 64},
        {"policy": {"file": "release_policy.yaml", "digest": "0" * 64, "grants": "release"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sign_off_with_a_changed_line_is_refused(change: dict[str, Any], honest: Files, tmp_path: Path) -> None:
    """Edited, by its digest; with a new digest, by the files that it names."""
    for name in ("cpu.json", "cuda.json"):
        write_json(tmp_path / name, honest[name])
    inputs = [gate.read_input(tmp_path / name) for name in ("cpu.json", "cuda.json")]
    signed = sign_off(decided_from(inputs), inputs, RELEASE, measured())
    assert list(disagreements(signed, signed | {"decided_utc": written(1), "decided_by": "Another"})) == []
    with pytest.raises(DocumentError, match="was changed after it was written"):
        read_sign_off(write_json(tmp_path / "signed.json", signed | change))
    forged = read_sign_off(write_json(tmp_path / "signed.json", sealed(signed | change)))
    (name,) = change
    assert [each.partition(" ")[0] for each in disagreements(forged, signed)] == [name]


def test_a_report_without_the_reference_lacks_its_cases_only() -> None:
    ids = [f"test_network.py::test_stage[merged-LOSS-{case}-cpu-float32]" for case in ("keras_n64", "n64")]
    tests = dict.fromkeys(ids, ("LOSS",))
    there = {"test_network.py::test_stage[all_stages-keras_n64]": ("LOSS",), ids[1].replace("cpu", "cuda"): ("LOSS",)}
    assert list(not_run(tests, there, "cuda", ())) == []
    assert len(list(not_run(tests, dict(list(there.items())[:1]), "cuda", ()))) == 1
