"""Any candidate before the judge: what is right, wrong, missing, not offered, or raises; and where its code is."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance import test_network
from conformance.cases.case import Case, ForcedRun, FreeRun
from conformance.cases.draws import draw_case
from conformance.errors import CandidateError
from conformance.judge import condition
from conformance.judge.measure import BACKWARD_FREE, FORWARD_FORCED, FORWARD_FREE, GRADIENT_FREE, LOSS
from conformance.judge.truth import Truth
from conformance.report.results import Outcome, as_json, headline
from conformance.session.bench import Bench, CaseReport, Planned
from conformance.session.targets import Target
from conformance.subjects.candidate import CandidateSubject, Origin, load_factory, located
from conformance.subjects.torch import TorchSubject
from conformance.subjects.variants import subject_of
from conformance.suite import OURS
from ptycho_torch.config_params import NetworkSettings
from tests.support.document_blocks import REPOSITORY, blocks

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.75)
PAGE = REPOSITORY / "docs" / "judge_your_port.md"
# An archive's case is kept with its truth, and without live Keras, so that all tests share one.
PLANNED = Planned("drawn", "archive", None, SETTINGS, case=draw_case(SETTINGS, seed=1, batch=1), live=False)
BENCH = Bench()


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes here are large, so that the condition need not be known well."""
    for name in ("FREE_DRAWS", "FORCED_DRAWS", "CAREFUL_DRAWS"):
        monkeypatch.setattr(condition, name, 1)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, types.ModuleType]:
    """The modules of the page, as a reader has them."""
    folder = tmp_path_factory.mktemp("ports")
    codes = [code for language, code in blocks(PAGE) if language == "python"]
    for name, code in (("my_port", codes[0]), ("my_whole_port", codes[2]), ("my_gradients", codes[3])):
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    found = {}
    for name, attribute in (("my_port", "Port"), ("my_whole_port", "Whole"), ("my_gradients", "Graded")):
        factory, origin = load_factory(f"{name}:{attribute}", folder)
        assert origin.name == f"{name}:{attribute}"
        found[name] = __import__(name)
        assert getattr(found[name], attribute) is factory
    return found


@pytest.fixture(scope="module")
def truth() -> Truth:
    return BENCH.truth(PLANNED)


def judged(factory: Callable[[str, str], Any], dtype: str = "float64") -> CaseReport:
    BENCH.factory = factory
    BENCH.reports.clear()
    return BENCH.report(PLANNED, "cpu", dtype)


def right(truth: Truth, change: Callable[[dict[str, np.ndarray]], object] = lambda stages: None) -> Callable[..., Any]:
    """Return the factory of a candidate that gives the truth, after a change."""

    class Right:
        def __init__(self, device: str, dtype: str) -> None: ...

        def free(self, case: Case) -> FreeRun:
            stages = dict(truth.stages)
            change(stages)
            return FreeRun(stages)

    return Right


def test_the_first_port_of_the_page_has_thirty_lines_and_no_decoder(ports: Mapping[str, types.ModuleType]) -> None:
    code = next(code for language, code in blocks(PAGE) if language == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    report = judged(ports["my_port"].Port)
    assert report.first_failing == "decoder_amp.0.conv1"
    assert "teacher-forced stage: decoder_amp.0.conv1" in headline(report)
    assert headline(report).endswith("cause: missing")
    (missing,) = report.of(FORWARD_FORCED, "decoder_amp.0.conv1")
    assert missing.reason == "missing"
    assert all(verdict.passed for verdict in report.of(FORWARD_FORCED, "encoder.2.pool"))


def test_the_whole_port_of_the_page_is_the_network(ports: Mapping[str, types.ModuleType]) -> None:
    report = judged(ports["my_whole_port"].Whole)
    assert report.passed, headline(report)
    assert "not given: BACKWARD-FREE, GRADIENT-FREE" in headline(report)
    assert {clause for clause, _ in report.verdicts} == {FORWARD_FREE, FORWARD_FORCED}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_gradients_of_the_page_are_those_of_the_network(ports: Mapping[str, types.ModuleType], dtype: str) -> None:
    report = judged(ports["my_gradients"].Graded, dtype)
    assert report.passed, headline(report)
    assert {BACKWARD_FREE, GRADIENT_FREE, LOSS, FORWARD_FORCED} <= {clause for clause, _ in report.verdicts}
    assert "not given: BACKWARD-FORCED, GRADIENT-FORCED" in headline(report)


def test_gradients_that_are_missing_are_named_and_no_stage_is_blamed(ports: Mapping[str, types.ModuleType]) -> None:
    class Lacking(ports["my_gradients"].Graded):  # type: ignore[misc, name-defined]
        def free(self, case: Case) -> FreeRun:
            run = super().free(case)
            kept = {name: run.cotangents[name] for name in run.cotangents if name not in ("normalized_input", "object")}
            return dataclasses.replace(run, cotangents=kept)

    report = judged(Lacking)
    assert not report.passed
    assert (report.first_failing, report.first_free) == (None, None)
    line = "FAILED  drawn on cpu in float64: every stage that was given holds; FreeRun.cotangents lacks "
    assert headline(report) == f"{line}normalized_input, object"


@pytest.mark.parametrize("is_fed", [True, False])
def test_the_mistake_of_the_page_is_named(
    ports: Mapping[str, types.ModuleType], is_fed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports["my_whole_port"], "math", types.SimpleNamespace(pi=3.14))

    class Wrong(ports["my_whole_port"].Whole):  # type: ignore[misc, name-defined]
        forced = ports["my_whole_port"].Whole.forced if is_fed else None

    report = judged(Wrong)
    assert report.first_failing == "decoder_phase.activation"
    assert ("teacher-forced" in headline(report)) is is_fed
    clause, _ = next(iter(report.places))
    assert (clause, report.stage_of[next(iter(report.places))]) == (
        FORWARD_FORCED if is_fed else FORWARD_FREE,
        "decoder_phase.activation",
    )
    target = Target(GRADIENT_FREE, "encoder.0.conv1", PLANNED, "cpu", "float64")
    with pytest.raises(pytest.skip.Exception, match=r"gives no FreeRun\.gradients"):
        test_network.test_stage(BENCH, target, Path("parity.json"))


def test_the_mistake_is_noted_at_its_line(ports: Mapping[str, types.ModuleType]) -> None:
    path, line = located(ports["my_whole_port"].Whole, "decoder_phase.activation", SETTINGS)
    assert path.name == "my_whole_port.py"
    assert ".activation" in path.read_text(encoding="utf-8").splitlines()[line - 1]
    path, line = located(TorchSubject, "merged", SETTINGS)
    assert path.read_text(encoding="utf-8").splitlines()[line - 1].startswith("class MergePatches")
    assert located(TorchSubject, "loss", SETTINGS)[0].name == "losses.py"


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (lambda stages: stages.pop("merged"), "merged", "missing"),
        (
            lambda stages: stages.update(object=stages["object"][:, 1:]),
            "object",
            "shape (1, 63, 64, 1), expected (1, 64",
        ),
        (lambda stages: stages.update(views=stages["views"].astype(np.complex64)), "views", "dtype complex64"),
    ],
)
def test_what_cannot_be_compared_is_named(truth: Truth, change: Any, stage: str, reason: str) -> None:
    report = judged(right(truth, change))
    assert report.first_failing == stage
    assert reason in report.of(FORWARD_FREE, stage)[0].reason
    assert f"first failing stage: {stage}; cause: {reason}" in headline(report)


def test_a_misspelled_stage_is_refused_with_the_right_name(truth: Truth) -> None:
    report = judged(right(truth, lambda stages: stages.update({"encoder.0.conv_1": stages.pop("encoder.0.conv1")})))
    assert not report.passed
    assert (
        report.error
        == "stages: found 'encoder.0.conv_1', which this case does not have; did you mean 'encoder.0.conv1'?"
    )


def test_empty_is_missing_and_not_skipped(truth: Truth) -> None:
    class Empty(right(truth)):  # type: ignore[misc]
        def free(self, case: Case) -> FreeRun:
            return dataclasses.replace(super().free(case), gradients={}, losses={})

        def forced(self, case: Case, stages: Any, cotangents: Any) -> ForcedRun:
            return ForcedRun(stages)

    report = judged(Empty)
    assert not {GRADIENT_FREE, LOSS} & set(report.not_given)
    assert all(each.reason == "missing" for each in report.of(GRADIENT_FREE, "encoder.0.conv1"))
    assert all(each.reason == "missing" for each in report.of(LOSS, "loss"))
    assert not report.passed


@pytest.mark.parametrize("where", ["factory", "free", "forced", "type"])
def test_whatever_a_candidate_raises_is_a_verdict(truth: Truth, where: str) -> None:
    class Raising(right(truth)):  # type: ignore[misc]
        def __init__(self, device: str, dtype: str) -> None:
            if where == "factory":
                raise OSError("no such model")

        def free(self, case: Case) -> Any:
            if where == "free":
                raise AssertionError("no such model")
            return super().free(case).stages if where == "type" else super().free(case)

        def forced(self, case: Case, stages: Any, cotangents: Any) -> ForcedRun:
            raise AssertionError("no such model")

    report = judged(Raising)
    assert not report.passed
    assert ("no such model" if where != "type" else "expected a FreeRun") in report.error or where == "type"
    assert headline(report).startswith("FAILED  drawn on cpu in float64 (")
    assert "stage" not in headline(report)
    if where == "free":
        assert re.search(r"\(AssertionError: no such model \(test_candidate\.py:\d+, in free\)\)$", headline(report))
        assert 'raise AssertionError("no such model")' in report.error
        assert "conformance/subjects" not in report.error


def test_a_run_that_ends_in_an_error_blames_what_the_other_run_shows(ports: Mapping[str, types.ModuleType]) -> None:
    class Half(ports["my_whole_port"].Whole):  # type: ignore[misc, name-defined]
        def free(self, case: Case) -> FreeRun:
            raise MemoryError("too large")

    report = judged(Half)
    assert (report.passed, report.first_failing, report.first_free) == (False, None, None)
    assert all(verdict.passed for key, verdict in report.verdicts.items() if key[0] == FORWARD_FORCED)


def test_our_network_comes_through_the_same_door() -> None:
    factory, origin = load_factory(OURS, REPOSITORY)
    assert (factory, origin.name) == (TorchSubject, OURS)
    subject = subject_of("cpu", "float32", factory)
    assert isinstance(subject, CandidateSubject)
    assert subject.is_ours
    assert not CandidateSubject(type("Other", (TorchSubject,), {}), "cpu", "float32").is_ours


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("my_port", "expected MODULE:FACTORY"),
        ("no_such_port:Port", "cannot be imported from"),
        ("broken_port:Port", "SyntaxError"),
        ("empty_port:Port", "has no class or function Port"),
    ],
)
def test_a_candidate_that_is_not_there_is_one_clear_line(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "broken_port.py").write_text("class Port(:\n", encoding="utf-8")
    (tmp_path / "empty_port.py").write_text("", encoding="utf-8")
    with pytest.raises(CandidateError, match=re.escape(complaint)) as caught:
        load_factory(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_report_names_the_candidate(truth: Truth) -> None:
    from conformance.report.run_page import report_page, sentence
    from conformance.spec.loader import check_schema

    report = judged(right(truth))
    assert report.passed, headline(report)
    content = as_json(BENCH, Outcome(0, (), candidate=Origin("my_port:Port", "/src/my_port.py", "0" * 64)))
    check_schema(content, "report.json")
    content |= {"passed": True, "tests": {**content["tests"], "passed": 1, "skipped": 3, "deselected": 5}}
    skipped = {"outcome": "skipped", "stage": "", "case": "", "device": "cpu", "dtype": "float64", "seconds": 0.0}
    content["results"] = [
        {**skipped, "test": "a", "clauses": [LOSS, "merged"], "reason": "the candidate gives no FreeRun.losses"},
        {**skipped, "test": "b", "clauses": [FORWARD_FREE, "encoder.{i}.conv1"], "reason": "", "outcome": "passed"},
    ]
    assert sentence(content).startswith("As far as it was checked, my_port:Port is the TensorFlow network")
    assert sentence(content).endswith("Not offered, and so not judged: FreeRun.losses.")
    page = report_page([content])
    (left_out,) = re.findall(r"clauses of the network were judged by no test\nhere\. They are (.*)\.</p>", page)
    assert {"LOSS", "merged", "patches"} <= set(left_out.split(", "))
    assert not {"FORWARD-FREE", "encoder.{i}.conv1", "FLOAT64", "SCAN-05", "STEP-DATA"} & set(left_out.split(", "))
    assert "<title>Is my_port:Port the TensorFlow network?</title>" in page
    assert "/src/my_port.py" in page


def test_the_trunk_under_onnx_runtime_is_the_network() -> None:
    for module in ("onnxruntime", "onnxscript"):
        pytest.importorskip(module, reason=f"an exported network needs {module}: pip install onnxruntime onnxscript")
    from tests.support.onnx_trunk import OnnxTrunk

    report = judged(OnnxTrunk, "float32")
    assert report.passed, headline(report)
    assert FORWARD_FORCED in report.not_given
