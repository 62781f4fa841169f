"""The suite from a wheel, in an empty folder: options, specification and recordings come with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conformance.errors import DocumentError
from conformance.provenance.json_files import as_text
from conformance.release.gate import Decision
from conformance.release.policy import RELEASE, read_policy
from conformance.release.sign_off import sign_off, signed_for_release

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it, which is all that installing a pure wheel does."""
    pytest.importorskip("hatchling", reason='building a wheel needs hatchling: pip install "ptycho-torch[dev]"')
    folder = tmp_path_factory.mktemp("wheel")
    decision = sign_off(Decision("release", "All that was asked for.", (), ()), [], read_policy(RELEASE), [])
    (folder / "decision.json").write_text(as_text(decision), encoding="utf-8")
    variables = {
        "PTYCHO_SIGN_OFF": str(folder / "decision.json"),
        "GITHUB_SERVER_URL": "https://forge.example",
        "GITHUB_REPOSITORY": "owner/name",
    }
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "--pyargs", "conformance", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_all_tests_are_found_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    found = run(installed, tmp_path, "--collect-only")
    assert "test_network.py::test_recording[FLOAT64-n64_g2_base]" in found
    assert not (installed / "conformance" / "selftest").exists()


def test_a_recording_of_the_wheel_is_judged_there(installed: Path, tmp_path: Path) -> None:
    recording = installed / "conformance" / "recordings" / "n64_g1_nopad.npz"
    options = ("--parity-reference", str(recording), "--parity-dtype", "float32", "--parity-device", "cpu")
    assert "passed  n64_g1_nopad on cpu in float32" in run(installed, tmp_path, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_from_the_templates_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "-k", "only_a_relu_head", "--parity-report", "report")
    text = (tmp_path / "report" / "parity.html").read_text(encoding="utf-8")
    assert "<h1>Is the PyTorch network the TensorFlow network?</h1>" in text


def test_the_wheel_lists_what_it_needs(installed: Path) -> None:
    """CycloneDX in ``.dist-info/sboms`` (PEP 770): every requirement, in the version that was tested."""
    (folder,) = installed.glob("*.dist-info")
    bom = json.loads((folder / "sboms" / "ptycho-torch.cdx.json").read_text(encoding="utf-8"))
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "ptycho-torch")
    metadata = (folder / "METADATA").read_text(encoding="utf-8").splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in metadata if line.startswith("Requires-Dist: ")]
    scopes = {each["name"]: each["scope"] for each in bom["components"]}
    assert scopes.keys() == {canonicalize_name(each.name) for each in required}
    for each in required:
        if "extra" not in str(each.marker):
            assert scopes[canonicalize_name(each.name)] == "required"
    assert all("version" in each for each in bom["components"])
    assert bom["dependencies"][0]["dependsOn"] == [each["bom-ref"] for each in bom["components"]]
    assert "Project-URL: Source, https://forge.example/owner/name" in metadata


def test_an_installed_wheel_knows_that_it_was_signed_off(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conformance", "signed"]
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    said = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("signed off for release on ")


@pytest.mark.parametrize(
    ("verdict", "other", "complaint"),
    [
        ("CPU only", {}, "the verdict is 'CPU only'; expected 'release'"),
        ("release", {"numerical_digest": "0" * 64}, "signed off for sources with numerical_digest 000"),
        ("release", {"spec_digest": "0" * 64}, "signed off for sources with spec_digest 000"),
    ],
)
def test_a_decision_about_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, other: dict[str, str], complaint: str
) -> None:
    here = {"numerical_digest": "1" * 64, "spec_digest": "2" * 64}
    for name, value in (here | other).items():
        monkeypatch.setattr(f"conformance.release.sign_off.{name}", lambda value=value: value)
    decision = sign_off(Decision(verdict, "A reason.", (), ()), [], read_policy(RELEASE), [])
    (tmp_path / "decision.json").write_text(as_text(decision), encoding="utf-8")
    for name, value in here.items():
        monkeypatch.setattr(f"conformance.release.sign_off.{name}", lambda value=value: value)
    with pytest.raises(DocumentError, match=complaint):
        signed_for_release(tmp_path / "decision.json")


def test_a_checkout_is_not_signed_off(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="not signed off for release"):
        signed_for_release(tmp_path / "none.json")
