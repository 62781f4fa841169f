"""Does a converted model give what the TensorFlow reference recorded? Every recorded quantity, the whole object too."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance.cases.case import Case
from conformance.judge.condition import FREE_DRAWS, STEP, mover, noisy_stages
from conformance.judge.gains import Gains
from conformance.judge.measure import FORWARD_FORCED, FORWARD_FREE, RECORDED, REFERENCE
from conformance.judge.measured import Measured
from conformance.judge.rules import ONE_ULP, Errors, Verdict, compare, deviation, errors, float32_budget, rounding
from conformance.judge.truth import Truth
from conformance.oracle.operations import stitch
from conformance.progress import Progress
from conformance.subjects.torch import float32_means_float32
from conformance.verify.predictions import GroupAmplitude, Predictions, StitchedPrediction
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch.reconstruction.reassembly import Stitcher

if TYPE_CHECKING:
    from ptycho_torch.train import PtychoPINN

STITCHED = "stitched"
"""Name of the whole object among the recorded quantities."""

STITCHED_DRAWS = 1
"""Noisy runs by which the condition of a whole object is measured: it averages over many predictions already. On a real
archive six draws lay within 10 % of each other in e, and within a factor of 1.7 in m."""

_AT_ONCE = 8
"""Groups that the converted model predicts in one call."""


@dataclass(frozen=True)
class Recorded:
    """One recorded quantity.

    Attributes:
        name: stage id, or ``stitched``.
        given: what the reference recorded.
        ours: what the converted model gives in float32.
        own: errors of ours against the float64 truth.
        reference: what was recorded against the truth (clause REFERENCE).
        converted: ours against what was recorded (clause RECORDED).
    """

    name: str
    given: np.ndarray
    ours: np.ndarray
    own: Errors
    reference: Verdict
    converted: Verdict

    @property
    def verdicts(self) -> tuple[Verdict, Verdict]:
        """Both verdicts."""
        return self.reference, self.converted


@dataclass(frozen=True)
class _Run:
    """The truth of some outputs, and what they are when everything moves a little."""

    truth: Mapping[str, np.ndarray]
    noisy: Sequence[Mapping[str, np.ndarray]]


def _amplified(truth: np.ndarray, noisy: Iterable[np.ndarray]) -> Errors:
    """Return what float32 rounding does to a quantity: never less than the rounding of the quantity itself."""
    found = rounding(truth, "float32")
    for each in noisy:
        found = found.largest(compare(each, truth).scaled(ONE_ULP["float32"] / STEP))
    return found


def judge_recorded(
    case: Case,
    predictions: Predictions,
    groups: GroupAmplitude | None,
    module: PtychoPINN,
    gains: Gains,
    measured: Measured,
    progress: Progress,
) -> tuple[Recorded, ...]:
    """Judge every recorded quantity.

    Args:
        case: settings, weights, probe and scale of the archive; its inputs are not used.
        predictions: what was recorded.
        groups: amplitude of the groups that were stitched; None leaves the whole object out.
        module: the converted model, on the device where it is judged.
        gains: what float32 costs the reference.
        measured: limits of the judge.
        progress: is advanced by ``runs_of_the_oracle``.
    """
    names = tuple(predictions.recorded)
    progress.begin(f"{', '.join(names)} of {len(predictions.diffraction)} groups as recorded")
    run = _oracle(case, lambda some: predictions.diffraction[some], predictions.offsets_px, names, FREE_DRAWS, progress)
    parts = [
        _predict(module, predictions.diffraction[some], predictions.offsets_px[some])
        for some in _parts(len(predictions.diffraction), _AT_ONCE)
    ]
    found = []
    for name, given in predictions.recorded.items():
        ours = np.concatenate([part[name] for part in parts])
        amplified = _amplified(run.truth[name], [noisy[name] for noisy in run.noisy])
        gain = gains.of(FORWARD_FREE, name)
        found.append(_judge(name, given, ours, run.truth[name], amplified, gain, measured))
    if predictions.stitched is not None and groups is not None:
        found.append(_judge_stitched(case, predictions.stitched, groups, module, gains, measured, progress))
    return tuple(found)


def _judge_stitched(
    case: Case,
    recorded: StitchedPrediction,
    groups: GroupAmplitude,
    module: PtychoPINN,
    gains: Gains,
    measured: Measured,
    progress: Progress,
) -> Recorded:
    """Judge the whole object: every group predicted, and placed as the reference places it."""
    progress.begin(f"the whole object of {len(recorded.nn_indices)} groups as recorded")
    run = _oracle(case, groups.of, recorded.offsets_px, ("object",), STITCHED_DRAWS, progress)
    mean_px = recorded.centres_px.mean(axis=0)

    def stitched(objects: np.ndarray, centres_px: np.ndarray) -> np.ndarray:
        return stitch(objects[..., 0], centres_px, recorded.crop_px)

    truth = stitched(run.truth["object"], recorded.centres_px)
    # Where an object is placed is an input of this step, and float32 rounds it.
    noisy = [
        stitched(each["object"], mean_px + mover(seed)(recorded.centres_px - mean_px))
        for seed, each in enumerate(run.noisy)
    ]
    stitcher = Stitcher(torch.from_numpy(recorded.centres_px), module.network.settings.N, recorded.crop_px, "uniform")
    for some in _parts(len(recorded.nn_indices), _AT_ONCE):
        objects = _predict(module, groups.of(some), recorded.offsets_px[some])["object"]
        stitcher.add(torch.from_numpy(objects[..., 0]), torch.from_numpy(recorded.centres_px[some]))
    ours = stitcher.result().object.numpy().astype(np.complex64)
    # Placing an object on a canvas is what merging does to patches, and costs float32 as much.
    gain = gains.of(FORWARD_FREE, "object").largest(gains.of(FORWARD_FORCED, "merged"))
    return _judge(STITCHED, recorded.canvas, ours, truth, _amplified(truth, noisy), gain, measured)


def _judge(
    name: str,
    given: np.ndarray,
    ours: np.ndarray,
    truth: np.ndarray,
    amplified: Errors,
    gain: Errors,
    measured: Measured,
) -> Recorded:
    envelope = Errors(gain.e * amplified.e, gain.m * amplified.m)
    ceiling, factor = envelope.largest(amplified), measured.reference_factor
    reference = deviation(given, truth)
    difference = deviation(ours, given.astype(truth.dtype))
    of_reference, of_difference = errors([reference]), errors([difference])
    return Recorded(
        name=name,
        given=given,
        ours=ours,
        own=compare(ours, truth),
        reference=Verdict(
            REFERENCE,
            name,
            of_reference,
            of_reference,
            Errors(ceiling.e * factor.e, ceiling.m * factor.m),
            reference.mismatch,
        ),
        converted=Verdict(
            RECORDED,
            name,
            of_reference,
            of_difference,
            float32_budget(envelope, amplified, measured.limits),
            difference.mismatch,
        ),
    )


def _oracle(
    case: Case,
    diffraction: Callable[[slice], np.ndarray],
    offsets_px: np.ndarray,
    names: Sequence[str],
    draws: int,
    progress: Progress,
) -> _Run:
    """Run the oracle over groups, one at a time and some side by side; keep only the named outputs."""

    def outputs(some: slice) -> list[dict[str, np.ndarray]]:
        part = Truth(dataclasses.replace(case, diffraction=diffraction(some), offsets_px=offsets_px[some]))
        # Each group has noise of its own.
        moves = [lambda array: array, *(mover(some.start * draws + seed) for seed in range(draws))]
        runs = [noisy_stages(part, move, names) for move in moves]
        return [{name: run[name] for name in names} for run in runs]

    found: list[list[dict[str, np.ndarray]]] = []
    # NumPy lets go of the interpreter in what takes long, so threads will do.
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for each in workers.map(outputs, _parts(len(offsets_px), 1)):
            found.append(each)
            progress.advance(1 + draws)
    truth, *noisy = (_joined(runs) for runs in zip(*found, strict=True))
    return _Run(truth, noisy)


def runs_of_the_oracle(predictions: Predictions, *, whole: bool) -> int:
    """Return how many runs over one group ``judge_recorded`` takes, for an estimate of its time."""
    stitched = len(predictions.stitched.nn_indices) if whole and predictions.stitched is not None else 0
    return len(predictions.diffraction) * (1 + FREE_DRAWS) + stitched * (1 + STITCHED_DRAWS)


def _joined(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in runs]) for name in runs[0]}


def _parts(count: int, at_once: int) -> Iterator[slice]:
    """Yield some groups after the others."""
    return (slice(start, start + at_once) for start in range(0, count, at_once))


def _predict(module: PtychoPINN, diffraction: np.ndarray, offsets_px: np.ndarray) -> dict[str, np.ndarray]:
    """Predict as users do, channels-last; float32 means float32."""
    images = torch.from_numpy(LAYOUTS["channels"].to_torch(diffraction)).to(module.device)
    coords = torch.from_numpy(LAYOUTS["offsets"].to_torch(offsets_px)).to(module.device)
    with torch.inference_mode(), float32_means_float32():
        found = {"object": module.forward_predict(images, coords), "predicted_amplitude": module(images, coords)}
    return {name: LAYOUTS["channels"].to_tensorflow(tensor.cpu().numpy()) for name, tensor in found.items()}
