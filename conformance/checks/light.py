"""Single operations of the forward model: probes, blur and mask, diffraction, shifts, autocast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from conformance.judge.agreement import FLOAT32, FLOAT64, Compared
from conformance.oracle import operations as oracle_operations
from conformance.oracle.operations import disk_mask

SIDE_PX, SCALE = 8, 3.0


def draw_wave(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw complex numbers."""
    return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def strength(probe: np.ndarray) -> np.ndarray:
    """Return the root of the summed intensity of (…, modes, N, N) modes, (…, 1, N, N)."""
    return np.asarray(np.sqrt((np.abs(probe) ** 2).sum(axis=-3, keepdims=True)))


def normalised(probe: np.ndarray, probe_scale: float) -> np.ndarray:
    """Return (…, modes, N, N) probe / (probe_scale · mean(strength · disk)), one factor for the modes of a probe."""
    seen = strength(probe) * disk_mask(probe.shape[-1])
    return np.asarray(probe / (probe_scale * seen.mean(axis=(-2, -1), keepdims=True)))


def normalised_probes() -> Compared:
    """Normalise probes of one mode and of several, for all and for each pattern."""
    import torch

    from ptycho_torch.data import probe

    rng = np.random.default_rng(8)
    fading = np.array([1.0, 0.5, 0.25])[:, None, None]
    probes = {
        "one mode": draw_wave(rng, 1, SIDE_PX, SIDE_PX),
        "three modes": fading * draw_wave(rng, 3, SIDE_PX, SIDE_PX),
        "three modes of each pattern": fading * draw_wave(rng, 2, 4, 3, SIDE_PX, SIDE_PX),
        "three modes of 64 px": fading * draw_wave(rng, 3, 64, 64),
    }
    found = {name: probe.normalise_probe(torch.from_numpy(each), SCALE).numpy() for name, each in probes.items()}
    default = {N: oracle_operations.default_probe(N) for N in (SIDE_PX, 64)}
    expected = {f"disk of {N} px": disk_mask(N) for N in default}
    expected |= {f"default of {N} px": right for N, right in default.items()}
    expected |= {name: normalised(each, SCALE) for name, each in probes.items()}
    expected |= {
        "without a mode axis": expected["one mode"][0],
        "scale that nobody gives": expected["one mode"] * SCALE / 4,
    }
    found |= {
        "without a mode axis": probe.normalise_probe(torch.from_numpy(probes["one mode"][0]), SCALE).numpy(),
        "scale that nobody gives": probe.normalise_probe(torch.from_numpy(probes["one mode"])).numpy(),
    }
    for N in default:
        found |= {f"default of {N} px": probe.default_probe(N).numpy(), f"disk of {N} px": probe.disk_mask(N).numpy()}

    return Compared(expected, found, FLOAT64)


SIGMAS_PX = (0.4, 1.7)


def illuminated() -> Compared:
    """Light views with modes for all and for each pattern, blurred or not, masked or not."""
    import torch

    from ptycho_torch import helper

    rng = np.random.default_rng(9)
    views, disk = draw_wave(rng, 2, 3, SIDE_PX, SIDE_PX), disk_mask(SIDE_PX)
    probes = {
        "one probe": draw_wave(rng, 2, SIDE_PX, SIDE_PX),
        "a probe of each pattern": draw_wave(rng, 2, 3, 2, SIDE_PX, SIDE_PX),
    }
    cases = {
        f"{whose}, σ = {sigma}{', masked' if mask else ''}": (probe, sigma, mask)
        for whose, probe in probes.items()
        for sigma in (0.0, *SIGMAS_PX)
        for mask in (False, True)
    }

    def right(probe: np.ndarray, sigma: float, mask: bool) -> np.ndarray:
        wave = views[:, :, None] * probe
        wave = oracle_operations.smooth(wave, sigma) if sigma else wave
        return wave * disk if mask else wave

    found = {
        name: helper.illuminate(
            torch.from_numpy(views),
            torch.from_numpy(probe),
            smoothing_sigma=sigma,
            disk=torch.from_numpy(disk) if mask else None,
        ).numpy()
        for name, (probe, sigma, mask) in cases.items()
    }
    flat = rng.standard_normal((3, 5, 7))
    expected = {name: right(*case) for name, case in cases.items()}
    expected["real image that is not square"] = oracle_operations.smooth(flat, SIGMAS_PX[0])
    found["real image that is not square"] = helper.smooth(torch.from_numpy(flat), SIGMAS_PX[0]).numpy()

    return Compared(expected, found, FLOAT64)


def autocast() -> Compared:
    """Under autocast to bfloat16, what stands behind the patches is what it is without, of the same patches."""
    import torch

    from conformance.subjects.torch import float32_means_float32
    from ptycho_torch.config_params import NetworkSettings
    from ptycho_torch.model import PtychoNet

    generator = torch.Generator().manual_seed(4)
    settings = NetworkSettings(
        N=64, gridsize=2, n_filters_scale=1, intensity_scale=7.0, probe_mask=True, gaussian_smoothing_sigma=0.7
    )
    network = PtychoNet(settings, generator=generator)
    amplitude = torch.rand(2, 4, 64, 64, generator=generator)
    offsets = 6 * torch.rand(2, 4, 1, 2, generator=generator) - 3
    patches: list[torch.Tensor] = []
    handle = network.patches.register_forward_hook(lambda module, given, output: patches.append(output))
    with torch.no_grad(), float32_means_float32():
        with torch.autocast("cpu", torch.bfloat16):
            prediction = network(amplitude, offsets)
            alone = network.reconstruct(amplitude, offsets)
        handle.remove()
        canvas = network.merged(patches[0], offsets)
        wave = network.exit_wave(network.views(canvas, offsets), network.probe)
        scaled = network.predicted_amplitude(network.amplitude(wave), network.log_scale)
        right: Mapping[str, Any] = {
            "object": network.object(canvas),
            "amplitude": scaled,
            "intensity": network.predicted_intensity(scaled),
            "object without diffraction": network.object(network.merged(patches[1], offsets)),
        }
    given: Mapping[str, Any] = {
        "object": prediction.object,
        "amplitude": prediction.amplitude,
        "intensity": prediction.intensity,
        "object without diffraction": alone,
    }
    kinds = {f"dtype of {name}": np.array(str(each.dtype)) for name, each in given.items()}
    wanted = {name: np.array("torch.complex64" if "object" in name else "torch.float32") for name in kinds}
    expected = {name: each.numpy() for name, each in right.items()}
    # NumPy has no bfloat16; what it became is judged by the dtypes.
    found = {name: each.to(right[name].dtype).numpy() for name, each in given.items()}
    return Compared(expected | wanted, found | kinds, FLOAT32)


_EDGES = (0.0, 1.0, -1.0, 3.0, 0.5, -0.5, 1e-9, -1e-9, 0.9995, -0.9995, 2.0005, -2.0005, 7.25, -11.75, 20.0, -20.0)
"""Offsets in pixels of a 12 × 14 image: whole, next to whole, and outside."""


def translated() -> Compared:
    """Shift images by every pair of hard offsets."""
    import torch

    from ptycho_torch import helper

    pairs = np.array([(x, y) for x in _EDGES for y in _EDGES])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((len(pairs), 12, 14)) + 1j * rng.standard_normal((len(pairs), 12, 14))
    found = helper.translate(torch.from_numpy(images), torch.from_numpy(pairs)).numpy()

    return Compared({"translated": oracle_operations.translate(images, pairs)}, {"translated": found}, FLOAT64)
