"""CXI and other HDF5 files: the physics of the import, and files that are damaged or out to do harm."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.commands import convert_scan
from ptycho_torch.data.scan import examine
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.files import hdf5_files, hdf5_process
from ptycho_torch.importer.beamline import open_beamline
from ptycho_torch.importer.beamline_search import Wanted
from tests.support.scan_files import Arrays

h5py = pytest.importorskip("h5py")

M, H, W = 14, 20, 24
DATA, POSITIONS = "/entry_1/data_1/data", "/entry_1/sample_1/geometry_1/translation"
DETECTOR, SOURCE = "/entry_1/instrument_1/detector_1", "/entry_1/instrument_1/source_1"
WAVELENGTH_M, DISTANCE_M, PIXEL_M = 1.24e-10, 1.9, 75e-6
Datasets = dict[str, Any]


def draw(seed: int = 0) -> Datasets:
    rng = np.random.default_rng(seed)
    return {
        DATA: rng.integers(0, 60000, (M, H, W)).astype(np.uint16),
        POSITIONS: rng.uniform(-5e-6, 5e-6, (M, 3)),
        f"{DETECTOR}/distance": DISTANCE_M,
        f"{DETECTOR}/x_pixel_size": PIXEL_M,
        f"{DETECTOR}/y_pixel_size": PIXEL_M,
        f"{SOURCE}/wavelength": WAVELENGTH_M,
    }


def write(path: Path, datasets: Datasets, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            if isinstance(value, h5py.SoftLink | h5py.ExternalLink):
                file[name] = value
            else:
                file.create_dataset(name, data=value, **(options if name == DATA else {}))
    return path


def run(source: Path, target: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    convert_scan.add_arguments(parser)
    return convert_scan.run(parser.parse_args([str(source), "-o", str(target), *arguments]))


def imported(datasets: Datasets, folder: Path, *arguments: str, **options: Any) -> Arrays:
    """Import, hold the result against every clause, and return its members."""
    write(folder / "scan.cxi", datasets, **options)
    assert run(folder / "scan.cxi", folder / "new.npz", "--overwrite", *arguments) == 0
    assert examine(folder / "new.npz").passed
    with np.load(folder / "new.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def refused(datasets: Datasets, folder: Path, clause: str, *arguments: str) -> str:
    write(folder / "scan.cxi", datasets)
    return refused_file(folder / "scan.cxi", clause, *arguments)


def refused_file(path: Path, clause: str, *arguments: str) -> str:
    there = set(path.parent.iterdir())
    with pytest.raises(DataContractError) as caught:
        run(path, path.parent / "new.npz", *arguments)
    assert set(path.parent.iterdir()) == there
    assert (caught.value.clause, caught.value.path) == (clause, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def drain(path: Path) -> np.ndarray:
    """Read everything, patterns included, in blocks that fit nothing."""
    with open_beamline(path, Wanted()) as scan:
        content = b"".join(block.tobytes() for block in scan.blocks(1013))
    return np.frombuffer(content, scan.dtype).reshape(scan.shape)


# ------------------------------------------------------------------------------------------------- the physics


def expected_positions(translation_m: np.ndarray, window: int, N: int) -> np.ndarray:
    """From the equation: the probe goes where the sample comes from, in pixels of λ·z / (N·p)."""
    pixel = WAVELENGTH_M * DISTANCE_M / (window * PIXEL_M)
    positions = np.stack([-translation_m[:, 0] / pixel, -translation_m[:, 1] / pixel], axis=1)
    return positions - positions.min(axis=0) + N / 2


@pytest.mark.parametrize(("arguments", "window", "N"), [([], 20, 20), (["--bin", "2", "--crop", "8"], 16, 8)])
def test_counts_positions_and_geometry_become_a_scan(tmp_path: Path, arguments: list[str], window: int, N: int) -> None:
    datasets = draw()
    new = imported(datasets, tmp_path, *(arguments or ["--crop", "20"]))
    start_row, start_column = H // 2 - window // 2, W // 2 - window // 2
    counts = datasets[DATA][:, start_row : start_row + window, start_column : start_column + window].astype(float)
    b = window // N
    counts = counts.reshape(M, N, b, N, b).sum(axis=(2, 4))
    np.testing.assert_allclose(new["diff3d"], np.sqrt(counts), rtol=1e-6)
    assert new["diff3d"].dtype == np.float32
    positions = np.stack([new["xcoords"], new["ycoords"]], axis=1)
    np.testing.assert_allclose(positions, expected_positions(datasets[POSITIONS], window, N), rtol=1e-12)
    assert float(new["detector_pixel_m"]) == pytest.approx(PIXEL_M * b, rel=1e-15)
    assert (float(new["wavelength_m"]), float(new["detector_distance_m"])) == (WAVELENGTH_M, DISTANCE_M)
    assert str(new["measurement_domain"]) == "amplitude"
    # The scan knows the pixel that the positions are in.
    scan = examine(tmp_path / "new.npz").scan
    assert scan is not None
    spread = np.ptp(scan.positions_px, axis=0) * scan.object_pixel_m
    np.testing.assert_allclose(spread, np.ptp(datasets[POSITIONS], axis=0)[:2], rtol=1e-12)


def test_flipping_turns_the_sign_and_swapping_the_axes(tmp_path: Path) -> None:
    datasets = draw()
    flipped = imported(datasets, tmp_path, "--crop", "20", "--positions-flip-x", "--positions-swap-xy")
    turned = datasets[POSITIONS][:, [1, 0, 2]] * [-1, 1, 1]
    positions = np.stack([flipped["xcoords"], flipped["ycoords"]], axis=1)
    np.testing.assert_allclose(positions, expected_positions(turned, 20, 20), rtol=1e-12)


def test_an_imported_scan_shows_the_object_where_it_is(shared: Path, tmp_path: Path) -> None:
    """A real scan, written as CXI from its definition, comes back as it was, up to the shift."""
    with np.load(shared / "data" / "siemens_star_n64.npz", allow_pickle=False) as file:
        star = {key: file[key] for key in file.files}
    pixel = WAVELENGTH_M * DISTANCE_M / (64 * PIXEL_M)
    datasets = draw() | {
        DATA: np.rint(star["diff3d"].astype(np.float64) ** 2).astype(np.uint16),
        POSITIONS: -pixel * np.stack([star["xcoords"], star["ycoords"], 0 * star["xcoords"]], axis=1),
        f"{SOURCE}/illumination": star["probeGuess"],
    }
    new = imported(datasets, tmp_path, compression="gzip", shuffle=True, chunks=(50, 32, 64))
    np.testing.assert_array_equal(new["diff3d"], star["diff3d"])
    np.testing.assert_array_equal(new["probeGuess"], star["probeGuess"])
    for name in ("xcoords", "ycoords"):
        np.testing.assert_allclose(new[name] - 32, star[name] - star[name].min(), atol=1e-9)


def test_the_wavelength_follows_from_the_energy_in_joule(tmp_path: Path) -> None:
    datasets = draw()
    del datasets[f"{SOURCE}/wavelength"]
    datasets[f"{SOURCE}/energy"] = np.array([10e3 * 1.602176634e-19])
    new = imported(datasets, tmp_path, "--crop", "20")
    # 10 keV is 1.2398 Å.
    assert float(new["wavelength_m"]) == pytest.approx(1.239841984e-10, rel=1e-9)
    (tmp_path / "new.npz").unlink()
    datasets[f"{SOURCE}/energy"] = 10e3
    assert "electronvolts" in refused(datasets, tmp_path, "CXI-01", "--crop", "20")


@pytest.mark.parametrize(
    ("name", "option", "key", "wrong"),
    [
        (f"{SOURCE}/wavelength", "--wavelength-m", "wavelength_m", "text"),
        (f"{DETECTOR}/distance", "--distance-m", "detector_distance_m", np.nan),
        (f"{DETECTOR}/y_pixel_size", "--pixel-m", "detector_pixel_m", -1.0),
    ],
)
def test_a_missing_number_is_named_with_the_option_that_gives_it(
    tmp_path: Path, name: str, option: str, key: str, wrong: object
) -> None:
    for value in (None, np.zeros(3), wrong):
        datasets = draw()
        del datasets[name]
        if value is not None:
            datasets[name] = value
        message = refused(datasets, tmp_path, "CXI-01", "--crop", "20")
        assert option in message
        assert name in message
    number = 1.7 if option == "--distance-m" else 3e-5
    assert float(imported(datasets, tmp_path, "--crop", "20", option, str(number))[key]) == number


def test_pixels_that_are_not_square_need_a_word(tmp_path: Path) -> None:
    datasets = draw() | {f"{DETECTOR}/y_pixel_size": 80e-6}
    assert "--pixel-m" in refused(datasets, tmp_path, "CXI-01", "--crop", "20")


def test_masked_pixels_are_bad_and_may_hold_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = draw()
    counts = datasets[DATA].astype(np.float32)
    counts[:, 9, 8] = np.nan
    counts[2, 4, 5] = -7
    mask = np.zeros((H, W), np.uint32)
    mask[9, 8], mask[4, 5] = 512, 1
    assert "-7 at row 4, column 5 of pattern 2" in refused(
        datasets | {DATA: counts, f"{DETECTOR}/mask": mask * (mask > 1)}, tmp_path, "SCAN-04", "--crop", "20"
    )
    new = imported(datasets | {DATA: counts, f"{DETECTOR}/mask": mask}, tmp_path, "--crop", "20")
    np.testing.assert_array_equal(new["bad_pixels"], (mask != 0)[:, 2:22])
    assert not new["diff3d"][:, new["bad_pixels"] != 0].any()
    each = np.zeros((M, H, W), bool)
    each[3, 9, 8] = each[7, 4, 5] = True
    new = imported(datasets | {DATA: counts, f"{DETECTOR}/mask": each}, tmp_path, "--crop", "20")
    np.testing.assert_array_equal(new["bad_pixels"], (mask != 0)[:, 2:22])
    assert "bad in all" in capsys.readouterr().err
    (tmp_path / "new.npz").unlink()
    assert "shape (3,)" in refused(datasets | {f"{DETECTOR}/mask": np.zeros(3)}, tmp_path, "CXI-01")


def test_a_probe_comes_along_where_it_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    probe = (rng.standard_normal((2, H, W)) + 1j * rng.standard_normal((2, H, W))).astype(np.complex64)
    new = imported(draw() | {f"{SOURCE}/data_illumination": probe}, tmp_path, "--crop", "16")
    far, new_far = (np.fft.fftshift(np.fft.fft2(p, norm="ortho"), axes=(1, 2)) for p in (probe, new["probeGuess"]))
    np.testing.assert_allclose(new_far, far[:, 2:18, 4:20], atol=1e-5)
    for wrong in (np.abs(probe), probe[:, :5]):
        assert "probeGuess" not in imported(draw() | {f"{SOURCE}/illumination": wrong}, tmp_path, "--crop", "16")
        assert "is left out" in capsys.readouterr().err


STORED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "contiguous": (lambda a: a, {}),
    "gzip": (lambda a: a, {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (3, 7, 5)}),
    "lzf": (lambda a: a, {"compression": "lzf", "chunks": (1, H, W)}),
    "scaleoffset": (lambda a: a.astype(np.int32), {"scaleoffset": 0, "chunks": (M, 4, 4)}),
    "big-endian float": (lambda a: a.astype(">f8"), {}),
    "int8": (lambda a: (a % 100).astype(np.int8), {"maxshape": (None, H, W)}),
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED)
def test_patterns_are_read_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    change, options = STORED[stored]
    datasets = draw()
    datasets[DATA] = change(datasets[DATA])
    write(tmp_path / "scan.cxi", datasets, **options)
    patterns = drain(tmp_path / "scan.cxi")
    np.testing.assert_array_equal(patterns, datasets[DATA])
    assert patterns.dtype == datasets[DATA].dtype.newbyteorder("=")


def test_other_layouts_paths_and_words(tmp_path: Path) -> None:
    datasets = draw()
    counts, translation = datasets.pop(DATA), datasets.pop(POSITIONS)
    datasets["/scan/frames"] = np.ascontiguousarray(counts.transpose(1, 2, 0))
    datasets["/scan/stage"] = translation[:, :2].astype(np.float32)
    assert "--data-path" in refused(datasets, tmp_path, "CXI-01")
    assert "--positions-path" in refused_file(
        tmp_path / "scan.cxi", "CXI-01", "--data-path", "/scan/frames", "--axes", "hwm"
    )
    paths = ["--data-path", "scan/frames", "--positions-path", "/scan/stage", "--crop", "20"]
    assert "--axes" in refused_file(tmp_path / "scan.cxi", "CXI-01", *paths[:2], "--axes", "mhw1")
    refused_file(tmp_path / "scan.cxi", "CXI-01", *paths)
    new = imported(datasets, tmp_path, *paths, "--axes", "hwm", "--declare-amplitude")
    np.testing.assert_array_equal(new["diff3d"], counts[:, :, 2:22])
    # Amplitude that is declared and found centred by two passes over the same process.
    new = imported(datasets, tmp_path, *paths[:-1], "8", "--axes", "hwm", "--centre", "auto")
    assert new["diff3d"].shape == (M, 8, 8)
    with pytest.raises(ConfigError, match="--data-path"):
        run(tmp_path / "scan.cxi", tmp_path / "more.npz", "--patterns", "diff3d")


def test_soft_links_inside_the_file_are_followed(tmp_path: Path) -> None:
    datasets = draw()
    datasets[f"{DETECTOR}/data"] = datasets[DATA]
    datasets[DATA] = h5py.SoftLink(f"{DETECTOR}/data")
    datasets["/entry_1/data_1/translation"] = h5py.SoftLink("../other")  # HDF5 knows no parents
    write(tmp_path / "scan.cxi", datasets)
    np.testing.assert_array_equal(drain(tmp_path / "scan.cxi"), datasets[f"{DETECTOR}/data"])


# ---------------------------------------------------------------------------------------- harm and damage


def without(name: str) -> Datasets:
    return {key: value for key, value in draw().items() if key != name}


WRONG: dict[str, tuple[Datasets, str, str]] = {
    "no patterns": (without(DATA), "CXI-01", "no such dataset"),
    "no positions": (without(POSITIONS), "CXI-01", "no such dataset"),
    "a group for patterns": (without(DATA) | {f"{DATA}/data": np.zeros(3)}, "CXI-01", "no such dataset"),
    "a link to nowhere": (draw() | {DATA: h5py.SoftLink("/nowhere")}, "CXI-01", "no such dataset"),
    "a scalar for patterns": (draw() | {DATA: 1.0}, "CXI-01", "shape ()"),
    "nothing at all": (draw() | {DATA: h5py.Empty("f")}, "CXI-01", "no such dataset"),
    "text for patterns": (draw() | {DATA: "text"}, "CXI-01", "no numbers"),
    "complex patterns": (draw() | {DATA: np.ones((M, H, W), complex)}, "CXI-01", "dtype complex128"),
    "positions for fewer patterns": (draw() | {POSITIONS: np.zeros((M - 1, 3))}, "CXI-01", "13 values for 14 patterns"),
    "positions of NaN": (draw() | {POSITIONS: np.full((M, 3), np.nan)}, "CXI-01", "nan at pattern 0"),
    "links in a circle": (draw() | {DATA: h5py.SoftLink(DATA)}, "CXI-01", "no such dataset"),
    "no patterns in the stack": (draw() | {DATA: np.zeros((0, H, W))}, "CXI-02", "shape (0, 20, 24)"),
    "a huge frame": (draw() | {DATA: np.zeros((1, 9000, 2), np.uint8)}, "CXI-02", "shape (1, 9000, 2)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_missing_or_wrong_is_named(tmp_path: Path, case: str) -> None:
    datasets, clause, found = WRONG[case]
    assert found in refused(datasets, tmp_path, clause)


def link_to_another_folder(folder: Path) -> Datasets:
    (folder / "away").mkdir()
    write(folder / "away" / "other.h5", {"/data": draw()[DATA]})
    return draw() | {DATA: h5py.ExternalLink("away/other.h5", "/data")}


def link_that_leads_out_of_the_folder(folder: Path) -> Datasets:
    (folder / "away").mkdir()
    write(folder / "away" / "other.h5", {"/data": draw()[DATA]})
    (folder / "beside.h5").symlink_to(folder / "away" / "other.h5")
    return draw() | {DATA: h5py.SoftLink("/far/data"), "/far": h5py.ExternalLink("beside.h5", "/")}


def link_to_a_missing_file(folder: Path) -> Datasets:
    return draw() | {DATA: h5py.ExternalLink("missing.h5", "/data")}


def links_in_a_chain(folder: Path) -> Datasets:
    for number in range(6):
        write(folder / f"{number}.h5", {"/data": h5py.ExternalLink(f"{number + 1}.h5", "/data")})
    return draw() | {DATA: h5py.ExternalLink("0.h5", "/data")}


def external_storage(folder: Path) -> Datasets:
    (folder / "secret").write_bytes(draw()[DATA].tobytes())
    with h5py.File(folder / "scan.cxi", "w") as file:
        file.create_dataset(DATA, (M, H, W), np.uint16, external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])
    return {}


def virtual_dataset(folder: Path) -> Datasets:
    write(folder / "other.h5", {"/data": draw()[DATA]})
    layout = h5py.VirtualLayout((M, H, W), np.uint16)
    layout[:] = h5py.VirtualSource("../other.h5", "/data", (M, H, W))
    with h5py.File(folder / "scan.cxi", "w") as file:
        file.create_virtual_dataset(DATA, layout)
    return {}


def unknown_filter(folder: Path) -> Datasets:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, H, W))
    properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (0, 2))
    with h5py.File(folder / "scan.cxi", "w") as file:
        h5py.h5d.create(
            file.create_group("/entry_1/data_1").id,
            b"data",
            h5py.h5t.STD_U16LE,
            h5py.h5s.create_simple((M, H, W)),
            properties,
        )
    return {}


def absurd_shape(folder: Path) -> Datasets:
    with h5py.File(folder / "scan.cxi", "w") as file:
        file.create_dataset(DATA, (2**30, 8192, 8192), np.float32, chunks=(1, 64, 64))
    return {}


def absurd_chunks(folder: Path) -> Datasets:
    with h5py.File(folder / "scan.cxi", "w") as file:
        file.create_dataset(DATA, (2**10, 8192, 256), np.uint8, chunks=(2**10, 8192, 256))
    return {}


@pytest.mark.parametrize(
    ("hostile", "found"),
    [
        (link_to_another_folder, "'away/other.h5', in another folder"),
        (link_that_leads_out_of_the_folder, "'beside.h5', in another folder"),
        (link_to_a_missing_file, "missing.h5, which is not there"),
        (links_in_a_chain, "a chain of more than 4 links"),
        (external_storage, "external storage"),
        (virtual_dataset, "'../other.h5', in another folder"),
        (unknown_filter, "filter 32999"),
        (absurd_shape, "0 bytes stored"),
        (absurd_chunks, "chunks of (1024, 8192, 256)"),
    ],
)
def test_a_hostile_file_is_refused_before_it_is_read(
    tmp_path: Path, hostile: Callable[[Path], Datasets], found: str
) -> None:
    datasets = hostile(tmp_path)
    if datasets:
        write(tmp_path / "scan.cxi", datasets)
    assert found in refused_file(tmp_path / "scan.cxi", "CXI-02")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "whole", draw()).read_bytes()
    for length in (8, 100, len(content) // 3, len(content) - 100):
        (tmp_path / "scan.cxi").write_bytes(content[:length])
        refused_file(tmp_path / "scan.cxi", "CXI-02")


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_an_error_or_harmless(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_files, "CPU_S", 10)
    rng = np.random.default_rng(seed)
    # Every second file is nearly nothing but structure, so that damage hits it.
    side = 24 if seed % 2 else 2
    datasets = draw() | {
        DATA: rng.integers(0, 60000, (M, side, side)).astype(np.uint16),
        f"{SOURCE}/illumination": np.ones((side, side), complex),
        f"{DETECTOR}/mask": np.zeros((side, side)),
    }
    options = {"compression": "gzip", "chunks": (4, side, side)} if seed % 2 else {}
    write(tmp_path / "scan.cxi", datasets, **options)
    if seed == 0:
        np.testing.assert_array_equal(drain(tmp_path / "scan.cxi"), datasets[DATA])
    content = np.fromfile(tmp_path / "scan.cxi", np.uint8)
    # The signature stays; two of three leave the superblock as well. What comes first is hit most.
    start = 96 if seed % 3 else 8
    at = start + (rng.random(6) ** 3 * (len(content) - start)).astype(int)
    content[at] = rng.integers(0, 256, len(at))
    content.tofile(tmp_path / "scan.cxi")
    try:
        drain(tmp_path / "scan.cxi")
    except DataContractError as error:
        caught = error
    else:
        return
    assert caught.clause in ("CXI-01", "CXI-02")
    assert "\n" not in str(caught)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("kill -SEGV $$", "crashed the HDF5 library (SIGSEGV)"),
        ("kill -XCPU $$", "CPU time"),
        ("exec sleep 60", "did not read in 0 s"),
        ("echo out of order >&2; exit 3", "out of order"),
        ("read line; printf 'Z123456789012345678901234567890'; sleep 1", "cannot be understood"),
        ("read line; printf 'E\\x02\\0\\0\\0\\0\\0\\0\\0{}'", "cannot be understood"),
        ("read line; printf 'J\\x02\\0\\0\\0\\0\\0\\0\\0{}'", "cannot be understood"),
        ("read line; printf 'J\\0\\0\\0\\0\\0\\0\\0\\1'; sleep 1", "an answer of"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_reader_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    """A stand-in takes the reader's place: it dies, falls silent, or lies."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    write(tmp_path / "scan.cxi", draw())
    monkeypatch.setattr(hdf5_process.sys, "executable", str(python))
    monkeypatch.setattr(hdf5_files, "SILENCE_S", 0.4 if "60" in script else 30.0)
    assert found in refused_file(tmp_path / "scan.cxi", "CXI-02")


def test_a_reader_that_asks_for_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.skip("memory is bounded on Linux alone")
    monkeypatch.setattr(hdf5_files, "MEMORY_BYTES", 2**20)
    datasets = draw() | {DATA: np.zeros((M, 1000, 1000), np.uint16)}
    refused(datasets, tmp_path, "CXI-02")


def test_a_missing_h5py_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "scan.cxi", draw())
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "h5py.py").write_text("raise ImportError('no h5py here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    with pytest.raises(PtychoError, match="pip install h5py") as caught:
        run(tmp_path / "scan.cxi", tmp_path / "new.npz")
    assert not isinstance(caught.value, DataContractError)
    assert not (tmp_path / "new.npz").exists()


def test_no_process_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = hdf5_process.subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(hdf5_process.subprocess, "Popen", start)
    write(tmp_path / "scan.cxi", draw())
    with open_beamline(tmp_path / "scan.cxi", Wanted()) as scan:
        next(scan.blocks(100))
    (child,) = started
    assert child.returncode is not None
    assert os.listdir(tmp_path) == ["scan.cxi"]
