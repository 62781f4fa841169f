"""Train on a real scan with Keras and with PyTorch in turn: the same weights, batches and epochs; time and quality.

Both start at the same weights and take the same batches, groups of 2 × 2 in batches of 8, with Adam at a rate that
falls a little every epoch; both objects are stitched by one program and scored against ``objectGuess`` of the scan.
Times are those of the processor, of all threads.

    OMP_NUM_THREADS=1 python benchmarks/real_scan_keras.py siemens_star_n64.npz
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from conformance.session import study
from ptycho_tf_bridge.backend import tensorflow
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.evaluate import compare, read_truth, score
from ptycho_torch.inference import reconstruct


def main() -> None:
    """Train both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="scan with objectGuess")
    parser.add_argument("--epochs", type=int, default=60, help="of both (default 60)")
    parser.add_argument("--N", type=int, default=64, help="pixels a side of a pattern (default 64)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow; of PyTorch: OMP_NUM_THREADS")
    options = parser.parse_args()
    tensorflow().config.threading.set_intra_op_parallelism_threads(options.threads)
    tensorflow().config.threading.set_inter_op_parallelism_threads(1)
    of_scan = {"N": options.N, "gridsize": 2, "K": 6, "batch_size": 8, "probe_big": True}
    rate = study.LAST_RATE ** (1 / options.epochs)
    settings = Settings().override({**study.OVERRIDES, **of_scan, "max_epochs": options.epochs, "lr_gamma": rate})
    print("| | CPU minutes | last loss | phase correlation | phase error (rad) | amplitude error |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        dataset = PtychoDataset(options.scan, data_dir=Path(folder) / "map", settings=settings.data)
        for name, train in (("Keras", study._train_keras), ("PyTorch", study._train_torch)):
            started = time.process_time()
            loss, module = train(dataset, settings)
            minutes = (time.process_time() - started) / 60
            (stitched,) = reconstruct(module.eval(), dataset, device="cpu", progress=False).values()
            found = compare(
                stitched.object.numpy(), stitched.origin_px, read_truth(options.scan), region=stitched.coverage.numpy()
            )
            scores = score(found)
            numbers = (
                f"{minutes:.1f}",
                f"{loss:.3f}",
                f"{scores.phase_correlation:.3f}",
                f"{scores.phase_error_rad:.3f}",
                f"{scores.amplitude_error:.4f}",
            )
            print(f"| {name} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
