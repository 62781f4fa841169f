"""The certificate of a verification: JSON that follows a schema, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.judge.measure import LOSS, NETWORK_CLAUSES
from conformance.judge.rules import Verdict
from conformance.provenance.digest import file_digest, numerical_digest, spec_digest
from conformance.provenance.evidence import now_utc
from conformance.provenance.json_files import finite, write_json, write_text
from conformance.provenance.machine import device_name, driver, versions
from conformance.report.page import colour_map, render
from conformance.report.results import written_errors
from conformance.session.bench import CaseReport
from conformance.spec.loader import check_schema
from conformance.verify.recorded import STITCHED, Recorded
from conformance.verify.verification import Verification

SCHEMA = "certificate.json"
SCHEMA_VERSION = 1

_COLUMNS = NETWORK_CLAUSES[:-1]
"""Clauses of the columns; the losses stand in the first one."""

_SHOWN_PX = 1024
"""Longer pictures are thinned: a page should stay small."""


def certificate(found: Verification) -> dict[str, Any]:
    """Return the certificate as plain values that follow ``specs/schema/certificate.schema.json``."""
    archive = found.archive
    content: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "passed": found.passed,
        "verdict": found.sentence,
        "created_utc": now_utc(),
        "seconds": found.seconds,
        "archive": {
            "file": archive.path.name,
            "sha256": archive.digest,
            "layout": archive.layout,
            "era": archive.era,
            "probe": archive.probe_source,
            "intensity_scale": archive.intensity_scale_source,
            "notes": list(archive.notes),
        },
        "checkpoint": _file(found.checkpoint),
        "scan": _file(found.scan),
        "predictions": _file(found.predictions),
        "network": dataclasses.asdict(found.reports[0].planned.settings),
        "inputs": found.inputs,
        "reference": found.reference,
        "device": found.device,
        "device_name": device_name(found.device),
        "driver": driver(found.device),
        "versions": versions(),
        "numerical_digest": numerical_digest(),
        "spec_digest": spec_digest(),
        "differences": list(found.differences),
        "cases": [_case(report) for report in found.reports],
        "recorded": [_recorded(each) for each in found.recorded],
        "cause": found.cause,
        "not_compared": list(found.not_compared),
    }
    check_schema(content, SCHEMA)
    return content


def _file(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"file": path.name, "sha256": file_digest(path)}


def _case(report: CaseReport) -> dict[str, Any]:
    """Return the margins of one dtype: for each stage and clause the verdict that used most of its budget."""
    worst: dict[str, dict[str, Verdict]] = {}
    for key, verdict in report.verdicts.items():
        clauses = worst.setdefault(report.stage_of[key], {})
        if key[0] not in clauses or verdict.share > clauses[key[0]].share:
            clauses[key[0]] = verdict
    return {
        "dtype": report.dtype,
        "passed": report.passed,
        "verdicts": len(report.verdicts),
        "first_failing_stage": report.first_failing,
        "error": report.error,
        "run_to_run": finite(report.run_to_run),
        "stages": [
            {"stage": stage, "margins": {clause: _margin(verdict) for clause, verdict in clauses.items()}}
            for stage, clauses in worst.items()
        ],
    }


def _margin(verdict: Verdict) -> dict[str, Any]:
    return {
        "share": finite(verdict.share),
        "passed": verdict.passed,
        "errors": written_errors(verdict.candidate),
        "budget": written_errors(verdict.budget),
    }


def _recorded(each: Recorded) -> dict[str, Any]:
    return {
        "quantity": each.name,
        "shape": list(each.given.shape),
        "converted": _margin(each.converted),
        "reference": _margin(each.reference),
        "converted_errors": written_errors(each.own),
    }


def write_certificate(directory: Path, found: Verification) -> tuple[Path, Path]:
    """Write ``certificate.json`` and ``certificate.html``, each whole or not at all; return their paths."""
    content = certificate(found)
    return (
        write_json(directory / "certificate.json", content),
        write_text(directory / "certificate.html", certificate_page(content, pictures(found))),
    )


# -------------------------------------------------------------------------------------------------------------- page

_SECTIONS = {
    "objects": "Both objects",
    "recorded": "What the reference recorded",
    "stages": "Stage by stage",
    "copy": "Copied bit for bit",
    "origin": "Archive, files and versions",
}


def certificate_page(content: Mapping[str, Any], objects: Mapping[str, Any]) -> str:
    """Return the page of a certificate.

    Args:
        content: as ``certificate`` gives it.
        objects: pictures of both objects, as ``pictures`` gives them.
    """
    title = f"Certificate of {content['archive']['file']}"
    cases = list(map(_stages, content["cases"]))
    return render("certificate", title=title, sections=_SECTIONS, found=content, cases=cases, objects=objects)


def _stages(case: Mapping[str, Any]) -> dict[str, Any]:
    shares = [margin["share"] for each in case["stages"] for margin in each["margins"].values()]
    rows = [{"stage": each["stage"], "margins": _row(each["margins"])} for each in case["stages"]]
    return {**case, "rows": rows, "largest": math.inf if None in shares else max(shares, default=0.0)}


def _row(margins: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    # The losses have one verdict for both ways to run, and it stands where a stage has its forward one.
    first, *others = _COLUMNS
    return [margins.get(first, margins.get(LOSS)), *map(margins.get, others)]


# ---------------------------------------------------------------------------------------------------------- pictures


def pictures(found: Verification) -> dict[str, Any]:
    """Draw both objects, amplitude and phase, and their difference.

    The whole object where one was recorded, else the first predicted object, else the float64 truth's.
    """
    whole = next((each for each in found.recorded if each.name == STITCHED), None)
    single = next((each for each in found.recorded if each.name == "object"), None)
    if whole is not None:
        given, ours, owner = whole.given, whole.ours, "recorded"
        title = f"The whole object, {given.shape[1]} × {given.shape[0]} pixels."
    elif single is not None:
        given, ours, owner = single.given[0, :, :, 0], single.ours[0, :, :, 0], "recorded"
        title = "The first recorded object."
    else:
        given, ours, owner = found.objects[0][0], found.objects[1][0], "float64 truth"
        title = "The object of the first group."
    about = {"title": title, "owner": owner, "given": given.shape, "ours": ours.shape}
    if given.shape != ours.shape:
        return {**about, "rows": []}
    step = -(-max(given.shape) // _SHOWN_PX)
    given, ours = (array[::step, ::step].astype(np.complex128) for array in (given, ours))
    covered = np.isfinite(given) & (np.abs(given) > 0)
    turn = np.exp(-1j * np.angle(given[covered].sum())) if covered.any() else 1.0
    # A phase difference is one on the circle, and means nothing where there is no object.
    amplitude, phase = np.abs(np.abs(ours) - np.abs(given)), np.abs(np.angle(ours * given.conj()))
    views = [
        ("amplitude", np.abs(given), np.abs(ours), amplitude, "viridis"),
        ("phase (rad)", np.angle(given * turn), np.angle(ours * turn), phase, "cividis"),
    ]
    return {**about, "rows": [_drawn(owner, covered, *view) for view in views]}


def _drawn(
    owner: str, covered: np.ndarray, name: str, given: np.ndarray, ours: np.ndarray, apart: np.ndarray, colours: str
) -> list[dict[str, str]]:
    """Return both pictures in the same colours, and that of their difference."""
    low, high = (float(each) for each in np.percentile(given[covered], (1, 99))) if covered.any() else (0.0, 1.0)
    apart = np.where(covered | ~np.isfinite(apart), apart, 0.0)
    finite = apart[np.isfinite(apart)]
    # A few pixels at the border, where little overlaps, would leave the rest white.
    dark = float(np.percentile(finite, 99.9)) if finite.size else 0.0
    both = [
        {
            "name": f"{name}, {whose}",
            "scale": f"{low:.3g} to {high:.3g}",
            "picture": colour_map(np.where(covered, values, np.nan), low, high, colours),
        }
        for whose, values in ((owner, given), ("converted model", ours))
    ]
    largest = float(finite.max(initial=0.0))
    difference = {
        "name": f"difference in {name}",
        "scale": f"white is 0, dark is {dark:.2g} and above; the largest is {largest:.2g}",
        "picture": colour_map(np.where(np.isfinite(apart), apart, dark), 0.0, dark, "Blues"),
    }
    return [*both, difference]
