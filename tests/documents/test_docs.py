"""What the documents name is there: documents, paths, symbols, commands, settings and clauses.

``complaints`` reads a text and says what it names in vain. The last tests show that it sees each kind of dead name.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.cli import CONFORMANCE
from ptycho_tf_bridge.commands.cli import PTYCHO_BRIDGE
from ptycho_torch.api import configs
from ptycho_torch.commands.cli import PTYCHO_TORCH, Program, parser
from ptycho_torch.config_params import DataSettings, ModelSettings, Settings, TrainingSettings
from ptycho_torch.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROGRAMS = {"ptycho_torch": PTYCHO_TORCH, "ptycho_tf_bridge": PTYCHO_BRIDGE, "conformance": CONFORMANCE}
PACKAGES = tuple(PROGRAMS)
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

DOC_REF = re.compile(r"<doc-ref type=\"([^\"]*)\">([^<]*)</doc-ref>")
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
SYMBOL = re.compile(rf"(?<![\w./])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/])")
PATH = re.compile(
    r"(?<![\w/.<])(?:(?:docs|specs|tests|benchmarks|\.ci|ptycho_torch|ptycho_tf_bridge|conformance)/[\w./-]*\w)"
)
CLAUSE = re.compile(r"\b(?:REF|NPZ|SCAN|PROBE|CXI|PREP|GROUP|MAP|BATCH|REC|PRODUCT|CONFIG)-\d\d\b")
OWNERS = {"ModelConfig": ModelSettings, "TrainingConfig": TrainingSettings, "DataConfig": DataSettings}


# ----------------------------------------------------------------------------------------------------------- reading


def complaints(text: str, document: Path = ROOT / "README.md") -> list[str]:
    """Return what a text names in vain; Markdown, whose links begin at the document, or the docstring of a module."""
    blocks = BLOCK.findall(text)
    spans = [code for _, code in SPAN.findall(BLOCK.sub("", text))]
    return [
        *_references(text),
        *_links(text, document),
        *(f"no clause {clause}" for clause in sorted(set(CLAUSE.findall(text)) - _clauses())),
        *_table_of_singletons(text),
        *(line for code in spans for line in _names(code)),
        *(line for code in spans for line in _command(" ".join(code.split()), whole=False)),
        *(line for code in spans for line in _assignment(code)),
        *(line for _, block in blocks for line in _names(block)),
        *(line for language, block in blocks if language == "python" for line in _python(block)),
        *(line for language, block in blocks if language in ("", "sh") for line in _shell(block)),
    ]


def _references(text: str) -> Iterator[str]:
    for kind, path in DOC_REF.findall(text):
        if kind not in ("guide", "contract"):
            yield f"doc-ref of the unknown type {kind!r}"
        if not (ROOT / path).is_file():
            yield f"doc-ref to {path}, which is not there"


def _links(text: str, document: Path) -> Iterator[str]:
    for path, anchor in LINK.findall(BLOCK.sub("", text)):
        target = document.parent / path if path else document
        if not target.exists():
            yield f"link to {path}, which is not there"
        elif anchor and anchor not in _anchors(target.read_text(encoding="utf-8") if path else text):
            yield f"link to {path}#{anchor}, which is no heading there"


def _anchors(text: str) -> set[str]:
    """Return the names by which links reach the headings of a Markdown text."""
    headings = HEADING.findall(BLOCK.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _names(code: str) -> Iterator[str]:
    for path in PATH.findall(code):
        if not (ROOT / path).exists():
            yield f"path {path}, which is not there"
    for dotted in SYMBOL.findall(code):
        try:
            resolve(dotted)
        except (ImportError, AttributeError):
            yield f"symbol {dotted}, which is not there"


def resolve(dotted: str) -> Any:
    """Return what a dotted path names; of a module that is no more than named, its specification."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        with contextlib.suppress(ModuleNotFoundError):
            if specification := importlib.util.find_spec(name):
                if end == len(parts):
                    return specification
                value: Any = importlib.import_module(name)
                for attribute in parts[end:]:
                    fields = getattr(value, "__dataclass_fields__", {})
                    value = fields[attribute] if attribute in fields else getattr(value, attribute)
                return value
    raise ImportError(dotted)


def _clauses() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "specs").glob("*.yaml"))
    return {clause for text in texts for clause in re.findall(r"- id: (\S+)", text)}


def _table_of_singletons(text: str) -> Iterator[str]:
    """Judge rows that begin with a singleton and end with some of its settings."""
    for owner, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", text, flags=re.MULTILINE):
        if owner in OWNERS:
            names = re.findall(r"`(\w+)`", cells.rsplit("|", 1)[-1])
            unknown = set(names) - set(OWNERS[owner].field_names())
            yield from (f"setting {name} of {owner}, which is not there" for name in sorted(unknown))


def _assignment(code: str) -> Iterator[str]:
    """Judge `name = value`, a setting."""
    if found := re.fullmatch(r"(\w+) = (.+)", code):
        try:
            Settings().override({found[1]: ast.literal_eval(found[2])})
        except (ConfigError, ValueError, SyntaxError) as err:
            yield f"setting {code}: {err}"


# ---------------------------------------------------------------------------------------------------------- commands


def _shell(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        yield from _command(line, whole=True)


def _command(line: str, *, whole: bool) -> Iterator[str]:
    """Judge one command line; one that is only named in a sentence may lack its arguments."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return
    words = words[: words.index(">")] if ">" in words else words
    while words and re.fullmatch(r"[A-Z]+=\S*", words[0]):
        words = words[1:]
    match words:
        case ["srun", "ptycho-torch", *rest] | ["ptycho-torch", *rest]:
            yield from _ours(PTYCHO_TORCH, rest, whole)
        case ["ptycho-bridge", *rest]:
            yield from _ours(PTYCHO_BRIDGE, rest, whole)
        case ["python" | "torchrun", *_] if "-m" in words:
            module, *rest = words[words.index("-m") + 1 :]
            if module in PROGRAMS:
                yield from _ours(PROGRAMS[module], rest, whole)
            elif importlib.util.find_spec(module) is None:
                yield f"python -m {module}, which is not there"
        case ["python", script, *_] if not (ROOT / script).is_file():
            yield f"script {script}, which is not there"
        case ["make", *rest]:
            yield from _make(rest)
        case ["pytest", *rest]:
            yield from _pytest(rest)
        case ["pip", "install", *rest]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extra in re.findall(r"\[([\w,-]+)\]", " ".join(rest)):
                unknown = set(extra.split(",")) - set(extras["optional-dependencies"])
                yield from (f"extra {name}, which is not there" for name in sorted(unknown))


def _pytest(words: list[str]) -> Iterator[str]:
    options = (ROOT / "conformance" / "plugin.py").read_text(encoding="utf-8")
    given = (word.partition("=")[0] for word in words if word.startswith("--parity"))
    yield from (f"pytest {option}, which is no option" for option in given if f'"{option}"' not in options)


def _ours(program: Program, words: list[str], whole: bool) -> Iterator[str]:
    if words and (whole or len(words) > 1):
        yield from _parsed(parser(program), words)
    elif words and words[0] not in program.commands:
        yield f"command {program.name} {words[0]}, which is not there"


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as err:
        if err.code:
            yield f"{parser.prog} {shlex.join(words)}: {said.getvalue().strip().splitlines()[-1]}"


def _make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, value = word.partition("=")
        if name == "ARGS":
            yield from _pytest(shlex.split(value))
        if equals and not re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE):
            yield f"make {name}=, which the Makefile does not know"
        elif not equals and not re.search(rf"^{re.escape(name)}:", makefile, flags=re.MULTILINE):
            yield f"make {name}, which is no target"


# ------------------------------------------------------------------------------------------------------------ Python


def _python(block: str) -> Iterator[str]:
    """Judge the imports of an example, the keywords of what it calls, and the settings that it names."""
    try:
        tree = ast.parse(block)
    except SyntaxError as err:
        yield f"Python that does not parse: {err}"
        return
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for alias in node.names:
                try:
                    module = importlib.import_module(str(node.module))
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    known[alias.asname or alias.name] = getattr(module, alias.name)
                except (ImportError, AttributeError):
                    yield f"from {node.module} import {alias.name}, which is not there"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            if not hasattr(known[node.value.id], node.attr):
                yield f"{node.value.id}.{node.attr}, which is not there"
        elif isinstance(node, ast.Call):
            yield from _call(node, known)


def _call(node: ast.Call, known: dict[str, Any]) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "add" and isinstance(function.value, ast.Call):
        owner = ast.unparse(function.value.func)
        name = ast.literal_eval(node.args[0])
        if owner in OWNERS and name not in OWNERS[owner].field_names():
            yield f"{owner}().add({name!r}, …), which is no setting"
    elif isinstance(function, ast.Attribute) and function.attr == "override" and isinstance(node.args[0], ast.Dict):
        names = [ast.literal_eval(key) for key in node.args[0].keys if key is not None]
        yield from (f"setting {name}, which is not there" for name in names if not _is_setting(name))
    target = known.get(function.id) if isinstance(function, ast.Name) else None
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        target = getattr(known.get(function.value.id), function.attr, None)
    if target is None or not callable(target):
        return
    parameters = inspect.signature(target).parameters
    takes_settings = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if getattr(target, "__name__", "") in OWNERS:
        # With settings, the singletons make the values of ptychodus.
        parameters = getattr(configs, target.__name__).rules()
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in parameters and not (takes_settings and _is_setting(keyword.arg)):
            yield f"{ast.unparse(function)}({keyword.arg}=…), which it does not take"


def _is_setting(name: str) -> bool:
    return any(name in owner.field_names() for owner in OWNERS.values())


# ------------------------------------------------------------------------------------------------------------- tests


def _label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=_label)
def test_what_a_document_names_is_there(document: Path) -> None:
    assert complaints(document.read_text(encoding="utf-8"), document) == []


@pytest.mark.parametrize("module", MODULES, ids=_label)
def test_what_the_docstring_of_a_module_names_is_there(module: Path) -> None:
    assert complaints(_docstring(module)) == []


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_example_of_every_command_is_a_command_line(program: Program) -> None:
    examples = [program.example, *(command.example for command in program.commands.values())]
    assert [line for example in examples for line in _shell(example)] == []


def test_every_module_is_in_the_architecture_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)
    # A folder within a package is one row.
    parts = [path.relative_to(ROOT).with_suffix("").parts[:2] for path in MODULES]
    assert sorted(listed) == sorted({".".join(each) for each in parts if each[1] != "__init__"})


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrow(package: str) -> None:
    forbidden = {"ptycho_torch": PACKAGES[1:], "ptycho_tf_bridge": PACKAGES[2:], "conformance": ()}[package]
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in forbidden], path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('see <doc-ref type="guide">docs/nowhere.md</doc-ref>', "doc-ref to docs/nowhere.md"),
        ('see <doc-ref type="novel">docs/architecture.md</doc-ref>', "unknown type 'novel'"),
        ("see [the guide](docs/nowhere.md)", "link to docs/nowhere.md"),
        ("see [the guide](docs/architecture.md#nowhere)", "link to docs/architecture.md#nowhere"),
        ("# Here\n\nsee [there](#there)", "link to #there"),
        ("in `ptycho_torch/nowhere.py`", "path ptycho_torch/nowhere.py"),
        ("see ``specs/nowhere.yaml``", "path specs/nowhere.yaml"),
        ("as `ptycho_torch.train.Nothing` does", "symbol ptycho_torch.train.Nothing"),
        ("as `ptycho_torch.nowhere` does", "symbol ptycho_torch.nowhere"),
        ("as `ptycho_torch.train.PtychoPINN.nothing` does", "symbol ptycho_torch.train.PtychoPINN.nothing"),
        ("clause PREP-99 says", "no clause PREP-99"),
        ("`max_epoch = 3`", "did you mean 'max_epochs'?"),
        ("`max_epochs = 0`", "expected 1 or more"),
        ("| `TrainingConfig` | of training | `gridsize` |", "setting gridsize of TrainingConfig"),
        ("run `ptycho-torch reconstruct`", "command ptycho-torch reconstruct"),
        ("run `ptycho-bridge upgrade`", "command ptycho-bridge upgrade"),
        ("```\npython -m ptycho_tf_bridge convert a.zip --to b\n```", "unrecognized arguments"),
        ("run `make conform`", "make conform, which is no target"),
        ('```\nmake test ARG="-x"\n```', "make ARG="),
        ('```\nmake conformance ARGS="--parity-tiers full"\n```', "--parity-tiers"),
        ("```\nptycho-torch check-data scans/ --plots pictures\n```", "unrecognized arguments"),
        ("```\nptycho-torch simulate\n```", "required"),
        ("```\nsrun ptycho-torch train \\\n    --no-such-flag 3 scans/\n```", "no-such-flag"),
        ("```\ntorchrun -m ptycho_torch trains scans/\n```", "trains"),
        ("```\npython -m conformance measure\n```", "measure"),
        ("```\npython benchmarks/nothing.py\n```", "script benchmarks/nothing.py"),
        ("```\npytest conformance --parity-tiers full\n```", "--parity-tiers"),
        ('```\npip install ".[gpu]"\n```', "extra gpu"),
        ("```python\nfrom ptycho_torch.train import learn\n```", "import learn"),
        ("```python\nfrom ptycho_torch import train\ntrain.mains()\n```", "train.mains"),
        ("```python\nfrom ptycho_torch import train\ntrain.main('a', epochs=3)\n```", "epochs"),
        ("```python\nfrom ptycho_torch import inference\ninference.infer('a', 'b', dir='c')\n```", "dir"),
        ("```python\nModelConfig().add('N', 64)\n```", "'N'"),
        ("```python\nsettings.override({'max_epoch': 3})\n```", "setting max_epoch"),
        ("```python\nfor in range(3)\n```", "does not parse"),
    ],
)
def test_a_dead_name_is_seen(text: str, complaint: str) -> None:
    found = complaints(text)
    assert any(complaint in line for line in found), found


def test_what_is_there_is_no_complaint() -> None:
    assert complaints('`make test ARGS="-k resume"`, `ptycho_torch.config_params.Settings.model`, `N = 128`') == []
