"""The README is short, and every block of it runs in the order of the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from conformance.release.policy import read_policy
from ptycho_torch.commands.cli import main
from ptycho_torch.config_params import NetworkSettings
from tests.support.archives.reference_archives import write_reference_archive
from tests.support.document_blocks import REPOSITORY, RUN_AS_PYTHON, RUN_AS_SHELL, blocks, prepare, run_blocks
from tests.support.release_files import whole_report

README = REPOSITORY / "README.md"
TEXT = README.read_text(encoding="utf-8")
LARGEST_PICTURE_BYTES = 150_000


def test_every_block_runs_in_order_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    prepare(tmp_path)
    # What a reader has: scans, an archive of TensorFlow, and the report that `make conformance` would write.
    scan = tmp_path / "scans" / "star.npz"
    scan.parent.mkdir()
    assert main(["simulate", "-o", str(scan), "--patterns", "36"]) == 0
    network = NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=20.5)
    write_reference_archive(tmp_path / "wts.h5.zip", network)
    (tmp_path / "parity-report").mkdir()
    (requirement,) = read_policy("merge").devices
    (tmp_path / "parity-report" / "parity.json").write_text(json.dumps(whole_report(requirement)), encoding="utf-8")

    said = run_blocks(README, tmp_path, activated=False)

    for name in ("run/reconstructions", "objects", "converted-objects"):
        assert (tmp_path / name / "star.npz").is_file(), name
        assert (tmp_path / name / "star.png").is_file(), name
    for name in ("run/history.png", "converted/migration.md", "certificate/certificate.json"):
        assert (tmp_path / name).is_file(), name
    assert "1 of 1 files" in said
    certificate = json.loads((tmp_path / "certificate" / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["passed"], certificate
    made = (tmp_path / "made.txt").read_text(encoding="utf-8")
    for part in ("pytest conformance", "worksteal tests", "cd demo && ", "--parity-variants all --parity-report cuda"):
        assert part in made, part


def test_every_block_is_one_that_runs() -> None:
    assert {language for language, _ in blocks(README)} <= {*RUN_AS_SHELL, *RUN_AS_PYTHON}


def test_the_set_up_comes_first_and_the_main_job_before_all() -> None:
    first, second, *_ = (code for _, code in blocks(README))
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make conformance", "make demo", "make test", "source .venv/bin/activate"]
    assert len(second.splitlines()) <= 3


def test_the_picture_comes_before_any_command_and_is_small() -> None:
    picture = REPOSITORY / "docs" / "pictures" / "demo.png"
    assert TEXT.index("](docs/pictures/demo.png)") < TEXT.index("```")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert all(each.stat().st_size <= LARGEST_PICTURE_BYTES for each in picture.parent.glob("*.png"))


def test_each_user_has_a_section_with_a_link() -> None:
    for heading in ("The gate", "Migrating a trained TensorFlow model", "The GPU runner"):
        section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        assert "](docs/" in section, heading
        assert len(section.splitlines()) <= 20, heading


@pytest.mark.parametrize("command", ["make nowhere", "false | true", "cd nowhere", "ptycho-torch trains scans/"])
def test_a_block_that_fails_is_seen(tmp_path: Path, command: str) -> None:
    prepare(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"```\ntrue\n```\n\nthen\n\n```\n{command}\ntrue\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="exit code"):
        run_blocks(page, tmp_path, activated=True)


def test_blocks_share_one_terminal(tmp_path: Path) -> None:
    prepare(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```\ncd bin\nword=here\n```\n\n```\necho $word; pwd\nmake help\n```\n", encoding="utf-8")
    said = run_blocks(page, tmp_path, activated=False)
    assert said.split() == ["here", str(tmp_path / "bin")]


def test_the_demo_takes_no_folder_that_it_has_not_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("ptycho_torch", "ptycho_tf_bridge", "conformance", "tests"):
        (tmp_path / name).mkdir()  # make clean looks for caches in them
    program = tmp_path / "fake" / "bin" / "ptycho-torch"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho $*\n")
    program.chmod(0o755)
    (tmp_path / "fake" / ".installed-dev").touch()

    def make(*targets: str) -> subprocess.CompletedProcess[str]:
        line = ["make", *targets, "VENV=fake", "EXTRAS=dev"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    mine = tmp_path / "demo" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    refused = make("demo")
    assert refused.returncode != 0
    assert "demo is there, and make demo did not make it: rename or remove it" in refused.stderr
    assert make("clean").returncode == 0
    assert mine.is_file()
    mine.unlink()
    mine.parent.rmdir()
    for _ in range(2):
        done = make("demo")
        assert done.returncode == 0, done.stderr
        assert "train scans/star.npz -o run --overwrite" in done.stdout
    assert make("clean").returncode == 0
    assert not mine.parent.exists()
