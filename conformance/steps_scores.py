"""A reconstruction held against the known object: what is compared, how it is aligned, and the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench

TRIM_PX = 8
"""Pixels at each side of what is compared that serve the search for the shift alone."""

FITTED = 1e-10
"""A phase plane is fitted until a step of it is below this, in radians over the image."""

SCALE, PHASE_RAD, RAMP_RAD_PER_PX = 1.7, 0.7, (0.02, -0.05)


def draw_object(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw a complex object whose features are of a pixel, so that its shift is found exactly."""
    amplitude, phase = rng.standard_normal((2, *shape))
    return np.asarray((0.8 + 0.06 * amplitude) * np.exp(0.25j * phase))


def untouched(covered: np.ndarray, reach_px: int) -> np.ndarray:
    """Return (H, W) True where no pixel within a square of 2·reach + 1 is a hole; beyond the edge there is none."""
    around = np.pad(covered, reach_px, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(around, (2 * reach_px + 1,) * 2)
    return np.asarray(windows.all(axis=(-2, -1)))


@dataclass(frozen=True)
class Case:
    """A reconstruction that differs from the known object by what alignment takes out.

    Attributes:
        origin_px: (x, y) of its first pixel, between pixels of the known object.
        shape: rows and columns of its canvas.
        margins_px: uncovered rows at the top and bottom, columns at the left and right.
        shift_px: (x, y), whole pixels, that it has to be moved by.
        border_px: left out at each side.
        hole_px: rows and columns of the canvas that nothing covers.
    """

    origin_px: tuple[float, float]
    shape: tuple[int, int]
    margins_px: tuple[int, int, int, int]
    shift_px: tuple[int, int]
    border_px: int = 14
    hole_px: tuple[slice, slice] | None = None

    @property
    def whole_origin_px(self) -> tuple[int, int]:
        """Column and row of the known object at which the canvas begins."""
        x, y = self.origin_px
        return math.floor(x + 0.5), math.floor(y + 0.5)

    @property
    def covered(self) -> np.ndarray:
        """(H, W) True where there is a reconstruction."""
        height, width = self.shape
        top, bottom, left, right = self.margins_px
        covered = np.zeros(self.shape, bool)
        covered[top : height - bottom, left : width - right] = True
        if self.hole_px is not None:
            covered[self.hole_px] = False
        return covered

    def compared(self, truth_shape: tuple[int, int], whole_origin_px: tuple[int, int] | None = None) -> np.ndarray:
        """Return rows, then columns, of the canvas that are aligned: first and end, [[top, bottom], [left, right]]."""
        column, row = self.whole_origin_px if whole_origin_px is None else whole_origin_px
        (height, width), (top, bottom, left, right) = self.shape, self.margins_px
        grow = self.border_px - TRIM_PX
        # The last covered row or column is not counted in.
        spans = ((top, height - bottom - 1, row, truth_shape[0]), (left, width - right - 1, column, truth_shape[1]))
        return np.array(
            [(max(first + grow, -begin), min(last - grow, length - begin)) for first, last, begin, length in spans]
        )

    def image(self, truth: np.ndarray) -> np.ndarray:
        """Return the reconstruction."""
        (column, row), (x, y) = self.whole_origin_px, self.shift_px
        (top, bottom), (left, right) = self.compared(truth.shape)
        image = np.zeros(self.shape, complex)
        for j, i in np.argwhere(self.covered):
            there = (row + j + y, column + i + x)
            inside = all(0 <= each < length for each, length in zip(there, truth.shape, strict=True))
            plane = PHASE_RAD + RAMP_RAD_PER_PX[0] * (i - (left + right - 1) / 2)
            plane += RAMP_RAD_PER_PX[1] * (j - (top + bottom - 1) / 2)
            image[j, i] = (truth[there] if inside else 0.5) * np.exp(-1j * plane) / SCALE
        return image

    def cut(
        self, truth: np.ndarray, whole_origin_px: tuple[int, int] | None = None, trim_px: int = TRIM_PX
    ) -> np.ndarray:
        """Return the part of the known object that is compared."""
        column, row = self.whole_origin_px if whole_origin_px is None else whole_origin_px
        (top, bottom), (left, right) = self.compared(truth.shape, whole_origin_px)
        rows, columns = (
            (top + row + trim_px, bottom + row - trim_px),
            (left + column + trim_px, right + column - trim_px),
        )
        return truth[rows[0] : rows[1], columns[0] : columns[1]]

    def valid(self, truth: np.ndarray) -> np.ndarray:
        """Return which of the pixels that are compared the image's move leaves alone."""
        (top, bottom), (left, right) = self.compared(truth.shape)
        kept = untouched(self.covered[top:bottom, left:right], max(map(abs, self.shift_px)) + 2)
        return kept[TRIM_PX:-TRIM_PX, TRIM_PX:-TRIM_PX]


CASES: Mapping[str, Case] = {
    "off the origin": Case((9.3, 6.7), (58, 66), (2, 3, 1, 4), (3, -1)),
    "with a hole": Case((14.8, 3.4), (58, 66), (0, 0, 3, 0), (-1, 2), hole_px=(slice(27, 30), slice(36, 38))),
    "beyond the object": Case((-5.4, 22.2), (58, 66), (0, 0, 0, 0), (2, 1), border_px=10),
}


def _aligned(_: StepBench) -> Outcome:
    """Compare reconstructions whose shift, phase plane and scale are known."""
    from ptycho_torch.evaluate import compare

    rng = np.random.default_rng(12)
    truth = draw_object(rng, (72, 88))
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        given = compare(
            case.image(truth), case.origin_px, truth, region=case.covered.astype(float), border_px=case.border_px
        )
        valid, (x, y) = case.valid(truth), case.shift_px
        phase = PHASE_RAD - RAMP_RAD_PER_PX[0] * x - RAMP_RAD_PER_PX[1] * y
        expected |= {
            f"known object, {name}": case.cut(truth),
            f"valid, {name}": valid,
            f"shift, {name}": np.array(case.shift_px, float),
            f"moved by, {name}": np.array(case.shift_px, float),
            f"aligned, {name}": np.where(valid, case.cut(truth), 0),
            f"plane and scale, {name}": np.array([phase, *RAMP_RAD_PER_PX, SCALE]),
        }
        # Where shapes differ, the known object has said so.
        same = given.valid.shape == valid.shape
        found |= {
            f"known object, {name}": given.truth,
            f"valid, {name}": given.valid,
            f"shift, {name}": np.array(given.shift_px),
            f"moved by, {name}": np.array(given.moved_px),
            f"aligned, {name}": np.where(valid, given.aligned, 0) if same else given.aligned,
            f"plane and scale, {name}": np.array([given.phase_rad, *given.ramp_rad_per_px, given.scale]),
        }
    expected |= {"refined shift": np.array([0.3, -0.6])}
    found |= {"refined shift": _refined()}

    return Outcome(expected, found, FITTED, lambda: _misaligned(truth))


def _misaligned(truth: np.ndarray) -> Iterator[Hypothesis]:
    origins: dict[str, Callable[[Case], tuple[int, int]]] = {
        "x and y of the origin exchanged": lambda case: case.whole_origin_px[::-1],
        "sign of the origin": lambda case: (-case.whole_origin_px[0], -case.whole_origin_px[1]),
        "origin cut to whole pixels": lambda case: (math.floor(case.origin_px[0]), math.floor(case.origin_px[1])),
        "origin ignored": lambda case: (0, 0),
    }
    for mistake, origin in origins.items():
        yield Hypothesis(
            mistake, {f"known object, {name}": case.cut(truth, origin(case)) for name, case in CASES.items()}
        )
    uncut = {f"known object, {name}": case.cut(truth, trim_px=0) for name, case in CASES.items()}
    yield Hypothesis("border of the search not cut off", uncut)
    for mistake, change in (("sign of the shift", -1.0), ("half of the shift", 0.5)):
        yield Hypothesis(mistake, {f"shift, {name}": change * np.array(case.shift_px) for name, case in CASES.items()})
    turned = {f"shift, {name}": np.array(case.shift_px[::-1], float) for name, case in CASES.items()}
    yield Hypothesis("x and y of the shift exchanged", turned)
    yield Hypothesis("holes not grown", {f"valid, {name}": _not_grown(case, truth) for name, case in CASES.items()})


def _not_grown(case: Case, truth: np.ndarray) -> np.ndarray:
    (top, bottom), (left, right) = case.compared(truth.shape)
    return np.asarray(case.covered[top:bottom, left:right][TRIM_PX:-TRIM_PX, TRIM_PX:-TRIM_PX])


def _refined() -> np.ndarray:
    """Return the shift of an object that lies (0.3, −0.6) off, by least squares, to a tenth of a pixel."""
    from ptycho_torch.evaluate import compare

    rng = np.random.default_rng(13)
    truth, (x, y) = draw_object(rng, (64, 72)), (0.3, -0.6)
    fields = np.fft.fftfreq(72) * x + np.fft.fftfreq(64)[:, None] * y
    moved = np.fft.ifft2(np.fft.fft2(truth) * np.exp(2j * np.pi * fields))
    # Where the moved object wraps, the canvas does not go.
    found = compare(moved[5:55, 8:64], (8.0, 5.0), truth, refine=True)
    return np.round(np.array(found.shift_px), 1)


@dataclass(frozen=True)
class Pair:
    """An aligned image and the known one.

    Attributes:
        aligned: (H, W) complex.
        truth: (H, W) complex, the known one.
        valid: (H, W) bool, where the two may be compared.
        shift_px: (x, y) that was found between them.
    """

    aligned: np.ndarray
    truth: np.ndarray
    valid: np.ndarray
    shift_px: tuple[float, float]

    def phases(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both phases of valid pixels, about the mean phase of the known image."""
        mean = np.angle(self.truth[self.valid].sum())
        ours, theirs = (np.angle(each[self.valid] * np.exp(-1j * mean)) for each in (self.aligned, self.truth))
        return ours, theirs


def plain_scores(pair: Pair) -> dict[str, float]:
    """Return the scores by the equations of ``Scores``."""
    b, t = pair.aligned[pair.valid], pair.truth[pair.valid]
    ours, theirs = pair.phases()
    flat = min(np.ptp(ours), np.ptp(theirs)) < 1e-9
    return {
        "phase_error_rad": float(np.mean(np.abs(np.angle(b * t.conj())))),
        "amplitude_error": float(np.mean(np.abs(np.abs(b) - np.abs(t))) / np.mean(np.abs(t))),
        "complex_correlation": float(
            np.abs(np.sum(b.conj() * t)) / np.sqrt(np.sum(np.abs(b) ** 2) * np.sum(np.abs(t) ** 2))
        ),
        "phase_correlation": math.nan if flat else float(np.corrcoef(ours, theirs)[0, 1]),
        "residual_shift_px": float(np.sqrt(pair.shift_px[0] ** 2 + pair.shift_px[1] ** 2)),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


WRONG_SCORES: Mapping[str, Callable[[Pair], dict[str, float]]] = {
    "pixels that are not valid counted": lambda p: plain_scores(
        Pair(p.aligned, p.truth, np.ones_like(p.valid), p.shift_px)
    ),
    "conjugate missing": lambda p: plain_scores(Pair(p.aligned.conj(), p.truth, p.valid, p.shift_px)),
    "phase difference not wrapped": lambda p: {"phase_error_rad": float(np.mean(np.abs(np.subtract(*p.phases()))))},
    "root mean square for mean": lambda p: {
        "phase_error_rad": _rms(np.angle(p.aligned * p.truth.conj())[p.valid]),
        "amplitude_error": _rms((np.abs(p.aligned) - np.abs(p.truth))[p.valid])
        / float(np.abs(p.truth[p.valid]).mean()),
    },
    "amplitude error not relative": lambda p: {
        "amplitude_error": plain_scores(p)["amplitude_error"] * float(np.abs(p.truth[p.valid]).mean())
    },
    "amplitude error relative to the image": lambda p: {
        "amplitude_error": plain_scores(p)["amplitude_error"]
        * float(np.abs(p.truth[p.valid]).mean() / np.abs(p.aligned[p.valid]).mean())
    },
    "root of the energies missing": lambda p: {
        "complex_correlation": float(
            np.abs(np.vdot(p.aligned[p.valid], p.truth[p.valid]))
            / (np.sum(np.abs(p.aligned[p.valid]) ** 2) * np.sum(np.abs(p.truth[p.valid]) ** 2))
        )
    },
    "phases about 0 and not about their mean": lambda p: {
        "phase_correlation": float(np.corrcoef(np.angle(p.aligned[p.valid]), np.angle(p.truth[p.valid]))[0, 1])
    },
    "what it was moved by for its shift": lambda p: {"residual_shift_px": math.hypot(9.0, 9.0)},
    "sum of the shift for its length": lambda p: {"residual_shift_px": sum(map(abs, p.shift_px))},
}
"""What each mistake gives, of the scores that it changes."""


def _scores(_: StepBench) -> Outcome:
    """Score images that are nothing alike, and one whose phase is flat."""
    from ptycho_torch.alignment import Alignment
    from ptycho_torch.evaluate import score

    rng = np.random.default_rng(14)

    def drawn(shape: tuple[int, int] = (17, 23)) -> np.ndarray:
        # Phases all around the circle, and about a mean that is not 0.
        return np.asarray(rng.uniform(0.2, 1.5, shape) * np.exp(1j * (2.5 + 1.3 * rng.standard_normal(shape))))

    valid = rng.random((17, 23)) > 0.2
    first, second = drawn(), drawn()
    pairs = {
        "two images": Pair(first + 0.8 * second, second, valid, (0.3, -1.2)),
        "flat phase": Pair(first, np.abs(second) + 0j, valid, (0.0, 0.0)),
        "the same twice": Pair(first, first, valid, (-2.0, 0.0)),
    }

    def as_found(pair: Pair) -> dict[str, float]:
        alignment = Alignment(pair.aligned, pair.truth, pair.valid, pair.shift_px, (9.0, 9.0), 0.4, (0.1, 0.2), 1.3)
        return vars(score(alignment))

    def every(of: Callable[[Pair], Mapping[str, float]]) -> dict[str, np.ndarray]:
        return {f"{name}, {what}": np.array(each) for what, pair in pairs.items() for name, each in of(pair).items()}

    def mistakes() -> Iterator[Hypothesis]:
        for name, of in WRONG_SCORES.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                yield Hypothesis(name, every(of))

    return Outcome(every(plain_scores), every(as_found), FLOAT64, mistakes)


SCORES: tuple[Step, ...] = (
    Step("forward.aligned", ("SCORE-02",), _aligned, ("skimage",)),
    Step("forward.scores", ("SCORE-01", "SCORE-02"), _scores),
)
