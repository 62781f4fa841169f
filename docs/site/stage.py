"""Lay out the documents for the site: ``python docs/site/stage.py FOLDER``, which ``make docs`` calls.

The documents are written for the repository's page, where their links work as they are. The site is built from a copy
of them at the same relative places, with pages that only the site has: the clauses of ``specs/*.yaml``
(``clauses.py``) and the list of public modules. Whatever page is not named in ``NAVIGATION`` is listed under *How to*.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import clauses
from public import PUBLIC

ROOT = Path(__file__).parents[2]
HOW_TO = "How to"
NAVIGATION = {
    "Start": {"docs/installation": "", "docs/tutorial": "", "docs/faq": ""},
    HOW_TO: {
        "docs/how_to/gate": "",
        "docs/migration": "Migrate a TensorFlow model",
        "docs/how_to/gpu_runner": "",
        "docs/workflows/pytorch": "Train and reconstruct",
        "docs/workflows/resuming": "Resume runs",
        "docs/blank_object": "",
        "docs/ptychodus": "Use it from ptychodus",
        "docs/python": "Use the parts from Python",
    },
    "Reference": {
        "reference/api": "",
        "specs/stages": "",
        "specs/data_contracts": "",
        "specs/configuration": "",
        "specs/reference_defects": "",
        "specs/divergences": "",
        "specs/policies": "",
        "specs/README": "Fields of the clauses",
        "docs/file_formats": "",
        "docs/glossary": "",
    },
    "Explanation": {
        "docs/judge": "",
        "docs/conformance": "",
        "docs/equations": "",
        "docs/reference_model": "",
        "docs/architecture": "",
        "docs/defaults": "",
        "docs/real_reference": "",
    },
    "Project": {
        "CHANGELOG": "",
        "docs/DEVELOPER_GUIDE": "",
        "CONTRIBUTING": "",
        "SECURITY": "",
        "docs/README": "All documents",
    },
}
"""Heading → page → its title in the navigation; without one, the heading of the page."""

_DOC_REF = re.compile(r'<doc-ref type="\w+">([^<]*)</doc-ref>')
_CLAUSE_FILE = re.compile(r"(\]\([./\w]*specs/)(\w+)\.yaml\)")
_DATA_CLAUSE = re.compile(r"^### ([A-Z]+-\d\d): ", re.MULTILINE)
# Code, links and headings stay as they are.
_MENTION = re.compile(r"`+[^`]*`+|\[[^]]*\]\([^)]*\)|^(?:#|\().*$|\b[A-Z]+-\d\d\b", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def stage(folder: Path) -> None:
    """Write all that Sphinx reads into a folder, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in _documents()}
    pages = {path: _for_the_site(path, text) for path, text in pages.items()}
    pages |= {Path("specs") / name: text for name, text in clauses.pages(ROOT / "specs").items()}
    known = {label for text in pages.values() for label in re.findall(r"^\(([a-z]+-\d\d)\)=$", text, re.MULTILINE)}
    for path, text in pages.items():
        pages[path] = _outside_fences(_MENTION, lambda found: _linked(found[0], known), text)
    pages[Path("reference/api.md")] = _api()
    pages[Path("index.md")] = pages.pop(Path("README.md")) + _navigation(set(pages))
    for path, text in pages.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs/pictures", folder / "docs/pictures", ignore=shutil.ignore_patterns("*.py"))
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        shutil.copy(path, folder / "specs")


def _documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "specs").glob("*.md")]


def _for_the_site(path: Path, text: str) -> str:
    """Point links at the site's own pages: those of clauses, the front page, and what ``doc-ref`` names."""

    def link(found: re.Match[str]) -> str:
        return f"[{found[1]}]({os.path.relpath(found[1], path.parent)})"

    text = _outside_fences(_DOC_REF, link, text)
    text = _outside_fences(_CLAUSE_FILE, lambda found: f"{found[1]}{clauses.page_of(found[2])})", text)
    text = _DATA_CLAUSE.sub(lambda found: f"({found[1].lower()})=\n{found[0]}", text)
    # Sphinx takes a second heading of the first level for another page.
    if len(re.findall(r"^# ", _FENCE.sub("", text), re.MULTILINE)) > 1:
        first, _, rest = text.partition("\n")
        text = first + "\n" + _outside_fences(re.compile(r"^(#+ )", re.MULTILINE), r"#\1", rest)
    return text


def _linked(text: str, known: set[str]) -> str:
    """Make a link of the id of a clause."""
    return f"[{text}](#{text.lower()})" if text.lower() in known else text


def _outside_fences(pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str], text: str) -> str:
    """Replace what matches, but nothing within a fenced block."""
    parts, start = [], 0
    for fence in [*_FENCE.finditer(text), None]:
        end = len(text) if fence is None else fence.start()
        parts.append(pattern.sub(replacement, text[start:end]))
        parts.append("" if fence is None else fence[0])
        start = end if fence is None else fence.end()
    return "".join(parts)


def _navigation(pages: set[Path]) -> str:
    named = {page for section in NAVIGATION.values() for page in section}
    others = sorted({path.with_suffix("").as_posix() for path in pages} - named)
    trees = []
    for heading, section in NAVIGATION.items():
        entries = [f"{title} </{page}>" if title else f"/{page}" for page, title in section.items()]
        entries += [f"/{page}" for page in others] if heading == HOW_TO else []
        trees.append("\n".join(["", "```{toctree}", ":hidden:", f":caption: {heading}", "", *entries, "```", ""]))
    return "".join(trees)


def _api() -> str:
    """Return the page that lists the public modules; Sphinx AutoAPI writes the page of each."""
    lines = [
        "# Public modules",
        "",
        "What programs may import. Other modules are internal, and may change with any release.",
    ]
    for package, modules in PUBLIC.items():
        entries = [f"/reference/{'/'.join([package, *name.split('.')])}/index" for name in modules]
        lines += ["", f"## {package}", "", "```{toctree}", ":maxdepth: 1", "", *entries, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    stage(Path(sys.argv[1]).resolve())
