"""Read scans by the TensorFlow reference and by this project, and compare what its networks would be given.

Example: python benchmarks/same_data.py ~/PtychoPINN scans/star.npz scans/raster.npz

The first argument is a checkout of the reference, with whatever it needs installed: it is run, by the functions of its
training script, and nothing of it is copied. For each scan and gridsize 1, 2, 3 groups are drawn in these ways: some,
all, in sequence; and, where gridsize is above 1, oversampled, oversampled from every scan point, oversampled in
sequence. A cell such as 15/15 says in how many draws every number is the same. Offsets are compared as float32,
as both networks take them, of corrected and of nominal positions; normalised input by its largest difference in units
of its RMS.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.scan import examine
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

SEED = 45
K = {1: 4, 2: 6, 3: 10}
"""Gridsize → neighbours to draw from."""


@dataclass(frozen=True)
class Compared:
    """What became of one draw of groups.

    Attributes:
        groups, patterns, offsets: whether every number is the same.
        input: largest difference of normalised amplitude, over its RMS.
    """

    groups: bool
    patterns: bool
    offsets: bool
    input: float


def main() -> None:
    """Print one row for each scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="checkout of the reference: the folder that holds ptycho/")
    parser.add_argument("scans", type=Path, nargs="+", help="scan files (.npz)")
    options = parser.parse_args()
    # Last, because the checkout holds another ptycho_torch.
    sys.path.append(str(options.reference.resolve()))
    logging.disable(logging.WARNING)
    print("| scan | theirs | ours | groups | patterns | offsets | input | nphotons theirs | ours |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in options.scans:
        print(f"| {' | '.join((path.name, *_row(path)))} |", flush=True)


def _row(path: Path) -> Iterator[str]:
    theirs, decision = _read(path)
    broken = [finding.clause for finding in examine(path).findings if finding.state == "broken"]
    yield decision
    yield f"refused: {', '.join(broken)}" if broken else "read"
    if theirs is None or broken:
        yield from ("–",) * 6
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [_compare(path, theirs, settings, Path(folder)) for settings in _draws(theirs)]
        counted = DataSettings(N=theirs.diff3d.shape[1], gridsize=1)
        photons = PtychoDataset(path, data_dir=folder, settings=counted).derived()
    for same in ([each.groups for each in found], [each.patterns for each in found], [each.offsets for each in found]):
        yield f"{sum(same)}/{len(same)}"
    yield f"{max(each.input for each in found):.1e}"
    yield _their_photons(path)
    yield f"{photons.nphotons:.6g} ({photons.nphotons_source})"


def _read(path: Path) -> tuple[Any, str]:
    """Return the scan as the reference reads it, or None, and what it says of it.

    Its training has a reader of its own; where that one refuses a file, the other one of the package may read it.
    """
    with _silent():
        from ptycho.raw_data import RawData
        from ptycho.workflows.components import load_data

        scan, said = None, []
        for name, read in (("load_data", lambda: load_data(str(path), n_images=None)),
                           ("RawData.from_file", lambda: RawData.from_file(str(path)))):  # fmt: skip
            try:
                scan = read()
                said.append("read" if not said else f"read by {name}")
                break
            except Exception as err:
                said.append(f"refused by {name} ({type(err).__name__}: {str(err)[:60]})")
        if scan is not None:
            # Patches of a known object are labels; cutting them takes most of the time.
            scan.Y = scan.objectGuess = None
        return scan, ", ".join(said)


def _their_photons(path: Path) -> str:
    """Return the photon number that the reference's training takes."""
    from ptycho.config.config import TrainingConfig
    from ptycho.metadata import MetadataManager

    _, metadata = MetadataManager.load_with_metadata(str(path))
    number = MetadataManager.get_nphotons(metadata, math.nan)
    default = next(field for field in TrainingConfig.__dataclass_fields__.values() if field.name == "nphotons").default
    return f"{default:.6g} (its default)" if math.isnan(number) else f"{number:.6g} (_metadata)"


def _draws(scan: Any) -> Iterator[DataSettings]:
    M, N = scan.diff3d.shape[:2]
    for gridsize, neighbours in K.items():
        C = gridsize**2
        if neighbours >= M:
            continue
        draws: list[dict[str, Any]] = [
            {"n_groups": max(1, M // C)},
            {"n_groups": M},
            {"n_groups": max(1, M // 2), "sequential_sampling": True},
        ]
        if C > 1:
            oversampled = {"enable_oversampling": True, "neighbor_pool_size": C + 1}
            # Of C + 1 neighbours C + 1 groups can be made, and the reference takes twice the points that suffice.
            draws += [
                {"n_groups": M + M // 4, **oversampled},
                {"n_groups": M * (C + 1) // 2 + 1, **oversampled},
                {"n_groups": M + M // 4, "sequential_sampling": True, **oversampled},
            ]
        for draw in draws:
            yield DataSettings(N=N, gridsize=gridsize, K=neighbours, group_sampler="reference", group_seed=SEED, **draw)


def _compare(path: Path, scan: Any, settings: DataSettings, folder: Path) -> Compared:
    n_groups = settings.n_groups or 0
    with _silent():
        theirs = scan.generate_grouped_data(
            settings.N,
            K=settings.K,
            nsamples=n_groups,
            seed=settings.group_seed,
            sequential_sampling=settings.sequential_sampling,
            gridsize=settings.gridsize,
            enable_oversampling=settings.enable_oversampling,
            neighbor_pool_size=settings.neighbor_pool_size,
        )
    dataset = PtychoDataset(path, data_dir=folder, settings=settings)
    members = dataset.nn_indices.numpy()
    groups = np.array_equal(members, theirs["nn_indices"])
    if not groups:
        return Compared(groups, patterns=False, offsets=False, input=math.nan)
    patterns, worst, squares = True, 0.0, 0.0
    for first in range(0, len(members), 256):
        batch = dataset[first : first + 256]
        measured = dataset.amplitude[batch.indices.reshape(-1).long()].reshape(batch.images.shape).numpy()
        stored = theirs["diffraction"][first : first + 256].transpose(0, 3, 1, 2)
        given = theirs["X_full"][first : first + 256].transpose(0, 3, 1, 2)
        patterns &= np.array_equal(measured, stored)
        worst = max(worst, float(np.abs(batch.images.numpy() - given).max()))
        squares += float(np.square(given, dtype=np.float64).sum())
    offsets = _same_offsets(dataset, theirs, "coords")
    if scan.xcoords_start is not None:
        nominal = dataclasses.replace(settings, position_source="nominal")
        offsets &= _same_offsets(PtychoDataset(path, data_dir=folder, settings=nominal), theirs, "coords_start")
    return Compared(groups, patterns, offsets, worst / math.sqrt(squares / theirs["X_full"].size))


def _same_offsets(dataset: PtychoDataset, theirs: Any, name: str) -> bool:
    batch = dataset.map.groups
    relative = theirs[f"{name}_relative"].astype(np.float32).transpose(0, 3, 1, 2)
    centres = theirs[f"{name}_offsets"].transpose(0, 3, 1, 2)
    return np.array_equal(batch["coords_relative"].numpy(), relative) and np.array_equal(
        batch["coords_center"].numpy(), centres
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the reference prints away from the table."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
