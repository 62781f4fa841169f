"""What is written for people from what machines read.

``specs/data_contracts.md`` is written from ``data_contracts.yaml``, and the numbers of ``docs/conformance.md`` from the
evidence that comes with the package.
"""

from __future__ import annotations

from collections.abc import Sequence

from conformance.errors import DocumentError
from conformance.provenance.evidence import Evidence, Number
from conformance.release.policy import Policy
from conformance.report.page import render_text
from ptycho_torch.contracts.contract import DataContract

FILE = "data_contracts.md"
_SUBJECTS = {
    "npz": "NPZ files",
    "scan": "Scans",
    "probe": "Probes",
    "cxi": "Import of CXI and HDF5",
    "preparation": "Preparation",
    "groups": "Groups",
    "map": "Memory map",
    "batch": "Batches",
    "reconstruction": "Reconstructions",
    "product": "HDF5 products",
    "file": "Other files that anybody may have written",
}


_DTYPES = {"f": "float", "c": "complex", "i": "int", "u": "uint", "b": "bool", "U": "text"}


def document(contract: DataContract) -> str:
    """Return the whole document."""
    return render_text("data_contracts.md", contract=contract, subjects=_SUBJECTS, kinds=_DTYPES)


# ----------------------------------------------------------------------------------------------------------- numbers

NUMBERS_FILE = "docs/conformance.md"
_BEGIN, _END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_KINDS = {
    "training": "Training from scratch",
    "faults": "Fault matrix",
    "clean": "Clean runs",
    "mutation": "Mutation of the comparer",
    "replay": "Record and replay",
    "capture": "Capturing stages",
    "parity": "Parity on a GPU",
}
"""Kinds of evidence that are told first, with their titles."""


def with_numbers(text: str, written: str) -> str:
    """Return a document with the part between its two marks replaced.

    Raises:
        DocumentError: the marks are not there once each, in this order.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end or _BEGIN in rest or _END in before + after:
        raise DocumentError(f"{NUMBERS_FILE}: expected {_BEGIN} once, and {_END} once behind it; put them back.")
    return f"{before}{_BEGIN}\n\n{written}{_END}{after}"


def numbers(evidence: Sequence[Evidence], policy: Policy) -> str:
    """Return what was measured as Markdown; what the policy asks for and nobody has measured says so."""
    wanted = [(each.kind, each.device) for each in policy.evidence]
    wanted += [(each.or_evidence, each.device) for each in policy.devices if each.or_evidence]
    kinds = dict.fromkeys([*_KINDS, *(kind for kind, _ in wanted), *(each.kind for each in evidence)])
    told = []
    for kind in kinds:
        mine = [each for each in evidence if each.kind == kind]
        missing = [device for named, device in wanted if named == kind and device not in {each.device for each in mine}]
        told.append((_KINDS.get(kind, kind.capitalize()), missing, mine))
    return render_text("numbers.md", kinds=told, shown=_shown)


def _shown(number: Number) -> str:
    """Return a number with three digits, or as many as tell a large one from the bounds beside it."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.6g}"
