"""Pages need nothing beside them, and show text from anywhere as text."""

from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
from html_pages import HOSTILE, check

from conformance import page


def everything(text: str) -> page.Html:
    return page.page(
        text,
        page.navigation({"one": text}),
        page.verdict("failed", text),
        page.section(
            "one",
            text,
            page.table([text, "b"], [[text, page.number(text)]], caption=text),
            page.badge("waived", text),
            page.margin_bar(0.4),
            page.figure(page.heat_map(np.eye(3), text), text),
            page.details(text, text, is_open=True),
            page.line_chart(text, [text, "b"], [page.Series(text, [1e-7, 1e-6])], unit=text),
        ),
    )


def test_text_from_anywhere_is_text() -> None:
    reader = check(everything(HOSTILE))
    assert reader.tags.count("img") == 1
    assert sum(HOSTILE in text for text in reader.text) >= 10


def test_tables_can_be_sorted_and_searched() -> None:
    """Without the script, which the page allows by its digest, the field would be of no use, so it stays hidden."""
    reader = check(everything("text"))
    assert reader.tags.count("input") == 1
    assert '<label class="search" hidden>' in everything("text")
    assert 'querySelectorAll("thead th")' in "".join(reader.text)


def test_both_colour_schemes_have_every_colour() -> None:
    """A colour that one scheme lacks is that of the other, which its background may hide."""
    style = re.search(r"<style>(.*?)</style>", page.page("t"), re.DOTALL)
    assert style is not None
    light, dark = (set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{([^}]*)\}", style[1]))
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", style[1])) == light
    assert not re.findall(r"#[0-9a-f]{3,6}", re.sub(r":root \{[^}]*\}", "", style[1]))


def test_terms_and_meanings_are_text() -> None:
    reader = check(page.page("t", page.terms({HOSTILE: HOSTILE})))
    assert reader.text.count(HOSTILE) == 2
    assert reader.tags.count("dt") == reader.tags.count("dd") == 1


def test_an_attribute_cannot_be_left() -> None:
    assert page.element("p", id='a" onclick="x') == '<p id="a&quot; onclick=&quot;x"></p>'


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
        check(page.page("t", page.Html(broken)))


@pytest.mark.parametrize(
    ("share", "width", "shown", "state"),
    [
        (0.25, "25.0%", "25%", "passed"),
        (0.0, "0.0%", "0%", "passed"),
        (1.5, "100.0%", "150%", "failed"),
        (4e4, "100.0%", "4e+04×", "failed"),
        (None, "100.0%", "wrong", "failed"),
        (math.nan, "100.0%", "wrong", "failed"),
    ],
)
def test_a_bar_shows_the_share(share: float | None, width: str, shown: str, state: str) -> None:
    bar = page.margin_bar(share)
    assert f"width:{width}" in bar
    assert shown in bar
    assert f'class="margin {state}"' in bar


def test_an_unknown_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one of passed"):
        page.badge("fine")


def test_a_map_is_a_png_that_is_dark_where_the_deviation_is() -> None:
    from matplotlib.image import imread

    values = np.zeros((4, 6))
    values[1, 2] = 3e-7
    found = re.search(r"base64,([^\"]+)", page.heat_map(values, "x"))
    assert found is not None
    pixels = imread(io.BytesIO(base64.b64decode(found[1])))
    assert pixels.shape[:2] == (4, 6)
    assert np.unravel_index(np.argmin(pixels[..., 0]), (4, 6)) == (1, 2)


def test_a_map_of_nothing_but_infinity_is_drawn() -> None:
    assert "data:image/png" in page.heat_map(np.full((2, 2), np.inf), "x")


def test_a_chart_leaves_gaps_where_nothing_was_measured() -> None:
    values = [1e-7, None, 1e-6, 1e-5, 0.0, math.inf, 1e-4]
    chart = page.line_chart("t", list("abcdefg"), [page.Series("s", values)], unit="e")
    assert chart.count("<polyline") == 3
    assert "Nothing to draw" in page.line_chart("t", ["a"], [page.Series("s", [None])], unit="e")
