"""The signed-off decision of the gate: who decided what, when, and from which files.

Its digest shows damage and careless edits. Whoever can write the file can write another digest, so a sign-off is only
believed where the files that it names lead to the same decision again.
"""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.errors import DocumentError
from conformance.provenance.digest import numerical_digest, spec_digest
from conformance.provenance.evidence import Evidence, now_utc
from conformance.provenance.json_files import read_json, sealed
from conformance.release.gate import Decision, Input
from conformance.release.policy import Policy

SCHEMA = "sign_off.json"
SCHEMA_VERSION = 1
PACKAGED = Path(__file__).parents[1] / "sign-off.json"
"""Where a released wheel has its decision; ``hatch_build.py`` puts it there."""

_LARGEST_BYTES = 8 << 20


def sign_off(
    decision: Decision,
    inputs: Sequence[Input],
    policy: Policy,
    evidence: Sequence[Evidence],
) -> dict[str, Any]:
    """Return the decision as JSON, with the digest of its content.

    Args:
        decision: what was decided.
        inputs: the reports that it was decided from.
        policy: what it was decided by.
        evidence: what was at hand.
    """
    content = {
        "schema": SCHEMA_VERSION,
        "verdict": decision.verdict,
        "granted": decision.is_granted,
        "headline": decision.headline,
        "violations": list(decision.violations),
        "pending": list(decision.pending),
        "decided_utc": now_utc(),
        "decided_by": _who(),
        "policy": {name: getattr(policy, name) for name in ("file", "digest", "grants")},
        "inputs": [
            {"file": one.path.name, "digest": one.digest, "devices": list(one.devices)}
            | {name: one.report[name] for name in ("created_utc", "tier", "headline")}
            for one in inputs
        ],
        "evidence": [
            {"name": each.name, "created_utc": each.created_utc, "fresh": each.is_fresh(), "missed": list(each.missed)}
            for each in evidence
        ],
        "numerical_digest": numerical_digest(),
        "spec_digest": spec_digest(),
    }
    return sealed(content)


def _who() -> str:
    """Return the user of CI or of the system."""
    try:
        user = os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        user = "unknown user"
    return f"{user} on {platform.node() or 'an unnamed machine'}"


def read_sign_off(path: Path) -> dict[str, Any]:
    """Read a signed-off decision and check its digest.

    Raises:
        DocumentError: it cannot be read, does not follow ``specs/schema/sign_off.schema.json``, or was changed.
    """
    return read_json(path, SCHEMA, largest_bytes=_LARGEST_BYTES)


def disagreements(signed: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Say where a sign-off differs from what is decided now from the files that it claims to stand on."""
    for name, value in now.items():
        if name not in ("decided_utc", "decided_by", "digest") and signed[name] != value:
            yield f"{name} is {signed[name]!r:.200}; decided now: {value!r:.200}."


def signed_for_release(path: Path) -> dict[str, Any]:
    """Return a decision that grants a release of the sources that are running.

    Raises:
        DocumentError: there is none, it was changed, grants no release, or is of other sources or clauses.
    """
    if not path.is_file():
        raise DocumentError(
            f"{path}: not there, so these sources were not signed off for release; released wheels have it, a checkout "
            "has none. Decide with `python -m conformance gate`."
        )
    content = read_sign_off(path)
    if content["verdict"] != "release":
        raise DocumentError(f"{path}: the verdict is {content['verdict']!r}; expected 'release'. {content['headline']}")
    for name, here in (("numerical_digest", numerical_digest()), ("spec_digest", spec_digest())):
        if content[name] != here:
            raise DocumentError(
                f"{path}: signed off for sources with {name} {content[name]}, and these have {here}; install the wheel "
                "again, without changes."
            )
    return content
