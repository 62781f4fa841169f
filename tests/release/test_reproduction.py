"""A red verdict becomes a short program that fails by itself, and ends once the network is repaired."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.cases.draws import GRAPHS
from conformance.cli import main
from conformance.errors import DocumentError
from conformance.provenance.json_files import write_json
from conformance.report import reproduction as module
from conformance.report.reproduction import (
    LARGEST_BYTES,
    LONGEST,
    failing_stages,
    of_report,
    reproduce_command,
    reproduction,
)
from conformance.report.run_page import report_page
from conformance.selftest.network import NETWORK
from conformance.selftest.run import reproduced
from tests.support.release_files import CPU, complete, report, verdict

ALLOWED = {"numpy", "torch", "ptycho_torch"}
SHOWN = ("likelihood twice", "kernels without gradient")


def named(name: str) -> Any:
    return next(fault for fault in NETWORK if fault.name == name)


@pytest.mark.parametrize("name", SHOWN)
def test_a_mistake_becomes_a_program(name: str) -> None:
    """It fails with the mistake and ends without it, or ``reproduced`` raises."""
    script = reproduced(named(name))
    assert len(script.splitlines()) <= LONGEST
    assert len(script.encode()) <= LARGEST_BYTES
    imports = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {each.partition(".")[0] for each in names} == ALLOWED


def test_a_right_network_gives_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIALS", (("float64", 1),))
    with pytest.raises(DocumentError, match="views gives on drawn input what it should"):
        reproduction(GRAPHS["n64_g1"], "views")
    with pytest.raises(DocumentError, match="no stage 'view' in this network; it has loss, normalized_input"):
        reproduction(GRAPHS["n64_g1"], "view")


def red(settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """A report in which the merging failed."""
    found = report(CPU)
    chosen = {"N": 64, "gridsize": 2, "n_filters_scale": 1} if settings is None else settings
    for case in found["cases"]:
        case |= {"passed": False, "first_failing_stage": "merged", "settings": chosen}
        case["verdicts"][0] = verdict(40.0)
    return complete(found | {"passed": False, "headline": "FAILED  merged"})


def test_the_command_of_a_report_writes_a_program_that_fails_alone(tmp_path: Path) -> None:
    path = write_json(tmp_path / "parity.json", red())
    command = reproduce_command(path, "case", "merged")
    assert command in report_page([red()]).replace("parity.json", str(path))
    words = command.replace("repro.py", str(tmp_path / "repro.py")).split()[3:]
    with named("sign of offsets in merging").seeded():
        assert main(words) == 0
    # The mistake, in a process of its own.
    broken = "from ptycho_torch.model import MergePatches as M\nright = M.forward\n"
    broken += "M.forward = lambda self, patches, offsets: right(self, patches, -offsets)\n"
    script = (tmp_path / "repro.py").read_text()
    run = subprocess.run(
        [sys.executable, "-c", broken + script], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 1
    assert "of the RMS; 1e-08 is allowed" in run.stderr


def test_a_report_without_what_is_asked_for_is_refused_by_name() -> None:
    with pytest.raises(DocumentError, match="no case 'other' in the report; it has case"):
        of_report(red(), "other", "merged")
    with pytest.raises(DocumentError, match="nothing failed at 'views' of case; there failed merged"):
        of_report(red(), "case", "views")
    with pytest.raises(DocumentError, match="are none of this network"):
        of_report(red({"N": 64, "__class__": 1}), "case", "merged")
    old = red()
    for case in old["cases"]:
        del case["settings"]
    with pytest.raises(DocumentError, match="has no settings of case: an older suite wrote it"):
        of_report(old, "case", "merged")


def test_a_report_of_another_candidate_offers_and_gives_no_program() -> None:
    other = red() | {"candidate": {"name": "mine:Net", "file": "/src/mine.py", "sha256": ""}}
    with pytest.raises(DocumentError, match="the report judges mine:Net, and a program shows only") as caught:
        of_report(other, "case", "merged")
    assert "\n" not in str(caught.value)
    assert "python -m conformance reproduce" in report_page([red()])
    assert "python -m conformance reproduce" not in report_page([other])


def test_what_is_no_stage_of_the_network_is_not_offered() -> None:
    case = json.loads(json.dumps(red()["cases"][0]))
    case["verdicts"] += [verdict(2.0, stage="train"), verdict(2.0, stage="views")]
    assert failing_stages(case) == ["merged", "views"]
    assert reproduce_command("parity.json", "case", "train") == ""
