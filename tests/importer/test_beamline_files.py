"""Files as beamlines and other programs write them: imported with the right numbers, or refused by name."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.commands.cli import main
from ptycho_torch.data.scan import open_scan
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.hints import hint_centre, hint_probe
from tests.support.beamline_files import (
    DATA,
    DETECTOR,
    DISTANCE_M,
    ELECTRONVOLT_J,
    ENERGY_J,
    GEOMETRY,
    PIXEL_M,
    SOURCE,
    TRANSLATION,
    WAVELENGTH_M,
    Content,
    Known,
    With,
    assert_is,
    convert,
    cxi,
    known_scan,
    soft,
    units,
    write_hdf5,
)

h5py = pytest.importorskip("h5py")

KNOWN = known_scan()
M, N = len(KNOWN.counts), KNOWN.N


def imported(folder: Path, content: Content, *arguments: str, **options: object) -> dict[str, np.ndarray]:
    return convert(write_hdf5(folder / "scan.h5", content, **options), *arguments)  # type: ignore[arg-type]


def refused(folder: Path, content: Content, *arguments: str) -> str:
    with pytest.raises(PtychoError) as caught:
        imported(folder, content, *arguments)
    assert not (folder / "imported.npz").exists()
    return str(caught.value)


def npz(folder: Path, **changes: object) -> Path:
    members = {
        "diff3d": np.sqrt(KNOWN.counts).astype(np.float32),
        "xcoords": KNOWN.x,
        "ycoords": KNOWN.y,
        "probeGuess": KNOWN.probe,
    }
    members = {key: value for key, value in {**members, **changes}.items() if value is not None}
    np.savez(folder / "scan.npz", **members)  # type: ignore[arg-type]
    return folder / "scan.npz"


# --------------------------------------------------------------------------------------------------- not whole


def test_all_that_a_file_lacks_is_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frames, places = "/scan/frames", "/motors/place of x"
    x_m, y_m, _ = KNOWN.translation_m.T
    content = {frames: KNOWN.counts.astype(np.uint32), "/motors/y": y_m, places: x_m, "/motors/t": 3.0}
    write_hdf5(Path("scan.h5"), content)
    typed = ["convert-scan", "scan.h5", "-o", "new.npz"]
    assert main(typed) == 1
    said = capsys.readouterr().err
    assert "no patterns, no positions, no wavelength, no distance, no pixel" in said
    assert f"{frames} {KNOWN.counts.shape}" in said
    whole = said.strip().partition(" The whole command: ptycho-torch ")[2]
    given = shlex.split(whole.replace("UNIT", "m").replace("METRES", "1e-4"))
    assert given[: len(typed)] == typed
    assert given[len(typed) :] == [
        "--data-path", frames, "--positions-path", places, "/motors/y", "--positions-units", "m",
        "--wavelength-m", "1e-4", "--distance-m", "1e-4", "--pixel-m", "1e-4",
    ]  # fmt: skip
    assert main(given) == 0
    # What the user has said is not asked for again, and one thing alone has the words of its own.
    capsys.readouterr()
    assert main([*typed, "--overwrite", *given[len(typed) : -4]]) == 1
    said = capsys.readouterr().err
    assert "no distance, no pixel" in said
    assert "--data-path /scan/frames --positions-path '/motors/place of x' /motors/y --positions-units m " in said
    assert said.endswith("--wavelength-m 1e-4 --distance-m METRES --pixel-m METRES\n")
    assert main([*typed, "--overwrite", *given[len(typed) : -2]]) == 1
    said = capsys.readouterr().err
    assert "Give it in metres: --pixel-m METRES" in said
    assert "The whole command" not in said


# ------------------------------------------------------------------------------------------------ whole files


def eiger_master(folder: Path, files: int = 2, dtype: type = np.uint32, **more: object) -> Path:
    """Write a master with data files beside it; a gap and a dead pixel hold 2^b − 1."""
    data = KNOWN.counts.astype(dtype)
    data[:, gap()] = np.iinfo(dtype).max
    content: Content = {
        "/entry/instrument/detector/detectorSpecific/pixel_mask": gap().astype(np.uint32),
        "/entry/instrument/detector/bit_depth_image": 8 * data.itemsize,
        "/entry/instrument/detector/detector_distance": units(DISTANCE_M, "m"),
        "/entry/instrument/detector/x_pixel_size": units(PIXEL_M, "m"),
        "/entry/instrument/detector/y_pixel_size": units(PIXEL_M, "m"),
        "/entry/instrument/detector/beam_center_x": units(N / 2, "pixel"),
        "/entry/instrument/detector/beam_center_y": units(N / 2, "pixel"),
        "/entry/instrument/detector/detectorSpecific/photon_energy": units(ENERGY_J / ELECTRONVOLT_J, "eV"),
        "/entry/instrument/detector/detectorSpecific/flatfield": np.ones((N, N), np.float32),
        "/entry/instrument/detector/flatfield_correction_applied": 1,
        "/entry/instrument/beam/incident_wavelength": units(WAVELENGTH_M * 1e10, "angstrom"),
        "/entry/sample/translation": units(KNOWN.translation_m * 1e6, "um"),
        **more,
    }
    for number, part in enumerate(np.array_split(data, files), 1):
        write_hdf5(folder / f"scan_data_{number:06d}.h5", {"/entry/data/data": part}, chunks=(1, N, N))
        content[f"/entry/data/data_{number:06d}"] = h5py.ExternalLink(f"scan_data_{number:06d}.h5", "/entry/data/data")
    classes = {"/entry": "NXentry", "/entry/instrument": "NXinstrument", "/entry/instrument/detector": "NXdetector"}
    return write_hdf5(folder / "scan_master.h5", content, classes=classes)


def gap() -> np.ndarray:
    dead = np.zeros((N, N), bool)
    dead[4] = dead[5, 7] = True
    return dead


@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_an_eiger_master_comes_with_its_data_files(
    tmp_path: Path, files: int, dtype: type, capsys: pytest.CaptureFixture[str]
) -> None:
    found = convert(eiger_master(tmp_path, files, dtype))
    assert_is(found, KNOWN, bad=gap())
    assert float(found["wavelength_m"]) == pytest.approx(WAVELENGTH_M, rel=1e-12)
    assert (float(found["detector_distance_m"]), float(found["detector_pixel_m"])) == (DISTANCE_M, PIXEL_M)
    said = capsys.readouterr()
    assert "the detector has divided by it already" in said.err
    assert f"bad pixels: {N + 1}, which hide 0.00% of the counts" in said.out
    for words in ("read patterns from /entry/data/data_000001", "positions from /entry/sample/translation (um)"):
        assert words in said.err
    open_scan(tmp_path / "imported.npz")


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    master = eiger_master(tmp_path)
    (tmp_path / "scan_data_000002.h5").rename(tmp_path / "elsewhere.h5")
    with pytest.raises(DataContractError, match=r"scan_data_000002\.h5, which is not there"):
        convert(master)
    with pytest.raises(DataContractError, match="12 values for 6 patterns"):
        convert(master, "--data-path", "/entry/data/data_000001", "--mask-path", "none")


def test_one_of_the_numbered_datasets_can_be_named(tmp_path: Path) -> None:
    master = eiger_master(tmp_path)
    whole = convert(master, "--data-path", "/entry/data/data_000001")
    assert_is(whole, KNOWN, bad=gap())
    swapped = convert(master, "--data-path", "/entry/data/data_000002", "/entry/data/data_000001")
    np.testing.assert_array_equal(swapped["diff3d"], np.roll(whole["diff3d"], M // 2, axis=0))


def nexus(known: Known) -> Content:
    """Return the datasets of NXcxi_ptycho: a raster, units, stages with directions, the energy of the machine."""
    raster = known.counts.reshape(3, 4, N, N).astype(np.uint16)
    stage = -known.object_pixel_m * 1e3 * known.x.reshape(3, 4), -known.object_pixel_m * 1e3 * known.y.reshape(3, 4)
    return {
        "/cxi_version": 160,
        f"{DETECTOR}/data": raster,
        f"{DETECTOR}/translation": units(known.translation_m * 1e6, "um"),
        f"{DETECTOR}/distance": units(DISTANCE_M * 1e3, "mm"),
        f"{DETECTOR}/x_pixel_size": units(PIXEL_M * 1e6, "um"),
        f"{DETECTOR}/y_pixel_size": units(PIXEL_M * 1e6, "um"),
        f"{DETECTOR}/beam_center_x": units(N / 2 * PIXEL_M, "m"),
        f"{DETECTOR}/beam_center_y": units(N / 2 * PIXEL_M, "m"),
        "/entry_1/instrument_1/beam_1/energy": units(ENERGY_J / ELECTRONVOLT_J / 1e3, "keV"),
        f"{SOURCE}/energy": units(3.0, "GeV"),
        "/entry_1/instrument_1/monitor_1/data": np.ones((3, 4)),
        "/entry_1/sample_1/transformations/x": With(stage[0], {"units": "mm", "vector": [1.0, 0, 0]}),
        "/entry_1/sample_1/transformations/y": With(stage[1], {"units": "mm", "vector": [0, 1.0, 0]}),
        TRANSLATION: soft(f"{DETECTOR}/translation"),
        "/entry_1/data_1/translation": soft(f"{DETECTOR}/translation"),
    }


CLASSES = {
    "/entry_1": "NXentry",
    "/entry_1/instrument_1": "NXinstrument",
    DETECTOR: "NXdetector",
    "/entry_1/instrument_1/monitor_1": "NXmonitor",
    "/entry_1/data_1": "NXdata",
}


def test_a_nexus_file_is_imported_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = convert(write_hdf5(tmp_path / "scan.nxs", nexus(KNOWN), classes=CLASSES))
    assert_is(found, KNOWN)
    assert float(found["wavelength_m"]) == pytest.approx(WAVELENGTH_M, rel=1e-9)
    said = capsys.readouterr().err
    for words in ("a raster of 3 × 4", "energy of the machine", "monitor_1/data", "transformations/x"):
        assert words in said


def test_stages_of_a_nexus_file_go_where_their_vectors_say(tmp_path: Path) -> None:
    content = nexus(KNOWN)
    for path in (f"{DETECTOR}/translation", TRANSLATION, "/entry_1/data_1/translation"):
        del content[path]
    assert_is(imported(tmp_path, content), KNOWN)
    x = content["/entry_1/sample_1/transformations/x"]
    content["/entry_1/sample_1/transformations/x"] = With(-x.data, {"units": "mm", "vector": [-1.0, 0, 0]})
    assert_is(imported(tmp_path, content), KNOWN)


def test_a_cxi_file_is_imported_whole(tmp_path: Path) -> None:
    found = imported(tmp_path, cxi(KNOWN))
    assert_is(found, KNOWN)
    np.testing.assert_array_equal(found["probeGuess"], KNOWN.probe)
    open_scan(tmp_path / "imported.npz")


# ------------------------------------------------------------------------------------------- units and geometry


LENGTHS = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "micrometers": 1e-6, "microns": 1e-6, "nm": 1e-9,
           "angstrom": 1e-10, "Å": 1e-10, "pm": 1e-12, "km": 1e3}  # fmt: skip


@pytest.mark.parametrize("unit", LENGTHS)
def test_every_length_obeys_its_unit(tmp_path: Path, unit: str) -> None:
    factor = LENGTHS[unit]
    content = cxi(KNOWN) | {
        TRANSLATION: units(KNOWN.translation_m / factor, unit),
        f"{DETECTOR}/distance": units(np.array([[DISTANCE_M / factor]]), unit),
        f"{DETECTOR}/x_pixel_size": units(PIXEL_M / factor, unit),
        f"{DETECTOR}/y_pixel_size": units(PIXEL_M / factor, unit),
        f"{SOURCE}/wavelength": units(WAVELENGTH_M / factor, unit),
    }
    found = imported(tmp_path, content)
    assert_is(found, KNOWN)
    for key, right in (("wavelength_m", WAVELENGTH_M), ("detector_distance_m", DISTANCE_M)):
        assert float(found[key]) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize(("unit", "factor"), [("J", 1.0), ("eV", ELECTRONVOLT_J), ("keV", 1e3 * ELECTRONVOLT_J)])
def test_the_energy_obeys_its_unit(tmp_path: Path, unit: str, factor: float) -> None:
    content = cxi(KNOWN) | {f"{SOURCE}/energy": units(ENERGY_J / factor, unit)}
    del content[f"{SOURCE}/wavelength"]
    assert float(imported(tmp_path, content)["wavelength_m"]) == pytest.approx(WAVELENGTH_M, rel=1e-9)


@pytest.mark.parametrize(
    ("path", "unit", "option"),
    [
        (TRANSLATION, "furlongish", "--positions-units"),
        (TRANSLATION, "keV", "--positions-units"),
        (f"{DETECTOR}/distance", "steps", "--distance-m"),
        (f"{DETECTOR}/x_pixel_size", "1e9**9**9", "--pixel-m"),
        (f"{SOURCE}/wavelength", "A", "--wavelength-m"),
    ],
)
def test_an_unknown_unit_is_refused_by_name(tmp_path: Path, path: str, unit: str, option: str) -> None:
    content = cxi(KNOWN)
    message = refused(tmp_path, content | {path: units(content[path], unit)})
    assert unit in message
    assert path in message
    assert option in message


def test_energy_and_wavelength_must_agree(tmp_path: Path) -> None:
    energy = f"{SOURCE}/energy"
    assert_is(imported(tmp_path, cxi(KNOWN) | {energy: ENERGY_J * 1.001}), KNOWN)
    (tmp_path / "imported.npz").unlink()
    message = refused(tmp_path, cxi(KNOWN) | {energy: units(8.0, "keV")})
    assert energy in message
    assert "--wavelength-m 1.5e-10" in message
    assert_is(imported(tmp_path, cxi(KNOWN) | {energy: units(8.0, "keV")}, "--wavelength-m", "1.5e-10"), KNOWN)


def test_metres_that_are_none_are_refused(tmp_path: Path) -> None:
    content = cxi(KNOWN) | {TRANSLATION: KNOWN.translation_m * 1e6}
    assert "--positions-units um" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--positions-units", "um"), KNOWN)
    assert "without a unit" in refused_again(tmp_path, cxi(KNOWN) | {f"{SOURCE}/wavelength": 1.5})


def refused_again(folder: Path, content: Content, *arguments: str) -> str:
    (folder / "imported.npz").unlink()
    return refused(folder, content, *arguments)


def test_units_without_pint_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptycho_torch.importer import units as module

    monkeypatch.setitem(sys.modules, "pint", None)
    module._registry.cache_clear()
    assert_is(imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/distance": units(DISTANCE_M * 1e3, "mm")}), KNOWN)
    assert r"ptycho-torch[beamline]" in refused_again(
        tmp_path, cxi(KNOWN) | {f"{DETECTOR}/distance": units(DISTANCE_M / 0.0254, "inch")}
    )


def test_usual_units_are_what_pint_says_and_others_are_read_by_it(tmp_path: Path) -> None:
    from ptycho_torch.importer import units as module

    for kind, factors in module._USUAL.items():
        for name, factor in factors.items():
            known = "angstrom" if name == "Angstrom" else name
            assert factor == pytest.approx(float(module._registry()(known).to(module._SI[kind]).magnitude), rel=1e-15)
    content = cxi(KNOWN) | {f"{DETECTOR}/distance": units(DISTANCE_M / 0.0254, "inch")}
    assert_is(imported(tmp_path, content), KNOWN)


# --------------------------------------------------------------------------------------------- frames and places


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
@pytest.mark.parametrize(
    ("slow", "fast"),
    [((0, -1, 0), (-1, 0, 0)), ((0, 1, 0), (1, 0, 0)), ((1, 0, 0), (0, -1, 0)), ((0.6, 0.8, 0), (0.8, -0.6, 0))],
)
def test_basis_vectors_turn_positions_into_the_frame(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: tuple[int, int],
    slow: tuple[float, ...],
    fast: tuple[float, ...],
) -> None:
    """The sample moves in the laboratory; what counts is how it moves along the rows and columns of the detector."""
    along_columns, along_rows = KNOWN.translation_m[:, 0], KNOWN.translation_m[:, 1]
    laboratory = np.outer(along_columns, fast) + np.outer(along_rows, slow)
    basis = PIXEL_M * np.array([slow, fast])
    content = cxi(KNOWN) | {
        TRANSLATION: laboratory,
        f"{DETECTOR}/basis_vectors": basis if shape == (2, 3) else basis.T,
    }
    del content[f"{DETECTOR}/x_pixel_size"], content[f"{DETECTOR}/y_pixel_size"]
    found = imported(tmp_path, content)
    assert_is(found, KNOWN)
    assert float(found["detector_pixel_m"]) == pytest.approx(PIXEL_M)
    turned = (slow, fast) != ((0, 1, 0), (1, 0, 0))
    assert capsys.readouterr().err.count("positions are turned into this frame") == turned


def test_basis_vectors_that_are_skew_are_refused(tmp_path: Path) -> None:
    content = cxi(KNOWN) | {f"{DETECTOR}/basis_vectors": PIXEL_M * np.array([[0, 1, 0], [1, 1, 0]])}
    assert "right angle" in refused(tmp_path, content)


def test_a_beam_centre_cuts_frames_that_are_not_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = np.pad(KNOWN.counts, ((0, 0), (3, 7), (12, 1))).astype(np.uint16)
    content = cxi(KNOWN) | {f"{DETECTOR}/data": wide}
    del content[f"{SOURCE}/illumination"]
    assert "--crop" in refused(tmp_path, content)
    content |= {f"{DETECTOR}/beam_center_y": 3.0 + N / 2, f"{DETECTOR}/beam_center_x": units(12.2 + N / 2, "pixels")}
    found = imported(tmp_path, content, "--crop", str(N))
    np.testing.assert_allclose(found["diff3d"] ** 2, KNOWN.counts, rtol=1e-6)
    whole = imported(tmp_path, content)["diff3d"]
    np.testing.assert_allclose(whole[:, 1:-1, 1:-1] ** 2, KNOWN.counts, rtol=1e-6)
    assert "beam centre at row 11.0, column 20.2" in capsys.readouterr().err


POSITIONS = {
    "(M, 2)": lambda t: {TRANSLATION: t[:, :2]},
    "(2, M)": lambda t: {TRANSLATION: t[:, :2].T},
    "(3, M)": lambda t: {TRANSLATION: t.T},
    "raster": lambda t: {TRANSLATION: t.reshape(3, 4, 3), f"{DETECTOR}/data": KNOWN.counts.reshape(3, 4, N, N)},
    "two": lambda t: {TRANSLATION: None, "/entry_1/stage/x": t[:, 0], "/entry_1/stage/y": t[:, 1]},
    "columns": lambda t: {TRANSLATION: None, "/entry_1/stage/x": t[:, :1], "/entry_1/stage/y": t[:, 1:2]},
    "rows": lambda t: {TRANSLATION: None, "/entry_1/stage/x": t[:, :1].T, "/entry_1/stage/y": t[:, 1:2].T},
}  # fmt: skip


@pytest.mark.parametrize("case", POSITIONS)
def test_positions_come_in_any_order(tmp_path: Path, case: str) -> None:
    content = {**cxi(KNOWN), **POSITIONS[case](KNOWN.translation_m)}
    assert_is(imported(tmp_path, {key: value for key, value in content.items() if value is not None}), KNOWN)


def test_two_datasets_and_columns_of_a_table_can_be_named(tmp_path: Path) -> None:
    micrometres = KNOWN.translation_m * 1e6
    content: Content = {
        "/m/Eiger/data": KNOWN.counts.astype(np.uint16),
        "/m/x": micrometres[:, 0],
        "/m/y": micrometres[:, 1],
        "/m/table": np.column_stack([np.arange(M), micrometres[:, 1], micrometres[:, 0]]),
    }
    data = ("--data-path", "/m/Eiger/data", *GEOMETRY)
    assert "--positions-path /m/x Y" in refused(tmp_path, content, *data, "--positions-path", "/m/x")
    assert "--positions-units um" in refused(tmp_path, content, *data, "--positions-path", "/m/x", "/m/y")
    for names in (("/m/x", "/m/y"), ("/m/table:2", "/m/table:1")):
        assert_is(imported(tmp_path, content, *data, "--positions-units", "um", "--positions-path", *names), KNOWN)
    with pytest.raises(ConfigError, match="or two"):
        imported(tmp_path, content, *data, "--positions-path", "/m/x", "/m/y", "/m/x")
    assert "--data-path /m/Eiger/data" in refused_again(tmp_path, content, "--positions-path", "/m/x", "/m/y")


def test_axes_of_a_raster_make_a_grid(tmp_path: Path) -> None:
    x, y = 3.0 * np.arange(4), 4.0 * np.arange(3)
    grid = Known(KNOWN.counts, np.tile(x, 3), np.repeat(y, 4), KNOWN.probe)
    content = cxi(grid) | {
        f"{DETECTOR}/data": KNOWN.counts.reshape(3, 4, N, N),
        "/entry_1/data_1/x": -x * grid.object_pixel_m,
        "/entry_1/data_1/y": -y * grid.object_pixel_m,
    }
    del content[TRANSLATION]
    assert_is(imported(tmp_path, content), grid)


def test_positions_lie_in_another_file(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "stage.h5", {"/x": units(KNOWN.translation_m[:, 0] * 1e3, "mm"),
                                       "/y": units(KNOWN.translation_m[:, 1] * 1e3, "mm")})  # fmt: skip
    content = cxi(KNOWN)
    del content[TRANSLATION]
    assert "--positions-file" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--positions-file", str(tmp_path / "stage.h5")), KNOWN)


# -------------------------------------------------------------------------------------------------------- values


def test_the_bits_of_a_cxi_mask_have_meanings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((N, N), np.uint32)
    mask[6:10, 6:10] = 0x1000  # has signal
    mask[2, 3] = 0x4  # hot
    mask[7, 7] = 0x1008  # has signal, and dead
    bad = np.isin(mask, (0x4, 0x1008))
    assert_is(imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/mask": mask}, "--accept-mask"), KNOWN, bad=bad)
    assert (
        "bad pixels: 2 (hot 1, dead 1, has signal 1); good with a remark: 15 (has signal 15)" in capsys.readouterr().err
    )
    content = cxi(KNOWN) | {f"{DETECTOR}/mask": mask}
    assert_is(imported(tmp_path, content, "--mask-bits", "0x4"), KNOWN, bad=mask == 0x4)
    assert "bad_pixels" not in imported(tmp_path, content, "--mask-path", "none")


def test_high_bits_of_a_nexus_mask_are_remarks(tmp_path: Path) -> None:
    mask = np.zeros((N, N), np.int32)
    mask[0, 0], mask[0, 1], mask[0, 2] = 1 << 8, -(2**31), 1 << 20
    found = imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/pixel_mask": mask})
    assert_is(found, KNOWN, bad=mask == 256)


def test_a_mask_of_good_pixels_is_not_taken_for_bad_ones(tmp_path: Path) -> None:
    bad = np.zeros((N, N), bool)
    bad[2, 3] = True
    content = cxi(KNOWN) | {"/masks/good": ~bad}
    message = refused(tmp_path, content, "--mask-path", "/masks/good")
    assert "hide" in message
    assert_is(imported(tmp_path, content, "--mask-path", "/masks/good", "--mask-bits", "zero"), KNOWN, bad=bad)


def test_a_mask_that_hides_much_needs_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = np.zeros((N, N), bool)
    bad[7:10, 7:10] = True
    content = cxi(KNOWN) | {f"{DETECTOR}/mask": bad}
    share = KNOWN.counts[:, bad].sum() / KNOWN.counts.sum()
    assert f"9 bad pixels that hide {share:.1%} of the counts" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--accept-mask"), KNOWN, bad=bad)
    assert f"which hide {share:.2%} of the counts" in capsys.readouterr().out


SENTINELS = {
    "uint8": (np.uint8, 255), "uint16": (np.uint16, 65535), "uint32": (np.uint32, 2**32 - 1),
    "int32": (np.int32, -1), "int16": (np.int16, -2), "float": (np.float32, np.nan),
    "float64": (np.float64, 2.0**32 - 1),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTINELS)
def test_what_is_no_measurement_is_a_bad_pixel(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    dtype, value = SENTINELS[case]
    dim = Known(np.minimum(KNOWN.counts, 200), KNOWN.x, KNOWN.y, KNOWN.probe)
    data = dim.counts.astype(dtype)
    data[:, gap()] = value
    found = imported(tmp_path, cxi(dim) | {f"{DETECTOR}/data": data})
    assert_is(found, dim, bad=gap())
    assert f"{N + 1} pixels hold" in capsys.readouterr().err


@pytest.mark.parametrize("case", [case for case in SENTINELS if case.startswith("u")])
def test_a_pixel_that_runs_over_needs_a_word(tmp_path: Path, case: str) -> None:
    dtype, value = SENTINELS[case]
    dim = Known(np.minimum(KNOWN.counts, 200), KNOWN.x, KNOWN.y, KNOWN.probe)
    data = dim.counts.astype(dtype)
    data[5, 3, 2] = value
    content = cxi(dim) | {f"{DETECTOR}/data": data}
    message = refused(tmp_path, content)
    assert "row 3, column 2 of pattern 5" in message
    assert f"`--saturated {value}`" in message
    bad = np.zeros((N, N), bool)
    bad[3, 2] = True
    for word in ("auto", str(value)):
        assert_is(imported(tmp_path, content, "--saturated", word), dim, bad=bad)
    assert imported(tmp_path, content, "--saturated", "keep")["diff3d"][5, 3, 2] == np.float32(np.sqrt(value))


def test_fewer_bits_than_the_type_has_are_heard(tmp_path: Path) -> None:
    data = KNOWN.counts.astype(np.uint32)
    data[:, gap()] = 4095
    content = cxi(KNOWN) | {f"{DETECTOR}/data": data, f"{DETECTOR}/bit_depth_image": 12}
    assert_is(imported(tmp_path, content), KNOWN, bad=gap())
    content = cxi(KNOWN) | {f"{DETECTOR}/data": data, f"{DETECTOR}/saturation_value": 4000}
    assert_is(imported(tmp_path, content), KNOWN, bad=gap())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_noise_below_zero_is_clipped_on_request(
    tmp_path: Path, dtype: type, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = (KNOWN.counts + np.random.default_rng(1).normal(0, 4, KNOWN.counts.shape)).astype(dtype)
    content = cxi(KNOWN) | {f"{DETECTOR}/data": noisy}
    assert "--clip-negative" in refused(tmp_path, content)
    found = imported(tmp_path, content, "--clip-negative")
    np.testing.assert_allclose(found["diff3d"], np.sqrt(np.maximum(noisy, 0)), rtol=1e-6)
    assert f"{(noisy < 0).sum()} negative values" in capsys.readouterr().err
    path = npz(tmp_path, diff3d=noisy.astype(np.float32))
    assert convert(path, "--from-intensity", "--clip-negative")["diff3d"].min() == 0


def test_dark_frames_are_taken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = np.arange(N * N).reshape(N, N) % 7 + 20
    frames = np.stack([dark - 1, dark, dark + 1]).astype(np.uint16)
    content = cxi(KNOWN) | {f"{DETECTOR}/data": (KNOWN.counts + dark).astype(np.uint16)}
    assert_is(imported(tmp_path, content | {f"{DETECTOR}/data_dark": frames}), KNOWN)
    assert_is(imported(tmp_path, content | {"/other": dark}, "--dark-path", "/other"), KNOWN)
    capsys.readouterr()
    kept = imported(tmp_path, content | {f"{DETECTOR}/dark": frames})["diff3d"]
    np.testing.assert_allclose(kept**2, KNOWN.counts + dark, rtol=1e-6)
    assert f"--dark-path {DETECTOR}/dark" in capsys.readouterr().err
    # They were taken off before.
    done = cxi(KNOWN) | {f"{DETECTOR}/data_dark": (frames + 60).astype(np.uint16)}
    assert "--dark-path none" in refused_again(tmp_path, done)
    assert_is(imported(tmp_path, done, "--dark-path", "none"), KNOWN)


def test_a_flat_field_is_named_or_divided_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = 1 + 0.1 * np.cos(np.arange(N * N)).reshape(N, N)
    content = cxi(KNOWN) | {f"{DETECTOR}/data": KNOWN.counts * flat, f"{DETECTOR}/data_white": 500 * flat}
    imported(tmp_path, content)
    assert f"--white-path {DETECTOR}/data_white" in capsys.readouterr().err
    found = imported(tmp_path, content, "--white-path", f"{DETECTOR}/data_white")["diff3d"]
    np.testing.assert_allclose(found**2, KNOWN.counts * flat.mean(), rtol=1e-6)


# ------------------------------------------------------------------------------------------- which patterns


def test_frames_without_positions_are_dropped_on_request(tmp_path: Path) -> None:
    more = np.concatenate([KNOWN.counts, KNOWN.counts[-3:]]).astype(np.uint16)
    content = cxi(KNOWN) | {f"{DETECTOR}/data": more}
    assert f"--select 0:{M}" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--select", f"0:{M}"), KNOWN)
    late = np.concatenate([KNOWN.counts[:2], KNOWN.counts]).astype(np.uint16)
    assert_is(imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/data": late}, "--select", "2:"), KNOWN)
    path = npz(tmp_path, diff3d=np.sqrt(more).astype(np.float32))
    with pytest.raises(DataContractError, match=f"--select 0:{M}"):
        convert(path)
    assert_is(convert(path, "--select", f":{M}"), KNOWN)
    every = Known(KNOWN.counts[1::3], KNOWN.x[1::3], KNOWN.y[1::3], KNOWN.probe)
    assert_is(convert(npz(tmp_path), "--select", "1::3"), every)


def test_patterns_without_a_position_or_light_are_dropped_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = Known(KNOWN.counts[2:], KNOWN.x[2:], KNOWN.y[2:], KNOWN.probe)
    places = KNOWN.translation_m.copy()
    places[:2, 1] = np.nan
    content = cxi(KNOWN) | {TRANSLATION: places}
    assert "--drop-nan-positions" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--drop-nan-positions"), rest)
    dark = KNOWN.counts.astype(np.uint16)
    dark[:2] = 0
    dark[1, 3, 3] = 1
    assert_is(imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/data": dark}, "--drop-dark"), rest)
    assert "2 patterns of less than 1% of the counts are left out: 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["behind each other", "mixed"])
def test_exposures_of_a_place_are_added(tmp_path: Path, order: str) -> None:
    rng = np.random.default_rng(3)
    each = np.repeat(np.arange(M), 4) if order == "behind each other" else np.tile(np.arange(M), 4)
    exposures = rng.poisson(KNOWN.counts[each] / 4)
    jitter = 1e-3 * rng.standard_normal((2, len(each)))
    total = np.zeros_like(KNOWN.counts)
    np.add.at(total, each, exposures)
    path = npz(tmp_path, diff3d=np.sqrt(exposures).astype(np.float32), xcoords=KNOWN.x[each] + jitter[0],
               ycoords=KNOWN.y[each] + jitter[1])  # fmt: skip
    found = convert(path, "--merge-repeats", "0.1")
    np.testing.assert_allclose(found["diff3d"] ** 2, total, rtol=1e-5)
    np.testing.assert_allclose(found["xcoords"], KNOWN.x, atol=5e-3)
    # Other scans have other places.
    found = convert(npz(tmp_path, xcoords=0 * KNOWN.x, ycoords=0 * KNOWN.y, scan_index=np.arange(M) % 2),
                    "--merge-repeats")  # fmt: skip
    assert found["diff3d"].shape == (2, N, N)
    np.testing.assert_array_equal(found["scan_index"], [0, 1])


def test_patterns_and_probes_that_are_centred_on_the_corner_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((N, N), bool)
    mask[1, 2] = True
    corner = np.fft.ifftshift(KNOWN.counts, axes=(1, 2)).astype(np.uint16)
    content = cxi(KNOWN) | {
        f"{DETECTOR}/data": corner,
        f"{DETECTOR}/mask": np.fft.ifftshift(mask),
        f"{SOURCE}/illumination": np.fft.ifftshift(KNOWN.probe, axes=(1, 2)),
    }
    imported(tmp_path, content)
    said = capsys.readouterr().err
    assert "patterns look centred on the corner" in said
    assert "probe looks centred on the corner" in said
    found = imported(tmp_path, content, "--fftshift")
    assert_is(found, KNOWN, bad=mask)
    np.testing.assert_array_equal(found["probeGuess"], KNOWN.probe)
    assert "centred on the corner" in refused_again(tmp_path, cxi(KNOWN), "--fftshift")
    mean = np.fft.ifftshift(KNOWN.counts.mean(axis=0))
    for hints in (hint_centre(mean, None, adding), hint_probe(np.fft.ifftshift(KNOWN.probe, axes=(1, 2)), adding)):
        assert "`--fftshift`" in next(hints).text
    only = convert(npz(tmp_path, probeGuess=np.fft.ifftshift(KNOWN.probe, axes=(1, 2))), "--fftshift")
    assert_is(only, KNOWN)
    np.testing.assert_array_equal(only["probeGuess"], KNOWN.probe)


def test_a_raster_is_read_row_by_row(tmp_path: Path) -> None:
    shape = (3, 4)
    assert_is(imported(tmp_path, cxi(KNOWN) | {f"{DETECTOR}/data": KNOWN.counts.reshape(*shape, N, N)}), KNOWN)
    path = npz(tmp_path, diff3d=np.sqrt(KNOWN.counts).astype(np.float32).reshape(*shape, N, N),
               xcoords=KNOWN.x.reshape(shape), ycoords=KNOWN.y.reshape(shape))  # fmt: skip
    assert_is(convert(path), KNOWN)


# -------------------------------------------------------------------------------------------------------- probes


PROBES = {
    "modes last": lambda p: (p.transpose(1, 2, 0), p),
    "one, modes": lambda p: (p[None], p),
    "OPR": lambda p: (np.stack([p, 0.1 * p]), p),
    "one mode": lambda p: (p[:1], p[:1]),
    "no axis of modes": lambda p: (p[0], p[0]),
    "complex128": lambda p: (p.astype(np.complex128), p),
}


@pytest.mark.parametrize("case", PROBES)
@pytest.mark.parametrize("kind", ["npz", "cxi", "pairs"])
def test_probes_come_with_any_axes(tmp_path: Path, case: str, kind: str) -> None:
    stored, right = PROBES[case](KNOWN.probe)
    if kind == "pairs":  # as MATLAB stores complex numbers
        real = stored.real.dtype
        pairs = np.empty(stored.shape, [("real", real), ("imag", real)])
        pairs["real"], pairs["imag"] = stored.real, stored.imag
        stored = pairs
    if kind == "npz":
        found = convert(npz(tmp_path, probeGuess=stored))
    else:
        found = imported(tmp_path, cxi(KNOWN) | {f"{SOURCE}/illumination": stored})
    np.testing.assert_array_equal(found["probeGuess"].reshape(right.shape), right)


def test_an_object_with_layers_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "objectGuess" not in convert(npz(tmp_path, objectGuess=np.ones((1, 40, 40), np.complex64)))
    assert "'objectGuess' is left out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ other programs


def test_matlab_files_have_their_axes_in_reverse(tmp_path: Path) -> None:
    path = tmp_path / "scan.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["dp"] = KNOWN.counts.astype(float).transpose(0, 2, 1)
        file["positions"] = KNOWN.translation_m[:, :2].T
        file["probe"] = KNOWN.probe.transpose(0, 2, 1)
        file["mask"] = gap().astype(float).T
    with path.open("r+b") as begin:
        begin.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    names = ("--data-path", "/dp", "--positions-path", "/positions", "--probe-path", "/probe", "--mask-path", "/mask")
    found = convert(path, *names, *GEOMETRY)
    assert_is(found, KNOWN, bad=gap())
    np.testing.assert_array_equal(found["probeGuess"], KNOWN.probe)


def test_ptychodus_keeps_positions_in_another_file(tmp_path: Path) -> None:
    path, product = tmp_path / "diffraction.npz", tmp_path / "product.npz"
    order = np.random.default_rng(0).permutation(M)
    np.savez(path, patterns=KNOWN.counts.astype(np.uint16), indexes=np.arange(M), bad_pixels=gap())
    members = {
        "probe_position_indexes": order,
        "probe_position_x_m": KNOWN.x[order] * KNOWN.object_pixel_m,
        "probe_position_y_m": KNOWN.y[order] * KNOWN.object_pixel_m,
        "detector_object_distance_m": DISTANCE_M,
        "probe_energy_eV": ENERGY_J / ELECTRONVOLT_J,
        "probe": KNOWN.probe[None],
    }
    np.savez(product, **members)
    with pytest.raises(DataContractError, match="--positions-file"):
        convert(path)
    with pytest.raises(ConfigError, match="--pixel-m METRES"):
        convert(path, "--positions-file", str(product))
    found = convert(path, "--positions-file", str(product), "--pixel-m", str(PIXEL_M), "--accept-mask")
    assert_is(found, KNOWN, bad=gap(), dx=1e-5)
    np.testing.assert_array_equal(found["probeGuess"], KNOWN.probe)
    np.savez(product, **members, probe_pixel_width_m=KNOWN.object_pixel_m)
    found = convert(path, "--positions-file", str(product), "--accept-mask")
    assert float(found["detector_pixel_m"]) == pytest.approx(PIXEL_M)


# ------------------------------------------------------------------------------------- how content lies in files


@pytest.mark.parametrize("filters", ["Bitshuffle", "BitshuffleZstd", "LZ4", "Zstd"])
def test_filters_of_detectors_are_read(tmp_path: Path, filters: str) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    how = plugin.Bitshuffle(cname="zstd") if filters == "BitshuffleZstd" else getattr(plugin, filters)()
    assert_is(imported(tmp_path, cxi(KNOWN), chunks=(1, N, N), **how), KNOWN)


def test_a_filter_without_its_plugin_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hdf5plugin.py").write_text("raise ImportError('no plugin here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    write_hdf5(tmp_path / "scan.h5", cxi(KNOWN), chunks=(1, N, N), **plugin.Bitshuffle())
    with pytest.raises(DataContractError, match=r"bitshuffle/LZ4 .*ptycho-torch\[beamline\]"):
        convert(tmp_path / "scan.h5")


@pytest.mark.parametrize("case", ["files", "stripes", "modules", "flattened", "same file"])
def test_virtual_datasets_are_put_together(tmp_path: Path, case: str) -> None:
    counts = KNOWN.counts.astype(np.uint32)
    content = cxi(KNOWN)
    del content[DATA], content[f"{DETECTOR}/data"]
    write_hdf5(tmp_path / "scan.h5", content)
    layout = h5py.VirtualLayout((M, N, N), np.uint32)
    if case == "same file":
        with h5py.File(tmp_path / "scan.h5", "r+") as file:
            file["/raw"] = counts
        layout[:] = h5py.VirtualSource(".", "/raw", (M, N, N))
    elif case == "flattened":
        write_hdf5(tmp_path / "a.h5", {"/data": counts.reshape(3, 4, N, N)})
        layout[:] = h5py.VirtualSource("a.h5", "/data", (3, 4, N, N))
    elif case == "modules":
        write_hdf5(tmp_path / "a.h5", {"/data": counts[:, :5]})
        write_hdf5(tmp_path / "b.h5", {"/data": np.pad(counts[:, 5:], ((0, 0), (0, 0), (1, 2)))})
        layout[:, :5] = h5py.VirtualSource("a.h5", "/data", (M, 5, N))
        layout[:, 5:] = h5py.VirtualSource("b.h5", "/data", (M, N - 5, N + 3))[:, :, 1:-2]
    elif case == "stripes":
        for number in range(3):
            write_hdf5(tmp_path / f"{number}.h5", {"/data": counts[number::3]})
            layout[number::3] = h5py.VirtualSource(f"{number}.h5", "/data", (M // 3, N, N))
    else:
        for number in range(3):
            write_hdf5(tmp_path / f"{number}.h5", {"/data": counts[4 * number : 4 * number + 4]})
            layout[4 * number : 4 * number + 4] = h5py.VirtualSource(f"{number}.h5", "/data", (4, N, N))
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.create_virtual_dataset(f"{DETECTOR}/data", layout)
        file[DATA] = h5py.SoftLink(f"{DETECTOR}/data")
        np.testing.assert_array_equal(file[DATA][...], counts)  # as the HDF5 library has it
    assert_is(convert(tmp_path / "scan.h5"), KNOWN)


def test_linked_files_may_link_on(tmp_path: Path) -> None:
    eiger_master(tmp_path)
    write_hdf5(tmp_path / "top.h5", {"/entry": h5py.ExternalLink("scan_master.h5", "/entry")})
    assert_is(convert(tmp_path / "top.h5"), KNOWN, bad=gap())


HOLDER = """
import sys, h5py
file = h5py.File(sys.argv[1], "r+", libver="latest")
if sys.argv[2] == "swmr":
    file.swmr_mode = True
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["write", "swmr"])
def test_a_file_that_is_being_written_is_called_that(tmp_path: Path, how: str) -> None:
    with h5py.File(tmp_path / "scan.h5", "w", libver="latest") as file:
        file[DATA] = KNOWN.counts
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "scan.h5"), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE"},
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataContractError, match="open for writing elsewhere") as caught:
            convert(tmp_path / "scan.h5")
        assert str(tmp_path / "scan.h5") in caught.value.remedy
    finally:
        holder.communicate()


def test_what_is_not_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(tmp_path, cxi(KNOWN) | {"/entry_1/image_1/data": np.ones((40, 40)), "/notes": "text", "/one": 1.0})
    said = capsys.readouterr().err
    assert "arrays that are not used: /entry_1/image_1/data" in said
    assert "/one" not in said


def test_patterns_along_the_last_axis_are_recognised(tmp_path: Path) -> None:
    content = cxi(KNOWN) | {f"{DETECTOR}/data": KNOWN.counts.transpose(1, 2, 0)}
    assert "`--axes hwm`" in refused(tmp_path, content)
    assert_is(imported(tmp_path, content, "--axes", "hwm"), KNOWN)
    turned = cxi(KNOWN) | {f"{DETECTOR}/data": KNOWN.counts.transpose(2, 1, 0)}
    assert_is(imported(tmp_path, turned, "--axes", "whm"), KNOWN)


def test_packages_of_beamlines_are_imported_where_they_are_used(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "scan.h5", cxi(KNOWN))
    code = (
        "import sys; from ptycho_torch import inference; from ptycho_torch.commands import cli; "
        "assert cli.main(sys.argv[1:]) == 0; "
        "assert not {'pint', 'hdf5plugin', 'h5py'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "convert-scan", "scan.h5", "-o", "new.npz"]
    root = str(Path(__file__).parents[2])
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": root}, capture_output=True)


def test_pixel_directions_of_nexus_turn_positions_too(tmp_path: Path) -> None:
    content = cxi(KNOWN) | {
        TRANSLATION: -KNOWN.translation_m,
        f"{DETECTOR}/module/fast_pixel_direction": With(PIXEL_M, {"vector": [-1.0, 0, 0], "units": "m"}),
        f"{DETECTOR}/module/slow_pixel_direction": With(PIXEL_M, {"vector": [0, -1.0, 0], "units": "m"}),
    }
    assert_is(imported(tmp_path, content), KNOWN)
