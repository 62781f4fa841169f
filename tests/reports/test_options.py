"""Options of the command line and of ini files, the header, and the ten lines that another repository needs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# Imported out here: a run inside of a test must not be the first to load PyTorch.
from conformance import plugin, test_spec
from conformance.suite import OURS
from tests.support.document_blocks import REPOSITORY, blocks

pytest_plugins = ["pytester"]

ONE = ("--pyargs", test_spec.__name__, "--collect-only", "-p", "no:cacheprovider")
PAGE = REPOSITORY / "docs" / "judge_your_port.md"


def test_every_option_is_a_setting_and_the_command_line_comes_first(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nparity_tier = full\nparity_dtype = float64\nparity_seed = 7\nparity_reference = n64_g2_base\n"
    )
    result = pytester.runpytest_inprocess(*ONE, "--parity-dtype", "float32")
    (header,) = [line for line in result.outlines if line.startswith("parity: ")]
    said = dict(part.split(" ", 1) for part in header.removeprefix("parity: ").split(", "))
    assert said.pop("reference").endswith("conformance/recordings/n64_g2_base.npz")
    assert said == {"candidate": OURS, "device": "auto", "dtype": "float32", "tier": "full", "seed": "7"}
    options = {plugin._setting(option) for option in plugin._OPTIONS}
    assert len(options) == 11
    assert "parity_tf_config" in options


def test_a_setting_that_is_no_choice_is_one_clear_line(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nparity_tier = fast\n")
    result = pytester.runpytest_inprocess(*ONE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert "tox.ini: parity_tier = 'fast'; expected one of quick, full, study" in line


def test_paths_of_settings_begin_at_their_file_and_other_suites_see_none(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nparity_report = out\nparity_reference = nowhere.npz\n")
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert "parity" not in result.stdout.str()
    assert not (pytester.path / "out").exists()
    folder = pytester.mkdir("below")
    os.chdir(folder)
    pytester.makeini("[pytest]\nparity_report = out\n")
    result = pytester.runpytest_inprocess(*ONE)
    assert result.ret == 0, result.stdout.str()
    assert (pytester.path / "out" / "parity.json").is_file()


def test_what_cannot_be_judged_of_a_candidate_is_refused(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*ONE, "--parity-candidate=a:B", "--parity-variants=bf16")
    assert any("--parity-variants judge this package and no candidate" in line for line in result.errlines)
    result = pytester.runpytest_inprocess(*ONE, "--parity-candidate=no_such_port:B")
    assert any("the module no_such_port cannot be imported" in line for line in result.errlines)


def test_failures_of_a_candidate_are_short_unless_something_else_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(short_port="class Port: ...")
    ours, short = pytester.parseconfigure(*ONE), pytester.parseconfigure(*ONE, "--parity-candidate=short_port:Port")
    said = pytester.parseconfigure(*ONE, "--parity-candidate=short_port:Port", "--tb=short", "-rf")
    found = [(each.option.tbstyle, each.option.reportchars) for each in (ours, short, said)]
    assert found == [("auto", "fE"), ("no", "E"), ("short", "f")]


@pytest.mark.parametrize("document", ["conformance.md", "judge_your_port.md"])
def test_another_repository_has_the_gate_in_ten_lines(document: str) -> None:
    first = next(code for language, code in blocks(REPOSITORY / "docs" / document) if language == "yaml")
    assert len(first.splitlines()) <= 10
    (job,) = yaml.safe_load(first)["jobs"].values()
    assert [step["run"].split()[0] for step in job["steps"] if "run" in step] == ["pip", "pytest"]


def test_the_steps_of_the_ten_lines_run(tmp_path: Path) -> None:
    """A stranger's repository: the ports, the ini file and the workflow of the page, with a mistake in the port."""
    python = [code for language, code in blocks(PAGE) if language == "python"]
    (ini,) = [code for language, code in blocks(PAGE) if language == "ini"]
    workflow = next(code for language, code in blocks(PAGE) if language == "yaml")
    (command,) = re.findall(r"- run: (pytest .*)", workflow)
    (tmp_path / "my_port.py").write_text(python[0], encoding="utf-8")
    (tmp_path / "my_whole_port.py").write_text(python[2].replace("math.pi", "-math.pi"), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(ini, encoding="utf-8")
    github = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_WORKSPACE": str(tmp_path)}
    environment = {**os.environ, **github, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": "--parity-dtype=float64 -q"}
    words = [sys.executable, "-m", *shlex.split(command)]
    result = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "first failing teacher-forced stage: decoder_phase.activation" in result.stdout
    lines = result.stdout.splitlines()
    assert "FAILED  n64_g2_base" in lines[-2], "the verdict comes last"
    assert "(" in lines[-2].rpartition("cause: ")[2]
    assert not [line for line in lines if "def test_stage" in line or line.startswith("FAILED test_network")]
    assert len(lines) < 100
    (note,) = [line for line in lines if line.startswith("::error ")]
    line = int(re.findall(r"file=my_whole_port.py,line=(\d+)", note)[0])
    assert ".activation" in (tmp_path / "my_whole_port.py").read_text(encoding="utf-8").splitlines()[line - 1]
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### ❌ my\\_whole\\_port:Whole is not the TensorFlow network")
    assert "decoder\\_phase.activation" in summary
    assert "the candidate gives no FreeRun.gradients" in summary
    assert "my_whole_port:Whole" in (tmp_path / "out" / "parity.html").read_text(encoding="utf-8")
