"""Seeded faults of the comparison with a known object, and of simulation."""

from __future__ import annotations

import dataclasses

import numpy as np

from conformance.seeding import Fault, after, argument, instead, of_area
from ptycho_torch import alignment, diffraction_scores, evaluate, rings, simulate

_score = of_area("forward")


def _scale_of_the_magnitude(image: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    ours, theirs = image[valid], truth[valid]
    return float(np.abs(np.vdot(ours, theirs)) / np.sum(np.abs(ours) ** 2))


SCORES: tuple[Fault, ...] = (
    _score(
        "counts of the whole scan for a pattern's",
        "simulated",
        simulate,
        "scale_probe",
        lambda original: (
            lambda specimen, probe, positions_px, nphotons: original(
                specimen, probe, positions_px, nphotons / len(positions_px)
            )
        ),
        "counts of the whole scan",
    ),
    _score(
        "file without noise",
        "simulated",
        simulate,
        "simulate_patterns",
        argument(3, lambda rng: None),
        "no noise in the file",
    ),
    _score(
        "scale of the magnitude",
        "alignment",
        alignment,
        "fit_scale",
        instead(_scale_of_the_magnitude),
        "scale of the magnitude",
    ),
    _score(
        "image moved to the other side",
        "alignment",
        alignment,
        "shift_image",
        argument(1, lambda shift_px: (-shift_px[0], -shift_px[1])),
        "sign of the shift",
    ),
    _score(
        "origin as (y, x)", "aligned", evaluate, "compare", argument(1, lambda origin_px: origin_px[::-1]), "exchanged"
    ),
    _score(
        "origin cut to whole pixels",
        "aligned",
        evaluate,
        "compare",
        argument(1, np.floor),
        "origin cut to whole pixels",
    ),
    _score(
        "shift to the other side",
        "alignment",
        alignment,
        "find_shift",
        after(lambda shift_px: (-shift_px[0], -shift_px[1])),
        "sign of the shift",
    ),
    _score(
        "one pixel more at each side",
        "aligned",
        evaluate,
        "_span",
        argument(1, lambda grow: grow - 1),
        None,
    ),
    _score(
        "scores of every pixel",
        "scores",
        evaluate,
        "score",
        argument(0, lambda pair: dataclasses.replace(pair, valid=np.ones_like(pair.valid))),
        "pixels that are not valid counted",
    ),
    _score(
        "phase correlation about 0",
        "scores",
        evaluate,
        "_phases",
        lambda original: lambda pair: (np.angle(pair.aligned), np.angle(pair.truth)),
        "phases about 0",
    ),
    _score(
        "edges not tapered",
        "rings",
        rings,
        "ring_correlation",
        lambda original: lambda first, second, taper=0.25: original(first, second, taper=0.0),
        "edges not tapered",
    ),
    _score("crossing of the ring before", "rings", rings, "_crossing", after(lambda ring: max(ring - 1, 0.0)), None),
    _score(
        "errors of every pixel",
        "evaluate",
        evaluate,
        "_image_errors",
        argument(3, np.ones_like),
        "pixels that are not valid counted",
    ),
    _score(
        "coverage not handed on",
        "evaluate",
        evaluate,
        "evaluate",
        argument(0, lambda each: dataclasses.replace(each, coverage=np.ones_like(each.coverage))),
        "coverage ignored",
    ),
    _score(
        "patches beyond the object",
        "diffraction_nmse",
        diffraction_scores,
        "covered_patches",
        after(np.ones_like),
        "beyond the covered pixels",
    ),
)
"""Faults of scores and of simulated scans."""
