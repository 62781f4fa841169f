"""Broken data paths, and findings that are not as they should be: each is seen."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from conformance.judge import data_parity
from conformance.judge.data_parity import decide, differences, draw_scan, draw_settings
from conformance.oracle import data as oracle_data
from conformance.oracle.data import GroupedScan
from conformance.spec.divergences import COUNT, FILE, load_divergences, missing_tests, parse_divergences
from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import SpecError, read_yaml
from ptycho_torch.data import grouping

pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

SETTINGS = DataSettings(N=8, gridsize=2, K=5, group_sampler="reference", n_groups=9, group_seed=4)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.npz"
    np.savez(path, **draw_scan(np.random.default_rng(1), M=14, N=8))  # type: ignore[arg-type]
    return path


def test_the_data_path_as_it_is_shows_no_difference(scan: Path) -> None:
    assert not differences(scan, SETTINGS)


def _changed(**fields: Callable[[GroupedScan], Any]) -> Callable[[GroupedScan], GroupedScan]:
    return lambda grouped: dataclasses.replace(grouped, **{name: change(grouped) for name, change in fields.items()})


FAULTS: dict[str, tuple[str, Callable[[GroupedScan], GroupedScan]]] = {
    "groups mirrored": ("offsets", _changed(offsets_px=lambda each: -each.offsets_px)),
    "x and y swapped": ("offsets", _changed(offsets_px=lambda each: each.offsets_px[:, :, ::-1])),
    "offsets of the nominal positions": ("offsets", _changed(offsets_px=lambda each: each.offsets_px * 1.001)),
    "centres of the first patch": (
        "centres",
        _changed(centres_px=lambda each: each.centres_px + each.offsets_px[..., :1]),
    ),
    "√N too large": ("normal", _changed(amplitude=lambda each: each.amplitude * np.sqrt(8))),
    "N² for (N/2)²": (
        "normal",
        _changed(amplitude=lambda each: each.amplitude * 2, factor=lambda each: each.factor * 2),
    ),
    "patterns transposed": ("normalised input", _changed(amplitude=lambda each: each.amplitude.swapaxes(1, 2))),
    "one pattern in every channel": (
        "normalised input",
        _changed(amplitude=lambda each: np.repeat(each.amplitude[..., :1], 4, axis=-1)),
    ),
}
"""What a wrong data path would differ by; the comparison is the same from either side."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_data_path_is_seen(scan: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    word, fault = FAULTS[name]
    right = oracle_data.group
    monkeypatch.setattr(oracle_data, "group", lambda scan, indices: fault(right(scan, indices)))
    found = differences(scan, SETTINGS)
    assert any(word in each for each in found), found


@pytest.mark.parametrize("fault", ["with itself", "sorted", "one seed further"])
def test_other_groups_are_seen(scan: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right, nearest = grouping.reference_groups, grouping._nearest

    def wrong(positions_px: np.ndarray, **given: Any) -> np.ndarray:
        groups = right(positions_px, **(given | ({"seed": given["seed"] + 1} if fault == "one seed further" else {})))
        return np.sort(groups, axis=1) if fault == "sorted" else groups

    if fault == "with itself":
        monkeypatch.setattr(
            grouping,
            "_nearest",
            lambda positions_px, seeds, K: nearest(positions_px, seeds, K)[:, [0, *range(K)]],
        )
    else:
        monkeypatch.setattr(grouping, "reference_groups", wrong)
    assert any("groups" in each for each in differences(scan, SETTINGS))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_groups_follow_the_oracle_for_any_scan_and_arguments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    M = int(rng.integers(9, 60))
    members, chosen = draw_scan(rng, M=M, N=4), draw_settings(rng, M=M, N=4)
    theirs = data_parity.reference_groups(oracle_data.read_scan(members), chosen)
    positions = np.stack([members["xcoords"], members["ycoords"]], axis=1)
    np.testing.assert_array_equal(grouping.group_scan(positions, chosen), theirs.indices)
    np.testing.assert_allclose(theirs.offsets_px.mean(axis=-1), 0, atol=1e-10)
    assert np.square(theirs.amplitude).sum(axis=(1, 2)).mean() == pytest.approx(4.0)


def test_arguments_that_the_reference_refuses_are_refused() -> None:
    positions = np.random.default_rng(0).uniform(0, 9, (6, 2))
    for wrong in ({"gridsize": 3, "K": 9}, {"gridsize": 2, "K": 3}, {"gridsize": 2, "K": 5, "n_groups": 9}):
        with pytest.raises(oracle_data.RefusedError):
            oracle_data.draw_groups(positions, **({"n_groups": 4, "seed": 0} | wrong))  # type: ignore[arg-type]


def test_a_decision_that_differs_is_told(tmp_path: Path) -> None:
    members = draw_scan(np.random.default_rng(0), M=9, N=8)
    assert decide(members, tmp_path / "a.npz").agrees
    counts = members | {"diff3d": np.ones((9, 8, 8), np.uint16)}
    decision = decide(counts, tmp_path / "b.npz")
    assert not decision.agrees
    assert decision.ours == ("SCAN-05",)


def content() -> Any:
    return copy.deepcopy(read_yaml(FILE))


def test_every_number_is_there_once() -> None:
    divergences, _ = load_divergences()
    assert [each.number for each in divergences] == list(range(1, COUNT + 1))
    for change in ("gone", "twice"):
        wrong = content()
        if change == "gone":
            del wrong["divergences"][30]
        else:
            wrong["divergences"].insert(3, wrong["divergences"][2])
        with pytest.raises(SpecError, match="each once and in order"):
            parse_divergences(wrong)


@pytest.mark.parametrize("change", ["no reason", "both", "no node", "unknown field"])
def test_a_finding_needs_a_test_or_a_reason(change: str) -> None:
    wrong = content()
    entry = wrong["divergences"][0]
    match change:
        case "no reason":
            del entry["tests"]
        case "both":
            entry["cannot_occur"] = "It does not."
        case "no node":
            entry["tests"] = ["some test"]
        case _:
            entry["note"] = "?"
    with pytest.raises(SpecError):
        parse_divergences(wrong)


def test_a_test_that_is_not_there_is_named() -> None:
    divergences, _ = load_divergences()
    ghost = dataclasses.replace(
        divergences[0], tests=("tests/judge/test_data_parity.py::test_of_nothing", "tests/test_no.py::test_a")
    )
    assert list(missing_tests((ghost,), Path(__file__).parents[1])) == sorted(ghost.tests)
