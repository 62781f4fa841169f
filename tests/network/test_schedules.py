"""How long a run is and how its learning rate goes where nobody says so."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from ptycho_torch.config_params import TrainingSettings
from ptycho_torch.train import GROUPS_SHOWN, LEAST_EPOCHS, MOST_EPOCHS, epochs_for
from ptycho_torch.training.lightning_module import _schedule


def rates(epochs: float, count: int, **settings: object) -> list[float]:
    """Return the learning rate of the first epochs as parts of the highest."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = _schedule(optimiser, TrainingSettings(scheduler="WarmupCosine", **settings), epochs)  # type: ignore[arg-type]
    found = []
    for _ in range(count):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        schedule.step()
    return found


def test_the_rate_rises_over_a_tenth_of_the_run_and_then_falls() -> None:
    found = rates(60, 60)
    assert found[:6] == pytest.approx([k / 7 for k in range(1, 7)])
    assert found[6] == max(found) == 1
    assert found[6:] == sorted(found[6:], reverse=True)
    assert found[-1] == pytest.approx(TrainingSettings().lr_min_ratio)


def test_a_warm_up_that_is_given_is_taken() -> None:
    assert rates(60, 2, lr_warmup_epochs=0)[0] == 1
    assert rates(60, 2, lr_warmup_epochs=1) == pytest.approx([1 / 2, 1])


def test_without_an_end_the_rate_stays_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert rates(math.inf, 50) == [1.0] * 50
    assert "does not fall" in caplog.text


@pytest.mark.parametrize("groups", [20, 100, 320, 2000, 100_000])
def test_scans_of_all_lengths_show_about_as_many_groups(groups: int) -> None:
    epochs = epochs_for(groups)
    assert epochs in (LEAST_EPOCHS, MOST_EPOCHS) or GROUPS_SHOWN <= epochs * groups <= GROUPS_SHOWN + groups
