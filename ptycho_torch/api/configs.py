"""Settings as ptychodus gives them: five plain, picklable values, whose 91 fields are checked at once.

``ptycho_torch.config_params.DataConfig(N=64)`` makes ``DataConfig`` of this module; without arguments it is the
singleton, as ever. What becomes of each field: <doc-ref type="guide">docs/ptychodus.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses

from ptycho_torch.api.rules import Ruled, becomes, belongs_to, only, used

OUTER_FRACTION = 0.125
"""4 channels of the 32 that the last block of a decoder has with n_filters_scale 1."""

_NO_ATTENTION = "only False: this network has no attention, nor has the TensorFlow reference"
_MIN_DIST, _QUADRANT = "neighbor_function 'Min_dist'", "neighbor_function '4_quadrant'"
_STAGED, _SUPERVISED = "enable_staged_finetuning", "mode 'Supervised'"


@dataclasses.dataclass
class DataConfig(Ruled):
    """How scans become groups, as ptychodus says it."""

    N: int = becomes(128, "N", "becomes our `N`: 64, 128 or 256", {64: 64, 128: 128, 256: 256})
    C: int = used(4, "the product of grid_size; another number is refused", least=1)
    normalize: str = becomes(
        "Batch",
        "normalize",
        "'Batch' is one factor for each scan, 'None' none; a factor for each group is not there",
        {"Batch": True, "None": False},
    )
    neighbor_function: str = only("Nearest", "only 'Nearest': groups are drawn among the K nearest patterns", "Nearest")
    scan_pattern: str = belongs_to("Isotropic", _QUADRANT)
    probe_normalize: bool = only(True, "only True: the forward model normalises every probe", True)
    x_bounds: tuple[float, float] = used(
        (0.1, 0.9), "training takes the patterns between these fractions of the scan's width; reconstruction takes all"
    )
    y_bounds: tuple[float, float] = used((0.1, 0.9), "likewise, of its height")
    min_neighbor_distance: float = belongs_to(0.0, _MIN_DIST)
    max_neighbor_distance: float = belongs_to(3.0, _MIN_DIST)
    K_quadrant: int = belongs_to(30, _QUADRANT)
    n_subsample: int = becomes(7, "n_subsample")
    probe_scale: float = becomes(4.0, "probe_scale")
    K: int = becomes(6, "K")
    grid_size: tuple[int, int] = used((2, 2), "(g, g) becomes our `gridsize`; other shapes are refused")
    probe_ramp_removal: bool = only(False, "only False: the probe is taken as it is", False)
    data_scaling: str = only("Parseval", "only 'Parseval': the network's scale is that of the counts", "Parseval")
    phase_subtraction: bool = belongs_to(True, _SUPERVISED)

    def _together(self) -> list[str]:
        wrong = [
            f"DataConfig.{name} = {bounds} is refused: expected 0 ≤ lower < upper ≤ 1."
            for name, bounds in (("x_bounds", self.x_bounds), ("y_bounds", self.y_bounds))
            if not 0 <= bounds[0] < bounds[1] <= 1
        ]
        rows, columns = self.grid_size
        if rows != columns or rows < 1:
            wrong.append(f"DataConfig.grid_size = {self.grid_size} is refused: give (g, g), since groups are square.")
        elif rows * columns != self.C:
            wrong.append(f"DataConfig.C = {self.C} is refused: grid_size = {self.grid_size} has {rows**2} patterns.")
        return wrong


@dataclasses.dataclass
class ModelConfig(Ruled):
    """The network, as ptychodus says it."""

    mode: str = only(
        "Unsupervised", "only 'Unsupervised': training compares diffraction, and knows no objects", "Unsupervised"
    )
    object_big: bool = becomes(True, "object_big")
    probe_big: bool = becomes(True, "probe_big")
    loss_function: str = becomes("Poisson", "loss_function")
    amp_activation: str = becomes(
        "silu",
        "amp_activation",
        "becomes our `amp_activation`: silu (which is swish), sigmoid, softplus or relu",
        {name: {"silu": "swish"}.get(name, name) for name in ("silu", "swish", "sigmoid", "softplus", "relu")},
    )
    cbam_encoder: bool = only(
        True,
        "only False, which takes the place of True: this network has no attention, nor has the TensorFlow reference",
        False,
        replaced=True,
    )
    decoder_last_amp_channels: int = used(
        4, "as many as C of DataConfig, or 1 for our `shared_amplitude_head`; another number is refused", least=1
    )
    use_shared_decoder: bool = only(False, "only False: amplitude and phase have a decoder each", False)
    intensity_scale_trainable: bool = becomes(False, "intensity_scale_trainable")
    intensity_scale: float = used(
        10000.0, "where intensity_scale_trainable begins; without that the scale follows from the counts", least=1e-12
    )
    max_position_jitter: int = used(
        10, "with offset, the least canvas; it is made wider, with a warning, where a group would be clipped", least=0
    )
    num_datasets: int = used(1, "the number of scans that training finds; another number is refused", least=1)
    C_model: int = used(4, "C of DataConfig; another number is refused", least=1)
    C_forward: int = used(4, "C of DataConfig; another number is refused", least=1)
    amp_loss: str | None = only(None, "only None: the loss is of diffraction only", None)
    phase_loss: str | None = only(None, "only None: the loss is of diffraction only", None)
    amp_loss_coeff: float = belongs_to(1.0, "amp_loss")
    phase_loss_coeff: float = belongs_to(1.0, "phase_loss")
    n_filters_scale: int = becomes(2, "n_filters_scale")
    probe_mask: bool | None = becomes(
        None, "probe_mask", "None and False are no mask, True the central disk; a tensor is refused",
        {None: False, False: False, True: True},
    )  # fmt: skip
    eca_decoder: bool = only(False, _NO_ATTENTION, False)
    batch_norm: bool = only(False, "only False: this network has no batch normalisation", False)
    edge_pad: int = only(
        10, "only N/4, which takes the place of 10: the border that the TensorFlow reference predicts apart",
        16, 32, 64, replaced=10,
    )  # fmt: skip
    decoder_last_c_outer_fraction: float = used(
        OUTER_FRACTION,
        "the border is predicted from 4 channels, as in the TensorFlow reference: 0.125 / n_filters_scale, which takes "
        "the place of 0.125; other values are refused",
    )
    cbam_bottleneck: bool = only(False, _NO_ATTENTION, False)
    cbam_decoder: bool = only(False, _NO_ATTENTION, False)
    spatial_decoder: bool = only(False, _NO_ATTENTION, False)
    decoder_spatial_kernel: int = belongs_to(7, "spatial_decoder")
    eca_encoder: bool = only(False, _NO_ATTENTION, False)
    offset: int = becomes(6, "offset")
    probe_reference_coeff: float = only(0.0, "only 0: the loss has no term of the probe", 0.0, 0)
    amplitude_variance_loss: bool = only(False, "only False: the loss is of diffraction only", False)
    amplitude_variance_coeff: float = belongs_to(0.01, "amplitude_variance_loss")

    def _together(self) -> list[str]:
        if self.decoder_last_c_outer_fraction in (OUTER_FRACTION, self._outer_fraction):
            return []
        return [
            f"ModelConfig.decoder_last_c_outer_fraction = {self.decoder_last_c_outer_fraction} is refused: with "
            f"n_filters_scale = {self.n_filters_scale} this network has {self._outer_fraction}, 4 channels."
        ]

    @property
    def _outer_fraction(self) -> float:
        return OUTER_FRACTION / self.n_filters_scale

    def replaced(self) -> list[str]:
        """Say which values are taken and replaced, and by what."""
        said = super().replaced()
        if self.decoder_last_c_outer_fraction != self._outer_fraction:
            says = self.rules()["decoder_last_c_outer_fraction"][1].says
            said.append(f"ModelConfig.decoder_last_c_outer_fraction = {self.decoder_last_c_outer_fraction}: {says}")
        return said


@dataclasses.dataclass
class TrainingConfig(Ruled):
    """How the network is trained, as ptychodus says it."""

    epochs: int = becomes(50, "max_epochs")
    batch_size: int = becomes(16, "batch_size")
    learning_rate: float = becomes(1e-3, "learning_rate")
    n_devices: int = only(1, "only 1: it trains in one process; `ptycho-torch train` uses several", 1)
    num_workers: int = becomes(4, "num_workers")
    accum_steps: int = becomes(1, "accumulate_grad_batches")
    epochs_fine_tune: int = only(0, "only 0: training has one stage", 0)
    fine_tune_gamma: float = belongs_to(0.1, "epochs_fine_tune above 0")
    gradient_clip_val: float | None = becomes(
        None, "gradient_clip_val", "becomes our `gradient_clip_val`, of the norm of all gradients; None does not clip"
    )
    nll: bool = used(True, "False with loss_function 'Poisson' is refused: that loss is the negative log-likelihood")
    device: str = becomes(
        "cuda",
        "device",
        "becomes our `device`: auto, cpu, cuda or mps; 'cuda' where there is none is 'cpu', as ptychodus announces",
        {name: name for name in ("auto", "cpu", "cuda", "mps")},
    )
    strategy: str | None = only(
        "ddp_spawn", "one device needs none, so each of ddp_spawn, ddp, auto and None is taken", "ddp_spawn", "ddp",
        "auto", None,
    )  # fmt: skip
    framework: str = only("Lightning", "only 'Lightning'", "Lightning")
    orchestrator: str = becomes(
        "Lightning",
        "tracking",
        "'Mlflow' tracks the run with MLflow, 'Lightning' does not (our `tracking`)",
        {"Lightning": False, "Mlflow": True},
    )
    scheduler: str = becomes(
        "Default",
        "scheduler",
        "becomes our `scheduler`: Default, Exponential, or Cosine (which is WarmupCosine)",
        {"Default": "Default", "Exponential": "Exponential", "Cosine": "WarmupCosine"},
    )
    warmup_epochs: int = becomes(0, "lr_warmup_epochs", "becomes our `lr_warmup_epochs`, for the scheduler Cosine")
    min_lr_ratio: float = becomes(0.1, "lr_min_ratio", "becomes our `lr_min_ratio`, for the scheduler Cosine")
    notes: str = used("", "kept in the checkpoint")
    model_name: str = becomes("PtychoPINNv2", "run_name", "becomes our `run_name`, and is kept in the checkpoint")
    enable_staged_finetuning: bool = only(False, "only False: training has one stage", False)
    finetune_stage1_epochs: int = belongs_to(7, _STAGED)
    finetune_stage2_epochs: int = belongs_to(7, _STAGED)
    finetune_stage3_epochs: int = belongs_to(5, _STAGED)
    finetune_stage1_lr_decoder: float = belongs_to(0.1, _STAGED)
    finetune_stage2_lr_encoder_top: float = belongs_to(0.01, _STAGED)
    finetune_stage2_lr_decoder: float = belongs_to(0.05, _STAGED)
    finetune_stage2_lr_phase_head: float = belongs_to(0.1, _STAGED)
    finetune_stage3_lr_encoder_bottom: float = belongs_to(0.005, _STAGED)
    finetune_stage3_lr_encoder_top: float = belongs_to(0.01, _STAGED)
    finetune_stage3_lr_decoder: float = belongs_to(0.02, _STAGED)
    finetune_stage3_lr_phase_head: float = belongs_to(0.05, _STAGED)
    finetune_skip_stage3: bool = belongs_to(True, _STAGED)
    finetune_early_stop_patience: int = belongs_to(3, _STAGED)
    finetune_val_split: float = belongs_to(0.05, _STAGED)


@dataclasses.dataclass
class InferenceConfig(Ruled):
    """How objects are made, as ptychodus says it."""

    batch_size: int = used(1000, "groups predicted at once", least=1)
    middle_trim: int = used(32, "side of the central square of each patch that is stitched, even", least=2)
    experiment_number: int = used(0, "number of the scan whose object is returned", least=0)
    patch_weighting: str = only(
        "probe",
        "'uniform' is the mean of patches; 'smooth' weighs them by a Hann window, and takes the place of 'probe'",
        "uniform", "smooth", replaced="probe",
    )  # fmt: skip
    pad_eval: bool = only(True, "only True: patches have their border when they are predicted, as in training", True)
    window: int = used(
        20, "kept in the checkpoint: a margin of pictures, while ptychodus gets the whole object", least=0
    )

    def _together(self) -> list[str]:
        if self.middle_trim % 2:
            return [f"InferenceConfig.middle_trim = {self.middle_trim} is refused: expected an even number."]
        return []


@dataclasses.dataclass
class DatagenConfig(Ruled):
    """How data are simulated; ptychodus says nothing of it."""
