"""Open exported models with several versions of Keras under its three backends, and compare what they predict.

    python benchmarks/keras_versions.py                      # prints the table of docs/migration.md

Each version of Keras is installed without its dependencies into a folder of its own, which stands in front of the
environment this runs in; JAX likewise. So TensorFlow, PyTorch, NumPy and h5py are those of the environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from ptycho_tf_bridge.archives.keras_file import write_keras
from ptycho_tf_bridge.weights import tensorflow_shapes, to_torch
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.model import PtychoNet
from ptycho_torch.reconstruction.trunk import Trunk

VERSIONS = ("3.3.3", "3.9.2", "3.12.1", "3.15.1")
BACKENDS = ("tensorflow", "torch", "jax")
JAX = ("jax", "jaxlib")

NETWORKS = {
    "g1.keras": NetworkSettings(N=64, gridsize=1, n_filters_scale=1, pad_object=False, amp_activation="softplus"),
    "g2.keras": NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=7.3),
    "shared.keras": NetworkSettings(
        N=64, gridsize=2, n_filters_scale=1, probe_big=False, shared_amplitude_head=True, amp_activation="swish"
    ),
}

SHARE = 2.0
"""How far from float64 a backend may be, in units of what TensorFlow with the environment's own Keras is."""

PREDICT = """
import sys
import keras
import numpy as np
folder = sys.argv[1]
found = {}
for name in sys.argv[3:]:
    model = keras.models.load_model(f"{folder}/{name}")
    x = np.random.default_rng(0).random((2, *model.input_shape[1:]), dtype=np.float32)
    found |= {f"{name}/{k}": output for k, output in enumerate(model.predict(x, verbose=0))}
np.savez(sys.argv[2], **found)
print(keras.__version__, keras.backend.backend())
"""


def install(folder: Path, *packages: str) -> Path:
    """Install packages without their dependencies into a folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def predict(models: Path, output: Path, backend: str, *folders: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return what the models predict, and what went wrong."""
    environment = {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-c", PREDICT, str(models), str(output), *NETWORKS]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    with np.load(output) as found:
        return dict(found), done.stdout.strip()


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the largest difference, relative to the largest value of each output."""
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)


def write_models(folder: Path) -> dict[str, np.ndarray]:
    """Write each network with random weights that keep the size of what goes through them; return what it predicts.

    The predictions are those of PyTorch in float64.
    """
    draw, true = np.random.default_rng(0), {}
    for name, network in NETWORKS.items():
        weights = {
            weight: (draw.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[:-1]), 9))).astype(np.float32)
            for weight, shape in tensorflow_shapes(network).items()
        }
        (folder / name).write_bytes(write_keras(network, weights))
        model = PtychoNet(network, dtype=torch.float64).eval()
        named = {weight: torch.from_numpy(array).double() for weight, array in to_torch(weights, network).items()}
        model.load_state_dict(model.state_dict() | named)
        x = np.random.default_rng(0).random((2, network.N, network.N, network.C), dtype=np.float32)
        with torch.inference_mode():
            outputs = Trunk(model)(torch.from_numpy(x).double().permute(0, 3, 1, 2))
        true |= {f"{name}/{k}": output.permute(0, 2, 3, 1).numpy() for k, output in enumerate(outputs)}
    return true


def main() -> int:
    """Print the table; return 1 where a model does not open or predicts something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help=f"of Keras (default {' '.join(VERSIONS)})")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        true = write_models(root)
        jax = install(root / "jax", *JAX)
        own, said = predict(root, root / "own.npz", "tensorflow")
        limit = SHARE * difference(own, true)
        print(f"from float64; limit {limit:.1e}, twice that of Keras {said}\n")
        print(f"| Keras | {' | '.join(BACKENDS)} |\n|---|{'---|' * len(BACKENDS)}")
        for version in options.versions:
            keras, cells = install(root / version, f"keras=={version}"), []
            for backend in BACKENDS:
                folders = (keras, *((jax,) if backend == "jax" else ()))
                found, said = predict(root, root / "found.npz", backend, *folders)
                worst = difference(found, true) if found else float("nan")
                failed |= not worst <= limit
                cells.append(f"{worst:.1e}" if found else said)
            print(f"| {version} | {' | '.join(cells)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
