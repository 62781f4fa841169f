"""Gains: what float32 costs the reference, in units of the condition, and the envelope that follows from it.

``make mutation`` decides with these tests, too, whether a mutant of the comparer lives.
"""

from __future__ import annotations

import pytest

from conformance.gains import Gains, stage_clause, widest
from conformance.judge import NONE, Errors
from conformance.parity import (
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    Quantity,
)
from ptycho_torch.contract import SpecError


def quantity(stage: str, e: float, m: float, kappa: float = 1.0, unit: str = "float32") -> Quantity:
    return Quantity(stage, Errors(e, m), Errors(kappa, 2 * kappa), unit=unit)


def test_the_clause_of_a_stage() -> None:
    assert stage_clause("merged") == "merged"
    assert stage_clause("encoder.2.conv1") == "encoder.{i}.conv1"
    assert stage_clause("decoder_phase.outer.head") == "decoder_{D}.outer.head"
    assert stage_clause("decoder_amp.0.up") == "decoder_{D}.{i}.up"


def test_gains_are_the_largest_errors_over_the_condition() -> None:
    runs = [
        {(FORWARD_FREE, "encoder.0.conv1"): quantity("encoder.0.conv1", 3.0, 4.0)},
        {(FORWARD_FREE, "encoder.1.conv1"): quantity("encoder.1.conv1", 2.0, 12.0, 0.5)},
        {(FORWARD_FREE, "merged"): quantity("merged", 2.0, 2.0, 0.0), (LOSS, "free"): quantity("loss", 1.0, 1.0)},
    ]
    table = widest(runs).table
    assert table[FORWARD_FREE] == {"encoder.{i}.conv1": Errors(4.0, 12.0), "merged": NONE}
    assert table[LOSS] == {"loss": Errors(1.0, 0.5)}


def gains() -> Gains:
    return Gains(
        {
            FORWARD_FREE: {"encoder.{i}.conv1": Errors(2, 3), "encoder.{i}.conv2": Errors(9, 9)},
            FORWARD_FORCED: {
                "encoder.{i}.conv1": Errors(2, 7),
                "encoder.{i}.conv2": Errors(5, 3),
                "merged": Errors(50, 50),
            },
            GRADIENT_FREE: {"encoder.{i}.conv1": Errors(1, 10)},
            GRADIENT_FORCED: {"encoder.{i}.conv1": Errors(4, 4)},
        }
    )  # fmt: skip


def test_fed_with_the_truth_one_convolution_rounds_as_another_does() -> None:
    assert gains().of(FORWARD_FREE, "encoder.1.conv1") == Errors(2, 3)
    assert gains().of(FORWARD_FORCED, "encoder.1.conv1") == Errors(5, 7)
    assert gains().of(FORWARD_FORCED, "merged") == Errors(50, 50)
    with pytest.raises(SpecError, match="no gain was measured for FORWARD-FREE of views"):
        gains().of(FORWARD_FREE, "views")
    with pytest.raises(SpecError, match="no gain was measured for LOSS of loss"):
        gains().of(LOSS, "loss")


def test_live_gains_are_widened_only_where_the_truth_is_fed() -> None:
    live = Gains({FORWARD_FREE: {"merged": Errors(1, 1)}, FORWARD_FORCED: {"merged": Errors(1, 80)}})
    table = live.widened_when_forced(gains()).table
    assert table[FORWARD_FREE] == {"merged": Errors(1, 1)}
    assert table[FORWARD_FORCED]["merged"] == Errors(50, 80)
    assert table[FORWARD_FORCED]["encoder.{i}.conv1"] == Errors(2, 7)
    assert table[GRADIENT_FORCED] == {"encoder.{i}.conv1": Errors(4, 4)}
    assert GRADIENT_FREE not in table
    assert live.table[FORWARD_FORCED] == {"merged": Errors(1, 80)}


def test_the_envelope_is_gain_times_condition() -> None:
    name = "encoder.0.conv1"
    measured = {
        (FORWARD_FREE, name): quantity(name, 0, 0, 3.0),
        (GRADIENT_FREE, f"{name}.kernel"): quantity(name, 0, 0, 1.0),
        (GRADIENT_FORCED, f"{name}.kernel"): quantity(name, 0, 0, 2.0),
    }
    assert gains().envelope((FORWARD_FREE, name), measured) == Errors(6.0, 18.0)
    # A gradient running free has its own convolution's rounding too: 4 · 2 and 10 · 2.
    assert gains().envelope((GRADIENT_FREE, f"{name}.kernel"), measured) == Errors(8.0, 20.0)
    coarse = {(FORWARD_FREE, name): quantity(name, 0, 0, 3.0, "tf32")}
    assert gains().envelope((FORWARD_FREE, name), coarse) == Errors(6.0, 18.0).scaled(2.0**-13)
    fine = {(FORWARD_FREE, name): quantity(name, 0, 0, 3.0, "float64")}
    assert gains().envelope((FORWARD_FREE, name), fine) == Errors(6.0, 18.0)
