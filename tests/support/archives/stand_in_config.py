"""A stand-in for the module that holds the reference's dataclasses: the same surface, written by hand from its facts.

Tests use it as it is, and write it elsewhere with lines changed to see that a drift is found. The real fields of the
dataclass for the reference's PyTorch side are given in the order of the facts.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union


@dataclass(frozen=True)
class ModelConfig:
    N: Literal[64, 128, 256] = 64
    gridsize: int = 1
    n_filters_scale: int = 2
    model_type: Literal["pinn", "supervised"] = "pinn"
    architecture: Literal["cnn", "ffno", "fno", "fno_vanilla", "neuralop_uno"] = "cnn"
    fno_modes: int = 12
    fno_width: int = 32
    fno_blocks: int = 4
    fno_cnn_blocks: int = 2
    learned_input_channels: int = 1
    max_hidden_channels: Optional[int] = None  # noqa: UP045 - as the reference writes it
    resnet_width: int | None = None
    fno_input_transform: Literal["none", "sqrt", "log1p", "instancenorm"] = "none"
    generator_output_mode: Literal["real_imag", "amp_phase_logits", "amp_phase"] = "real_imag"
    amp_activation: Literal["sigmoid", "swish", "softplus", "relu"] = "sigmoid"
    object_big: bool = True
    probe_big: bool = True
    probe_mask: bool = False
    probe_mask_sigma: float = 1.0
    probe_mask_diameter: float | None = None
    pad_object: bool = True
    probe_scale: float = 4.0
    gaussian_smoothing_sigma: float = 0.0


@dataclass
class TrainingConfig:
    model: ModelConfig
    train_data_file: Path | None = None
    test_data_file: Path | None = None
    batch_size: int = 16
    nepochs: int = 50
    mae_weight: float = 0.0
    nll_weight: float = 1.0
    realspace_mae_weight: float = 0.0
    realspace_weight: float = 0.0
    nphotons: float = 1e9
    n_groups: int | None = None
    n_images: int | None = None
    n_subsample: int | None = None
    subsample_seed: int | None = None
    neighbor_count: int = 4
    enable_oversampling: bool = False
    neighbor_pool_size: int | None = None
    positions_provided: bool = True
    probe_trainable: bool = False
    intensity_scale_trainable: bool = True
    output_dir: Path = Path("training_outputs")
    sequential_sampling: bool = False
    backend: Literal["tensorflow", "pytorch"] = "tensorflow"
    torch_loss_mode: Literal["poisson", "mae"] = "poisson"
    torch_mae_pred_l2_match_target: bool = False
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value", "agc"] = "norm"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    scheduler: Literal["Default", "Exponential", "WarmupCosine", "ReduceLROnPlateau"] = "Default"
    lr_warmup_epochs: int = 0
    lr_min_ratio: float = 0.1
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    plateau_min_lr: float = 5e-5
    plateau_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.n_images is not None and self.n_groups is None:
            warnings.warn("n_images is now n_groups", DeprecationWarning, stacklevel=2)
            self.n_groups = self.n_images
        if self.n_groups is None:
            self.n_groups = 512


@dataclass
class InferenceConfig:
    model: ModelConfig
    model_path: Path
    test_data_file: Path
    n_groups: int | None = None
    n_images: int | None = None
    n_subsample: int | None = None
    subsample_seed: int | None = None
    neighbor_count: int = 4
    enable_oversampling: bool = False
    neighbor_pool_size: int | None = None
    debug: bool = False
    output_dir: Path = Path("inference_outputs")
    backend: Literal["tensorflow", "pytorch"] = "tensorflow"

    def __post_init__(self) -> None:
        if self.n_images is not None and self.n_groups is None:
            warnings.warn("n_images is now n_groups", DeprecationWarning, stacklevel=2)
            self.n_groups = self.n_images


@dataclass
class PyTorchExecutionConfig:
    accelerator: str = "auto"
    devices: Union[int, Literal["auto"]] = 1  # noqa: UP007 - as the reference writes it
    strategy: str = "auto"
    deterministic: Union[bool, Literal["warn"]] = True  # noqa: UP007
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value", "agc"] = "norm"
    accum_steps: int = 1
    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: int | None = None
    learning_rate: float = 1e-3
    scheduler: str = "Default"
    enable_progress_bar: bool = False
    enable_checkpointing: bool = True
    checkpoint_save_top_k: int = 1
    checkpoint_monitor_metric: str = "val_loss"
    checkpoint_mode: str = "min"
    early_stop_patience: int = 100
    logger_backend: str | None = "csv"
    recon_log_every_n_epochs: int | None = None
    recon_log_num_patches: int = 4
    recon_log_fixed_indices: list[int] | None = None
    recon_log_stitch: bool = False
    recon_log_max_stitch_samples: int | None = None
    ffno_encoder_blocks: int = 24
    ffno_encoder_modes: int = 12
    ffno_encoder_share_weights: bool = True
    ffno_encoder_gate_init: float = 0.1
    ffno_encoder_norm: str = "instance"
    ffno_encoder_mlp_ratio: float = 2.0
    spectral_bottleneck_blocks: int = 6
    spectral_bottleneck_modes: int = 12
    spectral_bottleneck_share_weights: bool = True
    spectral_bottleneck_gate_init: float = 0.1
    spectral_bottleneck_gate_mode: Literal["shared", "per_block"] = "shared"
    inference_batch_size: int | None = None
    middle_trim: int = 0
    pad_eval: bool = False

    def __post_init__(self) -> None:
        """Check, and put what the machine has in the place of "auto"."""
        if self.accelerator not in {"auto", "cpu", "gpu", "cuda", "mps"}:
            raise ValueError(f"Invalid accelerator: {self.accelerator!r}")
        if self.checkpoint_mode not in {"min", "max"}:
            raise ValueError(f"Invalid checkpoint_mode: {self.checkpoint_mode!r}")
        if not (self.devices == "auto" or (isinstance(self.devices, int) and self.devices > 0)):
            raise ValueError(f"devices must be a positive integer or 'auto', got {self.devices!r}")
        if self.accelerator == "auto":
            warnings.warn("no CUDA device", UserWarning, stacklevel=2)
            self.accelerator = "cpu"


KEY_MAPPINGS = {
    "object_big": "object.big",
    "probe_big": "probe.big",
    "probe_mask": "probe.mask",
    "probe_trainable": "probe.trainable",
    "intensity_scale_trainable": "intensity_scale.trainable",
    "positions_provided": "positions.provided",
    "output_dir": "output_prefix",
    "train_data_file": "train_data_file_path",
    "test_data_file": "test_data_file_path",
}


def dataclass_to_legacy_dict(config: Any) -> dict[str, Any]:
    flat = asdict(config)
    flat |= flat.pop("model", {})
    renamed = {}
    for name, value in flat.items():
        key = KEY_MAPPINGS.get(name)
        renamed[key or name] = str(value) if key and isinstance(value, Path) else value
    return renamed
