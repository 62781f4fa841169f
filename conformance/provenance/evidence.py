"""Evidence: numbers that take hours or a GPU to measure, kept as files with the code that they hold for.

One file is one measurement. It names the device, versions and command, so that anyone can repeat it, and carries the
digest of the numerical sources: when they change, the number is stale, and says so.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from conformance.errors import DocumentError
from conformance.provenance import machine
from conformance.provenance.digest import numerical_digest, spec_digest
from conformance.provenance.json_files import read_json, sealed, write_json

EVIDENCE = Path(__file__).parents[1] / "evidence"
"""The evidence that comes with the package."""

SCHEMA = "evidence.json"
SCHEMA_VERSION = 1
_LARGEST_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Number = int | float


@dataclass(frozen=True)
class Goal:
    """What a number has to reach: one bound, or both.

    Attributes:
        at_least: smallest value that will do; None for no such bound.
        at_most: largest value that will do; None for no such bound.
    """

    at_least: Number | None = None
    at_most: Number | None = None

    def is_met(self, number: Number) -> bool:
        """Whether the number lies within the bounds; NaN never does."""
        above = self.at_least is None or number >= self.at_least
        return above and (self.at_most is None or number <= self.at_most) and not math.isnan(number)

    def __str__(self) -> str:
        signs = (("≥", self.at_least), ("≤", self.at_most))
        return ", ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)


@dataclass(frozen=True)
class Evidence:
    """One measurement.

    Attributes:
        kind: what was measured, for example ``parity``, ``faults``, ``clean``, ``mutation``, ``training``, ``replay``.
        device: torch device, ``cpu`` or ``cuda``.
        device_name: as its maker calls it.
        driver: of the device; None for a CPU.
        versions: distribution → version; None for what is not installed.
        command: the command line that anyone can repeat.
        created_utc: ``2026-01-31T12:00:00Z``.
        numerical_digest: of the sources that it is valid for: those that its kind of measurement reaches.
        spec_digest: of the specification that it is valid for.
        numbers: name → value. A unit is the end of the name: ``seconds``, ``_px``.
        goals: name → what the number has to reach; a number without a goal is only told.
        meanings: name → what the number is, in a few words.
        case: which of several measurements of a kind this is, for example ``float64``; empty if there is one.
        notes: whole sentences that belong to the numbers.
        values: name → every single value that numbers were computed from.
    """

    kind: str
    device: str
    device_name: str
    driver: str | None
    versions: Mapping[str, str | None]
    command: str
    created_utc: str
    numerical_digest: str
    spec_digest: str
    numbers: Mapping[str, Number]
    goals: Mapping[str, Goal] = dataclasses.field(default_factory=dict)
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    case: str = ""
    notes: tuple[str, ...] = ()
    values: Mapping[str, tuple[Number, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("kind", self.kind), ("device", self.device), ("case", self.case or "none")):
            if not _NAME.fullmatch(value):
                raise DocumentError(f"evidence: {name} {value!r} is no name; use small letters, digits and _.")
        for name, number in self.numbers.items():
            if not math.isfinite(number):
                raise DocumentError(f"evidence {self.name}: number {name} is {number}; only finite numbers are kept.")
        for name in (*self.goals, *self.meanings):
            if name not in self.numbers:
                raise DocumentError(f"evidence {self.name}: found no {name}; it has {', '.join(self.numbers)}.")

    @property
    def name(self) -> str:
        """What it is called: kind, case and device, joined by ``-``."""
        return "-".join(part for part in (self.kind, self.case, self.device) if part)

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the numbers that miss their goal."""
        return tuple(name for name, goal in self.goals.items() if not goal.is_met(self.numbers[name]))

    def is_fresh(self) -> bool:
        """Whether it is valid for the sources and the specification that are here."""
        return self.numerical_digest == numerical_digest(self.kind)


def measured_here(
    kind: str,
    command: str,
    numbers: Mapping[str, Number],
    *,
    device: str = "cpu",
    goals: Mapping[str, Goal] | None = None,
    meanings: Mapping[str, str] | None = None,
    case: str = "",
    notes: Sequence[str] = (),
    values: Mapping[str, tuple[Number, ...]] | None = None,
) -> Evidence:
    """Return evidence for what was just measured on this machine with the code that is here."""
    return Evidence(
        kind=kind,
        device=device.partition(":")[0],
        device_name=machine.device_name(device),
        driver=machine.driver(device),
        versions=machine.versions(),
        command=command,
        created_utc=now_utc(),
        numerical_digest=numerical_digest(kind),
        spec_digest=spec_digest(),
        numbers=dict(numbers),
        goals=dict(goals or {}),
        meanings=dict(meanings or {}),
        case=case,
        notes=tuple(notes),
        values=dict(values or {}),
    )


def now_utc() -> str:
    """Return the time, to the second, as ``2026-01-31T12:00:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_evidence(path: Path | str, evidence: Evidence) -> Path:
    """Write evidence as JSON in one rename; the same evidence gives the same bytes.

    Args:
        path: a file that ends in ``.json``, or a folder, which gets ``NAME.json``. A file that is there is replaced.
        evidence: what is written.
    """
    path = Path(path)
    target = path if path.suffix == ".json" else path / f"{evidence.name}.json"
    goals = {
        name: {bound: value for bound, value in vars(goal).items() if value is not None}
        for name, goal in evidence.goals.items()
    }
    return write_json(target, sealed(dataclasses.asdict(evidence) | {"goals": goals, "schema": SCHEMA_VERSION}))


def read_evidence(path: Path | str) -> Evidence:
    """Read one file of evidence.

    Raises:
        DocumentError: it cannot be read, is too large, does not follow ``specs/schema/evidence.schema.json``, or was
            changed after it was written.
    """
    path = Path(path)
    content = read_json(path, SCHEMA, largest_bytes=_LARGEST_BYTES)
    del content["schema"], content["digest"]
    goals = {name: Goal(**goal) for name, goal in content["goals"].items()}
    values = {name: tuple(each) for name, each in content.get("values", {}).items()}
    try:
        return Evidence(**content | {"goals": goals, "notes": tuple(content["notes"]), "values": values})
    except DocumentError as err:
        raise DocumentError(f"{path}: {err}") from err


def committed_evidence(folder: Path = EVIDENCE) -> tuple[Evidence, ...]:
    """Return all evidence of a folder, in the order of the file names.

    Raises:
        DocumentError: as ``read_evidence``; or there is no such folder, or a file has another name than its content.
    """
    if not folder.is_dir():
        raise DocumentError(f"{folder}: found no folder of evidence there; check the path.")
    found = []
    for path in sorted(folder.glob("*.json")):
        evidence = read_evidence(path)
        if path.stem != evidence.name:
            raise DocumentError(f"{path}: holds evidence {evidence.name}; call the file {evidence.name}.json.")
        found.append(evidence)
    return tuple(found)
