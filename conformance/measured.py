"""The measured numbers of the spec: limits of the judge, and how far float32 takes the reference from the truth.

``specs/measured.yaml`` is written by ``python -m conformance calibrate`` on a machine that has TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from conformance.judge import Errors, Limits
from conformance.parity import Key, Quantity
from conformance.spec import SpecError, check_schema, load_stages, read_yaml

FILE = "measured.yaml"


@dataclass(frozen=True)
class Measured:
    """What ``specs/measured.yaml`` says.

    Attributes:
        limits: factors of the float32 rule, floor of the float64 rule.
        reference_factor: how many times its measured error the reference may show before it counts as changed.
        gains: judgement clause → stage clause → the reference's largest error in units of κε and κ'ε. Under REFERENCE
            stand gradients as recordings hold them, flips of linear pieces included.
        conditions: judgement clause → stage clause → largest κ and κ' seen.
    """

    limits: Limits
    reference_factor: Errors
    gains: Mapping[str, Mapping[str, Errors]]
    conditions: Mapping[str, Mapping[str, Errors]]

    def gain(self, judgement: str, stage: str) -> Errors:
        """Return the reference's largest error in units of the condition; fed with the truth, of all stages alike.

        Raises:
            SpecError: the table has no number for it.
        """
        clause = stage_clause(stage)
        alike = _same_operation(clause) if judgement.endswith("FORCED") else (clause,)
        gains = [self.gains[judgement][each] for each in alike if each in self.gains.get(judgement, {})]
        if not gains:
            raise SpecError(f"{FILE}: no gain for {judgement} of {clause}; run `python -m conformance calibrate`.")
        return Errors(max(each.e for each in gains), max(each.m for each in gains))

    def envelope(self, key: Key, quantity: Quantity) -> Errors:
        """Return the reference's envelope for a quantity whose one-ulp amplification is known.

        Raises:
            SpecError: the table has no number for it.
        """
        gain = self.gain(key[0], quantity.stage)
        return Errors(gain.e * quantity.amplified.e, gain.m * quantity.amplified.m)


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


def _pairs(table: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, Errors]]:
    return {clause: {stage: Errors(*pair) for stage, pair in rows.items()} for clause, rows in table.items()}


@cache
def load_measured() -> Measured:
    """Read and check the file.

    Raises:
        SpecError: it does not follow its schema, or speaks of a stage clause that the spec does not have.
    """
    content = read_yaml(FILE)
    check_schema(content, FILE)
    known = {clause.id for clause in load_stages().stages} | {"loss"}
    for rows in content["gains"].values():
        for stage in rows:
            if stage not in known:
                raise SpecError(f"{FILE}: {stage!r} is no stage clause of stages.yaml.")
    limits = content["limits"]
    return Measured(
        limits=Limits(**{name: value for name, value in limits.items() if name != "reference_factor"}),
        reference_factor=Errors(*limits["reference_factor"]),
        gains=_pairs(content["gains"]),
        conditions=_pairs(content["conditions"]),
    )
