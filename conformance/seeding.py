"""Seeding a fault: a small named wrong, put into the real modules for the time of a context.

Each fault says where it sits and, if it is a mistake that people make, what a report has to call it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Body = Callable[..., Any]

GRAPH = "n64_g2"
"""Graph on which a fault shows, unless it says another one."""


@dataclass(frozen=True)
class Fault:
    """One wrong.

    Attributes:
        name: what is wrong.
        area: ``forward``, ``backward``, ``optimiser``, ``data``, ``configuration`` or ``bridge``.
        stage: where it sits: a stage id, ``loss``, or the id of a step outside the network.
        owner: class, module or function that is patched.
        attribute: what is replaced there.
        build: makes the replacement from the original.
        cause: part of the name that a report has to give it; None if it is no known mistake.
        graph: graph of ``conformance.draws`` that shows it, for faults of the network.
    """

    name: str
    area: str
    stage: str
    owner: Any
    attribute: str
    build: Callable[[Any], Any]
    cause: str | None = None
    graph: str = GRAPH

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Put the fault in for the time of the context."""
        original = getattr(self.owner, self.attribute)
        # A static method, unlike what ``getattr`` makes of it, is put back as one.
        written = vars(self.owner).get(self.attribute, original)
        forget()
        setattr(self.owner, self.attribute, self.build(original))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, written)
            forget()


def forget() -> None:
    """Empty what the packages keep: a table that was made with a fault must not outlive it."""
    from ptycho_tf_bridge.weights import weight_table

    weight_table.cache_clear()


class Made(Protocol):
    """Makes faults of one area."""

    def __call__(
        self, name: str, step: str, owner: Any, attribute: str, build: Callable[[Any], Any], cause: str | None
    ) -> Fault:
        """Return a fault of a step of the area; the id of the step is that of the area, a dot and ``step``."""


def of_area(area: str) -> Made:
    """Return what makes the faults of an area that sit in steps outside the network."""

    def made(name: str, step: str, owner: Any, attribute: str, build: Callable[[Any], Any], cause: str | None) -> Fault:
        return Fault(name, area, f"{area}.{step}", owner, attribute, build, cause)

    return made


def after(change: Callable[[Any], Any]) -> Callable[[Body], Body]:
    """Change what a function returns."""
    return lambda original: lambda *given, **named: change(original(*given, **named))


def argument(position: int, change: Callable[[Any], Any]) -> Callable[[Body], Body]:
    """Change one positional argument (of a method, 0 is the object itself)."""

    def build(original: Body) -> Body:
        def wrong(*given: Any, **named: Any) -> Any:
            return original(*given[:position], change(given[position]), *given[position + 1 :], **named)

        return wrong

    return build


def with_named(**changed: Any) -> Callable[[Body], Body]:
    """Give some named arguments another value."""
    return lambda original: lambda *given, **named: original(*given, **{**named, **changed})


def instead(other: Any) -> Callable[[Any], Any]:
    """Put something else in its place."""
    return lambda _: other


def only(condition: Callable[[Any], bool], wrong: Callable[[Body], Body]) -> Callable[[Body], Body]:
    """Put the wrong into the objects for which the condition holds, and leave the others."""

    def build(original: Body) -> Body:
        faulty = wrong(original)
        return lambda module, *given, **named: (faulty if condition(module) else original)(module, *given, **named)

    return build
