"""The steps outside the network: configuration, bridge and data, each against plain NumPy."""

from __future__ import annotations

import pytest

from conformance.bench import Bench
from conformance.step import Step
from conformance.steps import all_steps


def _param(step: Step) -> object:
    return pytest.param(step, id=step.id, marks=pytest.mark.parity_clause(*step.clauses))


@pytest.mark.parametrize("step", [_param(step) for step in all_steps()])
def test_step(parity_bench: Bench, step: Step) -> None:
    """A step gives what its equation says, from what it is given."""
    for module in step.needs:
        pytest.importorskip(module, reason=f"the step needs {module}; pip install {module}")
    report = parity_bench.steps.report(step)
    assert report.passed, report.explain()
