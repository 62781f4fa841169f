"""A waiver holds while its test fails and until its day, and hides nothing else."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest

from conformance.judge.rules import Errors, Verdict
from conformance.judge.waivers import EXPIRED, HOLDS, UNCOMPARED, UNNEEDED, for_case, load_waivers, parse_waivers, rule
from ptycho_torch.contracts.contract import SpecError

ENTRY = {
    "test": "test_network.py::test_stage[merged-BACKWARD-FREE-n64_g2_base-cuda-float32]",
    "reason": "A. Person: the library of this driver sums in another order; reported there.",
    "expires": "2030-06-30",
}
LAST_DAY, NEXT_DAY = date(2030, 6, 30), date(2030, 7, 1)


def verdict(share: float, reason: str = "") -> Verdict:
    return Verdict("BACKWARD-FREE", "merged", None, Errors(share, 0.0), Errors(1.0, 1.0), reason)


@pytest.mark.parametrize(
    ("verdicts", "today", "state"),
    [
        ([verdict(2.0), verdict(0.1)], LAST_DAY, HOLDS),
        ([verdict(2.0)], NEXT_DAY, EXPIRED),
        ([verdict(0.2)], NEXT_DAY, EXPIRED),
        ([verdict(2.0), verdict(math.nan)], LAST_DAY, UNCOMPARED),
        ([verdict(2.0, "shape (3,), expected (4,)")], LAST_DAY, UNCOMPARED),
        ([verdict(1.0), verdict(0.2)], LAST_DAY, UNNEEDED),
        ([], LAST_DAY, UNNEEDED),
    ],
)
def test_a_waiver_holds_while_its_test_fails(verdicts: list[Verdict], today: date, state: str) -> None:
    (waiver,) = parse_waivers({"waivers": [ENTRY]})
    ruling = rule(waiver, verdicts, today)
    assert (ruling.state, ruling.holds) == (state, state == HOLDS)
    assert "A. Person" in str(ruling)


def test_a_waiver_stands_for_one_test() -> None:
    waivers = parse_waivers({"waivers": [ENTRY]})
    assert for_case("n64_g2_base", "cuda", "float32", waivers) == waivers
    for other in (("n64_g2", "cuda", "float32"), ("base", "cuda", "float32"), ("n64_g2_base", "cpu", "float32")):
        assert for_case(*other, waivers) == ()
    # A case whose name ends in that of another.
    dashed = parse_waivers({"waivers": [ENTRY | {"test": ENTRY["test"].replace("n64_g2_base", "my-n64_g2_base")}]})
    assert for_case("n64_g2_base", "cuda", "float32", dashed) == ()
    assert for_case("my-n64_g2_base", "cuda", "float32", dashed) == dashed
    (waiver,) = waivers
    assert waiver.covers("BACKWARD-FREE", "merged")
    assert not waiver.covers("BACKWARD-FORCED", "merged")
    assert not waiver.covers("BACKWARD-FREE", "merge")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"expires": "2030-02-30"}, "is no day"),
        ({"expires": "never"}, "expires"),
        ({"reason": "because"}, "reason"),
        ({"test": "test_network.py::test_recording[REFERENCE-n64_g2_base]"}, "test"),
        ({"tier": "full"}, "'tier' was unexpected"),
    ],
)
def test_a_waiver_without_test_reason_or_day_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        parse_waivers({"waivers": [ENTRY | change]})


def test_the_waivers_of_this_release_can_be_read() -> None:
    load_waivers()
