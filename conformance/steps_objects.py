"""From a module to the object of each scan: Trainer, centres and stitching.

What the network says of a group is given here: it is judged stage by stage elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_light import normalised
from conformance.steps_map_tables import write_scans
from conformance.steps_scans import FLOAT32, folder_of
from conformance.steps_stitching import CHANGES, WEIGHTINGS, Parts, Placed, named, parts_of
from ptycho_torch.config_params import DataSettings, NetworkSettings, Settings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
    from ptycho_torch.train import PtychoPINN

N, FRAME_PX, BINS, BATCH, PROBE_SCALE = 64, 128, 2, 4, 3.0
COUNTS = (5, 6)
"""Patterns, and groups, of the two scans: batches of 4, 4 and 3 groups, the second with some of either scan."""

SEEDS = (12, 1157)
"""Of scans whose centres lie on their canvas as (y, x) too, so that nothing but the object shows that mistake."""

CROPS_PX = {"uniform": 20, "smooth": N // 2}
"""Side of the central square where nobody gives one."""

SCAN_DISTANCE_M = 7.0
WAVELENGTHS_M, PIXELS_M = (1.2e-10, 1.5e-10), (5e-5, 7.5e-5)
SETTINGS = DataSettings(N=N, gridsize=2, K=3, detector_bin=BINS, group_seed=3)


def draw_measured_scans() -> dict[str, dict[str, np.ndarray]]:
    """Draw two scans that say of what they were measured with what the caller does not."""
    scans: dict[str, dict[str, np.ndarray]] = {}
    for number, patterns in enumerate(COUNTS):
        rng = np.random.default_rng(SEEDS[number])
        x, y = rng.uniform(40, 64, (patterns, 2)).T
        modes = rng.standard_normal((2, 2, FRAME_PX, FRAME_PX)) * np.array([1.0, 0.6])[:, None, None]
        scans[f"scan_{number}"] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, FRAME_PX, FRAME_PX)).astype(np.float32),
            "xcoords": x,
            "ycoords": y,
            "probeGuess": (modes[0] + 1j * modes[1]).astype(np.complex64),
            "wavelength_m": np.array(WAVELENGTHS_M[number]),
            "detector_pixel_m": np.array(PIXELS_M[number]),
        }
    # One scan says it wrong, the other does not say it, and the caller knows.
    scans["scan_0"]["detector_distance_m"] = np.array(SCAN_DISTANCE_M)
    return scans


class Trained:
    """Two scans on disk, their dataset, and a module that stands for a trained one."""

    def __init__(self) -> None:
        self.root = folder_of(self)
        write_scans(self.root / "scans", draw_measured_scans())

    @cached_property
    def dataset(self) -> PtychoDataset:
        """The groups of both scans."""
        from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

        return PtychoDataset(self.root / "scans", data_dir=self.root / "map", settings=SETTINGS)

    @cached_property
    def module(self) -> PtychoPINN:
        """A module in float64 whose biases are not zero."""
        import torch

        from ptycho_torch.train import PtychoPINN

        chosen = {"n_filters_scale": 1, "precision": "64-true", "probe_scale": PROBE_SCALE, "device": "cpu"}
        module = PtychoPINN.for_dataset(self.dataset, Settings().override(chosen))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in module.network.parameters():
                if weight.requires_grad:
                    weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        return module

    @cached_property
    def members(self) -> np.ndarray:
        """(L, C) patterns of each group."""
        return self.dataset.nn_indices.numpy().astype(np.int64)

    @cached_property
    def places_px(self) -> np.ndarray:
        """(L, C, 2) positions of the patterns of each group."""
        return np.asarray(self.dataset.positions_px.numpy()[self.members])

    @cached_property
    def scans(self) -> np.ndarray:
        """(L,) number of the scan of each group."""
        return np.asarray((self.members[:, 0] >= COUNTS[0]).astype(np.int64))

    def objects(self) -> np.ndarray:
        """Return (L, N, N) the object of each group as the whole network says it, in the batches of the Trainer."""
        found = []
        for first in range(0, sum(COUNTS), BATCH):
            batch = self.dataset[first : first + BATCH]
            amplitude = batch.images.numpy() * np.float32(self.module.scale)
            found.append(predicted(self.module, amplitude, batch)["object"][:, 0])
        return np.concatenate(found)

    def placed(self, objects: np.ndarray, centres_px: np.ndarray) -> list[Placed]:
        """Return the objects of each scan at their centres."""
        return [
            Placed(objects[self.scans == number], centres_px[self.scans == number]) for number in range(len(COUNTS))
        ]


def predicted(
    module: PtychoPINN, amplitude: np.ndarray, batch: PtychoBatch, probe: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return what the network of a module says of scaled amplitude at the offsets of a batch."""
    import torch

    with torch.no_grad():
        prediction = module.network(
            torch.from_numpy(amplitude.astype(np.float64)),
            batch.coords.double(),
            None if probe is None else torch.from_numpy(np.ascontiguousarray(probe)),
        )
    return {name: getattr(prediction, name).numpy() for name in ("object", "amplitude")}


def _own_probe(bench: StepBench) -> Outcome:
    """A module for a dataset starts with the normalised modes of its first scan."""
    trained = bench.once(Trained)
    modes = trained.dataset.probes.numpy().astype(np.complex128)
    found = {
        "probe": trained.module.network.probe.detach().numpy(),
        "modes": np.array(trained.module.statistics["probe_modes"]),
    }
    mistakes = [
        Hypothesis("probe not normalised", {"probe": modes[0]}),
        Hypothesis("probe of another scan", {"probe": normalised(modes[1], PROBE_SCALE)}),
        Hypothesis("another probe scale", {"probe": normalised(modes[0], Settings().model.probe_scale)}),
        Hypothesis("mean over modes for their sum", {"probe": np.sqrt(2) * normalised(modes[0], PROBE_SCALE)}),
        Hypothesis("conjugation", {"probe": normalised(modes[0], PROBE_SCALE).conj()}),
    ]
    return Outcome({"probe": normalised(modes[0], PROBE_SCALE), "modes": np.array(2)}, found, FLOAT32, mistakes)


@contextlib.contextmanager
def _plain_network(module: PtychoPINN) -> Iterator[None]:
    """Let a module have a network that says Σ_c (c + 1 + i (1, 2)·o_c) a_c of amplitude and offsets."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self, settings: NetworkSettings) -> None:
            super().__init__()
            self.settings = settings

        def reconstruct(self, amplitude: torch.Tensor, offsets_px: torch.Tensor) -> torch.Tensor:
            real = torch.arange(1.0, 1 + amplitude.shape[1], dtype=amplitude.dtype)
            imaginary = offsets_px[:, :, 0] @ torch.tensor([1.0, 2.0], dtype=amplitude.dtype)
            weights = torch.complex(real.expand_as(imaginary), imaginary)
            return (weights[:, :, None, None] * amplitude).sum(dim=1, keepdim=True)

    network = module.network
    module.add_module("network", Plain(network.settings))
    try:
        yield
    finally:
        module.add_module("network", network)


def _said(trained: Trained, scale: float) -> np.ndarray:
    """Return (L, N, N) what the plain network says of every group, its input scaled so."""
    batch = trained.dataset[:]
    amplitude = (batch.images.numpy() * np.float32(scale)).astype(np.float64)
    offsets = batch.coords.numpy().astype(np.float64)[:, :, 0]
    weights = np.arange(1, 1 + amplitude.shape[1]) + 1j * (offsets[..., 0] + 2 * offsets[..., 1])
    return np.asarray((weights[:, :, None, None] * amplitude).sum(axis=1))


def _reconstruct(bench: StepBench) -> Outcome:
    """Predict and stitch the groups of two scans with either weighting and the square that belongs to it."""
    from ptycho_torch.inference import reconstruct

    trained = bench.once(Trained)
    centres, objects = trained.places_px.mean(axis=1), _said(trained, trained.module.scale)

    def stitched(scans: Sequence[Placed], crops_px: Mapping[str, int] = CROPS_PX) -> dict[str, list[Parts]]:
        return {each: [stitch(scan, crops_px[each]) for scan in scans] for each, stitch in WEIGHTINGS.items()}

    found = {}
    with _plain_network(trained.module):
        for weighting in ("smooth", "uniform"):
            results = reconstruct(
                trained.module, trained.dataset, batch_size=BATCH, weighting=weighting, device="cpu", progress=False
            )
            found[weighting] = parts_of(results)
    expected = named(stitched(trained.placed(objects, centres))) | {"still in training": np.array(True)}
    given = named(found) | {"still in training": np.array(trained.module.training)}

    def mistakes() -> Iterator[Hypothesis]:
        right = trained.placed(objects, centres)
        for name, change in CHANGES.items():
            yield Hypothesis(name, named(stitched([change(scan) for scan in right])))
        for name, places in (
            ("swapped x/y of the centres", centres[:, ::-1]),
            ("position of the first pattern for the mean of the group", trained.places_px[:, 0]),
            ("centres of whole pixels", np.round(centres)),
        ):
            moved = [
                Placed(scan.patches, places[trained.scans == n], scan.positions_px) for n, scan in enumerate(right)
            ]
            yield Hypothesis(name, named(stitched(moved)))
        rolled = [Placed(scan.patches, np.roll(scan.positions_px, 1, axis=0)) for scan in right]
        yield Hypothesis("centres of other groups", named(stitched(rolled)))
        full = len(objects) // BATCH * BATCH - COUNTS[0]
        short = [right[0], Placed(right[1].patches[:full], right[1].positions_px[:full], right[1].positions_px)]
        yield Hypothesis("the last, smaller batch left out", named(stitched(short)))
        bare = trained.placed(_said(trained, 1.0), centres)
        yield Hypothesis("input not scaled", named(stitched(bare)))
        for name, crops_px in (
            ("square of the other weighting", {"uniform": N // 2, "smooth": 20}),
            ("square of the whole patch", dict.fromkeys(WEIGHTINGS, N)),
        ):
            both = named(stitched(right, crops_px))
            yield Hypothesis(name, both)
        for weighting, other in (("smooth", "uniform"), ("uniform", "smooth")):
            for crop_px in (CROPS_PX[weighting], CROPS_PX[other]):
                parts = [WEIGHTINGS[other](scan, crop_px) for scan in right]
                yield Hypothesis("weighting ignored", named({weighting: parts}))

    return Outcome(expected, given, FLOAT64, mistakes)


OBJECTS: tuple[Step, ...] = (
    Step("forward.own_probe", ("OBJECT-01", "exit_wave"), _own_probe, ("lightning", "tensordict")),
    Step("forward.reconstruct", ("OBJECT-01", "STITCH-01"), _reconstruct, ("lightning", "tensordict")),
)
