"""The measured numbers of the spec: limits of the judge, and how far float32 takes the reference from the truth.

``specs/measured.yaml`` is written by ``python -m conformance calibrate`` on a machine that has TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jsonschema
import yaml

from conformance.judge import Errors, Limits
from conformance.parity import Key, Quantity
from conformance.spec import SpecError, load_stages, specs_dir

FILE = "measured.yaml"


@dataclass(frozen=True)
class Measured:
    """What ``specs/measured.yaml`` says.

    Attributes:
        limits: factors of the float32 rule, floor of the float64 rule.
        reference_factor: how many times its measured error the reference may show before it counts as changed.
        gains: judgement clause → stage clause → the reference's largest error in units of κε and κ'ε.
        raw_gradient: largest errors of the reference's gradients against the truth on the truth's own pieces.
        conditions: judgement clause → stage clause → largest κ and κ' seen.
    """

    limits: Limits
    reference_factor: Errors
    gains: Mapping[str, Mapping[str, Errors]]
    raw_gradient: Errors
    conditions: Mapping[str, Mapping[str, Errors]]

    def envelope(self, key: Key, quantity: Quantity) -> Errors:
        """Return the reference's envelope for a quantity whose one-ulp amplification is known.

        Raises:
            SpecError: the table has no number for it.
        """
        clause = stage_clause(quantity.stage)
        try:
            gain = self.gains[key[0]][clause]
        except KeyError:
            raise SpecError(
                f"{FILE}: no gain for {key[0]} of clause {clause}; run `python -m conformance calibrate`."
            ) from None
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


def _pairs(table: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, Errors]]:
    return {clause: {stage: Errors(*pair) for stage, pair in rows.items()} for clause, rows in table.items()}


@cache
def load_measured() -> Measured:
    """Read and check the file.

    Raises:
        SpecError: it does not follow its schema, or speaks of a stage clause that the spec does not have.
    """
    path = specs_dir() / FILE
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = json.loads((specs_dir() / "schema" / "measured.schema.json").read_text(encoding="utf-8"))
    try:
        jsonschema.validate(content, schema)
    except jsonschema.ValidationError as err:
        raise SpecError(f"{path}: {err.json_path}: {err.message}") from err
    known = {clause.id for clause in load_stages().stages} | {"loss"}
    for rows in content["gains"].values():
        for stage in rows:
            if stage not in known:
                raise SpecError(f"{path}: {stage!r} is no stage clause of stages.yaml.")
    limits = content["limits"]
    return Measured(
        limits=Limits(limits["e_factor"], limits["m_factor"], limits["float64_floor"]),
        reference_factor=Errors(*limits["reference_factor"]),
        gains=_pairs(content["gains"]),
        raw_gradient=Errors(*content["raw_gradient"]),
        conditions=_pairs(content["conditions"]),
    )
