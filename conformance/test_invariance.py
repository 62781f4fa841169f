"""What a group is computed with changes nothing of it."""

from __future__ import annotations

import pytest

from conformance.judge.measure import FORWARD_FREE
from conformance.session.bench import Bench, plan
from conformance.session.invariance import differences


@pytest.mark.parity_clause("INVARIANCE")
@pytest.mark.parity_dtype("float32")
def test_a_group_is_the_same_in_any_company(parity_bench: Bench, parity_device: str) -> None:
    """On the smallest recording, within the budgets that it has running free (clause INVARIANCE)."""
    planned = min(plan("recorded", None, "quick"), key=lambda each: each.settings.N**2 * each.settings.C)
    verdicts = parity_bench.report(planned, parity_device, "float32").verdicts
    budgets = {stage: verdict.budget for (clause, stage), verdict in verdicts.items() if clause == FORWARD_FREE}
    found = list(differences(parity_bench.truth(planned).case, parity_device, budgets))
    assert not found, "\n".join(found[:5])
