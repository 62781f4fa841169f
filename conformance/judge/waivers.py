"""Waivers: tests of the network that are expected to fail, with a reason and until a day.

A waiver is strict. It holds only while its test fails by a number that can be compared, and until its last day. One
that is no longer needed, or that has expired, is a failure itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

from conformance.judge.rules import Verdict
from conformance.spec.loader import check_schema
from ptycho_torch.contracts.contract import SpecError, read_yaml

FILE = "waivers.yaml"

HOLDS, EXPIRED, UNNEEDED, UNCOMPARED = "holds", "expired", "no longer needed", "nothing to compare"
_MEND = {
    HOLDS: "",
    EXPIRED: f"; repair the cause, or renew it in specs/{FILE}",
    UNNEEDED: f"; remove it from specs/{FILE}",
    UNCOMPARED: "; repair the cause, which cannot be waived",
}


_TEST = re.compile(r"\[(?P<stage>[^-\]]+)-(?P<clause>[A-Z0-9]+(?:-(?:FREE|FORCED))?)-(?P<where>.+)\]$")
"""Id of a test of the network, as the schema of the file demands it: names of cases may hold dashes."""


@dataclass(frozen=True)
class Waiver:
    """One entry of ``specs/waivers.yaml``.

    Attributes:
        test: its id, as ``test_network.py::test_stage[merged-BACKWARD-FREE-n64_g2_base-cuda-float32]``.
        reason: who answers for it, why it fails, and what will be done.
        expires: last day on which it holds (UTC).
    """

    test: str
    reason: str
    expires: date

    @property
    def parts(self) -> tuple[str, ...]:
        """Return stage, clause, and ``CASE-DEVICE-DTYPE``; empty texts for an id that the schema refuses."""
        match = _TEST.search(self.test)
        return match.groups() if match else ("", "", "")

    def covers(self, clause: str, stage: str) -> bool:
        """Return True if it stands for a clause and stage of its case."""
        return self.parts[:2] == (stage, clause)

    def is_for(self, device: str) -> bool:
        """Return True if its test runs on a torch device."""
        return f"-{device}-" in self.test

    def standing(self, shares: Collection[float], today: date) -> str:
        """Return ``HOLDS``, or why it does not, from the shares of the budget that the verdicts of its test used."""
        if today > self.expires:
            return EXPIRED
        if not all(map(math.isfinite, shares)):
            return UNCOMPARED
        return HOLDS if any(share > 1 for share in shares) else UNNEEDED

    def as_json(self) -> dict[str, Any]:
        """Return what a report says about it."""
        return {**vars(self), "expires": self.expires.isoformat()}


@dataclass(frozen=True)
class Ruling:
    """What became of a waiver in one run: it is ``HOLDS``, or why it does not hold."""

    waiver: Waiver
    state: str

    @property
    def holds(self) -> bool:
        """Whether it covers the failure."""
        return self.state == HOLDS

    def __str__(self) -> str:
        waiver = self.waiver
        return f"waiver of {waiver.test} until {waiver.expires} ({waiver.reason}): {self.state}{_MEND[self.state]}"


def rule(waiver: Waiver, verdicts: Iterable[Verdict], today: date | None = None) -> Ruling:
    """Apply a waiver to the verdicts of its test; `today` is None for now (UTC)."""
    return Ruling(waiver, waiver.standing([verdict.share for verdict in verdicts], today or datetime.now(UTC).date()))


def parse_waivers(content: Any) -> tuple[Waiver, ...]:
    """Make the waivers from the content of ``specs/waivers.yaml``.

    Raises:
        SpecError: the content does not follow its schema, or a day is none.
    """
    check_schema(content, FILE)
    try:
        return tuple(Waiver(**each | {"expires": date.fromisoformat(each["expires"])}) for each in content["waivers"])
    except ValueError as err:
        raise SpecError(f'{FILE}: found an entry whose expires is no day ({err}); write "2026-01-31".') from err


@cache
def load_waivers() -> tuple[Waiver, ...]:
    """Read ``specs/waivers.yaml`` once.

    Raises:
        SpecError: as ``read_yaml`` and ``parse_waivers``.
    """
    return parse_waivers(read_yaml(FILE))


def for_case(case: str, device: str, dtype: str, waivers: Sequence[Waiver] | None = None) -> tuple[Waiver, ...]:
    """Return the waivers for tests of one case on one device in one dtype."""
    known = load_waivers() if waivers is None else waivers
    where = f"{case}-{device}-{dtype}"
    return tuple(each for each in known if each.parts[2] == where)
