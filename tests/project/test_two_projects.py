"""Both projects install a package ptycho_torch: the commands name the other one, and paths do without it."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OURS = {
    "ptycho_torch/__init__.py": (ROOT / "ptycho_torch" / "__init__.py").read_text(encoding="utf-8"),
    "ptycho_torch/commands/cli.py": "def main():\n    print('ours ran')\n    return 0\n",
    "ptycho_tf_bridge/__init__.py": "",
    "ptycho_tf_bridge/start.py": (ROOT / "ptycho_tf_bridge" / "start.py").read_text(encoding="utf-8"),
    "ptycho_tf_bridge/commands/cli.py": "def main():\n    print('ours ran')\n    return 0\n",
}
THEIRS = {
    "ptycho_torch/__init__.py": "raise RuntimeError('the other package was imported')\n",
    "ptycho_torch/cli/__init__.py": "",
    "ptycho_torch/model.py": "",
    "ptycho/__init__.py": "",
}


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """Install a small wheel as pip does: unpack it over what is there."""
    wheel = site / f"{name}-1.2-py3-none-any.whl"
    info = f"{name}-1.2.dist-info"
    content = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n"}
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        for path, text in content.items()
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,", ""])}.items():
            archive.writestr(path, text)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()


def started(site: Path, function: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its script does."""
    script = f"import sys; from ptycho_tf_bridge.start import {function}; sys.exit({function}())"
    command = [sys.executable, "-S", "-c", script]
    variables = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=site.parent, env=variables, capture_output=True, text=True, check=False)


COMMANDS = {"run_torch": "ptycho-torch", "run_bridge": "ptycho-bridge"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("function", COMMANDS)
def test_a_command_runs_where_the_package_is_ours(site: Path, function: str) -> None:
    install(site, "ptycho_torch", OURS)
    found = started(site, function)
    assert (found.returncode, found.stdout, found.stderr) == (0, "ours ran\n", "")


@pytest.mark.parametrize("function", COMMANDS)
@pytest.mark.parametrize("order", ["theirs last", "ours last"])
def test_a_command_says_in_one_line_who_owns_the_other_files(site: Path, order: str, function: str) -> None:
    both = [("ptycho_torch", OURS), ("ptychopinn", THEIRS)]
    for name, files in both if order == "theirs last" else reversed(both):
        install(site, name, files)
    found = started(site, function)
    assert found.returncode == 1
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith(
        f"{COMMANDS[function]}: error: the package ptycho_torch in {site / 'ptycho_torch'} has files"
    )
    assert "has files of ptychopinn 1.2," in line
    assert "pip uninstall -y ptychopinn, then pip install --force-reinstall --no-deps ptycho-torch" in line
    assert "--parity-reference live:/PATH/OF/CHECKOUT" in line


@pytest.mark.parametrize("order", ["theirs last", "ours last"])
def test_a_module_beside_ours_names_its_owner_too(site: Path, order: str) -> None:
    theirs = {"ptycho_torch/model.py": "", "ptycho_torch/generators/fno.py": ""}
    both = [("ptycho_torch", OURS), ("ptychopinn", theirs)]
    for name, files in both if order == "theirs last" else reversed(both):
        install(site, name, files)
    found = started(site, "run_torch")
    assert (found.returncode, found.stdout) == (1, "")
    (line,) = found.stderr.splitlines()
    assert "has files of ptychopinn 1.2," in line


def test_a_module_of_the_user_stands_in_nobodys_place(site: Path) -> None:
    install(site, "ptycho_torch", OURS)
    (site / "ptycho_torch" / "mine.py").write_text("", encoding="utf-8")
    assert started(site, "run_torch").returncode == 0


def foreign_files(site: Path) -> str:
    """Return what the interface for ptychodus says of its installation."""
    script = "from ptycho_torch.api.installation import foreign_files; print(foreign_files())"
    command = [sys.executable, "-S", "-c", script]
    variables = {"PYTHONPATH": str(site)}
    found = subprocess.run(command, cwd=site.parent, env=variables, capture_output=True, text=True, check=True)
    return found.stdout.rstrip("\n")


def test_the_interface_for_ptychodus_says_it_in_one_line(site: Path) -> None:
    names = ("ptycho_torch/api/__init__.py", "ptycho_torch/api/installation.py")
    ours = OURS | {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    install(site, "ptychopinn", {"ptycho_torch/generators/fno.py": "", "ptycho_torch/model.py": ""})
    install(site, "ptycho_torch", ours)
    line = foreign_files(site)
    assert line.startswith(
        f"The package ptycho_torch in {(site / 'ptycho_torch').resolve()} has files of ptychopinn 1.2 ("
    )
    assert "(generators/fno.py and 1 more)" in line
    assert "pip uninstall -y ptychopinn, then pip install --force-reinstall --no-deps ptycho-torch" in line
    assert "\n" not in line
    for name in ("generators/fno.py", "model.py"):
        (site / "ptycho_torch" / name).unlink()
    (site / "ptycho_torch" / "mine.py").write_text("", encoding="utf-8")
    assert foreign_files(site) == ""
    (site / "ptycho_torch-1.2.dist-info" / "RECORD").unlink()
    assert foreign_files(site) == ""


def test_the_remedy_works(site: Path) -> None:
    install(site, "ptycho_torch", OURS)
    install(site, "ptychopinn", THEIRS)
    for path in THEIRS:
        (site / path).unlink()
    (site / "ptycho_torch" / "cli").rmdir()
    for each in (site / "ptychopinn-1.2.dist-info").iterdir():
        each.unlink()
    (site / "ptychopinn-1.2.dist-info").rmdir()
    install(site, "ptycho_torch", OURS)
    assert started(site, "run_torch").returncode == 0


def test_a_folder_that_no_distribution_owns_is_named(site: Path, tmp_path: Path) -> None:
    install(site, "ptycho_torch", OURS)
    for path, text in THEIRS.items():
        (tmp_path / "checkout" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / path).write_text(text, encoding="utf-8")
    script = "import sys; from ptycho_tf_bridge.start import run_torch; sys.exit(run_torch())"
    variables = {"PYTHONPATH": f"{tmp_path / 'checkout'}{os.pathsep}{site}", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-S", "-c", script]
    found = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    (line,) = found.stderr.splitlines()
    assert f"in {tmp_path / 'checkout' / 'ptycho_torch'} has files of another project" in line
    assert f"take {tmp_path / 'checkout'} off PYTHONPATH" in line


def test_the_suite_says_it_too(site: Path) -> None:
    for path in ("conformance", "ptycho_tf_bridge", "specs"):
        (site / path).symlink_to(ROOT / path)
    (site / "ptycho_torch").mkdir()
    for path in (ROOT / "ptycho_torch").iterdir():
        (site / "ptycho_torch" / path.name).symlink_to(path)
    (site / "ptycho_torch" / "cli").mkdir()
    (site / "ptycho_torch" / "cli" / "__init__.py").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conformance.plugin", str(site / "conformance"), "--co"]
    variables = {**os.environ, "PYTHONPATH": str(site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    found = subprocess.run(command, cwd=site, env=variables, capture_output=True, text=True, check=False)
    assert found.returncode == 4, found.stdout + found.stderr
    assert "has files of another project" in found.stderr


@pytest.mark.parametrize("program", ["run_torch", "run_bridge"])
def test_help_imports_no_framework(program: str) -> None:
    script = (
        "import sys\nsys.argv = ['x', '--help']\n"
        f"from ptycho_tf_bridge.start import {program}\n"
        f"try:\n    {program}()\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'numpy', 'tensorflow', 'keras') if n in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
