"""What the precision of a run does to what passes through the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.agreement import Compared
from conformance.small_runs import COMMON, SmallScans
from ptycho_torch.config_params import Settings

DTYPES: Mapping[str, tuple[str, str, str]] = {
    "32-true": ("float32", "float32", "complex64"),
    "64-true": ("float64", "float64", "complex128"),
    "bf16-mixed": ("bfloat16", "float32", "complex64"),
}
"""Precision → dtype of convolutions, of weights and predicted diffraction, and of the object."""


def _precision() -> Compared:
    """Train one batch in each precision, and look at what passes through the network."""
    import tempfile

    import torch

    from ptycho_torch import lightning_module, train
    from ptycho_torch.dset_loader_pt_mmap import TensorDictDataLoader

    scans = bench.once(SmallScans)
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    before = torch.are_deterministic_algorithms_enabled()
    for precision, right in DTYPES.items():
        deterministic = precision == "64-true"
        settings = Settings().override(
            {**COMMON, "precision": precision, "deterministic": deterministic, "max_epochs": 1,
             "validation_fraction": 0.0}
        )  # fmt: skip
        dataset = scans.dataset(settings, one_probe=True)
        module = train.PtychoPINN.for_dataset(dataset, settings)
        seen: dict[str, str] = {}
        handles = [
            module.network.get_submodule(stage).register_forward_hook(_noting(seen, stage))
            for stage in ("encoder.0.conv1", "decoder_amp.1.conv2", "merged", "predicted_amplitude")
        ]
        try:
            with lightning_module.quiet_lightning(), tempfile.TemporaryDirectory() as folder:
                trainer = train.make_trainer(settings.training, Path(folder), validate=False, progress=False)
                trainer.fit(module, TensorDictDataLoader(dataset, 1, groups=torch.tensor([0])))
            enabled = torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(before)
            for handle in handles:
                handle.remove()
        seen["weights"] = str(module.network.get_parameter("encoder.0.conv1.weight").dtype)

        def dtypes(which: tuple[str, str, str], precision: str = precision) -> dict[str, np.ndarray]:
            inner, outer, wave = which
            names = {
                "encoder.0.conv1": inner, "decoder_amp.1.conv2": inner, "merged": wave, "predicted_amplitude": outer,
                "weights": outer,
            }  # fmt: skip
            return {f"{precision}: {name}": np.array(f"torch.{dtype}") for name, dtype in names.items()}

        expected |= dtypes(right) | {f"{precision}: deterministic": np.array(deterministic)}
        found |= {f"{precision}: {stage}": np.array(dtype) for stage, dtype in seen.items()}
        found[f"{precision}: deterministic"] = np.array(enabled)
    return Compared(expected, found)


def _noting(seen: dict[str, str], stage: str) -> Callable[[Any, Any, Any], None]:
    def note(_module: Any, _given: Any, output: Any) -> None:
        seen[stage] = str(output.dtype)

    return note


PRECISION: tuple[Step, ...] = (Step("optimiser.precision", ("RUN-01",), _precision, ("lightning", "tensordict")),)
