"""A red verdict as a program of its own: at most 60 lines that fail with only PyTorch, NumPy and ptycho_torch.

The program draws input, probe and weights, runs the network in one precision, and compares a few values of one stage,
or of one gradient, with what the oracle gave for the same draws. It is only handed out if it fails here and now.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.draws import BOTH_LOSSES
from conformance.errors import DocumentError
from conformance.judge.truth import Truth
from conformance.session.bench import CANDIDATE_ERRORS
from conformance.spec.loader import Stage, load_stages
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import PtychoError

LONGEST, LARGEST_BYTES = 60, 200_000
"""Lines and size of a program at most."""

_PLACES = 4
_LIMITS = {"float64": 1e-8, "float32": 1e-3}
"""Allowed difference in units of the RMS: a thousand times what rounding does at the worst element."""

_TRIALS = (("float64", 2), ("float64", 1), ("float32", 2))
"""Precision and number of modes, tried in this order."""

LOSS = "loss"
_NO_STAGE = frozenset({"train", "recording", ""})
_LOSS_INPUTS = ("predicted_intensity", "predicted_amplitude", "object")

_BODY = '''"""{what}, as one program: it fails until ptycho_torch is repaired.

{equation}
"""

import numpy as np
import torch

from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet

SETTINGS = {settings}
DTYPE, BATCH, MODES = "{dtype}", 2, {modes}
N, C = SETTINGS.N, SETTINGS.C

# Input, probe and weights, drawn at random.
draw = np.random.default_rng(0)
amplitude = np.abs(0.15 * draw.standard_normal((BATCH, C, N, N))).astype("float32")
offsets_px = draw.uniform(-5, 5, (BATCH, C, 1, 2)).astype("float32")
offsets_px -= offsets_px.mean(axis=1, keepdims=True)
x, noise = np.arange(N) - (N - 1) / 2, draw.standard_normal((2, MODES, N, N))
wave = np.exp(1j * (0.11 * x[:, None] - 0.07 * x)) + 0.5 * (noise[0] + 1j * noise[1])
probe = (0.4 * np.exp(-(x[:, None] ** 2 + x**2) * 18 / N**2) * wave).astype("complex64")
model = PtychoNet(SETTINGS, torch.from_numpy(probe), dtype=getattr(torch, DTYPE))
weights = {{}}
for name, parameter in sorted(model.named_parameters()):
    if name.endswith((".weight", ".bias")):
        size = np.prod(parameter.shape[2:]) * sum(parameter.shape[:2])
        spread = np.sqrt(2 / size) if parameter.ndim == 4 else 0.05
        weights[name] = (spread * draw.standard_normal(parameter.shape)).astype("float32")
        parameter.data.copy_(torch.from_numpy(weights[name]))

# Run it.
seen = {{}}
{hook}scaled = torch.from_numpy(amplitude.astype(DTYPE) * np.asarray(SETTINGS.intensity_scale, DTYPE))
prediction = model(scaled, torch.from_numpy(offsets_px).to(scaled))
loss = total_loss(
    prediction.object, prediction.amplitude, prediction.intensity, scaled,
    LossWeights(nll_weight={weights.nll_weight}, mae_weight={weights.mae_weight}), probe_big=SETTINGS.probe_big,
).total
{found}
found = found.detach().resolve_conj().numpy()
'''

_HOOK = 'model.get_submodule("{name}").register_forward_hook(lambda _, __, output: seen.update(output=output))\n'
_GRADIENT = """(found,) = torch.autograd.grad(loss, {by}, allow_unused=True)
found = torch.zeros_like({by}) if found is None else found"""

_CHECK = """
# What the equations give, in float64, at some places.
SHAPE, RMS, LIMIT = {shape}, {rms!r}, {limit}
EXPECTED = {{
{expected}
}}
assert found.shape == SHAPE, f"shape {{found.shape}}, expected {{SHAPE}}"
for place, right in EXPECTED.items():
    print(place, "found", found[place], "expected", right)
error = np.max([abs(found[place] - right) for place, right in EXPECTED.items()]) / RMS
assert error <= LIMIT, f"off by {{error:.3g}} of the RMS; {{LIMIT}} is allowed"
"""


@dataclass(frozen=True)
class _Quantity:
    """What a program looks at.

    Attributes:
        kind: ``output``, ``loss``, ``by output`` or ``by weight``; the last two are gradients of the loss.
        name: of the stage, or of the weight in PyTorch.
    """

    kind: str
    name: str

    @property
    def title(self) -> str:
        """What is wrong, in words."""
        words = {"output": "Output of {}", "loss": "The loss", "by output": "∂loss/∂({})", "by weight": "∂loss/∂({})"}
        return f"{words[self.kind].format(self.name)} is wrong"

    @property
    def lines(self) -> tuple[str, str]:
        """How a program hooks a stage, and how it finds the value."""
        hook = _HOOK.format(name=self.name) if "output" in self.kind else ""
        by = 'seen["output"]' if self.kind == "by output" else f'model.get_parameter("{self.name}")'
        return hook, {"output": 'found = seen["output"]', "loss": "found = loss"}.get(
            self.kind, _GRADIENT.format(by=by)
        )


def _quantities(stage: str, found: Mapping[str, Stage]) -> Iterator[_Quantity]:
    """Yield what may be wrong with a stage: its output, then the gradients that it passes on."""
    if stage == LOSS:
        yield _Quantity("loss", "")
        yield from (_Quantity("by output", each) for each in _LOSS_INPUTS)
        return
    yield _Quantity("output", stage)
    yield from (_Quantity("by output", each) for each in found[stage].inputs if each in found)
    yield from (_Quantity("by weight", name.replace(".kernel", ".weight")) for name in found[stage].weights)
    yield _Quantity("by output", stage)


def _truth(settings: NetworkSettings, drawn: Mapping[str, Any]) -> Truth:
    """Return the oracle on what a program has drawn."""
    weights = {}
    for name, array in drawn["weights"].items():
        layout = LAYOUTS["vector" if array.ndim == 1 else "kernel"]
        weights[name.replace(".weight", ".kernel")] = layout.to_tensorflow(array)
    return Truth(
        Case(
            name="reproduction",
            settings=settings,
            loss_weights=BOTH_LOSSES,
            diffraction=LAYOUTS["channels"].to_tensorflow(drawn["amplitude"]),
            offsets_px=LAYOUTS["offsets"].to_tensorflow(drawn["offsets_px"]),
            probe=drawn["probe"],
            weights=weights,
        )
    )


def _expected(truth: Truth, quantity: _Quantity, stages: Mapping[str, Stage]) -> np.ndarray:
    """Return what is right, in PyTorch's order of axes."""
    if quantity.kind == "loss":
        return np.array(truth.losses["total"])
    if quantity.kind == "by weight":
        gradient = truth.gradients.constants[quantity.name.replace(".weight", ".kernel")]
        return LAYOUTS["vector" if gradient.ndim == 1 else "kernel"].to_torch(gradient)
    values = truth.stages if quantity.kind == "output" else truth.gradients.cotangents
    return LAYOUTS[stages[quantity.name].layout].to_torch(values[quantity.name], truth.case.settings.C)


def reproduction(settings: NetworkSettings, stage: str) -> str:
    """Return a program that fails because of a stage.

    Args:
        settings: of the network.
        stage: its id, or ``loss``.

    Raises:
        DocumentError: there is no such stage, or no program fails: what is wrong does not show on drawn input.
    """
    stages = {each.id: each for each in load_stages().expand(settings)}
    if stage != LOSS and stage not in stages:
        raise DocumentError(f"no stage {stage!r} in this network; it has {LOSS}, {', '.join(stages)}.")
    for dtype, modes in _TRIALS:
        truth: Truth | None = None
        for quantity in _quantities(stage, stages):
            if dtype == "float32" and quantity.kind.startswith("by"):
                continue  # A rounding can put a gradient on another linear piece.
            body = _body(quantity, stages, settings, dtype, modes)
            try:
                drawn = ran(body)
            except CANDIDATE_ERRORS:
                return body
            truth = truth or _truth(settings, drawn)
            script = body + _check(drawn["found"], _expected(truth, quantity, stages), _LIMITS[dtype])
            try:
                ran(script)
            except AssertionError:
                assert script.count("\n") <= LONGEST
                assert len(script.encode()) <= LARGEST_BYTES
                return script
    raise DocumentError(
        f"{stage} gives on drawn input what it should: what is wrong lies in the case's own input, in how its weights "
        "came into the network, or only in another row; `pytest conformance/test_steps.py` judges the way there."
    )


def _body(quantity: _Quantity, stages: Mapping[str, Stage], settings: NetworkSettings, dtype: str, modes: int) -> str:
    hook, found = quantity.lines
    clause = stages[quantity.name].clause if quantity.name in stages else None
    changed = {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if getattr(settings, each.name) != each.default
    }
    return _BODY.format(
        what=quantity.title,
        equation=f"{clause.id}: {clause.equation}" if clause else "The equations are those of specs/stages.yaml.",
        settings=f"NetworkSettings({', '.join(f'{name}={value!r}' for name, value in changed.items())})",
        dtype=dtype,
        modes=modes,
        hook=hook,
        found=found,
        weights=BOTH_LOSSES,
    )


def ran(script: str) -> dict[str, Any]:
    """Run a program without its words, and return its names."""
    names: dict[str, Any] = {"print": lambda *_: None}
    exec(compile(script, "reproduction", "exec"), names)
    return names


def _check(found: np.ndarray, right: np.ndarray, limit: float) -> str:
    """Return the end of a program: the places that differ most, and what they should be."""
    rms = float(np.sqrt(np.mean(np.abs(right) ** 2))) or 1.0
    differs = np.abs(found - right) if found.shape == right.shape else np.zeros(right.shape)
    worst = np.argsort(-np.nan_to_num(differs, nan=np.inf).ravel(), kind="stable")[:_PLACES]
    places = [tuple(map(int, np.unravel_index(each, right.shape))) for each in worst]
    expected = "\n".join(f"    {place}: {right[place].item()!r}," for place in places)
    return _CHECK.format(shape=right.shape, rms=rms, limit=limit, expected=expected)


def failing_stages(case: Mapping[str, Any]) -> list[str]:
    """Return the stages of a report's case with a red verdict that a program can show, the first failing one first."""
    red = [each["stage"] for each in case["verdicts"] if not each["passed"]]
    first = [case["first_failing_stage"]] if case["first_failing_stage"] in red else []
    return [each for each in dict.fromkeys([*first, *red]) if each not in _NO_STAGE]


def reproduce_command(report: Path | str, case: str, stage: str) -> str:
    """Return the command that writes a program for a red verdict; empty where none can show it."""
    words = ["python", "-m", "conformance", "reproduce", str(report), case, stage, "-o", "repro.py"]
    return "" if stage in _NO_STAGE else shlex.join(words)


def of_report(report: Mapping[str, Any], name: str, stage: str) -> str:
    """Return a program for a red verdict of a report.

    Raises:
        DocumentError: the report judges another candidate, or has no such case, or nothing red there; or as
            ``reproduction``.
    """
    if "candidate" in report:
        raise DocumentError(
            f"the report judges {report['candidate']['name']}, and a program shows only what is wrong in this package; "
            "parity.html has the first wrong stage and what it deviates by."
        )
    cases = [case for case in report["cases"] if case["case"] == name]
    if not cases:
        raise DocumentError(
            f"no case {name!r} in the report; it has {', '.join(each['case'] for each in report['cases'])}."
        )
    red = list(dict.fromkeys(each for case in cases for each in failing_stages(case)))
    if stage not in red:
        raise DocumentError(f"nothing failed at {stage!r} of {name}; there failed {', '.join(red) or 'nothing'}.")
    if "settings" not in cases[0]:
        raise DocumentError(f"the report has no settings of {name}: an older suite wrote it; run the suite again.")
    try:
        settings = NetworkSettings(**cases[0]["settings"])
    except (TypeError, PtychoError) as err:
        raise DocumentError(f"the settings of {name} in the report are none of this network: {err}") from err
    return reproduction(settings, stage)
