"""Digests hold for what computes and judges, and for nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conformance import digest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of packages and specs that the digests are taken of."""
    for package in digest.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "recordings"))
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    monkeypatch.setattr(digest, "_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(digest, "specs_dir", lambda: tmp_path / "specs")
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text((path.read_text() if path.is_file() else "") + text)


@pytest.mark.parametrize(
    "file",
    [
        "ptycho_torch/helper.py",
        "ptycho_torch/optim.py",
        "ptycho_tf_bridge/weights.py",
        "conformance/oracle_stages.py",
        "conformance/judge.py",
        "conformance/test_float64.py",
        "conformance/quite_new.py",
        "specs/measured.yaml",
        "specs/stages.yaml",
    ],
)
def test_what_computes_or_judges_counts(copy: Path, file: str) -> None:
    before = digest.numerical_digest()
    append(copy / file, "\n# another line\n")
    assert digest.numerical_digest() != before


@pytest.mark.parametrize(
    "file",
    [
        "conformance/evidence/faults-cpu.json",
        "conformance/report.py",
        "conformance/page.py",
        "conformance/plugin.py",
        "ptycho_torch/plots.py",
        "specs/README.md",
        "specs/waivers.yaml",
        "specs/release_policy.yaml",
    ],
)
def test_evidence_reports_and_policy_do_not(copy: Path, file: str) -> None:
    before = digest.numerical_digest()
    (copy / file).parent.mkdir(exist_ok=True)
    append(copy / file, "\n# another line\n")
    assert digest.numerical_digest() == before


@pytest.mark.parametrize(
    ("kind", "counting", "beside"),
    [
        ("faults", "ptycho_torch/grouping.py", "conformance/study.py"),
        ("faults", "specs/measured.yaml", "specs/divergences.yaml"),
        ("clean", "ptycho_torch/losses.py", "ptycho_torch/train.py"),
        ("clean", "specs/measured.yaml", "specs/divergences.yaml"),
        ("mutation", "conformance/judge.py", "ptycho_torch/train.py"),
        ("mutation", "specs/stages.yaml", "specs/measured.yaml"),
        ("training", "ptycho_torch/train.py", "conformance/judge.py"),
        ("training", "specs/configuration.yaml", "specs/stages.yaml"),
        ("updates", "conformance/training.py", "conformance/matrix.py"),
        ("updates", "specs/measured.yaml", "specs/divergences.yaml"),
        ("capture", "ptycho_torch/model.py", "conformance/matrix.py"),
    ],
)
def test_evidence_holds_for_what_its_measurement_reaches(copy: Path, kind: str, counting: str, beside: str) -> None:
    before = digest.numerical_digest(kind)
    append(copy / beside, "\n# another line\n")
    assert digest.numerical_digest(kind) == before
    append(copy / counting, "\n# another line\n")
    assert digest.numerical_digest(kind) != before


def test_evidence_of_any_other_kind_holds_for_everything() -> None:
    assert digest.numerical_digest("parity") == digest.numerical_digest()


@pytest.mark.parametrize(
    "line",
    [
        "import pack.b",
        "from pack.b import x",
        "from pack import b",
        "def f():\n    from pack.b import x",
        "import pack.b as c",
    ],
)
def test_imports_are_followed_wherever_they_stand(tmp_path: Path, line: str) -> None:
    texts = {
        "a": line,
        "b": "import pack.c\nimport pack.speaks",
        "c": "import pack.a",
        "speaks": "import pack.d",
        "d": "",
    }
    sources = {f"pack/{name}.py": tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    del sources["pack/speaks.py"]
    assert set(digest.reached(["pack.a"], sources)) == {"pack/a.py", "pack/b.py", "pack/c.py"}


def test_every_measurement_begins_in_a_numerical_module() -> None:
    begins = {f"{entry.replace('.', '/')}.py" for entries in digest.MEASURED_BY.values() for entry in entries}
    assert begins <= digest.numerical_sources().keys()


def test_the_specification_has_a_digest_of_its_own(copy: Path) -> None:
    before = digest.spec_digest()
    append(copy / "ptycho_torch" / "helper.py", "\n")
    assert digest.spec_digest() == before
    append(copy / "specs" / "stages.yaml", "\n")
    assert digest.spec_digest() != before


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_line_ends_do_not_count(copy: Path, line_end: bytes) -> None:
    before = digest.numerical_digest()
    for path in (copy / "ptycho_torch" / "helper.py", copy / "specs" / "stages.yaml"):
        path.write_bytes(path.read_bytes().replace(b"\n", line_end))
    assert digest.numerical_digest() == before


def test_a_line_that_moves_to_another_file_counts(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a.py", "b.py")}
    files["a.py"].write_text("one\ntwo\n")
    files["b.py"].write_text("three\n")
    before = digest.text_digest(files)
    files["a.py"].write_text("one\n")
    files["b.py"].write_text("two\nthree\n")
    assert digest.text_digest(files) != before


def test_what_is_left_out_is_there() -> None:
    """A module that was renamed or removed leaves no dead name behind."""
    for package, names in digest.NOT_NUMERICAL.items():
        missing = set(names) - {path.stem for path in (ROOT / package).glob("*.py")}
        assert not missing, package


def test_a_file_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert digest.file_digest(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
