"""Units that other people's files state in text, read by pint.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import functools
import importlib
import re
from types import ModuleType
from typing import Any, Literal

from ptycho_torch.errors import PtychoError

Kind = Literal["length", "energy"]

_SI = {"length": "meter", "energy": "joule"}
_PLAIN = {"length": ("m", "meter", "metre", "meters", "metres"), "energy": ("J", "joule", "joules")}
# A word, and no expression: the text comes from an untrusted file.
_WORD = re.compile(r"[A-Za-zµμÅÅ_]{1,24}")


class UnknownUnitError(PtychoError, ValueError):
    """Text that names no unit of the kind that is needed."""


def si_factor(text: str, kind: Kind) -> float:
    """Return how many metres, or joules, one of this unit is.

    Args:
        text: for example ``um``, ``µm``, ``nm``, ``angstrom``, ``keV``.
        kind: ``length`` or ``energy``.

    Raises:
        UnknownUnitError: no unit of that kind.
        PtychoError: another unit than metre or joule, and pint is not installed.

    >>> si_factor("mm", "length")
    0.001
    """
    if text in _PLAIN[kind]:
        return 1.0
    pint = _pint()
    for name in (text, text.lower()) if len(text) > 3 else (text,):
        if not _WORD.fullmatch(name):
            continue
        try:
            return float(_registry()(name).to(_SI[kind]).magnitude)
        except (pint.UndefinedUnitError, pint.DimensionalityError):
            continue
        except Exception:
            break
    raise UnknownUnitError(f"the unit {text!r}, which is no {kind}")


def _pint() -> ModuleType:
    try:
        return importlib.import_module("pint")
    except ImportError as err:
        raise PtychoError(
            f"Units other than metre and joule need pint ({err}): pip install 'ptycho-torch[beamline]'"
        ) from err


@functools.cache
def _registry() -> Any:
    return _pint().UnitRegistry()
