"""Pages need nothing beside them, and show text from anywhere as text."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from jinja2 import UndefinedError

from conformance.report import page
from tests.support.html_pages import HOSTILE, check

TEMPLATES = Path(page.__file__).with_name("templates")
CERTIFICATE = {"passed": True, "verdict": "It is the same.", "differences": [HOSTILE]}


def example() -> str:
    """A page with one section."""
    return page.render("certificate", title=HOSTILE, sections={"copy": "Copied"}, found=CERTIFICATE)


def test_text_from_anywhere_is_text() -> None:
    reader = check(example())
    assert reader.tags.count("img") == 0
    # The title of the window, that of the page, and the entry of the list.
    assert reader.text.count(HOSTILE) == 3


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="verdict"):
        page.render("certificate", title="t", sections={}, found={"passed": True})


def test_only_the_files_of_the_page_are_not_escaped() -> None:
    """A template that calls a value safe would let it in as HTML."""
    found = {path.name: path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.j2")}
    assert len(found) >= 5
    unescaped = [each for text in found.values() for each in re.findall(r"\w+ *\| *safe|autoescape|Markup", text)]
    assert unescaped == ["style | safe", "script | safe"]


def test_tables_can_be_sorted_and_searched() -> None:
    """Without the script, which the page allows by its digest, the field would be of no use, so it stays hidden."""
    reader = check(example())
    assert reader.tags.count("input") == 1
    assert '<label class="search" hidden>' in example()
    assert 'querySelectorAll("thead th")' in "".join(reader.text)


def test_both_colour_schemes_have_every_colour() -> None:
    """A colour that one scheme lacks is that of the other, which its background may hide."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert style in example()
    light, dark = (set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{([^}]*)\}", style))
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", style)) == light
    assert not re.findall(r"#[0-9a-f]{3,6}", re.sub(r":root \{[^}]*\}", "", style))


@pytest.mark.parametrize(
    "broken",
    [
        '<img src="https://x.example/a.png">',
        '<a href="#nowhere">x</a>',
        '<p id="a"></p><p id="a"></p>',
        "<script></script>",
        "<p>",
    ],
)
def test_a_page_that_reaches_outside_is_seen(broken: str) -> None:
    with pytest.raises(AssertionError):
        check(example().replace("<nav>", f"{broken}<nav>"))


@pytest.mark.parametrize(
    ("share", "width", "shown"),
    [
        (0.25, "25.0%", "25%"),
        (0.0, "0.0%", "0%"),
        (1.5, "100.0%", "150%"),
        (4e4, "100.0%", "4e+04×"),
        (None, "100.0%", "wrong"),
        (math.inf, "100.0%", "wrong"),
        (math.nan, "100.0%", "wrong"),
    ],
)
def test_a_bar_shows_the_share(share: float | None, width: str, shown: str) -> None:
    each = {"quantity": "object", "shape": [1], "reference": {"share": 0.5, "passed": True}}
    each["converted"] = {"share": share, "passed": False, "errors": {"e": None, "m": 1.0}}
    found = CERTIFICATE | {"recorded": [each], "not_compared": [], "cause": ""}
    text = page.render("certificate", title="t", sections={"recorded": "Recorded"}, found=found)
    bar, _ = re.findall(r'<span class="margin.*?share">.*?</span>', text, re.DOTALL)
    assert f"width:{width}" in bar
    assert f">{shown}<" in bar
    assert 'class="margin failed"' in bar


def test_a_map_is_a_png_that_is_dark_where_the_deviation_is() -> None:
    from matplotlib.image import imread

    values = np.zeros((4, 6))
    values[1, 2] = 3e-7
    address = page.colour_map(values, 0.0, 3e-7, "Blues")
    pixels = imread(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert pixels.shape[:2] == (4, 6)
    assert np.unravel_index(np.argmin(pixels[..., 0]), (4, 6)) == (1, 2)


def test_a_map_of_nothing_but_infinity_is_drawn() -> None:
    assert page.colour_map(np.full((2, 2), np.inf), 0.0, 0.0, "Blues").startswith("data:image/png")


def drawn(labels: list[str], lines: Mapping[str, list[float | None]]) -> ElementTree.Element:
    address = page.line_chart(labels, lines, "e")
    assert address == page.line_chart(labels, lines, "e"), "the same values give the same bytes"
    return ElementTree.fromstring(base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")))


def test_a_chart_leaves_gaps_where_nothing_was_measured() -> None:
    chart = drawn(list("abcdefg"), {"s": [1e-7, None, 1e-6, 1e-5, 0.0, math.inf, 1e-4]})
    (line,) = [
        each.get("d", "")
        for each in chart.iter("{http://www.w3.org/2000/svg}path")
        if "stroke: #1f77b4" in each.get("style", "") and each.get("clip-path")
    ]
    # Four values, and one stretch of two: a line begins anew at every value after a gap.
    assert line.count("M") == 3
    assert page.line_chart(["a"], {"s": [None]}, "e") == ""
    assert page.line_chart([], {}, "e") == ""


@pytest.mark.parametrize("value", [1e-320, 1e-300, 1.0, 1e300])
def test_a_chart_shows_names_from_anywhere_at_any_size(value: float) -> None:
    chart = drawn([HOSTILE, "$x$"], {HOSTILE: [value, 2 * value], "budget": [value, None]})
    text = [each.text for each in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert text.count(HOSTILE) == 2
    assert "$x$" in text
    assert "budget" in text
