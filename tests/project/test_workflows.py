"""What the workflows name is there: actions, inputs, commands, options and files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents.test_docs import complaints

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTION = ROOT / ".github" / "actions" / "parity" / "action.yml"
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "conformance.md").read_text(), re.DOTALL | re.MULTILINE)
HOST = re.compile(r"https?://|\b[\w-]+\.(?:com|org|io|net|dev)\b")


def read(text: str) -> Any:
    """YAML as the runner reads it: without PyYAML's reading of ``on`` as true."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def steps(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield whatever runs something or uses something."""
    if isinstance(content, list):
        for each in content:
            yield from steps(each)
    elif isinstance(content, dict):
        if {"run", "uses"} & content.keys():
            yield content
        for each in content.values():
            yield from steps(each)


def wrong(content: Any) -> Iterator[str]:
    """Say what is named in vain."""
    for step in steps(content):
        commands = step.get("run", "").replace("python -m pytest", "pytest")
        yield from complaints(f"```\n{commands}\n```")
        uses = step.get("uses", "")
        if uses.startswith("./"):
            target = ROOT / uses.removeprefix("./").removeprefix("ptycho-torch/")
            target = target / "action.yml" if target.is_dir() else target
            if not target.is_file():
                yield f"{uses} is not there"
                continue
            known = read(target.read_text())
            inputs = known.get("inputs") or known["on"]["workflow_call"]["inputs"]
            yield from (f"{uses} has no input {name}" for name in step.get("with", {}) if name not in inputs)
            arguments = step.get("with", {}).get("arguments", "")
            if "${{" not in arguments:
                yield from complaints(f"```\npytest conformance {arguments}\n```")
        elif uses and not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", uses):
            yield f"{uses} has no version"


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.stem)
def test_what_a_workflow_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not list(wrong(read(text)))
    assert not HOST.search(text)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_what_the_document_shows_for_other_repositories_is_there(snippet: str) -> None:
    assert not list(wrong(read(snippet)))
    assert not HOST.search(snippet)


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.stem)
def test_actions_are_pinned_by_digest_and_name_their_version(path: Path) -> None:
    """A tag can be moved to other code; a digest cannot. One digest stands for one version everywhere."""
    used = re.findall(r"uses: (?!\./)(\S+)(.*)", path.read_text(encoding="utf-8"))
    for name, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name), name
        assert re.fullmatch(r"  # v\d+\.\d+\.\d+", comment), name


def test_continuous_integration_runs_what_runs_here_and_every_python_that_is_named() -> None:
    content = read((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert ".ci/run" in [step.get("run") for step in content["jobs"]["all"]["steps"]]
    rows = content["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert [(row["python"], row["versions"]) for row in rows] == [
        *(("3.11", "oldest"), ("3.12", "newest"), ("3.13", "newest"), ("3.14", "newest")),
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for row in rows:
        assert set(row["extras"].split(",")) <= set(project["optional-dependencies"])


def test_there_is_a_gate_for_merges_and_one_for_releases() -> None:
    merge, release = (
        read((ROOT / ".github" / "workflows" / name).read_text()) for name in ("parity.yml", "release-gate.yml")
    )
    assert {"pull_request", "workflow_call"} <= merge["on"].keys()
    assert "pull_request_target" not in merge["on"]
    assert "runner" in release["on"]["workflow_dispatch"]["inputs"]
    assert "${{ inputs.runner }}" in release["jobs"]["cuda"]["runs-on"]
    assert "--parity-device cuda" in str(release["jobs"]["cuda"])
    (decision,) = [step["run"] for step in release["jobs"]["decide"]["steps"] if "gate" in step.get("run", "")]
    assert "--policy release" in decision
    assert merge["permissions"] == {"contents": "read"}


def test_a_release_is_built_after_the_gate_and_carries_its_decision() -> None:
    release = read((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = release["jobs"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert jobs["gate"]["uses"] == "./.github/workflows/release-gate.yml"
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("gate", "build")
    assert {"id-token": "write", "attestations": "write"}.items() <= jobs["build"]["permissions"].items()
    (build,) = [step for step in jobs["build"]["steps"] if "hatchling build" in step.get("run", "")]
    assert build["env"] == {"PTYCHO_SIGN_OFF": "decision/sign-off.json"}
    assert any("conformance signed" in step.get("run", "") for step in jobs["build"]["steps"])
    assert any("attest-build-provenance" in step.get("uses", "") for step in jobs["build"]["steps"])


def test_a_report_is_kept_when_a_test_fails() -> None:
    (kept,) = [step for step in steps(read(ACTION.read_text())) if "upload-artifact" in step.get("uses", "")]
    assert kept["if"] == "always()"


def test_no_text_of_an_event_becomes_a_command() -> None:
    """An expression inside a script would let the text of a branch or an input run."""
    for path in (*WORKFLOWS, ACTION):
        for step in steps(read(path.read_text())):
            assert "${{" not in step.get("run", ""), path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- run: python -m conformance gates a.json", "gates"),
        ("- run: python -m conformance gate a.json --polcy release", "--polcy"),
        ("- run: python -m pytest conformance --parity-tiers full", "--parity-tiers"),
        ("- uses: ./.github/actions/parities", "is not there"),
        ("- uses: ./.github/actions/parity\n  with: {tier: full}", "no input tier"),
        ("- uses: ./.github/actions/parity\n  with: {arguments: --parity-tiers full}", "--parity-tiers"),
        ("- uses: actions/checkout", "has no version"),
    ],
)
def test_a_dead_name_is_seen(text: str, complaint: str) -> None:
    assert any(complaint in each for each in wrong(read(text)))
