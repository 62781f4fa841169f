"""What a run makes of its settings: those of the process, the optimiser, and the precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="training needs tensordict; pip install tensordict")

from conformance.judge.agreement import FLOAT64, assert_agrees
from conformance.oracle.network import Moments
from conformance.oracle.optimisers import Rule, updated
from ptycho_torch import train
from ptycho_torch.config_params import DataConfig, ModelConfig, Settings, TrainingConfig
from ptycho_torch.contracts.config_schema import load_schema
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training import lightning_module
from tests.support.training_runs import write_scan

# ------------------------------------------------------------------------------------------------------- the process

FIRST: Mapping[str, Mapping[str, Any]] = {
    "model": {"probe_scale": 3.0, "loss_function": "MAE"},
    "training": {"max_epochs": 7, "learning_rate": 0.5},
    "data": {"K": 9, "nphotons": 50.0},
}
SECOND: Mapping[str, Mapping[str, Any]] = {
    "model": {"offset": 6}, "training": {"batch_size": 5}, "data": {"gridsize": 3}
}  # fmt: skip
ADDED: Mapping[str, tuple[str, Any]] = {
    "model": ("n_filters_scale", 4), "training": ("seed", 8), "data": ("group_seed", 2)
}  # fmt: skip


@pytest.fixture
def singletons() -> Iterator[dict[str, Any]]:
    """Settings of the process, which are put back."""
    found: dict[str, Any] = {"model": ModelConfig(), "training": TrainingConfig(), "data": DataConfig()}
    before = Settings.current().as_dict()
    yield found
    for owner, each in found.items():
        each.set_settings(before[owner])


@pytest.mark.parity_clause("STEP-CONFIGURATION")
def test_what_was_set_last_is_what_runs_of_the_process_take(singletons: dict[str, Any]) -> None:
    expected = {
        owner: {**each, **SECOND[owner], ADDED[owner][0]: ADDED[owner][1]}
        for owner, each in Settings().as_dict().items()
    }
    for owner, each in singletons.items():
        each.set_settings(FIRST[owner])
        each.set_settings(SECOND[owner])
        each.add(*ADDED[owner])
        for name, value in (("no_such_name", 1), (ADDED[owner][0], "many")):
            for attempt in (partial(each.set_settings, {name: value}), partial(each.add, name, value)):
                with pytest.raises(ConfigError):
                    attempt()
    found = Settings.current().as_dict()
    assert found == expected
    assert {owner: {name: each.get(name) for name in expected[owner]} for owner, each in singletons.items()} == found


# ----------------------------------------------------------------------------------------------------- the optimiser

RATE, BETA_1, BETA_2, EPSILON, DECAY, STEPS = 0.02, 0.7, 0.95, 3e-4, 0.2, 4
"""None of them is a default of the settings or of PyTorch."""


@pytest.mark.parity_clause("STEP-OPTIMISER", "RUN-01")
@pytest.mark.parametrize("trainable", [True, False], ids=["all trained", "probe and scale frozen"])
@pytest.mark.parametrize("name", load_schema().settings["optimizer"].choices or ())
def test_updates_follow_the_optimiser_that_was_chosen(name: str, trainable: bool) -> None:
    rule = Rule(name, RATE, BETA_1, BETA_2, EPSILON, DECAY if name == "adamw" else 0.0)
    settings = Settings().override(
        {
            "gridsize": 2, "n_filters_scale": 1, "precision": "64-true", "nphotons": 1e4, "optimizer": name,
            "learning_rate": RATE, "adam_beta1": BETA_1, "adam_beta2": BETA_2, "adam_eps": EPSILON,
            "weight_decay": rule.decay, "probe_trainable": trainable, "intensity_scale_trainable": trainable,
        }
    )  # fmt: skip
    draw = np.random.default_rng(3)
    module = PtychoPINN(settings, probe=torch.from_numpy(draw.standard_normal((2, 64, 64)) + 1j))
    optimiser, parameters = module.configure_optimizers(), dict(module.network.named_parameters())
    start = {key: each.detach().numpy().copy() for key, each in parameters.items()}
    trained = {key: each for key, each in start.items() if trainable or key not in ("probe_parts", "log_scale")}
    assert len(trained) == len(start) - (0 if trainable else 2)
    weights: Mapping[str, np.ndarray] = trained
    moments: Moments = {}
    for step in range(1, STEPS + 1):
        # Many so small that ε counts.
        gradients = {
            key: 10.0 ** draw.uniform(-7, 0, each.shape) * draw.standard_normal(each.shape)
            for key, each in start.items()
        }
        for key, parameter in parameters.items():
            parameter.grad = torch.from_numpy(np.asarray(gradients[key]))
        optimiser.step()
        weights, moments = updated(rule, weights, {key: gradients[key] for key in weights}, moments, step)
    assert_agrees(
        {key: np.asarray(weights[key] - each if key in weights else 0 * each) for key, each in start.items()},
        {key: parameter.detach().numpy() - start[key] for key, parameter in parameters.items()},
        FLOAT64,
    )


# ----------------------------------------------------------------------------------------------------- the precision

DTYPES: Mapping[str, tuple[str, str, str]] = {
    "32-true": ("float32", "float32", "complex64"),
    "64-true": ("float64", "float64", "complex128"),
    "bf16-mixed": ("bfloat16", "float32", "complex64"),
}
"""Precision → dtype of convolutions, of weights and predicted diffraction, and of the object."""


@pytest.fixture
def deterministic_as_before() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parity_clause("RUN-01")
@pytest.mark.usefixtures("deterministic_as_before")
@pytest.mark.parametrize("precision", DTYPES)
def test_the_precision_of_a_run_is_that_of_what_passes_through_the_network(tmp_path: Path, precision: str) -> None:
    inner, outer, wave = (f"torch.{dtype}" for dtype in DTYPES[precision])
    deterministic = precision == "64-true"
    settings = Settings().override(
        {"gridsize": 2, "n_filters_scale": 1, "device": "cpu", "tracking": False, "precision": precision,
         "deterministic": deterministic, "max_epochs": 1, "validation_fraction": 0.0}
    )  # fmt: skip
    scan = write_scan(tmp_path / "scans" / "scan.npz", patterns=10)
    dataset = PtychoDataset(scan, data_dir=tmp_path / "map", settings=settings.data)
    module = PtychoPINN.for_dataset(dataset, settings)
    stages = {
        "encoder.0.conv1": inner, "decoder_amp.1.conv2": inner, "merged": wave, "predicted_amplitude": outer
    }  # fmt: skip
    seen: dict[str, str] = {}
    for stage in stages:
        module.network.get_submodule(stage).register_forward_hook(_noting(seen, stage))
    with lightning_module.quiet_lightning():
        trainer = train.make_trainer(settings.training, tmp_path / "run", validate=False, progress=False)
        trainer.fit(module, TensorDictDataLoader(dataset, 1, groups=torch.tensor([0])))
    assert seen == stages
    assert str(module.network.get_parameter("encoder.0.conv1.weight").dtype) == outer
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def _noting(seen: dict[str, str], stage: str) -> Callable[[Any, Any, Any], None]:
    def note(_module: Any, _given: Any, output: Any) -> None:
        seen[stage] = str(output.dtype)

    return note
