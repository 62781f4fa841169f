"""What the reference does outside the network: configuration, bridge, data and training, each against plain NumPy."""

from __future__ import annotations

import pytest

from conformance.checks.table import CHECKS, Check
from conformance.session.bench import Bench


def _param(check: Check) -> object:
    return pytest.param(check, id=check.id, marks=pytest.mark.parity_clause(*check.clauses))


@pytest.mark.parametrize("check", [_param(check) for check in CHECKS.values()])
def test_step(parity_bench: Bench, check: Check) -> None:
    """What is found agrees with what is expected."""
    for module in check.needs:
        pytest.importorskip(module, reason=f"the check needs {module}; pip install {module}")
    report = parity_bench.check(check)
    assert report.passed, report.explain()
