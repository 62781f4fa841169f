"""What a recording says about itself: format, digests of its members, the specification and code that it is valid for.

Described in <doc-ref type="contract">specs/README.md</doc-ref>, "Bundles". A recording of format 1 has no manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.errors import BundleError
from conformance.judge.measure import BACKWARD_FORCED, GRADIENT_FORCED, GRADIENT_FREE, LOSS, Key, stage_clauses
from conformance.judge.rules import Errors
from conformance.provenance.digest import meaning_digest, python_sources
from conformance.spec.loader import Stage
from ptycho_torch.contracts.contract import read_yaml

FORMAT = 2
"""Version of the bundle format that is written; format 1 is read too."""

SPECIFICATION, CODE = "specification", "code"

_STAGES_FILE = "stages.yaml"
_CODE_FILES = (
    "ptycho_tf_bridge/keras_reference.py",
    "ptycho_tf_bridge/layout.py",
    "ptycho_tf_bridge/weights.py",
)
"""What computes the reference's numbers, which nobody computes anew in a replay.

What hands them to the judge is not among it: a mistake there puts them far from the truth, as REFERENCE sees.
The truth is computed each time and compared with what is stored, the judge judges each time, and the candidate is
what a recording is there to judge.
"""

_HUGE = 1e300
_SHA256 = re.compile(r"[0-9a-f]{64}")


def digests_now() -> dict[str, str]:
    """Return the digests of the specification and of the code that recordings hold for, as they are here."""
    sources = python_sources()
    content = read_yaml(_STAGES_FILE)
    # How parity is judged stands in the same file, and is no part of what was recorded.
    stages = json.dumps({part: content[part] for part in ("stages", "branch")}, sort_keys=True)
    return {
        SPECIFICATION: hashlib.sha256(stages.encode()).hexdigest(),
        CODE: meaning_digest({name: sources[name] for name in _CODE_FILES}),
    }


@dataclass(frozen=True)
class Manifest:
    """The member ``manifest`` of a recording.

    Attributes:
        digests: ``specification`` and ``code`` → SHA-256 of what it was recorded with.
        members: key → SHA-256 of dtype, shape and content, for every other member.
    """

    digests: Mapping[str, str]
    members: Mapping[str, str]

    def changed(self) -> tuple[str, ...]:
        """Name what differs from here: ``specification``, ``code``, both or nothing."""
        now = digests_now()
        return tuple(name for name in now if self.digests[name] != now[name])


@dataclass(frozen=True)
class RecordedErrors:
    """The member ``envelope`` of a recording: how far the reference was from the truth.

    Attributes:
        runs: how many runs the envelope covers: the case itself, and copies moved by one ulp.
        own: quantity → errors on the case itself.
        widest: quantity → largest errors of all runs; in units of the condition, what budgets are of.
    """

    runs: int
    own: Mapping[Key, Errors]
    widest: Mapping[Key, Errors]


def member_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of dtype, shape and content; the byte order of the machine does not count."""
    plain = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    found = hashlib.sha256(f"{plain.dtype.str} {plain.shape}\n".encode())
    found.update(plain.tobytes())
    return found.hexdigest()


def manifest_member(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the member ``manifest`` for all other members of a recording made here."""
    content = {
        "format": FORMAT,
        "digests": digests_now(),
        "members": {key: member_digest(array) for key, array in arrays.items()},
    }
    return np.array(json.dumps(content, sort_keys=True))


def read_manifest(path: Path, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Manifest:
    """Check a manifest, and every member against it.

    Raises:
        BundleError: another format, a digest that is none, or a member that is not as it was recorded.
    """
    found = content.get("format")
    if found != FORMAT:
        raise BundleError(
            f"{path}: key 'manifest': found format {found!r}; expected {FORMAT}. Record it again with "
            "`python -m conformance record`, or install the version that wrote it."
        )
    digests, members = content.get("digests"), content.get("members")
    for name, table in (("digests", digests), ("members", members)):
        if not isinstance(table, dict) or not all(_is_digest(value) for value in table.values()):
            raise BundleError(f"{path}: key 'manifest': {name!r} is no table of SHA-256 digests; record it again.")
    assert isinstance(digests, dict)
    assert isinstance(members, dict)
    if set(digests) != {SPECIFICATION, CODE}:
        raise BundleError(f"{path}: key 'manifest': expected the digests {SPECIFICATION!r} and {CODE!r}.")
    for key in arrays:
        if key != "manifest" and members.get(key) != member_digest(arrays[key]):
            state = "is not as it was recorded" if key in members else "was not there when it was recorded"
            raise BundleError(f"{path}: key {key!r} {state} (its SHA-256 differs from the manifest); record it again.")
    lost = sorted(set(members) - set(arrays))
    if lost:
        raise BundleError(f"{path}: key {lost[0]!r} of the manifest is missing; record it again.")
    return Manifest(digests, members)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def envelope_member(errors: RecordedErrors) -> np.ndarray:
    """Return the member ``envelope``."""
    table: dict[str, dict[str, list[float]]] = {}
    for (clause, name), own in errors.own.items():
        widest = errors.widest[clause, name]
        table.setdefault(clause, {})[name] = [own.e, own.m, widest.e, widest.m]
    return np.array(json.dumps({"runs": errors.runs, "errors": table}, allow_nan=False))


def read_envelope(path: Path, content: Mapping[str, Any], stages: Sequence[Stage]) -> RecordedErrors:
    """Check an envelope: errors as [e, m, widest e, widest m] by clause and quantity, some of every stage.

    Raises:
        BundleError: a number that is missing, not finite or below zero.
    """
    runs = content.get("runs")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise BundleError(f"{path}: key 'envelope': 'runs' is {runs!r}; expected a whole number above zero.")
    errors = _rows(path, content)
    shown = {(clause, _stage_of(clause, name)) for clause, name in errors}
    for clause, stage in judged(stages):
        if (clause, stage) not in shown:
            raise BundleError(f"{path}: key 'envelope' has no error of {stage} ({clause}); record the bundle again.")
    return RecordedErrors(
        runs,
        own={key: Errors(*row[:2]) for key, row in errors.items()},
        widest={key: Errors(*row[2:]) for key, row in errors.items()},
    )


def _stage_of(clause: str, name: str) -> str:
    """Return the stage that a quantity belongs to."""
    if clause == LOSS:
        return "loss"
    return name.rpartition(".")[0] if clause in (GRADIENT_FREE, GRADIENT_FORCED) else name.partition("<-")[0]


def judged(stages: Sequence[Stage]) -> Iterator[Key]:
    """Yield every judgement clause with every stage that it judges, the losses last."""
    for stage in stages:
        yield from ((clause, stage.id) for clause in stage_clauses(stage))
    yield from ((LOSS, "loss"), (BACKWARD_FORCED, "loss"))


def _rows(path: Path, content: Mapping[str, Any]) -> dict[Key, list[float]]:
    """Read a table of tables of rows of four numbers."""
    table = content.get("errors")
    rows: dict[Key, list[float]] = {}
    if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
        raise BundleError(f"{path}: key 'envelope': 'errors' is no table of tables; record the bundle again.")
    for clause, each in table.items():
        for quantity, row in each.items():
            if not isinstance(row, list) or len(row) != 4 or not all(_is_size(number) for number in row):
                raise BundleError(
                    f"{path}: key 'envelope': errors of {quantity} ({clause}) are not 4 finite numbers of zero or "
                    "more; record the bundle again."
                )
            rows[clause, quantity] = row
    return rows


def _is_size(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < _HUGE
