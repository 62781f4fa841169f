"""What a release, or a merge, has to show: the files ``specs/release_policy.yaml`` and ``specs/merge_policy.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conformance.provenance.clauses import catalogue
from conformance.provenance.digest import file_digest
from conformance.provenance.evidence import Goal
from conformance.spec.loader import check_schema
from ptycho_torch.contracts.contract import SpecError, specs_dir

RELEASE, MERGE = "release", "merge"
FILES = {RELEASE: "release_policy.yaml", MERGE: "merge_policy.yaml"}
_SCHEMA = "policy.yaml"


_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Requirement:
    """What has to be shown on one device.

    Attributes:
        device: torch device.
        tier: at least this one.
        clauses: dtype → clauses that must have been judged in it; ``any`` → those that have none.
        or_evidence: kind of committed evidence that will do where there is no report; None if none does.
        may_skip: how the ids of tests begin whose absence is no gap.
    """

    device: str
    tier: str
    clauses: Mapping[str, Sequence[str]]
    or_evidence: str | None = None
    may_skip: tuple[str, ...] = ()

    @property
    def required(self) -> frozenset[str]:
        """All clauses, whatever the dtype."""
        return frozenset(clause for clauses in self.clauses.values() for clause in clauses)


@dataclass(frozen=True)
class EvidenceRequirement:
    """Evidence that has to be there and fresh, and the bounds that its numbers have to keep, by name."""

    kind: str
    device: str
    goals: Mapping[str, Goal]


@dataclass(frozen=True)
class Policy:
    """One policy.

    Attributes:
        file: its name.
        digest: SHA-256 of the file.
        grants: ``release`` or ``merge``.
        largest_age_days: of a report.
        devices: what has to be shown on each.
        evidence: what has to be there besides the reports.
    """

    file: str
    digest: str
    grants: str
    largest_age_days: float
    devices: tuple[Requirement, ...]
    evidence: tuple[EvidenceRequirement, ...]


def read_policy(name: str | Path) -> Policy:
    """Read a policy.

    Args:
        name: ``release`` or ``merge`` for those that come with the package, or a file.

    Raises:
        SpecError: the file cannot be read, does not follow its schema, names a clause that is not there, or would
            release without CUDA.
    """
    path = specs_dir() / FILES[str(name)] if str(name) in FILES else Path(name)
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_BYTES + 1)
        if len(raw) > _LARGEST_BYTES:
            raise SpecError(f"found more than {_LARGEST_BYTES:,} bytes; expected a policy.")
        return _parse(yaml.safe_load(raw.decode("utf-8")), path)
    except (OSError, UnicodeDecodeError) as err:
        known = " or ".join(FILES)
        raise SpecError(f"{path}: cannot be read ({err}); give {known}, or the path of a policy.") from err
    except (yaml.YAMLError, RecursionError) as err:
        raise SpecError(f"{path}: is no YAML ({err}).") from err
    except SpecError as err:
        raise SpecError(f"{path}: {str(err).removeprefix(f'{_SCHEMA}: ')}") from err


def _parse(content: Any, path: Path) -> Policy:
    check_schema(content, _SCHEMA)
    devices = tuple(
        Requirement(**entry | {"may_skip": tuple(each["tests"] for each in entry.get("may_skip", ()))})
        for entry in content["devices"]
    )
    names = [each.device for each in devices]
    if len(set(names)) != len(names):
        raise SpecError(f"a device is there twice: {', '.join(names)}.")
    unknown = {clause for each in devices for clause in each.required} - catalogue().keys()
    if unknown:
        raise SpecError(f"no file of specs has clause {', '.join(sorted(unknown))}.")
    if content["grants"] == RELEASE and "cuda" not in names:
        raise SpecError("a release has to be shown on cuda; list it under devices, or grant a merge only.")
    evidence = tuple(
        EvidenceRequirement(**entry | {"goals": {name: Goal(**goal) for name, goal in entry["goals"].items()}})
        for entry in content["evidence"]
    )
    return Policy(path.name, file_digest(path), **content | {"devices": devices, "evidence": evidence})
