"""What is written for people from what machines read.

``specs/data_contracts.md`` is written from ``data_contracts.yaml``, and the numbers of ``docs/conformance.md`` from the
evidence that comes with the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conformance.errors import DocumentError
from conformance.provenance.evidence import Evidence, Number
from conformance.release.policy import Policy
from ptycho_torch.contracts.contract import Clause, DataContract, FileContract

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


def document(contract: DataContract) -> str:
    """Return the whole document."""
    return "\n".join(_lines(contract)) + "\n"


def _lines(contract: DataContract) -> Iterator[str]:
    yield from (
        "# Data contracts",
        "",
        "Written from `data_contracts.yaml` by `python -m conformance document`; change that file, not this one.",
        "`ptycho-torch check-data PATH` and `pytest conformance --parity-scan PATH` hold files against it.",
        "",
        "Three words for three things: *amplitude* (√counts), *intensity* (amplitude²), *counts* (photons).",
        "M patterns, N detector pixels a side, C = gridsize² patterns in a group, B groups in a batch,",
        "L groups and E scans in a map.",
        "",
        "# Files",
    )
    for file in contract.files.values():
        yield from _file(file)
    yield from ("", "# Tensors")
    for table in contract.tensors.values():
        yield from ("", f"## {table['title']}", "", " ".join(table["text"].split()), "")
        yield from ("| name | shape | dtype | unit | meaning | clause |", "|---|---|---|---|---|---|")
        for field in table["fields"]:
            shape = ", ".join(field["shape"].split())
            yield (
                f"| `{field['name']}` | ({shape}) | {field['dtype']} | {field['unit']} | {field['meaning']} "
                f"| {field['clause']} |"
            )
    product = contract.product
    yield from ("", f"# {product['title']}", "", " ".join(product["text"].split()), "")
    yield from ("| root attribute | dtype | required | meaning |", "|---|---|---|---|")
    for entry in product["attributes"]:
        required = "yes" if entry.get("required") else "no"
        yield f"| `{entry['name']}` | {entry['dtype']} | {required} | {entry['meaning']} |"
    yield from ("", "| dataset | shape | dtype | meaning |", "|---|---|---|---|")
    for entry in product["datasets"]:
        yield f"| `{entry['name']}` | ({', '.join(entry['shape'].split())}) | {entry['dtype']} | {entry['meaning']} |"
    yield from ("", "# Clauses")
    for subject, title in _SUBJECTS.items():
        yield from ("", f"## {title}")
        for clause in contract.of(subject):
            yield from _clause(clause)


def _file(file: FileContract) -> Iterator[str]:
    yield from ("", f"## {file.title}", "", " ".join(file.text.split()), "")
    yield from ("| key | shape | dtype | unit | meaning | if left out | clause |", "|---|---|---|---|---|---|---|")
    for key in file.keys.values():
        names = " or ".join(f"`{name}`" for name in key.names)
        shapes = " or ".join(f"({', '.join(shape.split())})" if shape else "scalar" for shape in key.shapes)
        absent = "an error" if key.required else key.assumed
        yield f"| {names} | {shapes} | {_kinds(key.kinds)} | {key.unit} | {key.meaning} | {absent} | {key.clause} |"


def _clause(clause: Clause) -> Iterator[str]:
    yield from ("", f"### {clause.id}: {clause.title}", "", " ".join(clause.text.split()), "")
    yield f"- Expected: {clause.expected}."
    yield f"- If it is broken: {clause.remedy}"
    yield f"- Enforced by `{clause.code}`."


def _kinds(kinds: str) -> str:
    words = {"f": "float", "c": "complex", "i": "int", "u": "uint", "b": "bool", "U": "text"}
    return ", ".join(words[kind] for kind in kinds)


# ----------------------------------------------------------------------------------------------------------- numbers

NUMBERS_FILE = "docs/conformance.md"
_BEGIN, _END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_KINDS = {
    "updates": "Ten updates of the optimiser",
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
    return f"{before}{_BEGIN}\n\n{written}\n{_END}{after}"


def numbers(evidence: Sequence[Evidence], policy: Policy) -> str:
    """Return what was measured as Markdown; what the policy asks for and nobody has measured says so."""
    wanted = [(each.kind, each.device) for each in policy.evidence]
    wanted += [(each.or_evidence, each.device) for each in policy.devices if each.or_evidence]
    kinds = dict.fromkeys([*_KINDS, *(kind for kind, _ in wanted), *(each.kind for each in evidence)])
    lines: list[str] = []
    for kind in kinds:
        mine = [each for each in evidence if each.kind == kind]
        missing = [device for named, device in wanted if named == kind and device not in {each.device for each in mine}]
        if mine or missing:
            lines += [f"### {_KINDS.get(kind, kind.capitalize())}", ""]
        lines += [f"On {device}: not measured yet.\n" for device in missing]
        for each in mine:
            lines += [*_measurement(each), ""]
    return "\n".join(lines)


def _measurement(evidence: Evidence) -> Iterator[str]:
    stale = "" if evidence.is_fresh() else " **Stale: the sources have changed since.**"
    where = f"{evidence.device_name}, {evidence.driver}" if evidence.driver else evidence.device_name
    case = f", {evidence.case.replace('_', ', ')}" if evidence.case else ""
    yield f"`{evidence.command}`{case} on {evidence.created_utc[:10]} ({where}).{stale}"
    yield from ("", "| number | value | goal |", "|---|---|---|")
    for name, number in evidence.numbers.items():
        missed = " – **missed**" if name in evidence.missed else ""
        goal = f"{evidence.goals[name]}{missed}" if name in evidence.goals else ""
        meaning = evidence.meanings.get(name, name.replace("_", " "))
        yield f"| {_cell(meaning)} | {_shown(number)} | {goal} |"
    if evidence.notes or evidence.values:
        yield from ("", *(f"- {note}" for note in evidence.notes))
        yield from (f"- {name}: {', '.join(f'{one:.5g}' for one in each)}" for name, each in evidence.values.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(number: Number) -> str:
    """Return a number with three digits, or as many as tell a large one from the bounds beside it."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.6g}"
