"""Pages: one HTML file that needs nothing beside it and reads on a phone, in light and in dark.

A page is a template of the folder ``templates`` and plain values. Every value is escaped on its way in, so a page can
show names and messages from anywhere. The only script in it is ``page.js``, which sorts and searches tables.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATES = Path(__file__).with_name("templates")
_NOTHING = "0.85"
"""Grey of pixels without a value."""


def render(template: str, **values: Any) -> str:
    """Return a page.

    The page forbids a browser to load anything and to run any script but ``page.js``, whose digest it names.

    Args:
        template: ``NAME`` stands for ``templates/NAME.html.j2``.
        values: what the template shows, ``title`` and ``sections`` (id → title) among them.

    Raises:
        UndefinedError: of Jinja, for a value that the template needs and does not get.
    """
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = _template(f"{template}.html.j2", autoescape=True)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.render(values, style=style, script=script, script_sha256=digest)


def render_text(template: str, **values: Any) -> str:
    """Return a text by ``templates/NAME.j2``, nothing of it escaped.

    Raises:
        UndefinedError: of Jinja, for a value that the template needs and does not get.
    """
    return _template(f"{template}.j2", autoescape=False).render(values)


def _template(file: str, autoescape: bool) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not autoescape,
    )
    environment.filters |= {"share": share_text, "used": _used}
    return environment.get_template(file)


def share_text(share: float | None) -> str:
    """Return the share of a budget in percent; None and infinity mean that it could not be compared.

    >>> share_text(0.254), share_text(4e4), share_text(None)
    ('25%', '4e+04×', 'wrong')
    """
    if share is None or not math.isfinite(share):
        return "wrong"
    return f"{share:.0%}" if share < 100 else f"{share:.0e}×"


def _used(share: float | None) -> str:
    """Return the width of a bar; full from 100 % on."""
    return f"{100 * min(share, 1.0):.1f}%" if share is not None and math.isfinite(share) else "100.0%"


def colour_map(values: np.ndarray, lowest: float, largest: float, colours: str) -> str:
    """Return a 2-D array as the address of a PNG, one pixel each.

    Args:
        values: (rows, columns); what is not finite is grey.
        lowest: value of the first colour.
        largest: value of the last one.
        colours: name of a Matplotlib colour map.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    scaled = np.clip((values - lowest) / (largest - lowest if largest > lowest else 1.0), 0.0, 1.0)
    picture = io.BytesIO()
    painted = colormaps[colours].with_extremes(bad=_NOTHING)
    imsave(picture, painted(np.where(np.isfinite(values), scaled, np.nan)), format="png")
    return _address("png", picture.getvalue())


def line_chart(labels: Sequence[str], lines: Mapping[str, Sequence[float | None]], unit: str) -> str:
    """Return lines over named steps as the address of an SVG; empty where there is nothing to draw.

    Args:
        labels: of the steps, from left to right.
        lines: name → one value for each label; None, 0 and infinity leave a gap, because the axis is logarithmic. A
            line called ``budget`` is what the others have to stay below.
        unit: what the vertical axis counts.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = {
        name: [value if value is not None and 0 < value < math.inf else math.nan for value in values]
        for name, values in lines.items()
    }
    if all(map(math.isnan, (value for values in drawn.values() for value in values))):
        return ""
    settings = rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "page",
            # Names come from anywhere: they are no formulas, and the font may lack their letters, which is a warning.
            "text.parse_math": False,
            "axes.autolimit_mode": "round_numbers",
            "axes.spines.right": False,
            "axes.spines.top": False,
        }
    )
    with settings, warnings.catch_warnings(action="ignore"):
        figure = Figure(figsize=(11, 4.8))
        axes = figure.add_axes((0.08, 0.34, 0.91, 0.58))
        for name, values in drawn.items():
            style: dict[str, Any] = {"color": "0.4", "linestyle": "--"} if name == "budget" else {"marker": "."}
            axes.plot(values, label=name, **style)
        axes.set(yscale="log", ylabel=unit, xlim=(-0.5, len(labels) - 0.5))
        axes.yaxis.set_major_formatter("{x:.0e}")
        axes.minorticks_off()
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.grid(axis="y", alpha=0.4)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    return _address("svg+xml", picture.getvalue())


def _address(kind: str, picture: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
