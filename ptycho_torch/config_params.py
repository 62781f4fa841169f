"""Settings of the network and of the losses, as frozen and checked values.

Field names are those of the TensorFlow reference, so that a user's configuration keeps its words.
A combination that the network cannot have is a ``ConfigError`` here, and never a shape error later.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ptycho_torch.errors import ConfigError

AmplitudeActivation = Literal["sigmoid", "swish", "softplus", "relu"]

_ENCODER_WIDTHS = {64: (32, 64, 128), 128: (16, 32, 64, 128), 256: (8, 16, 32, 64, 128)}
_DECODER_WIDTHS = {64: (64, 32), 128: (128, 64, 32), 256: (256, 128, 64, 32)}

OUTER_CHANNELS = 4
"""How many trailing channels feed a decoder's outer path; 4 whatever the grid size is."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_type(owner: str, name: str, value: object, annotation: str) -> None:
    # bool is a subclass of int in Python, but a flag is no number in a configuration.
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
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
            self.N in _ENCODER_WIDTHS,
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
