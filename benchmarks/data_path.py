"""Speed and memory of the data path, each beside its yardstick in one run.

Map build against a plain copy of the same file, memory while building, bytes on the disk, reuse of a map, and the
loader against ``torch.index_select`` on a tensor in memory. Numbers are printed beside their goals.

    python benchmarks/data_path.py --gib 4 --repeat 5 --dir /tmp
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from ptycho_torch.config_params import DataSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader

N, GRIDSIZE = 64, 2
SETTINGS = DataSettings(N=N, gridsize=GRIDSIZE)
_BLOCK = 4096


def write_scan(path: Path, patterns: int) -> None:
    """Write an uncompressed scan of random amplitude at random positions."""
    draw = np.random.default_rng(0)
    block = 10 * draw.random((_BLOCK, N, N), np.float32)
    small = {
        "xcoords": 5000 * draw.random(patterns),
        "ycoords": 5000 * draw.random(patterns),
        "probeGuess": np.ones((N, N), np.complex64),
    }
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("diff3d.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (patterns, N, N)})
            for first in range(0, patterns, _BLOCK):
                file.write(block[: patterns - first].tobytes())
        for key, array in small.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.save(file, array)


def seconds(action: Callable[[], object], memory: int = 0) -> float:
    """Time an action, with everything that is waiting to be written flushed before it.

    So many bytes of memory are touched first: a virtual machine gives free memory back to its host, and whoever is the
    first to use it again waits for that several times as long as copying takes.
    """
    os.sync()
    if memory:
        np.ones(memory, np.uint8)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def copy(source: Path, target: Path, *, flush: bool) -> None:
    """Copy a file as ``shutil`` does; flush it to the disk, as the map is, or not."""
    shutil.copyfile(source, target)
    if flush:
        with target.open("r+b") as file:
            os.fsync(file.fileno())


def build(scan: Path, folder: Path) -> PtychoDataset:
    """Build a map from nothing."""
    return PtychoDataset(scan, data_dir=folder, settings=SETTINGS)


def anonymous_mib() -> float:
    """Anonymous memory of this process; mapped pages of files are not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not report RssAnon")


def build_and_watch(scan: Path, folder: Path) -> None:
    """Build a map and print the largest growth of anonymous memory: the child's side of the memory row."""
    before, peak, done = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    build(scan, folder)
    done.set()
    watcher.join()
    print(max(peak[0], anonymous_mib() - before))


def row(what: str, value: str, goal: str) -> None:
    """Print one line of the table."""
    print(f"{what:<58}{value:>22}   {goal}", flush=True)


def spread(values: list[float], unit: str) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f} … {max(values):.2f}] {unit}"


def measure_build(scan: Path, folder: Path, repeat: int) -> None:
    """Compare building with copying, in turn."""
    copies, flushed, builds = [], [], []
    size = scan.stat().st_size + 2**28
    for _ in range(repeat):
        copies.append(seconds(lambda: copy(scan, folder / "copy", flush=False), size))
        (folder / "copy").unlink()
        builds.append(seconds(lambda: build(scan, folder / "map"), size))
        shutil.rmtree(folder / "map")
        flushed.append(seconds(lambda: copy(scan, folder / "copy", flush=True), size))
        (folder / "copy").unlink()
    row("plain copy", spread(copies, "s"), "")
    row("plain copy, flushed to the disk", spread(flushed, "s"), "")
    row("map build, flushed to the disk", spread(builds, "s"), "")
    for name, yardstick in (("plain copy", copies), ("flushed copy", flushed)):
        ratios = [theirs / ours for theirs, ours in zip(yardstick, builds, strict=True)]
        row(f"speed of the build / speed of the {name}", spread(ratios, ""), "goal ≥ 0.7")


def measure_memory(scan: Path, folder: Path) -> None:
    """Build in a fresh process and report its anonymous memory."""
    command = [sys.executable, __file__, "--watch", str(scan), "--dir", str(folder / "watched")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    row("anonymous memory above import while building", f"{float(result.stdout):.0f} MiB", "goal ≤ 400 MiB")
    shutil.rmtree(folder / "watched")


def measure_map(scan: Path, folder: Path, patterns: int) -> PtychoDataset:
    """Report bytes on the disk and the time to take up a map that is there."""
    dataset = build(scan, folder / "map")
    size = dict.fromkeys(("patterns", "groups"), 0)
    for path in (folder / "map").rglob("*.memmap"):
        part = path.relative_to(folder / "map").parts[0].split("-")[0]
        size[part] += path.stat().st_blocks * 512
    row("pattern bytes on the disk / raw stack", f"{size['patterns'] / (patterns * N * N * 4):.4f}", "goal ≤ 1.02")
    row("all other bytes for each group, C = 4", f"{size['groups'] / len(dataset):.0f}", "goal ≤ 150")
    times = [seconds(lambda: build(scan, folder / "map")) for _ in range(5)]
    row("taking up the map again", f"{statistics.median(times) * 1e3:.1f} ms", "goal < 1 s")
    return dataset


def measure_loader(dataset: PtychoDataset, repeat: int) -> None:
    """Compare the loader with bare gathering from a tensor in memory: same patterns, same order, in turn."""
    amplitude = torch.empty_like(dataset.map.patterns["amplitude"].as_subclass(torch.Tensor))
    amplitude.copy_(dataset.map.patterns["amplitude"])
    groups = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:32768]
    for batch_size in (16, 64):
        indices = [dataset.nn_indices[part].long().reshape(-1) for part in groups.split(batch_size)]
        bare, ours = [], []
        for _ in range(repeat + 1):
            start = time.perf_counter()
            for index in indices:
                amplitude.index_select(0, index)
            bare.append(len(groups) / (time.perf_counter() - start))
            start = time.perf_counter()
            for _images, _coords, _probe, _scale in TensorDictDataLoader(dataset, batch_size, groups=groups):
                pass
            ours.append(len(groups) / (time.perf_counter() - start))
        # The first turn maps the pages.
        row(f"index_select in memory, batches of {batch_size}", spread([x / 1e3 for x in bare[1:]], "k/s"), "")
        row(f"loader from the map, batches of {batch_size}", spread([x / 1e3 for x in ours[1:]], "k/s"), "")
        ratios = [mine / theirs for mine, theirs in zip(ours[1:], bare[1:], strict=True)]
        row(f"groups/s of the loader / of index_select, {batch_size}", spread(ratios, ""), "goal ≥ 0.6")


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gib", type=float, default=4.0, help="size of the scan (default 4 GiB; three times that is used)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where to write")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        build_and_watch(options.watch, options.dir)
        return
    patterns = int(options.gib * 2**30) // (N * N * 4)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"numpy {np.__version__}; {patterns} patterns of {N} × {N}, gridsize {GRIDSIZE}"
    )
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        scan = folder / "scan.npz"
        write_scan(scan, patterns)
        measure_build(scan, folder, options.repeat)
        measure_memory(scan, folder)
        measure_loader(measure_map(scan, folder, patterns), options.repeat)


if __name__ == "__main__":
    main()
