"""Known mistakes of the losses and of derivatives: what the oracle gives when it makes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from conformance.judge.mistakes.arrays import (
    OFFSETS,
    Arrays,
    Hypothesis,
    factor_name,
    fitted,
    fitted_factor,
    mistakes_everywhere,
)
from conformance.judge.mistakes.forward import Situation
from conformance.judge.truth import Truth
from conformance.oracle import losses as oracle_losses
from conformance.oracle import stages as oracle_stages
from conformance.oracle.stages import Stage


def loss_mistakes(truth: Truth) -> Iterator[Hypothesis]:
    """Yield the three losses with each mistake."""
    values, measured, weights = truth.stages, truth.network_input, truth.loss_weights
    right, size = truth.losses, float(measured.size)
    intensity, amplitude = values["predicted_intensity"], values["predicted_amplitude"]

    def losses(nll: float, mae: float, total: float | None = None) -> Arrays:
        if total is None:
            total = weights["nll_weight"] * nll + weights["mae_weight"] * mae
        return {name: np.array(value) for name, value in (("nll", nll), ("mae", mae), ("total", total))}

    def likelihood(measured_amplitude: np.ndarray) -> float:
        return oracle_losses.likelihood(intensity, measured_amplitude)

    log_factorial = np.vectorize(math.lgamma)(measured**2 + 1).mean()
    nlls = {
        "amplitude against intensity": likelihood(np.sqrt(np.abs(measured))),
        "amplitude against intensity (predicted)": oracle_losses.likelihood(amplitude, measured),
        "sum in place of mean": right["nll"] * size,
        "sum over pixels in place of mean": right["nll"] * size / len(measured),
        "ln(I₀!) added": right["nll"] + float(log_factorial),
        "sign of the logarithm": 2 * float(intensity.mean()) - right["nll"],
        "factor 2": 2 * right["nll"],
        "factor 1/2": right["nll"] / 2,
        "logarithm left out": float(intensity.mean()),
        "intensity left out": right["nll"] - float(intensity.mean()),
    }
    for epsilon in (1e-3, 1e-4, 1e-6, 1e-8, 1e-10):
        held = intensity + epsilon
        nlls[f"an epsilon in the logarithm ({epsilon:g})"] = float((intensity - measured**2 * np.log(held)).mean())
    maes = {
        "intensity for amplitude": float(np.abs(intensity - measured**2).mean()),
        "squares in place of absolute values": float(((amplitude - measured) ** 2).mean()),
        "sum in place of mean": right["mae"] * size,
        "sum over pixels in place of mean": right["mae"] * size / len(measured),
        "factor 2": 2 * right["mae"],
        "factor 1/2": right["mae"] / 2,
        "scale left out": float(np.abs(amplitude - measured * np.exp(-truth.constants.log_scale)).mean()),
    }
    # What the network is trained on, and what is told of it, may be computed in two places.
    for alone in (False, True):
        for name, value in nlls.items():
            total = weights["nll_weight"] * value + weights["mae_weight"] * right["mae"]
            yield Hypothesis(f"likelihood: {name}", losses(right["nll"] if alone else value, right["mae"], total))
        for name, value in maes.items():
            total = weights["nll_weight"] * right["nll"] + weights["mae_weight"] * value
            yield Hypothesis(f"amplitude MAE: {name}", losses(right["nll"], right["mae"] if alone else value, total))
    for name in nlls.keys() & maes.keys():
        yield Hypothesis(name, losses(nlls[name], maes[name]))
    swapped = weights["mae_weight"] * right["nll"] + weights["nll_weight"] * right["mae"]
    yield Hypothesis("loss weights exchanged", losses(right["nll"], right["mae"], swapped))
    yield Hypothesis("loss weights ignored", losses(right["nll"], right["mae"], right["nll"] + right["mae"]))
    yield Hypothesis("MAE left out", losses(right["nll"], right["mae"], weights["nll_weight"] * right["nll"]))
    yield Hypothesis("likelihood left out", losses(right["nll"], right["mae"], weights["mae_weight"] * right["mae"]))


def backward_mistakes(truth: Truth, stage: str, expected: Arrays, found: Arrays) -> Iterator[Hypothesis]:
    """Yield what comes back from a stage with each mistake, fed with the truth's cotangent.

    Args:
        truth: of the case.
        stage: stage id, or ``loss``.
        expected: what has to come back, by ``STAGE<-INPUT`` and weight name.
        found: what came back wrong.
    """
    some = {name: array for name, array in expected.items() if name in found}
    yield Hypothesis("gradient cut off", {name: np.zeros_like(array) for name, array in some.items()})
    if stage != "loss":
        yield from _backward_of(truth, stage, expected)
    yield from mistakes_everywhere(some)
    for name, array in some.items() if len(some) == 1 else ():
        yield from fitted(name, array, found[name])
    factors = [fitted_factor(array, found[name]) for name, array in some.items()]
    if len(factors) > 1:
        yield Hypothesis(factor_name(factors[0]), {name: factors[0] * array for name, array in some.items()})


def _backward_of(truth: Truth, stage: str, expected: Arrays) -> Iterator[Hypothesis]:
    """Yield mistakes in the derivative of one kind of stage."""
    at, oracle = Situation.of(truth, stage, np.empty(0)), truth.oracle
    cotangent = truth.gradients.cotangents[stage]
    names, own_branch = oracle.inputs[stage], truth.own_branches.get(stage)

    def pulled(
        node: Stage = at.node,
        cotangent: np.ndarray = cotangent,
        branch: np.ndarray | None = own_branch,
        **constants: object,
    ) -> Arrays:
        changed = dataclasses.replace(at.constants, **constants) if constants else at.constants  # type: ignore[arg-type]
        back = node.pullback(at.inputs, cotangent, changed, branch)
        return {f"{stage}<-{name}": array for name, array in zip(names, back.inputs, strict=True)} | back.constants

    if np.iscomplexobj(cotangent):
        yield Hypothesis("conjugation of the cotangent", pulled(cotangent=cotangent.conj()))
        back = pulled(cotangent=cotangent.conj())
        yield Hypothesis("missing conjugate in the derivative", {name: array.conj() for name, array in back.items()})
    node = at.node
    if isinstance(node, oracle_stages.Convolution):
        if node.relu:
            everywhere = np.ones_like(cotangent, dtype=bool)
            yield Hypothesis("gradient passes where the ReLU is closed", pulled(branch=everywhere))
        kernel = at.constants.weights[f"{node.name}.kernel"]
        flipped = {**at.constants.weights, f"{node.name}.kernel": kernel[::-1, ::-1]}
        yield Hypothesis("kernel not flipped in the derivative", pulled(weights=flipped))
        by_kernel = expected[f"{node.name}.kernel"]
        count = float(np.prod(cotangent.shape[:3]))
        by_bias = expected[f"{node.name}.bias"]
        yield Hypothesis("mean in place of sum for the bias", {**expected, f"{node.name}.bias": by_bias / count})
        yield Hypothesis(
            "kernel's gradient transposed in space", {**expected, f"{node.name}.kernel": by_kernel.swapaxes(0, 1)}
        )
        yield Hypothesis("kernel's gradient cut off", {**expected, f"{node.name}.kernel": np.zeros_like(by_kernel)})
        yield Hypothesis("bias's gradient cut off", {**expected, f"{node.name}.bias": np.zeros_like(by_bias)})
        if len(names) == 1 and names[0] != "input":
            key = f"{stage}<-{names[0]}"
            yield Hypothesis("gradient of its input cut off", {**expected, key: np.zeros_like(expected[key])})
    if isinstance(node, oracle_stages.Pool):
        spread = np.repeat(np.repeat(cotangent, 2, axis=1), 2, axis=2)
        yield Hypothesis("gradient spread over the window", {f"{stage}<-{names[0]}": spread / 4})
        yield Hypothesis("gradient repeated over the window", {f"{stage}<-{names[0]}": spread})
        yield Hypothesis("gradient at the first pixel of the window", pulled(branch=np.zeros_like(cotangent, np.int8)))
    if isinstance(node, oracle_stages.Upsample):
        yield Hypothesis("mean in place of sum", {name: array / 4 for name, array in expected.items()})
        yield Hypothesis("gradient of one of four pixels", {f"{stage}<-{names[0]}": cotangent[:, ::2, ::2]})
    if isinstance(node, oracle_stages.Merge | oracle_stages.Views):
        for name, change in OFFSETS:
            yield Hypothesis(name, pulled(offsets_px=change(at.constants.offsets_px)))
    if isinstance(node, oracle_stages.ExitWave):
        yield Hypothesis("missing conjugate in the derivative", pulled(probe=at.constants.probe.conj()))
        if node.masked:
            yield Hypothesis("missing mask", pulled(dataclasses.replace(node, masked=False)))
    if isinstance(node, oracle_stages.Amplitude):
        yield Hypothesis("missing fftshift", pulled(cotangent=np.fft.fftshift(cotangent, axes=(1, 2))))
        for power in (1, 2, -1, -2):
            factor = float(node.size) ** power
            gives = {name: factor * array for name, array in expected.items()}
            yield Hypothesis("FFT normalisation", gives)
    if isinstance(node, oracle_stages.Square):
        yield Hypothesis("factor 1/2", {name: array / 2 for name, array in expected.items()})
    if isinstance(node, oracle_stages.Scale):
        yield Hypothesis("intensity scale left out", pulled(dataclasses.replace(node, sign=0)))
