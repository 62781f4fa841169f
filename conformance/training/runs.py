"""The training runs that are judged: drawn cases, the same on every machine."""

from __future__ import annotations

import dataclasses
from functools import cache

from conformance.cases.draws import draw_case
from conformance.training.state import TrainingRun
from ptycho_torch.config_params import NetworkSettings

STEPS = 10

RUNS = ("same_batch", "clip_norm", "clip_value")
"""Names of the runs."""

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=2.0)
"""A scale at which both loss terms, and the ε of Adam, count."""

TRAINABLE = dataclasses.replace(SETTINGS, intensity_scale_trainable=True, probe_trainable=True)


@cache
def training_run(name: str, settings: NetworkSettings = SETTINGS, batch: int = 2) -> TrainingRun:
    """Return a run by name.

    ``same_batch``: ten updates on one batch, no clipping. ``clip_norm`` and ``clip_value``: ten different batches, with
    the gradient clipped.

    Args:
        name: see above.
        settings: of the network.
        batch: groups in a batch.
    """
    drawn = [draw_case(settings, seed, batch=batch) for seed in range(STEPS)]
    cases = [dataclasses.replace(drawn[0], diffraction=case.diffraction, offsets_px=case.offsets_px) for case in drawn]
    match name:
        case "same_batch":
            return TrainingRun(name, (cases[0],) * STEPS)
        case "clip_norm":
            return TrainingRun(name, tuple(cases), clip=1.0)
        case "clip_value":
            return TrainingRun(name, tuple(cases), clip=0.02, clip_algorithm="value")
        case _:
            raise ValueError(f"no training run is called {name!r}.")
