"""One group in batches of several sizes, at several places, on one thread and on two."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from conformance.cases.case import Case
from conformance.cases.draws import draw_case
from conformance.judge.rules import Errors, compare
from conformance.oracle.operations import wide
from conformance.subjects.torch import TorchSubject, float32_means_float32, tapped
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch.model import PtychoNet


class Company(NamedTuple):
    """With what a group is computed.

    Attributes:
        batch: number of groups.
        place: of the group among them; the others are drawn.
        threads: of PyTorch.
    """

    batch: int
    place: int
    threads: int


ALONE = Company(1, 0, 1)
COMPANIES = (
    *(Company(7, 0, 1), Company(64, 0, 1), Company(64, 37, 1)),
    *(Company(1, 0, 2), Company(64, 37, 2), Company(7, 3, 2)),
)
"""All others; the last one is run again."""


def differences(
    case: Case, device: str, budgets: Mapping[str, Errors], companies: Sequence[Company] = COMPANIES
) -> Iterator[str]:
    """Say where the first group of a case is another one in other company.

    Args:
        case: the network and at least one group.
        device: torch device.
        budgets: stage id → how far it may be from what it is alone.
        companies: those that are compared with ``ALONE``.
    """
    model = TorchSubject(device).network(case)
    alone = _outputs(model, case, ALONE)
    for company in companies:
        found = _outputs(model, case, company)
        for stage, values in found.items():
            errors, budget = compare(values, wide(alone[stage])), budgets[stage]
            if not (errors.e <= budget.e and errors.m <= budget.m):
                yield (
                    f"{stage} in {company}: e = {errors.e:.3g}, m = {errors.m:.3g} from the same group by itself; "
                    f"budget e = {budget.e:.3g}, m = {budget.m:.3g}"
                )
    again, once = (_outputs(model, case, companies[-1]) for _ in range(2))
    yield from (
        f"{stage} in {companies[-1]}: other bits in a second run"
        for stage, values in again.items()
        if values.tobytes() != once[stage].tobytes()
    )


def _outputs(model: PtychoNet, case: Case, company: Company) -> dict[str, np.ndarray]:
    """Return the output of every stage for the case's first group, computed in some company."""
    filling = draw_case(case.settings, seed=company.batch, batch=company.batch)
    diffraction, offsets_px = filling.diffraction.copy(), filling.offsets_px.copy()
    diffraction[company.place], offsets_px[company.place] = case.diffraction[0], case.offsets_px[0]
    batch = dataclasses.replace(case, diffraction=diffraction, offsets_px=offsets_px)
    arrays = LAYOUTS["channels"].to_torch(batch.scaled_amplitude("float32")), LAYOUTS["offsets"].to_torch(offsets_px)
    outputs: dict[str, np.ndarray] = {}

    def keep(stage: str, _: tuple[object, ...], output: Tensor) -> None:
        outputs[stage] = output[company.place].resolve_conj().cpu().numpy().copy()

    with float32_means_float32(), torch.no_grad(), tapped(model, model.stage_ids(), keep):
        torch.set_num_threads(company.threads)
        model(*(torch.from_numpy(array).to(model.log_scale.device) for array in arrays))
    return outputs
