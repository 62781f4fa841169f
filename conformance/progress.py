"""How far a long command is: a bar where standard error is a terminal, else a line now and then, with the time left."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

LINE_S = 10.0
"""Least time between two lines where there is no terminal."""

_BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"


class Progress:
    """Work that is done piece by piece; what is left is estimated from what the pieces done so far have taken.

    Args:
        units: the whole work, in any unit.
        shown: whether to show anything.
    """

    def __init__(self, units: float, *, shown: bool = True) -> None:
        self._units, self._done, self._what = units, 0.0, ""
        self._started, self._told = time.monotonic(), -math.inf
        self._lines = shown and not sys.stderr.isatty()
        disable = not shown or self._lines
        self._bar = tqdm(total=units, disable=disable, leave=False, dynamic_ncols=True, bar_format=_BAR, mininterval=0)

    def begin(self, what: str) -> None:
        """Say what is being done from here on."""
        self._what = what
        self._bar.set_description_str(what)
        self._tell()

    def advance(self, units: float = 1.0) -> None:
        """Count units as done."""
        self._done += units
        self._bar.update(units)
        if time.monotonic() - self._told >= LINE_S:
            self._tell()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _tell(self) -> None:
        if not self._lines:
            return
        self._told = time.monotonic()
        gone, share = self._told - self._started, min(self._done / self._units, 1.0)
        left = f", about {tqdm.format_interval(gone * (1 - share) / share)} left" if share else ""
        print(f"{share:4.0%} after {tqdm.format_interval(gone)}{left}: {self._what}", file=sys.stderr, flush=True)  # noqa: T201
