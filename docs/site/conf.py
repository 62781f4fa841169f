"""Settings of Sphinx for the pages that ``stage.py`` lays out."""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from public import PUBLIC

ROOT = Path(__file__).parents[2]
_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _project["name"]
author = "ptycho-torch contributors"
release = version = _project["version"]
extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension", "sphinx_copybutton"]
add_module_names = False
python_use_unqualified_type_names = True
default_role = "literal"
# Blocks without a language are commands.
highlight_language = "bash"

# The anchors of the repository's page.
myst_heading_anchors = 4

autoapi_dirs = [str(ROOT / package) for package in PUBLIC]
autoapi_root = "reference"
autoapi_add_toctree_entry = False
autoapi_options = ["members", "show-inheritance"]
autoapi_member_order = "bysource"
autoapi_python_class_content = "class"
_public = {ROOT / package / f"{name.replace('.', os.sep)}.py" for package, names in PUBLIC.items() for name in names}
autoapi_ignore = [str(path) for package in PUBLIC for path in (ROOT / package).rglob("*.py") if path not in _public]

# Modules that are not public are not read, so their names stay names.
suppress_warnings = ["autoapi.python_import_resolution"]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp"

_EQUATION = re.compile(r"\||\*(?! )|(?<=\S )\*")


def _escape(app: Any, what: str, name: str, object_: Any, options: Any, lines: list[str]) -> None:
    """Keep what docstrings mean: | and * belong to equations, and ``doc-ref`` names a file."""
    for number, line in enumerate(lines):
        code = re.split(r"(``.*?``)", re.sub(r'<doc-ref type="\w+">([^<]*)</doc-ref>', r"``\1``", line))
        if not line.lstrip().startswith(">>>"):
            code[::2] = [_EQUATION.sub(r"\\\g<0>", text) for text in code[::2]]
        lines[number] = "".join(code)


def setup(app: Any) -> None:
    """Join Sphinx's events."""
    app.connect("autodoc-process-docstring", _escape, priority=100)
