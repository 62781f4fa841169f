"""The memory map: what lies on the disk, when it is used again, and what is left when a build goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensordict import NonTensorData, TensorDict

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.data import memory_map
from ptycho_torch.data.memory_map import Inputs, MemoryMap, fingerprint, open_map
from ptycho_torch.data.scan import PatternStack
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import DataContractError, MapError
from ptycho_torch.files.folders import scan_paths
from tests.support.scan_files import Arrays, assert_tables_equal, draw_scan, expected_map, tables_of, write_scan

SETTINGS = DataSettings(N=16, n_subsample=2)
TRIALS_S = 900


def build(place: Path, settings: DataSettings = SETTINGS, **options: Any) -> MemoryMap:
    """Open the map of the scans in ``place/scans``."""
    inputs = Inputs(scan_paths(place / "scans"), options.pop("probes", None), options.pop("probe", None))
    return open_map(place / "map", inputs, settings, **options)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one scan."""
    write_scan(tmp_path / "scans" / "a.npz")
    return tmp_path


def scans_of(place: Path) -> dict[str, Arrays]:
    scans = {}
    for path in scan_paths(place / "scans"):
        with np.load(path) as file:
            scans[path.name] = {name: file[name] for name in file.files}
    return scans


def assert_right(found: MemoryMap, place: Path, settings: DataSettings = SETTINGS) -> None:
    assert_tables_equal(tables_of(found), expected_map(scans_of(place), settings))


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of change and length of every file but the lock."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "map.lock")
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size)
        for path in files
    }


def patterns_of(place: Path) -> dict[str, tuple[int, int, int]]:
    return {name: found for name, found in state(place / "map").items() if name.startswith("patterns-")}


def part_folder(root: Path, part: str) -> Path:
    (folder,) = root.glob(f"{part}-*")
    return folder


# -------------------------------------------------------------------------------------------------------- layout


READ_ALONE = """
import json, sys, pathlib
import numpy
from tensordict import TensorDict
root = pathlib.Path(sys.argv[1])
manifest = json.loads((root / "manifest.json").read_text())
arrays = {}
for table, folder in {
    "map_patterns": manifest["patterns"]["folder"],
    **{f"map_{name}": manifest["groups"]["folder"] + "/" + name for name in ("scan", "groups", "experiments")},
}.items():
    for name, tensor in TensorDict.load_memmap(root / folder).items():
        arrays[f"{table}.{name}"] = tensor.numpy()
numpy.savez(sys.argv[2], **arrays)
assert "ptycho_torch" not in sys.modules
"""


def test_another_process_reads_the_tables_of_the_contract_with_tensordict_alone(tmp_path: Path) -> None:
    scans = {"a.npz": draw_scan(M=24, modes=2), "b.npz": draw_scan(M=11, seed=1)}
    scans["b.npz"]["bad_pixels"] = np.zeros((16, 16), bool)
    scans["b.npz"]["bad_pixels"][3, 5] = True
    for name, scan in scans.items():
        write_scan(tmp_path / "scans" / name, scan)
    build(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(tmp_path / "map"), str(tmp_path / "read.npz")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "read.npz") as file:
        arrays = {name: file[name] for name in file.files}
    letters = {"M": 35, "N": 16, "L": 70, "C": 4, "E": 2, "modes": 2}
    found: dict[str, Arrays] = {}
    for table in ("map_patterns", "map_scan", "map_groups", "map_experiments"):
        for field in load_contract().tensors[table]["fields"]:
            array = arrays.pop(f"{table}.{field['name']}")
            assert str(array.dtype) == field["dtype"], field
            assert array.shape == tuple(letters.get(each) or int(each) for each in field["shape"].split()), field
            found.setdefault(table.removeprefix("map_"), {})[field["name"]] = array
    assert not arrays
    assert_tables_equal(found, expected_map(scans, SETTINGS))


def test_each_pattern_is_stored_once(tmp_path: Path) -> None:
    scan = draw_scan(M=320, N=128)
    write_scan(tmp_path / "scans" / "a.npz", scan)
    build(tmp_path, DataSettings(N=128, n_subsample=5))
    stored = sum(path.stat().st_size for path in (tmp_path / "map").rglob("*") if path.is_file())
    assert scan["diff3d"].nbytes < stored < 1.02 * scan["diff3d"].nbytes


@pytest.mark.parametrize("chunk", [1, 7])
def test_patterns_that_come_in_pieces_stay_in_order(place: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    chunks = PatternStack.chunks
    monkeypatch.setattr(PatternStack, "chunks", lambda stack, audit: chunks(stack, audit, chunk * 16 * 16 * 4))
    assert_right(build(place), place)


def test_crop_bin_and_flip_reach_patterns_masks_probe_and_positions(tmp_path: Path) -> None:
    scan = draw_scan(M=20, N=22)
    scan["bad_pixels"] = np.random.default_rng(0).random((22, 22)) < 0.05
    scan["diff3d"][:, scan["bad_pixels"]] = np.nan
    write_scan(tmp_path / "scans" / "a.npz", scan)
    settings = DataSettings(
        N=8, detector_bin=2, detector_crop=True, detector_flip="both", detector_transpose=True, positions_swap_xy=True
    )
    found = build(tmp_path, settings)
    assert_right(found, tmp_path, settings)
    masks = found.experiments["good_pixels"].numpy()
    assert not masks.all()
    assert np.isfinite(found.patterns["amplitude"].numpy()).all()


def test_writing_to_an_open_map_does_not_change_the_map(place: Path) -> None:
    dataset = PtychoDataset(place / "scans", data_dir=place / "map", settings=SETTINGS)
    dataset.positions_px.zero_()
    dataset.nn_indices.zero_()
    for table in (dataset.map.patterns, dataset.map.groups, dataset.map.experiments):
        for tensor in table.values():
            tensor.zero_()
    again = build(place)
    assert again.reason == ""
    assert_right(again, place)


# --------------------------------------------------------------------------------------------- used again or not


def test_a_current_map_is_used_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(place)
    assert first.reason == "there is no map yet"
    before = state(place / "map")
    for name in ("build_patterns", "build_groups", "open_scan"):
        monkeypatch.setattr(memory_map, name, lambda *_: pytest.fail("built again"))
    again = build(place)
    assert again.reason == ""
    assert state(place / "map") == before
    assert_right(again, place)


def test_a_folder_of_one_scan_and_the_scan_itself_are_the_same_map(place: Path) -> None:
    build(place)
    assert open_map(place / "map", Inputs(scan_paths(place / "scans/a.npz")), SETTINGS).reason == ""


def test_a_copied_scan_with_another_date_is_the_same_scan(place: Path) -> None:
    build(place)
    os.utime(place / "scans" / "a.npz", (1, 1))
    assert build(place).reason == ""


def change_scan(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    def change(place: Path) -> dict[str, Any]:
        scan = draw_scan()
        write_scan(place / "scans" / "a.npz", scan | {name: step(scan) for name, step in changes.items()})
        return {}

    return change


def add_scan(place: Path) -> dict[str, Any]:
    write_scan(place / "scans" / "b.npz", seed=3)
    return {}


def rename_scan(place: Path) -> dict[str, Any]:
    (place / "scans" / "a.npz").rename(place / "scans" / "c.npz")
    return {}


def truncate(place: Path) -> dict[str, Any]:
    os.truncate(part_folder(place / "map", "patterns") / "amplitude.memmap", 4096)
    return {}


def lose_a_file(place: Path) -> dict[str, Any]:
    (part_folder(place / "map", "groups") / "scan" / "positions_px.memmap").unlink()
    return {}


def lose_a_folder(place: Path) -> dict[str, Any]:
    shutil.rmtree(part_folder(place / "map", "groups"))
    return {}


def settle(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: {"settings": dataclasses.replace(SETTINGS, **changes)}


ALL, GROUPS = "patterns and groups", "groups"

CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "patterns": (change_scan(diff3d=lambda scan: scan["diff3d"] * 2), "a.npz: diff3d has changed", ALL),
    "bad pixels": (change_scan(bad_pixels=lambda _: np.eye(16, dtype=bool)), "a.npz: bad_pixels is new", ALL),
    "declaration": (change_scan(measurement_domain=lambda _: np.array("amplitude")), "measurement_domain is new", ALL),
    "N": (settle(N=8, detector_crop=True), "N was 16, is 8", ALL),
    "flip": (settle(detector_flip="both"), "detector_flip was none, is both", ALL),
    "new scan": (add_scan, "b.npz is new", ALL),
    "other name": (rename_scan, "a.npz is gone; c.npz is new", ALL),
    "remake": (lambda _: {"remake": True}, "remake_map = True", ALL),
    "truncated": (truncate, "amplitude.memmap is missing or has another length", ALL),
    "positions": (change_scan(xcoords=lambda scan: scan["ycoords"]), "a.npz: xcoords has changed", GROUPS),
    "probe in the scan": (change_scan(probeGuess=lambda s: s["probeGuess"] + 1), "probeGuess has changed", GROUPS),
    "K": (settle(K=7), "K was 6, is 7", GROUPS),
    "seed": (settle(group_seed=9), "group_seed was 0, is 9", GROUPS),
    "sampler": (settle(group_sampler="without_centre"), "group_sampler was with_centre, is without_centre", GROUPS),
    "gridsize": (settle(gridsize=1, n_subsample=1), "gridsize was 2, is 1", GROUPS),
    "flipped positions": (settle(positions_flip_x=True), "positions_flip_x was False, is True", GROUPS),
    "given probe": (lambda _: {"probe": np.ones((16, 16))}, "probe is new", GROUPS),
    "lost file": (lose_a_file, "scan/positions_px.memmap is missing or has another length", GROUPS),
    "lost folder": (lose_a_folder, "is missing or has another length", GROUPS),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_map_that_is_out_of_date_is_built_again_and_says_why(
    place: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, words, what = CHANGES[name]
    build(place)
    options = change(place)
    before = patterns_of(place)
    settings = options.pop("settings", SETTINGS)
    with caplog.at_level(logging.WARNING, logger="ptycho_torch"):
        found = build(place, settings, **options)
    assert words in found.reason
    assert f"building {what} ({found.reason})" in caplog.text
    expected = expected_map(scans_of(place), settings)
    if "probe" in options:
        expected["experiments"]["probe"] = np.ones((1, 1, 16, 16))
    assert_tables_equal(tables_of(found), expected)
    if what == GROUPS:
        assert patterns_of(place) == before
    else:
        assert not patterns_of(place).keys() & before.keys()
    assert build(place, settings, **(options | {"remake": False})).reason == ""


def test_a_scan_that_went_is_noticed(place: Path) -> None:
    add_scan(place)
    assert len(build(place).names) == 2
    (place / "scans" / "b.npz").unlink()
    found = build(place)
    assert found.reason == "b.npz is gone"
    assert found.names == ("a.npz",)
    assert_right(found, place)


def test_another_probe_file_is_noticed(place: Path) -> None:
    for name, factor in (("p.npz", 1), ("q.npz", 2)):
        np.savez(place / name, probe=factor * draw_scan()["probeGuess"])
    build(place, probes=(place / "p.npz",))
    shutil.copy(place / "p.npz", place / "same.npz")
    assert build(place, probes=(place / "same.npz",)).reason == ""
    found = build(place, probes=(place / "q.npz",))
    assert found.reason == "a.npz: probe has changed"
    np.testing.assert_array_equal(found.experiments["probe"][0, 0].numpy(), 2 * draw_scan()["probeGuess"])
    assert "probe" in build(place).reason


def test_many_changes_are_counted(place: Path) -> None:
    build(place)
    change_scan(**{key: lambda scan: 0 * scan["xcoords"] for key in ("xcoords", "xcoords_start", "ycoords_start")})(
        place
    )
    reason = build(place, dataclasses.replace(SETTINGS, K=7, group_seed=3)).reason
    assert "K was 6, is 7; group_seed was 0, is 3" in reason
    assert reason.endswith("; and 1 more changes")


def test_a_first_build_is_no_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ptycho_torch"):
        build(place)
    assert [record.levelname for record in caplog.records if "building" in record.message] == ["INFO"]


def test_the_fingerprint_reads_no_array(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("header", "read", "stream"):
        monkeypatch.setattr(f"ptycho_torch.files.npz.NpzFile.{name}", lambda *_: pytest.fail("read an array"))
    assert fingerprint(Inputs(scan_paths(place / "scans")), SETTINGS)["patterns"]["scans"]["a.npz"].keys() == {"diff3d"}


def test_whoever_has_the_old_map_open_keeps_it(place: Path) -> None:
    old = build(place)
    expected = expected_map(scans_of(place), SETTINGS)
    change_scan(diff3d=lambda scan: scan["diff3d"] * 3)(place)
    build(place)
    assert_tables_equal(tables_of(old), expected)


# ------------------------------------------------------------------------------------------- damaged and hostile


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    """Change a manifest as JSON; what ``change`` returns, if anything, takes its place."""

    def changed(text: str) -> str:
        content = json.loads(text)
        other = change(content)
        return json.dumps(content if other is None else other)

    return changed


def put(*path: str, value: Any) -> Callable[[str], str]:
    def change(content: dict[str, Any]) -> None:
        *outer, last = path
        for name in outer:
            content = content[name]
        content[last] = value

    return edit(change)


HOSTILE: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "half": lambda text: text[: len(text) // 2],
    "no JSON": lambda _: "\0\1\2",
    "deep JSON": lambda _: "[" * 100_000,
    "deep fingerprint": lambda text: text.replace('"format": 1,', '"format": 1, "x": ' + "[" * 9999 + "]" * 9999 + ","),
    "a number": lambda _: "5",
    "a huge number": lambda _: "9" * 9999,
    "null": lambda _: "null",
    "a list": lambda _: "[]",
    "a text": lambda _: '"patterns groups"',
    "nothing": edit(lambda _: {}),
    "parts are numbers": edit(lambda _: {"patterns": 1, "groups": 2}),
    "parts are texts": edit(lambda _: {"patterns": "folder", "groups": "files"}),
    "no folder": edit(lambda content: content["patterns"].pop("folder") and None),
    "folder is a number": put("patterns", "folder", value=3),
    "folder is elsewhere": put("groups", "folder", value="../../precious"),
    "folder is absolute": put("groups", "folder", value="/etc"),
    "folder with a tail": put("patterns", "folder", value="patterns-000000000000/../../precious"),
    "folder of the other part": edit(lambda content: content["patterns"].update(folder=content["groups"]["folder"])),
    "folder is not there": put("patterns", "folder", value="patterns-000000000000"),
    "no files": put("patterns", "files", value={}),
    "files are a list": put("patterns", "files", value=["amplitude.memmap"]),
    "files are null": put("groups", "files", value=None),
    "files elsewhere": put("patterns", "files", value={"../../precious/file": 8}),
    "files are absolute": put("patterns", "files", value={"/etc/passwd": 8}),
    "files with endless names": put("patterns", "files", value={"a" * 5000: 8}),
    "files with no name": put("patterns", "files", value={"\0": 8, "\ud800": 9}),
    "one file more": put("patterns", "files", "../../precious/file", value=5),
    "absurd size": put("patterns", "files", "amplitude.memmap", value=10**30),
    "negative size": put("patterns", "files", "amplitude.memmap", value=-1),
    "size is a text": put("patterns", "files", "amplitude.memmap", value="24576"),
    "no fingerprint": edit(lambda content: content["groups"].pop("fingerprint") and None),
    "fingerprint is a text": put("groups", "fingerprint", value="format"),
    "fingerprint is a list": put("groups", "fingerprint", value=[]),
    "fingerprint of numbers": put("groups", "fingerprint", "scans", value=7),
    "settings are a list": put("groups", "fingerprint", "settings", value=[1, 2]),
    "another format": put("patterns", "fingerprint", "format", value=0),
    "long-winded": put("patterns", "fingerprint", "settings", value={"x" * 10**6: "y" * 10**6}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_manifest_leads_to_a_new_map(place: Path, name: str) -> None:
    precious = place / "precious"
    precious.mkdir()
    (precious / "file").write_text("12345")
    build(place)
    manifest = place / "map" / "manifest.json"
    manifest.write_text(HOSTILE[name](manifest.read_text()))
    found = build(place)
    assert 0 < len(found.reason) < 2000
    assert_right(found, place)
    assert build(place).reason == ""
    assert (precious / "file").read_text() == "12345"
    assert sorted(path.name.split("-")[0] for path in (place / "map").iterdir() if path.name != "map.lock") == [
        "groups", "manifest.json", "patterns",
    ]  # fmt: skip


def test_a_manifest_of_many_megabytes_is_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setattr(memory_map, "_LARGEST_MANIFEST_BYTES", 100)
    assert "manifest.json cannot be used" in build(place).reason


def test_a_manifest_that_is_a_folder_is_an_error_with_words(place: Path) -> None:
    (place / "map" / "manifest.json").mkdir(parents=True)
    with pytest.raises(MapError, match="cannot be written"):
        build(place)


def describe(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change what the patterns' ``meta.json`` says, and tell the manifest its length."""

    def changed(root: Path) -> None:
        folder = part_folder(root, "patterns")
        content = json.loads((folder / "meta.json").read_text())
        change(content)
        (folder / "meta.json").write_text(json.dumps(content))
        tell(root)

    return changed


def tell(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    size = (part_folder(root, "patterns") / "meta.json").stat().st_size
    manifest["patterns"]["files"]["meta.json"] = size
    (root / "manifest.json").write_text(json.dumps(manifest))


def scribble(root: Path) -> None:
    path = part_folder(root, "patterns") / "meta.json"
    path.write_bytes(b"\xff" * path.stat().st_size)


def boast(content: dict[str, Any]) -> None:
    content["amplitude"]["shape"][0] = 10**12
    content["energy"]["shape"][0] = 10**12


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no JSON": scribble,
    "petabytes": describe(boast),
    "more patterns": describe(lambda content: content["amplitude"]["shape"].__setitem__(0, 25)),
    "other axes": describe(lambda content: content["amplitude"].update(shape=[24, 256])),
    "no axes": describe(lambda content: content["amplitude"].update(shape=[])),
    "not square": describe(lambda content: content["amplitude"].update(shape=[24, 8, 32])),
    "negative": describe(lambda content: content["amplitude"].update(shape=[-24, -16, 16])),
    "axes of text": describe(lambda content: content["amplitude"].update(shape="abc")),
    "whole numbers": describe(lambda content: content["amplitude"].update(dtype="torch.int32")),
    "no type": describe(lambda content: content["amplitude"].update(dtype="torch.load")),
    "no such field": describe(lambda content: content.pop("amplitude") and None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_table_leads_to_a_new_map(place: Path, name: str) -> None:
    build(place)
    before = state(place / "map")
    DAMAGES[name](place / "map")
    # The lengths are right, so that nothing but the content tells.
    amplitude = next(file for file in before if file.endswith("amplitude.memmap"))
    assert state(place / "map")[amplitude] == before[amplitude]
    found = build(place)
    assert "is damaged" in found.reason
    assert_right(found, place)
    assert build(place).reason == ""


class Pickled:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_in_a_map_is_unpickled(place: Path, tmp_path: Path) -> None:
    build(place)
    folder, mark, strange = part_folder(place / "map", "patterns"), tmp_path / "mark", tmp_path / "strange"
    TensorDict({"more": NonTensorData(Pickled(mark))}).memmap_(str(strange))
    shutil.copytree(strange / "more", folder / "more")
    more = json.loads((strange / "meta.json").read_text())["more"]
    describe(lambda content: content.update(more=more))(place / "map")
    assert not mark.exists()
    found = build(place)
    assert found.reason == ""
    assert_right(found, place)
    assert not mark.exists()


# ----------------------------------------------------------------------------------------------- builds that fail


def spoil_last(scan: Arrays) -> Arrays:
    scan["diff3d"][-1, 3, 5] = np.nan
    return scan


BAD_INPUTS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "NaN in the last pattern": (spoil_last, "SCAN-04"),
    "counts": (lambda scan: scan | {"diff3d": np.round(scan["diff3d"])}, "SCAN-05"),
    "no positions": (lambda scan: {key: value for key, value in scan.items() if key != "xcoords"}, "SCAN-06"),
    "positions out of sight": (lambda scan: scan | {"xcoords": 1e200 * scan["xcoords"]}, "SCAN-06"),
    "other frames": (
        lambda scan: scan | {"diff3d": scan["diff3d"][:, :8, :8], "probeGuess": np.ones((8, 8))},
        "PREP-01",
    ),
    "no probe": (lambda scan: {key: value for key, value in scan.items() if key != "probeGuess"}, "PROBE-02"),
    "too few": (lambda scan: draw_scan(M=3), "GROUP-01"),
}


@pytest.mark.parametrize("earlier", [False, True], ids=["first build", "rebuild"])
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_leaves_no_half_map(place: Path, name: str, earlier: bool) -> None:
    spoil, clause = BAD_INPUTS[name]
    if earlier:
        build(place)
    write_scan(place / "scans" / "a.npz", spoil(draw_scan(seed=5)))
    before = sorted((place / "map").rglob("*")) if earlier else []
    with pytest.raises(DataContractError) as caught:
        build(place)
    assert caught.value.clause == clause
    if clause in ("SCAN-04", "SCAN-05"):
        # The patterns themselves are found wrong while they are written: the old map has made room for them.
        folders = [path.name for path in (place / "map").iterdir() if path.is_dir()]
        assert not folders
    else:
        # Whatever headers and small arrays can tell is told before anything is touched.
        assert sorted(path for path in (place / "map").rglob("*") if path.name != "map.lock") == [
            path for path in before if path.name != "map.lock"
        ]
    write_scan(place / "scans" / "a.npz", seed=5)
    assert_right(build(place), place)
    assert len([path for path in (place / "map").iterdir() if path.is_dir()]) == 2


def test_patterns_survive_groups_that_cannot_be_made(place: Path) -> None:
    build(place)
    before = patterns_of(place)
    with pytest.raises(DataContractError, match="GROUP-02"):
        build(place, dataclasses.replace(SETTINGS, K=2))
    assert_right(build(place), place)
    assert patterns_of(place) == before


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (np.ones((8, 8)), "a given probe of shape"),
        (np.ones((1, 1, 16, 16)), "a given probe of shape"),
        (np.zeros((16, 16)), "zeros"),
        (np.full((2, 16, 16), np.nan), "NaN, infinity"),
        (np.pad(np.ones((2, 2)), ((0, 14), (0, 14))), "zeros within 4 pixels of the centre"),
        (np.ones((65, 16, 16)), "65 modes"),
    ],
)
def test_a_given_probe_that_fits_no_frame_is_refused(place: Path, probe: np.ndarray, words: str) -> None:
    with pytest.raises(DataContractError, match=words) as caught:
        build(place, probe=probe)
    assert caught.value.clause == "PROBE-02"


def test_dark_groups_are_refused(tmp_path: Path) -> None:
    scan = draw_scan(M=5)
    scan["diff3d"][1:] = 0
    write_scan(tmp_path / "scans" / "a.npz", scan)
    # Two groups from points 1 and 2, each of their nearest neighbour alone.
    scan["xcoords"], scan["ycoords"] = np.array([0.0, 50, 51, 52, 53]), np.zeros(5)
    write_scan(tmp_path / "scans" / "a.npz", scan)
    settings = DataSettings(
        N=16, gridsize=1, group_sampler="reference", n_groups=1, group_seed=1, sequential_sampling=False
    )
    with pytest.raises(DataContractError, match="GROUP-04"):
        build(tmp_path, settings)


@pytest.mark.parametrize("step", ["build_patterns", "build_groups", "_sync", "_describe", "_write"])
def test_a_build_that_is_interrupted_removes_its_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memory_map, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(place)
    assert {path.name for path in (place / "map").iterdir()} <= {"map.lock"}
    assert_right(build(place), place)


def test_a_file_system_that_promises_no_space_is_written_to_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert_right(build(place), place)


def test_a_write_that_takes_a_part_is_continued(place: Path, tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.content = b""

        def write(self, data: memoryview) -> int:
            self.content += bytes(data[:7])
            return min(7, len(data))

    file, array = Slow(), np.arange(30, dtype=np.float32).reshape(5, 6).T
    memory_map._write(file, array)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.frombuffer(file.content, np.float32).reshape(6, 5), array)


def test_a_place_where_no_folder_can_be_is_named(place: Path) -> None:
    (place / "map").write_text("a file")
    with pytest.raises(MapError, match="no folder can be made"):
        build(place)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that takes the right to write to a folder away; root ignores permissions, so it is answered so."""

    def deny(folder: Path) -> None:
        access = os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda path, mode, **rest: (
                not (mode & os.W_OK and folder in (Path(path), *Path(path).parents)) and access(path, mode, **rest)
            ),
        )
        for name in ("mkdir", "unlink", "rename", "replace", "open"):
            monkeypatch.setattr(os, name, guarded(name, getattr(os, name), folder))

    def guarded(name: str, call: Callable[..., Any], folder: Path) -> Callable[..., Any]:
        def guard(path: Any, *rest: Any, **keywords: Any) -> Any:
            writing = name != "open" or (rest and rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            inside = not isinstance(path, int) and folder in Path(path).parents
            if writing and inside:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *rest, **keywords)

        return guard

    return deny


def test_a_current_map_in_a_read_only_folder_is_used(place: Path, read_only: Callable[[Path], None]) -> None:
    build(place)
    (place / "map" / "map.lock").unlink(missing_ok=True)
    read_only(place / "map")
    before = state(place / "map")
    found = build(place)
    assert found.reason == ""
    assert_right(found, place)
    assert state(place / "map") == before
    assert not (place / "map" / "map.lock").exists()


def test_a_map_out_of_date_in_a_read_only_folder_is_an_error_with_the_reason(
    place: Path, read_only: Callable[[Path], None]
) -> None:
    build(place)
    read_only(place / "map")
    before = state(place / "map")
    with pytest.raises(MapError, match="K was 6, is 7, and this folder cannot be written to"):
        build(place, dataclasses.replace(SETTINGS, K=7))
    assert state(place / "map") == before


# ------------------------------------------------------------------------------------- processes that die of it


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in the processes of ``map_trials.py``; root gives them a file system of their own."""
    # From 3.12 on Python warns of forks beside threads; those of the linear algebra library do no harm here.
    quiet = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *quiet, "-m", "tests.support.map_trials", str(tmp_path_factory.mktemp("trials"))]
    apart = ["unshare", "-m"]
    if not os.geteuid() and shutil.which("unshare") and not subprocess.run([*apart, "true"]).returncode:
        command = [*apart, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRIALS_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def succeeded(trials: dict[str, Any], name: str) -> dict[str, Any]:
    trial: dict[str, Any] = trials[name]
    assert "error" not in trial, trial["error"]
    if "skip" in trial:
        pytest.skip(trial["skip"])
    return trial


def test_a_start_after_a_kill_at_any_moment_gives_the_right_map_and_leaves_nothing_behind(
    trials: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    trial = succeeded(trials, "kills")
    record_property("landed", json.dumps(trial["landed"]))
    assert trial["killed"] == 50
    assert [sum(phases.values()) for phases in trial["landed"].values()] == [25, 25]
    # The steps are drawn with a seed, and say something only if they are many, of both parts and of the manifest.
    aimed = trial["landed"]["drawn step"]
    assert len(aimed) >= 8
    for area in ("build_patterns", "build_groups", "rename of the manifest"):
        assert sum(count for phase, count in aimed.items() if phase.startswith(area)) >= 2


def test_of_two_processes_one_builds_and_both_have_the_right_map(trials: dict[str, Any]) -> None:
    answers = succeeded(trials, "race")["answers"]
    assert sorted(answer["reason"] for answer in answers) == ["", "there is no map yet"]
    assert [answer["waited"] for answer in answers if not answer["reason"]] == [True]


def test_a_file_that_may_not_grow_is_an_error_and_no_half_map(trials: dict[str, Any]) -> None:
    message = succeeded(trials, "file_limit")["message"]
    assert "amplitude.memmap" in message
    assert "choose another data_dir" in message
    assert "File too large" in succeeded(trials, "file_limit_without_promises")["message"]


def test_a_full_disk_is_an_error_and_no_half_map_at_each_stage(trials: dict[str, Any]) -> None:
    trial = succeeded(trials, "small_disk")
    assert "amplitude.memmap: 1.95 MiB are needed" in trial["patterns"]
    assert "groups-" in trial["groups"]
    for stage in ("patterns", "groups", "manifest"):
        assert "No space left on device" in trial[stage]
    assert "group_seed was 0, is 4" in trial["read only"]
