"""The raw scan contract: what holds is read as NumPy reads it; what is broken is named by file, key and clause."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.data.scan import (
    MAX_MODES,
    Examination,
    PatternAudit,
    Scan,
    examine,
    open_scan,
    read_probe,
)
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.folders import probe_paths, scan_paths
from tests.support.archives.zip_files import Entry, archive, deflated, npy_bytes, refused, stored, zeros_bomb

VALID_EXAMPLES, EXAMPLES_OF_EACH_DAMAGE, FLIP_EXAMPLES = 1000, 20, 500

Arrays = dict[str, Any]


def generated(count: int) -> settings:
    """The same examples in every run."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written again by each example."""
    return tmp_path_factory.mktemp("scans") / "scan.npz"


# ------------------------------------------------------------------------------------------------- drawn scans


@dataclasses.dataclass(repr=False)
class Drawn:
    """A scan to be written.

    Attributes:
        arrays: its members.
        compressed: whether they are deflated.
        good: (N, N), False where a pixel is bad.
        rng: for whoever damages it.
    """

    arrays: Arrays
    compressed: bool
    good: np.ndarray
    rng: np.random.Generator

    def __repr__(self) -> str:
        members = [f"{key}: {np.asarray(array).dtype} {np.shape(array)}" for key, array in self.arrays.items()]
        return f"<{', '.join(members)}; {'deflated' if self.compressed else 'stored'}>"

    @property
    def key(self) -> str:
        """Name of the patterns."""
        return "diff3d" if "diff3d" in self.arrays else "diffraction"

    @property
    def patterns(self) -> np.ndarray:
        """The patterns."""
        patterns: np.ndarray = self.arrays[self.key]
        return patterns

    @property
    def M(self) -> int:
        """Number of patterns."""
        return len(self.patterns)

    @property
    def N(self) -> int:
        """Side of a pattern."""
        return self.patterns.shape[1]

    def replace(self, **arrays: Any) -> Arrays:
        """The members, with some in place of others."""
        return self.arrays | arrays

    def with_patterns(self, patterns: np.ndarray) -> Arrays:
        """The members, with other patterns under all their names."""
        names = {"diff3d", "diffraction"} & set(self.arrays)
        return self.arrays | dict.fromkeys(names, patterns)

    def without(self, *keys: str) -> Arrays:
        """The members but for some."""
        return {key: array for key, array in self.arrays.items() if key not in keys}

    def good_pixel(self) -> tuple[int, int, int]:
        """Pattern, row and column of a pixel that counts."""
        row, column = self.rng.choice(np.argwhere(self.good))
        return int(self.rng.integers(self.M)), int(row), int(column)

    def with_value(self, value: float, dtype: type = np.float32) -> Arrays:
        """The members, with this value in one good pixel."""
        patterns = self.patterns.astype(dtype)
        patterns[self.good_pixel()] = value
        return self.with_patterns(patterns)

    def bytes(self, arrays: Arrays | None = None) -> bytes:
        """The file."""
        file = io.BytesIO()
        with warnings.catch_warnings():
            # Long names and objects are what is to be written.
            warnings.simplefilter("ignore")
            (np.savez_compressed if self.compressed else np.savez)(file, **(self.arrays if arrays is None else arrays))
        return file.getvalue()


def draw_patterns(kind: str, M: int, N: int, rng: np.random.Generator) -> np.ndarray:
    shape = (M, N, N)
    if kind == "own index":
        return np.broadcast_to(1.0 + np.arange(M)[:, None, None], shape)
    if kind == "few whole numbers":
        return rng.integers(0, 7, shape).astype(float)
    if kind == "roots of counts":
        return np.sqrt(rng.poisson(30, shape))
    return rng.gamma(2, 3, shape)


def draw_positions(kind: str, M: int, rng: np.random.Generator) -> np.ndarray:
    if kind.startswith("one"):
        return np.full(M, rng.normal(0, 1e3)).astype(kind.split()[1])
    if kind.startswith("few"):
        return rng.integers(0, 3, M).astype(kind.split()[1])
    return rng.uniform(0, 120, M).astype(kind)


@st.composite
def scans(draw: st.DrawFn, *, least_side: int = 2, declared: bool | None = None) -> Drawn:
    """Draw a scan that holds every clause.

    Args:
        draw: of Hypothesis.
        least_side: least N.
        declared: whether the file declares its domain; either if None.
    """
    M, N = draw(st.integers(1, 12)), draw(st.integers(least_side, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = draw(st.sets(st.sampled_from(OPTIONAL)))
    if declared is not None:
        some = (some - {"measurement_domain"}) | ({"measurement_domain"} if declared else set())
    dtype = np.dtype(draw(st.sampled_from(["<f4", "<f2", "<f8", ">f4", ">f2", ">f8", "g"])))
    scale = 10.0 ** draw(st.integers(-3, 3) if dtype.itemsize == 2 else st.integers(-17, 15))
    kinds = ["gamma", "own index", "few whole numbers", "roots of counts"]
    kind = draw(st.sampled_from([*kinds, "counts"] if "measurement_domain" in some else kinds))
    if kind == "counts":
        patterns = rng.poisson(1000, (M, N, N)).astype(draw(st.sampled_from([dtype, "<u2", ">i4", "u8"])))
    else:
        patterns = np.array(draw_patterns(kind, M, N, rng)) * (scale if kind in kinds[::3] else 1)
        patterns = np.minimum(patterns, 6e4 if dtype.itemsize == 2 else 9e16).astype(dtype)
    if "dark patterns" in some:
        patterns[rng.random(M) < 0.5] = 0
    good = np.ones((N, N), bool)
    if "bad_pixels" in some:
        good = rng.random((N, N)) < 0.6
        good[tuple(rng.integers(N, size=2))] = True
    patterns[0, *np.argwhere(good)[0]] = 3
    if patterns.dtype.kind == "f":
        patterns[:, ~good] = rng.choice([np.nan, -1, np.inf, 0, 5], patterns[:, ~good].shape)
    order = draw(st.sampled_from("CF"))
    names = draw(st.sampled_from([("diff3d",), ("diffraction",), ("diffraction", "diff3d")]))
    coordinate = st.sampled_from(["f8", "f4", ">f8", "f2", "i4", ">u2", "one f8", "one i8", "few f4", "few u1", "g"])
    arrays: Arrays = dict.fromkeys(names, np.asarray(patterns, order=order))  # type: ignore[call-overload]
    for key in ("xcoords", "ycoords", *(("xcoords_start", "ycoords_start") if "start" in some else ())):
        with np.errstate(invalid="ignore"):
            arrays[key] = draw_positions(draw(coordinate), M, rng)
    if "probeGuess" in some:
        shape = draw(st.sampled_from([(N, N), (N, N, 1), (1, N, N), (3, N, N), (N, N, N)]))
        probe = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if draw(st.booleans()) else 0)
        narrow = {"c": ["c16", "c8", ">c8"], "f": ["f8", "f4", ">f2"]}[probe.dtype.kind]
        arrays["probeGuess"] = np.asarray(probe.astype(draw(st.sampled_from(narrow))), order=order)  # type: ignore[call-overload]
    if "bad_pixels" in some:
        arrays["bad_pixels"] = (~good).astype(draw(st.sampled_from(["?", "u1", ">i8"])))
    if "objectGuess" in some:
        arrays["objectGuess"] = rng.random((N + 5, 2 * N)).astype(draw(st.sampled_from(["c8", "f4"])))
    if "scan_index" in some:
        arrays["scan_index"] = rng.integers(0, 4, M).astype(draw(st.sampled_from(["i8", "u1", ">i2", "u8"])))
    if "measurement_domain" in some:
        arrays["measurement_domain"] = draw(st.sampled_from(["amplitude", "normalized_amplitude"]))
    if "geometry" in some:
        for key in sorted(draw(st.sets(st.sampled_from(GEOMETRY), min_size=1))):
            arrays[key] = draw(st.sampled_from([np.float32(1.2e-10), np.float64(3.5), np.int64(2), np.uint8(1)]))
    if "strangers" in some:
        arrays |= {
            "Y": rng.random((2, 3)),
            "label": np.array("a label"),
            "norm_Y_I": np.float32(1),
            "empty": np.zeros(0),
        }
    if "_metadata" in some:
        arrays["_metadata"] = np.array({"any": object}, object)
    arrays = dict(draw(st.permutations(list(arrays.items()))))
    return Drawn(arrays, draw(st.booleans()), good, rng)


GEOMETRY = ("wavelength_m", "detector_distance_m", "detector_pixel_m")
OPTIONAL = (
    "start",
    "probeGuess",
    "bad_pixels",
    "objectGuess",
    "scan_index",
    "measurement_domain",
    "geometry",
    "strangers",
    "_metadata",
    "dark patterns",
)


def read_all(path: Path, chunk_bytes: int = 2**20) -> tuple[Scan, np.ndarray, np.ndarray]:
    """Open a scan and return it with all patterns and energies."""
    scan = open_scan(path)
    numbers, amplitudes, energies = [], [], []
    for first, amplitude, energy in scan.stack.chunks(scan.stack.audit(), chunk_bytes):
        numbers.append(first)
        amplitudes.append(amplitude.copy())
        energies.append(energy)
    lengths = [len(amplitude) for amplitude in amplitudes]
    assert numbers == [sum(lengths[:place]) for place in range(len(lengths))]
    return scan, np.concatenate(amplitudes), np.concatenate(energies)


def theirs(path: Path) -> dict[str, np.ndarray]:
    """Every member that NumPy reads without unpickling."""
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            with contextlib.suppress(ValueError):
                arrays[key] = file[key]
    return arrays


def assert_equals_numpy(scan: Scan, amplitude: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Hold a scan against its members as NumPy reads them, after the conversions that the contract names."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = arrays["diff3d" if "diff3d" in arrays else "diffraction"].astype(np.float32)
    if "bad_pixels" in arrays:
        expected[:, arrays["bad_pixels"].astype(bool)] = 0
    np.testing.assert_array_equal(amplitude, expected)
    assert amplitude.dtype == np.float32
    assert (scan.stack.count, scan.stack.frame_px) == expected.shape[:2]
    xy = [arrays[key].astype(np.float64) for key in ("xcoords", "ycoords")]
    np.testing.assert_array_equal(scan.positions_px, np.stack(xy, axis=1))
    if "xcoords_start" in arrays:
        xy = [arrays[key].astype(np.float64) for key in ("xcoords_start", "ycoords_start")]
        np.testing.assert_array_equal(scan.nominal_positions_px, np.stack(xy, axis=1))
    else:
        assert scan.nominal_positions_px is None
    if "probeGuess" in arrays:
        modes = arrays["probeGuess"].astype(np.complex64)
        modes = modes[:, :, 0] if modes.ndim == 3 and modes.shape[1:] == (modes.shape[0], 1) else modes
        np.testing.assert_array_equal(scan.probe, modes[None] if modes.ndim == 2 else modes)
        assert scan.probe is not None
        assert scan.probe.dtype == np.complex64
    else:
        assert scan.probe is None
    np.testing.assert_array_equal(scan.scan_index, arrays.get("scan_index", np.zeros(len(expected))))
    for key in GEOMETRY:
        assert getattr(scan, key) == (float(arrays[key]) if key in arrays else None)


@given(drawn=scans(), chunk_bytes=st.sampled_from([1, 1000, 2**20]))
@generated(VALID_EXAMPLES)
def test_a_scan_that_holds_every_clause_is_read_as_numpy_reads_it(path: Path, drawn: Drawn, chunk_bytes: int) -> None:
    path.write_bytes(drawn.bytes())
    scan, amplitude, energies = read_all(path, chunk_bytes)
    assert_equals_numpy(scan, amplitude, theirs(path))
    counts = amplitude.astype(np.float64) ** 2
    np.testing.assert_allclose(energies, counts.sum(axis=(1, 2)), rtol=1e-7)

    examination = examine(path)
    assert examination.passed, broken(examination)
    assert [finding.state for finding in examination.findings if finding.state in ("broken", "not judged")] == []
    # Squares of float32 numbers are rounded to float32; those below 1e-38 lose digits.
    np.testing.assert_allclose(examination.mean_counts, counts.mean(axis=0), rtol=1e-6, atol=1e-36)
    assert examination.mean_energy == pytest.approx(energies.mean(), rel=1e-12)
    notices = {finding.clause: finding.text for finding in examination.findings if finding.state == "notice"}
    assert ("SCAN-01" in notices) == ("diffraction" in drawn.arrays)
    assert ("SCAN-13" in notices) == ("Y" in drawn.arrays)
    assert ("NPZ-02" in notices) == ("_metadata" in drawn.arrays)
    assert ("SCAN-08" in notices) == ("probeGuess" not in drawn.arrays)
    dark = int((energies == 0).sum())
    assert notices.get("SCAN-04", "0 of").startswith(f"{dark} of")


# ------------------------------------------------------------------------------------------------- damages


def broken(examination: Examination) -> dict[str, str]:
    return {finding.clause: finding.text for finding in examination.findings if finding.state == "broken"}


@dataclasses.dataclass(frozen=True)
class Damage:
    """One way to break a scan.

    Attributes:
        clause: that is broken then.
        key: the member that the error names; None: whichever holds the patterns; "": the file as a whole.
        make: the members or the bytes of the broken file.
        words: that the message must hold.
        scans: what is damaged.
    """

    clause: str
    key: str | None
    make: Callable[[Drawn], Arrays | bytes]
    words: str = ""
    scans: st.SearchStrategy[Drawn] = dataclasses.field(default_factory=scans)


def place(drawn: Drawn, key: str, value: float) -> Arrays:
    """A position that is not finite."""
    values = np.asarray(drawn.arrays.get(key, drawn.arrays["xcoords"])).astype(float)
    values[drawn.rng.integers(drawn.M)] = value
    partner = {"xcoords_start": "ycoords_start", "ycoords_start": "xcoords_start"}.get(key, key)
    return drawn.replace(**{partner: drawn.arrays.get(partner, drawn.arrays["ycoords"]), key: values})


def other_length(drawn: Drawn) -> int:
    """A length that is neither that of the patterns nor that of a frame, by which the older order is told."""
    lengths = [n for n in (0, drawn.M - 1, drawn.M + 1, 2 * drawn.M, 40) if n not in (drawn.M, drawn.N)]
    return int(drawn.rng.choice(lengths))


def older_order(drawn: Drawn) -> Arrays:
    """Patterns along the last axis; not as many as a frame has pixels, by which nothing could be told."""
    M = drawn.M - (drawn.M == drawn.N)
    lists = {"xcoords", "ycoords", "xcoords_start", "ycoords_start", "scan_index"} & set(drawn.arrays)
    arrays = drawn.with_patterns(drawn.patterns[:M].transpose(1, 2, 0))
    return arrays | {key: drawn.arrays[key][:M] for key in lists}


def off_centre(drawn: Drawn) -> Arrays:
    """A probe that is zero in the disk of radius N/4, and nowhere else."""
    distance = np.hypot(*(np.indices((drawn.N, drawn.N)) - (drawn.N - 1) / 2))
    return drawn.replace(probeGuess=(distance >= drawn.N // 4).astype(np.complex64))


def counts(drawn: Drawn) -> Arrays:
    """Photon counts as floating-point numbers, with nine different ones in a pattern."""
    patterns = drawn.rng.poisson(50, (drawn.M, drawn.N, drawn.N)).astype(drawn.rng.choice(["f2", "f4", "f8"]))
    patterns[drawn.rng.integers(drawn.M)].flat[:9] = np.arange(9)
    return {key: array for key, array in drawn.with_patterns(patterns).items() if key != "bad_pixels"}


def with_member(drawn: Drawn, name: str, entry: Entry) -> bytes:
    """The file with one member laid down by hand."""
    pack = deflated if drawn.compressed else stored
    kept = {key: np.asarray(array) for key, array in drawn.without(name).items()}
    return archive([entry, *(pack(key, npy_bytes(array)) for key, array in kept.items() if array.dtype != object)])


@functools.cache
def bomb(name: str) -> Entry:
    return zeros_bomb(name, (300, 512, 512))


def flip_content(drawn: Drawn) -> bytes:
    """One byte of the stored patterns changed."""
    content = npy_bytes(drawn.patterns)
    damaged = bytearray(content)
    damaged[-int(drawn.rng.integers(1, drawn.patterns.nbytes + 1))] ^= 1 << int(drawn.rng.integers(8))
    entry = dataclasses.replace(stored(drawn.key, content), packed=bytes(damaged))
    return with_member(
        dataclasses.replace(drawn, arrays=drawn.without("diffraction" if drawn.key == "diff3d" else "")),
        drawn.key,
        entry,
    )


def cut(drawn: Drawn) -> bytes:
    content = drawn.bytes()
    return content[: drawn.rng.integers(len(content))]


def twice(drawn: Drawn) -> bytes:
    entry = stored("xcoords", npy_bytes(drawn.arrays["xcoords"]))
    return with_member(drawn, "ycoords", entry)


def both_names(drawn: Drawn) -> Arrays:
    other = drawn.patterns.copy()
    other[drawn.good_pixel()] += 1
    pair = [drawn.patterns, other] if drawn.rng.random() < 0.5 else [drawn.patterns, drawn.patterns[:, :, ::-1] + 1]
    return drawn.replace(diff3d=pair[0], diffraction=pair[1])


UNDECLARED = scans(declared=False)
NO_TEXT = np.frombuffer(b"\xff\xff\xff\xff" * 9, "<U9").reshape(())


def only(patterns: Callable[[Drawn], np.ndarray]) -> Callable[[Drawn], Arrays]:
    return lambda drawn: drawn.with_patterns(patterns(drawn))


def member(key: str, make: Callable[[Drawn], Any]) -> Callable[[Drawn], Arrays]:
    return lambda drawn: drawn.replace(**{key: make(drawn)})


DAMAGES = {
    # The archive.
    "empty file": Damage("NPZ-01", "", lambda d: b""),
    "text": Damage("NPZ-01", "", lambda d: b"diff3d,xcoords,ycoords\n" * 10),
    "one plain NPY array": Damage("NPZ-01", "", lambda d: npy_bytes(np.array(d.patterns))),
    "cut at any byte": Damage("NPZ-01", "", cut),
    "a changed byte of the patterns": Damage("NPZ-01", None, flip_content),
    "one key twice": Damage("NPZ-01", "", twice, "twice"),
    "a bomb as the patterns": Damage("NPZ-03", None, lambda d: with_member(d, d.key, bomb(d.key))),
    "a bomb as the object": Damage(
        "NPZ-03", "objectGuess", lambda d: with_member(d, "objectGuess", bomb("objectGuess"))
    ),
    "patterns as objects": Damage("NPZ-02", None, only(lambda d: d.patterns.astype(object))),
    "positions as objects": Damage(
        "NPZ-02", "ycoords", member("ycoords", lambda d: d.arrays["ycoords"].astype(object))
    ),
    "a stranger of objects": Damage("NPZ-02", "Y", member("Y", lambda d: np.array([{}, None], object))),
    "a wavelength of None": Damage("NPZ-02", "wavelength_m", member("wavelength_m", lambda d: None)),
    # The patterns.
    "no patterns": Damage("SCAN-01", "diff3d", lambda d: d.without("diff3d", "diffraction"), "present: "),
    "both names, unlike": Damage("SCAN-01", "diff3d", both_names, "'diff3d' and 'diffraction'"),
    "flags": Damage("SCAN-03", None, only(lambda d: d.patterns > 1)),
    "complex patterns": Damage("SCAN-03", None, only(lambda d: d.patterns.astype(np.complex64))),
    "text for patterns": Damage("SCAN-03", None, only(lambda d: np.full(d.patterns.shape, "1.5"))),
    "dates": Damage("SCAN-03", None, only(lambda d: np.zeros(d.patterns.shape, "M8[s]"))),
    "structured patterns": Damage("SCAN-03", None, only(lambda d: np.zeros(d.patterns.shape, [("amplitude", "f4")]))),
    "whole-number type": Damage(
        "SCAN-05",
        None,
        only(lambda d: np.ones(d.patterns.shape, d.rng.choice(["u1", "<i4", ">u2", "i8"]))),
        scans=UNDECLARED,
    ),
    "counts": Damage("SCAN-05", None, counts, "whole numbers", scans(least_side=3, declared=False)),
    "older order of axes": Damage("SCAN-02", None, older_order, "--axes hwm"),
    "trailing singleton": Damage("SCAN-02", None, only(lambda d: d.patterns[..., None]), "--axes mhw1"),
    "oblong frames": Damage("SCAN-02", None, only(lambda d: d.patterns[:, :, 1:])),
    "one frame without a stack": Damage("SCAN-02", None, only(lambda d: d.patterns[0])),
    "one number": Damage("SCAN-02", None, only(lambda d: d.patterns[0, 0, 0])),
    "a stack of stacks": Damage("SCAN-02", None, only(lambda d: d.patterns[None])),
    "frames of one pixel": Damage("SCAN-02", None, only(lambda d: d.patterns[:, :1, :1])),
    "frames without pixels": Damage("SCAN-02", None, only(lambda d: d.patterns[:, :0, :0])),
    "empty stack": Damage("SCAN-02", None, only(lambda d: d.patterns[:0])),
    "empty scan": Damage("SCAN-02", None, lambda d: {k: a[:0] if np.ndim(a) else a for k, a in d.arrays.items()}),
    "NaN": Damage("SCAN-04", None, lambda d: d.with_value(np.nan), "nan at row"),
    "infinity": Damage("SCAN-04", None, lambda d: d.with_value(np.inf), "inf at row"),
    "minus infinity": Damage("SCAN-04", None, lambda d: d.with_value(-np.inf), "-inf at row"),
    "negative amplitude": Damage("SCAN-04", None, lambda d: d.with_value(-1e-3), "-0.001 at row"),
    "amplitude above 1e17": Damage("SCAN-04", None, lambda d: d.with_value(1.001e17), "1.001e+17 at row"),
    "beyond float32": Damage("SCAN-04", None, lambda d: d.with_value(1e300, np.float64), "inf at row"),
    "all dark": Damage(
        "SCAN-04", None, only(lambda d: np.where(d.good, 0, d.patterns).astype(np.float32)), "at most 0"
    ),
    "too faint": Damage("SCAN-04", None, only(lambda d: np.full(d.patterns.shape, 9e-19)), "at most 9e-19"),
    "declared intensity": Damage(
        "SCAN-05",
        None,
        member("measurement_domain", lambda d: d.rng.choice(["intensity", "count_intensity"])),
        "intensity",
    ),
    "another domain": Damage(
        "SCAN-05", "measurement_domain", member("measurement_domain", lambda d: "Amplitude"), "'Amplitude'"
    ),
    "a list of domains": Damage("SCAN-05", "measurement_domain", member("measurement_domain", lambda d: ["amplitude"])),
    "a domain of bytes": Damage("SCAN-05", "measurement_domain", member("measurement_domain", lambda d: b"amplitude")),
    "a number as the domain": Damage("SCAN-05", "measurement_domain", member("measurement_domain", lambda d: 1)),
    "a domain of a novel's length": Damage(
        "SCAN-05", "measurement_domain", member("measurement_domain", lambda d: "a" * 9000)
    ),
    "a domain of several lines": Damage(
        "SCAN-05", "measurement_domain", member("measurement_domain", lambda d: "a\nb\x1b[2J")
    ),
    "a domain that is no Unicode": Damage(
        "SCAN-05", "measurement_domain", member("measurement_domain", lambda d: NO_TEXT)
    ),
    # The positions.
    "no columns": Damage("SCAN-06", "xcoords", lambda d: d.without("xcoords"), "present: "),
    "no rows": Damage("SCAN-06", "ycoords", lambda d: d.without("ycoords"), "present: "),
    "other number of columns": Damage(
        "SCAN-06", "xcoords", member("xcoords", lambda d: np.arange(float(other_length(d))))
    ),
    "other number of rows": Damage("SCAN-06", "ycoords", member("ycoords", lambda d: np.arange(other_length(d)))),
    "positions as a table": Damage("SCAN-06", "ycoords", member("ycoords", lambda d: np.ones((d.M, 1)))),
    "one position for all": Damage("SCAN-06", "ycoords", member("ycoords", lambda d: 3.5)),
    "position NaN": Damage("SCAN-06", "xcoords", lambda d: place(d, "xcoords", np.nan), "nan at pattern"),
    "position infinite": Damage("SCAN-06", "ycoords", lambda d: place(d, "ycoords", -np.inf), "-inf at pattern"),
    "position beyond float64": Damage(
        "SCAN-06", "ycoords", member("ycoords", lambda d: np.full(d.M, np.longdouble("1e4000"))), "inf at pattern"
    ),
    "complex positions": Damage("SCAN-06", "xcoords", member("xcoords", lambda d: np.ones(d.M, complex))),
    "positions as text": Damage("SCAN-06", "xcoords", member("xcoords", lambda d: np.full(d.M, "1.5"))),
    "positions as flags": Damage("SCAN-06", "xcoords", member("xcoords", lambda d: np.ones(d.M, bool))),
    "nominal columns alone": Damage(
        "SCAN-07", "ycoords_start", lambda d: d.without("ycoords_start") | {"xcoords_start": np.ones(d.M)}
    ),
    "nominal rows alone": Damage(
        "SCAN-07", "xcoords_start", lambda d: d.without("xcoords_start") | {"ycoords_start": np.ones(d.M)}
    ),
    "nominal NaN": Damage("SCAN-07", "ycoords_start", lambda d: place(d, "ycoords_start", np.nan), "nan at pattern"),
    "other number of nominal": Damage(
        "SCAN-07", "xcoords_start", lambda d: d.replace(xcoords_start=np.ones(d.M + 1), ycoords_start=np.ones(d.M))
    ),
    # The probe.
    "probe that is zero at its centre": Damage("SCAN-08", "probeGuess", off_centre, "centre", scans(least_side=4)),
    "probe of zeros": Damage("SCAN-08", "probeGuess", member("probeGuess", lambda d: np.zeros((2, d.N, d.N), "c8"))),
    "probe of another side": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.ones((d.N + 1,) * 2, "c8"))
    ),
    "probe without modes": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.ones((0, d.N, d.N), "c8"))
    ),
    "probe with modes last": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.ones((d.N, d.N, 2), "c8")), scans=scans(least_side=3)
    ),
    "too many modes": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.ones((MAX_MODES + 1, d.N, d.N), "c8")), "65 modes"
    ),
    "probe with a NaN": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.where(np.eye(d.N) == 1, np.nan, 1 + 1j)), "NaN"
    ),
    "probe beyond float32": Damage(
        "SCAN-08", "probeGuess", member("probeGuess", lambda d: np.full((d.N, d.N), 1e200j))
    ),
    "probe of whole numbers": Damage("SCAN-08", "probeGuess", member("probeGuess", lambda d: np.ones((d.N, d.N), int))),
    # What else may be there.
    "object of one axis": Damage("SCAN-09", "objectGuess", member("objectGuess", lambda d: np.ones(9, "c8"))),
    "object of three axes": Damage("SCAN-09", "objectGuess", member("objectGuess", lambda d: np.ones((1, 9, 9), "c8"))),
    "object without rows": Damage("SCAN-09", "objectGuess", member("objectGuess", lambda d: np.ones((0, 9), "c8"))),
    "object of text": Damage("SCAN-09", "objectGuess", member("objectGuess", lambda d: np.full((2, 2), "o"))),
    "scan index of fractions": Damage("SCAN-10", "scan_index", member("scan_index", lambda d: np.ones(d.M))),
    "scan index for others": Damage("SCAN-10", "scan_index", member("scan_index", lambda d: np.ones(d.M + 1, int))),
    "scan index beyond int64": Damage(
        "SCAN-10", "scan_index", member("scan_index", lambda d: np.full(d.M, 2**63, "u8"))
    ),
    "all pixels bad": Damage("SCAN-11", "bad_pixels", member("bad_pixels", lambda d: np.ones((d.N, d.N), bool))),
    "bad pixels of another frame": Damage(
        "SCAN-11", "bad_pixels", member("bad_pixels", lambda d: np.zeros((d.N, d.N + 1), "u1"))
    ),
    "bad pixels of each pattern": Damage(
        "SCAN-11", "bad_pixels", member("bad_pixels", lambda d: np.zeros((d.M, d.N, d.N), "u1"))
    ),
    "bad pixels by number": Damage(
        "SCAN-11", "bad_pixels", member("bad_pixels", lambda d: 2 * np.eye(d.N, dtype=int)), "0 and 1"
    ),
    "bad pixels below 0": Damage(
        "SCAN-11", "bad_pixels", member("bad_pixels", lambda d: -np.eye(d.N, dtype=int)), "0 and 1"
    ),
    "bad pixels as fractions": Damage("SCAN-11", "bad_pixels", member("bad_pixels", lambda d: np.zeros((d.N, d.N)))),
    **{
        f"{key} of {number}": Damage("SCAN-12", key, member(key, lambda d, number=number: number))
        for key in GEOMETRY
        for number in (0, -1.5e-10, np.nan, np.inf)
    },
    "wavelength of each pattern": Damage("SCAN-12", "wavelength_m", member("wavelength_m", lambda d: np.ones(d.M))),
    "wavelength in words": Damage("SCAN-12", "wavelength_m", member("wavelength_m", lambda d: "1.5e-10")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_scan_is_refused_by_file_key_and_clause(path: Path, name: str) -> None:
    damage = DAMAGES[name]

    @given(drawn=damage.scans)
    @generated(EXAMPLES_OF_EACH_DAMAGE)
    def check(drawn: Drawn) -> None:
        keys = {"diff3d", "diffraction"} if damage.key is None else {damage.key}
        made = damage.make(drawn)
        path.write_bytes(made if isinstance(made, bytes) else drawn.bytes(made))
        error = refused(damage.clause, path, lambda: read_all(path))
        assert (error.key or "") in keys
        assert damage.words in str(error)
        examination = examine(path)
        assert not examination.passed
        assert examination.scan is None
        assert damage.clause in broken(examination), broken(examination)
        assert all(finding.error is not None for finding in examination.findings if finding.state == "broken")

    check()


@given(
    drawn=scans(),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6),
)
@generated(FLIP_EXAMPLES)
def test_flipped_bytes_are_noticed_or_leave_the_arrays_as_numpy_reads_them(
    path: Path, drawn: Drawn, places: list[tuple[float, int]]
) -> None:
    content = bytearray(drawn.bytes())
    for place_, change in places:
        content[int(place_ * len(content))] ^= change
    path.write_bytes(content)
    examination = examine(path)  # Nothing is raised.
    error, read = None, None
    try:
        read = read_all(path)
    except DataContractError as err:
        error = err
    assert examination.passed == (error is None)
    if error is not None:
        assert error.clause in broken(examination)
        assert error.path == path
        assert all((error.found, error.expected, error.remedy))
        assert str(error).isprintable()
    if read is None:
        return
    # numpy.load may refuse the file for members that are not read here; those that are must be the same.
    scan, amplitude, _ = read
    names = load_contract().files["scan"].names - {"objectGuess", "diff3d", "diffraction"} | {scan.stack.key}
    arrays = {}
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.removesuffix(".npy") in names:
                with file.open(name) as opened:
                    array = npy.read_array(opened, allow_pickle=False)  # type: ignore[no-untyped-call]
                arrays[name.removesuffix(".npy")] = array
    assert_equals_numpy(scan, amplitude, arrays)


# ------------------------------------------------------------------------------------------------- what users meet


def small_scan(M: int = 5, N: int = 8) -> Arrays:
    rng = np.random.default_rng(1)
    return {
        "diff3d": rng.gamma(2, 3, (M, N, N)).astype(np.float32),
        "xcoords": rng.uniform(0, 60, M),
        "ycoords": rng.uniform(0, 60, M),
        "probeGuess": np.ones((N, N), np.complex64),
    }


def test_the_older_order_of_axes_is_told_with_the_command_that_turns_it(tmp_path: Path) -> None:
    path = tmp_path / "star.npz"
    np.savez(path, **(small_scan() | {"diff3d": small_scan()["diff3d"].transpose(1, 2, 0)}))
    with pytest.raises(DataContractError) as caught:
        open_scan(path)
    assert str(caught.value) == (
        f"{path}: key 'diff3d': found shape (8, 8, 5) for 5 positions: the older order, with patterns along the last "
        "axis; expected (patterns, N, N) with at least one pattern and square frames (clause SCAN-02). "
        f"Turn it: `ptycho-torch convert-scan {path} -o repaired/star.npz --axes hwm`"
    )


def test_counts_in_place_of_amplitude_are_told_with_the_command_that_converts_them(tmp_path: Path) -> None:
    path = tmp_path / "star.npz"
    counts = np.random.default_rng(2).poisson(40, (5, 8, 8)).astype(np.float32)
    np.savez(path, **(small_scan() | {"diff3d": counts}))
    with pytest.raises(DataContractError) as caught:
        read_all(path)
    assert str(caught.value) == (
        f"{path}: key 'diff3d': found only whole numbers, up to {counts.max():.0f}, as counts are; "
        f"expected amplitude (√counts) (clause SCAN-05). Take the root: `ptycho-torch convert-scan {path} -o "
        "repaired/star.npz --from-intensity`; if it is amplitude, say so: `ptycho-torch convert-scan "
        f"{path} -o repaired/star.npz --declare-amplitude`"
    )


def test_missing_positions_are_told_with_the_keys_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "star.npz"
    arrays = small_scan()
    arrays["y_coords"] = arrays.pop("ycoords")
    np.savez(path, **arrays)
    with pytest.raises(DataContractError) as caught:
        open_scan(path)
    assert str(caught.value) == (
        f"{path}: key 'ycoords': found no such member; present: diff3d, xcoords, probeGuess, y_coords; "
        "expected finite numbers, one for each pattern (clause SCAN-06). "
        f"If 'y_coords' is 'ycoords', say so: `ptycho-torch convert-scan {path} -o repaired/star.npz --rename "
        "y_coords=ycoords`"
    )


def test_every_broken_clause_is_reported_and_what_could_not_be_judged_is_not_called_sound(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    arrays = small_scan()
    arrays["diff3d"][3, 2, 1] = -4
    np.savez(path, **(arrays | {"xcoords": np.full(5, np.nan), "wavelength_m": 0.0, "scan_index": np.arange(7)}))
    examination = examine(path)
    assert set(broken(examination)) == {"SCAN-04", "SCAN-06", "SCAN-10", "SCAN-12"}
    assert "-4 at row 2, column 1 of pattern 3" in broken(examination)["SCAN-04"]

    np.savez(path, **(arrays | {"diff3d": arrays["diff3d"][0]}))
    states = {finding.clause: finding.state for finding in examine(path).findings}
    assert (states["SCAN-02"], states["SCAN-04"], states["SCAN-06"]) == ("broken", "not judged", "not judged")

    states = {finding.clause: finding.state for finding in examine(tmp_path / "missing.npz").findings}
    assert states.pop("NPZ-01") == "broken"
    assert set(states.values()) == {"not judged"}
    assert list(states) == [f"NPZ-0{n}" for n in (2, 3)] + [f"SCAN-{n:02}" for n in range(1, 14)]


def test_the_same_break_is_reported_once_and_nothing_that_follows_from_a_member_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    entries = {key: stored(key, npy_bytes(array)) for key, array in small_scan().items()}
    domain = stored("measurement_domain", npy_bytes(np.array("amplitude")))
    entries["measurement_domain"] = dataclasses.replace(domain, crc32=domain.crc32 ^ 1)
    path = tmp_path / "scan.npz"
    path.write_bytes(archive(list(entries.values())))
    examination = examine(path)
    assert set(broken(examination)) == {"NPZ-01"}
    assert "measurement_domain" in broken(examination)["NPZ-01"]


def test_metadata_is_never_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class LeavesTrace:
        def __reduce__(self) -> tuple[object, ...]:
            return trace.mkdir, ()

    path = tmp_path / "scan.npz"
    np.savez(path, **small_scan(), _metadata=np.array(LeavesTrace(), object))
    assert examine(path).passed
    assert not trace.exists()
    with np.load(path, allow_pickle=True) as opened:
        opened["_metadata"]
    assert trace.exists()


def test_an_archive_of_very_many_members_is_opened_without_reading_each_directory_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.npz"
    np.savez(path, **small_scan(), **{f"other {number}": number for number in range(300)})
    opened = []
    original = zipfile.ZipFile.__init__

    def count(self: zipfile.ZipFile, *args: Any, **kwargs: Any) -> None:
        opened.append(args)
        original(self, *args, **kwargs)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", count)
    examination = examine(path)
    assert len(opened) == 1
    (notice,) = [finding.text for finding in examination.findings if finding.clause == "SCAN-13"]
    assert notice.endswith("other 11, …")


def test_the_object_pixel_is_wavelength_times_distance_over_the_detectors_side(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    geometry = {"wavelength_m": 1.2e-10, "detector_distance_m": 2.0, "detector_pixel_m": 75e-6}
    np.savez(path, **small_scan(), **geometry)
    assert open_scan(path).object_pixel_m == pytest.approx(1.2e-10 * 2 / (8 * 75e-6), rel=1e-15)
    for key in geometry:
        np.savez(path, **small_scan(), **{other: value for other, value in geometry.items() if other != key})
        assert open_scan(path).object_pixel_m is None


# ------------------------------------------------------------------------------------------------- values of patterns


def audited(patterns: np.ndarray, chunk: int = 3, **fields: Any) -> PatternAudit:
    """Run all patterns through an audit, some at once."""
    audit = PatternAudit(Path("scan.npz"), "diff3d", **fields)
    for first in range(0, len(patterns), chunk):
        audit.update(first, np.ascontiguousarray(patterns[first : first + chunk], np.float32))
    audit.finish()
    return audit


def poisson(mean: float, shape: tuple[int, ...] = (6, 32, 32)) -> np.ndarray:
    return np.random.default_rng(3).poisson(mean, shape).astype(np.float32)


NO_COUNTS = {
    "constant patterns that hold their own index": np.ones((100, 8, 8)) * np.arange(100)[:, None, None],
    "roots of counts": np.sqrt(poisson(30)),
    "counts but for one value": np.where(np.arange(6 * 32 * 32).reshape(6, 32, 32) == 5000, 0.5, poisson(30)),
    "seven different whole numbers": np.arange(7.0).repeat(8)[None, :49].reshape(1, 7, 7),
    "amplitudes so large that every float32 is whole": np.sqrt(poisson(30)) * 2**40,
    "ones": np.ones((3, 4, 4)),
}
COUNTS = {
    "a bright scan": poisson(1000),
    "nine values in the dark": np.pad(np.arange(9.0).reshape(1, 3, 3), [(0, 0), (9, 9), (9, 9)]),
    "behind a saturated pattern": np.concatenate([np.full((1, 32, 32), 65535), poisson(30)]),
    "saturated pixels beyond what float32 resolves": np.where(poisson(30) > 40, 2.0**24, poisson(30)),
    "behind dark patterns": np.concatenate([np.zeros((7, 32, 32)), poisson(30)]),
    "eight different whole numbers": np.arange(8.0).repeat(8).reshape(1, 8, 8),
}


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("name", NO_COUNTS)
def test_whole_numbers_that_cannot_be_counts_are_accepted(name: str, chunk: int) -> None:
    assert audited(NO_COUNTS[name], chunk).count == len(NO_COUNTS[name])


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_refused_wherever_they_lie_and_however_they_are_read(name: str, chunk: int) -> None:
    with pytest.raises(DataContractError, match="only whole numbers") as caught:
        audited(COUNTS[name], chunk)
    assert caught.value.clause == "SCAN-05"


@pytest.mark.parametrize("name", COUNTS)
def test_whole_numbers_that_are_declared_amplitude_are_accepted(name: str) -> None:
    assert audited(COUNTS[name], declared_domain="amplitude").largest == COUNTS[name].max()


def test_half_precision_is_taken_for_counts_only_where_it_could_hold_fractions(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    # From 1024 on every number of half precision is whole.
    bright = (2000 * (1 + np.random.default_rng(4).random((5, 8, 8)))).astype(np.float16)
    np.savez(path, **(small_scan() | {"diff3d": bright}))
    assert examine(path).passed
    np.savez(path, **(small_scan() | {"diff3d": poisson(40, (5, 8, 8)).astype(np.float16)}))
    assert set(broken(examine(path))) == {"SCAN-05"}


def test_the_largest_amplitude_lies_between_1e_minus_18_and_1e17() -> None:
    least, largest = np.float32(1e-18), np.float32(1e17)
    frame = np.zeros((1, 4, 4), np.float32)
    for value in (least, largest):
        frame[0, 1, 2] = value
        assert audited(frame).largest == value
    for value in (np.nextafter(least, np.float32(0)) * np.float32(0.999), np.nextafter(largest, np.float32(np.inf))):
        frame[0, 1, 2] = value
        with pytest.raises(DataContractError, match="SCAN-04"):
            audited(frame)


def test_frames_full_of_the_largest_amplitude_are_accepted() -> None:
    audit = audited(np.full((3, 64, 64), 1e17))
    assert audit.total_counts == pytest.approx(3 * 64 * 64 * float(np.float32(1e17)) ** 2, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-30, 1.1e17, 3e38])
def test_a_bad_value_is_told_by_pattern_row_and_column(value: float) -> None:
    patterns = poisson(30) + np.float32(0.5)
    patterns[4, 30, 7] = value
    patterns[5] = value
    with pytest.raises(DataContractError) as caught:
        audited(patterns, 2)
    assert caught.value.clause == "SCAN-04"
    assert caught.value.found == f"{np.float32(value):.6g} at row 30, column 7 of pattern 4"


@pytest.mark.parametrize("N", [2, 7, 64, 300])
def test_energies_are_those_of_float64(N: int) -> None:
    rng = np.random.default_rng(N)
    # Equal values round alike in float32, and their errors would add up; so would a wide range of values.
    for patterns in (rng.gamma(2, 3, (4, N, N)), np.full((4, N, N), 1.1), rng.random((4, N, N)) ** 30):
        patterns = patterns.astype(np.float32)
        audit = PatternAudit(Path("scan.npz"), "diff3d")
        energies = audit.update(0, patterns)
        expected = (patterns.astype(np.float64) ** 2).sum(axis=(1, 2))
        assert energies.dtype == np.float64
        np.testing.assert_allclose(energies, expected, rtol=1e-7)
        assert audit.total_counts == pytest.approx(expected.sum(), rel=1e-7)


def test_dark_patterns_are_counted_and_a_stack_of_them_is_refused() -> None:
    patterns = poisson(30) + np.float32(0.5)
    patterns[[1, 4]] = 0
    assert audited(patterns).dark == 2
    with pytest.raises(DataContractError, match="amplitudes of at most 0"):
        audited(np.zeros((3, 4, 4)))


# ------------------------------------------------------------------------------------------------- probe files


def write_probe(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8), (3, 8, 8), (8, 8, 8)])
@pytest.mark.parametrize("dtype", ["c8", ">c16", "f4", "f2"])
def test_a_probe_file_gives_modes_first_complex64(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if "c" in dtype else 0)
    values = values.astype(dtype)
    expected = np.moveaxis(values, -1, 0) if shape == (8, 8, 1) else values.reshape(-1, 8, 8)
    probe = read_probe(write_probe(tmp_path / "probe.npz", probe=values), 8)
    assert probe.dtype == np.complex64
    np.testing.assert_array_equal(probe, expected.astype(np.complex64))


def test_the_older_name_of_a_probe_stands_in_for_the_name(tmp_path: Path) -> None:
    ones = np.ones((8, 8), np.complex64)
    np.testing.assert_array_equal(read_probe(write_probe(tmp_path / "p.npz", probeGuess=ones), 8)[0], ones)
    both = write_probe(tmp_path / "p.npz", probeGuess=ones, probe=2 * ones)
    np.testing.assert_array_equal(read_probe(both, 8)[0], 2 * ones)


BAD_PROBES: dict[str, tuple[str, str | None, Arrays]] = {
    "no probe": ("PROBE-01", "probe", {"beam": np.ones((8, 8))}),
    "another side": ("PROBE-01", "probe", {"probe": np.ones((16, 16))}),
    "whole numbers": ("PROBE-01", "probe", {"probe": np.ones((8, 8), int)}),
    "one axis": ("PROBE-01", "probeGuess", {"probeGuess": np.ones(8)}),
    "modes last": ("PROBE-01", "probe", {"probe": np.ones((8, 8, 3))}),
    "too many modes": ("PROBE-01", "probe", {"probe": np.ones((MAX_MODES + 1, 8, 8))}),
    "NaN": ("PROBE-01", "probe", {"probe": np.where(np.eye(8) == 1, np.nan, 1)}),
    "zeros": ("PROBE-01", "probe", {"probe": np.zeros((8, 8), complex)}),
    "objects": ("NPZ-02", "probe", {"probe": np.full((8, 8), None)}),
}


@pytest.mark.parametrize("name", BAD_PROBES)
def test_a_probe_file_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    clause, key, arrays = BAD_PROBES[name]
    path = write_probe(tmp_path / "probe.npz", **arrays)
    refused(clause, path, lambda: read_probe(path, 8), key=key)


def test_a_probe_of_the_least_frames_needs_no_disk(tmp_path: Path) -> None:
    for N in (2, 3):
        path = write_probe(tmp_path / "probe.npz", probe=np.eye(N))
        np.testing.assert_array_equal(read_probe(path, N)[0], np.eye(N))
        path = write_probe(tmp_path / "probe.npz", probe=np.zeros((N, N)))
        refused("PROBE-01", path, lambda N=N, path=path: read_probe(path, N), key="probe")


# ------------------------------------------------------------------------------------------------- folders


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_scans_of_a_folder_come_by_name_and_nothing_else_is_a_scan(tmp_path: Path) -> None:
    touch(tmp_path, "b.npz", "a10.npz", "a2.npz", "C.npz", ".hidden.npz", "notes.txt", "a.npz.part", "x.NPZ", "npz")
    assert [path.name for path in scan_paths(tmp_path)] == ["C.npz", "a10.npz", "a2.npz", "b.npz", "x.NPZ"]
    assert scan_paths(tmp_path / "b.npz") == (tmp_path / "b.npz",)


def test_a_folder_without_scans_and_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.npz", "notes.txt")
    assert "no .npz file" in refused("SCAN-14", tmp_path, lambda: scan_paths(tmp_path)).found
    missing = tmp_path / "missing"
    assert "no such file or folder" in refused("SCAN-14", missing, lambda: scan_paths(missing)).found


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.npz")

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    for method in ("iterdir", "is_file"):
        monkeypatch.setattr(Path, method, denied)
        for clause, act in (("SCAN-14", scan_paths), ("PROBE-02", lambda folder: probe_paths((), folder))):
            assert "Permission denied" in refused(clause, tmp_path, lambda act=act: act(tmp_path)).found


def test_one_probe_serves_all_scans_and_more_go_by_stem(tmp_path: Path) -> None:
    scans_, probes = (Path("data/star.npz"), Path("data/grid.npz")), tmp_path / "probes"
    touch(probes, "beam.npz", ".old.npz", "notes.txt")
    assert probe_paths(scans_, probes) == (probes / "beam.npz",) * 2
    assert probe_paths(scans_, probes / "beam.npz") == (probes / "beam.npz",) * 2
    touch(probes, "grid.npz", "star.npz")
    assert probe_paths(scans_, probes) == (probes / "star.npz", probes / "grid.npz")


def test_a_scan_without_a_probe_of_its_stem_is_refused(tmp_path: Path) -> None:
    scans_, probes = (Path("data/star.npz"), Path("data/grid.npz")), tmp_path / "probes"
    touch(probes, "star.npz", "beam.npz")
    error = refused("PROBE-02", probes, lambda: probe_paths(scans_, probes))
    assert error.found == "no probe grid.npz; there are beam.npz, star.npz"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no .npz file" in refused("PROBE-02", empty, lambda: probe_paths(scans_, empty)).found
