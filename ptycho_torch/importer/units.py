"""Units that other people's files state in text: the usual ones, and those that pint reads.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from ptycho_torch.errors import PtychoError

Kind = Literal["length", "energy"]

_SI = {"length": "meter", "energy": "joule"}
_USUAL: Mapping[Kind, Mapping[str, float]] = MappingProxyType(
    {
        "length": dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1.0)
        | {
            "cm": 1e-2,
            "mm": 1e-3,
            "um": 1e-6,
            "\N{MICRO SIGN}m": 1e-6,
            "\N{GREEK SMALL LETTER MU}m": 1e-6,
            "nm": 1e-9,
            "pm": 1e-12,
        }
        | dict.fromkeys(
            ("angstrom", "Angstrom", "angstroms", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}", "\N{ANGSTROM SIGN}"),
            1e-10,
        ),
        "energy": dict.fromkeys(("J", "joule", "joules"), 1.0)
        | {"eV": 1.602176634e-19, "keV": 1.602176634e-16, "MeV": 1.602176634e-13},
    }
)
"""What most files state, so that they need no pint, which takes a second to begin with."""
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
        PtychoError: an unusual unit, and pint is not installed.

    >>> si_factor("mm", "length")
    0.001
    """
    if text in _USUAL[kind]:
        return _USUAL[kind][text]
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
            f"Unusual units need pint, which reads all there are ({err}): pip install 'ptycho-torch[beamline]'"
        ) from err


@functools.cache
def _registry() -> Any:
    return _pint().UnitRegistry()
