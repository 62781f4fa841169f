"""How well object and probe of a reconstruction predict the patterns that were measured."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance import oracle_operations
from conformance.hypotheses import Hypothesis
from conformance.oracle_data import Preparation
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32
from conformance.steps_scores import draw_object
from ptycho_torch.config_params import DataSettings

BIN, GIVEN_PX, PATCH_PX, SIGMA_PX = 2, 16, 8, 0.9
SETTINGS = DataSettings(N=PATCH_PX, detector_bin=BIN, positions_swap_xy=True, positions_flip_y=True)


@dataclass(frozen=True)
class _Explained:
    """A reconstruction and the frames of its scan.

    Attributes:
        image: object.
        coverage: 0 in a corner.
        origin_px: of its first pixel.
        probe: (2, N, N).
        frames: (n, 2N, 2N) measured amplitude.
        places_px: (n, 2) positions in the file.
        bad: (2N, 2N) pixels that do not count.
    """

    image: np.ndarray
    coverage: np.ndarray
    origin_px: np.ndarray
    probe: np.ndarray
    frames: np.ndarray
    places_px: np.ndarray
    bad: np.ndarray

    @classmethod
    def drawn(cls) -> _Explained:
        rng = np.random.default_rng(17)
        coverage = rng.uniform(0.5, 2.0, (30, 36))
        coverage[:9, :12] = 0
        bad = np.zeros((GIVEN_PX, GIVEN_PX), bool)
        bad[3, 5] = bad[12, 9] = True
        modes = rng.standard_normal((2, 2, PATCH_PX, PATCH_PX)) * np.array([1.0, 0.6])[:, None, None]
        return cls(
            image=draw_object(rng, (30, 36)).astype(np.complex64),
            coverage=coverage,
            origin_px=np.array([-3.2, -31.4]),
            probe=(modes[0] + 1j * modes[1]).astype(np.complex64),
            frames=rng.gamma(2.0, 3.0, (12, GIVEN_PX, GIVEN_PX)).astype(np.float32),
            places_px=rng.uniform((3, 0), (30, 31), (12, 2)),
            bad=bad,
        )

    def positions_px(self) -> np.ndarray:
        """Return (n, 2) positions in the frame of the reconstruction."""
        preparation = Preparation(frame_px=GIVEN_PX, N=PATCH_PX, bins=BIN)
        return preparation.positions_px(self.places_px, swap_xy=True, flip_x=False, flip_y=True)

    def inside(self, positions_px: np.ndarray) -> np.ndarray:
        """Return (n,) whether every pixel that a patch reads is covered."""
        found = []
        for x, y in positions_px - self.origin_px:
            (left, right), (top, bottom) = (
                (math.floor(each - PATCH_PX / 2), math.ceil(each - PATCH_PX / 2) + PATCH_PX) for each in (x, y)
            )
            pixels = itertools.product(range(top, bottom), range(left, right))
            rows, columns = self.image.shape
            found.append(all(0 <= j < rows and 0 <= i < columns and self.coverage[j, i] > 0 for j, i in pixels))
        return np.array(found)

    def nmse(
        self,
        *,
        sigma_px: float = SIGMA_PX,
        masked: bool = True,
        every: bool = False,
        good: bool = True,
        modes: slice = slice(None),
        square: bool = False,
    ) -> float:
        """Return min over c of Σ (a − c·p)² / Σ a², a measured and p predicted."""
        places = self.positions_px()
        chosen = np.ones(len(places), bool) if every else self.inside(places)
        preparation = Preparation(frame_px=GIVEN_PX, N=PATCH_PX, bins=BIN)
        kept = np.where(self.bad, 0, self.frames)
        a = preparation.amplitude(kept)[chosen]
        views = oracle_operations.ground_truth_patches(self.image, (places - self.origin_px)[chosen], PATCH_PX)
        wave = views[:, None] * self.probe[modes]
        wave = oracle_operations.smooth(wave, sigma_px) if sigma_px else wave
        wave = wave * oracle_operations.disk_mask(PATCH_PX) if masked else wave
        p = np.sqrt(oracle_operations.diffracted_intensity(wave).sum(axis=1))
        if square:
            a, p = a**2, p**2
        if good:
            counts = preparation.good_pixels(~self.bad)
            a, p = a * counts, p * counts
        factor = np.sum(a * p) / np.sum(p**2)
        return float(np.sum((a - factor * p) ** 2) / np.sum(a**2))


def _diffraction_nmse(_: StepBench) -> Outcome:
    """Predict the binned patterns of a scan from object and probe."""
    from ptycho_torch.diffraction_scores import score_diffraction
    from ptycho_torch.products import Reconstruction
    from ptycho_torch.scan import open_scan

    drawn = _Explained.drawn()
    said = {
        "settings": {"data": dataclasses.asdict(SETTINGS)},
        "network": {"gaussian_smoothing_sigma": SIGMA_PX, "probe_mask": True},
    }
    x, y = (float(each) for each in drawn.origin_px)
    plain = {"settings": said["settings"]}
    nmse = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        np.savez(
            path,
            diff3d=drawn.frames,
            xcoords=drawn.places_px[:, 0],
            ycoords=drawn.places_px[:, 1],
            bad_pixels=drawn.bad,
        )
        scan = open_scan(path)
        for name, provenance in (("blurred and masked", said), ("neither", plain)):
            reconstruction = Reconstruction(
                drawn.image, drawn.coverage, (x, y), np.zeros((1, 2)), drawn.probe, provenance
            )
            nmse[name] = np.array(score_diffraction(reconstruction, scan).nmse)

    def both(**wrong: Any) -> dict[str, np.ndarray]:
        bare = {"sigma_px": 0.0, "masked": False} | wrong
        return {"blurred and masked": np.array(drawn.nmse(**wrong)), "neither": np.array(drawn.nmse(**bare))}

    def mistakes() -> Iterator[Hypothesis]:
        yield Hypothesis("blur forgotten", both(sigma_px=0.0))
        yield Hypothesis("mask forgotten", both(masked=False))
        yield Hypothesis("patches beyond the covered pixels counted", both(every=True))
        yield Hypothesis("bad pixels counted", both(good=False))
        yield Hypothesis("the first mode alone", both(modes=slice(1)))
        yield Hypothesis("intensity for amplitude", both(square=True))

    return Outcome(both(), nmse, FLOAT32, mistakes)


EXPLAINING: tuple[Step, ...] = (Step("forward.diffraction_nmse", ("SCORE-02", "exit_wave"), _diffraction_nmse),)
