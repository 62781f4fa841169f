"""Mutation testing of the product: does `pytest conformance`, or a test, fail on small changes of what it judges?

Mutants are those of `mutation.py`, of the network, its training, the data path and the bridge: a sample, drawn with a
fixed seed. Each is judged twice, by conformance and by the tests of the module, so that the two are counted apart. What
neither kills is printed; those in ``EQUIVALENT`` compute the same as the original, for the reason beside them.

    python benchmarks/product_mutation.py --output mutants.json

The quick tests of conformance run first; what survives them meets all that needs no TensorFlow (a minute and more).
OUTPUT keeps every result, and a run resumes; remove it after a change of the code.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from mutation import ROOT, Mutant, mutants, tests_pass

RECORDED = ("conformance", "--parity-reference", "recorded")
"""Everything of the quick tier that needs no TensorFlow."""

NETWORK_GOAL, OTHER_GOAL = 0.95, 0.90
LIMIT_S = 900.0


@dataclass(frozen=True)
class Target:
    """A module whose mutants are drawn.

    Attributes:
        quick: the arguments with which conformance is asked first.
        tests: files of tests/ that are about the module.
        is_network: whether conformance alone has to kill its mutants.
    """

    quick: tuple[str, ...]
    tests: tuple[str, ...]
    is_network: bool = False


_NETWORK = ("conformance/test_operations.py", "conformance/test_network.py", "-k", "n64_g2_modes or operation")
_TRAINING = ("conformance/test_steps.py", "-k", "optimiser")
_DATA = ("conformance/test_steps.py", "-k", "data or forward")
_BRIDGE = ("conformance/test_steps.py", "-k", "bridge or configuration")

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "ptycho_torch.model": Target(_NETWORK, ("test_model", "test_initial_amplitude"), is_network=True),
        "ptycho_torch.helper": Target(_NETWORK, ("test_forward_operations",), is_network=True),
        "ptycho_torch.losses": Target(_NETWORK, ("test_losses",), is_network=True),
        "ptycho_torch.optim": Target(_TRAINING, ("test_optim", "test_schedules"), is_network=True),
        "ptycho_torch.data.grouping": Target(_DATA, ("test_grouping", "test_dset_loader")),
        "ptycho_torch.data.scaling": Target(_DATA, ("test_dset_loader", "test_photons")),
        "ptycho_torch.reconstruction.reassembly": Target(_DATA, ("test_reassembly",)),
        "ptycho_tf_bridge.weights": Target(_BRIDGE, ("test_bridge_weights",)),
        "ptycho_tf_bridge.layout": Target(_BRIDGE, ("test_bridge_layout",)),
        "ptycho_tf_bridge.config": Target(_BRIDGE, ("test_bridge_config",)),
        "ptycho_tf_bridge.config_values": Target(_BRIDGE, ("test_bridge_config",)),
    }
)

EQUIVALENT: Mapping[str, str] = MappingProxyType({})
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
    def is_killed(self) -> bool:
        """Whether it was seen by those that have to see it."""
        return self.conformance or (self.tests and not TARGETS[self.module].is_network)


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
    """Ask conformance, quickly and then as a whole, and the tests."""
    target = TARGETS[mutant.module]
    killed = not tests_pass(mutant, (*target.quick, *RECORDED[1:]), LIMIT_S) or not tests_pass(
        mutant, RECORDED, LIMIT_S
    )
    tested = not tests_pass(
        mutant, tuple(str(path) for name in target.tests for path in (ROOT / "tests").rglob(f"{name}.py")), LIMIT_S
    )
    return Result(mutant.module, mutant.line, mutant.change, killed, tested, EQUIVALENT.get(mutant.name, ""))


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
    killed: Counter[bool] = Counter()
    judged: Counter[bool] = Counter()
    for module, target in TARGETS.items():
        mine = [each for each in results if each.module == module]
        others = [each for each in mine if not each.reason]
        killed[target.is_network] += sum(each.is_killed for each in others)
        judged[target.is_network] += len(others)
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
