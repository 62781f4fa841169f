"""Plain English: what a user reads has none of the phrases that the house glossary replaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = {
    r"behind the (?:network|last|first)\b": "after",
    r"\bbeside Keras\b(?! and beside)": "compared with Keras",
    r"\b(?:is|are) no numbers?\b(?! of| \d)": "is not finite; is not a number",
    r"\bheld against\b": "checked against; compared with",
    r"\bholds for\b": "is valid for",
    r"\bgoes on\b": "continues; resumes",
    r"\bbegun anew\b": "restarted",
    r"\bbroken off\b": "interrupted",
    r"\bfrom strangers\b": "untrusted",
    r"\bwhat strays\b": "which value differs",
    r"\ba wrong[.,;]": "a bug",
    r"\bsubject that lies\b": "broken subject",
    r"(?<!left )(?<!leave )(?<!leaves )(?<!stands )(?<!`make` )\balone[.;](?:\s|$)": "only, before the noun",
}
"""What is not written → what is."""

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "specs").glob("*.*")])
MODULES = sorted(
    path for name in ("ptycho_torch", "ptycho_tf_bridge", "conformance") for path in (ROOT / name).rglob("*.py")
)


def texts_of(path: Path) -> Iterator[str]:
    """Yield what people read of a file: a document whole; of a module, first lines of docstrings, and other texts."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    tree, docstrings = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
            docstrings.add(" ".join(found.split()))
            yield found.split("\n")[0]
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    yield from (each for each in texts if " ".join(each.split()) not in docstrings)


@pytest.mark.parametrize("path", [*DOCUMENTS, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_people_read_is_plain(path: Path) -> None:
    found = [
        f"{match.group(0)!r} → {better}"
        for text in texts_of(path)
        for phrase, better in GLOSSARY.items()
        for match in re.finditer(phrase, text)
    ]
    assert found == []
