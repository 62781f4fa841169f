"""Which linear pieces the gradients of a recording were taken on, where it holds the gradients and not the pieces.

At a kink the derivative jumps. Rounding decides on which side an element falls that lies closer to its kink than the
reference's own error; derivatives are then judged on the piece that the side is on, as the branch rule says. The larger
the network, the more such elements it has: a single one can move a gradient by a hundred times its condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.judge.truth import Truth
from conformance.oracle.stages import rms

Gradients = Mapping[str, np.ndarray]
Shares = Callable[[Gradients], Mapping[str, float]]
"""Gradients of all weights → weight → share of its ceiling that the recorded one would use beside these."""

TRIED = 32
"""Elements that are tried, those nearest to their kinks; a network of N = 256 has a few that come into question."""


@dataclass(frozen=True)
class Doubt:
    """An element that rounding may put on the other side of its kink.

    Attributes:
        stage: stage id, or ``loss``.
        index: flat.
        distance: from the kink, as a share of what rounding moves such an element.
    """

    stage: str
    index: int
    distance: float


def recorded_pieces(truth: Truth, reach: Mapping[str, float], shares: Shares) -> Gradients | None:
    """Return the gradients on the pieces that explain recorded ones; None where no such pieces are found.

    Elements change sides one by one, the one that explains most first, until all gradients keep to their ceilings.

    Args:
        truth: of the case.
        reach: stage id → how far from a kink rounding may still change sides, in units of the RMS.
        shares: judges the recorded gradients beside others.
    """
    own = truth.gradients.constants
    found = shares(own)
    wrong = [name.rpartition(".")[0] for name, share in found.items() if share > 1]
    doubts = _doubts(truth, reach, wrong)
    changes = [_difference(truth.gradients_on(_flipped(truth, [each])).constants, own) for each in doubts]
    chosen: list[int] = []
    explained: Gradients = own
    left = _total(found)
    while max(found.values()) > 1 and len(chosen) < len(doubts):
        tried = {
            number: _total(shares(_sum(explained, change)))
            for number, change in enumerate(changes)
            if number not in chosen
        }
        best = min(tried, key=tried.__getitem__)
        if tried[best] >= left:
            break
        chosen.append(best)
        explained, left = _sum(explained, changes[best]), tried[best]
        found = shares(explained)
    if not chosen or max(found.values()) > 1:
        return None
    # Two elements on one path do more than the sum of what each does.
    return truth.gradients_on(_flipped(truth, [doubts[number] for number in chosen])).constants


def _doubts(truth: Truth, reach: Mapping[str, float], wrong: Sequence[str]) -> list[Doubt]:
    """List the elements near a kink that any of the wrong gradients hears of, the nearest first."""
    found: list[Doubt] = []
    for stage, distances in _distances(truth):
        # The loss hears of every stage.
        heard = {stage, *_before(truth, stage)} if stage != "loss" else set(wrong)
        if heard & set(wrong):
            found += [
                Doubt(stage, int(index), float(distances.flat[index] / reach[stage]))
                for index in np.flatnonzero(distances <= reach[stage])
            ]
    return sorted(found, key=lambda each: each.distance)[:TRIED]


def _distances(truth: Truth) -> Iterator[tuple[str, np.ndarray]]:
    for stage in truth.oracle.stages:
        inputs = truth.values_of(stage, truth.stages, truth.network_input)
        distances = truth.oracle.node(stage).distances(inputs, truth.constants)
        if distances is not None:
            yield stage, distances
    if truth.loss_weights["mae_weight"]:
        yield "loss", np.abs(truth.stages["predicted_amplitude"] - truth.network_input) / rms(truth.network_input)


def _before(truth: Truth, stage: str) -> set[str]:
    """Return the stages whose output reaches a stage."""
    direct = [name for name in truth.oracle.inputs[stage] if name != "input"]
    return set(direct).union(*(_before(truth, name) for name in direct))


def _flipped(truth: Truth, doubts: Sequence[Doubt]) -> dict[str, np.ndarray]:
    """Return the truth's own pieces with some elements on the other side."""
    pieces = {name: branch.copy() if any(each.stage == name for each in doubts) else branch
              for name, branch in truth.own_branches.items()}  # fmt: skip
    for each in doubts:
        branch = pieces[each.stage]
        branch.flat[each.index] = not branch.flat[each.index] if branch.dtype == bool else -branch.flat[each.index]
    return pieces


def _difference(left: Gradients, right: Gradients) -> Gradients:
    return {name: left[name] - array for name, array in right.items()}


def _sum(left: Gradients, right: Gradients) -> Gradients:
    return {name: array + right[name] for name, array in left.items()}


def _total(shares: Mapping[str, float]) -> float:
    return sum(share**2 for share in shares.values())
