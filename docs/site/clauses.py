"""The clauses of ``specs/*.yaml`` as pages: one heading each, with text, equation and every other field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_POLICIES = ("release_policy", "merge_policy")
_PAGES = {
    name: f"{name}.md" for name in ("stages", "data_contracts", "configuration", "divergences", "reference_defects")
}
_PAGES |= dict.fromkeys(_POLICIES, "policies.md")
_PROSE = ("symptom", "right", "ours", "none", "reason", "note")
_SPECIAL = re.compile(r"([\\*_<>|\[\]])")


def page_of(name: str) -> str:
    """Return the page that shows a file of the specification by its stem; the file itself where none does."""
    return _PAGES.get(name, f"{name}.yaml")


def pages(specs: Path) -> dict[str, str]:
    """Return name → Markdown of every page; data contracts have theirs in the repository."""
    stages, configuration, divergences, defects = (
        yaml.safe_load((specs / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("stages", "configuration", "divergences", "reference_defects")
    )
    texts = {
        "stages.md": [
            *_head("stages", "Stages and judgements", "Every stage of the network, in order; then how each is judged."),
            *_part("Linear pieces", [_text(stages["branch"]), ""]),
            *_part("Stages of the network", _clauses(stages["stages"])),
            *_part("Judgements", _clauses(stages["judgements"])),
        ],
        "configuration.md": [
            *_head("configuration", "Settings", "Every setting of a run, and its counterpart in TensorFlow."),
            *_settings(configuration["settings"]),
            *_part("Clauses of the configuration", _clauses(configuration["clauses"])),
            *_part(
                "Names that are no settings here",
                _table(configuration["only_there"], ("source", "names", "here", "reason")),
            ),
        ],
        "divergences.md": [
            *_head("divergences", "Findings about the reference", "What it, its ports and physics disagree about."),
            *_part("Clauses", _clauses(divergences["clauses"])),
            *_part("Findings", _table(divergences["divergences"], ("number", "symptom", "right", "clause"))),
        ],
        "reference_defects.md": [
            *_head("reference_defects", "Defects of the reference", "What parity pins and does not inherit."),
            *_part("Clauses", _clauses(defects["defects"])),
        ],
        "policies.md": [
            *_head("release_policy", "Policies", "What a release and a merge have to show."),
            *(line for name in _POLICIES for line in _part(f"{name}.yaml", _file(name))),
        ],
    }
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}


def _head(name: str, title: str, says: str) -> list[str]:
    return [f"# {title}", "", f"{says} Made from {{download}}`{name}.yaml <{name}.yaml>`; [the fields](README.md).", ""]


def _part(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from (f"## {title}", "", *lines)


def _file(name: str) -> Iterator[str]:
    yield from (f"```{{literalinclude}} {name}.yaml", ":language: yaml", "```", "")


def _clauses(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in entries:
        yield from (f"({entry['id'].lower()})=", f"### {_text(entry['id'])}: {_text(entry['title'])}", "")
        yield from (_text(entry["text"]), "")
        if "equation" in entry:
            yield from ("```text", str(entry["equation"]).strip(), "```", "")
        yield from _fields({key: entry[key] for key in entry if key not in ("id", "title", "text", "equation")})


def _settings(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for owner in dict.fromkeys(entry["owner"] for entry in entries):
        yield from (f"## Settings of {owner}", "")
        for entry in entries:
            if entry["owner"] == owner:
                yield from (f"### {_text(entry['name'])}", "", _text(entry["meaning"]), "")
                yield from _fields({key: entry[key] for key in entry if key not in ("name", "owner", "meaning")})


def _fields(fields: Mapping[str, Any]) -> Iterator[str]:
    """Write what is code in one line, and each sentence in a line of its own."""
    short = {key: _value(each) for key, each in fields.items() if key not in _PROSE}
    yield " · ".join(f"{key.replace('_', ' ')} {each}" for key, each in short.items())
    for key in _PROSE:
        if key in fields:
            yield from ("", f"*{key.capitalize()}:* {_text(fields[key])}")
    yield ""


def _table(entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    yield from (f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}")
    for entry in entries:
        cells = (_text(entry[name]) if name in _PROSE else _value(entry.get(name, "")) for name in columns)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(str(key))} {_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_value(each) for each in value)
    return f"`{value}`" if value != "" else ""


def _text(text: str) -> str:
    """Return a text in one line with what Markdown would take for its own escaped, but for code."""
    parts = " ".join(str(text).split()).split("`")
    return "`".join(part if number % 2 else _SPECIAL.sub(r"\\\1", part) for number, part in enumerate(parts))
