"""Building blocks of pages: one HTML file that needs nothing beside it, reads on a phone, and runs no script.

Whatever is no ``Html`` is text, and is escaped on its way in. So a page can show names and messages from anywhere.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STATES = ("passed", "failed", "waived", "skipped", "none")
"""How a thing can stand: it holds, it does not, a waiver covers it, it was not judged, there is nothing to judge."""

_STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6875; --line: #d9dfe5; --wash: #f4f6f8; --good: #1d7a4c;
  --bad: #b3261e; --warn: #8a5a00; --blue: #24598f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: var(--blue); }
code { font: .875em/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
nav { margin: 1rem 0; }
nav a { display: inline-block; margin: 0 1rem .25rem 0; }
.verdict { margin: 1rem 0; padding: .75rem 1rem; border-left: .375rem solid var(--soft); background: var(--wash);
  font-weight: 600; max-width: none; }
.verdict.passed { border-color: var(--good); } .verdict.failed { border-color: var(--bad); }
.verdict.waived, .verdict.skipped { border-color: var(--warn); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
caption { caption-side: bottom; text-align: left; color: var(--soft); padding: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3125rem .75rem .3125rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
tbody th { white-space: normal; }
th .soft { display: block; font-weight: 400; min-width: 8rem; }
td.line { white-space: nowrap; }
td:last-child:not(.number):not(.line) { min-width: 8rem; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.state { white-space: nowrap; font-weight: 600; }
.state.passed { color: var(--good); } .state.failed { color: var(--bad); }
.state.waived, .state.skipped { color: var(--warn); } .state.none { color: var(--soft); font-weight: 400; }
.margin { display: flex; align-items: center; gap: .5rem; min-width: 9rem; }
.margin .track { flex: 1 1 6rem; height: .625rem; background: #e7ebef; border-radius: .125rem; overflow: hidden; }
.margin .used { display: block; height: 100%; background: var(--blue); }
.margin.passed .used { background: var(--good); } .margin.failed .used { background: var(--bad); }
.margin.waived .used { background: var(--warn); }
.margin .share { flex: 0 0 3.5rem; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards + .cards { margin-top: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 20rem; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: .875rem; color: var(--soft); padding-top: .375rem; }
.chart { width: 100%; min-width: 52rem; height: auto; display: block; }
.chart text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem; padding: 0; margin: .25rem 0;
  list-style: none; }
.legend svg { vertical-align: middle; margin-right: .375rem; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { body { padding: 1rem .875rem 3rem; } h1 { font-size: 1.375rem; }
  table { font-size: .8125rem; } th, td { padding-right: .5rem; } }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""

_NOTHING = "0.85"
"""Grey of pixels without a value."""

_COLOURS = ("#24598f", "#c26a00", "#6b3fa0", "#0b7285", "#a63a79", "#4d7c0f")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_LIMIT = 'stroke="#5b6875" stroke-width="1.5" stroke-dasharray="5 4" fill="none"'


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

    It says itself that nothing may be loaded and nothing may run, so that a browser keeps to it whatever a name holds.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        # An icon of its own, so that no browser asks for one.
        '<link rel="icon" href="data:,">'
    )
    body = "\n".join(map(escape, content))
    return Html(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}{element("title", title)}<style>{_STYLE}</style></head>\n'
        f"<body>\n{element('h1', title)}\n{body}\n</body>\n</html>\n"
    )


def section(identifier: str, title: str, *content: Content) -> Html:
    """Return a section that ``navigation`` can lead to."""
    return element("section", element("h2", title), *content, id=identifier)


def navigation(titles: Mapping[str, str]) -> Html:
    """Return links to sections, identifier → title."""
    return element("nav", *(element("a", title, href=f"#{identifier}") for identifier, title in titles.items()))


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
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e8ed"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{exponent:+03d}</text>')
    for position, label in enumerate(labels):
        x, y = left + position * step, top + height + 12
        turned = f'transform="rotate(-60 {x:.1f} {y})"'
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="end" {turned}>{html.escape(label)}</text>')
    parts.append(f'<text x="{left - 8}" y="12" text-anchor="end">{html.escape(unit)}</text>')
    legend = []
    for index, each in enumerate(series):
        stroke = f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="2" stroke-linecap="round" fill="none"'
        stroke += f' stroke-dasharray="{_DASHES[index // len(_COLOURS) % len(_DASHES)]}"'
        stroke = _LIMIT if each.is_limit else stroke
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
