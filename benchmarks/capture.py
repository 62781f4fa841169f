"""What it costs to look at every stage: a forward pass with every output captured, beside a plain one.

Capturing has to keep what a plain pass may throw away, and the doublings, which a plain pass does not compute, are
computed because somebody looks. The two take turns within each round, so that a busy machine slows both alike. CPU time
of this process is measured, and the median over the rounds reported:

    python benchmarks/capture.py --rounds 30 --evidence conformance/evidence
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from conformance.cases.draws import GRAPHS, draw_case
from conformance.provenance.evidence import Goal, measured_here, write_evidence
from conformance.subjects.torch import TorchSubject, tapped

LIMIT = 2.0
"""Capturing may cost this many plain passes."""


def cpu_seconds(action: Callable[[], object]) -> float:
    """Time one call in seconds of the CPU."""
    started = time.process_time()
    action()
    return time.process_time() - started


def compare(graph: str, batch: int, rounds: int) -> tuple[float, float]:
    """Return the median CPU seconds of a plain pass and of one with every stage captured."""
    subject = TorchSubject("cpu", "float32")
    loaded = subject._load(draw_case(GRAPHS[graph], seed=0, batch=batch))
    stages = loaded.model.stage_ids()
    captured: dict[str, Tensor] = {}

    def plain() -> None:
        loaded.model(loaded.scaled_amplitude, loaded.offsets_px)

    def capturing() -> None:
        captured.clear()
        with tapped(loaded.model, stages, lambda stage, _, output: captured.__setitem__(stage, output)):
            loaded.model(loaded.scaled_amplitude, loaded.offsets_px)
        assert len(captured) == len(stages)

    times: dict[Callable[[], None], list[float]] = {plain: [], capturing: []}
    with torch.no_grad():
        for action in (plain, capturing) * 2:
            action()
        for number in range(rounds):
            for action in (plain, capturing) if number % 2 else (capturing, plain):
                times[action].append(cpu_seconds(action))
    return statistics.median(times[plain]), statistics.median(times[capturing])


def main() -> int:
    """Print a line for each graph; return 1 where capturing costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--graph", choices=tuple(GRAPHS), action="append", help="graphs (default n64_g1, n64_g2, n128_g2)"
    )
    parser.add_argument("--batch", type=int, default=4, help="groups of a batch (default 4)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default 20)")
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="folder to write the numbers to, as evidence")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    print(f"{'graph':<12}{'plain':>10}{'captured':>10}{'ratio':>8}   (CPU ms, median of {options.rounds} rounds)")
    for graph in options.graph or ("n64_g1", "n64_g2", "n128_g2"):
        plain, captured = compare(graph, options.batch, options.rounds)
        ratios[graph] = captured / plain
        print(f"{graph:<12}{1e3 * plain:>10.1f}{1e3 * captured:>10.1f}{captured / plain:>8.2f}")
    worst = max(ratios.values())
    print(f"capturing costs at most {worst:.2f} plain passes; allowed are {LIMIT:g}")
    if options.evidence is not None:
        evidence = measured_here(
            "capture",
            "python benchmarks/capture.py",
            ratios,
            goals={graph: Goal(at_most=LIMIT) for graph in ratios},
            meanings={graph: f"{graph}: a pass with every stage captured, in plain passes" for graph in ratios},
        )
        print(f"wrote {write_evidence(options.evidence, evidence)}")
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
