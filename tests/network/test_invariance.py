"""A network that looks at the other groups of a batch is seen."""

from __future__ import annotations

import pytest
from torch import Tensor

from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge.rules import Errors
from conformance.selftest.fault import Fault, after
from conformance.session.invariance import Company, differences
from conformance.spec.loader import load_stages
from ptycho_torch import model

CASE = draw_case(GRAPHS["n64_g1"], seed=3, batch=1)
BUDGETS = {stage.id: Errors(1e-5, 1e-3) for stage in load_stages().expand(CASE.settings)}
SMALL = (Company(3, 1, 1),)


def _leaning(values: Tensor) -> Tensor:
    return values + 1e-2 * values.mean(dim=0, keepdim=True)


@pytest.mark.parity_clause("INVARIANCE")
def test_a_network_that_looks_at_other_groups_is_seen() -> None:
    assert list(differences(CASE, "cpu", BUDGETS, SMALL)) == []
    with Fault("", "", model.Pool, "forward", after(_leaning)).seeded():
        found = list(differences(CASE, "cpu", BUDGETS, SMALL))
    assert found[0].startswith("encoder.0.pool in Company(batch=3, place=1, threads=1): e = ")
