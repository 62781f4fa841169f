"""The weight map between TensorFlow and PyTorch: one table, read in both directions."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ptycho_tf_bridge.errors import WeightMapError
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_torch.config_params import OUTER_CHANNELS, NetworkSettings

_KERNEL_PX = 3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightEntry:
    """One convolution on both sides.

    Attributes:
        stage: stage id of the convolution, from which every name is made.
        inputs: channels it reads.
        outputs: channels it writes.
    """

    stage: str
    inputs: int
    outputs: int

    kernel_layout = "kernel"
    bias_layout = "vector"

    @property
    def kernel_name(self) -> str:
        """Name of the kernel on the TensorFlow side."""
        return f"{self.stage}.kernel"

    @property
    def bias_name(self) -> str:
        """Name of the bias on the TensorFlow side."""
        return f"{self.stage}.bias"

    @property
    def torch_kernel_name(self) -> str:
        """Key of the kernel in the PyTorch state dict."""
        return f"{self.stage}.weight"

    @property
    def torch_bias_name(self) -> str:
        """Key of the bias in the PyTorch state dict."""
        return f"{self.stage}.bias"

    @property
    def kernel_shape(self) -> Shape:
        """(kh, kw, in, out)."""
        return (_KERNEL_PX, _KERNEL_PX, self.inputs, self.outputs)

    @property
    def torch_kernel_shape(self) -> Shape:
        """(out, in, kh, kw)."""
        return (self.outputs, self.inputs, _KERNEL_PX, _KERNEL_PX)

    @property
    def bias_shape(self) -> Shape:
        """(out,) on both sides."""
        return (self.outputs,)

    def arrays(self) -> tuple[tuple[str, Shape, str, str, Shape], ...]:
        """Kernel and bias, each as (TensorFlow name, shape, layout, PyTorch key, shape)."""
        return (
            (
                self.kernel_name,
                self.kernel_shape,
                self.kernel_layout,
                self.torch_kernel_name,
                self.torch_kernel_shape,
            ),
            (self.bias_name, self.bias_shape, self.bias_layout, self.torch_bias_name, self.bias_shape),
        )


@functools.lru_cache(maxsize=64)
def weight_table(settings: NetworkSettings) -> tuple[WeightEntry, ...]:
    """List the convolutions in the order of ``get_weights()`` of the reference's saved model.

    Keras orders by depth in the graph and, at equal depth, amplitude before phase: encoder, then per
    decoder block conv1 amp, conv1 phase, conv2 amp, conv2 phase; outer conv1 and conv2 likewise;
    ``outer.head`` amp, phase; ``central`` amp, phase. Each entry is a kernel followed by its bias.

    >>> [len(weight_table(NetworkSettings(N=64, pad_object=pad))) for pad in (True, False)]
    [22, 20]
    """
    return (*_encoder_entries(settings), *_block_entries(settings), *_head_entries(settings))


def _encoder_entries(settings: NetworkSettings) -> Iterator[WeightEntry]:
    inputs = settings.C
    for i, width in enumerate(settings.encoder_widths):
        yield WeightEntry(f"encoder.{i}.conv1", inputs, width)
        yield WeightEntry(f"encoder.{i}.conv2", width, width)
        inputs = width


def _pair(role: str, inputs: int, outputs: int) -> Iterator[WeightEntry]:
    for decoder in ("amp", "phase"):
        yield WeightEntry(f"decoder_{decoder}.{role}", inputs, outputs)


def _block_entries(settings: NetworkSettings) -> Iterator[WeightEntry]:
    inputs = settings.encoder_widths[-1]
    for i, width in enumerate(settings.decoder_widths):
        yield from _pair(f"{i}.conv1", inputs, width)
        yield from _pair(f"{i}.conv2", width, width)
        inputs = width


def _head_entries(settings: NetworkSettings) -> Iterator[WeightEntry]:
    last, m = settings.decoder_widths[-1], settings.outer_width
    head_channels = (("amp", settings.amplitude_channels), ("phase", settings.phase_channels))
    if settings.has_outer_path:
        yield from _pair("outer.conv1", OUTER_CHANNELS if settings.pad_object else last, m)
        yield from _pair("outer.conv2", m, m)
        for decoder, outputs in head_channels:
            yield WeightEntry(f"decoder_{decoder}.outer.head", m, outputs)
    if settings.pad_object:
        for decoder, outputs in head_channels:
            yield WeightEntry(f"decoder_{decoder}.central", last - OUTER_CHANNELS, outputs)


def tensorflow_shapes(settings: NetworkSettings) -> dict[str, Shape]:
    """Shape of every weight by its TensorFlow name, in ``get_weights()`` order."""
    return {row[0]: row[1] for entry in weight_table(settings) for row in entry.arrays()}


def torch_shapes(settings: NetworkSettings) -> dict[str, Shape]:
    """Shape of every weight by its PyTorch state-dict key, in the same order."""
    return {row[3]: row[4] for entry in weight_table(settings) for row in entry.arrays()}


def to_torch(weights: Mapping[str, np.ndarray], settings: NetworkSettings) -> dict[str, np.ndarray]:
    """Turn weights named and laid out as in TensorFlow into PyTorch's, bit for bit.

    Raises:
        WeightMapError: a weight that the settings' network does not have, or lacks, or has in another shape.
    """
    check_weights(weights, tensorflow_shapes(settings), "TensorFlow")
    return {
        torch_name: LAYOUTS[layout].to_torch(np.asarray(weights[name]))
        for entry in weight_table(settings)
        for name, _, layout, torch_name, _ in entry.arrays()
    }


def to_tensorflow(state: Mapping[str, np.ndarray], settings: NetworkSettings) -> dict[str, np.ndarray]:
    """Turn PyTorch weights, as NumPy arrays by state-dict key, into TensorFlow's; undoes ``to_torch``.

    Raises:
        WeightMapError: as ``to_torch``.
    """
    check_weights(state, torch_shapes(settings), "PyTorch")
    return {
        name: LAYOUTS[layout].to_tensorflow(np.asarray(state[torch_name]))
        for entry in weight_table(settings)
        for name, _, layout, torch_name, _ in entry.arrays()
    }


def check_weights(found: Mapping[str, np.ndarray], expected: Mapping[str, Shape], side: str) -> None:
    """Raise ``WeightMapError`` for the first weight that is unknown, missing or misshapen."""
    missing = [name for name in expected if name not in found]
    for name in found:
        if name not in expected:
            near = difflib.get_close_matches(name, missing or expected, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise WeightMapError(
                f"{side} weight {name!r} of shape {np.shape(found[name])} has no place in this network.{hint}"
            )
    if missing:
        raise WeightMapError(
            f"{side} weight {missing[0]!r} is missing: expected shape {expected[missing[0]]}, found no such "
            f"name among {len(found)} weights ({len(missing)} missing in all)."
        )
    for name, shape in expected.items():
        if np.shape(found[name]) != shape:
            raise WeightMapError(
                f"{side} weight {name!r} has shape {np.shape(found[name])}; expected {shape}. "
                "Check the axis order, and that the settings are those the weights were trained with."
            )
