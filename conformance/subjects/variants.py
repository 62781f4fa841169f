"""Further rows of a report: the same float32 network run as users may run it, each with a budget of its own.

The rows float32 and float64 are the network as it is: eager, its convolutions channels-last. Here it runs in the other
memory format, as one compiled graph, and with convolutions in TensorFloat-32 or bfloat16. What convolutions run in
decides a budget; what stands outside of them is float32 in every row, and fed with the truth it is held to that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from conformance.cases.case import Case, FreeRun
from conformance.judge.measure import FORWARD_FREE, GRADIENT_FREE, LOSS, Key
from conformance.subjects.candidate import CandidateSubject, Factory
from conformance.subjects.torch import (
    TorchSubject,
    doublings_of,
    float32_means_float32,
    layouts_of,
    tapped,
    to_numpy,
    weight_gradients,
)
from conformance.suite import DTYPES
from ptycho_torch.model import Convolution, Prediction, PtychoNet


@dataclass(frozen=True)
class ContiguousSubject(TorchSubject):
    """Channels-first in memory from end to end."""

    row = "float32-contiguous"

    def network(self, case: Case) -> PtychoNet:
        """Return the network of a case, whose convolutions work channels-first."""
        model = super().network(case)
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        for module in model.modules():
            if isinstance(module, Convolution):
                # Where a convolution has one channel, both formats are its own, and it hands over either.
                module.register_forward_pre_hook(_contiguous)
        return model

    def _to_device(self, array: np.ndarray, layout: str, case: Case) -> Tensor:
        return super()._to_device(array, layout, case).contiguous()


def _contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in inputs)


@dataclass(frozen=True)
class TensorFloatSubject(TorchSubject):
    """Matrix products and convolutions in TensorFloat-32."""

    row = "tf32"
    products = "tf32"


@dataclass(frozen=True)
class BrainFloatSubject(TorchSubject):
    """Under autocast to bfloat16, as ``precision: bf16-mixed`` trains."""

    row = "bf16"
    products = "bfloat16"

    def _predict(self, model: PtychoNet, scaled_amplitude: Tensor, offsets_px: Tensor) -> Prediction:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return super()._predict(model, scaled_amplitude, offsets_px)


@dataclass(frozen=True)
class CompiledSubject(TorchSubject):
    """One graph by ``torch.compile``. Its stages, losses and gradients can be seen, the cotangents inside cannot.

    Fed with the truth stage by stage it would be another graph, so it is judged running free.
    """

    row = "float32-compiled"

    def shows(self, key: Key) -> bool:
        """Whether a quantity can be seen: no cotangents, and no doublings, which are not computed."""
        clause, name = key
        return (clause in (FORWARD_FREE, GRADIENT_FREE) and not name.endswith(".up")) or key == (LOSS, "free")

    def free(self, case: Case) -> FreeRun:
        """Compile, run forward and backward."""
        outputs: dict[str, Tensor] = {}
        with float32_means_float32(), warnings.catch_warnings():
            # Inductor says of every complex operation that it leaves it to eager kernels.
            warnings.simplefilter("ignore")
            loaded = self._load(case)
            doublings = doublings_of(loaded.model)
            visible = [stage for stage in loaded.model.stage_ids() if stage not in doublings]
            with tapped(loaded.model, visible, lambda stage, _, output: outputs.__setitem__(stage, output)):
                compiled = torch.compile(loaded.model)
                total, losses = self._losses(loaded, compiled(loaded.scaled_amplitude, loaded.offsets_px), case)
                total.backward()
        torch.compiler.reset()
        layouts = layouts_of(case)
        return FreeRun(
            stages={stage: to_numpy(outputs[stage], layouts[stage]) for stage in visible},
            cotangents={},
            gradients=weight_gradients(loaded.model, case),
            losses=losses,
        )


VARIANTS: Mapping[str, Callable[[str], TorchSubject]] = MappingProxyType(
    {
        "float32-contiguous": ContiguousSubject,
        "float32-compiled": CompiledSubject,
        "bf16": BrainFloatSubject,
        "tf32": TensorFloatSubject,
    }
)
"""Row → subject of a device."""


def subject_of(device: str, row: str, factory: Factory = TorchSubject) -> CandidateSubject | TorchSubject:
    """Return the candidate of a row on a device; further rows than float32 and float64 are of our own network.

    >>> subject_of("cpu", "bf16").products
    'bfloat16'
    """
    return CandidateSubject(factory, device, row) if row in DTYPES else VARIANTS[row](device)


def unavailable(device: str, row: str) -> str:
    """Say why a row cannot run on a device; empty if it can."""
    kind = torch.device(device).type
    if row == "tf32" and (kind != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        return "TensorFloat-32 exists on CUDA devices of capability 8.0 and above only"
    if row == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported():
        return "this CUDA device has no bfloat16"
    if row == "float32-compiled":
        with contextlib.suppress(ValueError):
            if kind == "cuda" and importlib.util.find_spec("triton") is None:
                return "torch.compile needs triton for a CUDA device, which is not installed"
        if kind == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
            return "torch.compile needs a C++ compiler for the CPU; none is on the path (CXX, g++)"
    return ""
