"""Speed of the network, PyTorch beside Keras, in turn and in one run.

Patterns per second of one training step (forward, loss, backward, Adam) and of inference, for both sides on the same
batch and the same number of threads. The Keras side is this repository's reference in graph mode (``tf.function``),
as ``fit`` and ``predict`` run it. Each side has a process of its own: threads of one that spin while they wait would
take cores from the other, and told to sleep they cost their own side a fifth of its speed. The bf16 rows run our
convolutions under autocast, physics and Keras in float32; how far bf16 moves the object stands beside them.

    python benchmarks/network.py --sides 64 128 --repeat 7
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_tf_bridge import keras_reference
from ptycho_tf_bridge.backend import keras, tensorflow
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import to_tensorflow, weight_table
from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet
from ptycho_torch.optim import KerasAdam

LOSSES = LossWeights()
GOALS = {"training": 1.3, "inference": 1.5}


@dataclass(frozen=True)
class Batch:
    """One batch in PyTorch's axes."""

    amplitude: Tensor
    offsets_px: Tensor

    @staticmethod
    def draw(settings: NetworkSettings, groups: int) -> Batch:
        """Draw random amplitude and offsets."""
        C, N = settings.C, settings.N
        generator = torch.Generator().manual_seed(0)
        offsets = torch.rand(groups, C, 1, 2, generator=generator) * 8 - 4
        return Batch(
            0.1 + torch.rand(groups, C, N, N, generator=generator), offsets - offsets.mean(dim=1, keepdim=True)
        )


def torch_actions(network: PtychoNet, batch: Batch, *, bf16: bool) -> dict[str, Callable[[], object]]:
    """Make a training step and an inference of our side."""
    optimiser = KerasAdam(parameter for parameter in network.parameters() if parameter.requires_grad)

    def train() -> float:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction = network(batch.amplitude, batch.offsets_px)
            terms = total_loss(prediction.object, prediction.amplitude, prediction.intensity, batch.amplitude, LOSSES)
        terms.total.backward()
        optimiser.step()
        return terms.total.item()

    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction: Tensor = network(batch.amplitude, batch.offsets_px).object
            return prediction

    return {"training": train, "inference": infer}


def keras_actions(network: PtychoNet, batch: Batch) -> dict[str, Callable[[], object]]:
    """Make a training step and an inference of the Keras reference with the network's weights."""
    tf, settings = tensorflow(), network.settings
    model = keras_reference.build_reference(settings, network.probe.detach().numpy())
    state = {
        key: network.get_parameter(key).detach().numpy()
        for entry in weight_table(settings)
        for key in (entry.torch_kernel_name, entry.torch_bias_name)
    }
    keras_reference.set_named_weights(model, to_tensorflow(state, settings))
    amplitude = tf.constant(LAYOUTS["channels"].to_tensorflow(batch.amplitude.numpy()))
    offsets = tf.constant(LAYOUTS["offsets"].to_tensorflow(batch.offsets_px.numpy()))
    optimiser = keras_reference.adam(1e-3)
    optimiser.build(model.trainable_variables)

    # Compiling with XLA is slower on a CPU.
    @tf.function
    def step() -> object:
        with tf.GradientTape() as tape:
            outputs = keras_reference.run_stages(model, amplitude, offsets)
            total = keras_reference.losses(settings, LOSSES, outputs, amplitude)["total"]
        variables = model.trainable_variables
        optimiser.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return total

    @tf.function
    def predict() -> object:
        return keras_reference.run_stages(model, amplitude, offsets)

    return {"training": lambda: step().numpy(), "inference": lambda: predict()[0].numpy()}


def serve(side: str, threads: int, channel: Connection) -> None:
    """Be one side: build networks and act as the other end of the channel says, and answer with what it asks for."""
    if side == "keras":
        tensorflow().config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow().config.threading.set_inter_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    actions: dict[str, dict[str, Callable[[], object]]] = {}
    while (order := channel.recv()) is not None:
        what, *details = order
        if what == "build":
            settings, groups = details
            batch = Batch.draw(settings, groups)
            network = PtychoNet(settings, generator=torch.Generator().manual_seed(0))
            if side == "keras":
                keras().backend.clear_session()
                actions = {"keras": keras_actions(network, batch)}
            else:
                actions = {name: torch_actions(network, batch, bf16=name == "bf16") for name in ("float32", "bf16")}
            gc.collect()
            # Before anything is trained, both sides have the same weights.
            channel.send({name: np.asarray(own["inference"]()) for name, own in actions.items()})
        else:
            name, action = details
            start = time.perf_counter()
            actions[name][action]()
            channel.send(time.perf_counter() - start)


@dataclass(frozen=True)
class Side:
    """One side in a process of its own, where its threads and its memory are as it likes them."""

    channel: Connection

    @staticmethod
    def start(side: str, threads: int) -> Side:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(side, threads, theirs), daemon=True).start()
        return Side(ours)

    def ask(self, *order: object) -> Any:
        """Send an order; return the answer."""
        self.channel.send(order)
        return self.channel.recv()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ‖found − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def measure(ours: Side, theirs: Side, settings: NetworkSettings, groups: int, repeat: int) -> None:
    """Print the rows of one network: each action timed ``repeat`` times, in turn; two untimed turns come first."""
    patterns = groups * settings.C
    objects = ours.ask("build", settings, groups) | theirs.ask("build", settings, groups)
    objects["keras"] = LAYOUTS["channels"].to_torch(objects["keras"])
    moved = {
        "float32": f"from Keras {relative(objects['float32'], objects['keras']):.1e}",
        "bf16": f"from float32 {relative(objects['bf16'], objects['float32']):.1e}",
    }
    for what, goal in GOALS.items():
        times: dict[str, list[float]] = {"float32": [], "bf16": [], "keras": []}
        for turn in range(-2, repeat):
            for name, taken in times.items():
                seconds = (theirs if name == "keras" else ours).ask("act", name, what)
                if turn >= 0:
                    taken.append(seconds)
        for name in ("float32", "bf16"):
            ratios = [keras / torch for keras, torch in zip(times["keras"], times[name], strict=True)]
            speed, speed_keras = (patterns / statistics.median(times[side]) for side in (name, "keras"))
            ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f} … {max(ratios):.2f}]"
            print(
                f"{settings.N:>4}{settings.gridsize:>3}  {what:<10}{name:<8}{speed:>9.1f}{speed_keras:>9.1f}"
                f"   {ratio:<22}≥ {goal}   {moved[name]}",
                flush=True,
            )


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128], help="N, patch sides (default 64 128)")
    parser.add_argument("--gridsizes", type=int, nargs="+", default=[1, 2], help="g (default 1 2)")
    parser.add_argument("--groups", type=int, default=8, help="groups in a batch (default 8; groups · g² below 64)")
    parser.add_argument("--filters", type=int, default=2, help="n_filters_scale (default 2)")
    parser.add_argument("--repeat", type=int, default=7, help="turns (default 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (default all cores)")
    options = parser.parse_args()
    if options.groups * max(options.gridsizes) ** 2 >= keras_reference.MAX_PATCHES_PER_CALL:
        parser.error("the reference takes fewer than 64 patches in a batch; lower --groups (REF-01)")
    ours, theirs = Side.start("torch", options.threads), Side.start("keras", options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}, "
        f"keras {importlib.metadata.version('keras')}; batches of {options.groups} groups"
    )
    print(
        f"{'N':>4}{'g':>3}  {'what':<10}{'ours':<8}{'ours/s':>9}{'Keras/s':>9}   {'ratio':<22}{'goal':<8}object moved"
    )
    for N in options.sides:
        for gridsize in options.gridsizes:
            measure(
                ours,
                theirs,
                NetworkSettings(N=N, gridsize=gridsize, n_filters_scale=options.filters),
                options.groups,
                options.repeat,
            )
    for side in (ours, theirs):
        side.channel.send(None)


if __name__ == "__main__":
    main()
