"""Which functions something calls: a fault in a function that is not called cannot change it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch.autograd import Function

from conformance.seeding import Fault, forget
from conformance.step import Step, StepBench

Codes = frozenset[CodeType]


def called_by(work: Callable[[], object]) -> Codes:
    """Do some work and return the code of every function of Python that it called, in whatever thread."""
    found: set[CodeType] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    forget()
    before = sys.getprofile()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return frozenset(found)


def _code_of(fault: Fault) -> CodeType | None:
    """Return the code that a fault replaces; None if it is no function, or one that is not called by Python."""
    found = vars(fault.owner).get(fault.attribute, getattr(fault.owner, fault.attribute))
    if isinstance(fault.owner, type) and issubclass(fault.owner, Function):
        return None
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if isinstance(found, property):
        found = found.fget
    return found.__code__ if isinstance(found, FunctionType) else None


@cache
def _calls(step: Step) -> Codes | None:
    """Return what a step calls that nothing is wrong with; None if it fails all the same."""
    reports = []
    # A bench of its own: what steps share is made by each of them.
    codes = called_by(lambda: reports.append(StepBench().report(step)))
    return codes if reports[0].passed else None


def reaches(fault: Fault, calls: Codes | None) -> bool:
    """Whether a fault can change what work comes to that calls these functions; None for calls that are not known.

    Work does the same with the fault as without it until the function is called that the fault replaces. Where that is
    never called, nothing is different.
    """
    code = _code_of(fault)
    return code is None or calls is None or code in calls


def may_change(step: Step, fault: Fault) -> bool:
    """Whether a step can come out otherwise with a fault than without it."""
    return reaches(fault, _calls(step))
