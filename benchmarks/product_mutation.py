"""Mutation testing of the product: does `pytest conformance`, or a test, fail on small changes of what it judges?

Mutants are those of `mutation.py`, of the network, its training, the data path and the bridge: a sample, drawn with a
fixed seed. Each is judged twice, by conformance and by the tests of the module, so that the two are counted apart. What
neither kills is printed; those in ``EQUIVALENT`` compute the same as the original, for the reason beside them.

    python benchmarks/product_mutation.py --output mutants.json

Of conformance those tests run first that are quick and about the module; what survives them meets the others that are
about it, of those that need no TensorFlow. All of them are run without a mutant before, and have to pass. OUTPUT keeps
every result, and a run resumes; remove it after a change of the code.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

# Loaded before the forks, which need not do it again.
import h5py  # noqa: F401
import hypothesis  # noqa: F401
import lightning  # noqa: F401
import matplotlib.pyplot as plt  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.ndimage
import scipy.spatial  # noqa: F401
import tensordict  # noqa: F401
import yaml  # noqa: F401
from mutation import ROOT, Mutant, file_of, mutants, tests_pass

NETWORK_GOAL, OTHER_GOAL = 0.95, 0.90
LIMIT_S = 900.0


@dataclass(frozen=True)
class Target:
    """A module whose mutants are drawn.

    Attributes:
        conformance: arguments of pytest, in turn: what is quick, and what survivors of it meet.
        tests: files of tests/ that are about the module.
        is_network: whether conformance alone has to kill its mutants.
        ours: functions and classes that the reference has nothing of, which the tests may kill.
    """

    conformance: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]
    is_network: bool = False
    ours: tuple[str, ...] = ()


_RECORDED = ("--parity-reference", "recorded")
_NETWORK = (
    ("conformance/test_operations.py", "conformance/test_network.py", *_RECORDED, "-k", "n64_g2_modes or operation"),
    ("conformance", *_RECORDED),
)
_TRAINING = (
    ("conformance/test_steps.py", "-k", "optimiser"),
    ("conformance/test_training.py", "-k", "not keras and not live"),
)
_DATA = (
    ("conformance/test_steps.py", "conformance/test_operations.py", "-k", "data or forward or operation"),
    ("conformance/test_data_path.py",),
)
_BRIDGE = (
    ("conformance/test_steps.py", "-k", "bridge or (configuration and not used)"),
    ("conformance/test_config_sync.py", "conformance/test_divergences.py", "-k", "not of_the_reference"),
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "ptycho_torch.model": Target(
            _NETWORK,
            ("network/test_model.py", "network/test_initial_amplitude.py"),
            is_network=True,
            ours=("head_bias", "PtychoNet.stage_ids", "PtychoNet._check", "__getattr__"),
        ),
        "ptycho_torch.helper": Target(_NETWORK, ("network/test_forward_operations.py",), is_network=True),
        "ptycho_torch.losses": Target(_NETWORK, ("network/test_losses.py",), is_network=True),
        "ptycho_torch.optim": Target(
            _TRAINING,
            ("network/test_optim.py", "network/test_schedules.py"),
            is_network=True,
            ours=("AdaptiveClip", "KerasAdam.__init__", "KerasPlateau.state_dict", "KerasPlateau.load_state_dict"),
        ),
        "ptycho_torch.data.grouping": Target(_DATA, ("data/test_grouping.py", "data/test_dset_loader.py")),
        "ptycho_torch.data.scaling": Target(
            _DATA, ("network/test_forward_operations.py", "data/test_dset_loader.py", "data/test_photons.py")
        ),
        "ptycho_torch.reconstruction.reassembly": Target(
            _DATA, ("reconstruction/test_reassembly.py", "reconstruction/test_half_split.py")
        ),
        "ptycho_tf_bridge.weights": Target(_BRIDGE, ("bridge/test_bridge_weights.py",)),
        "ptycho_tf_bridge.layout": Target(_BRIDGE, ("bridge/test_bridge_layout.py",)),
        "ptycho_tf_bridge.config": Target(_BRIDGE, ("bridge/test_bridge_config.py",)),
        "ptycho_tf_bridge.config_values": Target(_BRIDGE, ("bridge/test_bridge_config.py",)),
    }
)

EQUIVALENT: Mapping[str, str] = MappingProxyType(
    {
        "helper: -shift_px  →  shift_px": "whole and fraction are used as their sum alone, minus the shift",
        "grouping: K == 0  →  K == 1": "no group has two patterns",
        "weights: n=1  →  n=2": "only the first name that is close is told",
    }
)
"""Mutant, as it is printed without its line → why nobody can tell it from the original."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    Attributes:
        module: its dotted name.
        line: where it is.
        change: what it is, in words.
        conformance: whether `pytest conformance` failed.
        tests: whether the tests of the module failed.
        reason: why it is equivalent; empty if it is not.
    """

    module: str
    line: int
    change: str
    conformance: bool
    tests: bool
    reason: str = ""

    @property
    def is_network(self) -> bool:
        """Whether conformance alone has to see it."""
        target = TARGETS[self.module]
        return target.is_network and not any(self.line in _lines(self.module, name) for name in target.ours)

    @property
    def is_killed(self) -> bool:
        """Whether it was seen by those that have to see it."""
        return self.conformance or (self.tests and not self.is_network)


@functools.cache
def _lines(module: str, name: str) -> range:
    """Return the lines of a function, a class or a method."""
    node: ast.AST = ast.parse(file_of(module).read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = [each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part]
    return range(node.lineno, (node.end_lineno or 0) + 1)  # type: ignore[attr-defined]


def drawn(count: int, seed: int) -> list[Mutant]:
    """Draw mutants of all targets; those of one seed are the first of a larger draw."""
    every = [mutant for module in TARGETS for mutant in mutants(module) if not _is_message(mutant)]
    random.Random(seed).shuffle(every)
    return every[:count]


def _is_message(mutant: Mutant) -> bool:
    """Return True if only the words of an error or of a label differ."""
    before, _, after = mutant.change.partition("  →  ")
    try:
        first, second = ast.parse(before), ast.parse(after)
    except SyntaxError:
        return False
    texts = [
        [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for tree in (first, second)
    ]
    return texts[0] != texts[1] and any(" " in text for text in set(texts[0]) - set(texts[1]))


def judge(mutant: Mutant) -> Result:
    """Ask conformance, quickly and then at length, and the tests; nobody is asked of what is equivalent."""
    target = TARGETS[mutant.module]
    if mutant.name in EQUIVALENT:
        return Result(mutant.module, mutant.line, mutant.change, False, False, EQUIVALENT[mutant.name])
    killed = any(not tests_pass(mutant, arguments, LIMIT_S) for arguments in target.conformance)
    tested = not tests_pass(mutant, _files(target), LIMIT_S)
    return Result(mutant.module, mutant.line, mutant.change, killed, tested)


def _files(target: Target) -> tuple[str, ...]:
    return tuple(f"tests/{name}" for name in target.tests)


def failing_without_a_mutant() -> list[tuple[str, ...]]:
    """Return the arguments with which pytest fails on the code as it is: they would kill every mutant."""
    every = {arguments: None for target in TARGETS.values() for arguments in (*target.conformance, _files(target))}
    return [arguments for arguments in every if not tests_pass(None, arguments, LIMIT_S)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the sample; return 0 if enough are killed."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python benchmarks/product_mutation.py -o m.json",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file with every mutant; a run resumes")
    parser.add_argument("--sample", type=int, default=300, help="mutants drawn (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if not options.output.exists() and (failing := failing_without_a_mutant()):
        print("error: these fail without a mutant:", *(f"pytest {' '.join(each)}" for each in failing), sep="\n  ")
        return 2
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else []
    results = {(each["module"], each["line"], each["change"]): Result(**each) for each in kept}
    sample = drawn(options.sample, options.seed)
    for number, mutant in enumerate(sample, 1):
        key = (mutant.module, mutant.line, mutant.change)
        if key in results:
            continue
        results[key] = found = judge(mutant)
        options.output.write_text(json.dumps([asdict(each) for each in results.values()], indent=1, ensure_ascii=False))
        by = ", ".join(name for name in ("conformance", "tests") if getattr(found, name)) or "nothing"
        print(f"{number}/{len(sample)} {mutant.module}:{mutant.line}: {mutant.change}: killed by {by}", flush=True)
    return report([results[mutant.module, mutant.line, mutant.change] for mutant in sample])


def report(results: Sequence[Result]) -> int:
    """Print the counts and the survivors; return 0 if the goals are met."""
    print("\n| module | mutants | equivalent | killed by conformance | killed by tests | killed |")
    print("|---|---|---|---|---|---|")
    killed = Counter(each.is_network for each in results if each.is_killed and not each.reason)
    judged = Counter(each.is_network for each in results if not each.reason)
    for module in TARGETS:
        mine = [each for each in results if each.module == module]
        others = [each for each in mine if not each.reason]
        counts = [len(mine), len(mine) - len(others), *(sum(getattr(each, name) for each in others) for name in
                  ("conformance", "tests", "is_killed"))]  # fmt: skip
        print(f"| {module} | {' | '.join(map(str, counts))} |")
    for each in results:
        if not each.is_killed and not each.reason:
            print(f"survived: {each.module}:{each.line}: {each.change}")
    met = True
    for name, is_network, goal in (("network and training", True, NETWORK_GOAL), ("elsewhere", False, OTHER_GOAL)):
        share = killed[is_network] / max(judged[is_network], 1)
        met &= share >= goal
        print(f"{name}: {killed[is_network]} of {judged[is_network]} killed, {share:.1%} (goal ≥ {goal:.0%})")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
