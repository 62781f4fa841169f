"""Train on a real scan with several seeds and score the objects, beside the numbers of the TensorFlow reference.

Example: python benchmarks/real_scan.py siemens_star_n64.npz --seeds 5 --recorded prediction.npz

The settings are those that the reference was trained with: 2 × 2 groups of its own sampler, batches of 8, at most 60
epochs, canvas of 78 pixels, Keras's Adam, plateau schedule and early stopping, the last 5 % for validation. Objects are
stitched as it stitches them, uniformly with M = 20, and scored against ``objectGuess`` of the scan. ``--best`` trains
once more with what this scan asks for: a canvas that clips no group, two groups for each scan point, a cosine schedule.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ptycho_torch import inference, train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.evaluate import Scores, compare, read_truth, score
from ptycho_torch.reconstruction.reassembly import Weighting

REFERENCE = {
    "N": 64, "gridsize": 2, "K": 6, "group_sampler": "reference", "group_seed": 1, "n_filters_scale": 1, "offset": 4,
    "max_position_jitter": 10, "batch_size": 8, "max_epochs": 60, "early_stop_patience": 3, "gradient_clip_val": None,
    "validation_selection": "last", "tracking": False,
}  # fmt: skip
BEST = {
    "N": 64, "gridsize": 2, "K": 6, "n_subsample": 2, "n_filters_scale": 1, "batch_size": 8, "max_epochs": 36,
    "early_stop_patience": None, "scheduler": "WarmupCosine", "lr_min_ratio": 0.02, "gradient_clip_val": None,
    "tracking": False,
}  # fmt: skip

# Over three seeds of the reference on this scan: final Poisson loss, phase error, amplitude error, phase correlation.
REFERENCE_RANGE = "-445.1 … -447.7   0.080 … 0.129   0.041 … 0.045   0.893 … 0.945"


def main() -> None:
    """Train, score, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="scan with objectGuess, N = 64")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default 5)")
    parser.add_argument("--recorded", type=Path, help="predictions of the reference, to show that the scorer is right")
    parser.add_argument("--best", action="store_true", help="train once more with the best settings known")
    parser.add_argument("-o", "--output", type=Path, default=Path("real_scan"), help="folder of objects and pictures")
    options = parser.parse_args()
    truth = read_truth(options.scan)
    print(f"{'':12} {'epochs':>6} {'seconds':>8} {'loss':>9} {'phase error':>12} {'amplitude':>10} {'phase corr.':>12}")
    if options.recorded:
        with np.load(options.recorded, allow_pickle=False) as recorded:
            stitched = recorded["stitched"][..., 0]
            centre = recorded["coords_offsets"][:, 0, :, 0].mean(0) - len(stitched) / 2
            found = score(compare(stitched, (float(centre[0]), float(centre[1])), truth))
            print(_row("recorded", 60, float(recorded["seconds"]), float(recorded["loss"].flat[-1]), found))
    rows = []
    for seed in range(options.seeds):
        rows.append(_run(options, f"seed {seed}", Settings().override(REFERENCE | {"seed": seed}), truth, "uniform"))
    if rows:
        medians = [statistics.median(row[part] for row in rows) for part in range(4)]
        print(f"{'median':12} {'':6} {'':8} {medians[0]:9.2f} {medians[1]:12.3f} {medians[2]:10.4f} {medians[3]:12.3f}")
        print(f"reference, range of three seeds: {REFERENCE_RANGE}")
    if options.best:
        _run(options, "best", Settings().override(BEST), truth, "smooth")


def _run(
    options: argparse.Namespace, name: str, settings: Settings, truth: np.ndarray, weighting: Weighting
) -> tuple[float, float, float, float]:
    folder = options.output / name.replace(" ", "_")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        result = train.main(
            options.scan,
            settings=settings,
            output_dir=folder,
            data_dir=scratch,
            overwrite=True,
            reconstruct=False,
            progress=False,
        )
        seconds = time.perf_counter() - start
        dataset = PtychoDataset(options.scan, data_dir=scratch, settings=settings.data)
        objects = inference.reconstruct(result.module, dataset, weighting=weighting, progress=False)
        inference.write_results(
            objects, result.module, dataset, folder, source=result.checkpoint, weighting=weighting, overwrite=True
        )
    stitched = objects[0]
    found = score(compare(stitched.object.numpy(), stitched.origin_px, truth, region=stitched.coverage.numpy()))
    loss = result.history["train_loss"][-1]
    print(_row(name, len(result.history["train_loss"]), seconds, loss, found), flush=True)
    return loss, found.phase_error_rad, found.amplitude_error, found.phase_correlation


def _row(name: str, epochs: int, seconds: float, loss: float, found: Scores) -> str:
    return (
        f"{name:12} {epochs:6} {seconds:8.0f} {loss:9.2f} {found.phase_error_rad:12.3f} {found.amplitude_error:10.4f} "
        f"{found.phase_correlation:12.3f}"
    )


if __name__ == "__main__":
    main()
