"""Mutation testing of the comparer: is there a test for every decision that a verdict hangs on?

Every mutant is one small change of the code that compares: a comparison turned round, an operator exchanged, a number
one off, a statement left out, a condition decided beforehand. The tests of the comparer have to fail on it. What no
test kills is printed; those in ``EQUIVALENT`` compute the same as the original, for the reason that stands beside them.

    python benchmarks/mutation.py --output mutation.json --evidence conformance/evidence

mutmut does not fit here: it leaves out every function with a decorator, and so the properties by which a verdict passes
and the conditions that are measured once. Each mutant runs in a fork of a process that has NumPy, torch and pytest
loaded already, which takes about a second.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - loaded before the forks
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
TARGETS = tuple(f"conformance.judge.{name}" for name in ("rules", "measure", "condition", "gains"))
TESTS = tuple(f"tests/judge/test_{name}.py" for name in ("judge", "gains", "condition", "comparer"))
GOAL = 0.95
PACKAGES = ("conformance", "ptycho_torch", "ptycho_tf_bridge")
"""Imported anew in each fork."""
STATES = ("killed", "survived", "equivalent")

_SLOWER = "the same gradients, computed twice"
EQUIVALENT: dict[str, str] = {
    "rules: np.empty(0)  →  np.empty(1)": "what a mismatch holds in place of values is never read",
    "measure: any((name != 'input' for name in stage.inputs))  →  all((name != 'input' for name in stage.inputs))": (
        "no stage reads the network's input beside another one"
    ),
    "measure: if any((not np.array_equal(branch, pieces.branches[name]) for name, branch in branches.items())):"
    "  →  if True:": _SLOWER,
}
"""Mutant, as it is printed without its line → why nobody can tell it from the original."""

_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
_CALLED = {"max": "min", "min": "max", "any": "all", "all": "any"}
_SAID = ("explain", "__repr__", "__str__")
"""Functions that only say what was found."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        module: its dotted name.
        line: where it is.
        change: what it is, in words.
        source: the whole mutated module.
    """

    module: str
    line: int
    change: str
    source: str

    @property
    def name(self) -> str:
        """What ``EQUIVALENT`` calls it."""
        return f"{self.module.rpartition('.')[2]}: {self.change}"


Change = Callable[[ast.AST], ast.AST | None]


def _changes(node: ast.AST) -> Iterator[Change]:
    """Yield changes of one node; each takes a copy of it, and returns what stands in its place."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if type(operator) in _COMPARE:
                yield lambda it, index=index: _with_item(it, "ops", index, _COMPARE[type(it.ops[index])]())  # type: ignore[attr-defined,misc]
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield lambda it: _with(it, op=_BINARY[type(it.op)]())  # type: ignore[attr-defined]
    elif isinstance(node, ast.BoolOp):
        yield lambda it: _with(it, op=ast.Or() if isinstance(it.op, ast.And) else ast.And())  # type: ignore[attr-defined]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield lambda it: it.operand  # type: ignore[attr-defined,no-any-return]
    elif isinstance(node, ast.IfExp):
        yield lambda it: _with(it, body=it.orelse, orelse=it.body)  # type: ignore[attr-defined]
    elif isinstance(node, ast.If | ast.While):
        for value in (True, False):
            yield lambda it, value=value: _with(it, test=ast.Constant(value))  # type: ignore[misc]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda it: ast.Constant(not it.value)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda it: ast.Constant(it.value + 1)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield lambda it: ast.Constant(f"{it.value}!")  # type: ignore[attr-defined]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLED:
        yield lambda it: _with(it, func=ast.Name(_CALLED[it.func.id], ast.Load()))  # type: ignore[attr-defined]
    elif isinstance(node, ast.Return) and node.value is not None:
        yield lambda it: ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break | ast.Assign | ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ):
        yield lambda it: ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _with_item(node: ast.AST, name: str, index: int, value: object) -> ast.AST:
    getattr(node, name)[index] = value
    return node


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Yield parent, field and index of every node that decides something: no imports, annotations, or documentation."""
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if name in ("annotation", "returns", "decorator_list", "type_params", "args", "bases", "keywords") and not (
                isinstance(parent, ast.Call)
            ):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    yield parent, name, index


def _skipped(tree: ast.Module) -> set[int]:
    """Return the nodes that only speak: imports, decorators, documentation, messages, type aliases."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            skipped |= {id(each) for each in ast.walk(decorator)}
        speaks = isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr)
        speaks |= isinstance(node, ast.FunctionDef) and node.name in _SAID
        speaks |= isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        speaks |= (
            isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Subscript) and node in tree.body
        )
        if speaks:
            skipped |= {id(each) for each in ast.walk(node)}
    return skipped


def file_of(module: str) -> Path:
    """Return the file of a module, given its dotted name."""
    return ROOT / f"{module.replace('.', '/')}.py"


def mutants(module: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    skipped = _skipped(tree)
    for parent, name, index in list(_places(tree)):
        holder = getattr(parent, name)
        node = holder if index is None else holder[index]
        if id(node) in skipped or id(parent) in skipped:
            continue
        for change in _changes(node):
            # A number alone does not say which one it is.
            told = parent if isinstance(node, ast.Constant) else None
            before = _first_line(told or node)
            changed = change(copy.deepcopy(node))
            _put(parent, name, index, changed)
            after = _first_line(told or changed)
            source = ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, name, index, node)
            if before != after:
                yield Mutant(module, getattr(node, "lineno", 0), f"{before}  →  {after}", source)


def _put(parent: ast.AST, name: str, index: int | None, node: ast.AST | None) -> None:
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def _first_line(node: ast.AST | None) -> str:
    return ast.unparse(node).splitlines()[0] if node else ""


def _put_in_place(mutant: Mutant) -> None:
    """Have a module read from the mutant's text, whatever imports it: import hooks of tests read files themselves."""
    path, loader = str(file_of(mutant.module)), importlib.machinery.SourceFileLoader
    read, stats = loader.get_data, loader.path_stats

    def get_data(self: importlib.machinery.SourceFileLoader, name: str) -> bytes:
        return mutant.source.encode() if name == path else read(self, name)

    def path_stats(self: importlib.machinery.SourceFileLoader, name: str) -> Mapping[str, Any]:
        if name == path:
            raise OSError("compiled code of this module is of its file")
        return stats(self, name)

    loader.get_data, loader.path_stats = get_data, path_stats  # type: ignore[assignment,method-assign]


def tests_pass(mutant: Mutant | None, tests: Sequence[str], limit_s: float) -> bool:
    """Run tests in a fork; a mutant that hangs, dies or cannot be imported has failed them.

    Args:
        mutant: what stands in the place of its module; None for nothing.
        tests: files and further arguments of pytest.
        limit_s: how long they may take.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(limit_s))
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                del sys.modules[name]
            if mutant is not None:
                _put_in_place(mutant)
            options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


@dataclass(frozen=True)
class Result:
    """What became of one mutant: one of ``STATES``."""

    module: str
    line: int
    change: str
    state: str
    reason: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every mutant; return 0 if enough are killed."""
    parser = argparse.ArgumentParser(description="Mutation testing of the comparer.", epilog="example: make mutation")
    parser.add_argument("--output", type=Path, help="JSON file with every mutant, in which a run resumes")
    parser.add_argument("--modules", nargs="+", choices=TARGETS, default=TARGETS, help="modules of conformance")
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="folder to write the numbers to, as evidence")
    options = parser.parse_args(arguments)
    if options.evidence is not None and set(options.modules) != set(TARGETS):
        parser.error("--evidence is of all modules; leave out --modules")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    digest = _digest()
    results = _kept(options.output, digest)
    if results is None:
        print(f"error: {options.output} is of other modules or tests than are here; delete it, or give another file")
        return 1
    started = time.perf_counter()
    if not tests_pass(None, TESTS, 600):
        print("error: the tests of the comparer fail without a mutant; run them first")
        return 1
    limit_s = max(30.0, 3 * (time.perf_counter() - started))
    known = {(each.module, each.line, each.change): each for each in results}
    for module in options.modules:
        every = list(mutants(module))
        for number, mutant in enumerate(every, 1):
            if (mutant.module, mutant.line, mutant.change) in known:
                continue
            survived = tests_pass(mutant, TESTS, limit_s)
            reason = EQUIVALENT.get(mutant.name, "")
            state = "killed" if not survived else "equivalent" if reason else "survived"
            results.append(Result(mutant.module, mutant.line, mutant.change, state, reason))
            if survived:
                print(f"{state}: {module}:{mutant.line}: {mutant.change}", flush=True)
            if number % 20 == 0 or number == len(every):
                print(f"{module}: {number}/{len(every)}", file=sys.stderr, flush=True)
                _keep(options.output, digest, results)
    counted = Counter(each.state for each in results)
    judged = counted["killed"] + counted["survived"]
    share = counted["killed"] / judged if judged else 0.0
    for module in options.modules:
        mine = Counter(each.state for each in results if each.module == module)
        print(f"{module:<22} {mine['killed']} killed, {mine['survived']} survived, {mine['equivalent']} equivalent")
    print(f"{counted['killed']} of {judged} mutants killed: {share:.1%} (goal ≥ {GOAL:.0%})")
    if options.evidence is not None:
        print(f"wrote {_write_evidence(options.evidence, results, share)}")
    return 0 if share >= GOAL else 1


def _write_evidence(folder: Path, results: Sequence[Result], share: float) -> Path:
    from conformance.provenance.evidence import Goal, measured_here, write_evidence

    counted = Counter(each.state for each in results)
    numbers = {"mutants": len(results), **{f"mutants_{state}": counted[state] for state in STATES}, "killed": share}
    kept = [each for each in results if each.state != "killed"]
    evidence = measured_here(
        "mutation",
        "python benchmarks/mutation.py",
        numbers,
        goals={"killed": Goal(at_least=GOAL)},
        meanings={
            "mutants": "small changes of the code that compares",
            "mutants_killed": "changes that make a test fail",
            "mutants_survived": "changes that no test sees",
            "mutants_equivalent": "changes that compute the same",
            "killed": "killed, of those that are not equivalent",
        },
        notes=[f"{each.state}: `{each.module}:{each.line}: {each.change}` {each.reason}".strip() for each in kept],
    )
    return write_evidence(folder, evidence)


def _digest() -> str:
    """Return the digest of what the results hold for: everything that the comparer reaches, and its tests."""
    from conformance.provenance.digest import numerical_digest, text_digest

    return numerical_digest("mutation") + text_digest({name: ROOT / name for name in TESTS})


def _kept(path: Path | None, digest: str) -> list[Result] | None:
    """Return the results of a run to go on with; None where they are of something else."""
    if path is None or not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("digest") != digest:
        return None
    return [Result(**each) for each in content["mutants"]]


def _keep(path: Path | None, digest: str, results: Sequence[Result]) -> None:
    if path is not None:
        content = {"digest": digest, "mutants": [asdict(each) for each in results]}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
