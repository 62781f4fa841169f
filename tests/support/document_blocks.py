"""The code blocks of a document, run in the order of the page in one folder, as a reader would.

Commands run as printed. Two things make that quick. What would take minutes is only asked for: ``make`` becomes
``make -n`` in the repository, which fails for a target that is not there. And the programs of ``.venv/bin`` pass the
reader's words on with a few more that make the work small (``SMALLER``): less training, fewer patterns.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

SMALLER = {
    "train": "--max-epochs 1 --no-tracking",
    "simulate": "--patterns 49",
}
"""Command of ptycho-torch → words that are added at its end."""

RUN_AS_SHELL, RUN_AS_PYTHON = ("", "sh"), ("python",)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(document: Path) -> list[tuple[str, str]]:
    """Return (language, code) of every fenced block."""
    return _BLOCK.findall(document.read_text(encoding="utf-8"))


def prepare(folder: Path) -> None:
    """Make what ``make venv`` leaves, ``.venv/bin`` with programs and ``activate``; and a ``make`` that only asks."""
    cases = "".join(f'  {name}) set -- "$@" {words} ;;\n' for name, words in SMALLER.items())
    scripts = {
        ".venv/bin/python": f'exec "{sys.executable}" "$@"',
        ".venv/bin/ptycho-torch": f'case "$1" in\n{cases}esac\nexec "{sys.executable}" -m ptycho_torch "$@"',
        ".venv/bin/ptycho-bridge": f'exec "{sys.executable}" -m ptycho_tf_bridge "$@"',
        "bin/make": f'exec "$REAL_MAKE" --no-print-directory -n -C "{REPOSITORY}" "$@" >> "{folder}/made.txt"',
    }
    for name, text in scripts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    (folder / ".venv/bin/activate").write_text(f'PATH="{folder}/.venv/bin:$PATH"\n', encoding="utf-8")


def run_blocks(document: Path, folder: Path, *, activated: bool, timeout_s: float = 1500) -> str:
    """Run every block that is a command or Python, all in one shell; return what they print.

    Args:
        document: a Markdown file.
        folder: where a reader would be: the root of a checkout, or any other one; ``prepare`` has made it ready.
        activated: whether the environment is active from the beginning.
        timeout_s: of all blocks together.
    """
    lines = ["set -euo pipefail"]
    if activated:
        lines.append("source .venv/bin/activate")
    for number, (language, code) in enumerate(blocks(document)):
        lines.append(f"echo '== block {number}' >&2")
        if language in RUN_AS_SHELL:
            lines.append(code)
        elif language in RUN_AS_PYTHON:
            (folder / f"block_{number}.py").write_text(code, encoding="utf-8")
            lines.append(f"python block_{number}.py")
    (folder / "blocks.sh").write_text("\n".join(lines), encoding="utf-8")
    # A `make` around the tests would hand its own flags to the one in the blocks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {
        "PATH": f"{folder}/bin:{environment['PATH']}",
        "REAL_MAKE": _real_make(),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    # A session of its own, so that whatever still runs in it can be ended.
    with subprocess.Popen(
        ["bash", "blocks.sh"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, warned = process.communicate(timeout=timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"exit code {process.returncode}\n{said[-3000:]}\n{warned[-3000:]}"
    return said


def _real_make() -> str:
    found = subprocess.run(["bash", "-c", "command -v make"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "make"
