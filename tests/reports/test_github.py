"""What GitHub shows of a run, and the history of many reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from conformance import cli
from conformance.checks.table import CHECKS, Checked
from conformance.report.difference import difference, in_words, told
from conformance.report.github import notes, summary
from conformance.report.history import history_page, read_history
from conformance.report.results import Outcome, Result
from conformance.session.bench import Bench
from conformance.spec.loader import check_schema
from tests.reports.test_report import GOOD, case, content, run
from tests.support.document_blocks import REPOSITORY
from tests.support.html_pages import HOSTILE, check

WRONG = {"encoder.0.conv1": 0.2, "merged": 30.0}


def test_the_summary_names_verdict_case_and_stage() -> None:
    text = summary(content(case(WRONG)), "since then: something")
    assert text.startswith("### ❌ The PyTorch network is not the TensorFlow network")
    (row,) = [line for line in text.splitlines() if line.startswith("| case | cpu")]
    assert row.startswith("| case | cpu | float32 | merged |")
    assert "| failed test | why |" in text
    assert text.endswith("since then: something\n")
    assert summary(content(case(GOOD))).startswith("### ✅ The PyTorch network is the TensorFlow network")


def test_the_summary_shows_any_text_as_text() -> None:
    report = content(case(WRONG))
    report["results"][0] |= {"outcome": "failed", "reason": f"a | b\n# heading {HOSTILE} [link](x) `code`"}
    (line,) = [line for line in summary(report).splitlines() if "heading" in line]
    assert r"a \| b # heading" in line
    assert "<" not in line
    assert r"\[link\]" in line


def test_a_failure_is_noted_at_the_line_of_its_stage() -> None:
    (note,) = notes(*run(case(WRONG)), REPOSITORY)
    head, _, message = note.removeprefix("::error ").partition("::")
    at = dict(part.split("=", 1) for part in head.split(","))
    assert at["file"] == "ptycho_torch/model.py"
    line = (REPOSITORY / at["file"]).read_text(encoding="utf-8").splitlines()[int(at["line"]) - 1]
    assert line.startswith("class MergePatches")
    assert at["title"] == "parity%3A merged"
    assert "first failing teacher-forced stage: merged" in message
    assert list(notes(*run(case(GOOD)), REPOSITORY)) == []


def test_code_outside_of_the_checkout_is_named_in_the_message(tmp_path: Path) -> None:
    (note,) = notes(*run(case(WRONG)), tmp_path)
    assert "file=" not in note
    assert "model.py:" in note


def test_a_failed_check_has_a_line_and_a_failed_test_is_named() -> None:
    bench = Bench()
    bench.checks["data.path"] = Checked(CHECKS["data.path"], error="ValueError: 100%\nand more")
    (note,) = notes(bench, Outcome(1, ()), REPOSITORY)
    assert note.startswith("::error file=conformance/checks/data.py,line=")
    assert "100%25%0Aand more" in note
    failed = Result("test_spec.py::test_schema_is_valid[x]", "failed", ("SPEC",), reason="broken")
    (note,) = notes(Bench(), Outcome(1, (failed,)), REPOSITORY)
    assert note.startswith("::error title=parity::FAILED  SPEC: test_spec.py")


def changed(report: dict[str, Any], **more: Any) -> dict[str, Any]:
    return copy.deepcopy(report) | more


def test_the_environment_is_named_where_verdicts_differ() -> None:
    before = content(case(GOOD))
    now = changed(before, environment={**before["environment"], "threads": "8", "MKL_CBWR": "AVX2"})
    assert difference(before, now).environment == {
        "MKL_CBWR": (None, "AVX2"),
        "threads": (before["environment"]["threads"], "8"),
    }
    assert told(before, now) == ""
    now["results"][0]["outcome"] = "failed"
    line = told(before, now)
    assert "1 tests fail that did not, test_network.py::test_stage" in line
    assert line.endswith(f"Environment: MKL_CBWR none → AVX2; threads {before['environment']['threads']} → 8")


def test_an_older_report_says_nothing_of_threads() -> None:
    now = content(case(GOOD))
    before = changed(now)
    del before["environment"]
    assert difference(before, now).environment == {}
    assert in_words({"candidate": (None, "my_port:Port")}) == "candidate none → my_port:Port"


def test_the_environment_keeps_no_variable_but_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    report = content(case(GOOD))
    check_schema(report, "report.json")
    assert report["environment"]["OMP_NUM_THREADS"] == "3"
    assert "secret" not in json.dumps(report)


def test_a_history_is_a_line_for_each_report_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = content(case(GOOD)) | {"created_utc": "2026-01-02T00:00:00Z"}
    second = content(case(WRONG)) | {"created_utc": "2026-02-03T00:00:00Z"}
    second["environment"] = second["environment"] | {"threads": "77"}
    for name, report in (("b/parity.json", first), ("a.json", second), ("other.json", {})):
        path = tmp_path / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report), encoding="utf-8")
    assert cli.main(["history", str(tmp_path / "reports"), "-o", str(tmp_path / "history.html")]) == 0
    one, two, other, wrote = capsys.readouterr().out.splitlines()
    assert one.startswith("2026-01-02T00:00:00Z  passed")
    assert "cpu float32 30%" in one
    assert two.startswith("2026-02-03T00:00:00Z  FAILED")
    assert "first wrong: merged" in two
    assert "threads" in two
    assert "→ 77" in two
    assert other.startswith("left out:")
    assert wrote.startswith("wrote")
    page = (tmp_path / "history.html").read_text(encoding="utf-8")
    check(page)
    assert "data:image/svg+xml;base64," in page
    assert "History of 2 reports" in page


def test_a_hostile_history_is_shown_as_text(tmp_path: Path) -> None:
    report = content(case(GOOD))
    report["headline"] = HOSTILE
    (tmp_path / "parity.json").write_text(json.dumps(report), encoding="utf-8")
    check(history_page(read_history(tmp_path)[0]))


def test_a_folder_without_reports_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", str(tmp_path)]) == 1
    assert "found no report" in capsys.readouterr().err
