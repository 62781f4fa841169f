"""The comparer: what it measures, how it pools, and which stage it names.

The subject here is the truth itself with one thing changed, so that what has to be found is known in closed form. These
tests decide, together with those of the judge, the condition and the gains, whether a mutant of the comparer lives:
``make mutation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conformance.cases.case import Case, ForcedRun, FreeRun
from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge import measure as parity
from conformance.judge.causes import fed_with_truth, ranked_stages
from conformance.judge.measure import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    Key,
    Measurement,
    Quantity,
    envelope,
    judge,
    stage_clauses,
    worst,
)
from conformance.judge.rules import NONE, ONE_ULP, SMALL, Errors, Limits, Verdict, compare, rounding
from conformance.judge.truth import Truth
from conformance.spec.loader import load_stages

GRAPH = "n64_g2_small_probe"
LIMITS = Limits(e_factor=4.0, m_factor=16.0, float64_floor=1e-12, condition_factor=4.0)
OFF = 1e-3
SOME = "decoder_amp.central"


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return Measurement(Truth(draw_case(GRAPHS[GRAPH], 3, batch=1)), LIMITS)


Arrays = dict[str, np.ndarray]


def cast(arrays: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    kinds = {"float32": ("float32", "complex64"), "float64": ("float64", "complex128")}[dtype]
    return {name: np.asarray(each).astype(kinds[np.iscomplexobj(each)]) for name, each in arrays.items()}


@dataclass
class Fake:
    """The truth as a subject; ``change`` spoils what it gives."""

    truth: Truth
    dtype: str = "float64"
    change: Callable[[Any], Any] = lambda runs: runs
    products: str = ""
    seen: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.products = self.products or self.dtype

    def free(self, case: Case) -> FreeRun:
        self.seen.append(case)
        truth = self.truth
        gradients = truth.gradients_on(truth.own_branches)
        weights = {name: gradients.constants[name] for name in case.weights}
        run = FreeRun(
            cast(truth.stages, self.dtype),
            cast(gradients.cotangents, self.dtype),
            cast(weights, self.dtype),
            dict(truth.losses),
        )
        self.change(SimpleNamespace(free=run))
        return run

    def forced(self, case: Case, truth_stages: Any, truth_cotangents: Any) -> ForcedRun:
        truth = self.truth
        pulled, gradients = {}, {}
        for stage in truth.oracle.stages:
            by_input, by_weight = truth.pullback(stage, truth.own_branches)
            pulled[stage], gradients = cast(by_input, self.dtype), gradients | cast(by_weight, self.dtype)
        loss = truth.oracle.loss_pullback(truth.stages, truth.network_input, truth.loss_weights)
        pulled["loss"] = cast(loss, self.dtype)
        run = ForcedRun(cast(truth.stages, self.dtype), pulled, gradients, dict(truth.losses))
        self.change(SimpleNamespace(forced=run))
        return run


def changing(where: str, *path: str, value: Callable[[Any], Any] | None = None) -> Callable[[Any], None]:
    """Change one array of one run: ``changing("forced", "pulled", stage, name)``; without a value, take it away."""

    def change(runs: Any) -> None:
        run = getattr(runs, where, None)
        if run is None:
            return
        holder = getattr(run, path[0])
        for name in path[1:-1]:
            holder = holder[name]
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value(holder.get(path[-1]))

    return change


def measured_with(measurement: Measurement, dtype: str, *path: str, value: Any = None) -> dict[Key, Quantity]:
    return measurement.of(Fake(measurement.truth, dtype, changing(path[0], *path[1:], value=value)))


def wrong_of(found: Mapping[Key, Quantity], above: float = 1e-6) -> set[Key]:
    return {key for key, quantity in found.items() if quantity.errors.e > above or quantity.mismatch}


FREE_AND_FORCED: tuple[tuple[tuple[str, ...], Key, str], ...] = (
    (("free", "stages", "merged"), (FORWARD_FREE, "merged"), "merged"),
    (("free", "cotangents", "merged"), (BACKWARD_FREE, "merged"), "merged"),
    (("free", "gradients", f"{SOME}.kernel"), (GRADIENT_FREE, f"{SOME}.kernel"), SOME),
    (("free", "gradients", f"{SOME}.bias"), (GRADIENT_FREE, f"{SOME}.bias"), SOME),
    (("free", "losses", "mae"), (LOSS, "free.mae"), "loss"),
    (("forced", "stages", "merged"), (FORWARD_FORCED, "merged"), "merged"),
    (("forced", "pulled", "merged", "patches"), (BACKWARD_FORCED, "merged<-patches"), "merged"),
    (("forced", "pulled", "loss", "predicted_amplitude"), (BACKWARD_FORCED, "loss<-predicted_amplitude"), "loss"),
    (("forced", "gradients", f"{SOME}.kernel"), (GRADIENT_FORCED, f"{SOME}.kernel"), SOME),
    (("forced", "losses", "nll"), (LOSS, "forced.nll"), "loss"),
)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_the_truth_itself_has_no_error_anywhere(measurement: Measurement) -> None:
    subject = Fake(measurement.truth)
    found = measurement.of(subject)
    assert all(each.errors == NONE and not each.mismatch and each.amplified == NONE for each in found.values())
    assert subject.seen == [measurement.truth.case]
    expected = set()
    for stage in load_stages().expand(measurement.truth.case.settings):
        for clause in stage_clauses(stage):
            names = {
                BACKWARD_FORCED: [f"{stage.id}<-{name}" for name in stage.inputs if name != "input"],
                GRADIENT_FREE: list(stage.weights),
                GRADIENT_FORCED: list(stage.weights),
            }.get(clause, [stage.id])
            expected |= {(clause, name) for name in names}
    expected |= {(BACKWARD_FORCED, f"loss<-{name}") for name in ("predicted_amplitude", "predicted_intensity")}
    expected |= {(LOSS, f"{mode}.{name}") for mode in ("free", "forced") for name in ("nll", "mae", "total")}
    assert set(found) == expected
    assert {found[key].unit for key in found} == {"float64"}


@pytest.mark.parametrize(("path", "key", "stage"), FREE_AND_FORCED, ids=lambda each: ".".join(each) if each else "")
def test_one_wrong_array_is_measured_where_it_is_and_nowhere_else(
    measurement: Measurement, path: tuple[str, ...], key: Key, stage: str
) -> None:
    found = measured_with(measurement, "float64", *path, value=lambda array: array * (1 + OFF))
    assert wrong_of(found) == {key}
    assert found[key].stage == stage
    assert found[key].errors.e == pytest.approx(OFF, rel=1e-9)
    missing = measured_with(measurement, "float64", *path)
    # Where a stage is missing, the losses that are pooled with it are not: float64 judges them alone.
    assert wrong_of(missing) == {key}
    assert missing[key].mismatch == "missing"


@pytest.mark.parametrize(("dtype", "real", "pair"), [("float32", "f4", "c8"), ("float64", "f8", "c16")])
def test_the_truth_is_fed_in_the_precision_of_the_subject(dtype: str, real: str, pair: str) -> None:
    assert parity._cast(np.ones(2), dtype).dtype == real
    assert parity._cast(np.ones(2, complex), dtype).dtype == pair


def test_a_stage_is_judged_by_what_it_has_to_show() -> None:
    stages = {stage.id: stage for stage in load_stages().expand(GRAPHS[GRAPH])}
    always = [FORWARD_FREE, FORWARD_FORCED, BACKWARD_FREE]
    assert list(stage_clauses(stages["normalized_input"])) == always
    assert list(stage_clauses(stages["merged"])) == [*always, BACKWARD_FORCED]
    assert list(stage_clauses(stages[SOME])) == [*always, BACKWARD_FORCED, GRADIENT_FREE, GRADIENT_FORCED]


def test_clauses_are_called_as_the_specification_calls_them() -> None:
    known = {clause.id for clause in load_stages().judgements}
    names = [name for name in vars(parity) if name.isupper() and isinstance(getattr(parity, name), str)]
    assert {getattr(parity, name) for name in names} <= known
    assert len(names) >= 12
    assert all(name.replace("_", "-") == getattr(parity, name) for name in names)


def test_what_is_measured_of_a_moved_case_is_that_case(measurement: Measurement) -> None:
    subject = Fake(measurement.truth)
    other = replace(measurement.truth.case, name="moved")
    measurement.of(subject, other)
    assert subject.seen == [other]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_precision_than_was_asked_for_is_a_mismatch(measurement: Measurement, dtype: str) -> None:
    wrong = {"float32": "float64", "float64": "float32"}[dtype]
    complex_of = {"float32": "complex64", "float64": "complex128"}
    for stage, expected, given in (
        ("amplitude", dtype, wrong),
        ("merged", complex_of[dtype], complex_of[wrong]),
    ):
        found = measured_with(measurement, dtype, "free", "stages", stage, value=lambda a, to=given: a.astype(to))
        assert found[FORWARD_FREE, stage].mismatch == f"dtype {given}, expected {expected}"
    real = measured_with(measurement, dtype, "free", "stages", "merged", value=lambda array: array.real)
    assert "expected complex" in real[FORWARD_FREE, "merged"].mismatch


def test_a_stage_that_reads_another_one_too_is_named(measurement: Measurement) -> None:
    found = measured_with(
        measurement, "float64", "forced", "pulled", "merged", "encoder.0.conv1", value=lambda _: np.zeros(1)
    )
    assert found[BACKWARD_FORCED, "merged<-patches"].mismatch == "also listens to encoder.0.conv1"
    assert wrong_of(found) == {(BACKWARD_FORCED, "merged<-patches")}


@pytest.mark.parametrize("stage", ["encoder.0.pool", "encoder.0.conv1"])
@pytest.mark.parametrize(("where", "clause"), [("free", FORWARD_FREE), ("forced", FORWARD_FORCED)])
def test_a_stage_of_another_shape_does_not_hide_the_others(
    measurement: Measurement, stage: str, where: str, clause: str
) -> None:
    found = measured_with(measurement, "float64", where, "stages", stage, value=lambda array: array[:, :-1])
    assert wrong_of(found) == {(clause, stage)}


def test_deviations_are_located_only_where_that_is_asked_for(measurement: Measurement) -> None:
    def off(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[0, 5, 7, 0] += 1
        return array

    subject = Fake(measurement.truth, "float64", changing("free", "stages", "amplitude", value=off))
    assert all(each.place is None for each in measurement.of(subject).values())
    place = measurement.of(subject, locating=True)[FORWARD_FREE, "amplitude"].place
    assert place is not None
    assert (place.index, place.axes) == ((0, 5, 7, 0), (1, 2))
    kernel = measurement.of(subject, locating=True)[GRADIENT_FREE, f"{SOME}.kernel"].place
    assert kernel is not None
    assert kernel.axes == (2, 3)


def test_a_kink_crossed_counts_by_the_distance_of_the_truth(measurement: Measurement) -> None:
    truth, stage = measurement.truth, "encoder.0.conv1"
    inputs = truth.values_of(stage, truth.stages, truth.network_input)
    closed = np.argwhere(truth.stages[stage] == 0)[0]

    def opened(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[tuple(closed)] = 1e-9
        return array

    distance = truth.oracle.node(stage).margin(inputs, opened(truth.stages[stage]) > 0, truth.constants)
    assert distance > 1e-6
    for where, clause in (("free", FORWARD_FREE), ("forced", FORWARD_FORCED)):
        found = measured_with(measurement, "float64", where, "stages", stage, value=opened)
        assert found[clause, stage].errors.m == pytest.approx(distance)
        assert found[clause, "encoder.0.conv2"].errors.m == 0
    # The gradient is expected on the piece that the subject was on.
    key = (BACKWARD_FORCED, "encoder.0.conv1<-normalized_input")
    assert measured_with(measurement, "float64", "forced", "stages", stage, value=opened)[key].errors.e > 0


def test_the_sign_of_the_amplitude_s_deviation_is_a_kink_of_the_losses(measurement: Measurement) -> None:
    truth = measurement.truth
    measured = truth.network_input

    def across(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[0, 3, 4, 1] = 2 * measured[0, 3, 4, 1] - array[0, 3, 4, 1]
        return array

    found = measured_with(measurement, "float64", "free", "stages", "predicted_amplitude", value=across)
    distance = abs(truth.stages["predicted_amplitude"] - measured)[0, 3, 4, 1] / math.sqrt((measured**2).mean())
    assert found[FORWARD_FREE, "predicted_amplitude"].errors.m >= distance


def test_a_doubling_is_judged_on_the_pieces_of_its_own_run(measurement: Measurement) -> None:
    """Rounding may close a ReLU in the run that watches doublings and not in the other: neither is wrong."""
    truth, up, second = measurement.truth, "decoder_amp.0.up", "decoder_amp.1.conv1"
    closed = truth.stages[second].copy()
    closed[tuple(np.argwhere(closed > 0)[::2].T)] = 0
    others = truth.gradients_on({**truth.own_branches, second: closed > 0}).cotangents
    assert compare(others[up], truth.gradients.cotangents[up]).e > 1e-3

    @dataclass
    class Watching(Fake):
        closes: bool = True

        def free(self, case: Case) -> FreeRun:
            run = super().free(case)
            stages = {**run.stages, second: closed} if self.closes else run.stages
            watched = FreeRun(stages, {up: others[up] if self.closes else run.cotangents[up]}, {}, truth.losses)
            return replace(
                run, cotangents={name: each for name, each in run.cotangents.items() if name != up}, watched=watched
            )

    for closes in (True, False):
        assert all(each.errors.e == 0 for each in measurement.of(Watching(truth, closes=closes)).values())


# --- pools ------------------------------------------------------------------------------------------------------------


def test_in_float32_a_small_bias_is_pooled_with_its_kernel(measurement: Measurement) -> None:
    truth = measurement.truth
    kernel, bias = (truth.case.weights[f"{SOME}.{kind}"].size for kind in ("kernel", "bias"))
    large = "encoder.2.conv1"
    assert bias < SMALL <= truth.case.weights[f"{large}.bias"].size
    for where, clause in (("free", GRADIENT_FREE), ("forced", GRADIENT_FORCED)):
        found = measured_with(measurement, "float32", where, "gradients", f"{SOME}.bias", value=lambda a: a * (1 + OFF))
        assert (clause, f"{SOME}.bias") not in found
        assert (clause, f"{large}.bias") in found
        assert (clause, f"{large}.kernel") in found
        pooled = OFF * math.sqrt(bias / (kernel + bias))
        assert found[clause, f"{SOME}.kernel"].errors.e == pytest.approx(pooled, rel=1e-3)
        assert wrong_of(found) == {(clause, f"{SOME}.kernel")}
        assert measured_with(measurement, "float32", where, "gradients", f"{SOME}.bias")[
            clause, f"{SOME}.kernel"
        ].mismatch == "missing"  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_says_how_many_terms_it_sums(measurement: Measurement, dtype: str) -> None:
    """One group of four patches: 64 × 64 pixels at the network's entry, a quarter of them in the decoder's centre."""
    found = measurement.of(Fake(measurement.truth, dtype))
    expected = {"encoder.0.conv1": 64**2, "encoder.1.conv2": 32**2, "decoder_phase.central": 32**2}
    for clause in (GRADIENT_FREE, GRADIENT_FORCED):
        assert {stage: found[clause, f"{stage}.kernel"].terms for stage in expected} == expected
    assert found[BACKWARD_FREE, "merged"].terms == 1


def test_in_float32_losses_are_pooled_with_the_predicted_intensity(measurement: Measurement) -> None:
    size = measurement.truth.stages["predicted_intensity"].size
    for where in ("free", "forced"):
        found = measured_with(measurement, "float32", where, "losses", "mae", value=lambda loss: loss * (1 + OFF))
        assert found[LOSS, where].errors.e == pytest.approx(OFF / math.sqrt(size + 3), rel=1e-2)
        assert {name for clause, name in found if clause == LOSS} == {"free", "forced"}
        assert measured_with(measurement, "float32", where, "losses", "mae")[LOSS, where].mismatch == "missing"
    found = measured_with(measurement, "float32", "free", "stages", "predicted_intensity", value=lambda a: 2 * a)
    assert found[LOSS, "free"].errors.e == pytest.approx(math.sqrt(size / (size + 3)), rel=1e-3)
    assert found[LOSS, "forced"].errors.e < 1e-6


def test_the_condition_of_a_pool_is_the_root_of_the_mean_square(measurement: Measurement) -> None:
    found = measured_with(measurement, "float32", "free", "stages", "merged", value=lambda a: a * (1 + OFF))
    free = measurement.condition.free("float32")
    gradients = measurement.truth.gradients.constants
    names = [f"{SOME}.kernel", f"{SOME}.bias"]
    each = [free.gradients[name].largest(rounding(gradients[name], "float32")) for name in names]
    sizes = [gradients[name].size for name in names]
    root = math.sqrt(sum(size * one.e**2 for size, one in zip(sizes, each, strict=True)) / sum(sizes))
    amplified = found[GRADIENT_FREE, f"{SOME}.kernel"].amplified
    assert amplified.e == pytest.approx(root, rel=1e-12)
    assert amplified.m == max(one.m for one in each)


def test_every_quantity_has_its_own_condition(measurement: Measurement) -> None:
    found = measurement.of(Fake(measurement.truth, "float32"))
    truth, limit = measurement.truth, "float32"
    free, forced = measurement.condition.free(limit), measurement.condition.forced(limit)

    def floored(errors: Errors, array: np.ndarray) -> Errors:
        return errors.largest(rounding(array, limit))

    for stage, array in truth.stages.items():
        assert found[FORWARD_FREE, stage].amplified == floored(free.stages[stage], array), stage
        assert found[FORWARD_FORCED, stage].amplified == floored(forced.stages[stage], array), stage
        cotangent = truth.gradients_on(truth.own_branches).cotangents[stage]
        assert found[BACKWARD_FREE, stage].amplified == floored(free.cotangents[stage], cotangent), stage
        for name, pulled in truth.pullback(stage, truth.own_branches)[0].items():
            key = f"{stage}<-{name}"
            assert found[BACKWARD_FORCED, key].amplified == floored(forced.cotangents[key], pulled), key
    large = "encoder.2.conv1.bias"
    gradient = truth.gradients.constants[large]
    assert found[GRADIENT_FREE, large].amplified == floored(free.gradients[large], gradient)
    forced_gradient = truth.pullback("encoder.2.conv1", truth.own_branches)[1][large]
    assert found[GRADIENT_FORCED, large].amplified == floored(forced.gradients[large], forced_gradient)
    assert {each.unit for each in found.values()} == {"float32"}


def test_coarser_products_loosen_convolutions_alone_when_fed_with_the_truth(measurement: Measurement) -> None:
    found = measurement.of(Fake(measurement.truth, "float32", products="tf32"))
    plain = measurement.of(Fake(measurement.truth, "float32"))
    assert found[FORWARD_FORCED, SOME].unit == "tf32"
    assert found[FORWARD_FORCED, "merged"].unit == "float32"
    assert found[BACKWARD_FORCED, "merged<-patches"].unit == "float32"
    assert found[BACKWARD_FORCED, "loss<-predicted_amplitude"].unit == "float32"
    assert found[LOSS, "forced"].unit == "float32"
    assert {found[key].unit for key in found if key[0] in (FORWARD_FREE, BACKWARD_FREE, GRADIENT_FREE)} == {"tf32"}
    ratio = ONE_ULP["tf32"] / ONE_ULP["float32"]
    for key in ((FORWARD_FORCED, SOME), (FORWARD_FREE, "merged"), (LOSS, "free")):
        assert found[key].amplified.e == pytest.approx(ratio * plain[key].amplified.e, rel=1e-9)
    for key in ((FORWARD_FORCED, "merged"), (LOSS, "forced")):
        assert found[key].amplified == plain[key].amplified


def test_float64_asks_for_no_condition_far_below_its_floor(measurement: Measurement) -> None:
    for off, asked in ((2.2e-13, False), (2.8e-13, True)):
        found = measured_with(measurement, "float64", "forced", "stages", "views", value=lambda a, o=off: a * (1 + o))
        assert (found[FORWARD_FORCED, "views"].amplified != NONE) == asked


# --- verdicts ---------------------------------------------------------------------------------------------------------


def quantity(stage: str, e: float, m: float, kappa: float = 1.0, mismatch: str = "") -> Quantity:
    return Quantity(stage, Errors(e, m), Errors(kappa, 2 * kappa), mismatch)


def test_a_quantity_is_one_of_float32_unless_it_says_so() -> None:
    assert Quantity("merged", NONE, NONE).unit == "float32"


def test_the_envelope_of_runs_is_the_largest_of_each() -> None:
    key = (FORWARD_FREE, "merged")
    runs = [{key: quantity("merged", 1, 5)}, {key: quantity("merged", 3, 2)}]
    assert envelope(runs) == {key: Errors(3, 5)}


def test_each_precision_has_its_rule() -> None:
    key = (FORWARD_FREE, "merged")
    measured = {key: quantity("merged", 1e-3, 2e-3, 1e-4, mismatch="wrong")}
    shown = {key: Errors(7, 8)}
    single = judge(measured, lambda *_: Errors(5e-4, 1e-5), LIMITS, "float32", shown)[key]
    assert single == Verdict(*key, Errors(7, 8), Errors(1e-3, 2e-3), Errors(2e-3, 3.2e-3), "wrong")
    double = judge(measured, lambda *_: Errors(5, 5), LIMITS, "float64")[key]
    assert double == Verdict(*key, None, Errors(1e-3, 2e-3), Errors(4e-4, math.inf), "wrong")
    asked: list[Any] = []
    judge(measured, lambda *given: asked.append(given) or NONE, LIMITS, "float32")  # type: ignore[func-returns-value]
    assert asked == [(key, measured)]
    assert judge(measured, lambda *_: NONE, LIMITS, "float32", {})[key].reference is None


def named_by(*failing: Key) -> str | None:
    stages = ("encoder.0.conv1", "merged", "views")
    measured: dict[Key, Quantity] = {}
    for stage in stages:
        for clause in (FORWARD_FREE, FORWARD_FORCED, BACKWARD_FREE):
            measured[clause, stage] = quantity(stage, 0, 0)
    measured[BACKWARD_FORCED, "merged<-encoder.0.conv1"] = quantity("merged", 0, 0)
    measured[BACKWARD_FORCED, "views<-merged"] = quantity("views", 0, 0)
    measured[BACKWARD_FORCED, "loss<-views"] = quantity("loss", 0, 0)
    measured[GRADIENT_FORCED, "encoder.0.conv1.kernel"] = quantity("encoder.0.conv1", 0, 0)
    for name in ("free", "forced", "free.nll", "forced.nll", "forced.mae"):
        measured[LOSS, name] = quantity("loss", 0, 0)
    verdicts = {
        key: Verdict(*key, None, Errors(2.0 if key in failing else 0.0, 0.0), Errors(1.0, 1.0)) for key in measured
    }
    stage_of = {key: each.stage for key, each in measured.items()}
    inputs = dict(zip(stages, ((), *((stage,) for stage in stages)), strict=False))
    return next(ranked_stages(fed_with_truth(verdicts), stage_of, inputs), None)


def test_the_first_failing_stage_is_the_earliest_forward_then_the_losses_then_backward() -> None:
    assert named_by() is None
    assert named_by((FORWARD_FREE, "merged"), (BACKWARD_FREE, "views"), (LOSS, "free")) is None
    assert named_by((FORWARD_FORCED, "views"), (FORWARD_FORCED, "merged"), (LOSS, "forced")) == "merged"
    assert named_by((LOSS, "forced"), (BACKWARD_FORCED, "views<-merged")) == "loss"
    assert named_by((LOSS, "forced.mae"), (BACKWARD_FORCED, "views<-merged")) == "loss"
    assert named_by((LOSS, "free.nll"), (BACKWARD_FORCED, "views<-merged")) == "views"
    assert named_by((BACKWARD_FORCED, "merged<-encoder.0.conv1"), (BACKWARD_FORCED, "views<-merged")) == "views"
    assert named_by((BACKWARD_FORCED, "views<-merged"), (BACKWARD_FORCED, "loss<-views")) == "loss"
    assert named_by((GRADIENT_FORCED, "encoder.0.conv1.kernel")) == "encoder.0.conv1"


def test_the_worst_verdict_used_most_of_its_budget() -> None:
    verdicts = {
        (FORWARD_FREE, "a"): Verdict(FORWARD_FREE, "a", None, Errors(0.5, 0.1), Errors(1.0, 1.0)),
        (LOSS, "b"): Verdict(LOSS, "b", None, Errors(0.1, 0.9), Errors(1.0, 1.0)),
    }
    assert worst({}) is None
    found = worst(verdicts)
    assert found is not None
    assert found.stage == "b"
    missing = {**verdicts, (LOSS, "c"): Verdict(LOSS, "c", None, NONE, Errors(1.0, 1.0), "missing")}
    assert worst(missing) == missing[LOSS, "c"]
