"""``specs/data_contracts.md``: the data contract for people, written from ``data_contracts.yaml``."""

from __future__ import annotations

from collections.abc import Iterator

from ptycho_torch.contract import Clause, DataContract, FileContract

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
        yield f"| `{entry['name']}` | {entry['dtype']} | {_yes(entry.get('required', False))} | {entry['meaning']} |"
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


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
