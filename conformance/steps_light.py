"""Light: probes of several modes, blur and mask, and what autocast leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from conformance import oracle_operations
from conformance.hypotheses import Hypothesis
from conformance.oracle_operations import disk_mask
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32

SIDE_PX, SCALE = 8, 3.0


def draw_wave(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw complex numbers."""
    return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def strength(probe: np.ndarray) -> np.ndarray:
    """Return the root of the summed intensity of (…, modes, N, N) modes, (…, 1, N, N)."""
    return np.asarray(np.sqrt((np.abs(probe) ** 2).sum(axis=-3, keepdims=True)))


def normalised(probe: np.ndarray, probe_scale: float, magnitude: np.ndarray | None = None) -> np.ndarray:
    """Return (…, modes, N, N) probe / (probe_scale · mean(strength · disk)), one factor for the modes of a probe.

    Args:
        probe: the modes.
        probe_scale: 1 / the mean.
        magnitude: in place of the strength.
    """
    seen = (strength(probe) if magnitude is None else magnitude) * disk_mask(probe.shape[-1])
    return np.asarray(probe / (probe_scale * seen.mean(axis=(-2, -1), keepdims=True)))


def _probe(_: StepBench) -> Outcome:
    """Normalise probes of one mode and of several, for all and for each pattern."""
    import torch

    from ptycho_torch import probe

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
    # The disk stands first: what is wrong with it is wrong with every factor.
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

    def mistakes() -> Iterator[Hypothesis]:
        wrong: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "mean over modes for their sum": lambda each: strength(each) / np.sqrt(each.shape[-3]),
            "every mode normalised by itself": np.abs,
            "magnitudes of modes added": lambda each: np.abs(each).sum(axis=-3, keepdims=True),
            "the first mode alone in the factor": lambda each: np.abs(each[..., :1, :, :]),
            "modes added as fields": lambda each: np.abs(each.sum(axis=-3, keepdims=True)),
            "intensity for amplitude": lambda each: strength(each) ** 2,
        }
        for name, magnitude in wrong.items():
            yield Hypothesis(name, {key: normalised(each, SCALE, magnitude(each)) for key, each in probes.items()})
        inverse = {key: each * SCALE**2 for key, each in expected.items() if key in probes}
        yield Hypothesis("probe scale upside down", inverse)
        yield Hypothesis("disk inside out", {f"disk of {N} px": 1 - disk_mask(N) for N in default})
        for name, by in (("disk half a pixel off", 0.0), ("disk one pixel off", 1.0)):
            axis = {N: np.arange(N) - N / 2 + by for N in default}
            disks = {N: np.hypot(each[:, None], each) < N // 4 for N, each in axis.items()}
            yield Hypothesis(name, {f"disk of {N} px": disks[N].astype(np.float64) for N in default})

    return Outcome(expected, found, FLOAT64, mistakes)


def _blurred(images: np.ndarray, sigma_px: float, border: str = "reflect") -> np.ndarray:
    """Convolve with the 3 × 3 Gaussian, the border filled by a mode of ``np.pad``; σ = 0 does not blur."""
    if not sigma_px:
        return images
    weights = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * sigma_px**2))
    weights /= weights.sum()
    wide = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1)] * 2, mode=border)  # type: ignore[call-overload]
    rows, columns = images.shape[-2:]
    found = np.zeros(images.shape, wide.dtype)
    for j, i in np.ndindex(3, 3):
        found += weights[j] * weights[i] * wide[..., j : j + rows, i : i + columns]
    return found


SIGMAS_PX = (0.4, 1.7)
_OF_THE_BLUR: Mapping[str, tuple[Callable[[float], float], str]] = {
    "σ squared for σ": (lambda sigma: sigma**2, "reflect"),
    "root of σ for σ": (lambda sigma: sigma**0.5, "reflect"),
    "2 missing under σ²": (lambda sigma: sigma / 2**0.5, "reflect"),
    "blur forgotten": (lambda sigma: 0.0, "reflect"),
    "edge pixel repeated at the border": (float, "edge"),
    "zeros beyond the border": (float, "constant"),
    "border wrapped": (float, "wrap"),
}
"""Mistake → what it makes of σ, and how it fills the border."""


def _illuminate(_: StepBench) -> Outcome:
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

    def right(probe: np.ndarray, sigma: float, mask: bool, border: str = "reflect") -> np.ndarray:
        wave = _blurred(views[:, :, None] * probe, sigma, border)
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
    expected["real image that is not square"] = _blurred(flat, SIGMAS_PX[0])
    found["real image that is not square"] = helper.smooth(torch.from_numpy(flat), SIGMAS_PX[0]).numpy()

    def mistakes() -> Iterator[Hypothesis]:
        for name, (change, border) in _OF_THE_BLUR.items():
            gives = {key: right(probe, change(sigma), mask, border) for key, (probe, sigma, mask) in cases.items()}
            gives["real image that is not square"] = _blurred(flat, change(SIGMAS_PX[0]), border)
            yield Hypothesis(name, gives)
        wrong: dict[str, Callable[[np.ndarray, float, bool], np.ndarray]] = {
            "mask forgotten": lambda probe, sigma, mask: right(probe, sigma, mask=False),
            "masked before the blur": lambda probe, sigma, mask: _blurred(
                views[:, :, None] * probe * (disk if mask else 1), sigma
            ),
            "conjugation of the probe": lambda probe, sigma, mask: right(probe.conj(), sigma, mask),
            "the first mode for all": lambda probe, sigma, mask: np.repeat(right(probe, sigma, mask)[:, :, :1], 2, 2),
        }
        for name, lit in wrong.items():
            yield Hypothesis(name, {key: lit(*case) for key, case in cases.items()})

    return Outcome(expected, found, FLOAT64, mistakes)


def _diffract(_: StepBench) -> Outcome:
    """Propagate waves of several modes, one of which is dark."""
    import torch

    from ptycho_torch import helper

    rng = np.random.default_rng(11)
    waves = draw_wave(rng, 2, 3, 2, SIDE_PX, SIDE_PX)
    waves[1, 2] = 0

    def right(waves: np.ndarray, power: float = 2.0, shift: Callable[..., np.ndarray] = np.fft.fftshift) -> np.ndarray:
        intensity = np.abs(np.fft.fft2(waves)) ** 2 / SIDE_PX**power
        return np.asarray(np.sqrt(shift(intensity.sum(axis=2), axes=(-2, -1))))

    found = helper.diffract(torch.from_numpy(waves)).numpy()

    def mistakes() -> Iterator[Hypothesis]:
        for name, wrong in {
            "missing fftshift": right(waves, shift=lambda array, axes: array),
            "FFT normalisation: 1/N": right(waves, power=1.0),
            "FFT normalisation: none": right(waves, power=0.0),
            "FFT normalisation: 1/N⁴": right(waves, power=4.0),
            "modes summed coherently": right(waves.sum(axis=2, keepdims=True)),
            "the first mode alone": right(waves[:, :, :1]),
            "mean over modes for their sum": right(waves) / np.sqrt(2),
            "intensity for amplitude": right(waves) ** 2,
            "inverse FFT": right(waves.conj()),
        }.items():
            yield Hypothesis(name, {"amplitude": wrong})

    return Outcome({"amplitude": right(waves)}, {"amplitude": found}, FLOAT64, mistakes)


def _autocast(_: StepBench) -> Outcome:
    """Under autocast to bfloat16, what stands behind the patches is what it is without, of the same patches."""
    import torch

    from conformance.torch_subject import float32_means_float32
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
    return Outcome(expected | wanted, found | kinds, FLOAT32)


PROBES: tuple[Step, ...] = (Step("forward.probe", ("exit_wave",), _probe),)
LIGHT: tuple[Step, ...] = (
    Step("forward.illuminate", ("exit_wave",), _illuminate),
    Step("forward.diffract", ("amplitude",), _diffract),
    Step("forward.autocast", ("FORWARD-FORCED",), _autocast),
)
