"""Where a number was measured: versions, device and driver."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

_DISTRIBUTIONS = ("ptycho-torch", "torch", "numpy", "tensorflow-cpu", "tensorflow", "keras")
_CPU = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/version")


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
