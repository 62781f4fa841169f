"""One mistake: a name of the product that is replaced for the time of a context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conformance.checks.export import exported
from ptycho_tf_bridge.weights import weight_table

Body = Callable[..., Any]

GRAPH = "n64_g2"
"""Graph on which a mistake shows, unless it names another one."""


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: what is wrong.
        where: what has to be named: a stage, ``loss``, or the id of a check.
        owner: class or module that is patched.
        attribute: what is replaced there.
        build: makes the replacement from the original.
        cause: part of the cause that a report has to give; empty outside the network.
        graph: graph of ``conformance.cases.draws`` that shows it.
    """

    name: str
    where: str
    owner: Any
    attribute: str
    build: Callable[[Any], Any]
    cause: str = ""
    graph: str = GRAPH

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Put the mistake in for the time of the context."""
        original = getattr(self.owner, self.attribute)
        # A static method, unlike what ``getattr`` makes of it, is put back as one.
        written = vars(self.owner).get(self.attribute, original)
        _forget()
        setattr(self.owner, self.attribute, self.build(original))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, written)
            _forget()


def _forget() -> None:
    """Empty the caches: a table or an archive that was made with a mistake must not outlive it."""
    for cached in (weight_table, exported):
        cached.cache_clear()


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
    """Put the mistake into the objects for which the condition is true, and leave the others."""

    def build(original: Body) -> Body:
        faulty = wrong(original)
        return lambda module, *given, **named: (faulty if condition(module) else original)(module, *given, **named)

    return build
