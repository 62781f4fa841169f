"""A report follows its schema, and its page shows what failed and what has changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conformance import plugin
from conformance.errors import DocumentError
from conformance.judge.rules import Errors, Verdict
from conformance.judge.worst import locate
from conformance.provenance.clauses import catalogue
from conformance.recordings.bundle import RECORDINGS
from conformance.report import run_page
from conformance.report.difference import difference
from conformance.report.results import Outcome, Result, as_json, headline, read_report, run_headline, write_report
from conformance.report.run_page import report_page, sentence
from conformance.session import bench as bench_module
from conformance.session.bench import Bench, CaseReport, Planned
from conformance.spec.loader import check_schema
from ptycho_torch.config_params import NetworkSettings
from tests.support.html_pages import HOSTILE, check, drawings, hostile


def case(shares: dict[str, float], **more: Any) -> CaseReport:
    """A case whose verdicts use these shares of their budgets."""
    verdicts = {
        ("FORWARD-FORCED", stage): Verdict(
            "FORWARD-FORCED", stage, Errors(1e-7, 1e-6), Errors(share * 1e-6, 0.0), Errors(1e-6, 1e-5)
        )
        for stage, share in shares.items()
    }
    verdicts |= {
        ("FORWARD-FREE", stage): Verdict("FORWARD-FREE", stage, None, Errors(1e-7, 1e-7), Errors(1e-5, 1e-4))
        for stage in shares
    }
    failing = [stage for stage, share in shares.items() if share > 1]
    deviation = np.random.default_rng(0).random((1, 8, 8, 2)) * 1e-6
    place = locate(deviation)
    assert place is not None
    return CaseReport(
        planned=Planned("case", "bundle", None, NetworkSettings()),
        device="cpu",
        dtype="float32",
        reference="recorded",
        verdicts=verdicts,
        stage_of={key: key[1] for key in verdicts},
        first_failing=failing[0] if failing else None,
        run_to_run=0.0,
        seconds=1.0,
        places={("FORWARD-FORCED", next(iter(shares))): place},
        **more,
    )


def run(report: CaseReport, *, exit_status: int | None = None, **more: Any) -> tuple[Bench, Outcome]:
    bench = Bench()
    bench.reports["case", "cpu", "float32"] = report
    results = []
    for (clause, stage), verdict in report.verdicts.items():
        outcome = "passed" if verdict.passed else "failed"
        name = f"test_network.py::test_stage[{stage}-{clause}-case-cpu-float32]"
        results.append(Result(name, outcome, (clause, stage), stage, "case", "cpu", "float32", verdict.explain(), 0.1))
    status = int(not report.passed) if exit_status is None else exit_status
    return bench, Outcome(status, tuple(results), notes=("a number",), command="pytest conformance", **more)


def content(report: CaseReport, **more: Any) -> dict[str, Any]:
    found = as_json(*run(report, **more))
    return dict(json.loads(json.dumps(found, allow_nan=False)))


GOOD = {"encoder.0.conv1": 0.2, "merged": 0.3}


def test_a_report_follows_its_published_schema(tmp_path: Path) -> None:
    bench, outcome = run(case(GOOD))
    paths = write_report(tmp_path, bench, outcome)
    assert [path.name for path in paths] == ["parity.json", "parity.txt", "parity.html"]
    report = read_report(tmp_path / "parity.json")
    assert report["passed"] is True
    assert report["headline"].startswith("passed: 4 passed")
    assert report["tests"]["notes"] == ["a number"]
    check((tmp_path / "parity.html").read_text())


def test_infinite_errors_are_null() -> None:
    report = case(GOOD, error="RuntimeError: broken")
    verdicts = dict(report.verdicts)
    verdicts["FORWARD-FORCED", "merged"] = Verdict(
        "FORWARD-FORCED", "merged", None, Errors(np.inf, np.nan), Errors(1e-6, np.inf), "missing"
    )
    found = content(bench_module.dataclasses.replace(report, verdicts=verdicts, run_to_run=np.inf))
    check_schema(found, "report.json")
    (verdict,) = [each for each in found["cases"][0]["verdicts"] if each["reason"] == "missing"]
    assert verdict["share"] is None
    assert verdict["candidate"] == {"e": None, "m": None}
    assert found["cases"][0]["run_to_run"] is None
    assert "wrong" in report_page([found])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "is no JSON"),
        (lambda text: text.replace('"schema": 2', '"schema": 1'), "2 was expected"),
        (lambda text: text.replace('"outcome": "passed"', '"outcome": "fine"', 1), "'fine' is not one of"),
        (lambda text: text.replace('"outcome": "passed"', '"outcome": "waived"', 1), "'waived' is not one of"),
        (lambda text: text.replace('"share": 0.3', '"share": -1', 1), "less than the minimum"),
        (lambda text: text.replace('"share": 0.3', '"share": Infinity', 1), "Infinity is not finite"),
        (lambda text: text.replace('"passed": true', '"passed": "yes"', 1), "is not of type 'boolean'"),
    ],
)
def test_a_damaged_report_is_refused_by_name(tmp_path: Path, damage: Any, complaint: str) -> None:
    write_report(tmp_path, *run(case(GOOD)))
    path = tmp_path / "parity.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DocumentError, match=complaint) as caught:
        read_report(path)
    assert str(path) in str(caught.value)


def test_a_report_holds_for_the_sources_that_were_run() -> None:
    found = content(case(GOOD), digests=("1" * 64, "2" * 64))
    assert (found["numerical_digest"], found["spec_digest"]) == ("1" * 64, "2" * 64)


# ------------------------------------------------------------------------------------------------------- the headline


def test_the_headline_names_the_stage_and_the_cause() -> None:
    report = case({"encoder.0.conv1": 0.2, "merged": 40.0}, cause="sign of offsets")
    line = run_headline(*run(report))
    assert "first failing teacher-forced stage: merged; cause: sign of offsets" in line
    assert line.startswith("FAILED")


def test_the_headline_is_what_most_cases_say() -> None:
    bench, outcome = run(case({"merged": 40.0}))
    for number in range(2):
        bench.reports[f"other{number}", "cpu", "float32"] = case({"views": 40.0})
    assert "stage: views" in run_headline(bench, outcome)


def test_a_failed_test_without_a_case_is_named() -> None:
    failed = Result("test_spec.py::test_a", "failed", ("SPEC",))
    assert "SPEC: test_spec.py::test_a" in run_headline(Bench(), Outcome(1, (failed,)))


def test_a_run_with_a_test_that_is_expected_to_fail_has_not_passed() -> None:
    expected = SimpleNamespace(outcome="skipped", wasxfail="reason: it is known")
    states = ("passed", plugin._state(expected))  # type: ignore[arg-type]
    outcome = Outcome(0, tuple(Result(f"test_spec.py::test_{state}", state, ("SPEC",)) for state in states))
    assert not outcome.passed
    assert "test_spec.py::test_failed" in run_headline(Bench(), outcome)


def test_a_run_without_tests_has_not_passed() -> None:
    outcome = Outcome(0, (Result("test_spec.py::test_a", "skipped", ("SPEC",)),))
    assert not outcome.passed
    assert run_headline(Bench(), outcome).startswith("FAILED")


# -------------------------------------------------------------------------------------------------------- the sentence


def test_a_green_run_is_told_in_one_sentence() -> None:
    found = content(case(GOOD))
    assert sentence(found) == (
        "The PyTorch network is the TensorFlow network: 4 checks, closest call 30 % of its budget."
    )
    reader = check(report_page([found]))
    assert reader.text.count(sentence(found)) == 1
    assert "Closest call: merged, clause FORWARD-FORCED, case case on cpu in float32." in reader.text


@pytest.mark.parametrize(
    ("report", "change", "says"),
    [
        (
            case({"merged": 40.0}),
            {},
            "is not the TensorFlow network: 1 of 2 checks failed; the first wrong stage is merged.",
        ),
        (
            case({"merged": 40.0}, cause="sign of offsets"),
            {},
            "the first wrong stage is merged, probably because of: sign of offsets.",
        ),
        (case({"merged": 0.001}), {}, "closest call less than 1 % of its budget"),
        (case({"merged": 0.3}), {"deselected": 7}, "As far as it was checked, the PyTorch network is"),
        (case({"merged": 0.3}), {"exit_status": 2}, "2 checks passed, but the run did not end well"),
    ],
)
def test_a_sentence_says_what_else_a_run_has_shown(report: CaseReport, change: dict[str, Any], says: str) -> None:
    assert says in sentence(content(report, **change))


def _of(*results: Result) -> dict[str, Any]:
    return as_json(Bench(), Outcome(int(any(each.outcome == "failed" for each in results)), results))


def test_a_run_that_did_not_reach_the_network_does_not_speak_of_it() -> None:
    assert sentence(_of()).startswith("Nothing was shown")
    good, bad = Result("test_spec.py::a", "passed", ("SPEC",)), Result("test_spec.py::b", "failed", ("SPEC",))
    assert sentence(_of(good)) == "1 check passed; the network itself was not among them."
    assert sentence(_of(good, bad)) == (
        "1 of 2 checks failed, the first of clause SPEC; the network itself was not checked."
    )


def test_a_wrong_step_before_the_network_is_told_first() -> None:
    found = content(case({"merged": 40.0}))
    found["steps"] = [{"step": "offsets", "passed": False, "cause": "", "text": "FAILED  offsets"}]
    found["headline"] = "FAILED  offsets (1 failed)"
    assert "the first wrong step is offsets, which is not part of the network" in sentence(found)


# ---------------------------------------------------------------------------------------------------------- the page


def test_a_clause_shows_its_text_and_equations() -> None:
    text = "".join(check(report_page([content(case(GOOD))])).text)
    assert "merged = Σ_c T(pad(patch_c), −o_c) / (Σ_c T(pad(central_mask), −o_c) + 0.001)" in text
    assert "merged = pad(patch)   where not object_big" in text
    assert "Each stage gets the truth's input, so an error belongs to that stage." in text


def test_every_word_of_the_verdicts_is_explained() -> None:
    reader = check(report_page([content(case(GOOD))]))
    words = {"Truth", "Reference", "Candidate", "Budget", "Stage", "Case", "Clause", "Skipped"}
    assert words <= set(reader.text)
    assert reader.tags.count("dt") == reader.tags.count("dd") >= 16
    assert any("teacher-forced" in term for term in reader.text)


def test_a_test_without_a_case_is_not_listed_as_unjudged() -> None:
    found = content(case(GOOD))
    skipped = copy.deepcopy(found["results"][0]) | {"outcome": "skipped", "clauses": ["REFERENCE"]}
    found["results"].append(skipped | {"reason": "got empty parameter set for (parity_target)"})
    assert "What was not checked" not in report_page([found])
    assert "empty parameter set" not in report_page([found])
    assert "REFERENCE" not in report_page([found])
    found["results"].append(skipped | {"reason": "no scan was named"})
    assert "no scan was named" in report_page([found])


def test_what_options_left_out_is_counted_with_the_files_and_clauses_that_nothing_judged() -> None:
    found = content(case(GOOD))
    found["tests"]["deselected"] = 2
    text = " ".join("".join(check(report_page([found])).text).split())
    files = sorted(path.name for path in Path(run_page.__file__).parents[1].glob("test_*.py"))
    ran = {result["test"].partition("::")[0] for result in found["results"]}
    judged = {"FORWARD-FREE", "FORWARD-FORCED", "merged", "encoder.{i}.conv1"}
    unread = [name for name in files if name not in ran]
    assert 0 < len(unread) < len(files)
    assert f"Options left 2 tests out of the files that were read, and ran no test of {len(unread)} more files" in text
    assert ", ".join(unread) in text
    assert f"so {len(catalogue()) - len(judged)} of the {len(catalogue())} clauses were judged by no test here" in text
    assert "REFERENCE" in text


@pytest.mark.parametrize("keep", [(), ("clause", "clauses", "dtype", "outcome", "state")], ids=["all", "all but kinds"])
def test_a_page_of_hostile_text_is_safe(keep: tuple[str, ...]) -> None:
    """What a hand-made report could say, in every field that the page knows."""
    wrong = content(case({"encoder.0.conv1": 2.0, "merged": 2.0}, error="RuntimeError: broken"))
    wrong["results"][0]["outcome"] = "skipped"
    found = hostile(wrong, ("tier", *keep))
    found["versions"] = {HOSTILE: HOSTILE}
    previous = hostile(wrong, ("tier", "test", *keep))
    reader = check(report_page([found, found], previous))
    assert set(reader.tags) <= set(check(report_page([wrong, wrong], wrong)).tags) | {"ul", "li"}
    assert reader.tags.count("script") == 1
    assert reader.text.count(HOSTILE) > 20


def test_the_first_failing_stage_is_pictured_before_what_follows_from_it() -> None:
    found = content(case({"merged": 2.0, "views": 40.0}))
    (place,) = found["cases"][0]["places"]
    found["cases"][0]["places"].insert(0, {**place, "stage": "views", "quantity": "views"})
    shown = [each["what"] for each in run_page._places(found["cases"])]
    assert shown == ["FORWARD-FORCED merged", "FORWARD-FORCED views"]


def test_what_a_candidate_raised_stands_on_the_page_once() -> None:
    raised = case(GOOD, error="ValueError: my own bug (mine.py:7, in free)\n  File mine.py, line 7, in free")
    found = content(raised)
    assert "it could not be judged: ValueError: my own bug (mine.py:7, in free)." in sentence(found)
    assert "stage" not in headline(raised)
    assert "".join(check(report_page([found, found])).text).count("File mine.py, line 7") == 1


def test_a_map_whose_rows_differ_in_length_is_left_out() -> None:
    found = content(case(GOOD))
    found["cases"][0]["places"][0]["cells"] = [[1, 2], [3]]
    check_schema(found, "report.json")
    assert "Where the largest deviations are" not in report_page([found])


def test_a_page_shows_each_device_in_its_column() -> None:
    cpu = content(case(GOOD))
    cuda = json.loads(json.dumps(cpu).replace('"cpu"', '"cuda"'))
    cuda["results"][0]["outcome"] = "failed"
    text = report_page([cpu, cuda])
    check(text)
    assert "cpu float32" in text
    assert "cuda float32" in text
    assert "1 of 2 failed" in text or "1 of 1 failed" in text


def test_a_page_shows_growth_margins_and_places() -> None:
    text = report_page([content(case({"encoder.0.conv1": 0.25, "merged": 0.5}))])
    (chart,) = drawings(text)
    assert all(f">{name}</text>".encode() in chart for name in ("PyTorch on cpu", "budget", "merged"))
    assert "<details open><summary>case in float32</summary>" in text
    assert "width:50.0%" in text
    assert "data:image/png" in text


def test_a_case_without_verdicts_and_a_run_without_cases_have_a_page() -> None:
    found = content(case(GOOD))
    found["cases"][0] |= {"verdicts": [], "places": []}
    check_schema(found, "report.json")
    assert "at most 0% of a budget" in report_page([found])
    good = Result("test_spec.py::a", "passed", ("SPEC",))
    assert "Margins by stage" not in report_page([_of(good)])


def test_the_same_report_gives_the_same_page() -> None:
    found = content(case({"encoder.0.conv1": 0.25, "merged": 1.5}))
    assert report_page([found], found) == report_page([found], found)


# ----------------------------------------------------------------------------------------------------- the difference


@pytest.fixture
def before() -> dict[str, Any]:
    return content(case(GOOD))


def test_nothing_changes_between_equal_reports(before: dict[str, Any]) -> None:
    found = difference(before, before)
    assert not any((found.broken, found.repaired, found.gone, found.new, found.shares, found.environment))
    assert "Nothing has changed." in report_page([before], before)


def test_what_broke_and_what_grew_is_told(before: dict[str, Any]) -> None:
    now = content(case(GOOD | {"merged": 1.5}))
    found = difference(before, now)
    assert found.broken == ("test_network.py::test_stage[merged-FORWARD-FORCED-case-cpu-float32]",)
    (change,) = found.shares
    assert (change.cell, change.before, change.now) == (
        ("merged", "FORWARD-FORCED", "cpu", "float32"),
        pytest.approx(0.3),
        pytest.approx(1.5),
    )
    back = difference(now, before)
    assert back.repaired == found.broken
    assert "1 tests fail now and did not before" in report_page([now], before)


def test_a_test_that_is_gone_is_told_unless_the_tier_is_smaller(before: dict[str, Any]) -> None:
    now = copy.deepcopy(before)
    gone = now["results"].pop()["test"]
    assert difference(before, now).gone == (gone,)
    assert difference(now, before).new == (gone,)
    assert difference(before | {"tier": "full"}, now).gone == ()


def test_versions_that_changed_are_told(before: dict[str, Any]) -> None:
    now = copy.deepcopy(before)
    now["versions"]["torch"] = "99.0"
    assert difference(before, now).environment == {"torch": (before["versions"]["torch"], "99.0")}


def test_a_real_case_says_where_it_deviates_most() -> None:
    (planned,) = bench_module.plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    report = Bench().report(planned, "cpu", "float64")
    assert report.first_failing is None
    assert report.passed
    assert 0 < len(report.places) <= 4
