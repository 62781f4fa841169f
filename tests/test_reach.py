"""Which faults can change what a step does: a function counts as called however Python calls it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import Function

from conformance.reach import called_by, may_change, reaches
from conformance.seeding import Fault, of_area
from conformance.step import Outcome, Step, StepBench


class Kind:
    """What a fault may replace."""

    constant = 3

    def method(self) -> int:
        return 1

    def generator(self) -> Iterator[int]:
        yield 1

    @property
    def number(self) -> int:
        return 1

    @staticmethod
    def static() -> int:
        return 1

    @classmethod
    def of_class(cls) -> int:
        return 1


class Identity(Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        return values

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


USES: dict[str, Callable[[], object]] = {
    "method": lambda: Kind().method(),
    "generator": lambda: list(Kind().generator()),
    "number": lambda: Kind().number,
    "static": lambda: Kind.static(),
    "of_class": lambda: Kind.of_class(),
}


def fault(attribute: str, owner: Any = Kind) -> Fault:
    return of_area("data")("a fault", "a_step", owner, attribute, lambda right: right, None)


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("attribute", USES)
def test_what_is_called_is_seen_and_nothing_else(attribute: str) -> None:
    calls = called_by(USES[attribute])
    assert [other for other in USES if reaches(fault(other), calls)] == [attribute]


def test_what_a_thread_calls_is_seen() -> None:
    assert reaches(fault("method"), called_by(lambda: in_a_thread(USES["method"])))
    assert not reaches(fault("method"), called_by(lambda: in_a_thread(USES["static"])))


@pytest.mark.parametrize(("owner", "attribute"), [(Kind, "constant"), (Identity, "forward"), (Identity, "backward")])
def test_what_no_call_of_python_shows_may_change_anything(owner: type, attribute: str) -> None:
    """A constant is not called; PyTorch calls the functions of its autograd, from threads of its own."""
    assert reaches(fault(attribute, owner), frozenset())


def _step(name: str, found: Callable[[], int]) -> Step:
    return Step(name, (), lambda bench: Outcome({"number": np.array(1)}, {"number": np.array(found())}))


def test_a_step_that_fails_without_a_fault_is_left_out_for_none() -> None:
    assert not may_change(_step("data.right", lambda: 1), fault("method"))
    assert may_change(_step("data.wrong", lambda: 2), fault("method"))


def test_a_step_is_asked_alone() -> None:
    """What steps share is made by each of them, or the second would seem not to call it."""

    def shared() -> int:
        return Kind().method()

    def run(bench: StepBench) -> Outcome:
        return Outcome({"number": np.array(1)}, {"number": np.array(bench.once(shared))})

    steps = [Step(name, (), run) for name in ("data.first", "data.second")]
    assert all(may_change(step, fault("method")) for step in steps)
