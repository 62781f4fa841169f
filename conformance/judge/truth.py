"""The truth of a case, from the NumPy oracle in float64, and how much each quantity amplifies one-ulp changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from conformance.cases.case import Case
from conformance.judge.rules import ONE_ULP
from conformance.oracle.network import Constants, Gradients, Oracle


def moved(array: np.ndarray, rng: np.random.Generator, step: float = ONE_ULP["float32"]) -> np.ndarray:
    """Return float64 or complex128 values, each moved by a relative step up or down at random."""

    def signs() -> np.ndarray:
        return rng.integers(0, 2, array.shape, dtype=np.int8) * 2.0 - 1.0

    if np.iscomplexobj(array):
        wide = array.astype(np.complex128)
        return np.asarray(wide.real * (1 + step * signs()) + 1j * (wide.imag * (1 + step * signs())))
    return np.asarray(array.astype(np.float64) * (1 + step * signs()))


def moved_case(case: Case, rng: np.random.Generator) -> Case:
    """Return the case with every input and weight moved by a float32 ulp in the dtypes it had."""

    def move(array: np.ndarray) -> np.ndarray:
        return moved(array, rng).astype(array.dtype)

    return dataclasses.replace(
        case,
        diffraction=move(case.diffraction),
        offsets_px=move(case.offsets_px),
        probe=move(case.probe),
        weights={name: move(array) for name, array in case.weights.items()},
    )


@dataclass(frozen=True)
class Pieces:
    """Which linear piece each piecewise-linear stage was on in one run, and how far that is from the truth's.

    Attributes:
        branches: stage id (or ``loss``) → branch, as ``Stage.branch`` gives it.
        margins: stage id (or ``loss``) → distance of the truth from that piece, in units of the RMS.
    """

    branches: Mapping[str, np.ndarray]
    margins: Mapping[str, float]


class Truth:
    """Everything the oracle says about one case.

    Args:
        case: the case; its arrays are cast to float64 once.
        constants: weights, probe and scale to take in place of the case's.
    """

    def __init__(self, case: Case, constants: Constants | None = None) -> None:
        self.case = case
        self.oracle = Oracle(dataclasses.asdict(case.settings))
        self.loss_weights = dataclasses.asdict(case.loss_weights)
        self.network_input = case.scaled_amplitude(np.float64)
        self.constants = self._constants(case) if constants is None else constants

    @staticmethod
    def _constants(case: Case) -> Constants:
        return Constants.of(case.weights, case.offsets_px, case.probe, case.settings.intensity_scale)

    @cached_property
    def stages(self) -> dict[str, np.ndarray]:
        """Stage id → output."""
        return self.oracle.forward(self.network_input, self.constants)

    def terms(self, stage: str) -> int:
        """Return how many products the gradient of a weight sums: one for each image, row and column of the output."""
        images, rows, columns, _ = self.stages[stage].shape
        return int(images * rows * columns)

    @cached_property
    def losses(self) -> dict[str, float]:
        """``nll``, ``mae``, ``total``."""
        return self.oracle.losses(self.stages, self.network_input, self.loss_weights)

    @cached_property
    def gradients(self) -> Gradients:
        """Cotangent of every stage and gradient of every weight, on the truth's own pieces."""
        return self.gradients_on(None)

    def gradients_on(self, branches: Mapping[str, np.ndarray] | None) -> Gradients:
        """Return the gradients at the truth's values, on the linear pieces a subject was on."""
        return self.oracle.backward(
            self.stages, self.network_input, self.constants, self.network_input, self.loss_weights, branches
        )

    def values_of(self, stage: str, values: Mapping[str, np.ndarray], network_input: np.ndarray) -> list[np.ndarray]:
        """Return the inputs of a stage taken from ``values``."""
        return [network_input if name == "input" else values[name] for name in self.oracle.inputs[stage]]

    def pieces(
        self, values: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], measured: np.ndarray
    ) -> Pieces:
        """Find the pieces a subject was on.

        Args:
            values: what the subject's stages were fed with: its own stages, or the truth in its dtype.
            outputs: what its stages gave.
            measured: scaled amplitude in its dtype.
        """
        branches = self._branches(values, outputs, measured)
        margins = dict.fromkeys(branches, 0.0)
        for stage, branch in branches.items():
            if np.array_equal(branch, self.own_branches[stage]):
                continue
            if stage == "loss":
                margins[stage] = self.oracle.loss_margin(self.stages, self.network_input, branch)
            else:
                inputs = self.values_of(stage, self.stages, self.network_input)
                margins[stage] = self.oracle.node(stage).margin(inputs, branch, self.constants)
        return Pieces(branches, margins)

    def _branches(
        self, values: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], measured: np.ndarray
    ) -> dict[str, np.ndarray]:
        branches = {"loss": self.oracle.loss_branch(values, measured)}
        for stage in self.oracle.stages:
            branch = self.oracle.node(stage).branch(self.values_of(stage, values, measured), outputs[stage])
            if branch is not None:
                branches[stage] = branch
        return branches

    def pullback(
        self, stage: str, branches: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Pull the truth's cotangent of one stage back: to its inputs by id, and to its weights by name."""
        return self.pull_back_at(
            stage, self.stages, self.network_input, self.gradients.cotangents, self.constants, branches
        )

    def pull_back_at(
        self,
        stage: str,
        values: Mapping[str, np.ndarray],
        network_input: np.ndarray,
        cotangents: Mapping[str, np.ndarray],
        constants: Constants,
        branches: Mapping[str, np.ndarray],
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Pull a cotangent of one stage back at other values than the truth's own."""
        inputs = self.values_of(stage, values, network_input)
        pulled = self.oracle.node(stage).pullback(inputs, cotangents[stage], constants, branches.get(stage))
        names = self.oracle.inputs[stage]
        weights = {name: array for name, array in pulled.constants.items() if name in self.case.weights}
        by_input = {name: array for name, array in zip(names, pulled.inputs, strict=True) if name != "input"}
        return by_input, weights

    @cached_property
    def own_branches(self) -> dict[str, np.ndarray]:
        """The linear pieces the truth itself is on."""
        return self._branches(self.stages, self.stages, self.network_input)

    @property
    def own_pieces(self) -> Pieces:
        """The same, with margins of zero."""
        return Pieces(self.own_branches, dict.fromkeys(self.own_branches, 0.0))
