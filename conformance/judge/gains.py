"""How far float32 takes the reference from the truth, in units of the condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from conformance.judge.measure import GRADIENT_FORCED, GRADIENT_FREE, Key, Quantity
from conformance.judge.rules import ONE_ULP, Errors
from conformance.spec.loader import load_stages
from ptycho_torch.contracts.contract import SpecError

Table = Mapping[str, Mapping[str, Errors]]
"""Judgement clause → stage clause → [e, m]."""

SMALLEST_SUM, LARGEST_SUM = 64**2, 256**2
"""Products in the gradient of one weight, of one image at N = 64 and at N = 256; gains are tabulated for the
latter, and none was measured on a longer sum."""


def growth(judgement: str, terms: int) -> float:
    """Return the gain of a sum of so many terms, as a share of the tabulated one: max(terms, 64²) / 256², at most 1.

    A weight's gradient fed with the truth is a sum over all pixels, added one by one, and every addition rounds what
    was summed until then. Where terms differ, the roundings add like √terms; where terms are alike, so are the
    roundings, and they add like terms. Noise, by which a condition is measured, averages out instead. So the gain
    grows with the size of the network: specs/README.md has the arithmetic, and what was measured.

    >>> growth(GRADIENT_FORCED, 128**2), growth(GRADIENT_FREE, 128**2)
    (0.25, 1.0)
    """
    return min(max(terms, SMALLEST_SUM) / LARGEST_SUM, 1.0) if judgement == GRADIENT_FORCED else 1.0


def stage_clause(stage: str) -> str:
    """Return the clause id of a stage id: ``encoder.0.conv1`` is judged by ``encoder.{i}.conv1``.

    >>> stage_clause("decoder_amp.1.up")
    'decoder_{D}.{i}.up'
    """
    head, _, rest = stage.partition(".")
    if head.startswith("decoder_"):
        head = "decoder_{D}"
    parts = ["{i}" if part.isdigit() else part for part in rest.split(".")] if rest else []
    return ".".join([head, *parts])


@cache
def _same_operation(clause: str) -> tuple[str, ...]:
    """Clauses of the same operation: fed with the truth, one convolution rounds as another does."""
    operation = {each.id: each.torch for each in load_stages().stages}
    return tuple(each for each, torch in operation.items() if torch == operation.get(clause)) or (clause,)


@dataclass(frozen=True)
class Gains:
    """The reference's largest errors over its condition, measured in some runs.

    Attributes:
        table: judgement clause → stage clause → errors in units of κε and κ'ε, those of sums over pixels as
            ``growth`` says.
    """

    table: Table

    def of(self, judgement: str, stage: str) -> Errors:
        """Return the gain of a stage; fed with the truth, the largest of all stages of the same operation.

        How a library sums a convolution depends on its shape, and so one convolution's rounding says little about the
        next one's, but the largest of all says what float32 costs a convolution.

        Raises:
            SpecError: nothing was measured for it.
        """
        clause = stage_clause(stage)
        alike = _same_operation(clause) if judgement.endswith("FORCED") else (clause,)
        rows = self.table.get(judgement, {})
        found = [rows[each] for each in alike if each in rows]
        if not found:
            raise SpecError(f"no gain was measured for {judgement} of {clause}; run `python -m conformance calibrate`.")
        return Errors(max(each.e for each in found), max(each.m for each in found))

    def widened_when_forced(self, other: Gains) -> Gains:
        """Return these gains, and fed with the truth the larger of these and others.

        One case shows few shapes of convolution; what one costs in float32 is known from more.
        """
        table = {judgement: dict(rows) for judgement, rows in self.table.items()}
        for judgement, rows in other.table.items():
            if judgement.endswith("FORCED"):
                mine = table.setdefault(judgement, {})
                mine |= {stage: mine.get(stage, gain).largest(gain) for stage, gain in rows.items()}
        return Gains(table)

    def envelope(self, key: Key, measured: Mapping[Key, Quantity]) -> Errors:
        """Return the reference's envelope for a quantity.

        A gradient running free has the rounding of its own sum too, as it has when fed with the truth.

        Args:
            key: the quantity.
            measured: all quantities of the run, for their conditions.
        """
        judgement, name = key
        found = self.times_condition(judgement, measured[key])
        if judgement == GRADIENT_FREE:
            found = found.largest(self.times_condition(GRADIENT_FORCED, measured[GRADIENT_FORCED, name]))
        return found

    def times_condition(self, judgement: str, quantity: Quantity) -> Errors:
        """Return the errors that the gain of a clause and the condition of a quantity explain, in float32."""
        gain = self.of(judgement, quantity.stage).scaled(growth(judgement, quantity.terms))
        # The reference runs in float32, whatever the candidate's convolutions run in.
        amplified = quantity.amplified.scaled(min(1.0, ONE_ULP["float32"] / ONE_ULP[quantity.unit]))
        return Errors(gain.e * amplified.e, gain.m * amplified.m)


def widest(runs: Iterable[Mapping[Key, Quantity]]) -> Gains:
    """Measure gains in some runs of the reference."""
    table: dict[str, dict[str, Errors]] = {}
    for run in runs:
        for (judgement, _), quantity in run.items():
            amplified = quantity.amplified
            gain = Errors(0.0, 0.0)
            if amplified.e > 0:
                gain = Errors(quantity.errors.e / amplified.e, quantity.errors.m / amplified.m)
                gain = gain.scaled(1 / growth(judgement, quantity.terms))
            rows, clause = table.setdefault(judgement, {}), stage_clause(quantity.stage)
            rows[clause] = rows.get(clause, gain).largest(gain)
    return Gains(table)
