"""Building blocks of pages: one HTML file that needs nothing beside it and reads on a phone, in light and in dark.

The only script that a browser runs in it is `page.js`, which sorts and searches tables; the page names its SHA-256.

Whatever is no ``Html`` is text, and is escaped on its way in. So a page can show names and messages from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STATES = ("passed", "failed", "waived", "skipped", "none")
"""How a thing can stand: it holds, it does not, a waiver covers it, it was not judged, there is nothing to judge."""

_NOTHING = "0.85"
"""Grey of pixels without a value."""

_COLOURS = 6
"""Colours of lines; ``page.css`` has them as s0, s1, …"""

_DASHES = ("", "6 3", "2 3", "8 3 2 3")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str
"""``Html`` as it is, any other text escaped."""


def escape(content: Content) -> Html:
    """Return HTML as it is, and text escaped, for use between tags and in attributes.

    >>> escape("a < b")
    'a &lt; b'
    """
    return content if isinstance(content, Html) else Html(html.escape(content, quote=True))


def element(tag: str, *content: Content, **attributes: str) -> Html:
    """Return one element; ``class_`` stands for ``class``, and an underscore in a name for a dash.

    >>> element("p", "a & b", class_="soft")
    '<p class="soft">a &amp; b</p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for name, value in attributes.items()
    )
    return Html(f"<{tag}{written}>{''.join(map(escape, content))}</{tag}>")


def page(title: str, *content: Content) -> Html:
    """Return a whole page.

    It says itself that nothing may be loaded and nothing but the script of this package may run, so that a browser
    keeps to it whatever a name holds.
    """
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">"
        # An icon of its own, so that no browser asks for one.
        '<link rel="icon" href="data:,">'
    )
    body = "\n".join(map(escape, content))
    return Html(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}{element("title", title)}<style>{style}</style></head>\n'
        f"<body>\n{element('h1', title)}\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def section(identifier: str, title: str, *content: Content) -> Html:
    """Return a section that ``navigation`` can lead to."""
    return element("section", element("h2", title), *content, id=identifier)


def navigation(titles: Mapping[str, str]) -> Html:
    """Return links to sections, identifier → title, and the search field, which the script shows."""
    links = (element("a", title, href=f"#{identifier}") for identifier, title in titles.items())
    field = Html(
        '<label class="search" hidden>Search <input type="search" autocomplete="off"><output></output></label>'
    )
    return element("nav", *links, field)


def terms(meanings: Mapping[str, str]) -> Html:
    """Return terms with what they mean, term → meaning."""
    pairs = (element("div", element("dt", term), element("dd", meaning)) for term, meaning in meanings.items())
    return element("dl", *pairs, class_="terms")


def verdict(state: str, text: Content) -> Html:
    """Return the one line that a page is about."""
    return element("p", text, class_=f"verdict {_known(state)}")


def badge(state: str, text: Content = "") -> Html:
    """Return a state as a coloured word; colour never says it alone."""
    return element("span", text or state, class_=f"state {_known(state)}")


def _known(state: str) -> str:
    if state not in STATES:
        raise ValueError(f"state {state!r}; expected one of {', '.join(STATES)}")
    return state


def number(text: Content) -> Html:
    """Return a cell whose text stands on the right."""
    return element("td", text, class_="number")


def line(text: Content) -> Html:
    """Return a cell whose text stays in one line."""
    return element("td", text, class_="line")


def table(headers: Sequence[Content], rows: Iterable[Sequence[Content]], *, caption: Content = "") -> Html:
    """Return a table that scrolls by itself where the screen is narrow.

    Args:
        headers: of the columns.
        rows: cells, the first of which names the row; one made by ``number`` or ``line`` is taken as it is.
        caption: stands below.
    """
    head = element("thead", element("tr", *(element("th", each, scope="col") for each in headers)))
    body = element("tbody", *(element("tr", *_cells(row)) for row in rows))
    below = element("caption", caption) if caption else Html("")
    return element("div", element("table", below, head, body), class_="scroll", tabindex="0")


def _cells(row: Sequence[Content]) -> Iterable[Html]:
    for position, cell in enumerate(row):
        if isinstance(cell, Html) and cell.startswith("<td"):
            yield cell
        elif position == 0:
            yield element("th", cell, scope="row")
        else:
            yield element("td", cell)


def share_text(share: float | None) -> str:
    """Return the share of a budget in percent; None and infinity mean that it could not be compared.

    >>> share_text(0.254), share_text(4e4), share_text(None)
    ('25%', '4e+04×', 'wrong')
    """
    if share is None or not math.isfinite(share):
        return "wrong"
    return f"{share:.0%}" if share < 100 else f"{share:.0e}×"


def margin_bar(share: float | None, state: str = "") -> Html:
    """Return a bar of the share of a budget that is used; full from 100 % on.

    Args:
        share: 1 is the whole budget; None where nothing could be compared.
        state: one of ``STATES``; empty for what the share says.
    """
    used = 1.0 if share is None or not math.isfinite(share) else min(max(share, 0.0), 1.0)
    state = _known(state or ("passed" if share is not None and share <= 1 else "failed"))
    bar = element("span", class_="used", style=f"width:{100 * used:.1f}%")
    shown = element("span", share_text(share), class_="share")
    return element("span", element("span", bar, class_="track"), shown, class_=f"margin {state}")


def embedded_png(png: bytes, alternative: str) -> Html:
    """Return an image that is part of the page; ``alternative`` says what it shows."""
    data = base64.b64encode(png).decode()
    return Html(f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative, quote=True)}">')


def heat_map(values: np.ndarray, alternative: str, *, largest: float | None = None) -> Html:
    """Return a 2-D array of magnitudes as an image, one pixel each: white is 0, dark is ``largest``.

    Args:
        values: (rows, columns), 0 or above; what is not finite is drawn as the largest.
        alternative: what it shows, in words.
        largest: value of the darkest colour; None for that of the array.
    """
    finite = values[np.isfinite(values)]
    top = float(finite.max(initial=0.0)) if largest is None else largest
    return colour_map(np.where(np.isfinite(values), values, top), alternative, lowest=0.0, largest=top, colours="Blues")


def colour_map(values: np.ndarray, alternative: str, *, lowest: float, largest: float, colours: str) -> Html:
    """Return a 2-D array as an image, one pixel each.

    Args:
        values: (rows, columns); what is not finite is grey.
        alternative: what it shows, in words.
        lowest: value of the first colour.
        largest: value of the last one.
        colours: name of a Matplotlib colour map.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    scaled = np.clip((values - lowest) / (largest - lowest if largest > lowest else 1.0), 0.0, 1.0)
    picture = io.BytesIO()
    grey = colormaps[colours].with_extremes(bad=_NOTHING)
    imsave(picture, grey(np.where(np.isfinite(values), scaled, np.nan)), format="png")
    return embedded_png(picture.getvalue(), alternative)


def figure(picture: Html, caption: Content) -> Html:
    """Return a picture with the words below it."""
    return element("figure", picture, element("figcaption", caption))


def details(summary: Content, *content: Content, is_open: bool = False) -> Html:
    """Return a part that opens on a click."""
    inside = "".join(map(escape, (element("summary", summary), *content)))
    return Html(f"<details{' open' if is_open else ''}>{inside}</details>")


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        values: one for each label of the chart; None or 0 leaves a gap, because the axis is logarithmic.
        is_limit: whether it is what the others have to stay below, and not a measurement.
    """

    name: str
    values: Sequence[float | None]
    is_limit: bool = False


def line_chart(title: str, labels: Sequence[str], series: Sequence[Series], *, unit: str) -> Html:
    """Return lines over named steps, for example errors along the network; the vertical axis is logarithmic.

    Args:
        title: what a reader who cannot see it is told.
        labels: of the steps, from left to right.
        series: the lines.
        unit: what the vertical axis counts.
    """
    drawn = [value for each in series for value in each.values if value is not None and 0 < value < math.inf]
    if not drawn:
        return element("p", "Nothing to draw.", class_="soft")
    low, high = math.floor(math.log10(min(drawn))), math.ceil(math.log10(max(drawn)))
    high = max(high, low + 1)
    left, right, top, bottom, width = 64, 12, 28, 170, 960
    height = 260
    step = (width - left - right) / max(len(labels) - 1, 1)

    def at(position: int, value: float) -> tuple[float, float]:
        depth = (high - math.log10(value)) / (high - low)
        return left + position * step, top + depth * height

    parts = []
    for exponent in range(low, high + 1, max(1, (high - low) // 8)):
        y = at(0, 10.0**exponent)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{exponent:+03d}</text>')
    for position, label in enumerate(labels):
        x, y = left + position * step, top + height + 12
        turned = f'transform="rotate(-60 {x:.1f} {y})"'
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="end" {turned}>{html.escape(label)}</text>')
    parts.append(f'<text x="{left - 8}" y="12" text-anchor="end">{html.escape(unit)}</text>')
    legend = []
    for index, each in enumerate(series):
        dashes = _DASHES[index // _COLOURS % len(_DASHES)]
        stroke = f'class="series s{index % _COLOURS}" stroke-dasharray="{dashes}"'
        stroke = 'class="limit"' if each.is_limit else stroke
        parts += [f'<polyline points="{points}" {stroke}/>' for points in _runs(each.values, at)]
        key = f'<svg width="28" height="8" aria-hidden="true"><path d="M0 4H28" {stroke}/></svg>'
        legend.append(element("li", Html(key), each.name))
    frame = f'<svg class="chart" viewBox="0 0 {width} {top + height + bottom}" role="img" aria-label="{escape(title)}">'
    drawing = element("div", Html(f"{frame}{''.join(parts)}</svg>"), class_="scroll", tabindex="0")
    return Html(drawing + element("ul", *legend, class_="legend"))


def _runs(values: Sequence[float | None], at: Callable[[int, float], tuple[float, float]]) -> Iterable[str]:
    """Yield the points of each stretch without a gap."""
    run: list[str] = []
    for position, value in enumerate([*values, None]):
        if value is not None and 0 < value < math.inf:
            x, y = at(position, value)
            run.append(f"{x:.1f},{y:.1f}")
        elif run:
            # A lone point is a line to itself, whose round ends are a dot.
            yield " ".join(run if len(run) > 1 else run * 2)
            run = []
