"""Files as they come: members of any type and order, what a scan is made of, and stacks whose axes lie otherwise."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.hypotheses import Hypothesis, spatial_mistakes
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_scans import Arrays, named, small_files


def _write(path: Path, members: Mapping[str, Any], *, packed: bool = False) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **members)
    return path


# ------------------------------------------------------------------------------------------------ members

SHAPES = ((7, 5, 3), (5, 4), (6,), ())
DTYPES = ("<f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c16", "|u1", "<u2", ">i8", "|b1", "<U5")


def _members() -> Arrays:
    """Draw arrays of every shape and type, in C and in Fortran order."""
    rng = np.random.default_rng(31)
    found = {}
    for shape, dtype, order in itertools.product(SHAPES, DTYPES, "CF"):
        numbers = rng.integers(0, 100, shape) + 1j * rng.integers(1, 100, shape)
        values = numbers if np.dtype(dtype).kind == "c" else numbers.real
        values = values > 50 if dtype == "|b1" else values
        array = np.asarray(values).astype(dtype)
        found[f"{dtype[1:]} {dtype[0]} {shape} {order}"] = array if order == "C" else np.asarray(array, order="F")
    return found


def _npz(_: StepBench) -> Outcome:
    """Read members whole and in rows, and what their headers and the directory say."""
    from ptycho_torch.npz import NpzFile

    members = _members()
    expected: Arrays = {}
    given: Arrays = {}
    with small_files() as root:
        for packed in (False, True):
            how = "packed" if packed else "as they are"
            path = _write(root / f"{how}.npz", members, packed=packed)
            file = NpzFile(path)
            for key, array in members.items():
                header = file.header(key)
                given |= {
                    f"whole: {key}, {how}": _plain(file.read(key)),
                    f"type: {key}, {how}": np.array(file.read(key).dtype.str),
                    f"header: {key}, {how}": np.array(
                        [*header.shape, header.content_bytes, header.fortran_order, header.dtype.itemsize]
                    ),
                }
                fortran = array.flags.f_contiguous and not array.flags.c_contiguous
                expected |= {
                    f"whole: {key}, {how}": _plain(array),
                    f"type: {key}, {how}": np.array(array.dtype.str),
                    f"header: {key}, {how}": np.array([*array.shape, array.nbytes, fortran, array.itemsize]),
                }
                if array.ndim:
                    two = 2 * array.nbytes // len(array)
                    given[f"in rows: {key}, {how}"] = _plain(np.concatenate([*map(np.array, file.stream(key, two))]))
                    expected[f"in rows: {key}, {how}"] = _plain(array)
            given[f"directory, {how}"], expected[f"directory, {how}"] = _directory(path, file)
    return Outcome(expected, given, 0.0, lambda: _wrong_orders(members, expected))


def _plain(array: np.ndarray) -> np.ndarray:
    """Return numbers in this machine's order of bytes, and text as it is."""
    return array.astype(array.dtype.newbyteorder("="))


def _directory(path: Path, file: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return length and CRC-32 of every member as our reader has them, and as its bytes give them."""
    ours = {digest.key: (digest.crc32, digest.content_bytes) for digest in file.digest()}
    with zipfile.ZipFile(path) as archive:
        contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    theirs = {key: (zlib.crc32(content), len(content)) for key, content in contents.items()}
    keys = sorted({*ours, *theirs})
    return tuple(np.array([each.get(key, (0, 0)) for key in keys], np.int64) for each in (ours, theirs))  # type: ignore[return-value]


def _wrong_orders(members: Arrays, right: Arrays) -> Iterator[Hypothesis]:
    def fortran(key: str) -> bool:
        return members[key].ndim > 1 and key.endswith("F")

    for name, parts in (
        ("Fortran order of a member not heeded", ("whole", "in rows")),
        ("Fortran order of a member not heeded", ("whole",)),
        ("Fortran order of a member not heeded", ("in rows",)),
    ):
        wrong = {
            label: _plain(members[_key(label)].T).reshape(members[_key(label)].shape)
            for label in right
            if label.partition(":")[0] in parts and fortran(_key(label))
        }
        yield Hypothesis(name, right | wrong)


def _key(label: str) -> str:
    return label.partition(": ")[2].rpartition(", ")[0]


# ------------------------------------------------------------------------------------------------ a scan

SIDE_PX, PATTERNS = 6, 11
CHUNK_BYTES = 3 * SIDE_PX**2 * 4
"""Three patterns of float32 at once, and more or fewer of other types."""


def _scan_files() -> dict[str, Arrays]:
    """Draw scan files that say the same sort of thing in different ways."""
    rng = np.random.default_rng(37)
    whole = (PATTERNS, SIDE_PX, SIDE_PX)
    probes = rng.standard_normal((3, SIDE_PX, SIDE_PX)) + 1j * rng.standard_normal((3, SIDE_PX, SIDE_PX))
    x, y, x_start, y_start = rng.uniform(10, 60, (4, PATTERNS))
    frames = rng.gamma(2.0, 3.0, whole)
    bad = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    bad[1, 4] = bad[3, 0] = 1
    start = {"xcoords_start": x_start, "ycoords_start": y_start}
    geometry = {"wavelength_m": 1.5e-10, "detector_distance_m": 2.25, "detector_pixel_m": 7.5e-5}
    return {
        "all in Fortran order": {
            "diff3d": np.asfortranarray(frames.astype(np.float32)), "xcoords": x, "ycoords": y, **start,
            "probeGuess": np.asfortranarray(probes[0]), "bad_pixels": np.asfortranarray(bad),
        },
        "float64, modes": {
            "diff3d": frames, "xcoords": x.astype(">f8"), "ycoords": y.astype(np.float32), "probeGuess": probes,
            "scan_index": rng.integers(0, 9, PATTERNS).astype(">i4"), **geometry,
        },
        "float16, whole positions, a channel of the probe": {
            "diff3d": frames.astype(np.float16), "xcoords": np.arange(PATTERNS) ** 2, "ycoords": y.astype(np.float16),
            "probeGuess": np.asfortranarray(probes[1][..., None]), "bad_pixels": bad.astype(bool),
        },
        "older name, real probe": {
            "diffraction": frames.astype(">f4"), "xcoords": x, "ycoords": y, **start,
            "probeGuess": probes[2].real.astype(np.float32), "measurement_domain": np.array("amplitude"),
        },
        "counts that are declared amplitude": {
            "diff3d": rng.integers(0, 4000, whole).astype(np.uint16), "xcoords": x, "ycoords": y, **start,
            "probeGuess": np.asfortranarray(probes[:2]), "measurement_domain": np.array("normalized_amplitude"),
        },
    }  # fmt: skip


def _of_scan(members: Mapping[str, Any]) -> Arrays:
    """Return what a scan file says, by the tables of the contract."""
    stored = np.asarray(members["diff3d" if "diff3d" in members else "diffraction"])
    at_once, frames = CHUNK_BYTES // stored[0].nbytes, stored.astype(np.float32)
    bad = np.asarray(members.get("bad_pixels", np.zeros((SIDE_PX, SIDE_PX)))).astype(bool)
    frames = np.where(bad, np.float32(0), frames)
    nominal = "xcoords_start" in members
    start = "_start" if nominal else ""
    probe = np.asarray(members["probeGuess"])
    modes = probe[None] if probe.ndim == 2 else probe[None, ..., 0] if probe.shape[-1] == 1 else probe
    found = {
        "patterns": frames,
        "firsts of chunks": np.arange(0, PATTERNS, at_once),
        "energy": np.square(frames, dtype=np.float64).sum(axis=(1, 2)),
        "positions": _pair(members, ""),
        "nominal positions are there": np.array(nominal),
        "nominal positions": _pair(members, start),
        "probe": modes.astype(np.complex64),
        "scan index": np.asarray(members.get("scan_index", np.zeros(PATTERNS))).astype(np.int64),
        "good pixels": ~bad,
    }
    wavelength, distance, pixel = (
        members.get(name, np.nan) for name in ("wavelength_m", "detector_distance_m", "detector_pixel_m")
    )
    return found | {"object pixel": np.array(wavelength * distance / (SIDE_PX * pixel))}


def _pair(members: Mapping[str, Any], suffix: str) -> np.ndarray:
    return np.stack([np.asarray(members[f"{letter}coords{suffix}"]).astype(np.float64) for letter in "xy"], axis=1)


def _scan_file(_: StepBench) -> Outcome:
    """Open scans that say the same in different ways, and read their patterns."""
    from ptycho_torch.scan import open_scan

    files, given = _scan_files(), {}
    with small_files() as root:
        for number, (name, members) in enumerate(files.items()):
            scan = open_scan(_write(root / f"{number}.npz", members, packed=number % 2 == 1))
            chunks = [
                (first, amplitude.copy(), energy.copy())
                for first, amplitude, energy in scan.stack.chunks(scan.stack.audit(), CHUNK_BYTES)
            ]
            good, nominal, probe = scan.stack.good_pixels, scan.nominal_positions_px, scan.probe
            pixel = scan.object_pixel_m
            given[name] = {
                "patterns": np.concatenate([amplitude for _, amplitude, _ in chunks]),
                "energy": np.concatenate([energy for _, _, energy in chunks]),
                "positions": scan.positions_px,
                "nominal positions are there": np.array(nominal is not None),
                "nominal positions": scan.positions_px if nominal is None else nominal,
                "probe": np.empty(0) if probe is None else probe,
                "scan index": scan.scan_index,
                "good pixels": np.ones((SIDE_PX, SIDE_PX), bool) if good is None else good,
                "object pixel": np.array(np.nan if pixel is None else pixel),
                "firsts of chunks": np.array([first for first, _, _ in chunks]),
            }
    right = {name: _of_scan(members) for name, members in files.items()}

    def mistakes() -> Iterator[Hypothesis]:
        changes: dict[str, Any] = {
            "x and y of nominal positions exchanged": lambda each: {"nominal positions": _exchanged(each)},
            "swapped x/y": lambda each: {
                "positions": each["positions"][:, ::-1],
                "nominal positions": each["nominal positions"][:, ::-1],
            },
            "corrected for nominal positions": lambda each: {"nominal positions": each["positions"]},
            "nominal for corrected positions": lambda each: {"positions": each["nominal positions"]},
            "positions of float32": lambda each: {
                key: each[key].astype(np.float32).astype(np.float64) for key in ("positions", "nominal positions")
            },
            "no nominal positions": lambda each: {
                "nominal positions are there": np.array(False),
                "nominal positions": each["positions"],
            },
            "conjugation": lambda each: {"probe": each["probe"].conj()},
            "modes in reverse order": lambda each: {"probe": each["probe"][::-1]},
            "detector pixels of the whole frame": lambda each: {"object pixel": each["object pixel"] * SIDE_PX},
        }
        masked = {what: members for what, members in files.items() if "bad_pixels" in members}
        for name, lost in (("mask inverted", 1), ("missing mask", 0)):
            wrong = {
                what: _of_scan({**each, "bad_pixels": (each["bad_pixels"] == 0) * lost})
                for what, each in masked.items()
            }
            yield Hypothesis(name, named(right | wrong))
        for name, change in changes.items():
            yield Hypothesis(name, named({what: each | change(each) for what, each in right.items()}))
        for part in ("patterns", "probe", "good pixels"):
            for name, change in spatial_mistakes(-2, -1):
                yield Hypothesis(name, named({what: each | {part: change(each[part])} for what, each in right.items()}))

    return Outcome(named(right), named(given), FLOAT64, mistakes)


def _exchanged(scan: Arrays) -> np.ndarray:
    return scan["nominal positions"][:, ::-1] if scan["nominal positions are there"] else scan["nominal positions"]


READING: tuple[Step, ...] = (
    Step("data.members", ("STEP-DATA", "NPZ-01"), _npz),
    Step("data.scan_file", ("STEP-DATA", "SCAN-02", "SCAN-06", "SCAN-07", "SCAN-08", "SCAN-10", "SCAN-11"), _scan_file),
)
