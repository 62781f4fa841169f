"""The oracle agrees with the recordings, and its reverse pass with finite differences of its forward pass."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge.truth import Truth
from conformance.oracle import losses as oracle_losses
from conformance.oracle import operations as oracle_operations
from conformance.oracle import stages as oracle_stages
from conformance.oracle.network import Constants, Gradients, Oracle, Pullback, keras_adam
from conformance.recordings.bundle import read_bundle
from conformance.recordings.operations import OPERATIONS, Operation
from conformance.training.state import TrainingRun, train_truth

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "conformance" / "recordings"
SHARED = Path(os.environ.get("PTYCHO_SHARED", str(ROOT.parent / "shared"))) / "goldens"
BUNDLES = (
    "n64_g2_base",
    "n64_g1_base",
    "n64_g1_objsmall",
    "n64_g2_mask_sigma",
    "n64_g2_nopad",
    "n64_g2_probesmall",
    "n64_g2_softplus",
    "n128_g2_base",
)
FLOAT64_LIMIT = 1e-12
"""Worst found: 3e-15 for stages, 4e-13 for gradients (encoder.0.conv1.kernel of n128_g2_base)."""
SLOPE_LIMIT = 1e-5
"""Of central differences of the loss, relative. Worst found: 7e-8, the rounding of the loss over the step of
1e-8; at 100 times that step a kink in its way costs up to 2e-3."""
STAGE_SLOPE_LIMIT = 1e-6
"""Of central differences of one stage, relative. Worst found: 7e-8, where the canvas is divided by 0.001."""

Arrays = dict[str, np.ndarray]


# ---- recordings ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUNDLES)
def recording(request: pytest.FixtureRequest) -> Arrays:
    path = EMBEDDED / f"{request.param}.npz"
    if not path.exists():
        path = SHARED / f"{request.param}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here; set PTYCHO_SHARED to the folder that holds goldens/")
    return _load(path)


@pytest.fixture(scope="module")
def operations() -> Arrays:
    return _load(EMBEDDED / "ops_1.npz")


def _load(path: Path) -> Arrays:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _recorded_error(array: np.ndarray, name: str, recorded: Arrays) -> float:
    """Return RMS(array − truth) / RMS(whole truth) over the recorded samples."""
    assert array.shape == tuple(recorded[f"shape/{name}"]), name
    index = recorded.get(f"index/{name}")
    samples = array if index is None else array.reshape(-1)[index]
    return oracle_stages.rms(samples - recorded[f"truth/{name}"]) / float(recorded[f"rms/{name}"])


def _recorded_case(recorded: Arrays) -> tuple[dict[str, object], np.ndarray, Constants]:
    config = json.loads(str(recorded["config"]))
    weights = {name.removeprefix("weight/"): recorded[name] for name in recorded if name.startswith("weight/")}
    scale = float(config["intensity_scale"])
    network_input = recorded["input/diffraction"].astype(np.float64) * scale
    return (
        config,
        network_input,
        Constants.of(weights, recorded["input/offsets"], recorded["input/probe"], scale),
    )


def _loss_weights(config: Mapping[str, object]) -> dict[str, float]:
    return {name: float(str(config[name])) for name in ("nll_weight", "mae_weight")}


def test_stages_losses_and_gradients_equal_the_recorded_truth(recording: Arrays) -> None:
    config, network_input, constants = _recorded_case(recording)
    oracle = Oracle(config)
    assert {f"stage/{stage}" for stage in oracle.stages} == {n for n in recording if n.startswith("stage/")}
    assert oracle.weight_shapes == {name: array.shape for name, array in constants.weights.items()}
    values = oracle.forward(network_input, constants)
    losses = oracle.losses(values, network_input, _loss_weights(config))
    found = oracle.backward(values, network_input, constants, network_input, _loss_weights(config))
    errors = {name: _recorded_error(array, f"stage/{name}", recording) for name, array in values.items()}
    errors |= {name: _recorded_error(found.constants[name], f"grad/{name}", recording) for name in constants.weights}
    for name, value in losses.items():
        truth = float(recording[f"truth/loss/{name}"])
        errors[f"loss {name}"] = abs(value - truth) / abs(truth)
    assert {name: error for name, error in errors.items() if not error <= FLOAT64_LIMIT} == {}


def test_the_recorded_truth_multiplies_by_the_scale_in_float64(recording: Arrays) -> None:
    _, network_input, constants = _recorded_case(recording)
    scale = np.exp(constants.log_scale)
    rounded = (recording["input/diffraction"] * np.float32(scale)).astype(np.float64)
    name = "stage/normalized_input"
    assert _recorded_error(network_input / scale, name, recording) < 1e-15
    assert _recorded_error(rounded / scale, name, recording) > 1e-8


def test_training_follows_the_recorded_losses() -> None:
    recorded = read_bundle(EMBEDDED / "n64_g2_base.npz")
    found = train_truth(TrainingRun.repeated(recorded.case, 3))
    # The reference trains in float32; found: 2e-7.
    np.testing.assert_allclose(found.losses, recorded.train_losses, rtol=1e-6)


def _images(array: np.ndarray) -> np.ndarray:
    """Channels last to images on the last two axes; one channel is dropped."""
    return np.moveaxis(array, -1, 1) if array.shape[-1] > 1 else array[..., 0]


FOUND = {"translate": 1e-6, "stitch_20": 1.2e-5, "stitch_32": 1.2e-5, "ground_truth_patches": 2e-6}
"""Limits nearer to what was found of this recording than the ceilings for any.

Where the reference samples between pixels it rounds coordinates of up to 128 pixels, worth 4e-6 of a pixel each: 6e-7
found for translate, 8e-6 for stitch, 1.4e-6 for patches. (Positions, mean and coordinates rounded alike give 2e-8,
5e-8.)
"""


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_equals_its_recording(operation: Operation, operations: Arrays) -> None:
    truth = np.asarray(operation.truth(*(operations[key] for key in operation.reads)))
    recorded = operations[operation.recorded]
    assert truth.shape == recorded.shape
    error = oracle_stages.rms(truth - recorded.astype(truth.dtype)) / oracle_stages.rms(recorded)
    assert error <= FOUND.get(operation.name, operation.reference_ceiling)


def _sampled(images: np.ndarray, offsets_px: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """Translate by a table lookup whose sampling coordinates are rounded to ``dtype``."""
    _, H, W = images.shape
    moved = np.zeros_like(images)
    for image, offset, out in zip(images, offsets_px.astype(dtype), moved, strict=True):
        bordered = np.pad(image, 1)
        rows, columns = np.arange(H, dtype=dtype) - offset[1], np.arange(W, dtype=dtype) - offset[0]
        for j in (0, 1):
            for i in (0, 1):
                y, x = np.floor(rows) + j, np.floor(columns) + i
                weight = (1 - abs(rows - y))[:, None] * (1 - abs(columns - x))
                out += weight * bordered[np.ix_(*(np.clip(v + 1, 0, n + 1).astype(int) for v, n in ((y, H), (x, W))))]
    return moved


def test_translation_differs_from_the_recording_by_rounded_coordinates_alone(operations: Arrays) -> None:
    images = _images(operations["translate.image"]).astype(np.complex128)
    offsets, recorded = operations["translate.offsets"], _images(operations["translate.out"])
    exact = oracle_operations.translate(images, offsets)
    np.testing.assert_allclose(exact, _sampled(images, offsets, np.float64), atol=1e-12)
    rounded = oracle_stages.rms(_sampled(images, offsets, np.float32) - recorded)
    assert rounded < 1e-7 * oracle_stages.rms(recorded) < oracle_stages.rms(exact - recorded)


def test_intensity_scale_of_normalised_patterns_and_its_arguments() -> None:
    assert oracle_operations.intensity_scale(1e9, N=64) == pytest.approx(988.2117688, rel=1e-9)
    patterns = oracle_operations.normalise_amplitude(np.random.default_rng(0).random((3, 64, 64, 4)), 64)
    assert oracle_operations.intensity_scale(1e9, patterns) == pytest.approx(988.2117688, rel=1e-9)
    with pytest.raises(ValueError, match="either"):
        oracle_operations.intensity_scale(1e9)


def test_offsets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="not one"):
        oracle_operations.translate(np.zeros((2, 8, 8)), np.zeros((3, 2)))


# ---- drawn cases -----------------------------------------------------------------------------------

BASE = {
    "N": 64,
    "gridsize": 2,
    "n_filters_scale": 1,
    "object_big": True,
    "probe_big": True,
    "pad_object": True,
    "probe_mask": False,
    "amp_activation": "sigmoid",
    "gaussian_smoothing_sigma": 0.0,
    "offset": 4,
    "max_position_jitter": 10,
    "intensity_scale": 3.0,
}
VARIANTS: dict[str, dict[str, object]] = {
    "base": {},
    "one patch": {"gridsize": 1},
    "object small": {"object_big": False, "max_position_jitter": 7},
    "probe small, real space": {"probe_big": False, "real_space": True},
    "no padding": {"pad_object": False, "amp_activation": "relu"},
    "mask, sigma, two modes": {"probe_mask": True, "gaussian_smoothing_sigma": 0.7, "modes": 2},
    "swish": {"amp_activation": "swish", "gridsize": 1},
    "softplus, real space": {"amp_activation": "softplus", "gridsize": 1, "real_space": True},
    "relu": {"amp_activation": "relu", "gridsize": 1},
    "shared amplitude head": {"shared_amplitude_head": True, "modes": 2},
}


@dataclass(frozen=True)
class Drawn:
    """A random case: biases, complex probe, fractional offsets, so that nothing vanishes or is symmetric."""

    oracle: Oracle
    network_input: np.ndarray
    measured: np.ndarray
    constants: Constants
    loss_weights: dict[str, float]
    target: np.ndarray
    values: dict[str, np.ndarray]

    def total(self, network_input: np.ndarray, constants: Constants) -> float:
        values = self.oracle.forward(network_input, constants)
        return self.oracle.losses(values, self.measured, self.loss_weights, self.target)["total"]

    def backward(self, branches: Mapping[str, np.ndarray] | None = None) -> Gradients:
        return self.oracle.backward(
            self.values,
            self.network_input,
            self.constants,
            self.measured,
            self.loss_weights,
            branches,
            self.target,
        )

    def fed(self, stage: str) -> list[np.ndarray]:
        known = {**self.values, "input": self.network_input}
        return [known[name] for name in self.oracle.inputs[stage]]


def _complex(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def _like(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    return _complex(rng, array.shape) if np.iscomplexobj(array) else rng.normal(size=array.shape)


def draw(variant: Mapping[str, object]) -> Drawn:
    rng = np.random.default_rng(3)
    config = {**BASE, **variant}
    oracle = Oracle(config)
    C = int(str(config["gridsize"])) ** 2
    weights = {
        name: rng.normal(size=shape) * (np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.1)
        for name, shape in oracle.weight_shapes.items()
    }
    offsets = rng.uniform(-3, 3, (1, 1, 2, C))
    axis = (np.arange(64) - 31.5) / 10
    probe = _complex(rng, (int(str(config.get("modes", 1))), 64, 64)) * np.exp(-(axis**2 + axis[:, None] ** 2))
    constants = Constants.of(weights, offsets, probe, 3.0)
    network_input, measured = 3 * rng.random((1, 64, 64, C)), 3 * rng.random((1, 64, 64, C))
    loss_weights = {"nll_weight": 1.0, "mae_weight": 0.3}
    if variant.get("real_space"):
        loss_weights |= {"realspace_weight": 0.5, "tv_weight": 1e-3, "realspace_mae_weight": 0.7}
    values = oracle.forward(network_input, constants)
    return Drawn(oracle, network_input, measured, constants, loss_weights, _complex(rng, (1, 64, 64, 1)), values)


@pytest.fixture(scope="module", params=VARIANTS)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return draw(VARIANTS[request.param])


@pytest.fixture(
    scope="module",
    params=["mask, sigma, two modes", "object small", "no padding", "shared amplitude head"],
)
def telling(request: pytest.FixtureRequest) -> Drawn:
    """Variants that between them hold every kind of stage."""
    return draw(VARIANTS[request.param])


@pytest.fixture(scope="module")
def base() -> Drawn:
    return draw(VARIANTS["mask, sigma, two modes"])


def inner(left: np.ndarray, right: np.ndarray) -> float:
    """Return Re Σ conj(left) · right: how a cotangent acts on a change."""
    return float(np.vdot(left, right).real)


def _slope_errors(case: Drawn, step: float = 1e-8) -> dict[str, float]:
    """Compare central differences of the total loss with the reverse pass, along two random directions.

    Returns:
        What is moved → |difference quotient − slope| / the larger of the two.
    """
    rng = np.random.default_rng(11)
    found, constants = case.backward(), case.constants
    moves = {name: rng.normal(size=array.shape) * oracle_stages.rms(array) for name, array in constants.weights.items()}
    probe_move, input_move = _like(rng, constants.probe), _like(rng, case.network_input)
    by_input = (
        case.oracle.node("normalized_input")
        .pullback([case.network_input], found.cotangents["normalized_input"], constants)
        .inputs[0]
    )

    def network(t: float) -> float:
        weights = {name: array + t * moves[name] for name, array in constants.weights.items()}
        return case.total(case.network_input + t * input_move, dataclasses.replace(constants, weights=weights))

    def beam(t: float) -> float:
        probe, log_scale = constants.probe + t * probe_move, constants.log_scale + t
        return case.total(case.network_input, dataclasses.replace(constants, probe=probe, log_scale=log_scale))

    by_weights = sum(inner(found.constants[name], move) for name, move in moves.items())
    by_network = inner(by_input, input_move) + by_weights
    by_beam = inner(found.constants["probe"], probe_move) + float(found.constants["log_scale"])
    errors = {}
    for name, total, slope in (
        ("weights and input", network, by_network),
        ("probe and scale", beam, by_beam),
    ):
        quotient = (total(step) - total(-step)) / (2 * step)
        errors[name] = abs(quotient - slope) / max(abs(quotient), abs(slope))
    return errors


def test_reverse_pass_equals_finite_differences_of_the_loss(drawn: Drawn) -> None:
    errors = _slope_errors(drawn)
    assert max(errors.values()) < SLOPE_LIMIT, errors


BROKEN: dict[str, tuple[type[oracle_stages.Stage], Callable[[Pullback], Pullback]]] = {
    "exit wave, no conjugate": (oracle_stages.ExitWave, lambda p: _each(p, np.conj)),
    "views, sign": (oracle_stages.Views, lambda p: _each(p, np.negative)),
    "amplitude, conjugate": (oracle_stages.Amplitude, lambda p: _each(p, np.conj)),
    "merge, flipped": (oracle_stages.Merge, lambda p: _each(p, lambda g: g[:, ::-1])),
    "phase, sign": (oracle_stages.Patches, lambda p: Pullback((p.inputs[0], -p.inputs[1]), p.constants)),
    "convolutions, halved": (oracle_stages.Convolution, lambda p: _each(p, lambda g: 0.5 * g)),
    "pool, swapped": (oracle_stages.Pool, lambda p: _each(p, lambda g: g.swapaxes(1, 2))),
    "scale, one part in a thousand": (oracle_stages.Scale, lambda p: _each(p, lambda g: 1.001 * g)),
}


def _each(pulled: Pullback, change: Callable[[np.ndarray], np.ndarray]) -> Pullback:
    return Pullback(tuple(change(array) for array in pulled.inputs), pulled.constants)


@pytest.mark.parametrize("fault", BROKEN)
def test_finite_differences_catch_a_broken_stage(fault: str, base: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, change = BROKEN[fault]
    whole = stage._pullback
    monkeypatch.setattr(stage, "_pullback", lambda *args: change(whole(*args)))
    assert max(_slope_errors(base).values()) > 10 * SLOPE_LIMIT


def _stage_slope_error(case: Drawn, stage: str, rng: np.random.Generator, step: float = 1e-6) -> float:
    """Compare a central difference of one stage with its pullback, everything it reads moved at random.

    Returns:
        |difference quotient − slope| over the slope's typical size: as a sum of random terms it may cancel.
    """
    oracle, constants, fed = case.oracle, case.constants, case.fed(stage)
    moves, probe_move, cotangent = (
        [_like(rng, array) for array in fed],
        _like(rng, constants.probe),
        _like(rng, case.values[stage]),
    )
    weight_moves = {n: _like(rng, a) for n, a in constants.weights.items() if n.startswith(f"{stage}.")}
    ends, branches = [], []
    for t in (step, -step):
        inputs = [array + t * move for array, move in zip(fed, moves, strict=True)]
        moved = Constants(
            {n: constants.weights[n] + t * move for n, move in weight_moves.items()},
            constants.offsets_px,
            constants.probe + t * probe_move,
            constants.log_scale + t,
        )
        ends.append(oracle.node(stage).evaluate(inputs, moved))
        branches.append(oracle.node(stage).branch(inputs, ends[-1]))
    if branches[0] is not None:
        # Where the piece changes between the two ends there is no derivative to compare.
        cotangent *= branches[0] == branches[1]
    pulled = oracle.node(stage).pullback(fed, cotangent, constants)
    assert [array.shape for array in pulled.inputs] == [array.shape for array in fed], stage
    constant_moves = {**weight_moves, "probe": probe_move, "log_scale": np.ones(())}
    slope = sum(inner(g, m) for g, m in zip(pulled.inputs, moves, strict=True))
    slope += sum(inner(g, constant_moves[name]) for name, g in pulled.constants.items())
    quotient = inner(cotangent, ends[0] - ends[1]) / (2 * step)
    every = (*pulled.inputs, *pulled.constants.values())
    return float(abs(quotient - slope) / np.sqrt(sum(np.sum(np.abs(g) ** 2) for g in every)))


def test_each_pullback_equals_finite_differences_of_its_stage(telling: Drawn) -> None:
    rng = np.random.default_rng(5)
    errors = {stage: _stage_slope_error(telling, stage, rng) for stage in telling.oracle.stages}
    assert max(errors.values()) < STAGE_SLOPE_LIMIT, errors


LINEAR = ("up", "merged", "object", "views", "exit_wave", "output", "central", "head", "scale")


def test_linear_stages_satisfy_the_adjoint_identity(base: Drawn) -> None:
    rng = np.random.default_rng(7)
    checked = set()
    for stage in base.oracle.stages:
        kind = "scale" if stage in ("normalized_input", "predicted_amplitude") else stage.rpartition(".")[2]
        if kind not in LINEAR:
            continue
        checked.add(kind)
        inputs, cotangent = [_like(rng, array) for array in base.fed(stage)], _like(rng, base.values[stage])
        offset = base.oracle.node(stage).evaluate([np.zeros_like(array) for array in inputs], base.constants)
        forward = inner(cotangent, base.oracle.node(stage).evaluate(inputs, base.constants) - offset)
        pulled = base.oracle.node(stage).pullback(inputs, cotangent, base.constants).inputs
        backward = sum(inner(array, moved) for array, moved in zip(pulled, inputs, strict=True))
        size = np.linalg.norm(cotangent) * np.linalg.norm(base.values[stage])
        assert abs(forward - backward) < 1e-13 * size, stage
    assert checked == set(LINEAR)


@pytest.mark.parametrize(
    ("forward", "adjoint", "argument"),
    [
        (
            oracle_operations.translate,
            oracle_operations.translate_adjoint,
            np.array([[2.3, -41.7], [-0.4, 1.0], [0, 90.5]]),
        ),
        (oracle_operations.smooth, oracle_operations.smooth_adjoint, 0.8),
    ],
)
def test_adjoint_operations(forward: Callable, adjoint: Callable, argument: object) -> None:
    rng = np.random.default_rng(1)
    image, cotangent = _complex(rng, (3, 43, 57)), _complex(rng, (3, 43, 57))
    left, right = np.vdot(cotangent, forward(image, argument)), np.vdot(adjoint(cotangent, argument), image)
    assert abs(left - right) < 1e-12 * abs(left)


def test_whole_offsets_move_pixels_exactly_and_lose_what_leaves() -> None:
    image = np.random.default_rng(2).normal(size=(1, 9, 11))
    moved = oracle_operations.translate(image, np.array([[3, -2]]))
    np.testing.assert_array_equal(moved[0, :-2, 3:], image[0, 2:, :-3])
    assert not moved[0, -2:].any()
    assert not moved[0, :, :3].any()
    assert not oracle_operations.translate(image, np.array([[50, -60]])).any()


# ---- bookkeeping of the reverse pass ---------------------------------------------------------------


def test_chained_pullbacks_equal_backward(base: Drawn) -> None:
    found = base.backward()
    cotangents = {stage: np.zeros_like(base.values[stage]) for stage in base.oracle.stages}
    for stage, gradient in base.oracle.loss_pullback(base.values, base.measured, base.loss_weights).items():
        cotangents[stage] = cotangents[stage] + gradient
    for stage in reversed(base.oracle.stages):
        np.testing.assert_array_equal(cotangents[stage], found.cotangents[stage])
        pulled = base.oracle.node(stage).pullback(base.fed(stage), cotangents[stage], base.constants)
        for name, gradient in zip(base.oracle.inputs[stage], pulled.inputs, strict=True):
            if name != "input":
                cotangents[name] = cotangents[name] + gradient
        for name in set(pulled.constants) - {"log_scale"}:
            np.testing.assert_array_equal(pulled.constants[name], found.constants[name])


def _own_branches(case: Drawn) -> dict[str, np.ndarray]:
    branches = {"loss": case.oracle.loss_branch(case.values, case.measured)}
    for stage in case.oracle.stages:
        branch = case.oracle.node(stage).branch(case.fed(stage), case.values[stage])
        if branch is not None:
            branches[stage] = branch
    return branches


def test_own_branches_change_nothing_and_have_no_margin(telling: Drawn) -> None:
    branches = _own_branches(telling)
    own, given = telling.backward(), telling.backward(branches)
    for name, gradient in (own.cotangents | own.constants).items():
        np.testing.assert_array_equal((given.cotangents | given.constants)[name], gradient)
    assert telling.oracle.loss_margin(telling.values, telling.measured, branches.pop("loss")) == 0
    for stage, branch in branches.items():
        assert telling.oracle.node(stage).margin(telling.fed(stage), branch, telling.constants) == 0


def test_piecewise_stages_are_convolutions_pools_and_the_relu_activation(drawn: Drawn) -> None:
    found = set(_own_branches(drawn)) - {"loss"}
    expected = {s for s in drawn.oracle.stages if s.endswith((".conv1", ".conv2", ".pool"))}
    extra = found - expected
    assert found >= expected
    assert extra <= {"decoder_amp.activation", "decoder_amp.output"}


def test_another_branch_is_used_and_its_margin_is_the_distance_to_it(base: Drawn) -> None:
    branches = _own_branches(base)
    relu, pool = "encoder.1.conv1", "encoder.0.pool"
    weakest = np.unravel_index(np.where(branches[relu], base.values[relu], np.inf).argmin(), branches[relu].shape)
    other = branches[relu].copy()
    other[weakest] = False
    kernel, bias = (base.constants.weights[f"{relu}.{part}"] for part in ("kernel", "bias"))
    scale = oracle_stages.rms(oracle_stages.correlate(base.fed(relu)[0], kernel) + bias)
    margin = base.oracle.node(relu).margin(base.fed(relu), other, base.constants)
    assert margin == pytest.approx(base.values[relu][weakest] / scale)
    changed, own = base.backward(branches | {relu: other}), base.backward()
    assert (changed.constants[f"{relu}.bias"] != own.constants[f"{relu}.bias"]).sum() == 1
    turned = (3 - branches[pool]).astype(np.int8)
    images = base.fed(pool)[0]
    corner = images[:, 1::2, 1::2], images[:, 1::2, ::2], images[:, ::2, 1::2], images[:, ::2, ::2]
    chosen = np.choose(branches[pool], corner)
    worst = (base.values[pool] - chosen).max() / oracle_stages.rms(images)
    assert base.oracle.node(pool).margin([images], turned, base.constants) == pytest.approx(worst)


def test_tied_pools_choose_the_first_of_the_window(base: Drawn) -> None:
    flat = np.zeros_like(base.values["encoder.0.conv2"])
    branch = base.oracle.node("encoder.0.pool").branch([flat], base.values["encoder.0.pool"])
    assert branch is not None
    assert branch.dtype == np.int8
    assert not branch.any()


def test_loss_branch_replaces_the_sign_and_has_a_margin(base: Drawn) -> None:
    sign = base.oracle.loss_branch(base.values, base.measured)
    own = base.oracle.loss_pullback(base.values, base.measured, base.loss_weights)
    turned = base.oracle.loss_pullback(base.values, base.measured, base.loss_weights, -sign)
    np.testing.assert_array_equal(turned["predicted_amplitude"], -own["predicted_amplitude"])
    distance = np.abs(base.values["predicted_amplitude"] - base.measured).max() / oracle_stages.rms(base.measured)
    assert base.oracle.loss_margin(base.values, base.measured, -sign) == pytest.approx(distance)


def test_shapes_and_inputs_of_every_stage_are_as_announced(drawn: Drawn) -> None:
    modes = len(drawn.constants.probe)
    known = {"input"}
    for stage in drawn.oracle.stages:
        assert set(drawn.oracle.inputs[stage]) <= known
        known.add(stage)
        assert drawn.values[stage].shape == drawn.oracle.node(stage).shape(1, modes)
        assert drawn.values[stage].dtype in (np.float64, np.complex128)


def test_float32_inputs_are_widened(base: Drawn) -> None:
    narrow = [array.astype(np.float32) for array in base.fed("encoder.0.conv2")]
    assert base.oracle.node("encoder.0.conv2").evaluate(narrow, base.constants).dtype == np.float64


# ---- the corners -----------------------------------------------------------------------------------


def test_likelihood_is_finite_at_zero_and_its_logarithm_has_no_slope_there() -> None:
    intensity, measured = np.array([0.0, 0.0, 2.0]), np.array([0.0, 1.5, 1.5])
    assert np.isfinite(oracle_losses.likelihood(intensity, measured))
    np.testing.assert_allclose(
        oracle_losses.likelihood_gradient(intensity, measured), np.array([1, 1, 1 - 1.5**2 / 2]) / 3
    )


def test_zero_field_has_zero_gradient(base: Drawn) -> None:
    dark = [np.zeros_like(array) for array in base.fed("amplitude")]
    pulled = base.oracle.node("amplitude").pullback(dark, np.ones((1, 64, 64, 4)), base.constants)
    assert not pulled.inputs[0].any()


def test_odd_padding_of_a_merged_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        Oracle(BASE | {"offset": 5})
    # One patch alone is padded by the floor.
    assert Oracle(BASE | {"offset": 5, "object_big": False}).node("merged").shape(1) == (1, 78, 78, 1)


@pytest.mark.parametrize("change", [{"N": 96}, {"amp_activation": "tanh"}])
def test_settings_the_network_does_not_have_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"96|tanh"):
        Oracle(BASE | change)


def test_object_error_needs_a_target(base: Drawn) -> None:
    weights = {"realspace_weight": 1.0, "realspace_mae_weight": 1.0}
    with pytest.raises(ValueError, match="target"):
        base.oracle.losses(base.values, base.measured, weights)


def test_total_variation_sees_the_imaginary_part() -> None:
    image = _complex(np.random.default_rng(0), (2, 5, 5, 1))
    parts = oracle_losses.total_variation(image.real + 0j) + oracle_losses.total_variation(1j * image.imag)
    assert oracle_losses.total_variation(image) == pytest.approx(parts)
    assert oracle_losses.total_variation(np.full((1, 4, 4, 1), 2 + 1j)) == 0


def test_keras_adam_adds_epsilon_before_the_bias_correction() -> None:
    weights, state = {"w": np.zeros(3)}, {}
    gradient = np.array([1e-8, -1e-6, 1.0])
    expected = np.zeros(3)
    for step in (1, 2, 3):
        weights, state = keras_adam(weights, {"w": gradient, "probe": np.ones(1)}, state, step)
        # Of a constant gradient the corrected moments are g and g², so ε counts for ε / √(1 − β₂ᵗ).
        expected -= 1e-3 * gradient / (np.abs(gradient) + 1e-7 / np.sqrt(1 - 0.999**step))
    np.testing.assert_allclose(weights["w"], expected, rtol=1e-12)


def test_training_of_weights_alone_lowers_the_loss() -> None:
    case = draw_case(GRAPHS["n64_g1"], 0, batch=1)
    found = train_truth(TrainingRun.repeated(case, 4))
    assert found.losses[0] == Truth(case).losses["total"]
    assert found.losses[3] < found.losses[0]
    assert {name: array.shape for name, array in found.states[-1].weights.items()} == Truth(case).oracle.weight_shapes


def test_the_oracle_imports_numpy_scipy_and_itself_alone() -> None:
    for path in sorted((ROOT / "conformance" / "oracle").glob("*.py")):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= names if node.module == "conformance" else {str(node.module)}
        outside = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
        assert {name for name in outside if not name.startswith(("numpy", "scipy", "conformance.oracle"))} == set()
