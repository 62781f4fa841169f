"""Settings of the network, of training and of the data, as frozen and checked values.

``ModelConfig``, ``TrainingConfig`` and ``DataConfig`` are the public face; everything behind them works with frozen
snapshots (``ModelSettings``, ``TrainingSettings``, ``DataSettings``). Every setting, its range and default, its name in
the TensorFlow reference and why a default differs stand in
<doc-ref type="contract">specs/configuration.yaml</doc-ref>; how to use them in
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.

A combination that the network cannot have is a ``ConfigError`` here, and never a shape error later.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, get_args

from ptycho_torch.contracts.nicknames import nearest
from ptycho_torch.errors import ConfigError

AmplitudeActivation = Literal["sigmoid", "swish", "softplus", "relu"]

_ENCODER_WIDTHS = {64: (32, 64, 128), 128: (16, 32, 64, 128), 256: (8, 16, 32, 64, 128)}
_DECODER_WIDTHS = {64: (64, 32), 128: (128, 64, 32), 256: (256, 128, 64, 32)}

PATCH_SIDES_PX = tuple(_ENCODER_WIDTHS)
"""Patch sides that the network has an encoder for."""

OUTER_CHANNELS = 4
"""How many trailing channels feed a decoder's outer path; 4 whatever the grid size is."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_type(owner: str, name: str, value: object, annotation: str) -> None:
    # bool is a subclass of int in Python, but a flag is not a number in a configuration.
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    optional = annotation.endswith(" | None")
    if optional and value is None:
        return
    annotation = annotation.removesuffix(" | None")
    if annotation in accepted:
        wrong = not isinstance(value, accepted[annotation]) or (annotation != "bool" and isinstance(value, bool))
        _require(
            not wrong,
            f"{owner}.{name} = {value!r} is {type(value).__name__}; expected {annotation}.",
        )
        if annotation == "float":
            assert isinstance(value, int | float)
            try:
                finite = math.isfinite(value)
            except OverflowError:
                finite = False
            _require(finite, f"{owner}.{name} = {value!r} is not a finite number.")


def _advice(name: str, known: tuple[str, ...]) -> str:
    """Say what an unknown name is here, or the nearest that there is, or all that there are."""
    from ptycho_torch.contracts.config_schema import hint

    elsewhere = hint(name)
    if elsewhere is not None:
        return f"a name of the reference; {elsewhere.removesuffix('.')}."
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"known settings: {', '.join(sorted(known))}."


class _Checked:
    """Reads a frozen settings class from a mapping, and names what does not fit."""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_type(type(self).__name__, field.name, getattr(self, field.name), str(field.type))

    @classmethod
    def check_names(cls, names: Mapping[str, Any], *, also_known: tuple[str, ...] = ()) -> None:
        """Raise ``ConfigError`` for a name that no setting has, with the nearest one that exists."""
        known = (*cls.field_names(), *also_known)
        for name in names:
            if name not in known:
                raise ConfigError(f"Unknown setting {name!r} of {cls.__name__}; {_advice(name, known)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make settings from names and values.

        Raises:
            ConfigError: an unknown name, with the nearest one that exists, or a value that does not fit.
        """
        cls.check_names(values)
        return cls(**values)

    def _check_choices(self, choices: Mapping[str, Any]) -> None:
        for name, literal in choices.items():
            value = getattr(self, name)
            _require(
                value in get_args(literal),
                f"{type(self).__name__}.{name} = {value!r}; choose one of {', '.join(map(str, get_args(literal)))}.",
            )

    def _check_range(self, name: str, least: float, most: float = math.inf, *, open_below: bool = False) -> None:
        """Require least ≤ value ≤ most, or least < value; None, where a setting may be that, is in every range."""
        value = getattr(self, name)
        if value is None:
            return
        inside = (least < value if open_below else least <= value) and value <= most
        expected = f"above {least:g}" if open_below else f"{least:g} or more"
        if most < math.inf:
            expected += f", at most {most:g}"
        _require(inside, f"{type(self).__name__}.{name} = {value}; expected {expected}.")


@dataclasses.dataclass(frozen=True)
class NetworkSettings(_Checked):
    """Everything that decides the network's graph and its fixed numbers.

    Attributes:
        N: patch side in pixels: 64, 128 or 256.
        gridsize: g; a group holds C = g² patches.
        n_filters_scale: multiplies every channel width.
        object_big: True merges C predicted patches on one canvas; False predicts one patch a group.
        probe_big: True lets the object reach beyond the central N/2 × N/2 square.
        pad_object: True predicts the centre with the activation and the border with ``outer``.
        probe_mask: multiply the exit wave by the central disk.
        amp_activation: activation of the amplitude head.
        gaussian_smoothing_sigma: σ in pixels of the 3 × 3 blur of the exit wave; 0 is no blur.
        offset: nominal scan step in pixels, which sizes the canvas.
        max_position_jitter: pixels added to the canvas for positions off the nominal grid.
        intensity_scale: s_I > 0, factor between normalised amplitude and √counts.
        intensity_scale_trainable: optimise ln(s_I). The reference's flag of this name does nothing (REF-02).
        probe_trainable: optimise the probe. The reference's flag of this name does nothing (REF-02).
        shared_amplitude_head: one amplitude channel for all C patches, as older archives have it.

    Raises:
        ConfigError: for a value or combination that the network cannot have.

    >>> NetworkSettings(N=64, gridsize=2).canvas_px
    78
    """

    N: int = 64
    gridsize: int = 1
    n_filters_scale: int = 2
    object_big: bool = True
    probe_big: bool = True
    pad_object: bool = True
    probe_mask: bool = False
    amp_activation: AmplitudeActivation = "sigmoid"
    gaussian_smoothing_sigma: float = 0.0
    offset: int = 4
    max_position_jitter: int = 10
    intensity_scale: float = 1.0
    intensity_scale_trainable: bool = False
    probe_trainable: bool = False
    shared_amplitude_head: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        _require(
            self.N in PATCH_SIDES_PX,
            f"N = {self.N} is no patch size this network has; choose 64, 128 or 256 pixels "
            "(crop or bin the detector frames to one of these).",
        )
        _require(self.gridsize >= 1, f"gridsize = {self.gridsize}; a group needs at least 1 × 1 patches.")
        _require(self.n_filters_scale >= 1, f"n_filters_scale = {self.n_filters_scale}; expected 1 or more.")
        _require(
            self.amp_activation in get_args(AmplitudeActivation),
            f"amp_activation = {self.amp_activation!r}; choose one of sigmoid, swish, softplus, relu.",
        )
        _require(self.gaussian_smoothing_sigma >= 0, "gaussian_smoothing_sigma is negative; expected 0 or more pixels.")
        _require(self.offset >= 0, f"offset = {self.offset}; expected 0 or more pixels.")
        _require(
            self.max_position_jitter >= 0, f"max_position_jitter = {self.max_position_jitter}; expected 0 or more."
        )
        _require(self.intensity_scale > 0, f"intensity_scale = {self.intensity_scale}; expected a number above 0.")
        padding = (self.gridsize - 1) * self.offset + self.max_position_jitter
        _require(
            not self.object_big or padding % 2 == 0,
            f"(gridsize − 1)·offset + max_position_jitter = {padding} is odd, so the canvas cannot be centred on "
            "the patch (REF-03); change offset or max_position_jitter by one pixel.",
        )
        _require(
            not self.shared_amplitude_head or self.object_big,
            "shared_amplitude_head needs object_big: with object_big = False every head has one channel already.",
        )

    @property
    def C(self) -> int:
        """Patches in one group."""
        return self.gridsize**2

    @property
    def padding_px(self) -> int:
        """q: pixels between patch and canvas on each side. An odd total is split with the floor (REF-03)."""
        return ((self.gridsize - 1) * self.offset + self.max_position_jitter) // 2

    @property
    def canvas_px(self) -> int:
        """P: side of the canvas that holds one group."""
        return self.N + 2 * self.padding_px

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels after each encoder block."""
        return tuple(width * self.n_filters_scale for width in _ENCODER_WIDTHS[self.N])

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels after each decoder block."""
        return tuple(width * self.n_filters_scale for width in _DECODER_WIDTHS[self.N])

    @property
    def outer_width(self) -> int:
        """m: channels inside a decoder's outer path."""
        return self.n_filters_scale * 2048 // self.N

    @property
    def has_outer_path(self) -> bool:
        """Whether the decoders have an outer path."""
        return self.probe_big or not self.pad_object

    @property
    def phase_channels(self) -> int:
        """Output channels of the phase head."""
        return self.C if self.object_big else 1

    @property
    def amplitude_channels(self) -> int:
        """Output channels of the amplitude head."""
        return 1 if self.shared_amplitude_head else self.phase_channels


@dataclasses.dataclass(frozen=True)
class LossWeights(_Checked):
    """Weights of the terms of the training loss.

    total = nll_weight·NLL + mae_weight·MAE + realspace_weight·(tv_weight·TV + realspace_mae_weight·MAE_object)
    """

    nll_weight: float = 1.0
    mae_weight: float = 0.0
    realspace_weight: float = 0.0
    tv_weight: float = 0.0
    realspace_mae_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check_types()
        for name in self.field_names():
            _require(getattr(self, name) >= 0, f"LossWeights.{name} is negative; expected 0 or more.")


GroupSampler = Literal["with_centre", "without_centre", "reference"]
PositionSource = Literal["corrected", "nominal"]
DetectorFlip = Literal["none", "vertical", "horizontal", "both"]


@dataclasses.dataclass(frozen=True)
class DataSettings(_Checked):
    """How scans become groups of patterns: the clauses PREP, GROUP and MAP of the data contract.

    Attributes:
        N: patch side in pixels, after binning and cropping.
        gridsize: g; a group holds C = g² patterns.
        K: how many nearest neighbours of a scan point its group is drawn from.
        n_subsample: groups for each scan point (samplers ``with_centre`` and ``without_centre``).
        group_sampler: ``with_centre`` (recommended), ``without_centre``, or ``reference`` (clause GROUP-02).
        group_seed: seed of every draw.
        n_groups: sampler ``reference``: how many groups to draw; None is one for each scan point.
        sequential_sampling: sampler ``reference``: seed points 0, 1, 2, … in place of random ones.
        enable_oversampling: sampler ``reference``: more groups than scan points, from all K choose C subsets.
        neighbor_pool_size: sampler ``reference``: K of oversampling; None is ``K``.
        position_source: ``corrected`` (xcoords) or ``nominal`` (xcoords_start).
        normalize: bring amplitude to the network's normalisation (clause GROUP-04).
        probe_dir_get: take probes from the probe folder where one is given; False takes ``probeGuess`` of each scan.
        nphotons: mean counts of a pattern; None takes what the scan says or holds (clause PREP-02).
        detector_bin: b; b × b detector pixels become one.
        detector_crop: cut frames that are larger than N, after binning, to N × N.
        detector_centre_row_px: row of the zero frequency in the file's frames; None is frame // 2.
        detector_centre_column_px: its column; None is frame // 2.
        detector_transpose: swap rows and columns of the frames.
        detector_flip: turn the frames upside down (``vertical``), left to right (``horizontal``), or ``both``.
        positions_swap_xy: swap x and y of the positions.
        positions_flip_x: count x the other way.
        positions_flip_y: count y the other way.

    Raises:
        ConfigError: for a value or combination that makes no groups.

    >>> DataSettings(gridsize=2).C
    4
    """

    N: int = 64
    gridsize: int = 2
    K: int = 6
    n_subsample: int = 1
    group_sampler: GroupSampler = "with_centre"
    group_seed: int = 0
    n_groups: int | None = None
    sequential_sampling: bool = False
    enable_oversampling: bool = False
    neighbor_pool_size: int | None = None
    position_source: PositionSource = "corrected"
    normalize: bool = True
    probe_dir_get: bool = True
    nphotons: float | None = None
    detector_bin: int = 1
    detector_crop: bool = False
    detector_centre_row_px: int | None = None
    detector_centre_column_px: int | None = None
    detector_transpose: bool = False
    detector_flip: DetectorFlip = "none"
    positions_swap_xy: bool = False
    positions_flip_x: bool = False
    positions_flip_y: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        for name, least in (("N", 2), ("gridsize", 1), ("K", 1), ("n_subsample", 1), ("detector_bin", 1)):
            value = getattr(self, name)
            _require(value >= least, f"DataSettings.{name} = {value}; expected {least} or more.")
        _require(self.N % 2 == 0, f"DataSettings.N = {self.N}; expected an even number of pixels.")
        for name in ("n_groups", "neighbor_pool_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"DataSettings.{name} = {value}; expected 1 or more, or None.")
        for name in ("detector_centre_row_px", "detector_centre_column_px"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"DataSettings.{name} = {value}; expected 0 or more, or None.")
        _require(0 <= self.group_seed < 2**32, f"DataSettings.group_seed = {self.group_seed}; expected 0 … 2³² − 1.")
        _require(
            self.nphotons is None or self.nphotons > 0,
            f"DataSettings.nphotons = {self.nphotons}; expected a number above 0, or None to derive it.",
        )
        for name, choices in (
            ("group_sampler", GroupSampler),
            ("position_source", PositionSource),
            ("detector_flip", DetectorFlip),
        ):
            value = getattr(self, name)
            _require(
                value in get_args(choices),
                f"DataSettings.{name} = {value!r}; choose one of {', '.join(get_args(choices))}.",
            )
        if self.group_sampler == "reference":
            _require(
                self.n_subsample == 1,
                "DataSettings.n_subsample counts groups for each scan point; the sampler 'reference' takes n_groups.",
            )
        else:
            for name in ("n_groups", "sequential_sampling", "enable_oversampling", "neighbor_pool_size"):
                _require(
                    not getattr(self, name),
                    f"DataSettings.{name} belongs to group_sampler = 'reference'; "
                    f"{self.group_sampler!r} takes K and n_subsample.",
                )

    @property
    def C(self) -> int:
        """Patterns in one group."""
        return self.gridsize**2


LossFunction = Literal["Poisson", "MAE"]


@dataclasses.dataclass(frozen=True)
class ModelSettings(_Checked):
    """What a user chooses of the network; the rest of ``NetworkSettings`` follows from the data.

    Attributes:
        n_filters_scale: multiplies every channel width.
        object_big: True merges C predicted patches on one canvas; False predicts one patch a group.
        probe_big: True lets the object reach beyond the central N/2 × N/2 square.
        pad_object: True predicts the centre with the activation and the border with an outer path.
        probe_mask: multiply the exit wave by the central disk.
        probe_scale: the mean of the probe's magnitude inside the disk becomes 1 / probe_scale.
        amp_activation: activation of the amplitude head.
        gaussian_smoothing_sigma: σ in pixels of the 3 × 3 blur of the exit wave; 0 is no blur.
        offset: nominal scan step in pixels; None derives it from the scan (clause PREP-02).
        max_position_jitter: pixels added to the canvas; None derives it so that no group is clipped (clause PREP-02).
        intensity_scale: s_I; None is √nphotons / (N/2).
        intensity_scale_trainable: optimise ln(s_I).
        probe_trainable: optimise the probe.
        shared_amplitude_head: one amplitude channel for all C patches, as older archives have it.
        loss_function: ``Poisson`` negative log-likelihood of counts, or ``MAE`` of amplitude.

    Raises:
        ConfigError: for a value that the network cannot have.
    """

    n_filters_scale: int = 1
    object_big: bool = True
    probe_big: bool = True
    pad_object: bool = True
    probe_mask: bool = False
    probe_scale: float = 4.0
    amp_activation: AmplitudeActivation = "sigmoid"
    gaussian_smoothing_sigma: float = 0.0
    offset: int | None = None
    max_position_jitter: int | None = None
    intensity_scale: float | None = None
    intensity_scale_trainable: bool = False
    probe_trainable: bool = False
    shared_amplitude_head: bool = False
    loss_function: LossFunction = "Poisson"

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices({"amp_activation": AmplitudeActivation, "loss_function": LossFunction})
        self._check_range("n_filters_scale", 1)
        for name in ("gaussian_smoothing_sigma", "offset", "max_position_jitter"):
            self._check_range(name, 0)
        for name in ("probe_scale", "intensity_scale"):
            self._check_range(name, 0, open_below=True)

    def network(
        self, *, N: int, gridsize: int, nphotons: float, offset: int, max_position_jitter: int
    ) -> NetworkSettings:
        """Complete the settings with what the data decide; a value that is set here stays.

        Raises:
            ConfigError: a combination that the network cannot have.
        """
        chosen = {name: getattr(self, name) for name in NetworkSettings.field_names() if hasattr(self, name)}
        derived = {
            "intensity_scale": math.sqrt(nphotons) / (N / 2),
            "offset": offset,
            "max_position_jitter": max_position_jitter,
        }
        chosen |= {name: value for name, value in derived.items() if chosen[name] is None}
        return NetworkSettings(N=N, gridsize=gridsize, **chosen)


Device = Literal["auto", "cpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp"]
OptimizerName = Literal["keras_adam", "adam", "adamw"]
SchedulerName = Literal["Default", "Exponential", "WarmupCosine", "ReduceLROnPlateau"]
ClipAlgorithm = Literal["adaptive", "norm", "value"]
InitialAmplitude = Literal["mean_counts", "zero_bias"]
Monitor = Literal["train_loss", "val_loss"]
Precision = Literal["32-true", "64-true", "bf16-mixed"]
ValidationSelection = Literal["random", "last"]
GraveHint = Literal["position-unit", "position-outlier", "one-place", "scan-index", "static", "hot-pixel"]
"""Kinds of hints that stop training (``ptycho_torch.importer.hints``)."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings(_Checked):
    """How the network is trained.

    Attributes:
        device: where to train; ``auto`` takes a GPU if there is one.
        devices: processes on each node, one a device; −1 is all GPUs.
        num_nodes: nodes of a cluster.
        strategy: ``auto``, or ``ddp`` for several processes.
        precision: ``32-true``, ``64-true``, or ``bf16-mixed`` (network in bfloat16, physics in float32).
        compile: compile the network with ``torch.compile``.
        deterministic: refuse operations that are not reproducible.
        max_epochs: upper limit of epochs; None derives it from the number of groups, so that every scan takes about as
            long (``ptycho_torch.train.epochs_for``).
        batch_size: groups in a batch of one process.
        accumulate_grad_batches: batches whose gradients are averaged before a step.
        learning_rate: of the optimiser, at the start.
        initial_amplitude: of the object before the first update: ``mean_counts``, the one that gives the counts of the
            mean pattern, or ``zero_bias``, whatever a bias of zero gives, as the reference.
        optimizer: ``keras_adam`` (as the reference), ``adam`` or ``adamw`` (PyTorch's).
        adam_beta1: decay of the first moment.
        adam_beta2: decay of the second moment.
        adam_eps: ε.
        weight_decay: of ``adamw``.
        scheduler: ``Default`` (constant), ``Exponential``, ``WarmupCosine`` or ``ReduceLROnPlateau``.
        lr_gamma: factor of each epoch, for ``Exponential``.
        lr_warmup_epochs: epochs of linear warm-up, for ``WarmupCosine``; None is a tenth of all, rounded up.
        lr_min_ratio: last over first learning rate, for ``WarmupCosine``.
        plateau_factor: factor at a plateau of the validation loss, for ``ReduceLROnPlateau``.
        plateau_patience: epochs without improvement before that, counted as Keras does.
        plateau_min_lr: the lowest learning rate.
        plateau_threshold: absolute improvement that counts.
        gradient_clip_val: clip gradients to this norm or value, or to this multiple of the median norm of the latest
            steps; None does not clip.
        gradient_clip_algorithm: ``adaptive`` (multiple of the median norm), ``norm`` or ``value``.
        early_stop_patience: epochs without improvement before training ends; None never ends it early.
        early_stop_monitor: the loss that is watched.
        nll_weight: weight of the Poisson term; None takes it from ``loss_function``.
        mae_weight: weight of the amplitude MAE; None takes it from ``loss_function``.
        realspace_weight: weight of the terms of the object.
        tv_weight: weight of the total variation among them.
        validation_fraction: part of the groups that is kept for validation.
        validation_selection: ``random`` groups, or the ``last`` ones as the reference has it.
        seed: of the initial weights, the validation groups and the order of batches.
        num_workers: threads that gather batches ahead.
        checkpoint_every_n_steps: steps between checkpoints within an epoch; 0 writes one at the end of each epoch.
        tracking: log the run with MLflow where it is installed.
        experiment_name: MLflow experiment.
        run_name: MLflow run; None takes the name of the output folder.
        accept: grave hints about the scans that do not stop training, with commas between: position-unit,
            position-outlier, one-place, scan-index, static, hot-pixel.

    Raises:
        ConfigError: for a value or combination that cannot be.
    """

    device: Device = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Strategy = "auto"
    precision: Precision = "32-true"
    compile: bool = False
    deterministic: bool = False
    max_epochs: int | None = None
    batch_size: int = 4
    accumulate_grad_batches: int = 1
    learning_rate: float = 1e-3
    initial_amplitude: InitialAmplitude = "mean_counts"
    optimizer: OptimizerName = "keras_adam"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-7
    weight_decay: float = 0.0
    scheduler: SchedulerName = "WarmupCosine"
    lr_gamma: float = 0.95
    lr_warmup_epochs: int | None = None
    lr_min_ratio: float = 0.02
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    plateau_min_lr: float = 1e-4
    plateau_threshold: float = 1e-4
    gradient_clip_val: float | None = 3.0
    gradient_clip_algorithm: ClipAlgorithm = "adaptive"
    early_stop_patience: int | None = 10
    early_stop_monitor: Monitor = "train_loss"
    nll_weight: float | None = None
    mae_weight: float | None = None
    realspace_weight: float = 0.0
    tv_weight: float = 0.0
    validation_fraction: float = 0.05
    validation_selection: ValidationSelection = "random"
    seed: int = 0
    num_workers: int = 1
    checkpoint_every_n_steps: int = 0
    tracking: bool = True
    experiment_name: str = "PtychoPINN vanilla"
    run_name: str | None = None
    accept: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices(
            {
                "device": Device,
                "strategy": Strategy,
                "precision": Precision,
                "initial_amplitude": InitialAmplitude,
                "optimizer": OptimizerName,
                "scheduler": SchedulerName,
                "gradient_clip_algorithm": ClipAlgorithm,
                "early_stop_monitor": Monitor,
                "validation_selection": ValidationSelection,
            }
        )
        for kind in filter(None, (self.accept or "").split(",")):
            _require(
                kind in get_args(GraveHint),
                f"TrainingSettings.accept: no hint {kind!r} stops training; those that do: "
                f"{', '.join(get_args(GraveHint))}.",
            )
        for name in ("num_nodes", "max_epochs", "batch_size", "accumulate_grad_batches", "early_stop_patience"):
            self._check_range(name, 1)
        for name in (
            "weight_decay", "lr_warmup_epochs", "plateau_patience", "plateau_min_lr", "plateau_threshold", "nll_weight",
            "mae_weight", "realspace_weight", "tv_weight", "num_workers", "checkpoint_every_n_steps",
        ):  # fmt: skip
            self._check_range(name, 0)
        for name in ("learning_rate", "adam_eps", "gradient_clip_val"):
            self._check_range(name, 0, open_below=True)
        for name in ("lr_gamma", "plateau_factor"):
            self._check_range(name, 0, 1, open_below=True)
        self._check_range("lr_min_ratio", 0, 1)
        self._check_range("seed", 0, 2**32 - 1)
        for name in ("adam_beta1", "adam_beta2", "validation_fraction"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"TrainingSettings.{name} = {value}; expected 0 or more, below 1.")
        _require(
            self.devices == -1 or self.devices >= 1,
            f"TrainingSettings.devices = {self.devices}; expected 1 or more, or -1 for all GPUs.",
        )
        _require(
            not self.weight_decay or self.optimizer == "adamw",
            f"TrainingSettings.weight_decay belongs to optimizer = 'adamw'; {self.optimizer!r} takes none.",
        )
        _require(
            self.early_stop_monitor == "train_loss" or self.validation_fraction > 0,
            "TrainingSettings.early_stop_monitor = 'val_loss' needs validation_fraction above 0.",
        )
        _require(
            self.tv_weight == 0 or self.realspace_weight > 0,
            "TrainingSettings.tv_weight counts only with realspace_weight above 0; set it, for example to 1.",
        )

    def loss_weights(self, loss_function: LossFunction) -> LossWeights:
        """Return the weights of the loss terms; a weight that is set wins over ``loss_function``.

        Raises:
            ConfigError: every weight is zero.
        """
        poisson = loss_function == "Poisson"
        weights = LossWeights(
            nll_weight=float(poisson) if self.nll_weight is None else self.nll_weight,
            mae_weight=float(not poisson) if self.mae_weight is None else self.mae_weight,
            realspace_weight=self.realspace_weight,
            tv_weight=self.tv_weight,
        )
        _require(
            bool(weights.nll_weight or weights.mae_weight),
            "nll_weight and mae_weight are both 0, so the patterns would have no influence; raise one of them.",
        )
        return weights


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run, frozen: what travels inside and what a checkpoint keeps."""

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the settings as plain values, one dictionary an owner."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, owners: Mapping[str, Mapping[str, Any]]) -> Self:
        """Read what ``as_dict`` returns; an owner or a setting that is missing has its defaults.

        Raises:
            ConfigError: an unknown owner or setting, or a value that does not fit.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for owner, values in owners.items():
            _require(
                owner in known,
                f"Unknown section {owner!r} of the configuration; known sections: {', '.join(sorted(known))}.",
            )
            _require(
                isinstance(values, Mapping),
                f"Section {owner!r} of the configuration is {type(values).__name__}; expected names and values.",
            )
        return cls(
            model=ModelSettings.from_mapping(owners.get("model", {})),
            training=TrainingSettings.from_mapping(owners.get("training", {})),
            data=DataSettings.from_mapping(owners.get("data", {})),
        )

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the settings of a preset; what it does not name has its default.

        Raises:
            ConfigError: there is no such preset.

        >>> Settings.preset("reference").training.early_stop_patience
        3
        """
        _require(name in PRESETS, f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls().override(PRESETS[name])

    @classmethod
    def current(cls) -> Self:
        """Return what the three singletons say now."""
        return cls(ModelConfig().snapshot(), TrainingConfig().snapshot(), DataConfig().snapshot())

    def override(self, values: Mapping[str, Any]) -> Self:
        """Return settings with some changed by name, whoever owns them; ``N`` and all other names have one owner.

        Raises:
            ConfigError: an unknown name, with the nearest one that exists, or a value that does not fit.
        """
        owners = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        every = {name: owner for owner, settings in owners.items() for name in settings.field_names()}
        changed: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in every:
                raise ConfigError(f"Unknown setting {name!r}; {_advice(name, tuple(every))}")
            changed.setdefault(every[name], {})[name] = value
        return dataclasses.replace(
            self, **{owner: dataclasses.replace(owners[owner], **names) for owner, names in changed.items()}
        )


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "reference": MappingProxyType(
            {
                "n_filters_scale": 2, "offset": 4, "max_position_jitter": 10, "group_sampler": "reference", "K": 4,
                "batch_size": 16, "max_epochs": 50, "scheduler": "ReduceLROnPlateau", "lr_warmup_epochs": 0,
                "lr_min_ratio": 0.1, "initial_amplitude": "zero_bias",
                "gradient_clip_val": None, "gradient_clip_algorithm": "norm", "early_stop_patience": 3,
                "validation_selection": "last",
            }
        )
    }
)  # fmt: skip
"""Sets of settings by name. ``reference`` trains as the TensorFlow reference; N, gridsize and counts are the scan's."""

_Owned = TypeVar("_Owned", ModelSettings, TrainingSettings, DataSettings)


class _Singleton(Generic[_Owned]):
    """One set of settings that this process uses where a caller gives none.

    Every call of the class returns the same object. It checks values when they are set; everything behind it works
    with the frozen snapshot that ``snapshot`` returns.
    """

    _instance: ClassVar[Any] = None
    _kind: ClassVar[type]
    _settings: _Owned

    def __new__(cls, **values: Any) -> Self:
        """Return the one object; with values, a plain value of ``ptycho_torch.api.configs`` in its place."""
        if values:
            return _client_value(cls.__name__).from_values(values)  # type: ignore[no-any-return]
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._settings = cls._kind()
        return cls._instance  # type: ignore[no-any-return]

    def set_settings(self, values: Mapping[str, Any]) -> None:
        """Replace all settings: those in ``values`` as given, the others by their defaults.

        The mapping is copied. Raises ``ConfigError`` and keeps the settings as they were if a value does not fit.
        """
        self._settings = self._kind.from_mapping(values)  # type: ignore[attr-defined]

    def add(self, name: str, value: object) -> None:
        """Set one setting; raises ``ConfigError`` and changes nothing if name or value do not fit."""
        self._settings.check_names({name: value})
        self._settings = dataclasses.replace(self._settings, **{name: value})  # type: ignore[arg-type]

    def get(self, name: str) -> Any:
        """Return one setting; raises ``ConfigError`` for a name that is none."""
        self._settings.check_names({name: None})
        return getattr(self._settings, name)

    def snapshot(self) -> _Owned:
        """Return the settings as they are now, frozen."""
        return self._settings


def _client_value(name: str) -> Any:
    """Return the class of that name whose values ptychodus makes."""
    from ptycho_torch.api import configs

    return getattr(configs, name)


def __getattr__(name: str) -> Any:
    # Only ptychodus has a use for these two, which have no singleton.
    if name in ("InferenceConfig", "DatagenConfig"):
        return _client_value(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ModelConfig(_Singleton[ModelSettings]):
    """The model settings of this process.

    >>> ModelConfig().add("loss_function", "MAE")
    >>> ModelConfig().get("loss_function")
    'MAE'
    >>> ModelConfig().set_settings(model_config_default)
    """

    _kind = ModelSettings


class TrainingConfig(_Singleton[TrainingSettings]):
    """The training settings of this process.

    >>> TrainingConfig().add("max_epochs", 10)
    >>> TrainingConfig().snapshot().max_epochs
    10
    >>> TrainingConfig().set_settings(training_config_default)
    """

    _kind = TrainingSettings


class DataConfig(_Singleton[DataSettings]):
    """The data settings of this process.

    >>> DataConfig().add("N", 128)
    >>> DataConfig().get("N")
    128
    >>> DataConfig().set_settings(data_config_default)
    >>> DataConfig().snapshot().N
    64
    """

    _kind = DataSettings


model_config_default: Mapping[str, Any] = MappingProxyType(dataclasses.asdict(ModelSettings()))
"""Every model setting with its default."""

training_config_default: Mapping[str, Any] = MappingProxyType(dataclasses.asdict(TrainingSettings()))
"""Every training setting with its default."""

data_config_default: Mapping[str, Any] = MappingProxyType(dataclasses.asdict(DataSettings()))
"""Every data setting with its default."""
