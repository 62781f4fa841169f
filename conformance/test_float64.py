"""Float64, where rounding is out of the picture: the candidate against the oracle and against Keras."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from conformance.cases.case import Case, FreeRun
from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge.condition import Condition
from conformance.judge.measure import NETWORK_CLAUSES
from conformance.judge.measured import load_measured
from conformance.judge.rules import UNIT_ROUNDOFF, Errors, compare, float64_budget
from conformance.judge.truth import Truth
from conformance.report.results import headline
from conformance.session.bench import NO_TENSORFLOW, Bench, Planned
from conformance.session.clean import TURNS, CleanStudy, clean_runs
from conformance.subjects.torch import TorchSubject
from ptycho_tf_bridge import backend

QUICK_GRAPHS = ("n64_g1", "n64_g2_small_object", "n64_g2_small_probe", "n64_g2_mask_blur", "n64_g3", "n128_g2")
"""Graphs compared with the oracle in the quick tier; the other tiers take all."""

CLEAN_RUNS = {"quick": 4, "full": len(GRAPHS), "study": 1000}
"""Clean runs by tier: the full one takes every graph once. More are evidence: python -m conformance study clean."""


def _batch(name: str) -> int:
    """Odd batches; one group where patches are large."""
    return 3 if GRAPHS[name].N == 64 else 1


def _draws(name: str) -> int:
    """Draws compared with Keras: 43 over all graphs, fewer where patches are large."""
    return {64: 4, 128: 2, 256: 1}[GRAPHS[name].N]


@pytest.mark.parity_clause("FLOAT64")
@pytest.mark.parity_dtype("float64")
@pytest.mark.parametrize("graph", GRAPHS)
def test_candidate_is_the_oracle(graph: str, parity_bench: Bench, parity_device: str, parity_tier: str) -> None:
    """Every quantity, free-running and teacher-forced, within max(1e-12, κε) of the oracle (clause FLOAT64)."""
    if parity_tier == "quick" and graph not in QUICK_GRAPHS:
        pytest.skip(f"graph {graph} is compared with the oracle in tier full: --parity-tier full")
    name = f"drawn_{graph}"
    case = dataclasses.replace(draw_case(GRAPHS[graph], seed=7, batch=_batch(graph), modes=2), name=name)
    report = parity_bench.report(Planned(name, "drawn", None, GRAPHS[graph], case=case), parity_device, "float64")
    assert report.passed, headline(report)


def _compare_runs(candidate: FreeRun, reference: FreeRun) -> dict[str, Errors]:
    """Errors of the candidate in units of the reference, by stage and by weight."""
    found = {f"stage {name}": compare(candidate.stages.get(name), array) for name, array in reference.stages.items()}
    found |= {
        f"gradient {name}": compare(candidate.gradients.get(name), array) for name, array in reference.gradients.items()
    }
    return found | {
        f"loss {name}": compare(np.array(candidate.losses[name]), np.array(value))
        for name, value in reference.losses.items()
    }


def _amplified(truth: Truth) -> dict[str, Errors]:
    """Errors that one-ulp float64 changes cause, under the names of ``_compare_runs``."""
    condition = Condition(truth).free("float64")
    return {
        **{f"stage {name}": each for name, each in condition.stages.items()},
        **{f"gradient {name}": each for name, each in condition.gradients.items()},
        **{f"loss {name}": each for name, each in condition.losses.items()},
    }


@pytest.mark.parity_clause("FLOAT64")
@pytest.mark.parity_keras
@pytest.mark.parity_dtype("float64")
@pytest.mark.skipif(not backend.is_available(), reason=NO_TENSORFLOW)
@pytest.mark.parametrize("graph", GRAPHS)
def test_candidate_is_keras(graph: str, parity_device: str, parity_notes: list[str]) -> None:
    """Every stage, gradient and loss within max(1e-12, κε) of Keras in float64 (clause FLOAT64)."""
    from conformance.subjects.keras import KerasSubject

    keras, candidate = KerasSubject(GRAPHS[graph], "float64"), TorchSubject(parity_device, "float64")
    limits = load_measured().limits
    most: tuple[float, str] = (0.0, "")
    conditions: dict[str, Errors] = {}
    for seed in range(_draws(graph)):
        case: Case = draw_case(GRAPHS[graph], seed=100 + seed, batch=_batch(graph), modes=1 + seed % 2)
        found = _compare_runs(candidate.free(case), keras.free(case))
        above = {name for name, each in found.items() if not each.e <= limits.float64_floor}
        if seed == 0 or above:
            conditions = _amplified(Truth(case))
        failed = [
            f"draw {seed}, {name}: e = {found[name].e:.2e}, budget {float64_budget(conditions[name], limits).e:.2e}"
            for name in above
            if not found[name].e <= float64_budget(conditions[name], limits).e
        ]
        assert not failed, "\n".join(failed[:5])
        most = max(most, *((each.e, name) for name, each in found.items()))
    largest = max(conditions, key=lambda name: conditions[name].e)
    kappa = conditions[largest].e / UNIT_ROUNDOFF["float64"]
    parity_notes.append(
        f"float64, {graph} on {parity_device}: candidate against Keras over {_draws(graph)} draws, worst e = "
        f"{most[0]:.1e} ({most[1]}); largest κ = {kappa:.3g} ({largest})"
    )


@pytest.mark.parity_clause(*NETWORK_CLAUSES)
@pytest.mark.parity_dtype("float32")
def test_clean_runs_raise_no_alarm(
    parity_device: str, parity_tier: str, parity_seed: int, parity_notes: list[str]
) -> None:
    """Draws of a right network fail no float32 clause."""
    study, draw = CleanStudy(), np.random.default_rng(parity_seed)
    for number in range(CLEAN_RUNS[parity_tier]):
        graph, seed = TURNS[number % len(TURNS)], int(draw.integers(2**32))
        study.add(list(clean_runs(graph, seed, 1 + number % 2, parity_device, ("float32",))))
    assert not study.alarms, "\n".join(study.alarms[:5])
    e, m = study.largest("float32")
    parity_notes.append(
        f"clean float32 runs on {parity_device}: {study.runs} draws of seed {parity_seed}, no alarm; used at most "
        f"{e:.0%} of an e budget and {m:.0%} of an m budget"
    )
