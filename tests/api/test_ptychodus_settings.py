"""What becomes of each of the 91 settings of ptychodus: one test for each row of the table in docs/ptychodus.md."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho_torch import config_params
from ptycho_torch.api import configs
from ptycho_torch.api.base_api import ConfigManager
from ptycho_torch.api.translate import Configs
from ptycho_torch.config_params import DataConfig, ModelConfig, Settings, TrainingConfig
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError
from ptycho_torch.training.checkpoint import read_checkpoint
from ptycho_torch.training.lightning_module import PtychoPINN
from tests.support.scan_files import draw_scan

PAGE = Path(__file__).parents[2] / "docs" / "ptychodus.md"
KINDS = (configs.DataConfig, configs.ModelConfig, configs.TrainingConfig, configs.InferenceConfig)
Changes = dict[str, Any]

BECOMES: dict[str, tuple[Any, Changes]] = {
    "DataConfig.N": (64, {"N": 64}),
    "DataConfig.normalize": ("None", {"normalize": False}),
    "DataConfig.n_subsample": (3, {"n_subsample": 3}),
    "DataConfig.probe_scale": (2.5, {"probe_scale": 2.5}),
    "DataConfig.K": (9, {"K": 9}),
    "ModelConfig.object_big": (False, {"object_big": False}),
    "ModelConfig.probe_big": (False, {"probe_big": False}),
    "ModelConfig.loss_function": ("MAE", {"loss_function": "MAE"}),
    "ModelConfig.amp_activation": ("sigmoid", {"amp_activation": "sigmoid"}),
    "ModelConfig.decoder_last_amp_channels": (1, {"shared_amplitude_head": True}),
    "ModelConfig.intensity_scale_trainable": (True, {"intensity_scale_trainable": True, "intensity_scale": 10000.0}),
    "ModelConfig.n_filters_scale": (1, {"n_filters_scale": 1}),
    "ModelConfig.probe_mask": (True, {"probe_mask": True}),
    "ModelConfig.offset": (8, {"offset": 8}),
    "TrainingConfig.epochs": (3, {"max_epochs": 3}),
    "TrainingConfig.batch_size": (5, {"batch_size": 5}),
    "TrainingConfig.learning_rate": (1e-4, {"learning_rate": 1e-4}),
    "TrainingConfig.num_workers": (0, {"num_workers": 0}),
    "TrainingConfig.accum_steps": (2, {"accumulate_grad_batches": 2}),
    "TrainingConfig.gradient_clip_val": (0.5, {"gradient_clip_val": 0.5}),
    "TrainingConfig.device": ("auto", {"device": "auto"}),
    "TrainingConfig.orchestrator": ("Mlflow", {"tracking": True}),
    "TrainingConfig.scheduler": ("Cosine", {"scheduler": "WarmupCosine"}),
    "TrainingConfig.warmup_epochs": (4, {"lr_warmup_epochs": 4}),
    "TrainingConfig.min_lr_ratio": (0.3, {"lr_min_ratio": 0.3}),
    "TrainingConfig.model_name": ("mine", {"run_name": "mine"}),
}
"""Field → a value, and what changes in our settings. Together with ``grid_size``, see its test."""

REFUSED: dict[str, tuple[Any, str]] = {
    "DataConfig.C": (3, "has 4 patterns"),
    "DataConfig.neighbor_function": ("Min_dist", "K nearest"),
    "DataConfig.probe_normalize": (False, "normalises every probe"),
    "DataConfig.grid_size": ((2, 3), "since groups are square"),
    "DataConfig.probe_ramp_removal": (True, "taken as it is"),
    "DataConfig.data_scaling": ("Max", "only 'Parseval'"),
    "ModelConfig.mode": ("Supervised", "knows no objects"),
    "ModelConfig.use_shared_decoder": (True, "a decoder each"),
    "ModelConfig.C_model": (9, "DataConfig.C = 4"),
    "ModelConfig.C_forward": (9, "DataConfig.C = 4"),
    "ModelConfig.amp_loss": ("Total_Variation", "diffraction only"),
    "ModelConfig.phase_loss": ("Mean_Deviation", "diffraction only"),
    "ModelConfig.eca_decoder": (True, "no attention"),
    "ModelConfig.batch_norm": (True, "no batch normalisation"),
    "ModelConfig.cbam_bottleneck": (True, "no attention"),
    "ModelConfig.cbam_decoder": (True, "no attention"),
    "ModelConfig.spatial_decoder": (True, "no attention"),
    "ModelConfig.eca_encoder": (True, "no attention"),
    "ModelConfig.probe_reference_coeff": (0.5, "no term of the probe"),
    "ModelConfig.amplitude_variance_loss": (True, "diffraction only"),
    "TrainingConfig.n_devices": (2, "one process"),
    "TrainingConfig.epochs_fine_tune": (5, "one stage"),
    "TrainingConfig.nll": (False, "'Poisson'"),
    "TrainingConfig.strategy": ("fsdp", "one device needs none"),
    "TrainingConfig.framework": ("Default", "only 'Lightning'"),
    "TrainingConfig.enable_staged_finetuning": (True, "one stage"),
    "InferenceConfig.pad_eval": (False, "as in training"),
}
"""Field → a value that is refused, and a part of the reason."""

REPLACED: dict[str, tuple[Any, Any, str]] = {
    "ModelConfig.cbam_encoder": (False, "yes", "no attention"),
    "ModelConfig.edge_pad": (32, 16, "for N = 128 it is 32"),
    "ModelConfig.decoder_last_c_outer_fraction": (0.0625, 0.25, "4 channels"),
    "InferenceConfig.patch_weighting": ("smooth", "Gauss", "Hann window"),
}
"""Field → what takes the place of its default, a value that is refused, and a part of the reason."""

WITHOUT_EFFECT: dict[str, Any] = {
    "DataConfig.scan_pattern": "Rectangular",
    "DataConfig.min_neighbor_distance": 1.0,
    "DataConfig.max_neighbor_distance": 9.0,
    "DataConfig.K_quadrant": 7,
    "DataConfig.phase_subtraction": False,
    "ModelConfig.amp_loss_coeff": 2.0,
    "ModelConfig.phase_loss_coeff": 2.0,
    "ModelConfig.decoder_spatial_kernel": 3,
    "ModelConfig.amplitude_variance_coeff": 0.5,
    "TrainingConfig.fine_tune_gamma": 0.5,
    "TrainingConfig.finetune_stage1_epochs": 2,
    "TrainingConfig.finetune_stage2_epochs": 2,
    "TrainingConfig.finetune_stage3_epochs": 2,
    "TrainingConfig.finetune_stage1_lr_decoder": 0.3,
    "TrainingConfig.finetune_stage2_lr_encoder_top": 0.3,
    "TrainingConfig.finetune_stage2_lr_decoder": 0.3,
    "TrainingConfig.finetune_stage2_lr_phase_head": 0.3,
    "TrainingConfig.finetune_stage3_lr_encoder_bottom": 0.3,
    "TrainingConfig.finetune_stage3_lr_encoder_top": 0.3,
    "TrainingConfig.finetune_stage3_lr_decoder": 0.3,
    "TrainingConfig.finetune_stage3_lr_phase_head": 0.3,
    "TrainingConfig.finetune_skip_stage3": False,
    "TrainingConfig.finetune_early_stop_patience": 9,
    "TrainingConfig.finetune_val_split": 0.3,
    "TrainingConfig.notes": "beamline 2",
    "InferenceConfig.window": 5,
}
"""Field → another value, which changes nothing: what it belongs to is refused, or it is kept in the checkpoint."""

BY_ITSELF = {
    "DataConfig.x_bounds", "DataConfig.y_bounds", "ModelConfig.intensity_scale", "ModelConfig.max_position_jitter",
    "ModelConfig.num_datasets", "InferenceConfig.batch_size", "InferenceConfig.middle_trim",
    "InferenceConfig.experiment_number",
}  # fmt: skip
"""Fields with tests of their own, here and in test_ptychodus.py."""


def made(**fields: Any) -> Configs:
    """Make the four values, all of whose other fields have the defaults of ptychodus."""
    values: dict[str, dict[str, Any]] = {kind.__name__: {} for kind in KINDS}
    for field, value in fields.items():
        kind, name = field.split("__")
        values[kind][name] = value
    return Configs(*(getattr(configs, name)(**each) for name, each in values.items()))


def changed(field: str, value: Any) -> Configs:
    return made(**{field.replace(".", "__"): value})


def test_the_table_has_every_field_and_every_field_a_test() -> None:
    rows = re.findall(r"^\| `(\w+Config\.\w+)` \| `(.*?)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [
        (f"{kind.__name__}.{name}", repr(default), rule.says)
        for kind in KINDS
        for name, (default, rule) in kind.rules().items()
    ]
    assert rows == expected
    assert len(rows) == 91
    tested = [*BECOMES, *REFUSED, *REPLACED, *WITHOUT_EFFECT, *BY_ITSELF]
    assert sorted(tested) == sorted(field for field, _, _ in expected)


@pytest.mark.parametrize("field", BECOMES)
def test_a_field_becomes_a_setting(field: str) -> None:
    value, expected = BECOMES[field]
    before, after = (
        {name: each for owner in found.settings.as_dict().values() for name, each in owner.items()}
        for found in (made(), changed(field, value))
    )
    assert {name: after[name] for name in after if after[name] != before[name]} == expected


def test_groups_of_another_size_are_said_in_five_fields() -> None:
    fields = {"DataConfig__C": 9, "ModelConfig__C_model": 9, "ModelConfig__C_forward": 9}
    found = made(DataConfig__grid_size=(3, 3), ModelConfig__decoder_last_amp_channels=9, **fields)
    assert found.settings.data.gridsize == 3
    assert not found.settings.model.shared_amplitude_head


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_is_refused_by_name_with_the_reason(field: str) -> None:
    value, reason = REFUSED[field]
    with pytest.raises(ConfigError) as caught:
        changed(field, value)
    assert field in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("field", REPLACED)
def test_a_default_that_describes_another_network_is_replaced_and_said(field: str) -> None:
    takes_the_place, wrong, reason = REPLACED[field]
    said = [line for line in made().replaced() if line.startswith(f"{field} = ")]
    assert len(said) == 1
    assert said == [line for line in said if re.search("attention|N/4|4 channels|Hann", line)]
    assert not [line for line in changed(field, takes_the_place).replaced() if line.startswith(field)]
    assert changed(field, takes_the_place).settings == made().settings
    with pytest.raises(ConfigError, match=re.escape(field)) as caught:
        changed(field, wrong)
    assert reason in str(caught.value)


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_a_field_of_a_refused_choice_takes_any_value_of_its_type(field: str) -> None:
    found = changed(field, WITHOUT_EFFECT[field])
    assert (found.settings, found.weighting) == (made().settings, made().weighting)
    kind, name = field.split(".")
    assert found.plain()[kind][name] == WITHOUT_EFFECT[field]
    with pytest.raises(ConfigError, match=re.escape(field)):
        changed(field, [1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("DataConfig.x_bounds", (0.9, 0.1)),
        ("DataConfig.y_bounds", (0.1, 1.5)),
        ("DataConfig.y_bounds", 0.5),
        ("ModelConfig.intensity_scale", 0.0),
        ("ModelConfig.max_position_jitter", -1),
        ("ModelConfig.num_datasets", 0),
        ("ModelConfig.probe_mask", torch.ones(2, 2)),
        ("ModelConfig.offset", None),
        ("ModelConfig.decoder_last_amp_channels", 3),
        ("TrainingConfig.epochs", 0),
        ("TrainingConfig.epochs", 2.5),
        ("TrainingConfig.epochs_fine_tune", False),
        ("TrainingConfig.device", "tpu"),
        ("InferenceConfig.batch_size", True),
        ("InferenceConfig.middle_trim", 31),
        ("InferenceConfig.middle_trim", 130),
        ("InferenceConfig.experiment_number", -1),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(field)):
        changed(field, value)


def test_cuda_is_the_cpu_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert made().settings.training.device == device


def test_the_scale_follows_from_the_counts_unless_it_is_trained() -> None:
    assert changed("ModelConfig.intensity_scale", 7.0).settings == made().settings
    trained = made(ModelConfig__intensity_scale=7.0, ModelConfig__intensity_scale_trainable=True)
    assert trained.settings.model.intensity_scale == 7.0


def test_the_canvas_is_at_least_as_wide_as_was_said_and_clips_no_group(caplog: pytest.LogCaptureFixture) -> None:
    dataset = PtychoDataset.from_arrays(draw_scan(), settings=config_params.DataSettings(N=16))
    widest = dataset.derived(offset=6).max_position_jitter
    assert widest > 10
    with caplog.at_level(logging.WARNING):
        assert made().settings_for(dataset).model.max_position_jitter == widest
    assert f"max_position_jitter = 10 is raised to {widest}" in caplog.text
    wide = changed("ModelConfig.max_position_jitter", widest + 20)
    assert wide.settings_for(dataset).model.max_position_jitter == widest + 20
    odd = changed("ModelConfig.max_position_jitter", widest + 21)
    assert odd.settings_for(dataset).model.max_position_jitter == widest + 22


def test_the_number_of_datasets_is_that_of_the_scans() -> None:
    scans = PtychoDataset.from_arrays(draw_scan(), draw_scan(), settings=config_params.DataSettings(N=16))
    with pytest.raises(ConfigError, match="num_datasets = 1, and there are 2 scans; give 2"):
        made().settings_for(scans)
    assert changed("ModelConfig.num_datasets", 2).settings_for(scans)


# ------------------------------------------------------------------------------------------------- values, singletons


def test_every_refused_field_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(cbam_decoder=True, batch_norm=True)
    assert "ModelConfig.cbam_decoder" in str(caught.value)
    assert "ModelConfig.batch_norm" in str(caught.value)


def test_with_settings_it_is_a_plain_value_and_without_the_singleton() -> None:
    for singleton in (DataConfig, ModelConfig, TrainingConfig):
        assert singleton() is singleton()
        assert isinstance(singleton(), singleton)
    before = Settings.current()
    value = DataConfig(N=64, K=8)
    assert isinstance(value, configs.DataConfig)
    assert pickle.loads(pickle.dumps(value)) == value == dataclasses.replace(value)
    assert Settings.current() == before
    assert isinstance(config_params.InferenceConfig(), configs.InferenceConfig)
    assert isinstance(config_params.DatagenConfig(), configs.DatagenConfig)
    with pytest.raises(AttributeError, match="OtherConfig"):
        _ = config_params.OtherConfig


def test_a_field_that_is_set_later_is_checked() -> None:
    training = pickle.loads(pickle.dumps(TrainingConfig(epochs=2)))
    training.n_devices = 1
    with pytest.raises(ConfigError, match=r"TrainingConfig\.n_devices = 2"):
        training.n_devices = 2
    with pytest.raises(ConfigError, match="no 'epoch'"):
        training.epoch = 3
    with pytest.raises(ConfigError, match="DataConfig has no 'gridsize'"):
        DataConfig(gridsize=2)


def test_a_manager_takes_values_and_no_singletons() -> None:
    assert ConfigManager().data_config == configs.DataConfig()
    with pytest.raises(ConfigError, match="singleton of this process"):
        ConfigManager(data_config=DataConfig())  # type: ignore[arg-type]


def test_checkpoints_of_this_program_are_told_in_the_words_of_ptychodus(tmp_path: Path) -> None:
    from ptycho_torch.training.checkpoint import write_checkpoint

    settings = Settings().override(
        {"N": 64, "gridsize": 2, "K": 7, "n_filters_scale": 1, "amp_activation": "swish", "scheduler": "WarmupCosine",
         "group_sampler": "reference", "nphotons": 1e4}
    )  # fmt: skip
    module = PtychoPINN(settings)
    write_checkpoint(
        tmp_path / "own.ckpt", settings, module.network.settings, module.statistics, module.network.state_dict(),
        overwrite=False,
    )  # fmt: skip
    found = Configs.of_checkpoint(read_checkpoint(tmp_path / "own.ckpt"))
    assert (found.data.N, found.data.C, found.data.K) == (64, 4, 7)
    assert (found.model.amp_activation, found.training.scheduler) == ("silu", "Cosine")
    assert (found.inference.middle_trim, found.weighting) == (32, "smooth")
