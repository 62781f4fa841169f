"""The object of a network that has learned nothing yet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ptycho_torch.config_params import AmplitudeActivation, Settings
from ptycho_torch.model import HeadActivation, head_bias
from ptycho_torch.simulate import focused_probe
from ptycho_torch.training.checkpoint import write_checkpoint
from ptycho_torch.training.lightning_module import PtychoPINN

ACTIVATIONS = get_args(AmplitudeActivation)


@pytest.mark.parametrize(("kind", "amplitude"), tuple(itertools.product(ACTIVATIONS, (0.05, 0.5, 0.8, 0.99))))
def test_the_bias_gives_the_amplitude(kind: AmplitudeActivation, amplitude: float) -> None:
    bias = torch.tensor(head_bias(kind, amplitude), dtype=torch.float64)
    assert HeadActivation(kind)(bias.reshape(1, 1, 1, 1)).item() == pytest.approx(amplitude, rel=1e-9)


@pytest.mark.parametrize(("kind", "pad_object"), tuple(itertools.product(ACTIVATIONS, (True, False))))
def test_a_constant_object_gives_the_mean_counts(kind: AmplitudeActivation, pad_object: bool) -> None:
    """Without what the random weights add; 0.2 % of this probe's light lie beyond the part that the head fills."""
    N, counts = 64, 1e5
    settings = Settings().override(
        {"amp_activation": kind, "pad_object": pad_object, "object_big": pad_object, "nphotons": counts}
    )
    module = PtychoPINN(settings, probe=torch.from_numpy(focused_probe(N, defocus_px=4)))
    with torch.no_grad():
        for decoder in (module.network.decoder_amp, module.network.decoder_phase):
            decoder.head.weight.zero_()
        intensity = module.network(torch.rand(2, 4, N, N), torch.zeros(2, 4, 1, 2)).intensity
    assert intensity.sum((-2, -1)).mean().item() == pytest.approx(counts, rel=0.005)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_reference_starts_with_a_bias_of_zero(kind: AmplitudeActivation) -> None:
    module = PtychoPINN(Settings.preset("reference").override({"amp_activation": kind, "nphotons": 1e5}))
    assert not module.network.decoder_amp.head.bias.any()


@pytest.mark.parametrize("modes", [1, 2])
def test_a_checkpoint_keeps_its_bias(tmp_path: Path, modes: int) -> None:
    settings = Settings().override({"nphotons": 1e5, "initial_amplitude": "mean_counts"})
    probe = torch.from_numpy(np.stack([focused_probe(64, defocus_px=4 + mode) for mode in range(modes)]))
    module = PtychoPINN(settings, probe=probe, statistics={"probe_modes": modes, "one_probe": True})
    torch.nn.init.constant_(module.network.decoder_amp.head.bias, 0.25)
    path = tmp_path / "model.ckpt"
    write_checkpoint(
        path, settings, module.network.settings, module.statistics, module.network.state_dict(), overwrite=False
    )
    assert (PtychoPINN.from_checkpoint(path).network.decoder_amp.head.bias == 0.25).all()
