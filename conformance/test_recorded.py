"""What a reference recorded beside its archive, compared with the converted model (clause RECORDED).

`python -m conformance verify` judges archives of users. Here the judge itself is shown a model that recorded the truth,
and predictions of another model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.cases.draws import draw_case
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.progress import Progress
from conformance.verify.predictions import Predictions
from conformance.verify.recorded import judge_recorded
from ptycho_tf_bridge.weights import to_torch
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.model import PtychoNet

pytestmark = [pytest.mark.parity_clause("RECORDED"), pytest.mark.parity_dtype("float32")]

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.75)
RECORDED = ("object", "predicted_amplitude")


@pytest.mark.parametrize("is_same", [True, False], ids=["same-model", "other-model"])
def test_predictions_belong_to_one_model(is_same: bool, parity_device: str) -> None:
    """The model that recorded them gives them again, and one with another bias does not."""
    from ptycho_torch.train import PtychoPINN

    case = draw_case(SETTINGS, seed=11, batch=1)
    stages = Truth(case).stages
    recorded = {
        name: stages[name].astype(np.complex64 if np.iscomplexobj(stages[name]) else np.float32) for name in RECORDED
    }
    predictions = Predictions(Path("drawn"), case.diffraction, case.offsets_px, recorded, None)
    module = PtychoPINN(Settings.current(), SETTINGS)
    weights = {name: torch.from_numpy(array) for name, array in to_torch(case.weights, SETTINGS).items()}
    if not is_same:
        weights["decoder_phase.1.conv2.bias"] += 1e-2
    # The probe is part of the model, and used as it is.
    module.network = PtychoNet(SETTINGS, torch.from_numpy(case.probe.astype(np.complex64)))
    module.network.load_state_dict({**module.network.state_dict(), **weights})
    module.to(parity_device)
    measured = load_measured()
    found = judge_recorded(case, predictions, None, module, measured.gains, measured, Progress(1, shown=False))
    assert [each.name for each in found] == list(RECORDED)
    assert all(each.reference.passed for each in found)
    wrong = [each.converted.explain() for each in found if not each.converted.passed]
    assert bool(wrong) is not is_same, "\n".join(wrong)
