"""The only place that imports TensorFlow and Keras, and only when asked.

>>> isinstance(is_available(), bool)
True
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

from ptycho_tf_bridge.errors import BackendMissingError

_INSTALL = 'pip install "ptycho-torch[tf]"'


def is_available() -> bool:
    """Say whether TensorFlow and Keras are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "keras"))


@functools.cache
def tensorflow() -> Any:
    """Import TensorFlow for use on the CPU.

    Every recording of the reference comes from a CPU, so a live one must run there too. TensorFlow also
    takes almost all GPU memory when it first sees a GPU, memory that the PyTorch network under test needs.
    Hence all GPUs are hidden from TensorFlow, and ``CUDA_VISIBLE_DEVICES``, which PyTorch reads too, stays.

    Raises:
        BackendMissingError: TensorFlow or Keras is not installed, or TensorFlow already holds a GPU.
    """
    if not is_available():
        raise BackendMissingError(f"The Keras reference needs TensorFlow, which is not installed; {_INSTALL}")
    # Only errors: TensorFlow otherwise announces its CPU features on every import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Keras reads its backend once, at import, from here before it looks into the user's keras.json.
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    module = importlib.import_module("tensorflow")
    try:
        if module.config.list_physical_devices("GPU"):
            module.config.set_visible_devices([], "GPU")
    except RuntimeError as err:
        raise BackendMissingError(
            "TensorFlow already holds a GPU in this process, but the reference runs on the CPU. "
            "Use the bridge before other TensorFlow code, or in a process of its own."
        ) from err
    return module


@functools.cache
def keras() -> Any:
    """Import Keras 3 on TensorFlow.

    Raises:
        BackendMissingError: as ``tensorflow``; or Keras is older than 3, or runs on another backend.
    """
    tensorflow()
    module = importlib.import_module("keras")
    if int(module.__version__.split(".")[0]) < 3:
        raise BackendMissingError(f"The reference needs Keras 3, found {module.__version__}; {_INSTALL}")
    if module.config.backend() != "tensorflow":
        raise BackendMissingError(
            f"Keras runs on {module.config.backend()!r} here; the reference needs TensorFlow. "
            "Set KERAS_BACKEND=tensorflow before Python starts."
        )
    return module
