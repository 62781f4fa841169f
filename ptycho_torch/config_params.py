"""Settings of the network, of the losses and of the data, as frozen and checked values.

Field names are those of the TensorFlow reference, so that a user's configuration keeps its words.
A combination that the network cannot have is a ``ConfigError`` here, and never a shape error later.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

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
    # bool is a subclass of int in Python, but a flag is no number in a configuration.
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
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
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}."
                raise ConfigError(f"Unknown setting {name!r}; {hint}")


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
        nphotons: mean counts of a pattern; None derives them from the scan (clause PREP-02).
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

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DataSettings:
        """Make settings from names and values.

        Raises:
            ConfigError: an unknown name, with the nearest one that exists, or a value that does not fit.
        """
        cls.check_names(values)
        return cls(**values)


class DataConfig:
    """The one set of data settings that this process uses where a caller gives none.

    Every ``DataConfig()`` is the same object. It checks values when they are set; everything behind it works with
    the frozen snapshot that ``snapshot`` returns.

    >>> DataConfig().add("N", 128)
    >>> DataConfig().get("N")
    128
    >>> DataConfig().set_settings(data_config_default)
    >>> DataConfig().snapshot().N
    64
    """

    _instance: ClassVar[DataConfig | None] = None
    _settings: DataSettings

    def __new__(cls) -> DataConfig:
        """Return the one object."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._settings = DataSettings()
        return cls._instance

    def set_settings(self, values: Mapping[str, Any]) -> None:
        """Replace all settings: those in ``values`` as given, the others by their defaults.

        The mapping is copied. Raises ``ConfigError`` and keeps the settings as they were if a value does not fit.
        """
        self._settings = DataSettings.from_mapping(values)

    def add(self, name: str, value: object) -> None:
        """Set one setting; raises ``ConfigError`` and changes nothing if name or value do not fit."""
        DataSettings.check_names({name: value})
        self._settings = dataclasses.replace(self._settings, **{name: value})  # type: ignore[arg-type]

    def get(self, name: str) -> Any:
        """Return one setting; raises ``ConfigError`` for a name that is none."""
        DataSettings.check_names({name: None})
        return getattr(self._settings, name)

    def snapshot(self) -> DataSettings:
        """Return the settings as they are now, frozen."""
        return self._settings


data_config_default: Mapping[str, Any] = MappingProxyType(dataclasses.asdict(DataSettings()))
"""Every data setting with its default."""
