"""A waiver holds between its bounds and until its day, and hides nothing else."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest

from conformance.judge import Errors, Verdict
from conformance.waivers import BETTER, EXPIRED, HOLDS, WORSE, load_waivers, parse_waivers, rule
from ptycho_torch.contract import SpecError

ENTRY = {
    "clause": "BACKWARD-FREE",
    "stage": "merged",
    "case": "n64_g2_base",
    "device": "cuda",
    "dtype": "float32",
    "owner": "A. Person",
    "reason": "The library of this driver sums in another order; reported there.",
    "expires": "2030-06-30",
    "at_least": 1.5,
    "at_most": 3.0,
}
LAST_DAY, NEXT_DAY = date(2030, 6, 30), date(2030, 7, 1)


def verdict(share: float, reason: str = "") -> Verdict:
    return Verdict("BACKWARD-FREE", "merged", None, Errors(share, 0.0), Errors(1.0, 1.0), reason)


@pytest.mark.parametrize(
    ("verdicts", "today", "state"),
    [
        ([verdict(2.0), verdict(0.1)], LAST_DAY, HOLDS),
        ([verdict(1.5)], LAST_DAY, HOLDS),
        ([verdict(3.0)], LAST_DAY, HOLDS),
        ([verdict(2.0)], NEXT_DAY, EXPIRED),
        ([verdict(3.1), verdict(2.0)], LAST_DAY, WORSE),
        ([verdict(math.nan)], LAST_DAY, WORSE),
        ([verdict(2.0, "shape (3,), expected (4,)")], LAST_DAY, WORSE),
        ([verdict(1.4)], LAST_DAY, BETTER),
        ([verdict(0.2)], LAST_DAY, BETTER),
        ([], LAST_DAY, BETTER),
    ],
)
def test_a_waiver_is_bounded_on_both_sides_and_in_time(verdicts: list[Verdict], today: date, state: str) -> None:
    (waiver,) = parse_waivers({"waivers": [ENTRY]})
    ruling = rule(waiver, verdicts, today)
    assert (ruling.state, ruling.holds) == (state, state == HOLDS)
    assert "A. Person" in str(ruling)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"at_most": 1.2}, "at_most 1.2 is below at_least 1.5"),
        ({"at_least": 1.0}, "at_least: 1.0 is less than or equal to the minimum of 1"),
        ({"expires": "2030-02-30"}, "is no day"),
        ({"expires": "never"}, "expires"),
        ({"owner": ""}, "owner"),
        ({"reason": "because"}, "reason"),
        ({"tier": "full"}, "'tier' was unexpected"),
    ],
)
def test_a_waiver_without_bounds_owner_or_reason_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        parse_waivers({"waivers": [ENTRY | change]})


def test_one_test_has_one_waiver() -> None:
    with pytest.raises(SpecError, match="has 2 waivers"):
        parse_waivers({"waivers": [ENTRY, ENTRY | {"at_most": 5.0}]})


def test_the_waivers_of_this_release_can_be_read() -> None:
    load_waivers()
