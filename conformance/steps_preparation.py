"""Frames, masks, probes and positions as they are prepared before a map is built."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle_data import Preparation, oriented
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32
from ptycho_torch.config_params import DataSettings
from ptycho_torch.preparation import FramePreparation

if TYPE_CHECKING:
    pass

PREPARATIONS: Mapping[str, Preparation] = {
    "cropped and binned": Preparation(frame_px=16, N=6, bins=2, centre_px=(7, 9)),
    "cropped": Preparation(frame_px=16, N=12),
    "binned": Preparation(frame_px=16, N=8, bins=2),
    "as they are": Preparation(frame_px=16, N=16),
}

TURNS = tuple(itertools.product((False, True), ("none", "vertical", "horizontal", "both")))
"""Every orientation of the detector: transposed or not, and which way it is mirrored."""

MIRRORS = tuple(itertools.product((False, True), repeat=3))
"""Every orientation of the positions: x and y swapped, x mirrored, y mirrored."""


def _prepared_by_us(wanted: Preparation, **orientation: bool | str) -> FramePreparation:
    row, column = (None, None) if wanted.centre_px is None else wanted.centre_px
    settings = DataSettings(
        N=wanted.N,
        detector_bin=wanted.bins,
        detector_crop=wanted.window_px < wanted.frame_px,
        detector_centre_row_px=row,
        detector_centre_column_px=column,
        **orientation,  # type: ignore[arg-type]
    )
    return FramePreparation(wanted.frame_px, settings)


Turned = Callable[[np.ndarray, bool, str], np.ndarray]
Images = Callable[[Preparation, np.ndarray], np.ndarray]


def _turned(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    return oriented(images, transpose=transpose, flip=flip)


def _every_turn(images: np.ndarray, turned: Turned = _turned) -> np.ndarray:
    """Return (8, …, N, N): square images in every orientation."""
    return np.stack([turned(images, *turn) for turn in TURNS])


def _every_turn_of(images: Images, frames: np.ndarray, wanted: Preparation) -> np.ndarray:
    return _every_turn(images(wanted, frames))


def _of_edges(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    images = images.swapaxes(-1, -2) if transpose else images
    images = images[..., ::-1, :] if flip in ("vertical", "both") else images
    return images[..., ::-1] if flip in ("horizontal", "both") else images


def _flipped_first(images: np.ndarray, transpose: bool, flip: str) -> np.ndarray:
    return _turned(_turned(images, False, flip), transpose, "none")


_OTHER_WAY = {"vertical": "horizontal", "horizontal": "vertical"}

WRONG_TURNS: Mapping[str, Turned] = {
    "mirrored about the edges (zero frequency one pixel off)": _of_edges,
    "vertical and horizontal exchanged": lambda images, transpose, flip: _turned(
        images, transpose, _OTHER_WAY.get(flip, flip)
    ),
    "mirrored before it is transposed": _flipped_first,
    "not transposed": lambda images, transpose, flip: _turned(images, False, flip),
    "not mirrored": lambda images, transpose, flip: _turned(images, transpose, "none"),
    "both mirrored one way only": lambda images, transpose, flip: _turned(
        images, transpose, "vertical" if flip == "both" else flip
    ),
    "not oriented": lambda images, transpose, flip: images,
}


def _of_middle(wanted: Preparation) -> Preparation:
    return dataclasses.replace(wanted, centre_px=None)


def _centre_moved(rows: int, columns: int) -> Callable[[Preparation], Preparation]:
    def change(wanted: Preparation) -> Preparation:
        if wanted.window_px == wanted.frame_px:
            return wanted
        row, column = (wanted.frame_px // 2,) * 2 if wanted.centre_px is None else wanted.centre_px
        return dataclasses.replace(wanted, centre_px=(row + rows, column + columns))

    return change


def _centre_exchanged(wanted: Preparation) -> Preparation:
    return dataclasses.replace(wanted, centre_px=wanted.centre_px and wanted.centre_px[::-1])


def _centre_twice(of: int) -> Callable[[Preparation], Preparation]:
    return lambda wanted: dataclasses.replace(wanted, centre_px=wanted.centre_px and (wanted.centre_px[of],) * 2)


WRONG_WINDOWS: tuple[tuple[str, Callable[[Preparation], Preparation]], ...] = (
    ("cropped about the middle of the frame, not the zero frequency", _of_middle),
    ("row and column of the zero frequency exchanged", _centre_exchanged),
    ("row of the zero frequency for its column", _centre_twice(0)),
    ("column of the zero frequency for its row", _centre_twice(1)),
    *(
        ("cropped one pixel off", _centre_moved(rows, columns))
        for rows, columns in itertools.product((-1, 0, 1), repeat=2)
        if (rows, columns) != (0, 0)
    ),
)


def _added(power: float, *, mean: bool = False, root: float = 0.5) -> Images:
    """Make bins of pixels from the sum, or mean, of a power of their amplitude."""

    def images(wanted: Preparation, frames: np.ndarray) -> np.ndarray:
        pixels = wanted.windows(frames.astype(np.float64))
        if wanted.bins == 1:
            return np.asarray(pixels[..., 0])
        found = (pixels**power).mean(axis=-1) if mean else (pixels**power).sum(axis=-1)
        return np.asarray(found**root)

    return images


def _first_pixel(wanted: Preparation, frames: np.ndarray) -> np.ndarray:
    return wanted.windows(frames.astype(np.float64))[..., 0]


WRONG_BINS: Mapping[str, Images] = {
    "binning adds amplitudes, not counts": _added(1, root=1),
    "binning takes the mean of amplitudes": _added(1, root=1, mean=True),
    "binning takes the mean of counts, not their sum": _added(2, mean=True),
    "root of the counts missing": _added(2, root=1),
    "one pixel of a bin for all": _first_pixel,
}


def _prepare(bench: StepBench) -> Outcome:
    frames, mask, probe, positions_px = _to_prepare()
    expected, given = {}, {}
    for what, wanted in PREPARATIONS.items():
        expected[f"frames, {what}"] = _every_turn(wanted.amplitude(frames))
        expected[f"good pixels, {what}"] = _every_turn(wanted.good_pixels(mask))
        ours = [_prepared_by_us(wanted, detector_transpose=turn, detector_flip=flip) for turn, flip in TURNS]
        given[f"frames, {what}"] = np.stack([each.frames(frames) for each in ours])
        given[f"good pixels, {what}"] = np.stack([each.good_pixels(mask) for each in ours])
    for what, wanted in PREPARATIONS.items():
        expected[f"probe, {what}"] = wanted.probe(probe)
        given[f"probe, {what}"] = _prepared_by_us(wanted, detector_transpose=True, detector_flip="both").probe(probe)
        expected[f"positions, {what}"] = _every_mirror(wanted, positions_px)
        given[f"positions, {what}"] = np.stack([
            _prepared_by_us(wanted, positions_swap_xy=swap, positions_flip_x=x, positions_flip_y=y).positions(
                positions_px
            )
            for swap, x, y in MIRRORS
        ])  # fmt: skip

    def mistakes() -> Iterator[Hypothesis]:
        for name, images in WRONG_BINS.items():
            yield _with_all(name, "frames", partial(_every_turn_of, images, frames))
        for name, turned in WRONG_TURNS.items():
            yield _with_all_images(name, frames, mask, turned=turned)
        for name, window in WRONG_WINDOWS:
            yield _with_all_images(name, frames, mask, window=window)
        yield _with_all("mask inverted", "good pixels", lambda wanted: ~_every_turn(wanted.good_pixels(mask)))
        yield _with_all(
            "a binned pixel good if one of its pixels is",
            "good pixels",
            lambda wanted: _every_turn(np.asarray(wanted.windows(mask).any(axis=-1))),
        )
        yield from _of_probes(probe)
        yield from _of_prepared_positions(positions_px)

    return Outcome(expected, given, FLOAT32, mistakes)


def _to_prepare() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw (n, frame, frame) frames, a mask, (modes, frame, frame) of a probe, and (M, 2) positions."""
    rng = np.random.default_rng(17)
    frames = rng.gamma(2.0, 3.0, (3, 16, 16)).astype(np.float32)
    mask = rng.random((16, 16)) > 0.2
    probe = rng.standard_normal((2, 16, 16)) + 1j * rng.standard_normal((2, 16, 16))
    return frames, mask, probe.astype(np.complex64), rng.uniform((20, 90), (45, 130), (5, 2))


def _with_all(name: str, kind: str, change: Callable[[Preparation], np.ndarray]) -> Hypothesis:
    """Make a mistake with everything of one kind, however it is prepared."""
    return Hypothesis(name, {f"{kind}, {what}": change(wanted) for what, wanted in PREPARATIONS.items()})


def _with_all_images(
    name: str,
    frames: np.ndarray,
    mask: np.ndarray,
    *,
    turned: Turned = _turned,
    window: Callable[[Preparation], Preparation] = lambda wanted: wanted,
) -> Hypothesis:
    """Make a mistake with frames and masks, which go the same way."""
    of_frames = _with_all(name, "frames", lambda wanted: _every_turn(window(wanted).amplitude(frames), turned))
    of_masks = _with_all(name, "good pixels", lambda wanted: _every_turn(window(wanted).good_pixels(mask), turned))
    return Hypothesis(name, {**of_frames.gives, **of_masks.gives})


def _of_probes(probe: np.ndarray) -> Iterator[Hypothesis]:
    def middle(wanted: Preparation) -> np.ndarray:
        start = wanted.frame_px // 2 - wanted.N // 2
        return probe[..., start : start + wanted.N, start : start + wanted.N]

    def corner(wanted: Preparation) -> np.ndarray:
        return dataclasses.replace(wanted, N=wanted.window_px, bins=1).probe(probe)[..., : wanted.N, : wanted.N]

    def shifted(wanted: Preparation) -> np.ndarray:
        """Multiply with the plane wave that is left where frequencies are not shifted back."""
        sign = 1 - 2 * (np.indices((wanted.window_px,) * 2).sum(axis=0) % 2)
        whole = dataclasses.replace(wanted, N=wanted.window_px, bins=1).probe(probe)
        start = wanted.window_px // 2 - wanted.N // 2
        whole = whole * sign if wanted.window_px < wanted.frame_px else whole
        return np.asarray(whole[..., start : start + wanted.N, start : start + wanted.N])

    yield _with_all("the probe keeps the pixels of the frame that is cropped", "probe", middle)
    yield _with_all("factor of the probe missing", "probe", lambda w: w.probe(probe) * (w.frame_px / w.window_px))
    yield _with_all("factor of the probe twice", "probe", lambda w: w.probe(probe) * (w.window_px / w.frame_px))
    yield _with_all(
        "factor of the probe the wrong way", "probe", lambda w: w.probe(probe) * (w.frame_px / w.window_px) ** 2
    )
    yield _with_all("missing fftshift", "probe", shifted)
    yield _with_all("a corner of the probe in place of its middle", "probe", corner)
    yield _with_all("conjugation", "probe", lambda wanted: wanted.probe(probe).conj())
    yield _with_all(
        "the probe oriented as the detector is", "probe", lambda wanted: _turned(wanted.probe(probe), True, "both")
    )


def _every_mirror(wanted: Preparation, positions_px: np.ndarray) -> np.ndarray:
    return np.stack([wanted.positions_px(positions_px, swap_xy=s, flip_x=x, flip_y=y) for s, x, y in MIRRORS])


def _of_prepared_positions(positions_px: np.ndarray) -> Iterator[Hypothesis]:
    def scaled(power: float) -> Callable[[Preparation], np.ndarray]:
        return lambda w: _every_mirror(w, positions_px) * (w.window_px / w.frame_px) ** power

    def each(change: Callable[[bool, bool, bool], tuple[bool, bool, bool]]) -> Callable[[Preparation], np.ndarray]:
        order = [MIRRORS.index(change(*mirror)) for mirror in MIRRORS]
        return lambda wanted: _every_mirror(wanted, positions_px)[order]

    yield _with_all("positions in pixels of the frame that is cropped", "positions", scaled(-1))
    yield _with_all("positions shrunk the wrong way", "positions", scaled(-2))
    yield _with_all("binning shrinks positions", "positions", lambda w: _every_mirror(w, positions_px) / w.bins)
    yield _with_all(
        "mirrored before they are swapped", "positions", each(lambda s, x, y: (s, y, x) if s else (s, x, y))
    )
    yield _with_all("x mirrored for y", "positions", each(lambda s, x, y: (s, y, x)))
    yield _with_all("x and y not swapped", "positions", each(lambda s, x, y: (False, x, y)))
    yield _with_all("positions not mirrored", "positions", each(lambda s, x, y: (s, False, False)))


PREPARING: tuple[Step, ...] = (Step("data.prepare", ("STEP-DATA", "PREP-01"), _prepare),)
