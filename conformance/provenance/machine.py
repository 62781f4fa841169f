"""Where a number was measured: versions, device and driver."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

_DISTRIBUTIONS = ("ptycho-torch", "torch", "numpy", "tensorflow-cpu", "tensorflow", "keras")
_CPU = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/version")


_FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
_FLAGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
    *("TF_DETERMINISTIC_OPS", "XLA_FLAGS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that change what libraries compute. No others are kept: a variable may hold a secret."""


def environment() -> dict[str, str]:
    """Return what a verdict may depend on beside versions: threads, CPU features, flags that are set."""
    import torch

    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(_CPU), flags=re.MULTILINE)
    features = set(found[1].split()) if found else set()
    return {
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "CPU features": " ".join(each for each in _FEATURES if each in features),
        "CPU capability of torch": torch.backends.cpu.get_cpu_capability(),
        "float32 products of torch": torch.get_float32_matmul_precision(),
        "deterministic torch": str(torch.are_deterministic_algorithms_enabled()),
        **{name: os.environ[name] for name in _FLAGS if name in os.environ},
    }


def versions() -> dict[str, str | None]:
    """Return the versions that a verdict depends on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: str) -> str:
    """Return what a torch device is called by its maker, as far as the system says so."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    found = re.search(r"^model name\s*:\s*(.+)$", _read(_CPU), flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def driver(device: str) -> str | None:
    """Return the driver of a CUDA device with the CUDA that torch was built for; None for other devices."""
    if not device.startswith("cuda"):
        return None
    import torch

    found = re.search(r"Kernel Module\D*([\d.]+)", _read(_NVIDIA))
    return f"NVIDIA {found[1] if found else 'of unknown version'}, CUDA {torch.version.cuda}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
