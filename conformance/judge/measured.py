"""The measured numbers of the spec: limits of the judge, and how far float32 takes the reference from the truth.

``specs/measured.yaml`` is written by ``python -m conformance calibrate`` on a machine that has TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from conformance.judge.gains import Gains
from conformance.judge.rules import Errors, Limits
from conformance.spec.loader import check_schema, load_stages
from ptycho_torch.contracts.contract import SpecError, read_yaml

FILE = "measured.yaml"


@dataclass(frozen=True)
class Measured:
    """What ``specs/measured.yaml`` says.

    Attributes:
        limits: factors of the float32 rule, floor of the float64 rule.
        reference_factor: how many times its measured error the reference may show before it counts as changed.
        gains: judgement clause → stage clause → the reference's largest error in units of κε and κ'ε. Under REFERENCE
            stand gradients as recordings hold them, flips of linear pieces included.
    """

    limits: Limits
    reference_factor: Errors
    gains: Gains


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
        gains=Gains(_pairs(content["gains"])),
    )
