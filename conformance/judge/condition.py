"""How much each quantity of a case amplifies one-ulp changes: its measured condition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from conformance.cases.case import FreeRun
from conformance.judge.rules import ONE_ULP, Errors, compare
from conformance.judge.truth import Truth, moved
from conformance.oracle.network import Constants

FREE_DRAWS, FORCED_DRAWS, CAREFUL_DRAWS = 5, 2, 10
"""Draws by which a condition is measured. A convolution averages over all its elements, so two draws of it will do. In
the physics, and in every gradient behind it, a single dark pixel can rule a whole tensor; the weights of a head hear of
few channels, whose noise they share. Few draws of one number would often all be small by chance. In float64, where the
condition alone is the budget and is seldom asked for, a free run is careful too."""

HEADS = (".central", ".outer.head")

STEP = 2.0**-44
"""Relative step by which a condition is measured. A float64 ulp would drown in the oracle's own rounding, and a float32
ulp leaves the linear range where intensity is nearly zero."""

Move = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Amplified:
    """κε and κ'ε by name: errors that one-ulp changes cause.

    Attributes:
        stages: by stage id.
        cotangents: running free, the cotangent of each stage; forced, ``STAGE<-INPUT``, what comes back at an input.
        gradients: by weight name.
        losses: ``nll``, ``mae``, ``total``.
    """

    stages: Mapping[str, Errors]
    cotangents: Mapping[str, Errors]
    gradients: Mapping[str, Errors]
    losses: Mapping[str, Errors]

    def scaled(self, factor: float) -> Amplified:
        """Return everything times ``factor``."""
        tables = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Amplified(*({name: errors.scaled(factor) for name, errors in table.items()} for table in tables))


class Condition:
    """The condition of one case, measured on first use on the truth's own linear pieces.

    Args:
        truth: of the case.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def free(self, dtype: str) -> Amplified:
        """Everything moves as it passes: inputs, weights, and the output and cotangent of every stage."""
        found = self._careful_free if dtype == "float64" else self._free
        return found.scaled(ONE_ULP[dtype] / STEP)

    def forced(self, dtype: str) -> Amplified:
        """The inputs, weights and cotangent of one stage alone are moved."""
        return self._forced.scaled(ONE_ULP[dtype] / STEP)

    @cached_property
    def _free(self) -> Amplified:
        return _largest([_measure_free(self._truth, mover(seed)) for seed in range(FREE_DRAWS)])

    @cached_property
    def _careful_free(self) -> Amplified:
        step = STEP * fft_roundings(self._truth.case.settings.N)
        more = [_measure_free(self._truth, mover(seed), mover(seed, step)) for seed in range(FREE_DRAWS, CAREFUL_DRAWS)]
        return _largest([self._free, *more])

    @cached_property
    def _forced(self) -> Amplified:
        every = self._truth.oracle.stages
        careful = [stage for stage in every if "." not in stage or stage.endswith(HEADS)]
        draws = [(every, seed) for seed in range(FORCED_DRAWS)] + [(careful, seed) for seed in range(CAREFUL_DRAWS)]
        return _largest([_measure_forced(self._truth, mover(seed), stages) for stages, seed in draws])


def mover(seed: int, step: float = STEP) -> Move:
    """Return what moves arrays by a relative step up or down at random."""
    rng = np.random.default_rng(seed)
    return lambda array: moved(array, rng, step)


def fft_roundings(N: int) -> float:
    """Return how often a fast Fourier transform of (N, N) pixels rounds its sums: log₂ N².

    Its error is at most about as many ulps of its norm (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    2nd edition 2002, theorem 24.2). Moving each pixel by one ulp would hide it in a sum over pixels that a symmetry
    holds at zero: such moves average out there, while the errors of a transform are alike in all pixels.
    """
    return math.log2(N * N)


def _largest(draws: Sequence[Amplified]) -> Amplified:
    """Return the largest of all draws of each quantity, of those that have it."""
    tables: list[dict[str, Errors]] = []
    for field in dataclasses.fields(Amplified):
        widest: dict[str, Errors] = {}
        for draw in draws:
            for name, errors in getattr(draw, field.name).items():
                widest[name] = widest.get(name, errors).largest(errors)
        tables.append(widest)
    return Amplified(*tables)


def _move_constants(constants: Constants, move: Move) -> Constants:
    return Constants(
        weights={name: move(array) for name, array in constants.weights.items()},
        offsets_px=move(constants.offsets_px),
        probe=move(constants.probe),
        log_scale=float(move(np.array(constants.log_scale))),
    )


def noisy_run(truth: Truth, move: Move, move_transformed: Move | None = None) -> FreeRun:
    """Run end to end, every output and every cotangent moved before the next stage sees it.

    Args:
        truth: of the case.
        move: moves one array.
        move_transformed: moves the exit wave, which the forward transform reads, and its cotangent, which the
            transform of the reverse pass gives; None moves them like all others.

    Moving only the case's inputs would not do: the intensity does not depend on the object's global phase, so every
    sum that this symmetry holds near zero would look well-conditioned, while rounding inside breaks the symmetry.
    """
    oracle, branches = truth.oracle, truth.own_branches
    moves = {} if move_transformed is None else {"exit_wave": move_transformed}
    network_input, constants = move(truth.network_input), _move_constants(truth.constants, move)
    stages = _noisy_stages(truth, network_input, constants, move, oracle.stages, moves)
    cotangents = {stage: np.zeros_like(output) for stage, output in stages.items()}
    from_loss = oracle.loss_pullback(stages, network_input, truth.loss_weights, branches["loss"])
    for stage, cotangent in from_loss.items():
        cotangents[stage] = cotangents[stage] + move(cotangent)
    gradients: dict[str, np.ndarray] = {}
    for stage in reversed(oracle.stages):
        cotangents[stage] = moves.get(stage, move)(cotangents[stage])
        by_input, by_weight = truth.pull_back_at(stage, stages, network_input, cotangents, constants, branches)
        gradients |= by_weight
        for name, pulled in by_input.items():
            cotangents[name] = cotangents[name] + move(pulled)
    return FreeRun(stages, cotangents, gradients, oracle.losses(stages, network_input, truth.loss_weights))


def noisy_stages(truth: Truth, move: Move, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Run the forward half alone of a noisy run, up to the named stages; None is all of them."""
    oracle = truth.oracle
    needed = set(oracle.stages if names is None else names)
    for stage in reversed(oracle.stages):
        if stage in needed:
            needed.update(oracle.inputs[stage])
    chosen = [stage for stage in oracle.stages if stage in needed]
    return _noisy_stages(truth, move(truth.network_input), _move_constants(truth.constants, move), move, chosen)


def _noisy_stages(
    truth: Truth,
    network_input: np.ndarray,
    constants: Constants,
    move: Move,
    chosen: Sequence[str],
    moves: Mapping[str, Move] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    stages: dict[str, np.ndarray] = {}
    for stage in chosen:
        output = truth.oracle.node(stage).evaluate(truth.values_of(stage, stages, network_input), constants)
        stages[stage] = moves.get(stage, move)(output)
    return stages


def _measure_free(truth: Truth, move: Move, move_transformed: Move | None = None) -> Amplified:
    """Compare a noisy run with the truth."""
    run, expected = noisy_run(truth, move, move_transformed), truth.gradients
    return Amplified(
        stages=_compare_all(run.stages, truth.stages),
        cotangents=_compare_all(run.cotangents, expected.cotangents),
        gradients=_compare_all(run.gradients, {name: expected.constants[name] for name in truth.case.weights}),
        losses=_compare_losses(run.losses, truth.losses),
    )


def _measure_forced(truth: Truth, move: Move, measured: Sequence[str]) -> Amplified:
    """Move the inputs, weights and cotangent of each measured stage, and see what that stage makes of it."""
    oracle, branches = truth.oracle, truth.own_branches
    network_input, constants = move(truth.network_input), _move_constants(truth.constants, move)
    read = {name for stage in measured for name in oracle.inputs[stage]} | set(measured)
    values = {name: move(array) for name, array in truth.stages.items() if name in read}
    cotangents = {name: move(truth.gradients.cotangents[name]) for name in measured}
    stages: dict[str, Errors] = {}
    pulled: dict[str, Errors] = {}
    gradients: dict[str, Errors] = {}
    for stage in measured:
        output = oracle.node(stage).evaluate(truth.values_of(stage, values, network_input), constants)
        stages[stage] = compare(output, truth.stages[stage])
        by_input, by_weight = truth.pull_back_at(stage, values, network_input, cotangents, constants, branches)
        expected_inputs, expected_weights = truth.pullback(stage, branches)
        pulled |= {f"{stage}<-{name}": compare(by_input[name], array) for name, array in expected_inputs.items()}
        gradients |= _compare_all(by_weight, expected_weights)
    moved_loss = oracle.loss_pullback(values, network_input, truth.loss_weights, branches["loss"])
    loss = oracle.loss_pullback(truth.stages, truth.network_input, truth.loss_weights, branches["loss"])
    pulled |= {f"loss<-{name}": compare(moved_loss[name], array) for name, array in loss.items()}
    losses = oracle.losses(values, network_input, truth.loss_weights)
    return Amplified(stages, pulled, gradients, _compare_losses(losses, truth.losses))


def _compare_all(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, Errors]:
    return {name: compare(found[name], array) for name, array in expected.items()}


def _compare_losses(found: Mapping[str, float], expected: Mapping[str, float]) -> dict[str, Errors]:
    return {name: compare(np.array(found[name]), np.array(value)) for name, value in expected.items()}
