"""The certificate of a verification: JSON that follows a schema, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conformance import page
from conformance.bench import CaseReport
from conformance.digest import file_digest, numerical_digest, spec_digest
from conformance.evidence import now_utc
from conformance.json_files import as_text, write_text
from conformance.judge import Errors, Verdict
from conformance.machine import device_name, driver, versions
from conformance.page import Content, Html, badge, element, margin_bar, section, table
from conformance.parity import FORWARD_FREE, LOSS, NETWORK_CLAUSES
from conformance.recorded import STITCHED, Recorded
from conformance.spec import check_schema
from conformance.verify import Verification

SCHEMA = "certificate.json"
SCHEMA_VERSION = 1

_FORCED = "fed with the truth"
_COLUMNS = dict(zip(NETWORK_CLAUSES, ("forward", _FORCED, "backward", _FORCED, "weights", _FORCED), strict=False))
"""Clause → title; the losses stand in the first column."""

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
        "run_to_run": _finite(report.run_to_run),
        "stages": [
            {"stage": stage, "margins": {clause: _margin(verdict) for clause, verdict in clauses.items()}}
            for stage, clauses in worst.items()
        ],
    }


def _margin(verdict: Verdict) -> dict[str, Any]:
    return {
        "share": _finite(verdict.share),
        "passed": verdict.passed,
        "errors": _errors(verdict.candidate),
        "budget": _errors(verdict.budget),
    }


def _recorded(each: Recorded) -> dict[str, Any]:
    return {
        "quantity": each.name,
        "shape": list(each.given.shape),
        "converted": _margin(each.converted),
        "reference": _margin(each.reference),
        "converted_errors": _errors(each.own),
    }


def _errors(errors: Errors) -> dict[str, float | None]:
    return {"e": _finite(errors.e), "m": _finite(errors.m)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_certificate(directory: Path, found: Verification) -> tuple[Path, Path]:
    """Write ``certificate.json`` and ``certificate.html``, each whole or not at all; return their paths."""
    content = certificate(found)
    whole = certificate_page(content, pictures(found))
    return (
        write_text(directory / "certificate.json", as_text(content)),
        write_text(directory / "certificate.html", str(whole)),
    )


# -------------------------------------------------------------------------------------------------------------- page


def certificate_page(content: Mapping[str, Any], drawn: Sequence[Content]) -> Html:
    """Return the page of a certificate.

    Args:
        content: as ``certificate`` gives it.
        drawn: pictures of both objects, as ``pictures`` gives them.
    """
    parts: list[tuple[str, str, Sequence[Content]]] = [
        ("objects", "Both objects", drawn),
        ("recorded", "What the reference recorded", list(_recorded_section(content))),
        ("stages", "Stage by stage", list(_stages_section(content))),
        ("copy", "Copied bit for bit", list(_copy_section(content))),
        ("origin", "Archive, files and versions", list(_origin_section(content))),
    ]
    state = "passed" if content["passed"] else "failed"
    return page.page(
        f"Certificate of {content['archive']['file']}",
        element("p", "A converted model held against the archive that it comes from.", class_="soft"),
        page.verdict(state, content["verdict"]),
        page.navigation({identifier: title for identifier, title, _ in parts}),
        *(section(identifier, title, *inside) for identifier, title, inside in parts),
    )


def _recorded_section(content: Mapping[str, Any]) -> Iterator[Content]:
    if content["recorded"]:
        yield element(
            "p",
            "The converted model in float32 against what the TensorFlow reference recorded; and what was recorded "
            "against the float64 truth of this archive. e is the root mean square of the difference in units of the "
            "quantity's own, m the largest difference.",
        )
        yield table(
            ("quantity", "share of the budget", "", "e", "m", "recorded against the truth", "", "shape"),
            [
                (
                    each["quantity"],
                    _bar(each["converted"]),
                    _badge(each["converted"]),
                    page.number(_text(each["converted"]["errors"]["e"])),
                    page.number(_text(each["converted"]["errors"]["m"])),
                    _bar(each["reference"]),
                    _badge(each["reference"]),
                    page.line(" × ".join(map(str, each["shape"]))),
                )
                for each in content["recorded"]
            ],
        )
    else:
        yield element("p", "No recorded predictions were given, so the archive's weights alone were held against it.")
    for each in content["not_compared"]:
        yield element("p", f"Not compared: {each}.", class_="soft")
    if content["cause"]:
        yield element("p", f"What would explain it: {content['cause']}.")


def _stages_section(content: Mapping[str, Any]) -> Iterator[Content]:
    yield element(
        "p",
        f"Every stage on {content['inputs']}, run end to end, and fed with the truth so that an error belongs to that "
        f"stage alone. Reference: {content['reference']}. A full bar is the whole budget; beyond it the stage fails.",
    )
    for case in content["cases"]:
        rows = [(each["stage"], *(_cell(each["margins"], clause) for clause in _COLUMNS)) for each in case["stages"]]
        shares = [margin["share"] for each in case["stages"] for margin in each["margins"].values()]
        most = math.inf if None in shares else max(shares, default=0.0)
        summary = f"{case['dtype']}: {case['verdicts']} verdicts, at most {page.share_text(most)} of a budget"
        if case["first_failing_stage"]:
            summary += f"; first failing stage, fed with the truth: {case['first_failing_stage']}"
        whole: list[Content] = [table(("stage", *_COLUMNS.values()), rows)]
        if case["error"]:
            whole.append(element("p", f"The converted model raised {case['error']}"))
        yield page.details(summary, *whole, is_open=case["dtype"] == "float32" or not case["passed"])


def _copy_section(content: Mapping[str, Any]) -> Iterator[Content]:
    if not content["differences"]:
        yield element("p", "Weights, probe, scale and settings of the checkpoint are the archive's, bit for bit.")
    else:
        yield element("ul", *(element("li", each) for each in content["differences"]))


def _origin_section(content: Mapping[str, Any]) -> Iterator[Content]:
    archive = content["archive"]
    rows: list[tuple[Content, Content]] = [
        ("archive", archive["file"]),
        ("its SHA-256", element("code", archive["sha256"])),
        ("layout and era", f"{archive['layout']}, {archive['era']}"),
        ("probe from", archive["probe"]),
        ("intensity scale from", archive["intensity_scale"]),
    ]
    for name in ("checkpoint", "scan", "predictions"):
        file = content[name]
        rows.append(
            (
                name,
                "none was given"
                if file is None
                else element("span", file["file"], Html("<br>"), element("code", file["sha256"])),
            )
        )
    rows += [
        ("numerical sources", element("code", content["numerical_digest"])),
        ("specification", element("code", content["spec_digest"])),
        ("device", " · ".join(filter(None, (content["device"], content["device_name"], content["driver"])))),
        ("versions", ", ".join(f"{name} {version or 'absent'}" for name, version in content["versions"].items())),
        ("made", f"{content['created_utc']}, in {content['seconds']:.0f} s"),
    ]
    yield table(("", ""), rows)
    for note in archive["notes"]:
        yield element("p", note)
    settings = [(name, str(value)) for name, value in content["network"].items()]
    yield page.details("Settings of the network", table(("setting", "value"), settings))


def _cell(margins: Mapping[str, Any], clause: str) -> Content:
    # The losses have one verdict for both ways to run, and it stands where a stage has its forward one.
    margin = margins.get(clause, margins.get(LOSS) if clause == FORWARD_FREE else None)
    return "" if margin is None else _bar(margin)


def _bar(margin: Mapping[str, Any]) -> Html:
    return margin_bar(margin["share"], "passed" if margin["passed"] else "failed")


def _badge(margin: Mapping[str, Any]) -> Html:
    return badge("passed", "holds") if margin["passed"] else badge("failed", "fails")


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


# ---------------------------------------------------------------------------------------------------------- pictures


def pictures(found: Verification) -> list[Content]:
    """Draw both objects, amplitude and phase, and their difference.

    The whole object where one was recorded, else the first predicted object, else the float64 truth's.
    """
    whole = next((each for each in found.recorded if each.name == STITCHED), None)
    single = next((each for each in found.recorded if each.name == "object"), None)
    if whole is not None:
        given, ours = whole.given, whole.ours
        title, owner = f"The whole object, {given.shape[1]} × {given.shape[0]} pixels.", "recorded"
    elif single is not None:
        given, ours = single.given[0, :, :, 0], single.ours[0, :, :, 0]
        title, owner = "The first recorded object.", "recorded"
    else:
        given, ours = found.objects[0][0], found.objects[1][0]
        title, owner = "The object of the first group.", "float64 truth"
    if given.shape != ours.shape:
        return [element("p", f"The converted model gives {ours.shape} pixels and the {owner} {given.shape}.")]
    step = -(-max(given.shape) // _SHOWN_PX)
    given, ours = (array[::step, ::step].astype(np.complex128) for array in (given, ours))
    covered = np.isfinite(given) & (np.abs(given) > 0)
    turn = np.exp(-1j * np.angle(given[covered].sum())) if covered.any() else 1.0
    explained = (
        f"{title} Left what was given ({owner}), then what the converted model gives, in the same colours, then the "
        "magnitude of their difference in its own. One global phase is taken off both. Grey is where no object is."
    )
    rows = [
        _row("amplitude", np.abs, given, ours, covered, owner, "viridis"),
        _row("phase (rad)", lambda values: np.angle(values * turn), given, ours, covered, owner, "cividis"),
    ]
    return [element("p", explained), *rows]


def _row(
    name: str,
    view: Callable[[np.ndarray], np.ndarray],
    given: np.ndarray,
    ours: np.ndarray,
    covered: np.ndarray,
    owner: str,
    colours: str,
) -> Html:
    shown, converted = (np.where(covered, view(values), np.nan) for values in (given, ours))
    low, high = (float(each) for each in np.percentile(shown[covered], (1, 99))) if covered.any() else (0.0, 1.0)
    # A phase difference is one on the circle, and means nothing where there is no object.
    apart = np.abs(np.angle(ours * given.conj()) if "phase" in name else np.abs(ours) - np.abs(given))
    apart = np.where(covered | ~np.isfinite(apart), apart, 0.0)
    finite = apart[np.isfinite(apart)]
    # A few pixels at the border, where little overlaps, would leave the rest white.
    dark = float(np.percentile(finite, 99.9)) if finite.size else 0.0
    largest = float(finite.max(initial=0.0))
    scale = f"{low:.3g} to {high:.3g}"
    return element(
        "div",
        page.figure(
            page.colour_map(shown, f"{name}, {owner}", lowest=low, largest=high, colours=colours),
            f"{name}, {owner}: {scale}",
        ),
        page.figure(
            page.colour_map(converted, f"{name}, converted model", lowest=low, largest=high, colours=colours),
            f"{name}, converted model: {scale}",
        ),
        page.figure(
            page.heat_map(apart, f"difference in {name}", largest=dark),
            f"difference in {name}: white is 0, dark is {dark:.2g} and above; the largest is {largest:.2g}",
        ),
        class_="cards",
    )
