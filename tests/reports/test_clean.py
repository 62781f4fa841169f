"""Clean runs: counted, resumed, and alarms that are told with what makes the case again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance import cli
from conformance.errors import StudyError
from conformance.session import clean
from conformance.session.clean import CleanRun, CleanStudy, clean_study

GRAPH = "n64_g2_small_probe"


@pytest.fixture(autouse=True)
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "TURNS", (GRAPH,))


def run(dtype: str = "float32", e: float = 0.2, m: float = 0.1, alarms: tuple[str, ...] = ()) -> CleanRun:
    return CleanRun(GRAPH, 5, 1, "cpu", dtype, 250, alarms, {"FORWARD-FREE": ((e, "merged"), (m, "views"))}, "")


def test_a_study_goes_on_where_its_log_ends(tmp_path: Path) -> None:
    log, lines = tmp_path / "folder" / "clean.jsonl", []
    first = clean_study(1, log)
    second = clean_study(2, log, progress=lines.append)
    assert (first.runs, second.runs) == (1, 2)
    assert second.verdicts == 2 * first.verdicts > 500
    assert not second.alarms
    assert len(log.read_text().splitlines()) == 2
    assert any("1 draws taken from" in line for line in lines)
    runs = [entry for line in log.read_text().splitlines() for entry in json.loads(line)]
    assert [entry["dtype"] for entry in runs] == ["float64", "float32"] * 2
    assert len({entry["seed"] for entry in runs}) == 2
    # The same case again says the same.
    again = list(clean.clean_runs(GRAPH, runs[0]["seed"], runs[0]["modes"], "cpu", ("float64",)))
    assert json.loads(json.dumps(again[0].shares)) == runs[0]["shares"]


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    log = tmp_path / "clean.jsonl"
    log.write_text('[{"graph": "n64_g1"}]\n')
    with pytest.raises(StudyError, match=r"clean\.jsonl, line 1: no clean run"):
        clean_study(1, log)


@pytest.mark.parametrize("change", [{"code": "0" * 64}, {"device": "cuda"}])
def test_draws_of_other_code_or_another_device_are_not_counted(tmp_path: Path, change: dict[str, str]) -> None:
    log = tmp_path / "clean.jsonl"
    clean_study(1, log)
    log.write_text(json.dumps([entry | change for entry in json.loads(log.read_text())]) + "\n")
    with pytest.raises(StudyError, match="line 1: was judged by other code"):
        clean_study(1, log)


def test_the_largest_share_of_each_clause_is_kept() -> None:
    study = CleanStudy()
    study.add([run(e=0.2, m=0.3)])
    study.add([run(e=0.5, m=0.1)])
    assert study.largest("float32") == (0.5, 0.3)
    assert study.largest("float64") == (0.0, 0.0)
    text = "\n".join(study.describe())
    assert "2 clean draws, 500 verdicts, 0 false alarms" in text
    assert "a factor of 2.00 of the 4 for e, and 4.80 of the 16 for m" in text


def test_an_alarm_is_told_with_what_makes_its_case_again() -> None:
    study = CleanStudy()
    study.add([run(), run("float64", alarms=("FORWARD-FREE merged: e = 1",))])
    (alarm,) = study.alarms
    assert study.evidence("command", "cpu").missed == ("runs", "false_alarms")
    assert f"draw_case(GRAPHS['{GRAPH}'], 5, batch=1, modes=1) in float64 on cpu: FORWARD-FREE merged" in alarm


def test_the_command_fails_where_there_was_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = CleanStudy()
    broken.add([run(alarms=("merged",))])
    whole = CleanStudy(runs=1000)
    for study, status in ((whole, 0), (broken, 1)):
        monkeypatch.setattr(clean, "clean_study", lambda *_, study=study, **__: study)
        assert cli.main(["study", "clean", "--runs", "1", "-o", str(tmp_path / "log")]) == status
    assert "1 false alarms" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["study", "clean", "--runs", "0"])
