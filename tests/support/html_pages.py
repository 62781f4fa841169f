"""Reads pages as a browser does, and fails where one reaches outside."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import conformance

SCRIPT = (Path(conformance.__file__).parent / "report" / "templates" / "page.js").read_text(encoding="utf-8")
HOSTILE = r"""<script>alert(1)</script>"><img src=http://x.example onerror='alert(2)'> & é 像 $\frac$ {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Notes elements, ids, references and text of a page, and that every element is closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy += dict(attrs)["content"] or ""
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action", "data", "poster", "srcset"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(text: str) -> Reader:
    """Read a page; fail where it reaches outside, runs something but its own script, or leads nowhere."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open, f"not closed: {reader.open}"
    assert not {"iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert reader.tags.count("script") == 1
    assert SCRIPT in reader.text
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert "default-src 'none'" in reader.policy
    assert f"script-src 'sha256-{digest}'" in reader.policy
    for reference in reader.references:
        assert reference.startswith(("#", "data:")), reference
    targets = [reference[1:] for reference in reader.references if reference.startswith("#")]
    assert set(targets) <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids), "an id is there twice"
    assert not {"fetch", "XMLHttpRequest", "innerHTML", "eval", "import"} & set(re.findall(r"\w+", SCRIPT))
    assert "url(" not in text
    assert "@import" not in text
    return reader


def hostile(values: Any, keep: Collection[str] = ()) -> Any:
    """Return plain values with every text replaced by ``HOSTILE``, but for those under the keys to keep."""
    if isinstance(values, dict):
        return {key: value if key in keep else hostile(value, keep) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [hostile(each, keep) for each in values]
    return HOSTILE if isinstance(values, str) else values


def drawings(text: str) -> list[bytes]:
    """Return the SVG files in a page."""
    return [base64.b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
