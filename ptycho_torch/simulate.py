"""``ptycho-torch simulate``: make a scan of a known object that holds every clause of the data contract.

The physics is the network's own: a view of the object, times the probe, to the detector. So the object and the probe
of the file explain its patterns exactly, up to the noise of the photons. Patterns are written as they are made, so a
scan may be larger than the memory. <doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

import argparse
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Complex64, Complex128, Float32, Float64, Num
from tqdm import tqdm

from ptycho_torch.data.probe import default_probe
from ptycho_torch.data.scan import examine, open_scan, read_probe
from ptycho_torch.data.specimens import MAX_OBJECT_PX, draw_specimen, weaken
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.files.folders import existing_folder
from ptycho_torch.files.npz_writer import NpzWriter, replacing
from ptycho_torch.helper import cut_patches, diffract, illuminate

LEAST_NPHOTONS, MOST_NPHOTONS = 1e-3, 1e15
"""Mean counts of a pattern; beyond, float32 amplitude and 64-bit counts are no longer safe."""

GOLDEN_ANGLE_RAD = math.pi * (3 - math.sqrt(5))

_CHUNK_BYTES = 16 * 1024 * 1024
_COMPLEX_BYTES = 16


# ------------------------------------------------------------------------------------------------------ positions


@dataclasses.dataclass(frozen=True)
class ScanPlan:
    """Where the probe stands, and the side of the square object that holds every patch.

    Attributes:
        positions_px: (M, 2) float64, (x, y) of the probe's centre in object pixels; N/2 … size_px − N/2 each.
        size_px: side of the object.
    """

    positions_px: np.ndarray
    size_px: int


def raster_steps(count: int, step_px: float) -> Float64[np.ndarray, "M 2"]:
    """Return (x, y) of a square raster about (0, 0), row by row; the last row may be short.

    >>> raster_steps(3, 2.0)
    array([[-1., -1.],
           [ 1., -1.],
           [-1.,  1.]])
    """
    columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    number = np.arange(count)
    x = (number % columns - (columns - 1) / 2) * step_px
    y = (number // columns - (rows - 1) / 2) * step_px
    return np.stack([x, y], axis=1)


def spiral_steps(count: int, step_px: float) -> Float64[np.ndarray, "M 2"]:
    """Return (x, y) of a Fermat spiral about (0, 0), from the middle outwards.

    r_n = step·√(n/π),  θ_n = n·π·(3 − √5). It has as many points in an area as a raster of the same step.
    """
    number = np.arange(count)
    radius, angle = step_px * np.sqrt(number / math.pi), number * GOLDEN_ANGLE_RAD
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


STEPS: Mapping[str, Callable[[int, float], np.ndarray]] = MappingProxyType(
    {"raster": raster_steps, "spiral": spiral_steps}
)
"""Name → function of (count, step_px). ``random`` has no steps, see ``plan_positions``."""

POSITIONS = (*STEPS, "random")


def plan_positions(
    kind: str,
    count: int,
    N: int,
    rng: np.random.Generator,
    *,
    step_px: float,
    jitter_px: float = 0.0,
    size_px: int | None = None,
) -> ScanPlan:
    """Place the probe so that every patch lies inside the object.

    Args:
        kind: ``raster``, ``spiral``, or ``random``, uniform over the object but for a margin of N/2.
        count: M.
        N: side of a patch.
        rng: is drawn from for jitter and random positions.
        step_px: between neighbours of a raster. Spirals, and random positions in an object whose size is not given,
            have the same number of points in an area.
        jitter_px: x and y of raster and spiral are moved by up to this much, uniformly.
        size_px: side of the object; None takes the least that holds the scan, which stands in its middle.

    Raises:
        ConfigError: settings out of range, or a scan that the object does not hold.
    """
    if kind not in POSITIONS:
        raise ConfigError(f"There are no positions {kind!r}. Choose {', '.join(POSITIONS)}.")
    if count < 1 or not (0 < step_px <= MAX_OBJECT_PX and 0 <= jitter_px <= MAX_OBJECT_PX):
        raise ConfigError(
            f"{count} positions with step {step_px:g} and jitter {jitter_px:g} px; give at least one position, a step "
            f"above 0, and a jitter of 0 or more, both at most {MAX_OBJECT_PX}."
        )
    if kind == "random":
        if jitter_px > 0:
            raise ConfigError(f"--jitter {jitter_px:g} is for raster and spiral; random positions need none.")
        needed = N if size_px is not None else N + math.ceil(math.isqrt(count - 1) * step_px)
    else:
        steps = STEPS[kind](count, step_px)
        needed = math.ceil(N + 2 * (float(np.abs(steps).max()) + jitter_px) - 1e-9)
    size = needed if size_px is None else size_px
    if needed > size:
        raise ConfigError(
            f"An object of {size} × {size} pixels does not hold {count} {kind} positions of step {step_px:g} px with "
            f"patches of {N} px: {needed} are needed. Raise --size or leave it out, or lower --patterns or --step."
        )
    if size > MAX_OBJECT_PX:
        raise ConfigError(
            f"{count} {kind} positions need an object of {size} × {size} pixels; its sides have at most "
            f"{MAX_OBJECT_PX}. Lower --patterns, --step or --size."
        )
    if kind == "random":
        positions = rng.uniform(N / 2, size - N / 2, (count, 2))
    else:
        positions = size / 2 + steps + jitter_px * rng.uniform(-1, 1, (count, 2))
    # Rounding could put a position outside by its last bit.
    return ScanPlan(np.clip(positions, N / 2, size - N / 2), size)


# --------------------------------------------------------------------------------------------------------- probes


def focused_probe(
    N: int,
    *,
    aperture_px: float | None = None,
    defocus_px: float | None = None,
    central_stop: float = 0.0,
    edge_px: float = 1.0,
) -> Complex128[np.ndarray, "N N"]:
    """Return a focused beam behind a round lens, away from its focus.

    P = FFT⁻¹(A(q)·exp(-i·φ(q))),  φ(q) = π·a·d/N·(q/a)², q the distance to the zero frequency in detector pixels. A is
    1 for central_stop·a < q < a, with edges edge_px wide. In geometrical optics its rays fill a disk of radius |d|, and
    the ray to q passes the object at r = d·q/a: behind the focus, d > 0, the detector shows the object upright, before
    it upside down. The centre is pixel (N // 2, N // 2), and Σ|P|² = 1.

    Args:
        N: side.
        aperture_px: a, radius of the lens on the detector in detector pixels, at most N/2; None is N/6.
        defocus_px: d, object pixels, positive behind the focus; 0 is in focus; None is N/6.
        central_stop: radius of the stop in the middle of the lens as a part of a, 0 for none, below 1.
        edge_px: width of the edges of lens and stop, detector pixels, at least 1.

    Raises:
        ConfigError: an aperture, stop or defocus out of range.

    >>> focused_probe(64).shape
    (64, 64)
    """
    a = N / 6 if aperture_px is None else aperture_px
    d = N / 6 if defocus_px is None else defocus_px
    if not (1 <= a <= N / 2 and 0 <= central_stop < 1 and abs(d) <= N / 2 and edge_px >= 1):
        raise ConfigError(
            f"A lens of radius {a:g} px with a stop of {central_stop:g}, a defocus of {d:g} px and edges of "
            f"{edge_px:g} px in frames of {N} px; expected 1 to {N / 2:g}, 0 to below 1, at most {N / 2:g}, and at "
            "least 1."
        )
    q_line = np.fft.fftfreq(N, 1 / N)
    q = np.hypot(q_line[:, None], q_line[None, :])
    lens = np.clip((a - q) / edge_px + 0.5, 0, 1)
    if central_stop > 0:
        lens = lens * np.clip((q - central_stop * a) / edge_px + 0.5, 0, 1)
    probe = np.fft.fftshift(np.fft.ifft2(lens * np.exp(-1j * math.pi * a * d / N * (q / a) ** 2)))
    return np.asarray(probe / np.linalg.norm(probe))


def choose_probe(choice: str, N: int) -> Num[np.ndarray, "modes N N"]:
    """Return the probe that a user chose.

    Args:
        choice: ``default`` (``ptycho_torch.data.probe.default_probe``), ``focused``, ``zone_plate`` (a wide lens with a
            central stop, far from its focus, as at an X-ray beamline), or an NPZ file with ``probe`` or ``probeGuess``.
        N: side of the frames.

    Raises:
        ConfigError: no such probe.
        DataContractError: PROBE-01 or NPZ-….
    """
    if choice == "default":
        return default_probe(N).numpy()[None]
    if choice == "focused":
        return focused_probe(N)[None]
    if choice == "zone_plate":
        return focused_probe(N, aperture_px=3 * N / 8, defocus_px=N / 4, central_stop=0.5, edge_px=N / 8)[None]
    if not Path(choice).is_file():
        raise ConfigError(
            f"There is no probe {choice!r}. Choose default, focused, zone_plate, or an NPZ file with 'probe'."
        )
    return read_probe(Path(choice), N)


# -------------------------------------------------------------------------------------------------------- physics


@dataclasses.dataclass(frozen=True)
class SimulatedScan:
    """Patterns, and the probe that made them.

    Attributes:
        amplitude: (M, N, N) float32, √counts, zero frequency at [N // 2, N // 2].
        probe: (modes, N, N) complex64, scaled so that it gives these counts with the object.
    """

    amplitude: np.ndarray
    probe: np.ndarray


def scale_probe(
    specimen: Num[np.ndarray, "H W"],
    probe: Num[np.ndarray, "*modes N N"],
    positions_px: Float64[np.ndarray, "M 2"],
    nphotons: float,
) -> Complex64[np.ndarray, "modes N N"]:
    """Scale a probe so that the mean pattern holds ``nphotons`` counts.

    ⟨Σ_xy Σ_m |view·probe_m|²⟩ = nphotons, the mean over positions; by Parseval this is what reaches the detector.

    Args:
        specimen: the object.
        probe: (N, N) or (modes, N, N); the strengths of its modes stay relative to each other.
        positions_px: (x, y), every patch inside the object.
        nphotons: mean counts of a pattern.

    Raises:
        ConfigError: nphotons out of range.
        DataContractError: arrays that make no scan, or not a single photon behind the object.
    """
    if not LEAST_NPHOTONS <= nphotons <= MOST_NPHOTONS:
        raise ConfigError(
            f"nphotons is {nphotons:g}; give the mean counts of a pattern, {LEAST_NPHOTONS:g} to {MOST_NPHOTONS:g}."
        )
    _check_scan(specimen, probe, positions_px)
    modes = _modes(probe)
    # A probe in odd units must neither overflow nor vanish when it is squared.
    modes = modes / (np.abs(modes).max() or 1.0)
    intensity = torch.from_numpy(np.square(np.abs(modes)).sum(axis=0))
    image, total = torch.from_numpy(specimen.astype(np.complex128)), 0.0
    for part in _parts(len(positions_px), modes.shape):
        views = cut_patches(image, torch.from_numpy(positions_px[part]), modes.shape[-1])
        total += float((views.abs().square() * intensity).sum())
    if not total > 0:
        raise DataContractError(
            "No light passes: the product of object and probe is zero at every position. Give another object or probe."
        )
    return np.asarray(modes * math.sqrt(nphotons * len(positions_px) / total), np.complex64)


def simulate_patterns(
    specimen: Num[np.ndarray, "H W"],
    probe: Num[np.ndarray, "*modes N N"],
    positions_px: Float64[np.ndarray, "M 2"],
    rng: np.random.Generator | None,
) -> Iterator[Float32[np.ndarray, "n N N"]]:
    """Yield the patterns in order, a few at a time.

    counts = fftshift(Σ_m |FFT2(view·probe_m)|² / N²)    [clauses ``exit_wave`` and ``amplitude``]
    amplitude = √Poisson(counts), or √counts without noise

    view is what ``helper.cut_patches`` cuts out of the object at (x, y). All is computed in float64; the pieces do
    not change the numbers.

    Args:
        specimen: the object.
        probe: (N, N) or (modes, N, N) in √counts, as ``scale_probe`` makes it; modes add incoherently.
        positions_px: (x, y), every patch inside the object.
        rng: is drawn from for the noise; None leaves it out.

    Raises:
        DataContractError: arrays that make no scan.
    """
    _check_scan(specimen, probe, positions_px)
    image, modes = torch.from_numpy(specimen.astype(np.complex128)), torch.from_numpy(_modes(probe))
    for part in _parts(len(positions_px), tuple(modes.shape)):
        views = cut_patches(image, torch.from_numpy(positions_px[part]), modes.shape[-1])
        waves = illuminate(views[None], modes, smoothing_sigma=0.0, disk=None)  # (1, n, modes, N, N)
        amplitude = diffract(waves)[0].numpy()
        if rng is not None:
            amplitude = np.sqrt(rng.poisson(np.square(amplitude)))
        yield amplitude.astype(np.float32)


def simulate_scan(
    specimen: Num[np.ndarray, "H W"],
    probe: Num[np.ndarray, "*modes N N"],
    positions_px: Float64[np.ndarray, "M 2"],
    nphotons: float,
    rng: np.random.Generator | None,
) -> SimulatedScan:
    """Simulate a whole scan in memory: ``scale_probe``, then ``simulate_patterns``.

    Args:
        specimen: the object.
        probe: (N, N) or (modes, N, N), in any scale.
        positions_px: (x, y), every patch inside the object.
        nphotons: mean counts of a pattern.
        rng: is drawn from for the noise; None leaves it out.

    Raises:
        ConfigError: nphotons out of range.
        DataContractError: arrays that make no scan.

    >>> scan = simulate_scan(np.ones((9, 9)), np.ones((8, 8)), np.array([[4.0, 4.5]]), 64.0, None)
    >>> scan.amplitude[0, 4, 4], scan.probe.shape
    (np.float32(8.0), (1, 8, 8))
    """
    scaled = scale_probe(specimen, probe, positions_px, nphotons)
    return SimulatedScan(np.concatenate(list(simulate_patterns(specimen, scaled, positions_px, rng))), scaled)


def _modes(probe: np.ndarray) -> np.ndarray:
    return probe.reshape(-1, *probe.shape[-2:]).astype(np.complex128)


def _parts(count: int, probe_shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of so many patterns that their waves take about _CHUNK_BYTES."""
    each = max(1, _CHUNK_BYTES // (_COMPLEX_BYTES * math.prod(probe_shape)))
    for first in range(0, count, each):
        yield slice(first, min(count, first + each))


def _check_scan(specimen: np.ndarray, probe: np.ndarray, positions_px: np.ndarray) -> None:
    """Raise ``DataContractError`` unless every patch of finite arrays lies inside the object."""
    if probe.ndim not in (2, 3) or probe.shape[-1] != probe.shape[-2] or not probe.size:
        raise DataContractError(f"The probe has shape {probe.shape}; expected (N, N) or (modes, N, N).")
    if specimen.ndim != 2 or positions_px.ndim != 2 or positions_px.shape[1] != 2 or not len(positions_px):
        raise DataContractError(
            f"An object of shape {specimen.shape} and positions of shape {positions_px.shape}; expected (H, W) and "
            "(M, 2) with at least one position."
        )
    for name, array in (("object", specimen), ("probe", probe), ("positions", positions_px)):
        if not np.isfinite(array).all():
            raise DataContractError(f"The {name} holds NaN or infinity; give finite numbers.")
    N, (H, W) = probe.shape[-1], specimen.shape
    outside = np.flatnonzero(((positions_px < N / 2) | (positions_px > np.array([W, H]) - N / 2)).any(axis=1))
    if len(outside):
        x, y = positions_px[outside[0]]
        raise DataContractError(
            f"Position {outside[0]} is ({x:g}, {y:g}): its patch of {N} × {N} px reaches beyond the object of {H} × "
            f"{W}; expected {N / 2:g} ≤ x ≤ {W - N / 2:g} and {N / 2:g} ≤ y ≤ {H - N / 2:g}. Move it, or enlarge the "
            "object."
        )


# ---------------------------------------------------------------------------------------------------- the command


def write_scan(
    target: Path,
    specimen: Complex64[np.ndarray, "H W"],
    probe: Complex64[np.ndarray, "modes N N"],
    positions_px: Float64[np.ndarray, "M 2"],
    rng: np.random.Generator | None,
    *,
    overwrite: bool = False,
) -> float:
    """Simulate a scan and write it as it is made, in one rename; return the mean counts of its patterns.

    The positions are exact, so ``xcoords_start`` and ``ycoords_start`` are the same. The file has the same bytes for
    the same arrays and generator.

    Args:
        target: the NPZ file.
        specimen: the object, stored as ``objectGuess``.
        probe: in √counts, as ``scale_probe`` makes it; stored as ``probeGuess``, one mode without a mode axis.
        positions_px: (x, y), every patch inside the object.
        rng: is drawn from for the noise; None leaves it out.
        overwrite: whether a file may be there.

    Raises:
        ConfigError: something is there that may not be overwritten, or not one photon was drawn.
        DataContractError: arrays that make no scan.
        PtychoError: no space on the disk.
    """
    M, N = len(positions_px), probe.shape[-1]
    _require_space(target, M, N)
    x, y = np.ascontiguousarray(positions_px.T)
    total_counts = 0.0
    with (
        replacing(target, overwrite=overwrite, check=open_scan) as file,
        NpzWriter(file) as npz,
        tqdm(total=M, desc="patterns", unit=" patterns", disable=None, leave=False) as bar,
    ):
        with npz.stream("diff3d", (M, N, N), np.dtype(np.float32)) as write:
            for amplitude in simulate_patterns(specimen, probe, positions_px, rng):
                total_counts += float(np.square(amplitude, dtype=np.float64).sum())
                write(amplitude)
                bar.update(len(amplitude))
        if not total_counts > 0:
            raise ConfigError(f"Not one photon was drawn in {M} patterns, and a dark scan is none. Raise --nphotons.")
        for key, array in {
            "xcoords": x,
            "ycoords": y,
            "xcoords_start": x,
            "ycoords_start": y,
            "probeGuess": probe[0] if len(probe) == 1 else probe,
            "objectGuess": specimen,
            "scan_index": np.zeros(M, np.int64),
            "measurement_domain": np.array("amplitude"),
        }.items():
            npz.array(key, array)
    return total_counts / M


def run(options: argparse.Namespace) -> int:
    """Simulate one scan; return 0. On any error nothing is left of the new file.

    Object, positions and noise are drawn from separate streams of the seed, so that a change of one leaves the others.

    Raises:
        ConfigError: settings that make no scan.
        DataContractError: a probe file that breaks a clause.
        PtychoError: no space on the disk.
    """
    target: Path = options.output
    # Before anything as large as the scan is made.
    _require_space(target, options.patterns, options.N)
    object_rng, positions_rng, noise_rng = np.random.default_rng(options.seed).spawn(3)
    probe = choose_probe(options.probe, options.N)
    plan = plan_positions(
        options.positions,
        options.patterns,
        options.N,
        positions_rng,
        step_px=options.step,
        jitter_px=options.jitter,
        size_px=options.size,
    )
    specimen = weaken(draw_specimen(options.object, (plan.size_px, plan.size_px), object_rng), options.contrast)
    scaled = scale_probe(specimen, probe, plan.positions_px, options.nphotons)
    mean_counts = write_scan(
        target,
        specimen,
        scaled,
        plan.positions_px,
        noise_rng if options.noise else None,
        overwrite=options.overwrite,
    )
    print(  # noqa: T201 - the command's answer
        f"{target}: {options.patterns} patterns of {options.N} × {options.N} pixels, mean {mean_counts:.6g} counts; "
        f"object {options.object} of {plan.size_px} × {plan.size_px} pixels, {options.positions} positions"
    )
    if options.plot is not None:
        from ptycho_torch.reconstruction.plots import plot_scan

        plot_scan(examine(target), options.plot)
    return 0


def _require_space(target: Path, M: int, N: int) -> None:
    needed, free = M * N**2 * 4, shutil.disk_usage(existing_folder(target.parent)).free
    if needed > free:
        raise PtychoError(
            f"{target}: {needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free. Free some space, "
            "choose another folder, or lower --patterns or --N."
        )
