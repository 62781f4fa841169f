"""Digests hold for what sources do and specifications demand, however that is worded."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from conformance.provenance import digest
from conformance.recordings.manifest import digests_now

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of packages and specs that the digests are taken of."""
    for package in digest.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "recordings"))
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    monkeypatch.setattr(digest, "_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(digest, "specs_dir", lambda: tmp_path / "specs")
    return tmp_path


def counts(file: str) -> str:
    """Return text that means something at the end of a file."""
    return "\nanother: 1\n" if file.endswith(".yaml") else "\nANOTHER = 1\n"


def append(path: Path, text: str) -> None:
    path.write_text((path.read_text() if path.is_file() else "") + text)


LINE, COMMENT = "\nANOTHER = 1\n", "\n# another line\n"


@pytest.mark.parametrize("file", sorted(f"{package}/__init__.py" for package in digest.PACKAGES))
def test_a_line_of_code_counts_in_every_folder(copy: Path, file: str) -> None:
    folders = sorted({path.parent for path in (copy / file).parent.rglob("*.py")})
    for folder in folders:
        before = digest.numerical_digest()
        append(folder / "quite_new.py", LINE)
        assert (digest.numerical_digest() == before) == (folder.name == digest.SELFTEST), folder


def test_a_folder_in_a_package_is_read(copy: Path) -> None:
    (copy / "conformance" / "room" / "inner").mkdir(parents=True)
    append(copy / "conformance" / "room" / "inner" / "thing.py", "X = 1\n")
    assert "conformance/room/inner/thing.py" in digest.python_sources()


def reworded(text: str) -> str:
    """Return a source with every docstring and every text that stands alone in other words, and a comment."""
    lines = text.splitlines(keepends=True)
    alone = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for node in sorted(alone, key=lambda each: -each.lineno):
        assert node.end_lineno is not None
        before = lines[node.lineno - 1][: node.col_offset]
        after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        lines[node.lineno - 1 : node.end_lineno] = [f'{before}"""Other words."""  # and a comment{after}']
    return "".join(lines)


def test_rewording_every_docstring_makes_nothing_stale(copy: Path) -> None:
    kinds = ("", *digest.MEASURED_BY)
    before = [digest.numerical_digest(kind) for kind in kinds], digests_now()
    changed = 0
    for path in digest.python_sources().values():
        text = path.read_text(encoding="utf-8")
        path.write_text(reworded(text), encoding="utf-8")
        changed += path.read_text(encoding="utf-8") != text
    assert changed > 100
    assert ([digest.numerical_digest(kind) for kind in kinds], digests_now()) == before


def test_layout_and_the_name_of_a_constant() -> None:
    def meaning(text: str) -> bytes:
        return digest._said(text).meaning

    assert meaning("x = (1 +\n     2)\n") == meaning("# why\nx = 1 + 2")
    different = [
        "x = 1 + 2",
        "x = 2 + 1",
        "x = 1 - 2",
        "y = 1 + 2",
        "x = 1.0 + 2",
        "x = '1' + 2",
        "x = None",
        "x = ...",
    ]
    different += [
        "f(a, *b)",
        "f(*a, b)",
        "{**a, 'b': c}",
        "{'b': c, **a}",
        "global a, b",
        "def f(): pass",
        "def f(): 0",
    ]
    assert len({meaning(text) for text in different}) == len(different)


@pytest.mark.parametrize(
    "file",
    [
        "conformance/evidence/faults-cpu.json",
        "specs/README.md",
        "specs/release_policy.yaml",
    ],
)
def test_evidence_and_policy_do_not_count(copy: Path, file: str) -> None:
    before = digest.numerical_digest()
    (copy / file).parent.mkdir(exist_ok=True)
    append(copy / file, COMMENT)
    assert digest.numerical_digest() == before


def test_the_prose_of_a_clause_does_not_count_and_its_numbers_do(copy: Path) -> None:
    path = copy / "specs" / "stages.yaml"
    before, content = digest.spec_digest(), path.read_text()
    words = re.sub(r"(text: >-\n +)", r"\1In other words: ", content)
    assert words != content
    path.write_text(f"# in other words\n{words}")
    assert digest.spec_digest() == before
    measured = copy / "specs" / "measured.yaml"
    measured.write_text(measured.read_text().replace("e_factor: 4.0", "e_factor: 4.1"))
    assert digest.spec_digest() != before


@pytest.mark.parametrize(
    ("kind", "counting", "beside"),
    [
        ("faults", "ptycho_torch/data/grouping.py", "conformance/session/study.py"),
        ("faults", "specs/measured.yaml", "specs/divergences.yaml"),
        ("clean", "ptycho_torch/losses.py", "ptycho_torch/train.py"),
        ("clean", "specs/measured.yaml", "specs/divergences.yaml"),
        ("mutation", "conformance/judge/rules.py", "ptycho_torch/train.py"),
        ("mutation", "specs/stages.yaml", "specs/measured.yaml"),
        ("training", "ptycho_torch/train.py", "conformance/judge/rules.py"),
        ("training", "specs/configuration.yaml", "specs/divergences.yaml"),
        ("capture", "ptycho_torch/model.py", "conformance/session/clean.py"),
    ],
)
def test_evidence_holds_for_what_its_measurement_reaches(copy: Path, kind: str, counting: str, beside: str) -> None:
    before = digest.numerical_digest(kind)
    append(copy / beside, counts(beside))
    assert digest.numerical_digest(kind) == before
    append(copy / counting, counts(counting))
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


def test_every_measurement_begins_in_a_module_that_is_there() -> None:
    begins = {f"{entry.replace('.', '/')}.py" for entries in digest.MEASURED_BY.values() for entry in entries}
    assert begins <= digest.python_sources().keys()


def test_the_specification_has_a_digest_of_its_own(copy: Path) -> None:
    before = digest.spec_digest()
    append(copy / "ptycho_torch" / "helper.py", LINE)
    assert digest.spec_digest() == before
    append(copy / "specs" / "stages.yaml", counts("stages.yaml"))
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
    before = digest.meaning_digest(files)
    files["a.py"].write_text("one\n")
    files["b.py"].write_text("two\nthree\n")
    assert digest.meaning_digest(files) != before


def test_a_file_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert digest.file_digest(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
