"""What GitHub shows of a run: a summary of the step, and a note at the line of code that is wrong."""

from __future__ import annotations

import functools
import html
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.report.difference import share_of
from conformance.report.page import share_text
from conformance.report.results import Outcome, headline, run_headline
from conformance.report.run_page import sentence
from conformance.session.bench import Bench
from conformance.subjects.candidate import located

_LISTED = 10
"""GitHub shows no more than ten notes of a step."""


def summary(report: Mapping[str, Any], change: str = "") -> str:
    """Return a report as Markdown.

    Args:
        report: what ``parity.json`` has.
        change: what has changed since an earlier report, in one line.
    """
    mark = "✅" if report["passed"] else "❌"
    counts = ", ".join(f"{report['tests'][state]} {state}" for state in ("passed", "failed", "skipped"))
    lines = [f"### {mark} {_text(sentence(report))}", "", f"{counts}; tier {report['tier']}", ""]
    names = ("case", "device", "dtype", "first_failing_stage", "cause")
    rows = [(*(case[name] or "–" for name in names), _most(case)) for case in report["cases"]]
    lines += _table(("case", "device", "dtype", "first wrong stage", "cause", "most of a budget used"), rows)
    failed = [each for each in report["results"] if each["outcome"] == "failed"]
    lines += _table(("failed test", "why"), [(each["test"], each["reason"]) for each in failed[:_LISTED]])
    if len(failed) > _LISTED:
        lines += [f"{len(failed) - _LISTED} more failed.", ""]
    reasons = Counter(each["reason"] for each in report["results"] if each["outcome"] == "skipped")
    lines += _table(("not checked, because", "tests"), [(reason, str(count)) for reason, count in reasons.items()])
    return "\n".join([*lines, *([_text(change), ""] if change else [])])


def _most(case: Mapping[str, Any]) -> str:
    share = max(map(share_of, case["verdicts"]), default=None)
    return "–" if share is None else share_text(share)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    body = ["| " + " | ".join(map(_text, row)) + " |" for row in rows]
    return ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers), *body, ""]


def _text(text: str) -> str:
    """Return one line that Markdown shows as it is, whatever a candidate has put into it."""
    plain = html.escape(" ".join(text.split())[:300], quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", plain)


def notes(bench: Bench, outcome: Outcome, workspace: Path) -> Iterator[str]:
    """Yield a workflow command for each thing that is wrong, ten at most, at its line.

    Args:
        bench: what was judged.
        outcome: of the run.
        workspace: folder of the checkout; a file outside of it is only named.
    """
    found: dict[str, str] = {}
    for report in bench.reports.values():
        stage = report.first_failing or report.first_free
        if not report.passed and stage is not None:
            settings = report.planned.settings
            where = functools.partial(located, bench.factory, stage, settings)
            found.setdefault(stage, _note(where, workspace, f"parity: {stage}", headline(report)))
    for each in bench.failed_checks:
        where = functools.partial(_line_of_code, each.check.run)
        found.setdefault(each.check.id, _note(where, workspace, f"parity: {each.check.id}", each.explain()))
    if not found and not outcome.passed:
        found[""] = f"::error title=parity::{_escaped(run_headline(bench, outcome))}"
    yield from list(found.values())[:_LISTED]


def _line_of_code(run: Callable[..., object]) -> tuple[Path, int]:
    code = run.func if isinstance(run, functools.partial) else run
    return Path(str(inspect.getsourcefile(code))), inspect.getsourcelines(code)[1]


def _note(where: Callable[[], tuple[Path, int]], workspace: Path, title: str, message: str) -> str:
    try:
        path, line = where()
    except (OSError, TypeError, ValueError, SyntaxError):
        # Code without a source file has no line.
        return f"::error title={_escaped(title, ':,')}::{_escaped(message)}"
    if path.resolve().is_relative_to(workspace.resolve()):
        place = path.resolve().relative_to(workspace.resolve()).as_posix()
    else:
        place, message = "", f"{message} ({path}:{line})"
    at = f"file={_escaped(place, ':,')},line={line}," if place else ""
    return f"::error {at}title={_escaped(title, ':,')}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Return text as a workflow command takes it: one line, and in a property without what ends it."""
    for letter in ("%", "\r", "\n", *more):
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text
