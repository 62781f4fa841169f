"""Parity and speed on a GPU, in one run of at most eight minutes; nothing of ours has to be installed.

    python benchmarks/gpu.py --evidence conformance/evidence --page gpu.md
    python benchmarks/gpu.py --device cpu --small

Needs PyTorch, NumPy, SciPy and PyYAML. (a) Every recording in float32, TF32, bf16 and compiled, with their budgets,
and a CUDA graph beside the eager network. (b) The mistakes of the self-test, put into the network on the device.
(c) Whether a group's object depends on its batch, and a run on the run before. (d) Patterns per second of training and
inference, beside the floor that counted operations and bytes, and the two ceilings measured here, leave. (e) A profile
of the row that is furthest from its floor. What the time does not suffice for is left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]


class _AnyShape(type):
    def __getitem__(cls, shape: object) -> object:
        return Tensor


def _stand_in() -> None:
    """Let our sources be imported from here, where packages are missing that only annotate or check our own files."""
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("jaxtyping") is None:
        shapes = types.ModuleType("jaxtyping")
        shapes.__dict__.update(
            {name: _AnyShape(name, (), {}) for name in ("Bool", "Complex", "Float", "Int", "Num", "Shaped")}
        )
        sys.modules["jaxtyping"] = shapes
    if importlib.util.find_spec("jsonschema") is None:
        schema = types.ModuleType("jsonschema")
        schema.__dict__.update(
            Draft202012Validator=lambda _: types.SimpleNamespace(iter_errors=lambda content: ()),
            exceptions=types.SimpleNamespace(best_match=lambda errors: None),
        )
        sys.modules["jsonschema"] = schema


_stand_in()

from conformance.provenance.evidence import Goal, measured_here, write_evidence  # noqa: E402
from conformance.recordings.bundle import RECORDINGS  # noqa: E402
from conformance.selftest.network import NETWORK  # noqa: E402
from conformance.selftest.run import in_network  # noqa: E402
from conformance.session.bench import Bench, plan  # noqa: E402
from conformance.subjects.variants import unavailable  # noqa: E402
from ptycho_torch.config_params import LossWeights, NetworkSettings  # noqa: E402
from ptycho_torch.losses import total_loss  # noqa: E402
from ptycho_torch.model import PtychoNet  # noqa: E402
from ptycho_torch.optim import KerasAdam  # noqa: E402

ROWS = ("float32", "tf32", "bf16", "float32-compiled")
BATCHES = (1, 7, 64)
SAME = 1e-5
"""How far an object of another batch may be, relative to its norm: float32 sums in another order."""


@dataclass
class Run:
    """What is measured where, how long there is, and what was found.

    Attributes:
        device: torch device.
        small: the shortest run that goes through every part.
        end_s: on the clock of ``time.monotonic``.
        numbers: name → value.
        goals: name → what the number has to reach.
        meanings: name → what it is.
        lines: of the page.
    """

    device: str
    small: bool
    end_s: float
    numbers: dict[str, float] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line and put it on the page."""
        print(line, flush=True)
        self.lines.append(line)

    def note(self, name: str, value: float, meaning: str, goal: Goal | None = None) -> None:
        """Keep a number."""
        self.numbers[name], self.meanings[name] = float(value), meaning
        if goal is not None:
            self.goals[name] = goal

    def has_time(self, what: str, seconds: float = 0.0) -> bool:
        """Whether so many seconds are left; says what is left out where they are not."""
        if time.monotonic() + seconds < self.end_s:
            return True
        self.say(f"- left out for want of time: {what}")
        return False

    def wait(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, act: Callable[[], object], patience_s: float) -> float:
        """Return the median time of an action, once it has run twice."""
        taken: list[float] = []
        begun = time.monotonic()
        for turn in range(2 + 100):
            start = time.perf_counter()
            act()
            self.wait()
            if turn >= 2:
                taken.append(time.perf_counter() - start)
            if len(taken) >= 3 and time.monotonic() - begun > patience_s:
                break
        return statistics.median(taken)


@contextlib.contextmanager
def precision(row: str, device: str) -> Iterator[None]:
    """Have products run in what a row says."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = row == "tf32"
    with torch.autocast(device, torch.bfloat16, enabled=row == "bf16"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def draw(N: int, gridsize: int, groups: int, device: str, filters: int = 2) -> tuple[PtychoNet, Tensor, Tensor]:
    """Return a network with drawn weights, amplitude and offsets."""
    settings = NetworkSettings(N=N, gridsize=gridsize, n_filters_scale=filters)
    generator = torch.Generator().manual_seed(0)
    network = PtychoNet(settings, generator=generator).to(device)
    amplitude = 0.1 + torch.rand(groups, settings.C, N, N, generator=generator)
    offsets = torch.rand(groups, settings.C, 1, 2, generator=generator) * 8 - 4
    return network, amplitude.to(device), (offsets - offsets.mean(1, keepdim=True)).to(device)


def actions(network: PtychoNet, amplitude: Tensor, offsets: Tensor) -> dict[str, Callable[[], object]]:
    """Make a training step and an inference."""
    optimiser = KerasAdam(parameter for parameter in network.parameters() if parameter.requires_grad)

    def train() -> None:
        optimiser.zero_grad()
        prediction = network(amplitude, offsets)
        terms = total_loss(prediction.object, prediction.amplitude, prediction.intensity, amplitude, LossWeights())
        terms.total.backward()
        optimiser.step()

    def infer() -> Tensor:
        with torch.inference_mode():
            return network.reconstruct(amplitude, offsets)

    return {"training": train, "inference": infer}


def distance(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def judge_recordings(run: Run) -> None:
    """Judge every recording in every row that the device has."""
    run.say("## Recordings\n\n| recording | row | verdicts | failed | first failing | s |\n|---|---|---|---|---|---|")
    bench, failed, judged = Bench(), 0, 0
    # The smallest first.
    planned = sorted(plan("recorded", None, "quick"), key=lambda each: (RECORDINGS / f"{each.name}.npz").stat().st_size)
    for each in planned[:1] if run.small else planned:
        for row in ROWS[:1] if run.small else ROWS:
            if (reason := unavailable(run.device, row)) or not run.has_time(f"{each.name} {row}", 0):
                if reason:
                    run.say(f"| {each.name} | {row} | 0 | 0 | {reason} | |")
                continue
            report = bench.report(each, run.device, row)
            judged, failed = judged + len(report.verdicts), failed + len(report.failed) + bool(report.error)
            first = report.first_failing or report.first_free or report.error or "none"
            run.say(
                f"| {each.name} | {row} | {len(report.verdicts)} | {len(report.failed)} | {first} "
                f"| {report.seconds:.0f} |"
            )
    run.note("verdicts", judged, "verdicts about recordings, all rows")
    run.note("verdicts_failed", failed, "of them failed", Goal(at_most=0))


def replay_graph(run: Run) -> None:
    """Compare what a CUDA graph gives with what the eager network gives, to the last bit."""
    if run.device == "cpu":
        run.say("\nA CPU has no CUDA graphs.")
        return
    network, amplitude, offsets = draw(64, 2, 8, run.device)
    with torch.no_grad():
        eager = network(amplitude, offsets)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            network(amplitude, offsets)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = network(amplitude, offsets)
        graph.replay()
        run.wait()
    worst = max(distance(found, expected) for found, expected in zip(captured, eager, strict=True))
    run.say(f"\nA CUDA graph moves object, amplitude or intensity by {worst:.1e}.")
    run.note("graph_moves", worst, "relative distance of a CUDA graph's outputs from eager ones", Goal(at_most=SAME))


def seed_faults(run: Run) -> None:
    """Put the mistakes of the self-test into the network on the device."""
    seen = tried = 0
    wrong = []
    for fault in NETWORK[:1] if run.small else NETWORK:
        if not run.has_time(f"mistakes from {fault.name!r} on", 0):
            break
        for finding in in_network(fault, ("float32",), device=run.device):
            tried, seen = tried + 1, seen + finding.detected
            if not finding.detected:
                wrong.append(finding.describe())
    run.say(f"\n## Mistakes\n\nOf {tried} mistakes in the network, {seen} were seen.\n")
    for line in wrong:
        run.say(f"- {line}")
    run.note("faults", tried, "mistakes put into the network, float32")
    run.note("faults_missed", tried - seen, "of them not seen", Goal(at_most=0))


def compare_batches(run: Run) -> None:
    """Compare objects of one group in batches of several sizes, and gradients of two equal runs."""
    network, amplitude, offsets = draw(64, 2, max(BATCHES), run.device, filters=1)
    with torch.inference_mode():
        largest = network.reconstruct(amplitude, offsets)
        moved = max(distance(network.reconstruct(amplitude[:size], offsets[:size]), largest[:size]) for size in BATCHES)
    prediction = network(amplitude[:7], offsets[:7])
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    first, second = (torch.autograd.grad(prediction.intensity.mean(), parameters, retain_graph=True) for _ in range(2))
    differ = sum(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    run.say(
        f"\n## Batches and runs\n\nIn batches of {', '.join(map(str, BATCHES))} an object moves by {moved:.1e}. "
        f"Of {len(first)} gradients, {differ} differ in two equal runs."
    )
    run.note("batch_moves", moved, "relative distance of objects predicted in batches of 1, 7, 64", Goal(at_most=SAME))
    run.note("gradients_differ", differ, "gradients that differ between two equal runs")


class _Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if not any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns):
            flat = torch.utils._pytree.tree_leaves((args, kwargs, outputs))
            self.total += sum(each.numel() * each.element_size() for each in flat if isinstance(each, Tensor))
        return outputs


def count(act: Callable[[], object]) -> tuple[float, float]:
    """Return the floating-point operations and the bytes of an action."""
    with _Bytes() as moved, FlopCounterMode(display=False) as flops:
        act()
    return float(flops.get_total_flops()), float(moved.total)


def ceilings(run: Run, row: str) -> tuple[float, float]:
    """Return what the device reaches here in a matrix product and in a copy: FLOP/s and bytes/s."""
    side, megabytes = (512, 16) if run.small else (8192, 1024)
    matrix = torch.rand(side, side, device=run.device)
    with precision(row, run.device):
        product_s = run.seconds(lambda: matrix @ matrix, 0.0 if run.small else 1.0)
    source = torch.rand(megabytes * 2**18, device=run.device)
    target = torch.empty_like(source)
    copy_s = run.seconds(lambda: target.copy_(source), 0.0 if run.small else 1.0)
    return 2 * side**3 / product_s, 2 * megabytes * 2**20 / copy_s


def measure_speed(run: Run) -> tuple[str, Callable[[], object]] | None:
    """Time training and inference beside their floor; return the row that is furthest from it."""
    run.say(
        "\n## Speed\n\n| N | g | groups | what | row | patterns/s | GFLOP each | MB each | share of the floor |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    sides, groups, rows = ((64,), 2, ("float32",)) if run.small else ((64, 128, 256), 64, ("float32", "tf32", "bf16"))
    worst: tuple[float, str, Callable[[], object]] | None = None
    for row in rows:
        if unavailable(run.device, row):
            continue
        peak, bandwidth = ceilings(run, row)
        run.note(f"peak_{row}_tflops", peak / 1e12, f"a large matrix product in {row} (TFLOP/s)")
        run.note("copy_gb_per_s", bandwidth / 1e9, "a large copy, read and written (GB/s)")
        for N in sides:
            if not run.has_time(f"speed at N = {N}, {row}", 0 if run.small else 15):
                continue
            drawn = draw(N, 2, groups, run.device, filters=1 if run.small else 2)
            for what, act in actions(*drawn).items():
                with precision(row, run.device):
                    operations, moved = count(act)
                    seconds = run.seconds(act, 0.0 if run.small else 2.0)
                patterns = groups * 4
                floor_s = max(operations / peak, moved / bandwidth)
                share = floor_s / seconds
                run.say(
                    f"| {N} | 2 | {groups} | {what} | {row} | {patterns / seconds:.0f} "
                    f"| {operations / patterns / 1e9:.2f} | {moved / patterns / 1e6:.1f} | {share:.0%} |"
                )
                run.note(f"n{N}_{what}_{row}_patterns_per_s", patterns / seconds, f"N = {N}, g = 2, {what}, {row}")
                run.note(f"n{N}_{what}_{row}_share_of_floor", share, "least time that ceilings allow, over time taken")
                if worst is None or share < worst[0]:
                    worst = share, f"N = {N}, {what}, {row}", act
    return None if worst is None else worst[1:]


def profile(run: Run, name: str, act: Callable[[], object]) -> None:
    """Say where the time of a row goes."""
    own = "self_cpu_time_total" if run.device == "cpu" else "self_device_time_total"
    with torch.profiler.profile() as profiler, precision(name.rpartition(" ")[2], run.device):
        act()
        run.wait()
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events)
    run.say(f"\n## The row furthest from its floor: {name}\n\n| operation | share | calls |\n|---|---|---|")
    for event in events[:12]:
        run.say(f"| `{event.key[:60]}` | {getattr(event, own) / total:.1%} | {event.count} |")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--small", action="store_true", help="the shortest run that goes through every part")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it (default 8)")
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="folder to write the numbers to, as evidence")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write what is printed there too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device; --device cpu --small goes through every part on the CPU")
    run = Run(options.device, options.small, time.monotonic() + 60 * options.minutes)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU"
    run.say(f"# On {name}\n\nPyTorch {torch.__version__}; `python benchmarks/gpu.py`\n")
    with warnings.catch_warnings():
        # Inductor and the profiler speak of their own affairs.
        warnings.simplefilter("ignore")
        # Speed first: the oracle of the recordings takes most of the time, on the CPU.
        worst = measure_speed(run)
        if worst is not None:
            profile(run, *worst)
        compare_batches(run)
        replay_graph(run)
        judge_recordings(run)
        seed_faults(run)
    evidence = measured_here(
        "gpu",
        "python benchmarks/gpu.py" + (" --small" if run.small else ""),
        run.numbers,
        device=run.device,
        goals=run.goals,
        meanings=run.meanings,
    )
    for missed in evidence.missed:
        run.say(f"\nMissed: {missed} = {evidence.numbers[missed]:g}, goal {evidence.goals[missed]}")
    if options.evidence is not None:
        print(f"wrote {write_evidence(options.evidence, evidence)}")
    if options.page is not None:
        options.page.write_text("\n".join(run.lines) + "\n", encoding="utf-8")
    return 1 if evidence.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
