"""The same file through both data paths: the decision about it, groups, offsets, normalised input, and the scale.

The reference's path is the oracle's; ours is the one that training uses.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conformance.judge.agreement import FLOAT32, Compared, compare_arrays
from conformance.oracle import data as oracle_data
from conformance.oracle import operations as oracle_operations
from conformance.oracle.data import GroupedScan, ReadScan, RefusedError
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.scaling import intensity_scale
from ptycho_torch.data.scan import examine


@dataclass(frozen=True)
class Decision:
    """What both paths make of a file.

    Attributes:
        theirs: why the reference does not read it; empty if it does.
        ours: the clauses that refuse it here; empty if it is read.
    """

    theirs: str
    ours: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether both read it or both refuse it."""
        return bool(self.theirs) == bool(self.ours)


def decide(members: Mapping[str, np.ndarray], path: Path) -> Decision:
    """Write the members to ``path`` as a scan file and let both paths decide about it."""
    np.savez(path, **members)  # type: ignore[arg-type]
    theirs = ""
    try:
        oracle_data.read_scan(members)
    except RefusedError as err:
        theirs = str(err)
    broken = tuple(finding.clause for finding in examine(path).findings if finding.state == "broken")
    return Decision(theirs, broken)


def both_ways(path: Path, settings: DataSettings) -> Compared:
    """Take a scan that both paths read, or a folder of such scans, both ways.

    Args:
        path: scan file or folder.
        settings: with ``group_sampler`` "reference", whose draws are those of the reference.
    """
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    scans = []
    for each in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
        with np.load(each, allow_pickle=False) as file:
            scans.append(oracle_data.read_scan({name: file[name] for name in file.files}))
    firsts = np.cumsum([0, *(len(scan.positions_px) for scan in scans)])
    theirs = [reference_groups(scan, settings) for scan in scans]
    with tempfile.TemporaryDirectory() as folder:
        dataset = PtychoDataset(path, data_dir=folder, settings=settings)
        batch = dataset[0 : len(dataset)]
        nphotons = float(dataset.derived().nphotons)
        found = {
            "groups": batch.indices.numpy().astype(np.int64),
            "normalised input": LAYOUTS["channels"].to_tensorflow(batch.images.numpy()),
            "offsets": LAYOUTS["offsets"].to_tensorflow(batch.coords.numpy()),
            "centres": batch.centres.numpy()[:, 0, 0],
            "normalisation": batch.scale.numpy().reshape(-1),
            "intensity scale": np.array(intensity_scale(nphotons, settings.N)),
            "probe": _bits(dataset.probes.numpy()),
        }
    expected = {
        "groups": np.concatenate([each.indices + first for each, first in zip(theirs, firsts, strict=False)]),
        "normalised input": np.concatenate([each.amplitude for each in theirs]),
        "offsets": np.concatenate([each.offsets_px for each in theirs]),
        "centres": np.concatenate([each.centres_px[:, 0, :, 0] for each in theirs]),
        "normalisation": np.repeat([each.factor for each in theirs], [len(each.indices) for each in theirs]),
        "intensity scale": np.array(oracle_operations.intensity_scale(nphotons, N=settings.N)),
        "probe": _bits(np.stack([scan.probe[None] for scan in scans])),
    }
    return Compared(expected, found, FLOAT32)


def _bits(probe: np.ndarray) -> np.ndarray:
    """Return a complex64 probe as whole numbers, which are compared for equality: it is stored as it was given."""
    return np.ascontiguousarray(probe, np.complex64).view(np.int32)


def differences(path: Path, settings: DataSettings) -> list[str]:
    """Say where the two paths differ; nothing if they do not. Arguments as for `both_ways`."""
    both = both_ways(path, settings)
    verdicts = compare_arrays(both.expected, both.found, both.limit, path.stem)
    return [verdict.explain() for verdict in verdicts.values() if not verdict.passed]


def reference_groups(scan: ReadScan, settings: DataSettings) -> GroupedScan:
    """Group a scan by the oracle with our names of the reference's arguments."""
    return oracle_data.group(scan, reference_indices(scan.positions_px, settings))


def reference_indices(positions_px: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Draw the (L, C) groups of (M, 2) positions as the reference does."""
    return oracle_data.draw_groups(
        positions_px,
        gridsize=settings.gridsize,
        K=settings.K,
        n_groups=settings.n_groups or len(positions_px),
        seed=settings.group_seed,
        sequential=settings.sequential_sampling,
        oversampling=settings.enable_oversampling,
        pool_size=settings.neighbor_pool_size,
    )


def draw_scan(rng: np.random.Generator, *, M: int, N: int) -> dict[str, np.ndarray]:
    """Draw the members of a scan that both paths read: scattered positions, amplitude of any scale, complex probe."""
    positions = rng.uniform(0, 4 * N, (2, M))
    nominal = positions + rng.normal(0, 0.3, (2, M))
    amplitude = 10.0 ** rng.uniform(-3, 4) * np.abs(rng.standard_normal((M, N, N)) + 0.1)
    axis = np.arange(N) - (N - 1) / 2
    probe = np.exp(-np.add.outer(axis**2, axis**2) / N) * np.exp(0.3j * axis)
    return {
        "diff3d": amplitude.astype(np.float32),
        "xcoords": positions[0],
        "ycoords": positions[1],
        "xcoords_start": nominal[0],
        "ycoords_start": nominal[1],
        "probeGuess": probe.astype(np.complex64),
    }


def draw_settings(rng: np.random.Generator, *, M: int, N: int) -> DataSettings:
    """Draw arguments that the reference accepts for M points."""
    gridsize = int(rng.integers(1, 4))
    C = gridsize**2
    if C > M:
        gridsize, C = 1, 1
    K = int(rng.integers(C, C + 4))
    modes = ["some", "all", "sequential", "oversampled", "oversampled from all", "oversampled in sequence"]
    mode = str(rng.choice(modes if C > 1 else modes[:2]))
    oversampled = mode.startswith("oversampled")
    n_groups = M if mode == "all" else int(rng.integers(1, M + 1))
    if oversampled:
        # Twice the seed points that suffice are all there are.
        n_groups = M * math.comb(K + 1, C) if mode == "oversampled from all" else M + int(rng.integers(1, M))
    return DataSettings(
        N=N,
        gridsize=gridsize,
        K=min(K, max(M - 1, 1)) if C == 1 else K,
        group_sampler="reference",
        group_seed=int(rng.integers(2**32)),
        n_groups=n_groups,
        sequential_sampling=mode in ("sequential", "oversampled in sequence"),
        enable_oversampling=oversampled,
        neighbor_pool_size=K + 1 if oversampled else None,
    )


def draw_damage(rng: np.random.Generator, members: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Change one thing about a good file; return its name and the members."""
    changed = dict(members)
    M, N, _ = members["diff3d"].shape
    name = str(rng.choice(DAMAGES))
    match name:
        case "none":
            pass
        case "a key is missing":
            del changed[str(rng.choice(sorted(changed)))]
        case "nominal positions are missing":
            del changed["xcoords_start"], changed["ycoords_start"]
        case "one position too few":
            changed["xcoords"] = changed["xcoords"][:-1]
        case "all positions too few":
            changed |= {key: value[:-1] for key, value in changed.items() if "coords" in key}
        case "positions in a column":
            changed |= {key: value[:, None] for key, value in changed.items() if "coords" in key}
        case "older order of axes":
            changed["diff3d"] = np.moveaxis(changed["diff3d"], 0, -1)
        case "a singleton channel":
            changed["diff3d"] = changed["diff3d"][..., None]
        case "two channels":
            changed["diff3d"] = np.repeat(changed["diff3d"][..., None], 2, axis=-1)
        case "frames that are not square":
            changed["diff3d"] = changed["diff3d"][:, :, :-2]
        case "one frame alone":
            changed["diff3d"] = changed["diff3d"][0]
        case "the older name":
            changed["diffraction"] = changed.pop("diff3d")
        case "both names":
            changed["diffraction"] = changed["diff3d"] * 2
        case "counts":
            changed["diff3d"] = np.round(100 * changed["diff3d"] / changed["diff3d"].max()).astype(np.uint16)
        case "complex patterns":
            changed["diff3d"] = changed["diff3d"].astype(np.complex64)
        case "a NaN in a pattern":
            changed["diff3d"] = changed["diff3d"].copy()
            changed["diff3d"][0, 0, 0] = np.nan
        case "a negative amplitude":
            changed["diff3d"] = -changed["diff3d"]
        case "a position that is not finite":
            changed["ycoords"] = changed["ycoords"].copy()
            changed["ycoords"][1] = np.inf
        case "probe of another side":
            changed["probeGuess"] = np.pad(changed["probeGuess"], 1)
        case "modes of the probe":
            changed["probeGuess"] = np.stack([changed["probeGuess"]] * 2)
        case "object of three axes":
            changed["objectGuess"] = np.ones((2, N, N), np.complex64)
        case "an object":
            changed["objectGuess"] = np.ones((5 * N, 5 * N), np.complex64)
        case "scan index of another length":
            changed["scan_index"] = np.zeros(M + 1, np.int64)
        case "a member that nobody knows":
            changed["Y"] = np.zeros(3)
        case _:
            raise ValueError(name)
    return name, changed


DAMAGES = (
    "none", "a key is missing", "nominal positions are missing", "one position too few", "all positions too few",
    "positions in a column", "older order of axes", "a singleton channel", "two channels", "frames that are not square",
    "one frame alone", "the older name", "both names", "counts", "complex patterns", "a NaN in a pattern",
    "a negative amplitude", "a position that is not finite", "probe of another side", "modes of the probe",
    "object of three axes", "an object", "scan index of another length", "a member that nobody knows",
)  # fmt: skip
"""What ``draw_damage`` does to a file."""
