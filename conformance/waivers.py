"""Waivers: failures that somebody answers for, within bounds and until a day.

A waiver stands for one test of the network. It holds while the share of the budget lies between its two bounds. When
the share grows beyond the upper bound, the failure is another one than was waived. When it falls below the lower bound,
the waiver is no longer needed, and must not hide the next failure. Both are failures, and so is a waiver past its day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

from conformance.judge import Verdict
from conformance.spec import check_schema
from ptycho_torch.contract import SpecError, read_yaml

FILE = "waivers.yaml"

HOLDS, EXPIRED, WORSE, BETTER = "holds", "expired", "worse than waived", "better than waived"


@dataclass(frozen=True)
class Waiver:
    """One entry of ``specs/waivers.yaml``.

    Attributes:
        clause: judgement clause, for example ``BACKWARD-FREE``.
        stage: stage id, or ``loss`` or ``train``.
        case: name of the case, as reports call it.
        device: torch device.
        dtype: ``float32`` or ``float64``.
        owner: who answers for it.
        reason: why it fails, and what will be done.
        expires: last day on which it holds (UTC).
        at_least: share of the budget below which the waiver is no longer needed; above 1.
        at_most: share of the budget above which it is another failure.
    """

    clause: str
    stage: str
    case: str
    device: str
    dtype: str
    owner: str
    reason: str
    expires: date
    at_least: float
    at_most: float

    @property
    def test(self) -> str:
        """Test id that it stands for."""
        return "-".join((self.stage, self.clause, self.case, self.device, self.dtype))

    def covers(self, clause: str, stage: str) -> bool:
        """Whether it stands for a clause and stage of its case."""
        return (self.clause, self.stage) == (clause, stage)

    def standing(self, share: float, today: date) -> str:
        """Return ``HOLDS``, or why it does not; a share that is infinite or NaN is worse than any bound."""
        if today > self.expires:
            return EXPIRED
        if share < self.at_least:
            return BETTER
        return HOLDS if share <= self.at_most else WORSE

    def as_json(self) -> dict[str, Any]:
        """Return what a report says about it."""
        return {**vars(self), "expires": self.expires.isoformat()}


@dataclass(frozen=True)
class Ruling:
    """What became of a waiver in one run.

    Attributes:
        waiver: the waiver.
        share: the largest share of a budget among the verdicts that it stands for.
        state: ``HOLDS``, ``EXPIRED``, ``WORSE`` or ``BETTER``.
    """

    waiver: Waiver
    share: float
    state: str

    @property
    def holds(self) -> bool:
        """Whether it covers the failure."""
        return self.state == HOLDS

    def __str__(self) -> str:
        waiver = self.waiver
        bounds = f"{waiver.at_least:g} to {waiver.at_most:g} budgets until {waiver.expires}"
        found = f"waiver of {waiver.owner} for {waiver.test} ({bounds}): {self.share:.3g} budgets used"
        return {
            HOLDS: f"{found}; {waiver.reason}",
            EXPIRED: f"{found}; it has expired: repair the cause, or have its owner renew it in specs/{FILE}",
            WORSE: f"{found}; this is worse than what was waived",
            BETTER: f"{found}; this is better than what was waived: remove the waiver from specs/{FILE} or tighten it",
        }[self.state]


def rule(waiver: Waiver, verdicts: Iterable[Verdict], today: date | None = None) -> Ruling:
    """Hold a waiver against the verdicts that it stands for.

    Args:
        waiver: the waiver.
        verdicts: all of its clause and stage in its case. One that could not be compared is beyond any bound.
        today: the day of the ruling; None for now (UTC).
    """
    share = max((verdict.share for verdict in verdicts), default=0.0)
    return Ruling(waiver, share, waiver.standing(share, today_utc() if today is None else today))


def today_utc() -> date:
    """Return the day, the same all over the world."""
    return datetime.now(UTC).date()


def parse_waivers(content: Any) -> tuple[Waiver, ...]:
    """Make the waivers from the content of ``specs/waivers.yaml``.

    Raises:
        SpecError: the content does not follow its schema, bounds contradict each other, or two stand for one test.
    """
    check_schema(content, FILE)
    waivers = tuple(Waiver(**entry | {"expires": _day(entry)}) for entry in content["waivers"])
    tests = [waiver.test for waiver in waivers]
    for waiver in waivers:
        if waiver.at_most < waiver.at_least:
            raise SpecError(f"{FILE}: {waiver.test}: at_most {waiver.at_most:g} is below at_least {waiver.at_least:g}.")
        if tests.count(waiver.test) > 1:
            raise SpecError(f"{FILE}: {waiver.test} has {tests.count(waiver.test)} waivers; one test has one.")
    return waivers


def _day(entry: Any) -> date:
    try:
        return date.fromisoformat(entry["expires"])
    except ValueError as err:
        raise SpecError(f'{FILE}: expires {entry["expires"]!r} is no day ({err}); write "2026-01-31".') from err


@cache
def load_waivers() -> tuple[Waiver, ...]:
    """Read ``specs/waivers.yaml`` once.

    Raises:
        SpecError: as ``read_yaml`` and ``parse_waivers``.
    """
    return parse_waivers(read_yaml(FILE))


def for_case(case: str, device: str, dtype: str, waivers: Sequence[Waiver] | None = None) -> tuple[Waiver, ...]:
    """Return the waivers that speak of one case on one device in one dtype."""
    known = load_waivers() if waivers is None else waivers
    return tuple(each for each in known if (each.case, each.device, each.dtype) == (case, device, dtype))
