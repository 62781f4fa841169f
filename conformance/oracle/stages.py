"""The stages of the network, each an equation and its vector-Jacobian product, in float64 NumPy.

Channels last. Cotangents of complex values are ∂L/∂Re + i·∂L/∂Im, so that of a·z is g ↦ conj(a)·g.
Shapes: B groups, C patches a group, N patch size, P canvas size, M probe modes, K channels of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm

from conformance.oracle import operations

Arrays = Sequence[np.ndarray]
Piece = np.ndarray | None
Function = Callable[[np.ndarray], np.ndarray]
COVER_FLOOR = 1e-3
"""Added to the number of patches that cover a pixel of the canvas."""


@dataclass(frozen=True)
class Constants:
    """What the network is given beside its input, in float64 and complex128.

    Attributes:
        weights: ``STAGE.kernel`` (3, 3, in, out) and ``STAGE.bias`` (out,).
        offsets_px: (B, 1, 2, C), o_c as (x, y) on axis 2.
        probe: (M, N, N) complex modes.
        log_scale: ln of the intensity scale.
    """

    weights: Mapping[str, np.ndarray]
    offsets_px: np.ndarray
    probe: np.ndarray
    log_scale: float

    @classmethod
    def of(
        cls,
        weights: Mapping[str, np.ndarray],
        offsets_px: np.ndarray,
        probe: np.ndarray,
        intensity_scale: float,
    ) -> Constants:
        """Cast everything once; a probe of shape (N, N) is one mode."""
        modes = np.asarray(probe, dtype=np.complex128)
        return cls(
            weights={name: np.asarray(array, dtype=np.float64) for name, array in weights.items()},
            offsets_px=np.asarray(offsets_px, dtype=np.float64),
            probe=modes.reshape(-1, *modes.shape[-2:]),
            log_scale=float(np.log(np.float64(intensity_scale))),
        )


@dataclass(frozen=True)
class Pullback:
    """The cotangent of one stage, pulled back.

    Attributes:
        inputs: one cotangent for each input of the stage, in order.
        constants: by weight name, and by ``probe`` (M, N, N) or ``log_scale`` () where the stage uses them.
    """

    inputs: tuple[np.ndarray, ...]
    constants: dict[str, np.ndarray]


def rms(array: np.ndarray) -> float:
    """Return the root of the mean squared modulus."""
    return float(np.sqrt(np.mean(np.abs(array) ** 2)))


def _relative(distances: np.ndarray, scale: np.ndarray) -> float:
    """Return the largest of some distances in units of the RMS of ``scale``; 0 where there is none."""
    worst = float(distances.max(initial=0.0))
    return worst / rms(scale) if worst else 0.0


@dataclass(frozen=True)
class Stage(ABC):
    """One stage: an equation from its inputs, and its reverse. Smooth unless it says otherwise.

    Attributes:
        size: rows, and columns, of the output.
        channels: channels of the output; of the flat stages, the patches folded into the batch.
    """

    size: int
    channels: int

    @property
    def piecewise(self) -> bool:
        """Whether the stage is made of linear pieces between which its derivative jumps."""
        return False

    def shape(self, batch: int, modes: int = 1) -> tuple[int, ...]:
        """Return the shape of the output."""
        return batch, self.size, self.size, self.channels

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights by name."""
        return {}

    def evaluate(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        """Return the output."""
        return self._value([operations.wide(array) for array in inputs], constants)

    def branch(self, inputs: Arrays, output: np.ndarray) -> np.ndarray | None:
        """Return the linear piece that gave this output, compared in its dtype; None for a smooth stage.

        ReLU: bool, output > 0. Pool: int8, row-major index 0 … 3 of the first largest of each window of the input.
        """
        return self._branch(inputs, output) if self.piecewise else None

    def margin(self, inputs: Arrays, branch: np.ndarray, constants: Constants) -> float:
        """Return how far the worst element of ``branch`` is on the wrong side; 0 for a smooth stage.

        ReLU: largest |z| where the branch disagrees with the sign of the pre-activation z, over RMS(z). Pool:
        largest (window maximum − chosen element), over RMS(input).
        """
        if not self.piecewise:
            return 0.0
        return self._margin([operations.wide(array) for array in inputs], branch, constants)

    def distances(self, inputs: Arrays, constants: Constants) -> np.ndarray | None:
        """Return how far every element is from its kink, in units of the RMS; None for a stage without a ReLU."""
        before = self._before_relu([operations.wide(array) for array in inputs], constants) if self.piecewise else None
        return None if before is None else np.abs(before) / rms(before)

    def pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece = None) -> Pullback:
        """Pull the cotangent of the output back to inputs, weights, probe and log_scale.

        That is on the linear piece ``branch``; where it is None, on the stage's own at ``inputs``.
        """
        inputs = [operations.wide(array) for array in inputs]
        if branch is None and self.piecewise:
            branch = self._branch(inputs, self._value(inputs, constants))
        return self._pullback(inputs, operations.wide(cotangent), constants, branch)

    @abstractmethod
    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        """Return the output."""

    @abstractmethod
    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        """Pull the cotangent back; ``branch`` is None for a smooth stage and only for one."""

    def _before_relu(self, inputs: Arrays, constants: Constants) -> np.ndarray | None:
        return None

    def _branch(self, inputs: Arrays, output: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} is smooth")

    def _margin(self, inputs: Arrays, branch: np.ndarray, constants: Constants) -> float:
        raise NotImplementedError(f"{type(self).__name__} is smooth")


def _relu_margin(values: np.ndarray, branch: np.ndarray) -> float:
    return _relative(np.abs(values[branch != (values > 0)]), values)


def _columns(images: np.ndarray) -> np.ndarray:
    """Return the 3 × 3 neighbourhood of every pixel of (B, H, W, K) images, zero outside: (B·H·W, 9·K)."""
    B, H, W, K = images.shape
    padded = np.zeros((B, H + 2, W + 2, K))
    padded[:, 1:-1, 1:-1] = images
    lines = padded.reshape(B, H + 2, (W + 2) * K)
    triples = np.lib.stride_tricks.sliding_window_view(lines, 3 * K, axis=2)[:, :, ::K]  # (B, H + 2, W, 3·K)
    columns = np.empty((B, H, W, 3, 3 * K))
    for j in range(3):
        columns[:, :, :, j] = triples[:, j : j + H]
    return columns.reshape(B * H * W, 9 * K)


def correlate(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return Σ_{j,i,k} images(y + j − 1, x + i − 1, k) · kernel(j, i, k, o), (B, H, W, out)."""
    B, H, W, K = images.shape
    out = kernel.shape[-1]
    padded = np.zeros((B, H + 2, W + 2, K))
    padded[:, 1:-1, 1:-1] = images
    pixels = padded.reshape(-1, K)
    sums = np.zeros((len(pixels), out))
    last = len(pixels) - 2 * (W + 3)
    # Each neighbour of all pixels is one stretch of the padded ones, so nothing is copied. Sums at the right and lower
    # border run into the next line, and are left out.
    for j, i in np.ndindex(3, 3):
        start = j * (W + 2) + i
        neighbours = pixels[start : start + last]
        dgemm(1.0, kernel[j, i].T, neighbours.T, beta=1.0, c=sums[:last].T, overwrite_c=True)
    return np.ascontiguousarray(sums.reshape(B, H + 2, W + 2, out)[:, :H, :W])


def correlate_adjoints(images: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the transposes of ``correlate`` in its images, (B, H, W, K), and in its kernel, (3, 3, K, out).

    In the images it is a correlation with the kernel turned by 180°, in and out exchanged; in the kernel, the product
    of every pixel with the cotangent's neighbourhood, turned likewise.
    """
    K, out = images.shape[-1], cotangent.shape[-1]
    columns = _columns(cotangent)
    turned = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, K)
    by_kernel = (images.reshape(-1, K).T @ columns).reshape(K, 3, 3, out)[:, ::-1, ::-1]
    return np.asarray(columns @ turned).reshape(images.shape), by_kernel.transpose(1, 2, 0, 3)


@dataclass(frozen=True)
class Convolution(Stage):
    """``z = correlate(h, kernel) + bias``, or relu(z); h is a slice of the input's channels.

    Attributes:
        name: the stage id, by which the weights are called.
        taken: channels of h.
        used: which of the input's channels those are.
        relu: whether the ReLU follows.
    """

    name: str
    taken: int
    used: slice
    relu: bool

    @property
    def piecewise(self) -> bool:
        """Whether there is a ReLU."""
        return self.relu

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of kernel and bias."""
        return {
            f"{self.name}.kernel": (3, 3, self.taken, self.channels),
            f"{self.name}.bias": (self.channels,),
        }

    def _linear(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        kernel, bias = constants.weights[f"{self.name}.kernel"], constants.weights[f"{self.name}.bias"]
        values = correlate(inputs[0][..., self.used], kernel)
        values += bias
        return values

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        values = self._linear(inputs, constants)
        return np.maximum(values, 0, out=values) if self.relu else values

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        images = inputs[0]
        passed = cotangent if branch is None else cotangent * branch
        pulled = np.zeros_like(images)
        kernel = constants.weights[f"{self.name}.kernel"]
        pulled[..., self.used], by_kernel = correlate_adjoints(images[..., self.used], kernel, passed)
        weights = {f"{self.name}.kernel": by_kernel, f"{self.name}.bias": passed.sum(axis=(0, 1, 2))}
        return Pullback((pulled,), weights)

    def _branch(self, inputs: Arrays, output: np.ndarray) -> np.ndarray:
        return output > 0

    def _before_relu(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return self._linear(inputs, constants)

    def _margin(self, inputs: Arrays, branch: np.ndarray, constants: Constants) -> float:
        return _relu_margin(self._linear(inputs, constants), branch)


@dataclass(frozen=True)
class Pool(Stage):
    """Largest of each 2 × 2 window; its branch is the row-major index of the first largest."""

    @property
    def piecewise(self) -> bool:
        """Always."""
        return True

    @staticmethod
    def _windows(images: np.ndarray) -> np.ndarray:
        """(B, 2n, 2n, K) → (4, B, n, n, K), a copy."""
        return np.stack([images[:, j::2, i::2] for j in (0, 1) for i in (0, 1)])

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return np.asarray(self._windows(inputs[0]).max(axis=0))

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        pulled = np.empty(inputs[0].shape)
        for index in range(4):
            pulled[:, index // 2 :: 2, index % 2 :: 2] = np.where(branch == index, cotangent, 0)
        return Pullback((pulled,), {})

    def _branch(self, inputs: Arrays, output: np.ndarray) -> np.ndarray:
        return np.asarray(self._windows(inputs[0]).argmax(axis=0).astype(np.int8))

    def _margin(self, inputs: Arrays, branch: np.ndarray, constants: Constants) -> float:
        windows = self._windows(inputs[0])
        chosen = np.take_along_axis(windows, branch[None].astype(np.intp), axis=0)[0]
        return _relative(windows.max(axis=0) - chosen, inputs[0])


@dataclass(frozen=True)
class Upsample(Stage):
    """Every pixel repeated 2 × 2."""

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return inputs[0].repeat(2, axis=1).repeat(2, axis=2)

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        B, H, W, K = inputs[0].shape
        return Pullback((cotangent.reshape(B, H, 2, W, 2, K).sum(axis=(2, 4)),), {})


def _sigmoid(values: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1, tail) / (1 + tail))


def _swish_slope(values: np.ndarray) -> np.ndarray:
    gate = _sigmoid(values)
    return np.asarray(gate * (1 + values * (1 - gate)))


def _sigmoid_slope(values: np.ndarray) -> np.ndarray:
    return np.asarray(_sigmoid(values) * _sigmoid(-values))


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "pi_tanh": (lambda z: np.pi * np.tanh(z), lambda z: np.pi * (1 - np.tanh(z) ** 2)),
    "sigmoid": (_sigmoid, _sigmoid_slope),
    "swish": (lambda z: z * _sigmoid(z), _swish_slope),
    "softplus": (lambda z: np.logaddexp(0, z), _sigmoid),
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.asarray(z > 0, dtype=np.float64)),
}
"""Name → function and derivative."""


@dataclass(frozen=True)
class Activation(Stage):
    """One function of every element."""

    kind: str

    @property
    def piecewise(self) -> bool:
        """Whether it is the ReLU."""
        return self.kind == "relu"

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return ACTIVATIONS[self.kind][0](inputs[0])

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        slope = ACTIVATIONS[self.kind][1](inputs[0]) if branch is None else branch
        return Pullback((cotangent * slope,), {})

    def _branch(self, inputs: Arrays, output: np.ndarray) -> np.ndarray:
        return output > 0

    def _before_relu(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return inputs[0]

    def _margin(self, inputs: Arrays, branch: np.ndarray, constants: Constants) -> float:
        return _relu_margin(inputs[0], branch)


@dataclass(frozen=True)
class PaddedOutput(Stage):
    """The central activation padded to N × N, plus the outer path, if there is one, outside the centre."""

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        inner, *outer = inputs
        quarter = self.size // 4
        output = self._border() * outer[0] if outer else np.zeros(self.shape(len(inner), 1))
        output[:, quarter:-quarter, quarter:-quarter] += inner
        return output

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        quarter = self.size // 4
        inner = cotangent[:, quarter:-quarter, quarter:-quarter].copy()
        return Pullback((inner, *(self._border() * cotangent for _ in inputs[1:])), {})

    def _border(self) -> np.ndarray:
        return (1 - operations.central_square(self.size))[:, :, None]


@dataclass(frozen=True)
class Patches(Stage):
    """``amplitude · exp(i · phase)``; one amplitude channel serves all phases."""

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        amplitude, phase = inputs
        return np.asarray(amplitude * np.exp(1j * phase))

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        amplitude, phase = inputs
        turned = np.exp(-1j * phase) * cotangent
        by_amplitude = turned.real
        if amplitude.shape[-1] < self.channels:
            by_amplitude = by_amplitude.sum(axis=-1, keepdims=True)
        return Pullback((by_amplitude, amplitude * turned.imag), {})


def _pairs(offsets_px: np.ndarray) -> np.ndarray:
    """(B, 1, 2, C) → (B, C, 2)."""
    return offsets_px[:, 0].swapaxes(1, 2)


@dataclass(frozen=True)
class Merge(Stage):
    """``Σ_c T(patch_c, −o_c) / (Σ_c T(mask, −o_c) + 0.001)`` on the canvas, mask 1 in the central N/2 square.

    With ``object_big`` false the one patch is padded with zeros instead. ``mask_px`` is the side of another mask.
    """

    N: int
    object_big: bool
    mask_px: int | None = None

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        canvases = operations.embed(np.moveaxis(inputs[0], -1, 1), self.size)  # (B, K, P, P)
        if not self.object_big:
            return np.moveaxis(canvases, 1, -1)
        placed = operations.translate(canvases, -_pairs(constants.offsets_px))
        return np.asarray(placed.sum(axis=1) / self.cover(constants))[..., None]

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        canvases = np.moveaxis(cotangent, -1, 1)  # (B, 1, P, P)
        if self.object_big:
            B, _, _, C = inputs[0].shape
            shared = np.broadcast_to(canvases / self.cover(constants)[:, None], (B, C, self.size, self.size))
            canvases = operations.translate_adjoint(shared, -_pairs(constants.offsets_px))
        return Pullback((np.moveaxis(operations.central(canvases, self.N), 1, -1).copy(),), {})

    def cover(self, constants: Constants) -> np.ndarray:
        """Return the denominator, (B, P, P)."""
        offsets = -_pairs(constants.offsets_px)  # (B, C, 2)
        mask = operations.embed(np.ones((self.mask_px or self.N // 2,) * 2), self.size)
        masks = np.broadcast_to(mask, (*offsets.shape[:2], self.size, self.size))
        return np.asarray(operations.translate(masks, offsets).sum(axis=1) + COVER_FLOOR)


@dataclass(frozen=True)
class CentralObject(Stage):
    """The central N × N of the canvas."""

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return operations.central(inputs[0][..., 0], self.size)[..., None].copy()

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        return Pullback((operations.embed(cotangent[..., 0], inputs[0].shape[1])[..., None],), {})


@dataclass(frozen=True)
class Views(Stage):
    """``T(merged, +o_c)``, central N × N, for each c: (B, P, P, 1) → (B·C, N, N, 1)."""

    def shape(self, batch: int, modes: int = 1) -> tuple[int, ...]:
        """Return (B·C, N, N, 1)."""
        return batch * self.channels, self.size, self.size, 1

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        B, P = inputs[0].shape[:2]
        canvases = np.broadcast_to(inputs[0][:, None, ..., 0], (B, self.channels, P, P))
        moved = operations.translate(canvases, _pairs(constants.offsets_px))
        return operations.central(moved, self.size).reshape(self.shape(B, 1))

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        B, P = inputs[0].shape[:2]
        canvases = operations.embed(cotangent.reshape(B, self.channels, self.size, self.size), P)
        pulled = operations.translate_adjoint(canvases, _pairs(constants.offsets_px))
        return Pullback((pulled.sum(axis=1)[..., None],), {})


@dataclass(frozen=True)
class ExitWave(Stage):
    """``mask · smooth(view · probe_m)`` for each mode m: (B·C, N, N, 1) → (B·C, N, N, M)."""

    sigma: float
    masked: bool

    def shape(self, batch: int, modes: int = 1) -> tuple[int, ...]:
        """Return (B·C, N, N, M)."""
        return batch * self.channels, self.size, self.size, modes

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        waves = inputs[0][:, None, ..., 0] * constants.probe  # (B·C, M, N, N)
        if self.sigma > 0:
            waves = operations.smooth(waves, self.sigma)
        return np.moveaxis(waves * self._mask(), 1, -1)

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        waves = np.moveaxis(cotangent, -1, 1) * self._mask()  # (B·C, M, N, N)
        if self.sigma > 0:
            waves = operations.smooth_adjoint(waves, self.sigma)
        by_view = (constants.probe.conj() * waves).sum(axis=1)[..., None]
        by_probe = (inputs[0][:, None, ..., 0].conj() * waves).sum(axis=0)
        return Pullback((by_view,), {"probe": by_probe})

    def _mask(self) -> np.ndarray | float:
        return operations.disk_mask(self.size) if self.masked else 1.0


@dataclass(frozen=True)
class Amplitude(Stage):
    """``sqrt(Σ_m fftshift(|FFT2(ψ_m)|² / N²))``: (B·C, N, N, M) → (B, N, N, C).

    The derivative of the root at 0 is taken as 0.
    """

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        intensity = operations.diffracted_intensity(np.moveaxis(inputs[0], -1, 1)).sum(axis=1)  # (B·C, N, N)
        return np.moveaxis(np.sqrt(intensity).reshape(-1, self.channels, self.size, self.size), 1, -1)

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        fields = np.fft.fft2(np.moveaxis(inputs[0], -1, 1))  # (B·C, M, N, N)
        amplitude = np.sqrt((fields.real**2 + fields.imag**2).sum(axis=1)) / self.size
        shifted = np.moveaxis(cotangent, -1, 1).reshape(-1, self.size, self.size)
        by_amplitude = np.fft.ifftshift(shifted, axes=(-2, -1))[:, None]
        lit = np.broadcast_to(amplitude[:, None] > 0, fields.shape)
        direction = np.divide(fields, amplitude[:, None], out=np.zeros_like(fields), where=lit)
        # Transposing FFT2 is N² · IFFT2, which cancels the 1/N² of the intensity.
        waves = np.fft.ifft2(direction * by_amplitude)
        return Pullback((np.moveaxis(waves, 1, -1),), {})


@dataclass(frozen=True)
class Scale(Stage):
    """``value · exp(sign · log_scale)``."""

    sign: int

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return np.asarray(inputs[0] * np.exp(self.sign * constants.log_scale))

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        factor = np.exp(self.sign * constants.log_scale)
        by_log_scale = self.sign * factor * np.vdot(inputs[0], cotangent)
        return Pullback((cotangent * factor,), {"log_scale": np.asarray(by_log_scale)})


@dataclass(frozen=True)
class Square(Stage):
    """``value²``."""

    def _value(self, inputs: Arrays, constants: Constants) -> np.ndarray:
        return np.asarray(inputs[0] ** 2)

    def _pullback(self, inputs: Arrays, cotangent: np.ndarray, constants: Constants, branch: Piece) -> Pullback:
        return Pullback((2 * inputs[0] * cotangent,), {})
