"""The documentation site is built without a warning, its links lead somewhere, and all clauses are in it."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def module(name: str) -> ModuleType:
    """Return a module of the site's folder, which is no package."""
    specification = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


def sphinx(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx", reason='the site is built with Sphinx: pip install "ptycho-torch[docs]"')
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("autoapi", reason='the site is built with Sphinx: pip install "ptycho-torch[docs]"')
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, SITE / "stage.py", folder / "source"], check=True)
    built = sphinx("-c", SITE, "-d", folder / "cache", folder / "source", folder / "site")
    assert built.returncode == 0, built.stderr
    return folder / "site"


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            lost = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            if not target.is_file() or lost:
                dead.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 40
    assert dead == []


def test_every_clause_is_there_with_its_equation(site: Path) -> None:
    shown = {path: re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")) for path in (site / "specs").glob("*.html")}
    everything = " ".join(shown.values())
    for path in (ROOT / "specs").glob("*.yaml"):
        for clause in re.findall(r"- id: (\S+)", path.read_text(encoding="utf-8")):
            assert f"{clause}: " in everything, clause
    stages = html.unescape(shown[site / "specs/stages.html"])
    for stage in yaml.safe_load((ROOT / "specs/stages.yaml").read_text(encoding="utf-8"))["stages"]:
        assert stage["equation"].strip().splitlines()[0] in stages, stage["id"]


def test_mentions_of_clauses_are_links(site: Path) -> None:
    assert 'href="../specs/reference_defects.html#ref-02"' in (site / "docs/reference_model.html").read_text("utf-8")


def test_names_in_docstrings_are_no_markup(site: Path) -> None:
    text = (site / "reference/ptycho_torch/losses/index.html").read_text(encoding="utf-8")
    assert "|predicted − measured|" in text
    assert "doc-ref" not in text


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/index.md").write_text("# Here\n\n[there](there.md)\n", encoding="utf-8")
    built = sphinx("-C", "-D", "extensions=myst_parser", tmp_path / "source", tmp_path / "site")
    assert built.returncode != 0
    assert "there.md" in built.stderr


def test_what_the_documents_import_is_public() -> None:
    """A module that a document tells readers to import is in the reference."""
    public = {f"{package}.{name}" for package, names in module("public").PUBLIC.items() for name in names}
    for path in DOCUMENTS:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in module("public").PUBLIC:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    assert node.module in public or public.issuperset(names), f"{path}: {ast.unparse(node)}"


def test_public_modules_are_there() -> None:
    for package, names in module("public").PUBLIC.items():
        for name in names:
            assert (ROOT / package / f"{name.replace('.', '/')}.py").is_file(), f"{package}.{name}"
