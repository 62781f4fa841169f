"""How fast ``convert-scan`` imports an Eiger master with its data files, compared with copying as many bytes.

Writes a master with four data files of uint32 frames, packed with bitshuffle/LZ4 where hdf5plugin is installed and
plain as well; imports each; and copies a file of as many bytes as the frames have unpacked. The disk is asked to have
all of it (fsync) both times, for the import does so. Anonymous memory is that of the command and of the processes
that read for it, the largest of samples. Imports and copies take turns, and medians are printed.

    python benchmarks/import_master.py [--gib 4] [--turns 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

SIDE_PX = 512
FILES = 4
SAMPLE_S = 0.02
PARAMETERS = (
    ("instrument/detector/detector_distance", 2.0, "m"),
    ("instrument/detector/x_pixel_size", 75e-6, "m"),
    ("instrument/detector/y_pixel_size", 75e-6, "m"),
    ("instrument/beam/incident_wavelength", 1.5, "angstrom"),
)


def frames() -> np.ndarray:
    """Draw 64 frames; the rest of a file repeats them."""
    rows, columns = np.indices((SIDE_PX, SIDE_PX)) - SIDE_PX // 2
    light = 3e4 / (1 + (rows**2 + columns**2) / 60) ** 1.5
    drawn: np.ndarray = np.random.default_rng(0).poisson(light, (64, SIDE_PX, SIDE_PX)).astype(np.uint32)
    return drawn


def write_master(folder: Path, count: int, packing: dict[str, object]) -> Path:
    """Write the master and its data files; return the master."""
    folder.mkdir()
    drawn = frames()
    with h5py.File(folder / "scan_master.h5", "w") as master:
        for number in range(1, FILES + 1):
            name = f"scan_data_{number:06d}.h5"
            with h5py.File(folder / name, "w") as file:
                shape = (count // FILES, SIDE_PX, SIDE_PX)
                data = file.create_dataset("/entry/data/data", shape, np.uint32, chunks=(1, *shape[1:]), **packing)
                for first in range(0, shape[0], len(drawn)):
                    data[first : first + len(drawn)] = drawn[: shape[0] - first]
            master[f"/entry/data/data_{number:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        for path, value, unit in PARAMETERS:
            master[f"/entry/{path}"] = value
            master[f"/entry/{path}"].attrs["units"] = unit
        master["/entry/sample/translation"] = np.random.default_rng(1).uniform(-2e-6, 2e-6, (count, 3))
    return folder / "scan_master.h5"


def copy_s(source: Path, target: Path) -> float:
    """Return how long a copy takes until the disk has it."""
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def processor_s() -> float:
    """Return the time that processors have worked for the commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_s(master: Path, target: Path) -> tuple[float, float, int]:
    """Return how long the command takes, its processor time, and the most anonymous memory that was seen."""
    start, worked = time.perf_counter(), processor_s()
    command = [sys.executable, "-m", "ptycho_torch", "convert-scan", str(master), "-o", str(target), "--overwrite"]
    process = subprocess.Popen(command)
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(anonymous_bytes, [process.pid, *children(process.pid)])))
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - start, processor_s() - worked, most


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gib", type=float, default=4.0, help="unpacked size of the frames")
    parser.add_argument("--turns", type=int, default=3, help="imports and copies, in turn (default 3)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    count = int(options.gib * 2**30 / (4 * SIDE_PX**2)) // FILES * FILES
    packings: dict[str, dict[str, object]] = {"plain": {}}
    try:
        import hdf5plugin

        packings["bitshuffle/LZ4"] = dict(hdf5plugin.Bitshuffle())
    except ImportError:
        print("hdf5plugin is not installed: packed files are not measured")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = count * 4 * SIDE_PX**2
        print(f"{count} frames of {SIDE_PX} × {SIDE_PX} uint32, {size / 2**30:.2f} GiB, in {FILES} files")
        for packing, how in packings.items():
            master = write_master(folder / packing.replace("/", "-"), count, how)
            turns = []
            for _ in range(options.turns):
                (folder / "new.npz").unlink(missing_ok=True)
                imported_s, worked_s, most = import_s(master, folder / "new.npz")
                copied_s = copy_s(folder / "new.npz", folder / "copy.npz")
                (folder / "copy.npz").unlink()
                turns.append((imported_s, copied_s, copied_s / imported_s, worked_s, most))
            shutil.rmtree(master.parent)
            imported_s, copied_s, share, worked_s, most = (statistics.median(each) for each in zip(*turns, strict=True))
            shares = [each[2] for each in turns]
            print(
                f"{packing:15} import {size / imported_s / 1e6:6.0f} MB/s, copy {size / copied_s / 1e6:6.0f} MB/s, "
                f"share {share:.2f} [{min(shares):.2f} … {max(shares):.2f}]; processors {worked_s:.1f} s, anonymous "
                f"memory {most / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    main()
