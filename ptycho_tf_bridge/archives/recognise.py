"""Which network do weights belong to? Found from their shapes, and checked against what was saved beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import Shape, WeightEntry, weight_table
from ptycho_torch.config_params import PATCH_SIDES_PX, NetworkSettings

_KERNEL_AXES = 4


@dataclasses.dataclass(frozen=True)
class FoundNetwork:
    """What the shapes of weights say.

    Attributes:
        settings: a network with these weights; what no weight shows has its default.
        decided: the fields that the weights decide, with their values.
    """

    settings: NetworkSettings
    decided: Mapping[str, Any]


def find_network(kernels: Sequence[Shape], where: str) -> FoundNetwork:
    """Return the one network whose weight table has these kernels, in this order.

    The first kernel tells C and the width, the number and the widths of the others tell N, ``pad_object`` and
    ``probe_big``, the heads ``object_big`` and whether one amplitude channel serves a group.

    Args:
        kernels: shapes (3, 3, in, out) in the order of the weight table.
        where: file and member, for errors.

    Raises:
        ArchiveError: no network of the reference has these weights; it names the first that does not fit.
    """
    kernels = [tuple(shape) for shape in kernels]
    if len(kernels) < 2 or any(len(shape) != _KERNEL_AXES for shape in kernels):
        shapes = ", ".join(map(str, kernels[:3]))
        raise ArchiveError(
            f"{where}: {len(kernels)} kernels ({shapes} …); expected 3 × 3 convolutions, (3, 3, in, out)."
        )
    near: tuple[int, str] = (0, "")
    for settings in _candidates(kernels):
        table = weight_table(settings)
        fitting = next((k for k, (a, b) in enumerate(zip(table, kernels, strict=False)) if a.kernel_shape != b), None)
        if fitting is None and len(table) == len(kernels):
            return FoundNetwork(settings, _decided(settings))
        if fitting is None:
            fitting = min(len(table), len(kernels))
        near = max(near, (fitting, _misfit(settings, table, kernels, fitting)), key=lambda each: each[0])
    raise ArchiveError(f"{where}: no network of the reference has these weights; {near[1] or _unknown(kernels)}")


def _candidates(kernels: Sequence[Shape]) -> Iterator[NetworkSettings]:
    """Yield every network whose first kernel and heads are these."""
    channels, width = kernels[0][2:]
    gridsize = math.isqrt(channels)
    if gridsize < 1 or gridsize**2 != channels:
        return
    # The last two are a head of the amplitude and one of the phase in every network.
    amplitude, phase = kernels[-2][3], kernels[-1][3]
    object_big = phase == channels
    for N in PATCH_SIDES_PX:
        base = NetworkSettings(N=N, n_filters_scale=1).encoder_widths[0]
        if width < base or width % base:
            continue
        for pad_object, probe_big in ((True, True), (True, False), (False, True)):
            yield NetworkSettings(
                N=N,
                gridsize=gridsize,
                n_filters_scale=width // base,
                pad_object=pad_object,
                probe_big=probe_big,
                object_big=object_big,
                shared_amplitude_head=object_big and amplitude == 1 < channels,
            )


def _decided(settings: NetworkSettings) -> dict[str, Any]:
    names = ["N", "gridsize", "n_filters_scale", "pad_object", "shared_amplitude_head"]
    # Without padding the outer path is there in any case, and a single patch a group is one either way.
    names += ["probe_big"] if settings.pad_object else []
    names += ["object_big"] if settings.C > 1 else []
    return {name: getattr(settings, name) for name in names}


def _misfit(settings: NetworkSettings, table: Sequence[WeightEntry], kernels: Sequence[Shape], index: int) -> str:
    """Say how the nearest network differs."""
    network = (
        f"nearest is N = {settings.N}, gridsize = {settings.gridsize}, n_filters_scale = {settings.n_filters_scale}"
    )
    if index >= min(len(table), len(kernels)):
        return f"{network} with {len(table)} convolutions, found {len(kernels)}."
    entry = table[index]
    text = f"{network}, whose {entry.stage} has a kernel {entry.kernel_shape}, found {kernels[index]}."
    old_width = 32 * settings.n_filters_scale
    if ".outer.conv1" in entry.stage and kernels[index][3] == old_width != settings.outer_width:
        text += (
            f" An outer path of {old_width} channels is that of archives from before 2024-07-16, whose border was not "
            "masked either; no network here does that. Train anew."
        )
    return text


def _unknown(kernels: Sequence[Shape]) -> str:
    return (
        f"the first kernel is {kernels[0]}, and expected is (3, 3, g², w) with w a multiple of 8, 16 or 32. It may be "
        "another architecture of the reference (fno, ffno, …), which this project does not have."
    )
