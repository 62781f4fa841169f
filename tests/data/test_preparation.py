"""Frames to N × N with probe and positions going along, and settings that a scan decides."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch.config_params import DataSettings, NetworkSettings
from ptycho_torch.data.preparation import (
    DerivedSettings,
    FramePreparation,
    derive,
    flip_about_zero_frequency,
)
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import DataContractError
from tests.support.plain_preparation import Preparation, oriented

FLIPS = ("none", "vertical", "horizontal", "both")


def prepare(frame_px: int, **settings: Any) -> FramePreparation:
    return FramePreparation(frame_px, DataSettings(**settings))


def far_field(wave: np.ndarray) -> np.ndarray:
    """|FFT2| / side with the zero frequency at side // 2, float64."""
    return np.asarray(np.fft.fftshift(np.abs(np.fft.fft2(wave)), axes=(-2, -1)) / wave.shape[-1])


def draw_amplitude(frame_px: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(frame_px).gamma(2.0, 3.0, (count, frame_px, frame_px)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- frames


def test_cropping_the_real_detector_gives_the_smaller_scan_exactly(shared: Path) -> None:
    with (
        np.load(shared / "data" / "siemens_star_n128.npz") as large,
        np.load(shared / "data" / "siemens_star_n64.npz") as small,
    ):
        preparation = prepare(128, N=64, detector_crop=True)
        np.testing.assert_array_equal(preparation.frames(large["diff3d"]), small["diff3d"])
        ours = preparation.positions(np.stack([large["xcoords"], large["ycoords"]], axis=1))
        theirs = np.stack([small["xcoords"], small["ycoords"]], axis=1)
        # The two files count from frames of different sides: their positions agree but for one shift.
        shift = ours - theirs
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)


@pytest.mark.parametrize("b", [2, 3, 4])
def test_binning_keeps_the_counts(b: int) -> None:
    amplitude = draw_amplitude(8 * b)
    counts = np.square(amplitude.astype(np.float64))
    binned = prepare(8 * b, N=8, detector_bin=b).frames(amplitude)
    assert binned.shape == (3, 8, 8)
    assert binned.dtype == np.float32
    expected = np.array([
        [[counts[m, i * b : i * b + b, j * b : j * b + b].sum() for j in range(8)] for i in range(8)] for m in range(3)
    ])  # fmt: skip
    # One root and one rounding to float32.
    np.testing.assert_allclose(np.square(binned.astype(np.float64)), expected, rtol=3e-7)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("N", [6, 8])
def test_flipping_keeps_the_zero_frequency_and_undoes_itself(flip: str, N: int) -> None:
    amplitude = draw_amplitude(N)
    preparation = prepare(N, N=N, detector_flip=flip)
    once = preparation.frames(amplitude)
    np.testing.assert_array_equal(once[:, N // 2, N // 2], amplitude[:, N // 2, N // 2])
    np.testing.assert_array_equal(preparation.frames(once), amplitude)
    assert np.array_equal(once, amplitude) == (flip == "none")


@pytest.mark.parametrize("side", [5, 6])
def test_a_flip_takes_each_pixel_to_its_mirror_about_the_zero_frequency(side: int) -> None:
    frames = draw_amplitude(side, 1)[0]
    mirror = [(2 * (side // 2) - i) % side for i in range(side)]
    np.testing.assert_array_equal(flip_about_zero_frequency(frames, -2), frames[mirror])
    np.testing.assert_array_equal(flip_about_zero_frequency(frames, -1), frames[:, mirror])


@pytest.mark.parametrize("flip", FLIPS)
def test_flipping_the_detector_is_the_far_field_of_the_flipped_wave(flip: str) -> None:
    rng = np.random.default_rng(0)
    wave = rng.standard_normal((8, 8)) + 1j * rng.standard_normal((8, 8))
    mirrored = wave
    for axis, name in ((0, "vertical"), (1, "horizontal")):
        if flip in (name, "both"):
            mirrored = np.roll(np.flip(mirrored, axis), 1, axis)
    pattern = far_field(wave)[None].astype(np.float32)
    np.testing.assert_allclose(prepare(8, N=8, detector_flip=flip).frames(pattern)[0], far_field(mirrored), rtol=1e-6)


@given(
    b=st.integers(1, 3),
    margin=st.integers(0, 5),
    transpose=st.booleans(),
    flip=st.sampled_from(FLIPS),
    place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_a_bad_pixel_goes_where_its_counts_go(
    b: int, margin: int, transpose: bool, flip: str, place: tuple[float, float]
) -> None:
    N, frame = 6, 6 * b + margin
    preparation = prepare(
        frame, N=N, detector_bin=b, detector_crop=True, detector_transpose=transpose, detector_flip=flip
    )
    hot = tuple(int(fraction * frame) for fraction in place)
    amplitude, good = np.zeros((1, frame, frame), np.float32), np.ones((frame, frame), bool)
    amplitude[0][hot], good[hot] = 3.0, False
    np.testing.assert_array_equal(preparation.good_pixels(good), preparation.frames(amplitude)[0] == 0)


def test_frames_of_n_pixels_pass_untouched_and_uncopied() -> None:
    amplitude = draw_amplitude(8)
    preparation = prepare(8, N=8)
    assert preparation.is_identity
    assert preparation.frames(amplitude) is amplitude
    assert not any(
        prepare(8, N=8, **change).is_identity for change in ({"detector_transpose": True}, {"detector_flip": "both"})
    )
    assert not prepare(16, N=8, detector_bin=2).is_identity
    assert not prepare(16, N=8, detector_crop=True).is_identity


@pytest.mark.parametrize(
    ("frame_px", "settings", "words"),
    [
        (16, {"N": 8}, r"frames of 16 × 16 .* expected 8 × 8"),
        (16, {"N": 8, "detector_bin": 3}, "expected 24 × 24"),
        (8, {"N": 16}, "Frames of 8 pixels are smaller than every network"),
        (8, {"N": 16, "detector_crop": True}, "a window of 16 pixels"),
        (16, {"N": 8, "detector_crop": True, "detector_centre_row_px": 3}, "window of 8 pixels from -1 on"),
        (16, {"N": 8, "detector_crop": True, "detector_centre_column_px": 13}, "from 9 on in frames of 16"),
        (16, {"N": 16, "detector_centre_row_px": 9}, "Centres from 8 to 8 leave room for it"),
    ],
)
def test_frames_that_the_settings_do_not_fit_are_refused(frame_px: int, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DataContractError, match=words) as caught:
        FramePreparation(frame_px, DataSettings(**settings), Path("some/scan.npz"))
    assert caught.value.clause == "PREP-01"
    assert caught.value.path == Path("some/scan.npz")


# -------------------------------------------------------------------------------- probe and positions go along


@pytest.mark.parametrize(("frame", "N"), [(48, 24), (47, 24), (50, 16)])
def test_a_cropped_detector_sees_the_far_field_of_the_prepared_probe(frame: int, N: int) -> None:
    rng = np.random.default_rng(frame)
    modes = (rng.standard_normal((2, frame, frame)) + 1j * rng.standard_normal((2, frame, frame))).astype(np.complex64)
    preparation = prepare(frame, N=N, detector_crop=True)
    seen = preparation.frames(far_field(modes).astype(np.float32))
    prepared = preparation.probe(modes)
    assert prepared.shape == (2, N, N)
    assert prepared.dtype == np.complex64
    # complex64 holds the prepared probe: 6e-8 of its largest entries in each amplitude.
    np.testing.assert_allclose(far_field(prepared), seen, atol=1e-6 * seen.max())


@pytest.mark.parametrize(("frame", "N"), [(48, 24), (64, 24)])
def test_cropped_patterns_are_those_of_the_prepared_probe_at_the_prepared_positions(frame: int, N: int) -> None:
    """Far field of the fine scan, cropped = far field of the coarse object under the prepared probe, where all light
    lies inside the cropped detector. The object is a sum of plane waves, so it is known between its pixels.
    """
    rng = np.random.default_rng(1)
    band = np.arange(-N // 8, N // 8 + 1)
    waves = rng.standard_normal((len(band),) * 2) + 1j * rng.standard_normal((len(band),) * 2)  # [row, column]
    probe_waves = rng.standard_normal((len(band),) * 2) + 1j * rng.standard_normal((len(band),) * 2)

    def field(strengths: np.ndarray, side: int, x: float, y: float) -> np.ndarray:
        """Values at (x − side/2 + j, y − side/2 + i) in pixels of a period of ``side``."""
        rows, columns = (np.exp(2j * np.pi * np.outer(at - side / 2 + np.arange(side), band) / side) for at in (y, x))
        return np.asarray(rows @ strengths @ columns.T)

    probe = field(probe_waves, frame, frame / 2, frame / 2)
    positions = np.array([[31.25, 77.5], [90.1, 12.3], [50.0, 50.0]])
    preparation = prepare(frame, N=N, detector_crop=True)
    coarse_probe, coarse_positions = preparation.probe(probe[None])[0], preparation.positions(positions)
    for (x, y), (coarse_x, coarse_y) in zip(positions, coarse_positions, strict=True):
        pattern = far_field(probe * field(waves, frame, x, y))
        seen = preparation.frames(pattern[None].astype(np.float32))[0]
        assert np.square(seen, dtype=np.float64).sum() == pytest.approx(np.square(pattern).sum(), rel=1e-6)
        predicted = far_field(coarse_probe * field(waves, N, coarse_x, coarse_y))
        np.testing.assert_allclose(predicted, seen, atol=2e-6 * seen.max())
    # The same patterns at positions that were left alone fit nothing.
    wrong = far_field(coarse_probe * field(waves, N, *positions[0]))
    right = far_field(coarse_probe * field(waves, N, *coarse_positions[0]))
    assert np.abs(wrong - right).max() > 0.05 * right.max()


def test_binning_keeps_positions_and_the_energy_of_a_probe_that_fits() -> None:
    rng = np.random.default_rng(2)
    probe = np.zeros((1, 24, 24), np.complex64)
    probe[:, 6:18, 6:18] = rng.standard_normal((12, 12)) + 1j * rng.standard_normal((12, 12))
    preparation = prepare(24, N=12, detector_bin=2)
    prepared = preparation.probe(probe)
    np.testing.assert_array_equal(prepared, probe[:, 6:18, 6:18])
    counts = np.square(preparation.frames(far_field(probe).astype(np.float32)), dtype=np.float64).sum()
    assert counts == pytest.approx(np.square(np.abs(prepared.astype(np.complex128))).sum(), rel=1e-6)
    positions = rng.uniform(0, 90, (5, 2))
    np.testing.assert_array_equal(preparation.positions(positions), positions)


def test_a_probe_of_n_pixels_passes_as_it_is() -> None:
    probe = np.arange(64).reshape(1, 8, 8).astype(np.complex64)
    turned = prepare(8, N=8, detector_transpose=True, detector_flip="both", positions_flip_x=True)
    np.testing.assert_array_equal(turned.probe(probe), probe)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3.0, 5.0]),
        ({"positions_swap_xy": True}, [5.0, 3.0]),
        ({"positions_flip_x": True}, [-3.0, 5.0]),
        ({"positions_flip_y": True}, [3.0, -5.0]),
        ({"positions_swap_xy": True, "positions_flip_x": True}, [-5.0, 3.0]),
        ({"positions_swap_xy": True, "positions_flip_x": True, "positions_flip_y": True}, [-5.0, -3.0]),
    ],
)
def test_positions_are_swapped_and_then_counted_the_other_way(settings: dict[str, bool], expected: list[float]) -> None:
    given_positions = np.array([[3.0, 5.0]])
    found = prepare(8, N=8, **settings).positions(given_positions)
    assert found.tolist() == [expected]
    assert found.flags.c_contiguous
    assert given_positions.tolist() == [[3.0, 5.0]]


# ------------------------------------------------------------------------------------------- every orientation

PREPARATIONS = {
    "cropped and binned": Preparation(frame_px=16, N=6, bins=2, centre_px=(7, 9)),
    "cropped": Preparation(frame_px=16, N=12),
    "binned": Preparation(frame_px=16, N=8, bins=2),
    "as they are": Preparation(frame_px=16, N=16),
}


def ours(wanted: Preparation, **orientation: Any) -> FramePreparation:
    row, column = (None, None) if wanted.centre_px is None else wanted.centre_px
    return prepare(
        wanted.frame_px,
        N=wanted.N,
        detector_bin=wanted.bins,
        detector_crop=wanted.window_px < wanted.frame_px,
        detector_centre_row_px=row,
        detector_centre_column_px=column,
        **orientation,
    )


@pytest.mark.parity_clause("STEP-DATA", "PREP-01")
@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("name", PREPARATIONS)
def test_frames_and_masks_are_cropped_binned_and_turned(name: str, transpose: bool, flip: str) -> None:
    rng, wanted = np.random.default_rng(17), PREPARATIONS[name]
    frames, mask = rng.gamma(2.0, 3.0, (3, 16, 16)).astype(np.float32), rng.random((16, 16)) > 0.2
    given = ours(wanted, detector_transpose=transpose, detector_flip=flip)
    right = {"frames": wanted.amplitude(frames), "good pixels": wanted.good_pixels(mask)}
    assert_agrees(
        {what: oriented(each, transpose=transpose, flip=flip) for what, each in right.items()},
        {"frames": given.frames(frames), "good pixels": given.good_pixels(mask)},
        FLOAT32,
    )


@pytest.mark.parity_clause("STEP-DATA", "PREP-01")
@pytest.mark.parametrize("name", PREPARATIONS)
def test_probe_and_positions_go_the_way_of_the_frames(name: str) -> None:
    """The probe is not turned with the detector; positions are swapped before they are mirrored."""
    rng, wanted = np.random.default_rng(18), PREPARATIONS[name]
    probe, positions_px = draw_wave(rng, 2, 16, 16).astype(np.complex64), rng.uniform((20, 90), (45, 130), (5, 2))
    right = {"probe": wanted.probe(probe)}
    found = {"probe": ours(wanted, detector_transpose=True, detector_flip="both").probe(probe)}
    for swap, x, y in itertools.product((False, True), repeat=3):
        key = f"positions, swapped {swap}, mirrored {x} {y}"
        given = ours(wanted, positions_swap_xy=swap, positions_flip_x=x, positions_flip_y=y)
        right[key] = wanted.positions_px(positions_px, swap_xy=swap, flip_x=x, flip_y=y)
        found[key] = given.positions(positions_px)
    assert_agrees(right, found, FLOAT32)


# ------------------------------------------------------------------------------------- settings of a scan


def test_settings_of_the_real_scan_are_its_counts_its_step_and_its_widest_group(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "siemens_star_n64.npz"
    dataset = PtychoDataset(path, data_dir=tmp_path, settings=DataSettings(n_subsample=2))
    derived = dataset.derived()
    with np.load(path) as scan:
        positions = np.stack([scan["xcoords"], scan["ycoords"]], axis=1)
        energy = np.square(scan["diff3d"], dtype=np.float64).sum(axis=(1, 2))
    groups = dataset.nn_indices.numpy()
    distances = np.hypot(*(positions[:, None] - positions).transpose(2, 0, 1))
    np.fill_diagonal(distances, np.inf)
    step = np.median(distances.min(axis=1))
    members = positions[groups]
    reach = np.abs(members - members.mean(axis=1, keepdims=True)).max(axis=(1, 2))
    assert derived.nphotons == pytest.approx(energy[groups].mean(), rel=1e-6)
    assert 4.2e5 < derived.nphotons < 4.5e5
    assert derived.step_px == pytest.approx(step, rel=1e-12)
    assert derived.offset == round(step)
    assert derived.reach_px == pytest.approx(reach.max(), rel=1e-6)
    assert derived.groups == 640
    assert derived.padding_px == (derived.offset + derived.max_position_jitter) // 2 == math.ceil(reach.max())
    assert derived.clipped_groups == 0
    assert derived.reference_padding_px == 7
    assert derived.clipped_by_reference == (reach > 7).sum() > 0
    network = NetworkSettings(gridsize=2, offset=derived.offset, max_position_jitter=derived.max_position_jitter)
    assert network.padding_px == derived.padding_px


def test_several_scans_decide_together(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    with np.load(shared / "data" / "siemens_star_n64.npz") as file:
        scan = {name: file[name] for name in ("diff3d", "xcoords", "ycoords", "probeGuess")}
    np.savez(folder / "a.npz", **scan)
    # Twice the step and thrice the amplitude.
    wide = scan | {"xcoords": 2 * scan["xcoords"], "ycoords": 2 * scan["ycoords"], "diff3d": 3 * scan["diff3d"]}
    np.savez(folder / "b.npz", **wide)
    one = PtychoDataset(folder / "a.npz", data_dir=tmp_path / "one", settings=DataSettings()).derived()
    both = PtychoDataset(folder, data_dir=tmp_path / "both", settings=DataSettings()).derived()
    assert both.nphotons == pytest.approx(5 * one.nphotons, rel=0.02)
    assert both.step_px == pytest.approx(1.5 * one.step_px, rel=1e-9)
    assert both.reach_px >= 1.9 * one.reach_px


REACHES = st.lists(st.floats(0, 300, width=32) | st.floats(0, 8, width=32), min_size=1, max_size=8)


@example(reach=[3.0], step=9.0, gridsize=2, offset=None)  # The step alone is wide enough, and odd.
@given(reach=REACHES, step=st.floats(0, 100), gridsize=st.integers(1, 5), offset=st.none() | st.integers(0, 90))
def test_a_derived_canvas_holds_every_group_and_is_centred(
    reach: list[float], step: float, gridsize: int, offset: int | None
) -> None:
    found = derive(mean_counts=1.0, step_px=step, reach_px=np.array(reach), gridsize=gridsize, offset=offset)
    total = (gridsize - 1) * found.offset + found.max_position_jitter
    assert total % 2 == 0
    assert found.max_position_jitter >= 0
    assert found.padding_px == total // 2 >= max(reach)
    assert found.clipped_groups == 0
    assert found.offset == (round(step) if offset is None else offset)
    # The least such canvas: two pixels less would clip, or the nominal step alone is already wide enough.
    assert found.max_position_jitter <= 1 or found.padding_px - 1 < max(reach)


@given(reach=REACHES, jitter=st.integers(0, 50), gridsize=st.integers(1, 4), nphotons=st.none() | st.just(7.0))
def test_what_is_given_stays_and_clipped_groups_are_counted(
    reach: list[float], jitter: int, gridsize: int, nphotons: float | None
) -> None:
    found = derive(
        mean_counts=5.0, step_px=3.2, reach_px=np.array(reach), gridsize=gridsize, nphotons=nphotons,
        offset=2, max_position_jitter=jitter,
    )  # fmt: skip
    assert found.offset == 2
    assert found.max_position_jitter == jitter
    assert found.nphotons == (5.0 if nphotons is None else 7.0)
    # An odd total is split with the floor, as the network does (REF-03).
    assert found.padding_px == ((gridsize - 1) * 2 + jitter) // 2
    assert found.clipped_groups == sum(each > found.padding_px for each in reach)


def test_groups_of_one_pattern_need_no_canvas() -> None:
    found = derive(mean_counts=1.0, step_px=8.2, reach_px=np.zeros(5), gridsize=1)
    assert (found.offset, found.max_position_jitter, found.padding_px) == (8, 0, 0)
    assert found.reference_padding_px == 5


def test_the_numbers_are_told_in_words() -> None:
    found = derive(mean_counts=4.4e5, step_px=8.2, reach_px=np.array([3.0, 9.5]), gridsize=2, max_position_jitter=2)
    text = "\n".join(found.describe())
    for words in ("nphotons = 440000", "offset = 8 px", "8.20 px", "9.50 px", "1 groups are clipped", "clip 1 groups"):
        assert words in text
    quiet = derive(mean_counts=1.0, step_px=8.2, reach_px=np.array([3.0]), gridsize=2)
    assert isinstance(quiet, DerivedSettings)
    assert len(quiet.describe()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean_counts": 0.0},
        {"mean_counts": -1.0},
        {"mean_counts": math.nan},
        {"mean_counts": math.inf},
        {"step_px": math.inf},
        {"step_px": math.nan},
        {"reach_px": np.zeros(0)},
        {"reach_px": np.array([1.0, math.inf])},
        {"reach_px": np.array([math.nan, 1.0])},
    ],
    ids=str,
)
def test_numbers_that_are_none_derive_nothing(wrong: dict[str, Any]) -> None:
    numbers: dict[str, Any] = {"mean_counts": 1.0, "step_px": 8.0, "reach_px": np.array([3.0])}
    with pytest.raises(DataContractError) as caught:
        derive(gridsize=2, **(numbers | wrong))
    assert caught.value.clause == "PREP-02"
