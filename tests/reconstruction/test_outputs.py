"""No command replaces or removes what it reads, and no two of its files have one name."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_tf_bridge.commands.cli import main as bridge
from ptycho_torch.commands.cli import main
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import distinct_stems, refuse_outputs
from ptycho_torch.training.checkpoint_file import KEY


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, what_must_not_be_lost=np.ones(3))
    return file.getvalue()


CONTENT = _npz()

_HEADER = json.dumps({"__metadata__": {KEY: "{}"}}).encode()
CHECKPOINT = struct.pack("<Q", len(_HEADER)) + _HEADER

Link = Callable[[Path, Path], None]
LINKS: dict[str, Link] = {
    "hard link": lambda link, file: os.link(file, link),
    "soft link": lambda link, file: link.symlink_to(file),
    "chain of links": lambda link, file: _chain(link, file),
    "relative link": lambda link, file: link.symlink_to(os.path.relpath(file, link.parent)),
}


def _chain(link: Path, file: Path) -> None:
    middle = link.parent / "middle"
    middle.symlink_to(file)
    link.symlink_to(middle)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("scans/scan.npz", "probes/scan.npz", "run/checkpoints/last.ckpt", "run/settings.yaml", "raw/raw.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        content = {".yaml": b"training: {seed: 1}\n", ".ckpt": CHECKPOINT}.get(Path(name).suffix, CONTENT)
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "object.npz", object=np.ones((4, 4)), objectGuess=np.ones((4, 4)))
    (tmp_path / "history.json").write_text(json.dumps({"train_loss": [2.0, 1.0]}))
    return tmp_path


COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (input, output that is a link to it, arguments)
    "infer, the scan": ("scans/scan.npz", "out/scan.npz", "infer run scans -o out --overwrite"),
    "infer, the scan as a picture": ("scans/scan.npz", "out/scan_phase.png", "infer run scans -o out --overwrite"),
    "infer, a probe": (
        "probes/scan.npz", "out/scan.h5", "infer run scans --probe-dir probes -o out --overwrite",
    ),
    "infer, the checkpoint": ("run/checkpoints/last.ckpt", "out/scan.npz", "infer run scans -o out --overwrite"),
    "train, the scan as an object": (
        "scans/scan.npz", "new/reconstructions/scan.npz", "train scans -o new --overwrite",
    ),
    "train, the checkpoint to start from": (
        "run/checkpoints/last.ckpt", "new/checkpoints/last.ckpt",
        "train scans -o new --overwrite --start-from run/checkpoints/last.ckpt",
    ),
    "train, its settings": (
        "run/settings.yaml", "new/history.json", "train scans -o new --overwrite --config run/settings.yaml",
    ),
    "evaluate, the object": ("object.npz", "n.json", "evaluate object.npz --truth object.npz --json n.json"),
    "evaluate, the picture": ("object.npz", "plot.png", "evaluate object.npz --truth object.npz --plot plot.png"),
    "plot": ("history.json", "pictures/history.png", "plot history.json -o pictures"),
    "plot beside the file": ("object.npz", "object.png", "plot object.npz"),
    "check-data": ("scans/scan.npz", "pictures/scan.png", "check-data scans --plot pictures"),
    "convert-scan": ("raw/raw.h5", "scan.npz", "convert-scan raw/raw.h5 -o scan.npz --overwrite"),
    "simulate, the probe": ("probes/scan.npz", "new.npz", "simulate -o new.npz --overwrite --probe probes/scan.npz"),
    "simulate, the picture": ("object.npz", "n.png", "simulate -o n.npz --plot n.png --overwrite --probe object.npz"),
    "export": ("run/checkpoints/last.ckpt", "new.zip", "bridge export run -o new.zip --overwrite"),
    "configuration": (
        "run/settings.yaml", "new.yaml", "bridge config run/settings.yaml --to tf-yaml -o new.yaml --overwrite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_input_is_never_an_output(name: str, link: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, text = COMMANDS[name]
    (place / target).parent.mkdir(parents=True, exist_ok=True)
    before = (place / source).read_bytes()
    LINKS[link](place / target, place / source)
    program, arguments = main, text.split()
    if arguments[0] == "bridge":
        program, arguments = bridge, arguments[1:]
    assert program(arguments) == 1
    said = capsys.readouterr().err
    assert Path(target).name in said
    assert "is an input of this command" in said
    assert (place / source).read_bytes() == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_scans_are_not_replaced_by_their_objects(
    place: Path, overwrite: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", "run", "scans", "-o", "scans", *overwrite]) == 1
    assert "scans/scan.npz is an input of this command and stays as it is" in capsys.readouterr().err
    assert (place / "scans" / "scan.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_run_does_not_clear_the_scans_it_trains_on(
    place: Path, overwrite: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scan = place / "run" / "reconstructions" / "scan.npz"
    scan.parent.mkdir()
    scan.write_bytes(CONTENT)
    assert main(["train", "run/reconstructions", "-o", "run", *overwrite]) == 1
    assert "is an input of this command" in capsys.readouterr().err
    assert scan.read_bytes() == CONTENT


def test_files_of_one_name_are_drawn_apart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        (place / f"run{number}").mkdir()
        (place / f"run{number}" / "history.json").write_text(json.dumps({"train_loss": [3.0 / number, 1.0 / number]}))
    assert main(["plot", "run1/history.json", "run2/history.json", "-o", "pictures"]) == 0
    drawn = {path.name: path.read_bytes() for path in (place / "pictures").iterdir()}
    assert sorted(drawn) == ["run1_history.png", "run2_history.png"]
    assert len(set(drawn.values())) == 2
    assert capsys.readouterr().out.split() == ["pictures/run1_history.png", "pictures/run2_history.png"]


def test_one_file_given_twice_is_drawn_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "history.json", "history.json", "-o", "pictures"]) == 0
    assert capsys.readouterr().out.split() == ["pictures/history.png"]


def test_two_outputs_of_one_name_are_refused_before_any_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "object.json").write_text(json.dumps({"train_loss": [2.0, 1.0]}))
    assert main(["plot", "object.npz", "object.json", "-o", "pictures"]) == 1
    assert "two outputs of this command would have this name" in capsys.readouterr().err
    assert not (place / "pictures").exists()


def test_the_same_name_by_another_path_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would have this name"):
        refuse_outputs([tmp_path / "a.png", tmp_path / "folder" / ".." / "a.png"], [], overwrite=True)


def test_stems_take_as_many_folders_as_they_need() -> None:
    paths = [Path("/a/x/1/s.npz"), Path("/a/y/1/s.npz"), Path("/a/y/2/s.npz"), Path("/b/t.npz")]
    assert list(distinct_stems(paths).values()) == ["x_1_s", "y_1_s", "2_s", "t"]
    assert distinct_stems([]) == {}
