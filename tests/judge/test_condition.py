"""The condition of a case: what is known of it in closed form, and that everything moves as it passes.

``make mutation`` decides with these tests, too, whether a mutant of the comparer lives.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge import condition as conditions
from conformance.judge.condition import CAREFUL_DRAWS, FORCED_DRAWS, FREE_DRAWS, STEP, Amplified, Condition, mover
from conformance.judge.rules import ONE_ULP, Errors
from conformance.judge.truth import Truth


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(draw_case(GRAPHS["n64_g2_small_probe"], 3, batch=1))


@pytest.fixture(scope="module")
def condition(truth: Truth) -> Condition:
    return Condition(truth)


def test_conditions_that_are_known_in_closed_form(truth: Truth, condition: Condition) -> None:
    forced = condition.forced("float32")
    ulp = ONE_ULP["float32"]
    # Squares double a relative change; copies leave it.
    assert forced.stages["predicted_intensity"].e == pytest.approx(2 * ulp, rel=1e-2)
    assert forced.stages["object"].e == pytest.approx(ulp, rel=1e-2)
    assert forced.cotangents["encoder.0.pool<-encoder.0.conv2"].e == pytest.approx(ulp, rel=1e-2)
    log_scale = truth.constants.log_scale
    least, most = sorted((abs(1 - log_scale), 1 + log_scale))
    assert least * ulp * 0.9 <= forced.stages["predicted_amplitude"].e <= most * ulp * 1.1
    for name, each in condition.free("float32").stages.items():
        assert each.e > 0, name
        assert each.m >= each.e, name


def test_conditions_scale_with_the_unit(condition: Condition) -> None:
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
        oracle=SimpleNamespace(stages=("encoder.0.conv1", "decoder_amp.central", "x.outer.head", "views")),
        case=SimpleNamespace(settings=SimpleNamespace(N=64)),
    )
    asked: list[tuple[str, tuple[str, ...], float]] = []
    nothing = Amplified({}, {}, {}, {})

    steps: list[float] = []

    def free(_: Any, move: Any, move_transformed: Any = None) -> Amplified:
        asked.append(("free", (), float(move(np.ones(1))[0])))
        steps.append(0.0 if move_transformed is None else float(move_transformed(np.zeros(1))[0]))
        return nothing

    def forced(_: Any, move: Any, stages: Any) -> Amplified:
        asked.append(("forced", tuple(stages), float(move(np.ones(1))[0])))
        return nothing

    monkeypatch.setattr(conditions, "_measure_free", free)
    monkeypatch.setattr(conditions, "_measure_forced", forced)
    monkeypatch.setattr(conditions, "mover", lambda seed, step=0.0: lambda array: array + (seed if step == 0 else step))
    condition = Condition(truth)  # type: ignore[arg-type]
    condition.free("float32")
    assert [seed for _, _, seed in asked] == [1 + seed for seed in range(FREE_DRAWS)]
    condition.free("bfloat16")
    assert len(asked) == FREE_DRAWS
    condition.free("float64")
    assert [seed for _, _, seed in asked] == [1 + seed for seed in range(CAREFUL_DRAWS)]
    assert steps == [0.0] * FREE_DRAWS + [12 * STEP] * (CAREFUL_DRAWS - FREE_DRAWS)
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


def test_a_noisy_run_without_noise_is_the_truth(truth: Truth) -> None:
    run = conditions.noisy_run(truth, lambda array: array)
    for name, array in truth.stages.items():
        np.testing.assert_array_equal(run.stages[name], array)
        np.testing.assert_allclose(run.cotangents[name], truth.gradients.cotangents[name], rtol=1e-13, atol=0)
    assert set(run.gradients) == set(truth.case.weights)
    for name, array in run.gradients.items():
        np.testing.assert_allclose(array, truth.gradients.constants[name], rtol=1e-10, atol=1e-18)
    assert run.losses == truth.losses
    assert conditions.noisy_stages(truth, lambda array: array).keys() == truth.stages.keys()
    few = conditions.noisy_stages(truth, lambda array: array, ["merged"])
    assert list(few)[-1] == "merged"
    assert all(np.array_equal(array, truth.stages[name]) for name, array in few.items())
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


def test_what_a_transform_reads_and_gives_back_moves_on_its_own(truth: Truth) -> None:
    seen: list[tuple[int, ...]] = []

    def note(array: np.ndarray) -> np.ndarray:
        seen.append(array.shape)
        return array * 2

    run = conditions.noisy_run(truth, lambda array: array, note)
    assert seen == [truth.stages["exit_wave"].shape] * 2
    np.testing.assert_array_equal(run.stages["exit_wave"], 2 * truth.stages["exit_wave"])
    np.testing.assert_array_equal(run.stages["views"], truth.stages["views"])
    assert conditions.fft_roundings(256) == 16


def test_everything_moves_as_it_passes(truth: Truth) -> None:
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
def test_each_input_moves_what_reads_it(truth: Truth, seen: str) -> None:
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
        truth,
        move(truth.network_input),
        conditions._move_constants(truth.constants, move),
        lambda array: array,
        truth.oracle.stages,
    )
    changed = [name for name, array in truth.stages.items() if not np.array_equal(stages[name], array)]
    assert changed[0] == first
