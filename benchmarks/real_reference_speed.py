"""Speed of the real TensorFlow program beside ours, in turn on one scan: its own training and inference.

Each measurement is a process of its own with the same number of threads. Training: the epochs after the first, which
compiles. Inference: the second prediction of all groups, stitched at their places. Both sides get as many groups, of
their own drawing, in batches of one size. Times are those of the processor, summed over threads: with one thread they
are those of the clock, and they stay right on a machine that does other things too.

    python benchmarks/real_reference_speed.py CHECKOUT --scan n64.npz --python INTERPRETER_OF_THE_PROGRAM -o speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from round_trips import Lab, run

CASES = ((1, 16, 512), (2, 8, 128))
"""gridsize, batch and groups: 512 patterns each."""

WIDTH = 2
"""Scale of the filters of both networks: the default of the program."""

EPOCHS = 4


def rates(patterns: int, training: list[float], inference: float) -> None:
    """Print patterns per second: of the median epoch, and of an inference."""
    print("RATES", json.dumps({"training": patterns / statistics.median(training), "inference": patterns / inference}))


def side_there(scan: str, gridsize: str, batch: str, groups: str) -> None:
    """Train and predict with the program's own functions."""
    import numpy as np
    import tensorflow as tf
    from ptycho import loader, model, params, tf_helper, train_pinn  # type: ignore[import-not-found]
    from ptycho.config.config import (  # type: ignore[import-not-found]
        ModelConfig,
        TrainingConfig,
        update_legacy_dict,
    )
    from ptycho.workflows.components import load_data  # type: ignore[import-not-found]

    count, size = int(groups), int(batch)
    network = ModelConfig(N=64, gridsize=int(gridsize), n_filters_scale=WIDTH)
    config = TrainingConfig(model=network, nepochs=1, batch_size=size, n_groups=count, train_data_file=Path(scan))
    update_legacy_dict(params.cfg, config)
    raw = load_data(scan)
    data = raw.generate_grouped_data(64, K=4, nsamples=count, seed=1, gridsize=int(gridsize))
    container = loader.load(lambda: data, raw.probeGuess, which=None, create_split=False)
    trained, _ = train_pinn.train(container)
    epochs = []
    for _ in range(EPOCHS):
        started = time.process_time()
        model.train(1, container, model_instance=trained)
        epochs.append(time.process_time() - started)
    inputs = [np.asarray(container.X) * params.cfg["intensity_scale"], np.asarray(container.local_offsets)]
    for _ in range(2):
        started = time.process_time()
        objects = model.diffraction_to_obj.predict(inputs, batch_size=size, verbose=0)
        tf_helper.reassemble_position(tf.constant(objects), container.global_offsets, M=20)
        inference = time.process_time() - started
    rates(count * int(gridsize) ** 2, epochs, inference)


def side_here(scan: str, gridsize: str, batch: str, groups: str) -> None:
    """Train and predict with ours."""
    import lightning.pytorch as pl
    import torch

    from ptycho_torch import train
    from ptycho_torch.config_params import Settings
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
    from ptycho_torch.inference import reconstruct
    from ptycho_torch.train import PtychoPINN

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    class Clock(pl.Callback):
        """Notes when each epoch begins, and when the last ends."""

        times: list[float]

        def __init__(self) -> None:
            self.times = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.times.append(time.process_time())

        def on_train_end(self, *_: Any) -> None:
            self.times.append(time.process_time())

    clock, count = Clock(), int(groups)
    chosen = {"gridsize": int(gridsize), "batch_size": int(batch), "n_groups": count, "max_epochs": 1 + EPOCHS}
    common = {"N": 64, "n_filters_scale": WIDTH, "tracking": False, "device": "cpu"}
    settings = Settings.preset("reference").override(common | chosen)
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder, "map")
        result = train.main(
            *(scan,), settings=settings, output_dir=folder, data_dir=maps, reconstruct=False, progress=False,
            callbacks=[clock],
        )  # fmt: skip
        module = PtychoPINN.from_checkpoint(result.checkpoint)
        dataset = PtychoDataset(scan, None, maps, settings=module.settings.data)
        for _ in range(2):
            started = time.process_time()
            reconstruct(module, dataset, batch_size=int(batch), weighting="uniform", device="cpu", progress=False)
            inference = time.process_time() - started
    epochs = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    rates(count * int(gridsize) ** 2, epochs[1:], inference)


def main() -> None:
    """Measure both sides in turn, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter for the program (default: this one)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("real_reference_speed.json"))
    options = parser.parse_args()
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    os.environ.update(dict.fromkeys(names, str(options.threads)))
    found: dict[str, list[dict[str, float]]] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(options.checkout.resolve(), options.python, Path(folder), {})
        for turn in range(options.repeat):
            for gridsize, batch, groups in CASES:
                for side in ("there", "here"):
                    kept = found.setdefault(f"{gridsize} {side}", [])
                    if len(kept) > turn:
                        continue
                    words = (Path(__file__).resolve(), side, options.scan.resolve(), gridsize, batch, groups)
                    said = lab.there(*words) if side == "there" else run([sys.executable, *words], Path(folder))
                    line = next(each for each in said.splitlines() if each.startswith("RATES "))
                    kept.append(json.loads(line.removeprefix("RATES ")))
                    options.output.write_text(json.dumps(found, indent=1))
    print("| | training there | here | | inference there | here | |\n|---|---|---|---|---|---|---|")
    for gridsize, batch, _ in CASES:
        cells = [f"g {gridsize}, B {batch}"]
        for action in ("training", "inference"):
            there, here = (
                statistics.median(each[action] for each in found[f"{gridsize} {side}"]) for side in ("there", "here")
            )
            cells += [f"{there:.0f}", f"{here:.0f}", f"× {here / there:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sides = {"there": side_there, "here": side_here}
    if len(sys.argv) > 1 and sys.argv[1] in sides:
        sides[sys.argv[1]](*sys.argv[2:])
    else:
        main()
