"""Single operations, one by one, against a recording of the reference's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.judge.measured import load_measured
from conformance.judge.rules import ONE_ULP, Errors, compare, float32_budget, float64_budget
from conformance.recordings.operations import OPERATIONS, Operation, read_operations
from conformance.subjects.torch import float32_means_float32

pytestmark = [
    pytest.mark.parity_operations,
    pytest.mark.parity_recorded,
    pytest.mark.parity_clause("FORWARD-FORCED"),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operation(operation: Operation, operations_recording: Path, parity_device: str, parity_dtype: str) -> None:
    """Reference within its ceiling of the truth, candidate within its budget."""
    arrays = read_operations(operations_recording)
    inputs = [arrays[key] for key in operation.reads]
    truth = np.asarray(operation.truth(*inputs))
    recorded = arrays[operation.recorded]
    reference = compare(recorded.astype(truth.dtype), truth)
    assert reference.e <= operation.reference_ceiling, f"the recording is {reference.e:.2e} from the truth"

    def put(array: np.ndarray) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, parity_dtype)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(parity_device, dtype.to_complex() if tensor.is_complex() else dtype)

    with float32_means_float32():
        found = operation.candidate(put, *inputs).cpu().numpy()
    assert found.shape == recorded.shape, f"shape {found.shape}, recorded {recorded.shape}"
    limits = load_measured().limits
    amplified = Errors(ONE_ULP[parity_dtype], ONE_ULP[parity_dtype])
    errors = compare(found, truth)
    if parity_dtype == "float64":
        budget = float64_budget(amplified, limits)
    else:
        budget = float32_budget(reference, amplified, limits)
    assert errors.e <= budget.e, f"e = {errors.e:.2e}, budget {budget.e:.2e}, reference {reference.e:.2e}"
    assert errors.m <= budget.m, f"m = {errors.m:.2e}, budget {budget.m:.2e}, reference {reference.m:.2e}"
