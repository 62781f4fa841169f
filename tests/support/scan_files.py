"""Small scans on disk, drawn at random and unlike each other in every direction, and the maps they should become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.grouping import group_scan
from ptycho_torch.data.memory_map import MemoryMap
from ptycho_torch.data.preparation import FramePreparation

Arrays = dict[str, np.ndarray]
Tables = dict[str, Arrays]


def draw_scan(M: int = 24, N: int = 16, *, seed: int = 0, modes: int | None = None) -> Arrays:
    """Draw a scan; ``modes`` None is a probe without a mode axis."""
    rng = np.random.default_rng(seed)
    shape = (N, N) if modes is None else (modes, N, N)
    probe = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    return {
        "diff3d": rng.gamma(2.0, 3.0, (M, N, N)).astype(np.float32),
        "xcoords": rng.uniform(20, 60, M),
        "ycoords": rng.uniform(100, 180, M),
        "probeGuess": probe,
        "scan_index": np.full(M, rng.integers(0, 3)),
    }


def write_scan(path: Path, scan: Arrays | None = None, **draw: int | None) -> Arrays:
    """Write a scan, drawn if none is given, and return it."""
    scan = draw_scan(**draw) if scan is None else scan  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **scan)  # type: ignore[arg-type]
    return scan


def expected_map(scans: Mapping[str, Arrays], settings: DataSettings) -> Tables:
    """Say in NumPy what the tables of a map hold; grouping and preparation have tests of their own."""
    parts: dict[str, list[np.ndarray]] = {}
    probes: list[np.ndarray] = []
    start = experiments = 0
    for number, name in enumerate(sorted(scans)):
        scan = scans[name]
        frame = scan["diff3d"].shape[1]
        preparation = FramePreparation(frame, settings)
        bad = scan.get("bad_pixels", np.zeros((frame, frame), bool)).astype(bool)
        amplitude = preparation.frames(np.where(bad, np.float32(0), scan["diff3d"].astype(np.float32)))
        energy = np.square(amplitude, dtype=np.float64).sum(axis=(1, 2))
        positions = preparation.positions(np.stack([scan["xcoords"], scan["ycoords"]], axis=1))
        indices = np.unique(scan["scan_index"])
        rows = [np.flatnonzero(scan["scan_index"] == index) for index in indices]
        each_scan = [each[group_scan(positions[each], settings)] for each in rows]
        members = np.concatenate(each_scan)
        centres = positions[members].mean(axis=1)  # (L, 2)
        for key, value in {
            "patterns/amplitude": amplitude,
            "patterns/energy": energy,
            "scan/positions_px": positions,
            "scan/scan_index": scan["scan_index"],
            "groups/nn_indices": (members + start).astype(np.int32),
            "groups/coords_relative": -(positions[members] - centres[:, None])[:, :, None],
            "groups/coords_center": centres[:, None, None],
            "groups/experiment_id": np.repeat(experiments + np.arange(len(rows)), [len(each) for each in each_scan]),
            "experiments/file": np.full(len(rows), number),
            "experiments/scan_index": indices,
            "experiments/good_pixels": np.stack([preparation.good_pixels(~bad)] * len(rows)),
            "experiments/scale": np.array([settings.N / 2 / np.sqrt(energy[each].mean()) for each in each_scan]),
            "experiments/first_row": np.array([start + each[0] for each in rows]),
        }.items():
            parts.setdefault(key, []).append(value)
        probes += [preparation.probe(scan["probeGuess"].reshape(-1, frame, frame))] * len(rows)
        start += len(energy)
        experiments += len(rows)
    modes = max(map(len, probes))
    parts["experiments/probe"] = [np.pad(probe, ((0, modes - len(probe)), (0, 0), (0, 0)))[None] for probe in probes]
    tables: Tables = {}
    for key, values in parts.items():
        table, field = key.split("/")
        tables.setdefault(table, {})[field] = np.concatenate(values)
    return tables


def tables_of(found: MemoryMap) -> Tables:
    """Return the tables of an open map as arrays."""
    return {
        table: {name: tensor.numpy() for name, tensor in getattr(found, table).items()}
        for table in ("patterns", "scan", "groups", "experiments")
    }


def assert_tables_equal(found: Tables, expected: Tables) -> None:
    """Compare tables; what was stored is exact, what was computed has float32's rounding."""
    assert {table: set(fields) for table, fields in found.items()} == {
        table: set(fields) for table, fields in expected.items()
    }
    for table, fields in expected.items():
        for name, array in fields.items():
            where = f"{table}/{name}"
            if name in ("energy", "coords_relative", "coords_center", "scale"):
                np.testing.assert_allclose(found[table][name], array, rtol=1e-6, atol=1e-6, err_msg=where)
            else:
                np.testing.assert_array_equal(found[table][name], array, err_msg=where)
