"""The gate opens for what was shown, and for nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conformance import cli
from conformance.commands import gate as command_gate
from conformance.errors import DocumentError
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import measured_here, write_evidence
from conformance.provenance.json_files import write_json
from conformance.release import consistency as module
from conformance.release.gate import (
    _EVIDENCE_COMMANDS,
    CPU_ONLY,
    FAILED,
    Decision,
    Objection,
    read_input,
    shown,
)
from conformance.release.policy import read_policy
from conformance.release.sign_off import read_sign_off, sign_off
from conformance.report.run_page import report_page
from conformance.spec.loader import check_schema
from ptycho_torch.contracts.contract import SpecError
from tests.support.html_pages import HOSTILE, check, hostile
from tests.support.release_files import (
    CPU,
    CUDA,
    NOW,
    RELEASE,
    collected,
    complete,
    decided,
    decided_from,
    measured,
    of,
    report,
    result,
    verdict,
)

TEST = "test_network.py::test_stage[merged-FORWARD-FREE-case-cpu-float32]"


def test_the_reports_of_these_tests_are_reports() -> None:
    for requirement in RELEASE.devices:
        check_schema(report(requirement), "report.json")


def test_what_was_shown_on_both_devices_is_released() -> None:
    decision = decided()
    assert (decision.verdict, decision.violations, decision.pending) == ("release", (), ())
    assert decision.is_granted


def test_without_cuda_it_is_the_cpu_only() -> None:
    decision = decided(cuda=False)
    assert decision.verdict == CPU_ONLY
    assert not decision.is_granted
    assert "no report of cuda" in decision.headline


def test_fresh_evidence_stands_for_a_cuda_report() -> None:
    shown = dataclasses.replace(
        measured_here("parity", "pytest conformance", {"tests_passed": 9, "verdicts": 9, "largest_share": 0.2}),
        device="cuda",
        driver="NVIDIA 1",
    )
    assert decided(cuda=False, evidence=[*measured(), shown]).verdict == "release"
    stale = dataclasses.replace(shown, numerical_digest="0" * 64)
    decision = decided(cuda=False, evidence=[*measured(), stale])
    assert decision.verdict == CPU_ONLY
    assert "parity-cuda is stale" in decision.headline


def _fail(found: dict[str, Any]) -> None:
    found["passed"] = False
    found["headline"] = "FAILED  case on cpu in float32: first failing teacher-forced stage: merged"
    found["cases"][0] |= {"passed": False, "first_failing_stage": "merged", "verdicts": [verdict(40.0)]}
    test = TEST.replace("-cpu-", f"-{found['devices'][0]['device']}-")
    next(each for each in found["results"] if each["test"] == test)["outcome"] = "failed"


def _skip(found: dict[str, Any]) -> None:
    found["results"].append(result("test_network.py::test_stage[x]", ("FORWARD-FREE",), "skipped", device="cpu"))


def _drop(test: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found["results"] = [each for each in found["results"] if not test(each)]

    return change


def _without_stage(found: dict[str, Any]) -> None:
    for each in found["results"]:
        if each["dtype"] == "float32":
            each["clauses"] = [clause for clause in each["clauses"] if clause != "merged"]


def _old(days: float) -> Callable[[dict[str, Any]], None]:
    when = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return lambda found: found.update(created_utc=when)


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (_fail, "test_stage[merged-FORWARD-FREE-case-cpu-float32] failed"),
        (_skip, "test_stage[x] was skipped, and FORWARD-FREE is required"),
        (_drop(lambda each: each["dtype"] == "float64"), "cpu float64: nothing judged clause FLOAT64"),
        (_drop(lambda each: "SPEC" in each["clauses"]), "cpu: nothing judged clause SPEC"),
        (
            _drop(lambda each: each["test"].startswith("test_spec.py")),
            "test_spec.py::test_every_stage: 2 of 2 tests",
        ),
        (_without_stage, "cpu float32: nothing judged clause merged"),
        (lambda found: found["tests"].update(deselected=3), "options left 3 tests out"),
        (lambda found: found.update(tier="quick"), "no report of cpu of tier full; there is one of tier quick"),
        (lambda found: found.update(numerical_digest="1" * 64), "stale: it is valid for other numerical sources"),
        (_old(31), "31 days old; release_policy.yaml allows 30"),
        (_old(-1), "which has not come yet"),
        (lambda found: found.update(created_utc="2026-13-45T00:00:00Z"), "is no time"),
        (lambda found: found.update(passed=False), "the run did not pass"),
        (lambda found: found["tests"].update(exit_status=2), "contradicts itself: passed is True, with exit status 2"),
        (lambda found: found["cases"][0].update(error="RuntimeError: broken"), "raised RuntimeError: broken"),
        (lambda found: found["cases"][0].update(verdicts=[verdict(40.0)]), "FORWARD-FREE merged does not hold"),
        (
            lambda found: found["cases"][0].update(verdicts=[verdict(40.0, passed=True)]),
            "FORWARD-FREE merged contradicts itself: passed, with 40 budgets used",
        ),
        (
            lambda found: found["cases"][0].update(verdicts=[verdict(0.0) | {"share": None}]),
            "contradicts itself: passed, with inf budgets used",
        ),
        (
            lambda found: found["cases"][0].update(verdicts=[verdict(2.0, waived=True)]),
            "FORWARD-FREE merged does not hold",
        ),
        (lambda found: found["recordings"][0].update(verdicts=[verdict(2.0)]), "recording case: FORWARD-FREE merged"),
    ],
)
def test_what_was_not_shown_is_not_released(change: Callable[[dict[str, Any]], object], violation: str) -> None:
    decision = decided(change)
    assert decision.verdict == FAILED
    assert any(violation in each for each in decision.violations), decision.violations


@pytest.mark.parametrize(
    ("change", "first", "command"),
    [
        (
            _fail,
            "After the repair:",
            "--parity-device cpu --parity-tier full --parity-report cpu",
        ),
        (_skip, "", "pytest conformance --parity-device cpu --parity-tier full --parity-report cpu"),
        (_old(31), "", "pytest conformance --parity-device cpu --parity-tier full --parity-report cpu"),
        (_old(-1), "With the clocks set:", "pytest conformance"),
        # A report of too small a tier is made again in the one that the policy asks for.
        (lambda found: found.update(tier="quick"), "", "--parity-tier full"),
    ],
)
def test_what_stands_against_a_release_can_be_mended(
    change: Callable[[dict[str, Any]], object], first: str, command: str
) -> None:
    (key, *_) = decided(change).remedies
    assert key[0] == first
    assert command in key[1]


def test_every_objection_says_what_to_do() -> None:
    nothing = decided_from([], [])
    assert len(nothing.violations) + len(nothing.pending) == len(RELEASE.devices) + len(RELEASE.evidence) == 8
    assert all(first or command for first, command in nothing.remedies)
    assert {each.kind for each in RELEASE.evidence} == set(_EVIDENCE_COMMANDS)
    mended = [each for objections in nothing.remedies.values() for each in objections]
    assert sorted(mended) == sorted((*nothing.violations, *nothing.pending))


def test_the_headline_of_a_failure_names_the_stage() -> None:
    assert "first failing teacher-forced stage: merged" in decided(_fail).headline


def test_a_failure_on_cuda_is_no_matter_of_the_cpu_only() -> None:
    decision = decided_from([of(CPU), of(CUDA, _fail)])
    assert decision.verdict == FAILED


def test_a_skip_that_the_policy_allows_is_no_gap() -> None:
    def skip(found: dict[str, Any]) -> None:
        test = "test_float64.py::test_candidate_is_keras[n64_g1-cuda]"
        found["results"].append(result(test, ("FLOAT64",), "skipped", device="cuda", dtype="float64"))

    assert decided_from([of(CPU), of(CUDA, skip)]).verdict == "release"
    without = _drop(lambda each: each["test"].startswith("test_training.py"))
    assert decided_from([of(CPU), of(CUDA, without)]).verdict == "release"
    decision = decided_from([of(CPU, without), of(CUDA)])
    assert any("cpu: test_training.py::" in each for each in decision.violations)


def test_two_reports_of_a_device_complete_each_other() -> None:
    one, other = of(CPU, _drop(lambda each: each["dtype"] == "float64")), of(CPU, _skip)
    whole = of(CPU)
    assert decided_from([one, whole, of(CUDA)]).verdict == "release"
    assert decided_from([one, other, of(CUDA)]).verdict == FAILED


def test_a_report_that_knew_waivers_is_still_read(tmp_path: Path) -> None:
    """Nothing in it excuses a failure any more."""

    def with_waivers(found: dict[str, Any]) -> None:
        found["tests"]["waived"] = 0
        for case in found["cases"]:
            case["waivers"] = [{"test": TEST, "reason": "It is known.", "expires": "2999-01-01", "state": "holds"}]
            case["verdicts"] = [each | {"waived": False} for each in case["verdicts"]]

    path = write_json(tmp_path / "parity.json", of(CPU, with_waivers).report)
    assert decided_from([read_input(path), of(CUDA)]).verdict == "release"


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"numerical_digest": "0" * 64}, "evidence faults-cpu is stale"),
        ({"numbers": {"detected": 0.97}, "goals": {}}, "detected is 0.97; the goal is ≥ 0.98"),
        ({"kind": "rumours"}, "no evidence of kind faults for cpu"),
    ],
)
def test_evidence_has_to_be_there_fresh_and_good(change: dict[str, Any], violation: str) -> None:
    first, *others = measured()
    decision = decided(evidence=[dataclasses.replace(first, **change), *others])
    assert decision.verdict == FAILED
    assert any(violation in each for each in decision.violations), decision.violations


def test_what_a_report_shows_on_a_gpu_is_evidence_for_later_decisions() -> None:
    (kept,) = shown([of(CPU), of(CUDA)], RELEASE, tests=collected)
    assert (kept.name, kept.device_name, kept.versions) == ("parity-cuda", "a device", {"torch": "2"})
    assert kept.numbers["tests_passed"] == len(of(CUDA).report["results"])
    assert kept.numbers["largest_share"] == pytest.approx(0.2)
    assert kept.is_fresh()
    assert decided(cuda=False, evidence=[*measured(), kept]).verdict == "release"


@pytest.mark.parametrize(
    "change",
    [
        _fail,
        _drop(lambda each: "SPEC" in each["clauses"]),
        lambda found: found["tests"].update(deselected=3),
        lambda found: found.update(numerical_digest="1" * 64),
        _old(31),
    ],
    ids=["failed", "a clause is missing", "tests left out", "stale", "old"],
)
def test_a_report_that_does_not_show_all_is_no_evidence(change: Callable[[dict[str, Any]], None]) -> None:
    assert list(shown([of(CPU), of(CUDA, change)], RELEASE, tests=collected)) == []


def test_a_merge_asks_for_the_cpu_alone() -> None:
    merge = read_policy("merge")
    decision = decided_from([of(merge.devices[0])], [], merge)
    assert decision.verdict == "merge"
    assert decision.is_granted


# -------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text.replace("device: cuda", "device: other"), "a release has to be shown on cuda"),
        (lambda text: text.replace("SPEC, REFERENCE", "SPEC, REFERENCES"), "no file of specs has clause REFERENCES"),
        (lambda text: text.replace("grants: release", "grants: fame"), "'fame' is not one of"),
        (lambda text: text.replace("device: cuda", "device: cpu"), "a device is there twice"),
        (lambda text: text + "\nmore: 1\n", "'more' was unexpected"),
        (lambda text: "a: [", "is no YAML"),
    ],
)
def test_a_damaged_policy_is_refused_by_name(tmp_path: Path, damage: Callable[[str], str], complaint: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(damage((Path(__file__).parents[2] / "specs" / "release_policy.yaml").read_text()))
    with pytest.raises(SpecError, match=complaint) as caught:
        read_policy(path)
    assert str(path) in str(caught.value)


# ------------------------------------------------------------------------------------------------------ the sign-off


def signed() -> dict[str, Any]:
    return sign_off(decided(), [of(CPU), of(CUDA)], RELEASE, measured())


def test_a_sign_off_says_who_when_and_from_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTOR", "A. Person")
    content = read_sign_off(write_json(tmp_path / "signed.json", signed()))
    assert content["verdict"] == "release"
    assert content["decided_by"].startswith("A. Person on ")
    assert [each["devices"] for each in content["inputs"]] == [["cpu"], ["cuda"]]
    assert content["numerical_digest"] == numerical_digest()


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "CPU only"},
        {"decided_by": "Another"},
        {"violations": ["x"]},
        {"digest": "0" * 64},
        {"numerical_digest": "0" * 64},
    ],
)
def test_a_tampered_sign_off_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_json(tmp_path / "signed.json", signed() | change)
    with pytest.raises(DocumentError, match="was changed after it was written"):
        read_sign_off(path)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with reports of both devices and all evidence."""
    monkeypatch.setattr(module, "collect", lambda tier, suite_only: collected(tier))
    module.collected.cache_clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for requirement in RELEASE.devices:
        (tmp_path / f"{requirement.device}.json").write_text(json.dumps(report(requirement)))
    for each in measured():
        write_evidence(tmp_path / "evidence", each)
    return tmp_path


def run(files: Path, *names: str) -> int:
    reports = [str(files / f"{name}.json") for name in names if not name.startswith("-")]
    options = [name for name in names if name.startswith("-")]
    return cli.main(["gate", *reports, "--evidence", str(files / "evidence"), *options])


def test_exit_codes_tell_release_failure_and_cpu_only_apart(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "cpu", "cuda") == command_gate.GRANTED == 0
    assert run(files, "cpu") == command_gate.CPU_ONLY == 3
    assert "CPU only" in capsys.readouterr().out
    content = report(CPU)
    _fail(content)
    (files / "bad.json").write_text(json.dumps(complete(content)))
    assert run(files, "bad", "cuda") == command_gate.REFUSED == 1
    assert "first failing teacher-forced stage: merged" in capsys.readouterr().out


def test_evidence_of_a_gpu_is_kept_and_does_for_the_next_decision(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "cpu", f"--keep={files / 'evidence'}") == 3
    assert "parity-cuda" not in capsys.readouterr().out
    assert run(files, "cpu", "cuda", f"--keep={files / 'evidence'}") == 0
    assert "parity-cuda.json" in capsys.readouterr().out
    assert run(files, "cpu") == 0


def test_the_decision_is_signed_and_shown(files: Path) -> None:
    assert run(files, "cpu", "cuda", f"--output={files / 'signed.json'}", f"--page={files / 'gate.html'}") == 0
    assert read_sign_off(files / "signed.json")["granted"] is True
    text = (files / "gate.html").read_text()
    assert any("Gate: release granted." in each for each in check(text).text)
    assert text.count('class="verdict') == 1
    assert "what would mend it" not in text


def test_the_page_says_what_is_missing_and_the_command_that_mends_it(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "evidence" / "clean-cpu.json").unlink()
    assert run(files, "cpu", "cuda", f"--page={files / 'gate.html'}") == 1
    text = (files / "gate.html").read_text()
    reader = check(text)
    assert "Gate: release refused. 1 thing stands against it." in " ".join("".join(reader.text).split())
    assert text.count('class="verdict') == 1
    command = f"python -m conformance study clean --runs 1000 --evidence {files / 'evidence'}"
    assert command in reader.text
    assert f"To mend 1 of 1 objections: {command}\n" in capsys.readouterr().out


def test_the_verdict_comes_first_then_one_command_and_the_rest_where_it_is_asked_for(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("clean-cpu", "mutation-cpu"):
        (files / "evidence" / f"{name}.json").unlink()
    content = report(CPU)
    content["results"] = content["results"][:-9]
    (files / "cpu.json").write_text(json.dumps(complete(content)))
    assert run(files, "cpu", "cuda") == 1
    verdict, remedy, more = capsys.readouterr().out.splitlines()
    assert verdict.startswith("FAILED")
    assert re.fullmatch(r"To mend \d+ of \d+ objections: pytest conformance --parity-device cpu .*", remedy)
    assert more == "-v lists every objection; 2 more commands mend the others"
    assert run(files, "cpu", "cuda", "-v") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [verdict, remedy]
    assert sum(line.startswith("To mend ") for line in lines) == 3
    assert sum(line.startswith("  ") for line in lines) == int(remedy.split()[4])


def test_a_gpu_that_is_missing_is_told_apart(files: Path) -> None:
    assert run(files, "cpu", f"--page={files / 'gate.html'}") == 3
    reader = check((files / "gate.html").read_text())
    assert "Nothing failed, but the checks on a GPU are missing." in " ".join("".join(reader.text).split())
    assert "On a machine with a CUDA device: " in reader.text
    assert "pytest conformance --parity-device cuda --parity-tier quick --parity-report cuda" in reader.text


def test_a_decision_of_hostile_text_is_safe() -> None:
    """Everything that the page shows of the decision, besides the reports below it."""
    found = hostile(report(CPU), ("tier", "clause", "clauses", "dtype", "outcome"))
    text = report_page(
        [found],
        template="gate",
        title="Release gate",
        signed=hostile(signed() | {"evidence": [{"name": "x", "fresh": False, "missed": ["x"], "created_utc": "x"}]}),
        decision=Decision(HOSTILE, HOSTILE, (Objection(HOSTILE, HOSTILE, HOSTILE),), ()),
    )
    reader = check(text)
    assert reader.tags.count("script") == 1
    assert reader.text.count(HOSTILE) > 10


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', "null", "\x00"])
def test_a_damaged_report_is_one_clear_line(files: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "bad.json").write_text(content)
    assert run(files, "cpu", "bad") == 1
    found = capsys.readouterr()
    (line,) = found.err.strip().splitlines()
    assert line.startswith("error: ")
    assert "bad.json" in line
    assert "release" not in found.out


def test_damaged_evidence_is_one_clear_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "evidence" / "faults-cpu.json").write_text("{}")
    assert run(files, "cpu", "cuda") == 1
    assert "faults-cpu.json" in capsys.readouterr().err


def test_a_report_changed_by_hand_is_not_believed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = report(CPU)
    _fail(content)
    content |= {"passed": True, "headline": "passed"}
    for each in content["results"]:
        each["outcome"] = "passed"
    (files / "cpu.json").write_text(json.dumps(complete(content)))
    assert run(files, "cpu", "cuda", "-v") == 1
    assert "FORWARD-FREE merged does not hold" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- MLflow


def test_mlflow_is_not_touched_without_an_address(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_gate, "_publish", lambda *_: pytest.fail("published"))
    assert run(files, "cpu", "cuda") == 0


def test_the_decision_becomes_an_mlflow_run(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="decisions are published with MLflow; pip install mlflow")
    uri = f"sqlite:///{files / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(files)
    assert run(files, "cpu", "cuda", f"--page={files / 'gate.html'}") == 0
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("conformance").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["verdict"] == "release"
    assert found.data.metrics["granted"] == 1.0
    assert {each.path for each in client.list_artifacts(found.info.run_id)} == {"sign-off.json", "gate.html"}
    assert found.info.run_id in capsys.readouterr().out


def test_an_absent_server_does_not_change_the_decision(
    files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="decisions are published with MLflow; pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run(files, "cpu") == command_gate.CPU_ONLY
    assert "No MLflow run is made" in caplog.text


def test_a_policy_of_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(SpecError, match=r"policy\.yaml: found more than 1,048,576 bytes"):
        read_policy(path)
