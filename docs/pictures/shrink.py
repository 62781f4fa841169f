"""Make small copies of pictures for the documents: ``python docs/pictures/shrink.py SOURCE.png TARGET.png …``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

LARGEST_BYTES = 150_000
"""Largest size of a picture that is committed."""

_WIDTHS_PX = (1200, 1100, 1000, 900, 800)
_COLOURS = 96


def shrunk(source: Path) -> bytes:
    """Return a picture as a PNG with a palette, as wide as ``LARGEST_BYTES`` bytes allow.

    Raises:
        ValueError: the narrowest one is larger.
    """
    with Image.open(source) as picture:
        whole = picture.convert("RGB")
    for width in _WIDTHS_PX:
        size = (min(width, whole.width), round(whole.height * min(1, width / whole.width)))
        content = io.BytesIO()
        # Dithering would make noise of flat areas, and noise does not compress.
        palette = whole.resize(size, Image.Resampling.LANCZOS).quantize(_COLOURS, dither=Image.Dither.NONE)
        palette.save(content, "PNG", optimize=True)
        if content.tell() <= LARGEST_BYTES:
            return content.getvalue()
    raise ValueError(f"{source}: {content.tell()} bytes at a width of {size[0]}; expected at most {LARGEST_BYTES}.")


def main(paths: Sequence[str]) -> None:
    """Write a small copy of every first path to the second one of its pair."""
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        Path(target).write_bytes(shrunk(Path(source)))


if __name__ == "__main__":
    main(sys.argv[1:])
