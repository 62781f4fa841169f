"""Speed of the network, PyTorch beside Keras, in turn and in one run.

Patterns per second of one training step (forward, loss, backward, Adam) and of inference, object for object, for both
sides on the same batch and the same number of threads. The Keras side is this repository's reference in graph mode
(``tf.function``), as ``fit`` and ``predict`` run it; in inference it is asked for the object alone, so that TensorFlow
leaves the diffraction out as we do. Each side has a process of its own: threads of one that spin while they wait would
take cores from the other, and told to sleep they cost their own side a fifth of its speed. The bf16 rows run our
convolutions under autocast, physics and Keras in float32; how far bf16 moves the object stands beside them.

Beside each speed of ours stand the operations a second that it comes to, those of a matrix product in the same process
(the roof), and the share of the time that is not convolution, as PyTorch's profiler sees it.

    python benchmarks/network.py --page docs/performance.md

A machine that others use at the same time gives no numbers; ``--shared`` measures all the same, and says so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ptycho_tf_bridge import keras_reference
from ptycho_tf_bridge.backend import keras, tensorflow
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import to_tensorflow, weight_table
from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet
from ptycho_torch.optim import KerasAdam
from ptycho_torch.training.freed_memory import keep_freed_memory

LOSSES = LossWeights()
GOALS = {"training": 1.3, "inference": 1.5}
OTHERS_MAY_TAKE = 0.05
"""Share of all cores that other processes may take while speeds are measured."""
BEGIN, END = "<!-- measured by benchmarks/network.py -->", "<!-- end -->"
"""Lines of a page that the table stands between."""


@dataclass(frozen=True)
class Row:
    """One line of the table; speeds in patterns per second, and the ratio's median, least and largest."""

    N: int
    gridsize: int
    action: str
    precision: str
    ours_per_s: float
    keras_per_s: float
    ratio: tuple[float, float, float]
    gflop_per_s: float
    roof_gflop_per_s: float
    outside_convolutions: float
    moved: str

    def markdown(self) -> str:
        """Return the line."""
        median, least, largest = self.ratio
        return (
            f"| {self.N} | {self.gridsize} | {self.action} | {self.precision} | {self.ours_per_s:.1f} "
            f"| {self.keras_per_s:.1f} | {median:.2f} [{least:.2f} … {largest:.2f}] | {self.gflop_per_s:.0f} "
            f"| {self.roof_gflop_per_s:.0f} | {self.gflop_per_s / self.roof_gflop_per_s:.0%} "
            f"| {self.outside_convolutions:.0%} | {self.moved} |"
        )


HEADING = (
    "| N | g | what | ours | ours/s | Keras/s | ratio | GFLOP/s | roof | share | not convolution | object moved |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def page_with(page: str, measured: dict[str, Any]) -> str:
    """Return a page with the table of what was measured between its two lines.

    Args:
        page: that has both lines.
        measured: what ``--json`` writes.
    """
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r} that the table could stand between")
    rows = [Row(**{**row, "ratio": tuple(row["ratio"])}).markdown() for row in measured["rows"]]
    return "\n".join([f"{before}{BEGIN}", measured["where"], "", HEADING, *rows, f"{END}{after}"])


def share_of_others(seconds: float = 2.0, clock: Path = Path("/proc/stat")) -> float:
    """Return the share of all cores that is in use while this process sleeps; NaN where the system does not say."""

    def read() -> tuple[int, int]:
        ticks = [int(each) for each in clock.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)  # idle, all

    if not clock.exists():
        return float("nan")
    idle, all_ = read()
    time.sleep(seconds)
    idle_then, all_then = read()
    return 1 - (idle_then - idle) / max(all_then - all_, 1)


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
            return network.reconstruct(batch.amplitude, batch.offsets_px)

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
        # What is not returned is not computed.
        return keras_reference.run_stages(model, amplitude, offsets)[0]

    return {"training": lambda: step().numpy(), "inference": lambda: predict().numpy()}


def roof_gflop_per_s(side: int = 2048) -> float:
    """Return what a large float32 matrix product reaches in this process."""
    matrix = torch.rand(side, side)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - start)
    return 2 * side**3 / min(taken) / 1e9


def inside(action: Callable[[], object]) -> tuple[float, float]:
    """Return the floating-point operations of an action, and the share of its time that is not convolution."""
    with FlopCounterMode(display=False) as counter:
        action()
    with torch.profiler.profile() as profiler:
        action()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    convolutions = sum(taken for name, taken in times.items() if "convolution" in name)
    return float(counter.get_total_flops()), 1 - convolutions / sum(times.values())


def serve(side: str, threads: int, channel: Connection) -> None:
    """Be one side: build networks and act as the other end of the channel says, and answer with what it asks for."""
    if side == "keras":
        tensorflow().config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow().config.threading.set_inter_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    if side == "torch":
        keep_freed_memory()  # as ``train`` and ``infer`` do
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
        elif what == "inside":
            name, action = details
            channel.send(inside(actions[name][action]))
        elif what == "roof":
            channel.send(roof_gflop_per_s())
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


def measure(ours: Side, theirs: Side, settings: NetworkSettings, groups: int, repeat: int) -> list[Row]:
    """Return the rows of one network: each action timed ``repeat`` times, in turn; two untimed turns come first."""
    patterns = groups * settings.C
    objects = ours.ask("build", settings, groups) | theirs.ask("build", settings, groups)
    objects["keras"] = LAYOUTS["channels"].to_torch(objects["keras"])
    assert objects["keras"].shape == objects["float32"].shape, "the two sides do not predict the same"
    moved = {
        "float32": f"from Keras {relative(objects['float32'], objects['keras']):.1e}",
        "bf16": f"from float32 {relative(objects['bf16'], objects['float32']):.1e}",
    }
    rows = []
    for what in GOALS:
        times: dict[str, list[float]] = {"float32": [], "bf16": [], "keras": []}
        for turn in range(-2, repeat):
            for name, taken in times.items():
                seconds = (theirs if name == "keras" else ours).ask("act", name, what)
                if turn >= 0:
                    taken.append(seconds)
        for name in ("float32", "bf16"):
            ratios = [keras / torch for keras, torch in zip(times["keras"], times[name], strict=True)]
            speed, speed_keras = (patterns / statistics.median(times[side]) for side in (name, "keras"))
            operations, outside = ours.ask("inside", name, what)
            rows.append(
                Row(
                    settings.N,
                    settings.gridsize,
                    what,
                    name,
                    speed,
                    speed_keras,
                    (statistics.median(ratios), min(ratios), max(ratios)),
                    operations * speed / patterns / 1e9,
                    ours.ask("roof"),
                    outside,
                    moved[name],
                )
            )
            print(rows[-1].markdown(), flush=True)
    return rows


def main() -> int:
    """Measure every network; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128], help="N, patch sides (default 64 128)")
    parser.add_argument("--gridsizes", type=int, nargs="+", default=[1, 2], help="g (default 1 2)")
    parser.add_argument("--groups", type=int, default=8, help="groups in a batch (default 8; groups · g² below 64)")
    parser.add_argument("--filters", type=int, default=2, help="n_filters_scale (default 2)")
    parser.add_argument("--repeat", type=int, default=15, help="turns (default 15)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (default all cores)")
    parser.add_argument("--shared", action="store_true", help="measure though other processes use the machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the table into this page")
    options = parser.parse_args()
    if options.groups * max(options.gridsizes) ** 2 >= keras_reference.MAX_PATCHES_PER_CALL:
        parser.error("the reference takes fewer than 64 patches in a batch; lower --groups (REF-01)")
    others = share_of_others()
    if not options.shared and not others <= OTHERS_MAY_TAKE:
        parser.error(
            f"other processes take {others:.0%} of the cores, more than {OTHERS_MAY_TAKE:.0%}, so no ratio would hold; "
            "stop them, or pass --shared for numbers that only tell"
        )
    ours, theirs = Side.start("torch", options.threads), Side.start("keras", options.threads)
    where = (
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}, "
        f"keras {importlib.metadata.version('keras')}; batches of {options.groups} groups, "
        f"n_filters_scale {options.filters}; other processes took {others:.0%} of the cores."
    )
    print(f"{where}\n\n{HEADING}")
    rows = [
        row
        for N in options.sides
        for gridsize in options.gridsizes
        for row in measure(
            ours,
            theirs,
            NetworkSettings(N=N, gridsize=gridsize, n_filters_scale=options.filters),
            options.groups,
            options.repeat,
        )
    ]
    for side in (ours, theirs):
        side.channel.send(None)
    measured = {"where": where, "rows": [asdict(row) for row in rows]}
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        options.page.write_text(page_with(options.page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    missed = [row for row in rows if row.ratio[0] < GOALS[row.action]]
    for row in missed:
        print(f"missed: N = {row.N}, g = {row.gridsize}, {row.action}, {row.precision}: goal ≥ {GOALS[row.action]}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
