"""What precision float32 products really run in on a device, measured before a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from conformance.subjects.torch import float32_means_float32

_KINDS = ((1e-5, "float32"), (1.5e-3, "TensorFloat-32"), (1.0, "bfloat16 or worse"))
"""Upper relative error of each kind: float32 is near 3e-7, TensorFloat-32 near 3e-4, bfloat16 near 3e-3."""

KINDS = MappingProxyType({"float32": "float32", "tf32": "TensorFloat-32", "bfloat16": "bfloat16 or worse"})
"""What a row's products are → what they look like."""


@dataclass(frozen=True)
class Precision:
    """Relative errors of a float32 matrix product and a float32 convolution on one device."""

    device: str
    matmul: float
    convolution: float

    @property
    def kind(self) -> str:
        """Name what the worse of the two looks like."""
        worst = max(self.matmul, self.convolution)
        return next((name for limit, name in _KINDS if worst <= limit), "not a number")

    def __str__(self) -> str:
        errors = f"matmul {self.matmul:.1e}, convolution {self.convolution:.1e}"
        return f"{self.device}: products run in {self.kind} ({errors})"


def measure_precision(device: str, products: str = "float32") -> Precision:
    """Measure both products against float64 on the CPU, under the settings that comparisons use.

    Args:
        device: torch device name.
        products: what they are to run in: ``float32``, ``tf32`` or ``bfloat16``.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
        difference = found.cpu().double() - exact
        return (difference.square().mean().sqrt() / exact.square().mean().sqrt()).item()

    left, right = draw(256, 512), draw(512, 256)
    images, kernels = draw(2, 64, 32, 32), draw(64, 64, 3, 3)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=products == "bfloat16")
    with float32_means_float32(allow_tf32=products == "tf32"), autocast:
        product = left.to(device) @ right.to(device)
        convolved = torch.nn.functional.conv2d(images.to(device), kernels.to(device), padding=1)
    return Precision(
        device,
        relative(product, left.double() @ right.double()),
        relative(convolved, torch.nn.functional.conv2d(images.double(), kernels.double(), padding=1)),
    )
