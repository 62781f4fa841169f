"""Objects to simulate scans of: pure functions from a shape and a generator of random numbers to a transmission.

Every object is (H, W) complex64 with amplitude 1 − 0.7·a and phase (π/2)·d, where 0 ≤ a ≤ 1 is what it absorbs and
−1 ≤ d ≤ 1 what it delays. So the amplitude lies in 0.3…1 and the phase in ±π/2, and neither wraps.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

import math
import struct
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Complex64, Float
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from ptycho_torch.errors import ConfigError

MAX_OBJECT_PX = 8192
"""Longest side of an object."""

MAX_IMAGE_PX = 64 * 1024 * 1024
"""Most pixels of an image file; its size is known before it is unpacked."""

IMAGE_PREFIX = "image:"

_DARKEST = 0.3
_SHIPPED_SUFFIXES = (".png", ".jpg")

Object = Complex64[np.ndarray, "H W"]
"""Transmission of an object: amplitude 0.3…1, phase ±π/2."""


def transmission(absorbed: Float[np.ndarray, "H W"], delayed: Float[np.ndarray, "H W"]) -> Object:
    """Make an object of two maps.

    O = (1 − 0.7·a)·exp(i·(π/2)·d)

    Args:
        absorbed: a, 0…1; values beyond are clipped.
        delayed: d, −1…1; values beyond are clipped.

    >>> transmission(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])).round(3)
    array([[1.+0.j , 0.+0.3j]], dtype=complex64)
    """
    amplitude = 1 - (1 - _DARKEST) * np.clip(absorbed, 0, 1)
    return np.asarray(amplitude * np.exp(0.5j * math.pi * np.clip(delayed, -1, 1)), np.complex64)


def draw_lines(shape_px: tuple[int, int], rng: np.random.Generator) -> Object:
    """Draw random lines, each sharp, with a rim and with a halo.

    f = Σ_σ w_σ·σ·(G_σ ∗ lines), σ = 0.7, 3, 10 px;   a = 1 − exp(−f_a / s),   d = tanh(f_d / s)

    Both maps have the same lines in strengths of their own. Ends may lie outside, so that lines cross the edges.

    Args:
        shape_px: (H, W).
        rng: is drawn from.
    """
    from skimage import draw

    # scikit-image publishes types in part.
    line_aa: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] = draw.line_aa
    H, W = shape_px
    strokes = np.zeros((2, H, W))
    count = max(8, round(0.5 * max(H, W)))
    ends = rng.integers((-H // 2, -W // 2), (H + H // 2, W + W // 2), (count, 2, 2))
    strengths = np.stack([rng.uniform(0.2, 1, count), rng.uniform(-1, 1, count)], axis=1)
    for ((row, column), (last_row, last_column)), strength in zip(ends, strengths, strict=True):
        rows, columns, coverage = line_aa(row, column, last_row, last_column)
        inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
        strokes[:, rows[inside], columns[inside]] += strength[:, None] * coverage[inside]
    absorbed, delayed = (
        sum(weight * sigma * gaussian_filter(stroke, sigma) for sigma, weight in ((0.7, 2.0), (3.0, 0.7), (10.0, 0.4)))
        for stroke in strokes
    )
    scale = max(float(np.mean(absorbed) + np.std(absorbed)), 1e-12)
    return transmission(1 - np.exp(-absorbed / scale), np.tanh(delayed / (0.5 * scale)))


def draw_grf(shape_px: tuple[int, int], rng: np.random.Generator, exponent: float = 3.0) -> Object:
    """Draw two independent Gaussian random fields whose power falls with the spatial frequency.

    ⟨|F(k)|²⟩ ∝ |k|^−exponent;  a = Φ(f_a / std),  d = 2·Φ(f_d / std) − 1, with Φ the normal distribution function,
    so that every value in range is about as frequent. Opposite edges fit together.

    Args:
        shape_px: (H, W).
        rng: is drawn from.
        exponent: 0 is white noise; larger is smoother.
    """
    H, W = shape_px
    squared = np.fft.fftfreq(H)[:, None] ** 2 + np.fft.rfftfreq(W)[None, :] ** 2
    squared[0, 0] = np.inf  # The mean carries no structure.
    fall = squared ** (-exponent / 4)
    levels = []
    for _ in range(2):
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((H, W))) * fall, s=(H, W))
        levels.append(ndtr(field / max(float(field.std()), 1e-300)))
    return transmission(levels[0], 2 * levels[1] - 1)


def draw_dead_leaves(shape_px: tuple[int, int], rng: np.random.Generator) -> Object:
    """Drop opaque disks one on top of the other; each has an absorption and a delay of its own.

    Radii have density ∝ r^−3 between 3 px and an eighth of the shorter side, which looks the same at every scale in
    between. The disks' area is four times the object's.

    Args:
        shape_px: (H, W).
        rng: is drawn from.
    """
    H, W = shape_px
    least = 3.0
    largest = max(2 * least, min(H, W) / 8)
    mean_area = math.pi * 2 * math.log(largest / least) / (least**-2 - largest**-2)
    count = math.ceil(4 * H * W / mean_area)
    radii = (least**-2 + rng.random(count) * (largest**-2 - least**-2)) ** -0.5
    centres = rng.uniform((-largest / 2, -largest / 2), (H + largest / 2, W + largest / 2), (count, 2))
    levels = rng.uniform((0, -1), (1, 1), (count, 2))
    maps = np.zeros((2, H, W))
    maps[0] = 0.5
    for (row, column), radius, level in zip(centres, radii, levels, strict=True):
        top, left = max(0, math.floor(row - radius)), max(0, math.floor(column - radius))
        bottom, right = min(H, math.ceil(row + radius) + 1), min(W, math.ceil(column + radius) + 1)
        if top >= bottom or left >= right:
            continue
        distance = np.hypot(np.arange(top, bottom)[:, None] - row, np.arange(left, right)[None, :] - column)
        opacity = np.clip(radius + 0.5 - distance, 0, 1)
        part = maps[:, top:bottom, left:right]
        part += opacity * (level[:, None, None] - part)
    return transmission(maps[0], maps[1])


def draw_siemens_star(shape_px: tuple[int, int], rng: np.random.Generator, spokes: int = 36) -> Object:
    """Draw a star whose spokes get finer towards the centre; it is turned by a random angle.

    a = d = coverage of the pixel by a spoke ≈ clip(½ + (r/spokes)·sin(spokes·θ)), inside radius 0.48 of the shorter
    side, with a gap of a twentieth of the radius at one and at two thirds of it. Where a spoke is finer than a pixel
    the star is grey.

    Args:
        shape_px: (H, W).
        rng: is drawn from.
        spokes: number of dark spokes.
    """
    H, W = shape_px
    row, column = np.arange(H)[:, None] - (H - 1) / 2, np.arange(W)[None, :] - (W - 1) / 2
    radius = np.hypot(row, column)
    angle = np.arctan2(row, column) + rng.uniform(0, 2 * math.pi)
    star = np.clip(0.5 + radius / spokes * np.sin(spokes * angle), 0, 1)
    outer = 0.48 * min(H, W)
    star *= np.clip(outer - radius + 0.5, 0, 1)
    for ring in (outer / 3, 2 * outer / 3):
        star *= np.clip(np.abs(radius - ring) - outer / 40 + 0.5, 0, 1)
    return transmission(star, star)


def image_object(grey: Float[np.ndarray, "h w"], shape_px: tuple[int, int]) -> Object:
    """Make an object of a picture: its middle is cut to the object's proportions and brought to its size.

    With grey values g scaled to 0…1:  a = 1 − g,  d = 2·g − 1. Bright is clear, and delays most.

    Args:
        grey: the picture, in any scale.
        shape_px: (H, W).

    Raises:
        ConfigError: the picture has a single grey value, or values that are not numbers.
    """
    from skimage import transform

    resize: Callable[..., np.ndarray] = transform.resize  # As above.
    if not np.isfinite(grey).all():
        raise ConfigError("The image holds NaN or infinity; give one of finite grey values.")
    h, w = grey.shape
    H, W = shape_px
    rows, columns = max(1, min(h, round(w * H / W))), max(1, min(w, round(h * W / H)))
    top, left = (h - rows) // 2, (w - columns) // 2
    kept = np.asarray(grey[top : top + rows, left : left + columns], np.float64)
    kept = resize(kept, (H, W), order=1, mode="reflect", anti_aliasing=rows > H or columns > W)
    low, high = float(kept.min()), float(kept.max())
    if not high > low:
        raise ConfigError(f"The image has a single grey value, {low:g}; give one that shows something.")
    kept = (kept - low) / (high - low)
    return transmission(1 - kept, 2 * kept - 1)


def shipped_images() -> tuple[str, ...]:
    """Return the names of the images that come with scikit-image and need no download."""
    folder = resources.files("skimage") / "data"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(_SHIPPED_SUFFIXES)))


def read_image(name_or_path: str) -> Float[np.ndarray, "h w"]:
    """Read a picture as grey values, float64, in the file's own scale; of several frames the first.

    Args:
        name_or_path: a name out of ``shipped_images``, or a file.

    Raises:
        ConfigError: neither, a file that is no picture, or one of more than MAX_IMAGE_PX pixels.
    """
    from PIL import Image

    path = Path(name_or_path)
    if name_or_path in shipped_images():
        folder = resources.files("skimage") / "data"
        shipped = (folder / f"{name_or_path}{suffix}" for suffix in _SHIPPED_SUFFIXES)
        path = Path(str(next(entry for entry in shipped if entry.is_file())))
    elif not path.is_file():
        raise ConfigError(f"There is no image {name_or_path!r}. Give a file, or one of {', '.join(shipped_images())}.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and of odd metadata; the bound below is ours.
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > MAX_IMAGE_PX:
                    raise ConfigError(f"{path}: {width} × {height} pixels; at most {MAX_IMAGE_PX} are read. Shrink it.")
                return np.asarray(picture.convert("F"), np.float64)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as err:
        if isinstance(err, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as an image ({err}). Give a PNG, JPEG or TIFF file.") from err


SPECIMENS: Mapping[str, Callable[[tuple[int, int], np.random.Generator], Object]] = MappingProxyType(
    {
        "lines": draw_lines,
        "grf": draw_grf,
        "dead_leaves": draw_dead_leaves,
        "siemens_star": draw_siemens_star,
    }
)
"""Name → function of (shape_px, rng). Pictures go by ``image:NAME`` or ``image:PATH``, see ``draw_specimen``."""


def refuse_choice(choice: str) -> None:
    """Raise where an object is no one that ``draw_specimen`` knows; an image is looked for when it is read.

    Raises:
        ConfigError: no such object, with the nearest name.
    """
    if choice in SPECIMENS or choice.startswith(IMAGE_PREFIX):
        return
    near = next((name for name in SPECIMENS if choice and (choice in name or name in choice)), "")
    meant = f"; did you mean {near}?" if near else "."
    raise ConfigError(f"There is no object {choice!r}{meant} Choose {', '.join(SPECIMENS)}, or image:NAME_OR_PATH.")


def draw_specimen(choice: str, shape_px: tuple[int, int], rng: np.random.Generator) -> Object:
    """Draw the object that a user chose.

    Args:
        choice: a key of ``SPECIMENS``, or ``image:`` and the name of an image or a file.
        shape_px: (H, W), 8…MAX_OBJECT_PX each.
        rng: is drawn from.

    Raises:
        ConfigError: no such object, an image that cannot be read, or a shape out of range.
    """
    if not all(8 <= side <= MAX_OBJECT_PX for side in shape_px):
        raise ConfigError(
            f"An object of {shape_px[0]} × {shape_px[1]} pixels; its sides have 8 to {MAX_OBJECT_PX}. Choose another "
            "size, fewer patterns, or a smaller step."
        )
    refuse_choice(choice)
    if choice.startswith(IMAGE_PREFIX):
        return image_object(read_image(choice.removeprefix(IMAGE_PREFIX)), shape_px)
    return SPECIMENS[choice](shape_px, rng)


def weaken(specimen: Object, contrast: float) -> Object:
    """Return a weaker, or a stronger, object of the same structure: |o|^c · exp(i·c·arg o).

    Args:
        specimen: (H, W) transmission.
        contrast: c ≥ 0, by which optical path and absorption are multiplied; 1 leaves the object as it is.

    Raises:
        ConfigError: a negative contrast.

    >>> weaken(np.array([[np.exp(1j)]], np.complex64), 0.5).round(3)
    array([[0.878+0.479j]], dtype=complex64)
    """
    if not contrast >= 0:
        raise ConfigError(f"contrast = {contrast:g}; expected 0 or more.")
    return np.asarray(np.abs(specimen) ** contrast * np.exp(1j * contrast * np.angle(specimen)), np.complex64)
