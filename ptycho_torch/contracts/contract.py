"""The data contract, <doc-ref type="contract">specs/data_contracts.md</doc-ref>, as frozen values.

``specs/data_contracts.yaml`` is read once. Errors take what was expected and what to do from the clause they name, so
that a statement has one place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ptycho_torch.errors import DataContractError, PtychoError

DATA_FILE = "data_contracts.yaml"

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML was built with it: ten times as fast, and every command reads the contract."""


class SpecError(PtychoError, ValueError):
    """A specification that is missing or contradicts itself, its schema or the configurations it speaks of."""


@dataclasses.dataclass(frozen=True)
class Clause:
    """One clause of the data contract; ``specs/README.md`` explains the fields."""

    id: str
    subject: str
    title: str
    text: str
    expected: str
    remedy: str
    code: str


@dataclasses.dataclass(frozen=True)
class Key:
    """One member of a file.

    Attributes:
        key: its name.
        aliases: other names that are accepted.
        shapes: accepted shapes, as letters joined by blanks; the empty string is a scalar.
        kinds: accepted kinds of dtype, as ``numpy.dtype.kind`` names them.
        required: whether a file without it is an error.
        unit: unit of its values.
        clause: id of the clause that judges it.
        meaning: what it is.
        assumed: what stands in for it where it is left out.
    """

    key: str
    shapes: tuple[str, ...]
    kinds: str
    unit: str
    clause: str
    meaning: str
    aliases: tuple[str, ...] = ()
    required: bool = False
    assumed: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.key, *self.aliases)


@dataclasses.dataclass(frozen=True)
class FileContract:
    """One kind of NPZ file."""

    title: str
    text: str
    keys: Mapping[str, Key]

    @property
    def names(self) -> frozenset[str]:
        """Every name that a member may have, aliases included."""
        return frozenset(name for key in self.keys.values() for name in key.names)


@dataclasses.dataclass(frozen=True)
class DataContract:
    """Everything that ``specs/data_contracts.yaml`` says.

    Attributes:
        files: ``scan``, ``probe``, ``reconstruction``.
        tensors: tables of named tensors, as plain mappings.
        product: the HDF5 product, as plain mappings.
        clauses: by id, in the order of the file.
    """

    files: Mapping[str, FileContract]
    tensors: Mapping[str, Any]
    product: Mapping[str, Any]
    clauses: Mapping[str, Clause]

    def of(self, *subjects: str) -> tuple[Clause, ...]:
        """Return the clauses of some subjects, in order."""
        return tuple(clause for clause in self.clauses.values() if clause.subject in subjects)


def specs_dir() -> Path:
    """Return the folder of the specs: inside the installed package, or at the top of a checkout.

    Raises:
        SpecError: neither is there.
    """
    package = Path(__file__).parents[1]
    for candidate in (package / "specs", package.parent / "specs"):
        if (candidate / DATA_FILE).is_file():
            return candidate
    raise SpecError(
        f"{DATA_FILE} is neither in {package / 'specs'} nor in {package.parent / 'specs'}; "
        "install ptycho-torch again, or run from a complete checkout."
    )


def read_yaml(name: str) -> Any:
    """Read one file of the specs folder, unchecked.

    Raises:
        SpecError: it is missing or no YAML.
    """
    path = specs_dir() / name
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as err:
        raise SpecError(f"{path}: cannot be read ({err}).") from err
    except yaml.YAMLError as err:
        raise SpecError(f"{path}: is no YAML ({err}).") from err


def parse_contract(content: Mapping[str, Any]) -> DataContract:
    """Make the contract from the content of ``data_contracts.yaml``.

    Raises:
        SpecError: an id or a name that is there twice, or a table that names a clause that is not there.
    """
    clauses = {entry["id"]: Clause(**entry) for entry in content["clauses"]}
    if len(clauses) != len(content["clauses"]):
        raise SpecError(f"{DATA_FILE}: a clause id is there twice.")
    files = {}
    for name, entry in content["files"].items():
        keys = [
            Key(**(key | {"shapes": tuple(key["shapes"]), "aliases": tuple(key.get("aliases", ()))}))
            for key in entry["keys"]
        ]
        names = [each for key in keys for each in key.names]
        if len(set(names)) != len(names):
            raise SpecError(f"{DATA_FILE}: {name}: a key or alias is there twice.")
        files[name] = FileContract(entry["title"], entry["text"], MappingProxyType({key.key: key for key in keys}))
    named = [(name, key.clause) for name, file in files.items() for key in file.keys.values()]
    named += [(name, field["clause"]) for name, table in content["tensors"].items() for field in table["fields"]]
    for table, clause_id in named:
        if clause_id not in clauses:
            raise SpecError(f"{DATA_FILE}: {table} names clause {clause_id!r}, which is not there.")
    return DataContract(
        files=MappingProxyType(files),
        tensors=MappingProxyType(content["tensors"]),
        product=MappingProxyType(content["product"]),
        clauses=MappingProxyType(clauses),
    )


@functools.cache
def load_contract() -> DataContract:
    """Read ``specs/data_contracts.yaml`` once.

    Raises:
        SpecError: as ``read_yaml`` and ``parse_contract``.

    >>> load_contract().clauses["SCAN-06"].title
    'One position for each pattern'
    """
    return parse_contract(read_yaml(DATA_FILE))


def violation(
    clause_id: str,
    found: str,
    *,
    path: Path | None = None,
    key: str | None = None,
    expected: str = "",
    remedy: str = "",
) -> DataContractError:
    """Return the error for a broken clause, to be raised by the caller.

    Args:
        clause_id: for example ``SCAN-06``.
        found: what is there, in a few words.
        path: the file.
        key: the member of the file.
        expected: in place of what the clause says, where numbers make it plainer.
        remedy: in place of what the clause says.

    >>> print(violation("SCAN-06", "12 values for 10 patterns", key="xcoords", remedy="Drop two."))
    key 'xcoords': found 12 values for 10 patterns; expected finite numbers, one for each pattern (clause SCAN-06). \
Drop two.
    """
    clause = load_contract().clauses[clause_id]
    expected, remedy = expected or clause.expected, remedy or clause.remedy
    where = "".join([f"{path}: " if path else "", f"key {key!r}: " if key else ""])
    return DataContractError(
        f"{where}found {found}; expected {expected} (clause {clause_id}). {remedy}",
        path=path,
        key=key,
        clause=clause_id,
        found=found,
        expected=expected,
        remedy=remedy,
    )


def shape_fits(letters: str, shape: tuple[int, ...], known: Mapping[str, int]) -> bool:
    """Say whether a shape is what the letters ask for; unknown letters take any length from 1 on."""
    names = letters.split()
    if len(names) != len(shape):
        return False
    bound = dict(known)
    return all(
        length == (int(name) if name.isdigit() else bound.setdefault(name, max(length, 1)))
        for name, length in zip(names, shape, strict=True)
    )
