"""What a whole job takes beyond the network's own work: start-up, epochs of training, and a reconstruction.

Each number stands beside its goal. An epoch is held against the sum of its steps, a reconstruction from file to object
against the calls of the network alone, both inside one process and in one run, so that a slow machine slows both.

    python benchmarks/jobs.py [--patterns 500] [--archive FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from ptycho_torch import inference, train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.model import PtychoNet

HELP_S, FIRST_STEP_S, EPOCH_SHARE, INFER_SHARE, VERIFY_S = 0.3, 6.0, 0.10, 0.15, 60.0
EPOCHS = 3
LONGER = 10
"""The scan that is reconstructed has so many times the patterns of the one that is trained on."""

FIRST_STEP = """
import sys, os
from ptycho_torch.commands.cli import main
from ptycho_torch.training.lightning_module import PtychoPINN
PtychoPINN.training_step = lambda *_: os._exit(0)
sys.exit(main(sys.argv[1:]) or 1)
"""
"""Trains until the first step, which ends the process."""


class Steps(Callback):
    """Sums the time of training steps and of validation, and notes when each epoch begins."""

    def __init__(self) -> None:
        self.within_s = 0.0
        self.begins: list[float] = []
        self._start = 0.0

    def _begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any, **__: Any) -> None:
        # The first epoch warms up, and is not counted.
        self.within_s += (time.perf_counter() - self._start) * (len(self.begins) > 1)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Note when the epoch begins."""
        self.begins.append(time.perf_counter())

    on_train_batch_start = on_validation_batch_start = _begin
    on_train_batch_end = on_validation_batch_end = _end


def time_s(command: Sequence[str], turns: int) -> float:
    """Return the median time of a command."""
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def epoch_share(scan: Path, folder: Path, settings: Settings) -> float:
    """Return what an epoch takes beyond its steps, as a share of them."""
    steps = Steps()
    dataset = PtychoDataset(scan, data_dir=folder / "map", settings=settings.data)
    train.main(
        dataset, settings=settings, output_dir=folder / "run", callbacks=[steps], reconstruct=False, progress=False
    )
    return (steps.begins[-1] - steps.begins[1]) / (steps.within_s * (EPOCHS - 2) / (EPOCHS - 1)) - 1


def infer_share(scan: Path, folder: Path) -> float:
    """Return what a reconstruction takes beyond the calls of the network, as a share of them."""
    within_s = 0.0

    reconstruct = PtychoNet.reconstruct

    def timed(*given: Any) -> torch.Tensor:
        nonlocal within_s
        started = time.perf_counter()
        found = reconstruct(*given)
        within_s += time.perf_counter() - started
        return found

    PtychoNet.reconstruct = timed  # type: ignore[method-assign]
    (checkpoint,) = (folder / "run" / "checkpoints").glob("last.ckpt")
    start = time.perf_counter()
    inference.infer(checkpoint, scan, output_dir=folder / "objects", progress=False)
    return (time.perf_counter() - start) / within_s - 1


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--patterns", type=int, default=500, help="of the scan that is trained on (default 500)")
    parser.add_argument("--archive", type=Path, help="a trained TensorFlow archive, to be verified")
    parser.add_argument("--turns", type=int, default=5, help="starts of the program (default 5)")
    options = parser.parse_args()
    program = [sys.executable, "-m", "ptycho_torch"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan, long_scan = folder / "scan.npz", folder / "long.npz"
        for path, patterns in ((scan, options.patterns), (long_scan, LONGER * options.patterns)):
            command = [*program, "simulate", "-o", str(path), "--patterns", str(patterns)]
            subprocess.run(command, check=True, capture_output=True)
        settings = Settings().override({"N": 64, "gridsize": 2, "max_epochs": EPOCHS, "tracking": False})
        to_step = [sys.executable, "-c", FIRST_STEP, "train", str(scan), "-o", str(folder / "first"), "--overwrite"]
        rows = [
            ("`--help`, s", time_s([*program, "--help"], options.turns), HELP_S),
            ("`train` until its first step, s", time_s(to_step, options.turns), FIRST_STEP_S),
            ("an epoch beyond its steps", epoch_share(scan, folder, settings), EPOCH_SHARE),
            (
                f"`infer` of {LONGER * options.patterns} patterns beyond the network",
                infer_share(long_scan, folder),
                INFER_SHARE,
            ),
        ]
        if options.archive:
            output = str(folder / "certificate")
            verify = [sys.executable, "-m", "conformance", "verify", str(options.archive), "-o", output]
            rows.append(("`python -m conformance verify` of an archive, s", time_s(verify, 1), VERIFY_S))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.patterns} patterns of 64 × 64, g = 2"
    )
    print("\n| what | measured | goal |\n|---|---|---|")
    for what, measured, goal in rows:
        print(f"| {what} | {measured:.2f} | ≤ {goal:g} |")


if __name__ == "__main__":
    main()
