"""Gains: what float32 costs the reference, in units of the condition, and the envelope that follows from it.

``make mutation`` decides with these tests, too, whether a mutant of the comparer lives.
"""

from __future__ import annotations

import pytest

from conformance.judge.gains import Gains, growth, stage_clause, widest
from conformance.judge.measure import (
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    Quantity,
)
from conformance.judge.measured import load_measured
from conformance.judge.rules import NONE, Errors
from ptycho_torch.contracts.contract import SpecError


def quantity(
    stage: str, e: float, m: float, kappa: float = 1.0, unit: str = "float32", terms: int = 256**2
) -> Quantity:
    return Quantity(stage, Errors(e, m), Errors(kappa, 2 * kappa), unit=unit, terms=terms)


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


SUMS = {
    ("n64_g1", 0, "outer.head"): (64**2, 3.18),
    ("n64_g1", 0, "outer.conv1"): (32**2, 5.61),
    ("n256_g1", 1, "outer.conv1"): (128**2, 63.7),
    ("n256_g1", 1, "outer.conv2"): (128**2, 78.3),
    ("n256_g1", 1, "outer.head"): (256**2, 481.0),
    ("n256_g1", 2, "outer.conv1"): (128**2, 34.2),
    ("n256_g1", 2, "outer.head"): (256**2, 64.9),
}
"""Graph, seed and stage of decoder_amp → terms and gain of live Keras 3.15 on one thread: e of GRADIENT-FORCED over one
half ulp, as the envelope of `python -m conformance record --graph GRAPH --seed SEED --batch 1 -o FILE` holds it. These
sums have terms of one sign, so their condition is that of rounding the result."""


def test_the_gain_of_a_sum_grows_with_its_terms() -> None:
    assert growth(GRADIENT_FORCED, 256**2) == 1.0
    assert growth(GRADIENT_FORCED, 128**2) == 0.25
    # Nothing longer was measured, so nothing gets more than the largest that was.
    assert growth(GRADIENT_FORCED, 3 * 256**2) == 1.0
    # The sums of a small network, and those of deep layers of a large one, cost what the largest at N = 64 do.
    assert growth(GRADIENT_FORCED, 1) == growth(GRADIENT_FORCED, 64**2) == 1 / 16
    assert growth(GRADIENT_FREE, 3 * 256**2) == growth(FORWARD_FORCED, 1) == 1.0


def test_measured_sums_keep_to_the_law_and_small_ones_to_no_more_than_before() -> None:
    measured = load_measured()
    tabulated = measured.gains.of(GRADIENT_FORCED, "decoder_amp.outer.head").e
    for case, (terms, gain) in SUMS.items():
        share = gain / (measured.reference_factor.e * tabulated * growth(GRADIENT_FORCED, terms))
        assert share < 0.65, case
    # Independent roundings would explain a growth by √16 from N = 64 to 256, and not this one.
    assert SUMS["n256_g1", 1, "outer.head"][1] > 16 * SUMS["n64_g1", 0, "outer.head"][1]


def test_gains_and_envelopes_follow_the_terms() -> None:
    """Measured on a short sum, a gain is tabulated for a long one, and comes back for the short one."""
    key = GRADIENT_FORCED, "encoder.0.conv1.kernel"
    short = quantity("encoder.0.conv1", 2.0, 3.0, terms=128**2)
    table = widest([{key: short}])
    assert table.of(GRADIENT_FORCED, "encoder.0.conv1") == Errors(8.0, 6.0)
    assert table.envelope(key, {key: short}) == Errors(2.0, 3.0)
