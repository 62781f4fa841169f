"""The comparer: what it measures, how it pools, what rounding it allows, and which stage it names.

The subject here is the truth itself with one thing changed, so that what has to be found is known in closed form. These
tests decide, together with those of the judge, whether a mutant of the comparer lives: ``make mutation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conformance import condition as conditions
from conformance import judge as judging
from conformance import parity
from conformance.case import Case, ForcedRun, FreeRun
from conformance.condition import CAREFUL_DRAWS, FORCED_DRAWS, FREE_DRAWS, STEP, Amplified, Condition, mover
from conformance.draws import GRAPHS, draw_case
from conformance.gains import Gains, stage_clause, widest
from conformance.judge import NONE, ONE_ULP, UNIT_ROUNDOFF, Errors, Limits, Verdict, compare, rounding
from conformance.parity import (
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
    first_failing_stage,
    judge,
    stage_clauses,
    worst,
)
from conformance.spec import load_stages
from conformance.truth import Truth
from ptycho_torch.contract import SpecError

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


# --- what is measured -------------------------------------------------------------------------------------------


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

    distance = truth.oracle.margin(stage, inputs, opened(truth.stages[stage]) > 0, truth.constants)
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


# --- pools ------------------------------------------------------------------------------------------------------


def test_in_float32_a_small_bias_is_pooled_with_its_kernel(measurement: Measurement) -> None:
    truth = measurement.truth
    kernel, bias = (truth.case.weights[f"{SOME}.{kind}"].size for kind in ("kernel", "bias"))
    large = "encoder.2.conv1"
    assert bias < judging.SMALL <= truth.case.weights[f"{large}.bias"].size
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


def test_float64_asks_for_no_condition_below_its_floor(measurement: Measurement) -> None:
    for off, asked in ((1e-13, False), (1e-11, True)):
        found = measured_with(measurement, "float64", "forced", "stages", "views", value=lambda a, o=off: a * (1 + o))
        assert (found[FORWARD_FORCED, "views"].amplified != NONE) == asked


# --- the condition ----------------------------------------------------------------------------------------------


def test_conditions_that_are_known_in_closed_form(measurement: Measurement) -> None:
    forced = measurement.condition.forced("float32")
    ulp = ONE_ULP["float32"]
    # Squares double a relative change; copies leave it.
    assert forced.stages["predicted_intensity"].e == pytest.approx(2 * ulp, rel=1e-2)
    assert forced.stages["object"].e == pytest.approx(ulp, rel=1e-2)
    assert forced.cotangents["encoder.0.pool<-encoder.0.conv2"].e == pytest.approx(ulp, rel=1e-2)
    log_scale = measurement.truth.constants.log_scale
    least, most = sorted((abs(1 - log_scale), 1 + log_scale))
    assert least * ulp * 0.9 <= forced.stages["predicted_amplitude"].e <= most * ulp * 1.1
    for name, each in measurement.condition.free("float32").stages.items():
        assert each.e > 0, name
        assert each.m >= each.e, name


def test_conditions_scale_with_the_unit(measurement: Measurement) -> None:
    condition = measurement.condition
    for asked in (condition.free, condition.forced):
        single, half = asked("float32"), asked("bfloat16")
        ratio = ONE_ULP["bfloat16"] / ONE_ULP["float32"]
        for table in ("stages", "cotangents", "gradients", "losses"):
            left, right = getattr(single, table), getattr(half, table)
            assert left.keys() == right.keys()
            assert len(left) > 1
            for name, errors in left.items():
                assert right[name] == errors.scaled(ratio)


def test_draws_are_many_where_one_number_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = SimpleNamespace(
        oracle=SimpleNamespace(stages=("encoder.0.conv1", "decoder_amp.central", "x.outer.head", "views"))
    )
    asked: list[tuple[str, tuple[str, ...], float]] = []
    nothing = Amplified({}, {}, {}, {})

    def free(_: Any, move: Any) -> Amplified:
        asked.append(("free", (), float(move(np.ones(1))[0])))
        return nothing

    def forced(_: Any, move: Any, stages: Any) -> Amplified:
        asked.append(("forced", tuple(stages), float(move(np.ones(1))[0])))
        return nothing

    monkeypatch.setattr(conditions, "_measure_free", free)
    monkeypatch.setattr(conditions, "_measure_forced", forced)
    monkeypatch.setattr(conditions, "mover", lambda seed: lambda array: array + seed)
    condition = Condition(truth)  # type: ignore[arg-type]
    condition.free("float32")
    assert [seed for _, _, seed in asked] == [1 + seed for seed in range(FREE_DRAWS)]
    condition.free("bfloat16")
    assert len(asked) == FREE_DRAWS
    condition.free("float64")
    assert [seed for _, _, seed in asked] == [1 + seed for seed in range(CAREFUL_DRAWS)]
    asked.clear()
    condition.forced("float64")
    condition.forced("float32")
    careful = ("decoder_amp.central", "x.outer.head", "views")
    expected = [("forced", truth.oracle.stages, 1.0 + seed) for seed in range(FORCED_DRAWS)]
    assert asked == expected + [("forced", careful, 1.0 + seed) for seed in range(CAREFUL_DRAWS)]
    assert (FREE_DRAWS, FORCED_DRAWS, CAREFUL_DRAWS, STEP) == (5, 2, 10, 2.0**-44)


def test_the_largest_of_all_draws_counts() -> None:
    one = Amplified({"a": Errors(1, 5), "b": Errors(2, 2)}, {"c": Errors(1, 1)}, {}, {"l": Errors(3, 3)})
    two = Amplified({"a": Errors(4, 2)}, {"c": Errors(2, 0.5)}, {"g": Errors(1, 1)}, {"l": Errors(1, 9)})
    found = conditions._largest([one, two])
    assert found.stages == {"a": Errors(4, 5), "b": Errors(2, 2)}
    assert (found.cotangents, found.gradients) == ({"c": Errors(2, 1)}, {"g": Errors(1, 1)})
    assert found.losses == {"l": Errors(3, 9)}
    assert found.scaled(2).stages["a"] == Errors(8, 10)


def test_a_mover_moves_by_a_step_up_or_down() -> None:
    moved = mover(0)(np.ones(1000))
    assert set(np.unique(moved)) == {1 - STEP, 1 + STEP}
    assert not np.array_equal(moved, mover(1)(np.ones(1000)))
    np.testing.assert_array_equal(moved, mover(0)(np.ones(1000)))


def test_a_noisy_run_without_noise_is_the_truth(measurement: Measurement) -> None:
    truth = measurement.truth
    run = conditions.noisy_run(truth, lambda array: array)
    for name, array in truth.stages.items():
        np.testing.assert_array_equal(run.stages[name], array)
        np.testing.assert_allclose(run.cotangents[name], truth.gradients.cotangents[name], rtol=1e-13, atol=0)
    assert set(run.gradients) == set(truth.case.weights)
    for name, array in run.gradients.items():
        np.testing.assert_allclose(array, truth.gradients.constants[name], rtol=1e-10, atol=1e-18)
    assert run.losses == truth.losses
    assert conditions.noisy_stages(truth, lambda array: array).keys() == truth.stages.keys()
    free = conditions._measure_free(truth, lambda array: array)
    forced = conditions._measure_forced(truth, lambda array: array, truth.oracle.stages)
    for found in (free, forced):
        for table in (found.stages, found.cotangents, found.gradients, found.losses):
            assert table
            assert all(each.e < 1e-12 for each in table.values())
    assert forced.stages.keys() == free.stages.keys() == truth.stages.keys()
    assert free.gradients.keys() == forced.gradients.keys() == truth.case.weights.keys()
    assert set(free.losses) == set(forced.losses) == {"nll", "mae", "total"}
    assert {name.partition("<-")[0] for name in forced.cotangents} == {*truth.stages, "loss"} - {"normalized_input"}


def test_everything_moves_as_it_passes(measurement: Measurement) -> None:
    truth = measurement.truth
    moved: list[tuple[int, ...]] = []

    def note(array: np.ndarray) -> np.ndarray:
        moved.append(np.shape(array))
        return array

    conditions.noisy_run(truth, note)
    pulled = sum(len([name for name in names if name != "input"]) for names in truth.oracle.inputs.values())
    inputs = 1 + len(truth.case.weights) + 3
    assert len(moved) == inputs + len(truth.stages) + 2 + len(truth.stages) + pulled
    moved.clear()
    conditions._measure_forced(truth, note, ["views", "predicted_amplitude", "predicted_intensity"])
    # The input and the constants, what the stages read and give, and their cotangents.
    assert (
        len(moved) == inputs + len({"merged", "amplitude", "views", "predicted_amplitude", "predicted_intensity"}) + 3
    )


@pytest.mark.parametrize("seen", ["network_input", "weights", "offsets_px", "probe", "log_scale"])
def test_each_input_moves_what_reads_it(measurement: Measurement, seen: str) -> None:
    truth = measurement.truth
    shapes = {
        "network_input": truth.network_input.shape,
        "offsets_px": truth.constants.offsets_px.shape,
        "probe": truth.constants.probe.shape,
        "log_scale": (),
    }
    first = {"network_input": "normalized_input", "weights": "encoder.0.conv1", "offsets_px": "merged",
             "probe": "exit_wave", "log_scale": "normalized_input"}[seen]  # fmt: skip
    weights = {array.shape for array in truth.constants.weights.values()}

    def move(array: np.ndarray) -> np.ndarray:
        shape = np.shape(array)
        wanted = shape in weights if seen == "weights" else shape == shapes[seen]
        # A stage's output may have the shape of an input; inputs come first.
        if wanted and shape not in done:
            done.append(shape)
            return array * (1 + 2.0**-20)
        return array

    done: list[tuple[int, ...]] = []
    stages = conditions._noisy_stages(
        truth, move(truth.network_input), conditions._move_constants(truth.constants, move), lambda array: array
    )
    changed = [name for name, array in truth.stages.items() if not np.array_equal(stages[name], array)]
    assert changed[0] == first


# --- gains ------------------------------------------------------------------------------------------------------


def quantity(stage: str, e: float, m: float, kappa: float = 1.0, unit: str = "float32", mismatch: str = "") -> Quantity:
    return Quantity(stage, Errors(e, m), Errors(kappa, 2 * kappa), mismatch, unit=unit)


def test_a_quantity_is_one_of_float32_unless_it_says_so() -> None:
    assert Quantity("merged", NONE, NONE).unit == "float32"


def test_the_clause_of_a_stage() -> None:
    assert stage_clause("merged") == "merged"
    assert stage_clause("encoder.2.conv1") == "encoder.{i}.conv1"
    assert stage_clause("decoder_phase.outer.head") == "decoder_{D}.outer.head"
    assert stage_clause("decoder_amp.0.up") == "decoder_{D}.{i}.up"


def test_gains_are_the_largest_errors_over_the_condition() -> None:
    runs = [
        {(FORWARD_FREE, "encoder.0.conv1"): quantity("encoder.0.conv1", 3.0, 4.0)},
        {(FORWARD_FREE, "encoder.1.conv1"): quantity("encoder.1.conv1", 2.0, 12.0, 0.5)},
        {(FORWARD_FREE, "merged"): quantity("merged", 2.0, 2.0, 0.0), (LOSS, "free"): quantity("loss", 1.0, 1.0)},
    ]
    table = widest(runs).table
    assert table[FORWARD_FREE] == {"encoder.{i}.conv1": Errors(4.0, 12.0), "merged": NONE}
    assert table[LOSS] == {"loss": Errors(1.0, 0.5)}


def gains() -> Gains:
    return Gains(
        {
            FORWARD_FREE: {"encoder.{i}.conv1": Errors(2, 3), "encoder.{i}.conv2": Errors(9, 9)},
            FORWARD_FORCED: {
                "encoder.{i}.conv1": Errors(2, 7),
                "encoder.{i}.conv2": Errors(5, 3),
                "merged": Errors(50, 50),
            },
            GRADIENT_FREE: {"encoder.{i}.conv1": Errors(1, 10)},
            GRADIENT_FORCED: {"encoder.{i}.conv1": Errors(4, 4)},
        }
    )  # fmt: skip


def test_fed_with_the_truth_one_convolution_rounds_as_another_does() -> None:
    assert gains().of(FORWARD_FREE, "encoder.1.conv1") == Errors(2, 3)
    assert gains().of(FORWARD_FORCED, "encoder.1.conv1") == Errors(5, 7)
    assert gains().of(FORWARD_FORCED, "merged") == Errors(50, 50)
    with pytest.raises(SpecError, match="no gain was measured for FORWARD-FREE of views"):
        gains().of(FORWARD_FREE, "views")
    with pytest.raises(SpecError, match="no gain was measured for LOSS of loss"):
        gains().of(LOSS, "loss")


def test_live_gains_are_widened_only_where_the_truth_is_fed() -> None:
    live = Gains({FORWARD_FREE: {"merged": Errors(1, 1)}, FORWARD_FORCED: {"merged": Errors(1, 80)}})
    table = live.widened_when_forced(gains()).table
    assert table[FORWARD_FREE] == {"merged": Errors(1, 1)}
    assert table[FORWARD_FORCED]["merged"] == Errors(50, 80)
    assert table[FORWARD_FORCED]["encoder.{i}.conv1"] == Errors(2, 7)
    assert table[GRADIENT_FORCED] == {"encoder.{i}.conv1": Errors(4, 4)}
    assert GRADIENT_FREE not in table
    assert live.table[FORWARD_FORCED] == {"merged": Errors(1, 80)}


def test_the_envelope_is_gain_times_condition() -> None:
    name = "encoder.0.conv1"
    measured = {
        (FORWARD_FREE, name): quantity(name, 0, 0, 3.0),
        (GRADIENT_FREE, f"{name}.kernel"): quantity(name, 0, 0, 1.0),
        (GRADIENT_FORCED, f"{name}.kernel"): quantity(name, 0, 0, 2.0),
    }
    assert gains().envelope((FORWARD_FREE, name), measured) == Errors(6.0, 18.0)
    # A gradient running free has its own convolution's rounding too: 4 · 2 and 10 · 2.
    assert gains().envelope((GRADIENT_FREE, f"{name}.kernel"), measured) == Errors(8.0, 20.0)
    coarse = {(FORWARD_FREE, name): quantity(name, 0, 0, 3.0, "tf32")}
    assert gains().envelope((FORWARD_FREE, name), coarse) == Errors(6.0, 18.0).scaled(2.0**-13)
    fine = {(FORWARD_FREE, name): quantity(name, 0, 0, 3.0, "float64")}
    assert gains().envelope((FORWARD_FREE, name), fine) == Errors(6.0, 18.0)


def test_the_envelope_of_runs_is_the_largest_of_each() -> None:
    key = (FORWARD_FREE, "merged")
    runs = [{key: quantity("merged", 1, 5)}, {key: quantity("merged", 3, 2)}]
    assert envelope(runs) == {key: Errors(3, 5)}


# --- verdicts ---------------------------------------------------------------------------------------------------


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
    return first_failing_stage(verdicts, measured)


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
    only = worst(verdicts, [FORWARD_FREE])
    assert only is not None
    assert only.stage == "a"
    missing = {**verdicts, (LOSS, "c"): Verdict(LOSS, "c", None, NONE, Errors(1.0, 1.0), "missing")}
    assert worst(missing) == missing[LOSS, "c"]


# --- numbers of the judge ----------------------------------------------------------------------------------------


def test_units_of_rounding_are_those_of_the_formats() -> None:
    for name in ("float32", "float64"):
        assert ONE_ULP[name] == np.finfo(name).eps
        assert UNIT_ROUNDOFF[name] == np.finfo(name).eps / 2
    assert (ONE_ULP["tf32"], ONE_ULP["bfloat16"]) == (2.0**-10, 2.0**-7)
    assert (UNIT_ROUNDOFF["tf32"], UNIT_ROUNDOFF["bfloat16"]) == (2.0**-11, 2.0**-8)
    assert judging.SMALL == 64


def test_the_rounding_of_a_result_is_its_largest_value_s() -> None:
    truth = np.array([1.0, -3.0, np.inf, 0.0])
    rms = math.sqrt(10 / 3)
    assert rounding(truth, "float32") == Errors(2.0**-24, pytest.approx(2.0**-24 * 3 / rms))
    assert rounding(np.zeros(3), "float32") == NONE
    assert rounding(np.array([]), "float64") == NONE


def test_samples_are_measured_in_the_scale_of_the_whole() -> None:
    found = judging.deviation(np.array([1.0, 3.0]), np.array([1.0, 2.0]), scale=4.0)
    assert found.values.tolist() == [0.0, 0.25]
    assert judging.deviation(np.array([0.0, 1.0]), np.array([0.0, 0.0])).mismatch == "not zero where the truth is"
    assert judging.deviation(np.zeros(2), np.zeros(2)).values.tolist() == [0.0, 0.0]


def test_errors_of_nothing_are_none() -> None:
    assert judging.errors([]) == NONE
    assert judging.errors([judging.Deviation(np.empty(0))]) == NONE


def test_the_place_of_a_value_that_is_no_number_is_named() -> None:
    truth = np.ones((2, 3))
    wrong = truth.copy()
    wrong[1, 1] = np.nan
    assert judging.deviation(wrong, truth).mismatch == "non-finite values differ, first at flat index 4"
    both, other = truth.copy(), truth.copy()
    both[0, 0], other[0, 0] = np.inf, -np.inf
    assert judging.deviation(both, other).mismatch == "non-finite values of different kind"
    same = both.copy()
    same[0, 1] = 2
    found = judging.deviation(same, both)
    assert found.mismatch == ""
    assert found.values.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("used", "allowed", "share"),
    [
        *((1.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (5.0, math.inf, 0.0), (0.0, 1.0, 0.0)),
        *((math.nan, 1.0, math.inf), (math.inf, math.inf, 0.0), (math.nan, math.inf, 0.0)),
    ],
)  # fmt: skip
def test_the_share_of_a_budget(used: float, allowed: float, share: float) -> None:
    assert judging.share_of(used, allowed) == share


def test_a_verdict_says_what_was_measured() -> None:
    verdict = Verdict("LOSS", "free", Errors(1e-3, 1), Errors(2e-3, 4e-3), Errors(1e-2, 2e-2), "why")
    assert verdict.explain() == (
        "LOSS free: e = 0.002, m = 0.004; budget e = 0.01, m = 0.02; reference e = 0.001 (why)"
    )
    assert not verdict.passed
    assert replace(verdict, reason="").passed
    assert verdict.share == pytest.approx(0.2)
