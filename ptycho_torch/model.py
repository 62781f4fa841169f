"""The network: encoder, two decoders, and the physics that turns its object into diffraction.

Every step that has a clause in <doc-ref type="contract">specs/stages.yaml</doc-ref> is one ``Stage`` module, and
its module path is the clause's id: ``model.get_submodule("decoder_amp.outer.conv1")``. So a forward hook on a
stage sees exactly what the clause speaks of, and whoever does not hook pays nothing. For the doublings that is
meant literally: one without a hook is not computed. The convolution that reads it works on the small image
instead (``helper.convolve_doubled``), which is the same up to rounding.

Under autocast the convolutions run in its precision. The heads hand over in that of the parameters, and from there
on autocast is off, since phases and diffraction have no digits to spare.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from ptycho_torch import helper
from ptycho_torch.config_params import OUTER_CHANNELS, AmplitudeActivation, NetworkSettings
from ptycho_torch.data.axes import Canvas, ExitWave, GroupAmplitude, GroupViews, OffsetsPx, Patches, ProbeModes
from ptycho_torch.data.probe import as_modes, default_probe, disk_mask, normalise_probe
from ptycho_torch.errors import DataContractError


class Stage(nn.Module):
    """One step of the forward model that a clause describes."""


class NormalizedInput(Stage):
    """normalized_input = input / exp(log_scale)    [clause ``normalized_input``]."""

    def forward(self, scaled_amplitude: GroupAmplitude, log_scale: Float[Tensor, ""]) -> GroupAmplitude:
        """Undo the intensity scale, so that the encoder sees normalised amplitude."""
        # Here once, so that every convolution stays channels-last; without ``to``, one channel counts as either format.
        return (scaled_amplitude / log_scale.exp()).to(memory_format=torch.channels_last)


class Convolution(Stage):
    """A 3 × 3 convolution with bias over some of the input's channels, then ReLU if asked for.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        relu: apply ReLU.
        first_channel: first channel read; negative counts from the end. The decoder heads read all but the last
            four channels, their outer paths the last four.
        generator: source of the Glorot-uniform kernel; biases start at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        relu: bool,
        first_channel: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.first_channel = first_channel
        self.in_channels = in_channels
        # Drawn on the CPU, so that one seed means one network on every device.
        limit = math.sqrt(6 / (9 * (in_channels + out_channels)))
        kernel = torch.empty(out_channels, in_channels, 3, 3, dtype=torch.float64)
        kernel.uniform_(-limit, limit, generator=generator)
        # Convolutions follow their kernel's memory format. On a CPU channels-last is faster, and its sums over pixels,
        # blocked where the other format's are serial, are several times closer to the truth.
        self.weight = nn.Parameter(kernel.to(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels, dtype=torch.float64))

    def forward(self, features: Float[Tensor, "B F H W"], *, doubled: bool = False) -> Float[Tensor, "B G h w"]:
        """Convolve with zero padding of one pixel; with ``doubled``, convolve the doubling of the features."""
        start = self.first_channel % features.shape[1]
        features = features[:, start : start + self.in_channels]
        if doubled:
            features = helper.convolve_doubled(features, self.weight, self.bias)
        else:
            features = nn.functional.conv2d(features, self.weight, self.bias, padding=1)
        # A convolution without ReLU is a head: what follows it is no longer for autocast.
        return features.relu_() if self.relu else features.to(self.weight.dtype)


class Pool(Stage):
    """2 × 2 maximum    [clause ``encoder.{i}.pool``]."""

    def forward(self, features: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F h w"]:
        """Halve height and width."""
        return nn.functional.max_pool2d(features, 2)


class Upsample(Stage):
    """Nearest-neighbour doubling    [clause ``decoder_{D}.{i}.up``]."""

    def forward(self, features: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F h w"]:
        """Double height and width."""
        return nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")


class Swish(Stage):
    """z·sigmoid(z)    [clause ``decoder_{D}.outer.swish``]."""

    def forward(self, features: Float[Tensor, "B K N N"]) -> Float[Tensor, "B K N N"]:
        """Activate the border; both decoders use swish here."""
        return nn.functional.silu(features)


class HeadActivation(Stage):
    """Activation of a decoder's head: π·tanh for the phase, one of four functions for the amplitude.

    [clauses ``decoder_{D}.activation`` and, without ``pad_object``, ``decoder_{D}.output``]
    """

    def __init__(self, kind: AmplitudeActivation | None) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
        """Apply the activation; phases come out in radians."""
        match self.kind:
            case None:
                return math.pi * features.tanh()
            case "sigmoid":
                return features.sigmoid()
            case "swish":
                return nn.functional.silu(features)
            case "softplus":
                # torch's own softplus turns linear above a threshold; the equation does not.
                return torch.logaddexp(features, features.new_zeros(()))
            case "relu":
                return features.relu()


def head_bias(kind: AmplitudeActivation, amplitude: float) -> float:
    """Return the x at which an activation of the amplitude is ``amplitude``, above 0 and below 1.

    >>> head_bias("sigmoid", 0.5), round(head_bias("swish", 0.8), 4)
    (0.0, 1.0735)
    """
    match kind:
        case "sigmoid":
            return math.log(amplitude / (1 - amplitude))
        case "softplus":
            return math.log(math.expm1(amplitude))
        case "relu":
            return amplitude
        case "swish":
            import scipy.optimize

            return float(scipy.optimize.brentq(lambda x: x / (1 + math.exp(-x)) - amplitude, 0, 2))


class DecoderOutput(Stage):
    """The activated centre, zero-padded to N × N, plus the border of the outer path.

    output = pad(activation) + border_mask · swish    [clause ``decoder_{D}.output``]
    """

    border: Tensor

    def __init__(self, N: int) -> None:
        super().__init__()
        self.margin = N // 4
        self.register_buffer("border", 1 - helper.central_mask(N, dtype=torch.float64), persistent=False)

    def forward(
        self, activated: Float[Tensor, "B K H H"], outer: Float[Tensor, "B K N N"] | None = None
    ) -> Float[Tensor, "B K N N"]:
        """Join centre and border."""
        padded = nn.functional.pad(activated, (self.margin,) * 4)
        return padded if outer is None else padded + self.border * outer


class CombinePatches(Stage):
    """patches = amp · exp(i·phase)    [clause ``patches``]."""

    def forward(self, amplitude: Float[Tensor, "B A N N"], phase_rad: Float[Tensor, "B K N N"]) -> Patches:
        """Form complex patches; one amplitude channel serves all phases of a group."""
        # Not torch.polar: its derivative expects an amplitude above zero, and swish goes below.
        return torch.complex(amplitude * phase_rad.cos(), amplitude * phase_rad.sin())


class MergePatches(Stage):
    """One canvas per group    [clause ``merged``]."""

    def __init__(self, canvas_px: int, object_big: bool) -> None:
        super().__init__()
        self.canvas_px = canvas_px
        self.object_big = object_big

    def forward(self, patches: Patches, offsets_px: OffsetsPx) -> Canvas:
        """Merge C patches, or pad the single one."""
        if self.object_big:
            return helper.merge_patches(patches, offsets_px, self.canvas_px)
        return helper.pad_to_canvas(patches, self.canvas_px)


class TrimObject(Stage):
    """object = central N × N of merged    [clause ``object``]."""

    def __init__(self, N: int) -> None:
        super().__init__()
        self.N = N

    def forward(self, canvas: Canvas) -> Complex[Tensor, "B 1 N N"]:
        """Return the part of the canvas that reconstructions use."""
        return helper.trim_canvas(canvas, self.N)


class ExtractViews(Stage):
    """views = central N × N of T(merged, +o_c)    [clause ``views``]."""

    def __init__(self, N: int) -> None:
        super().__init__()
        self.N = N

    def forward(self, canvas: Canvas, offsets_px: OffsetsPx) -> GroupViews:
        """Return what each probe position sees."""
        return helper.extract_views(canvas, offsets_px, self.N)


class Illuminate(Stage):
    """exit_wave = views · probe, blurred and masked as configured    [clause ``exit_wave``]."""

    disk: Tensor | None

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.smoothing_sigma = settings.gaussian_smoothing_sigma
        self.register_buffer("disk", disk_mask(settings.N) if settings.probe_mask else None, persistent=False)

    def forward(self, views: GroupViews, probe: Complex[Tensor, "*group M N N"]) -> ExitWave:
        """Light the object with every probe mode."""
        return helper.illuminate(views, probe, smoothing_sigma=self.smoothing_sigma, disk=self.disk)


class Diffract(Stage):
    """amplitude = sqrt(fftshift(Σ_m |FFT2(exit_wave_m)|² / N²))    [clause ``amplitude``]."""

    def forward(self, exit_wave: ExitWave) -> GroupAmplitude:
        """Propagate to the detector."""
        return helper.diffract(exit_wave)


class ScaleAmplitude(Stage):
    """predicted_amplitude = exp(log_scale) · amplitude    [clause ``predicted_amplitude``]."""

    def forward(self, amplitude: GroupAmplitude, log_scale: Float[Tensor, ""]) -> GroupAmplitude:
        """Return √counts."""
        return amplitude * log_scale.exp()


class Intensity(Stage):
    """predicted_intensity = predicted_amplitude²    [clause ``predicted_intensity``]."""

    def forward(self, predicted_amplitude: GroupAmplitude) -> GroupAmplitude:
        """Return counts."""
        return predicted_amplitude.square()


def _encoder(settings: NetworkSettings, generator: torch.Generator | None) -> nn.Sequential:
    blocks = []
    channels = settings.C
    for width in settings.encoder_widths:
        block = nn.Sequential()
        block.add_module("conv1", Convolution(channels, width, relu=True, generator=generator))
        block.add_module("conv2", Convolution(width, width, relu=True, generator=generator))
        block.add_module("pool", Pool())
        blocks.append(block)
        channels = width
    return nn.Sequential(*blocks)


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _convolve_doubled(up: nn.Module, features: Tensor, *convolutions: nn.Module) -> list[Tensor]:
    """Return convolution(up(features)) of each convolution; without a hook on ``up``, straight from the features."""
    if _is_hooked(up):
        features = up(features)
        return [convolution(features) for convolution in convolutions]
    return [convolution(features, doubled=True) for convolution in convolutions]


class Decoder(nn.Module):
    """From the encoder's features to amplitude or phase patches (docs/reference_model.md §2).

    Args:
        settings: the network's settings.
        head_channels: K, output channels.
        activation: kind of amplitude activation, None for the phase.
        generator: source of the initial kernels.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        head_channels: int,
        activation: AmplitudeActivation | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        channels = settings.encoder_widths[-1]
        self.depth = len(settings.decoder_widths)
        for index, width in enumerate(settings.decoder_widths):
            block = nn.Sequential()
            block.add_module("conv1", Convolution(channels, width, relu=True, generator=generator))
            block.add_module("conv2", Convolution(width, width, relu=True, generator=generator))
            block.add_module("up", Upsample())
            self.add_module(str(index), block)
            channels = width
        self.pad_object = settings.pad_object
        self.has_outer_path = settings.has_outer_path
        if settings.pad_object:
            self.central = Convolution(channels - OUTER_CHANNELS, head_channels, relu=False, generator=generator)
            self.activation = HeadActivation(activation)
        if settings.has_outer_path:
            self.outer = self._outer_path(settings, channels, head_channels, generator)
        self.output = DecoderOutput(settings.N) if settings.pad_object else HeadActivation(activation)

    @property
    def head(self) -> Convolution:
        """The convolution before the activation."""
        return self.central if self.pad_object else self.outer.get_submodule("head")  # type: ignore[return-value]

    @staticmethod
    def _outer_path(
        settings: NetworkSettings, channels: int, head_channels: int, generator: torch.Generator | None
    ) -> nn.Sequential:
        read = OUTER_CHANNELS if settings.pad_object else channels
        width = settings.outer_width
        outer = nn.Sequential()
        outer.add_module(
            "conv1", Convolution(read, width, relu=True, first_channel=channels - read, generator=generator)
        )
        outer.add_module("conv2", Convolution(width, width, relu=True, generator=generator))
        outer.add_module("up", Upsample())
        outer.add_module("head", Convolution(width, head_channels, relu=False, generator=generator))
        if settings.pad_object:
            outer.add_module("swish", Swish())
        return outer

    def forward(self, features: Float[Tensor, "B F H W"]) -> Float[Tensor, "B K N N"]:
        """Decode to N × N patches."""
        up: nn.Module | None = None
        for index in range(self.depth):
            first, second, following = self.get_submodule(str(index)).children()
            # The first block reads the encoder's features as they are, each other one what is doubled before it.
            features = first(features) if up is None else _convolve_doubled(up, features, first)[0]
            features, up = second(features), following
        assert up is not None
        if not self.has_outer_path:
            (centre,) = _convolve_doubled(up, features, self.central)
            return self.output(self.activation(centre))  # type: ignore[no-any-return]
        outer = self.outer.get_submodule
        if not self.pad_object:
            (start,) = _convolve_doubled(up, features, outer("conv1"))
            return self.output(self._finish_outer(start))  # type: ignore[no-any-return]
        centre, start = _convolve_doubled(up, features, self.central, outer("conv1"))
        border = outer("swish")(self._finish_outer(start))
        return self.output(self.activation(centre), border)  # type: ignore[no-any-return]

    def _finish_outer(self, start: Tensor) -> Tensor:
        """Go from the first convolution of the outer path to its head."""
        outer = self.outer.get_submodule
        (head,) = _convolve_doubled(outer("up"), outer("conv2")(start), outer("head"))
        return head


def _without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Keep a surrounding autocast away from matrix products, on devices that have one."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class Prediction(NamedTuple):
    """What the network says about a batch of groups; a tuple, which ``torch.export`` knows.

    Attributes:
        object: (B, 1, N, N) complex object of each group.
        amplitude: (B, C, N, N) predicted √counts.
        intensity: (B, C, N, N) predicted counts.
    """

    object: Tensor
    amplitude: Tensor
    intensity: Tensor


class PtychoNet(nn.Module):
    """The complete forward model: scaled amplitude in, object and predicted diffraction out.

    Weights are named as the clauses are (``encoder.0.conv1.weight``); ``log_scale`` is ln(s_I) and ``probe_parts``
    the probe modes as real and imaginary part, both frozen unless the settings say otherwise.

    Args:
        settings: graph and fixed numbers.
        probe: (N, N) or (M, N, N), used as it is; None for the normalised default probe.
        generator: source of the initial kernels; None for torch's global one.
        device: where the parameters live.
        dtype: float32 or float64.

    Raises:
        DataContractError: the probe does not have side N.

    >>> net = PtychoNet(NetworkSettings(N=64, gridsize=2, n_filters_scale=1))
    >>> net(torch.rand(3, 4, 64, 64), torch.zeros(3, 4, 1, 2)).object.shape
    torch.Size([3, 1, 64, 64])
    """

    def __init__(
        self,
        settings: NetworkSettings,
        probe: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype = {dtype}; the physics needs torch.float32 or torch.float64.")
        self.settings = settings
        self.normalized_input = NormalizedInput()
        self.encoder = _encoder(settings, generator)
        self.decoder_amp = Decoder(settings, settings.amplitude_channels, settings.amp_activation, generator)
        self.decoder_phase = Decoder(settings, settings.phase_channels, None, generator)
        self.patches = CombinePatches()
        self.merged = MergePatches(settings.canvas_px, settings.object_big)
        self.object = TrimObject(settings.N)
        self.views = ExtractViews(settings.N)
        self.exit_wave = Illuminate(settings)
        self.amplitude = Diffract()
        self.predicted_amplitude = ScaleAmplitude()
        self.predicted_intensity = Intensity()
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(settings.intensity_scale), dtype=torch.float64),
            requires_grad=settings.intensity_scale_trainable,
        )
        modes = as_modes(normalise_probe(default_probe(settings.N)) if probe is None else probe.detach())
        if modes.shape[-1] != settings.N:
            raise DataContractError(
                f"The probe has side {modes.shape[-1]} but N = {settings.N}; crop or pad the probe to N pixels."
            )
        # Real pairs: optimisers and casts treat a complex parameter in ways of their own.
        self.probe_parts = nn.Parameter(
            torch.view_as_real(modes.to(torch.complex128)).clone(), requires_grad=settings.probe_trainable
        )
        self.to(device=device, dtype=dtype)

    @property
    def probe(self) -> ProbeModes:
        """The probe modes."""
        return torch.view_as_complex(self.probe_parts)

    def stage_ids(self) -> tuple[str, ...]:
        """Return the ids of all stages of this configuration."""
        return tuple(name for name, module in self.named_modules() if isinstance(module, Stage))

    def _check(self, scaled_amplitude: Tensor, offsets_px: Tensor, probe: Tensor | None = None) -> None:
        C, N = self.settings.C, self.settings.N
        B = scaled_amplitude.shape[0] if scaled_amplitude.ndim == 4 else 0
        if B == 0 or scaled_amplitude.shape != (B, C, N, N) or offsets_px.shape != (B, C, 1, 2):
            raise DataContractError(
                f"The network (gridsize = {self.settings.gridsize}) takes amplitude (B, {C}, {N}, {N}) and offsets "
                f"(B, {C}, 1, 2), B ≥ 1; found {tuple(scaled_amplitude.shape)} and {tuple(offsets_px.shape)}."
            )
        if probe is not None:
            fits = probe.ndim in (3, 5) and probe.shape[-2:] == (N, N) and probe.shape[:-3] in ((), (B, C))
            if not (fits and probe.is_complex()):
                raise DataContractError(
                    f"A probe is complex, (M, {N}, {N}) or ({B}, {C}, M, {N}, {N}); found {tuple(probe.shape)} of "
                    f"{probe.dtype}."
                )
        for name, tensor in (("amplitude", scaled_amplitude), ("offsets", offsets_px)):
            if tensor.dtype != self.log_scale.dtype:
                raise DataContractError(
                    f"The network is in {self.log_scale.dtype} and its {name} in {tensor.dtype}; convert one of them."
                )

    def predict_patches(self, scaled_amplitude: GroupAmplitude) -> Patches:
        """Return the complex patches of each group: what only the neural part predicts."""
        features = self.encoder(self.normalized_input(scaled_amplitude, self.log_scale))
        return self.patches(self.decoder_amp(features), self.decoder_phase(features))  # type: ignore[no-any-return]

    def reconstruct(self, scaled_amplitude: GroupAmplitude, offsets_px: OffsetsPx) -> Complex[Tensor, "B 1 N N"]:
        """Return the object of each group without simulating its diffraction.

        Args:
            scaled_amplitude: s_I·X.
            offsets_px: o_c, minus the position relative to the group's mean.
        """
        self._check(scaled_amplitude, offsets_px)
        patches = self.predict_patches(scaled_amplitude)
        with _without_autocast(patches):
            return self.object(self.merged(patches, offsets_px))  # type: ignore[no-any-return]

    def forward(
        self, scaled_amplitude: GroupAmplitude, offsets_px: OffsetsPx, probe: Tensor | None = None
    ) -> Prediction:
        """Predict object and diffraction.

        Args:
            scaled_amplitude: s_I·X.
            offsets_px: o_c, minus the position relative to the group's mean.
            probe: (M, N, N), or (B, C, M, N, N) for a probe of each pattern's own; None for the network's.

        Raises:
            DataContractError: a shape that does not fit the settings.
        """
        self._check(scaled_amplitude, offsets_px, probe)
        patches = self.predict_patches(scaled_amplitude)
        with _without_autocast(patches):
            canvas = self.merged(patches, offsets_px)
            views = self.views(canvas, offsets_px)
            exit_wave = self.exit_wave(views, self.probe if probe is None else probe)
            amplitude = self.predicted_amplitude(self.amplitude(exit_wave), self.log_scale)
            return Prediction(
                object=self.object(canvas), amplitude=amplitude, intensity=self.predicted_intensity(amplitude)
            )


def __getattr__(name: str) -> Any:
    # ptychodus looks for the Lightning module here, which stands above this one.
    if name == "PtychoPINN_Lightning":
        from ptycho_torch.training.lightning_module import PtychoPINN

        return PtychoPINN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
