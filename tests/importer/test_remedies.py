"""The remedy of an error, typed as it is printed, leads to a file that is accepted, or to the next true message."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.commands.cli import main
from ptycho_torch.files.remedies import kept, pixels
from tests.support.scenes import GEOMETRY, Arrays, draw_scene

SCENE = draw_scene(5, 32)
M, N = 25, 32
MOST_STEPS = 5


def without(*names: str) -> Arrays:
    return {key: array for key, array in SCENE.items() if key not in names}


def changed(name: str, value: object) -> Arrays:
    return SCENE | {name: np.asarray(value)}


def at(name: str, where: object, value: float) -> Arrays:
    array = SCENE[name].copy()
    array[where] = value
    return SCENE | {name: array}


def objects(value: object) -> np.ndarray:
    """Return an array that only unpickling can read."""
    array = np.empty(1, object)
    array[0] = value
    return array


COUNTS = np.square(SCENE["diff3d"]).round()

WHOLE = COUNTS.astype(np.uint32)

REFUSED: dict[str, Arrays] = {
    "two patterns of NaN, and counts": SCENE
    | {"diff3d": np.where(np.isin(np.arange(M), (3, 9))[:, None, None], np.nan, COUNTS).astype(np.float32)},
    "pixels of NaN that come one after another": SCENE
    | {"diff3d": np.where(np.arange(M * N * N).reshape(M, N, N) % 20011 == 77, np.nan, SCENE["diff3d"])},
    "counts as whole numbers": changed("diff3d", COUNTS.astype(np.uint16)),
    "counts as floating-point numbers": changed("diff3d", COUNTS.astype(np.float32)),
    "intensity, and says so": SCENE | {"measurement_domain": np.array("intensity")},
    "a domain that nobody knows": SCENE | {"measurement_domain": np.array("counts/s")},
    "the older order of axes": changed("diff3d", np.moveaxis(SCENE["diff3d"], 0, -1)),
    "a singleton channel": changed("diff3d", SCENE["diff3d"][..., None]),
    "a raster of patterns": changed("diff3d", SCENE["diff3d"].reshape(5, 5, N, N)),
    "frames that are not square": without("probeGuess") | {"diff3d": SCENE["diff3d"][:, 4:]},
    "complex patterns": changed("diff3d", SCENE["diff3d"] * 1j),
    "patterns of 0 and 1": changed("diff3d", SCENE["diff3d"] > 1),
    "patterns that are too faint": changed("diff3d", SCENE["diff3d"] * np.float32(1e-24)),
    "a NaN in one pixel": at("diff3d", (3, 7, 9), np.nan),
    "a column of negative numbers": at("diff3d", (slice(None), slice(None), 5), -1),
    "a pattern of NaN": at("diff3d", 4, np.nan),
    "the first pattern infinite": at("diff3d", 0, np.inf),
    "patterns under another name": without("diff3d") | {"frames": SCENE["diff3d"]},
    "everything under another name": {
        "data": SCENE["diff3d"], "pos_x": SCENE["xcoords"], "pos_y": SCENE["ycoords"], "P": SCENE["probeGuess"],
    },
    "two stacks of patterns": SCENE | {"diffraction": SCENE["diff3d"] * 2},
    "more patterns than positions": SCENE | {key: SCENE[key][:-3] for key in ("xcoords", "ycoords")},
    "fewer patterns than positions": changed("diff3d", SCENE["diff3d"][:-2]),
    "counts, and more of them than positions": SCENE
    | {key: SCENE[key][:-3] for key in ("xcoords", "ycoords")} | {"diffraction": WHOLE, "diff3d": WHOLE},
    "positions that are no numbers": at("ycoords", [2, 9], np.nan),
    "positions as a column": changed("xcoords", SCENE["xcoords"][:, None]),
    "complex positions": changed("ycoords", SCENE["ycoords"] + 0j),
    "positions as pairs": without("xcoords", "ycoords")
    | {"points": np.stack([SCENE["xcoords"], SCENE["ycoords"]], axis=1)},
    "positions called x and y": without("xcoords", "ycoords") | {"x": SCENE["xcoords"], "y": SCENE["ycoords"]},
    "one nominal position alone": SCENE | {"xcoords_start": SCENE["xcoords"]},
    "nominal positions that are no numbers": SCENE
    | {"xcoords_start": SCENE["xcoords"] * np.nan, "ycoords_start": SCENE["ycoords"]},
    "a probe of other frames": changed("probeGuess", np.ones((N + 2, N + 2), np.complex64)),
    "a probe of zeros": changed("probeGuess", np.zeros((N, N), np.complex64)),
    "a probe that is not finite": changed("probeGuess", np.full((N, N), np.nan, np.complex64)),
    "an object of three axes": SCENE | {"objectGuess": np.ones((2, 9, 9), np.complex64)},
    "an index of another length": SCENE | {"scan_index": np.zeros(M + 1, np.int64)},
    "an index of fractions": SCENE | {"scan_index": np.zeros(M)},
    "a mask of other frames": SCENE | {"bad_pixels": np.zeros((N, N + 1), np.uint8)},
    "a mask of other numbers": SCENE | {"bad_pixels": np.full((N, N), 7, np.uint8)},
    "nothing but bad pixels": SCENE | {"bad_pixels": np.ones((N, N), bool)},
    "a wavelength of zero": SCENE | GEOMETRY | {"wavelength_m": np.array(0.0)},
    "a distance of two numbers": SCENE | GEOMETRY | {"detector_distance_m": np.ones(2)},
    "a pickled note": SCENE | {"note": objects({"sample": 3})},
    "a pickled probe": changed("probeGuess", objects(SCENE["probeGuess"])),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(said: str) -> list[list[str]]:
    """Return what stands in backquotes, as a shell reads it."""
    return [shlex.split(each) for each in re.findall(r"`([^`]+)`", said)]


def typed(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command as the shell would; return its exit code and what it said on standard error."""
    capsys.readouterr()
    if words[0] == "python":
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, *words[1:]], capture_output=True, text=True, env=environment, check=False
        )
        return done.returncode, done.stderr
    if words[0] != "ptycho-torch":
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr
    code = main(words[1:])
    said = capsys.readouterr()
    return code, said.err + ("" if words[1] != "check-data" else said.out)


def written(words: list[str]) -> Path:
    """Return the file that a command has written."""
    if "-o" in words:
        return Path(words[words.index("-o") + 1])
    made = re.search(r"np\.savez\('([^']+)'", words[-1])
    return Path(made[1]) if made else Path(words[-1]).with_suffix("")


def follow(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Do what the messages say until a file holds every clause; return all messages."""
    said_so_far: list[str] = []
    for _ in range(MOST_STEPS):
        code, said = typed(["ptycho-torch", "check-data", "--no-hints", str(path)], capsys)
        if code == 0:
            return said_so_far
        assert said not in said_so_far, f"the remedy goes in circles: {said}"
        said_so_far.append(said)
        found = commands(said)
        assert found, f"the message names no command: {said}"
        words = found[0]
        for _ in range(MOST_STEPS):
            code, said = typed(words, capsys)
            if code == 0:
                break
            said_so_far.append(said)
            more = commands(said)
            assert more, f"the message names no command: {said}"
            # Options are added to the command that failed; a command takes its place.
            words = words + more[0] if more[0][0].startswith("--") else more[0]
        assert code == 0, said
        path = written(words)
        assert path.is_file()
    raise AssertionError(f"still refused: {said_so_far}")


@pytest.mark.parametrize("name", REFUSED)
def test_the_remedy_of_a_refused_scan_works_as_printed(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("scan of mine.npz", **REFUSED[name])  # type: ignore[arg-type]
    before = Path("scan of mine.npz").read_bytes()
    assert follow(Path("scan of mine.npz"), capsys)
    assert Path("scan of mine.npz").read_bytes() == before


def test_at_least_twenty_kinds_are_tried() -> None:
    assert len(REFUSED) >= 20


def test_what_was_repaired_is_the_scan(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of the repaired files hold exactly what the right scan holds."""
    exact = (
        "counts as whole numbers", "the older order of axes", "a singleton channel", "a raster of patterns",
        "patterns under another name", "positions as pairs", "positions called x and y", "complex positions",
        "everything under another name",
    )  # fmt: skip
    for name in exact:
        np.savez("scan.npz", **REFUSED[name])  # type: ignore[arg-type]
        follow(Path("scan.npz"), capsys)
        newest = max(
            [*place.glob("repaired/*.npz"), *place.glob("*_repaired*.npz")], key=lambda path: path.stat().st_mtime_ns
        )
        with np.load(newest) as members:
            np.testing.assert_allclose(members["diff3d"], SCENE["diff3d"], rtol=1e-6, err_msg=name)
            np.testing.assert_array_equal(members["xcoords"], SCENE["xcoords"], name)
            np.testing.assert_array_equal(members["ycoords"], SCENE["ycoords"], name)


def test_a_repaired_scan_lacks_exactly_what_was_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gone in (
        ("positions that are no numbers", [2, 9]), ("a pattern of NaN", [4]),
        ("more patterns than positions", [22, 23, 24]), ("fewer patterns than positions", [23, 24]),
    ):  # fmt: skip
        np.savez("scan.npz", **REFUSED[name])  # type: ignore[arg-type]
        follow(Path("scan.npz"), capsys)
        newest = max(place.glob("repaired/*.npz"), key=lambda path: path.stat().st_mtime_ns)
        with np.load(newest) as members:
            for key in ("diff3d", "xcoords", "ycoords"):
                np.testing.assert_array_equal(members[key], np.delete(SCENE[key], gone, axis=0), f"{name}: {key}")


# --------------------------------------------------------------------------------------------------- other files


def write_cxi(path: Path) -> None:
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"] = COUNTS.astype(np.uint32)
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = 1.6, 1e-4, 1e-4
        file["entry_1/instrument_1/source_1/wavelength"] = 1.2e-10
        x, y = SCENE["xcoords"], SCENE["ycoords"]
        file["entry_1/sample_1/geometry_1/translation"] = -np.stack([x, y, 0 * x], axis=1) * 6e-8
        file.create_group("entry_1/data_1")["data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")


@pytest.mark.parametrize("name", ["scan.h5", "scan.cxi", "SCAN.CXI", "scan.npz"])
def test_an_hdf5_scan_is_called_one_and_imported_by_the_remedy(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cxi(place / name)
    said = follow(Path(name), capsys)
    assert "an HDF5 file, where an NPZ file is needed" in said[0]
    assert "convert-scan" in said[0]


def test_a_folder_of_hdf5_scans_is_called_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "raw").mkdir()
    write_cxi(place / "raw" / "a.CXI")
    said = follow(Path("raw"), capsys)
    assert "no .npz file, but a.CXI" in said[0]


def test_a_gzip_file_is_called_one_and_unpacked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("scan.npz", **SCENE)  # type: ignore[arg-type]
    Path("scan.npz.gz").write_bytes(gzip.compress(Path("scan.npz").read_bytes(), 1))
    Path("scan.npz").unlink()
    assert "a gzip file" in follow(Path("scan.npz.gz"), capsys)[0]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_the_remedy_of_a_damaged_file_tests_it(damage: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("scan.npz", **SCENE)  # type: ignore[arg-type]
    content = bytearray(Path("scan.npz").read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 255
    Path("scan.npz").write_bytes(content)
    _, said = typed(["ptycho-torch", "check-data", "--no-hints", "scan.npz"], capsys)
    (test,) = {tuple(words) for words in commands(said)}
    assert list(test) == ["python", "-m", "zipfile", "-t", "scan.npz"]
    done = subprocess.run([sys.executable, *test[1:]], capture_output=True, text=True, check=False)
    assert done.returncode or "corrupted" in done.stdout


@pytest.fixture
def results() -> Callable[[], None]:
    def write() -> None:
        from ptycho_torch.reconstruction.products import Geometry, Reconstruction, write_product, write_reconstruction

        made = Reconstruction(
            object=np.ones((40, 40), np.complex64), coverage=np.ones((40, 40), np.float32), origin_px=(0.0, 0.0),
            positions_px=np.full((2, 2), 20.0), probe=np.ones((8, 8), np.complex64), provenance={},
        )  # fmt: skip
        write_reconstruction(Path("star.npz"), made)
        geometry = Geometry(1e-10, 1.0, 1e-4, 8)
        write_product(Path("star.h5"), made, geometry, positions_px=np.ones((2, 2)), indexes=np.arange(2), name="star")

    return write


@pytest.mark.parametrize("name", ["star.npz", "star.h5"])
def test_our_own_results_are_called_what_they_are(
    name: str, place: Path, results: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    results()
    for command in ("check-data", "train -o new --no-tracking"):
        code, said = typed(["ptycho-torch", *command.split(), name], capsys)
        assert code == 1
        assert "reconstruction" in said
        assert "Give the scan that it was made from" in said
        (draw,) = {tuple(each) for each in commands(said)}
        assert typed(list(draw), capsys)[0] == 0
    assert (place / "star.png").is_file()


def test_endings_in_upper_case_are_files_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "scans").mkdir()
    np.savez("scans/scan.npz", **SCENE)  # type: ignore[arg-type]
    Path("scans/scan.npz").rename("scans/SCAN.NPZ")
    assert main(["check-data", "--no-hints", "scans"]) == 0
    assert "SCAN.NPZ: 25 patterns" in capsys.readouterr().out
    assert main(["convert-scan", "scans/SCAN.NPZ", "-o", "NEW.NPZ"]) == 0
    Path("scans/scan.npz").write_bytes(b"")
    Path("scans/scan.npz").rename("scans/SCAN.npz")
    assert main(["check-data", "scans"]) == 1
    assert "2 files that are both called SCAN" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- settings


FEW = {key: array[:3] if len(array) == 25 else array for key, array in draw_scene(5, 64).items()}
OF_REFERENCE = ["--group-sampler", "reference"]

SETTINGS: dict[str, tuple[Arrays, list[str]]] = {
    "frames for a smaller network": (draw_scene(5, 128), ["--N", "64"]),
    "frames for a larger network": (draw_scene(5, 64), ["--N", "128"]),
    "frames that no binning makes": (draw_scene(5, 128), ["--N", "64", "--detector-bin", "3"]),
    "a window beside the frame": (draw_scene(5, 128), ["--detector-crop", "--detector-centre-row-px", "3"]),
    "fewer points than a group": (FEW, ["--gridsize", "2"]),
    "too few neighbours": (draw_scene(5, 64), ["--gridsize", "2", "--K", "2"]),
    "too few different groups": (draw_scene(5, 64), ["--gridsize", "2", "--K", "3", "--n-subsample", "5"]),
    "more groups than points": (draw_scene(5, 64), [*OF_REFERENCE, "--n-groups", "90"]),
    "too few neighbours for the reference": (draw_scene(5, 64), [*OF_REFERENCE, "--gridsize", "2", "--K", "3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_remedy_of_settings_that_do_not_fit_works_as_printed(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, options = SETTINGS[name]
    np.savez("scan.npz", **arrays)  # type: ignore[arg-type]
    words = ["ptycho-torch", "train", "scan.npz", "-o", "run", "--max-epochs", "1", "--no-tracking", "--no-progress",
             "--device", "cpu", "--no-reconstruct", "--validation-fraction", "0", *options]  # fmt: skip
    for _ in range(MOST_STEPS):
        code, said = typed(words, capsys)
        if code == 0:
            break
        found = commands(said)
        assert found, said
        assert found[0][0].startswith("--")
        words += found[0]
    assert code == 0, said
    assert len(words) > 14 + len(options)


# -------------------------------------------------------------------------------------------------------- spelling


def test_what_is_left_is_spelled_as_ranges() -> None:
    for left_out in ([], [0], [9], [0, 1, 2], [3, 5, 6], [9, 0, 4]):
        parts = [part.split(":") for part in kept(left_out, 10).split(",")]
        numbers = [number for first, end in parts for number in range(int(first), int(end))]
        assert numbers == [number for number in range(10) if number not in left_out]


def test_whole_rows_and_columns_are_spelled_short() -> None:
    row = [(2, column) for column in range(4)]
    column = [(row, 1) for row in range(4)]
    assert pixels(row + column + [(0, 3)], 4) == "2,:;:,1;0,3"
