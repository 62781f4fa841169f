"""A blank object is told from a real one, however weak that is, and said with what to try."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.training_runs import SMALL, write_scan

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

from ptycho_torch import inference, simulate, train
from ptycho_torch.config_params import Settings
from ptycho_torch.data.specimens import transmission
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.simulate import choose_probe, plan_positions
from ptycho_torch.training import training_callbacks
from ptycho_torch.training.blank import CHECKED_PATTERNS, ObjectCheck, check_objects, checked_groups, compare

N = 64


def settings(**overrides: Any) -> Settings:
    return Settings().override(SMALL | overrides)


def patterns(seed: int = 0, count: int = 6) -> Tensor:
    return torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


# ------------------------------------------------------------------------------------------------------- the numbers


def test_the_true_patterns_correlate_and_have_no_error_at_any_brightness() -> None:
    measured = patterns()
    correlation, error, constant_error = compare(measured, 3 * measured, measured.mean(0, keepdim=True))
    assert correlation == pytest.approx(1)
    assert error == pytest.approx(0, abs=1e-15)
    assert constant_error > 0.1
    brightness = torch.arange(1.0, 7)[:, None, None]
    assert compare(measured * brightness, measured, measured)[0] == pytest.approx(1)


def test_patterns_of_a_constant_object_do_not_correlate_and_have_its_error() -> None:
    measured, beam = patterns(), patterns(1, 1)
    correlation, error, constant_error = compare(measured, 2 * beam.expand_as(measured), beam)
    assert correlation == 0
    assert error == pytest.approx(constant_error)
    scale = (beam * measured).sum() / (beam**2).sum() / len(measured)
    assert error == pytest.approx(float(((scale * beam - measured) ** 2).sum() / (measured**2).sum()))


def test_following_the_brightness_of_patterns_is_no_object() -> None:
    measured = patterns() * torch.arange(1.0, 7)[:, None, None]
    followed = patterns(1, 1) * torch.linalg.vector_norm(measured, dim=(1, 2), keepdim=True)
    assert compare(measured, followed, followed)[0] == 0


def test_an_error_that_all_patterns_share_does_not_hide_an_object() -> None:
    shared = 20 * patterns(2, 1)
    unit = patterns() - patterns().mean((1, 2), keepdim=True)
    correlation, error, constant_error = compare(shared + unit, 20 * patterns(3, 1) + unit, shared)
    assert correlation > 0.9
    assert error > constant_error


def test_what_bad_pixels_hold_does_not_count() -> None:
    measured, predicted = patterns(), patterns(1)
    good = torch.ones(8, 8, dtype=torch.bool)
    good[2:4] = False
    expected = compare(measured[:, good].reshape(6, 6, 8), predicted[:, good].reshape(6, 6, 8), torch.ones(1, 6, 8))
    measured[:, 2], predicted[:, 3] = math.nan, math.inf
    assert compare(measured, predicted, torch.ones(1, 8, 8), good) == pytest.approx(expected)


def test_a_prediction_that_is_not_finite_is_blank() -> None:
    correlation, error, constant_error = compare(patterns(), patterns() * math.nan, patterns(1, 1))
    check = ObjectCheck(correlation, error, constant_error, 0.1, 0.0)
    assert check.is_blank
    assert json.loads(json.dumps(check.numbers(), allow_nan=False))["diffraction_error"] is None


def test_the_disagreement_of_a_constant_object_says_nothing() -> None:
    check = ObjectCheck(0.5, 0.03, 0.05, 0.1, 0.0)
    assert not check.with_disagreement(math.nan).is_inconsistent
    assert not check.with_disagreement(1.5).is_inconsistent
    assert check.with_disagreement(2.0).is_inconsistent


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (ObjectCheck(0.02, 0.061, 0.0565, 0.1, 0.9), ("blank", "6.1 %", "5.65 %", "0.02", "90 % of the amplitude")),
        (ObjectCheck(0.02, 0.061, 0.0565, 0.1, 0.1), ("--max-epochs", "batch size", "check-data", "blank_object.md")),
        (ObjectCheck(0.9, 0.01, 0.0565, 0.1, 0.9, 3.0), ("3.0 times the contrast", "positions")),
    ],
)
def test_a_warning_says_what_was_seen_and_what_to_try(check: ObjectCheck, words: tuple[str, ...]) -> None:
    warning = check.warning()
    assert warning is not None
    assert all(word in warning for word in words)
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("correlation", "error", "is_blank"),
    [(0.02, 0.05, True), (0.14, 0.0995, True), (0.15, 0.097, False), (0.14, 0.11, True), (0.4, 0.11, False)],
)
def test_the_verdict_weighs_correlation_and_error(correlation: float, error: float, is_blank: bool) -> None:
    # Networks before training correlate by chance, and an error of the probe weighs on good objects.
    assert ObjectCheck(correlation, error, 0.1, 0.1, 0.0).is_blank is is_blank


def test_a_good_object_gets_no_warning() -> None:
    assert ObjectCheck(0.6, 0.03, 0.0565, 0.01, 0.9, 0.6).warning() is None


# -------------------------------------------------------------------------------------------------------- of networks


@pytest.fixture(scope="module")
def weak_scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Write a scan of a phase object of 0.05 rad at 1e5 counts a pattern."""
    draw = np.random.default_rng(0)
    plan = plan_positions("raster", 36, N, draw, step_px=6)
    height, width = plan.size_px, plan.size_px
    phase = np.kron(draw.choice([-1.0, 1.0], (height // 4 + 1, width // 4 + 1)), np.ones((4, 4)))[:height, :width]
    specimen = transmission(np.zeros((height, width)), phase * 0.05 / (math.pi / 2))
    probe = simulate.scale_probe(specimen, choose_probe("default", N), plan.positions_px, 1e5)
    path = tmp_path_factory.mktemp("weak") / "scan.npz"
    simulate.write_scan(path, specimen, probe, plan.positions_px, draw)
    return path, specimen


def predicting(module: train.PtychoPINN, patches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network predict what ``patches`` returns for the number of patterns that it is given."""
    monkeypatch.setattr(module.network, "predict_patches", lambda scaled: patches(len(scaled)))


def test_a_weak_object_is_seen_and_a_blank_or_collapsed_one_is_not(
    weak_scan: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, specimen = weak_scan
    dataset = PtychoDataset(path, data_dir=tmp_path, settings=settings().data)
    module = train.PtychoPINN.for_dataset(dataset, settings())
    assert check_objects(module, dataset)[0].is_blank  # untrained
    places = (dataset.positions_px.numpy() - N / 2).round().astype(int)
    crops = np.stack([specimen[y : y + N, x : x + N] for x, y in places])
    order = iter(np.array_split(dataset.nn_indices[checked_groups(dataset), 0].numpy(), range(16, 64, 16)))
    predicting(module, lambda count: torch.from_numpy(crops[next(order)])[:, None], monkeypatch)
    true = check_objects(module, dataset)[0]
    assert true.pattern_correlation > 0.3
    assert true.diffraction_error < true.constant_error
    assert true.contrast == pytest.approx(0.05, rel=0.1)
    assert not true.is_blank
    predicting(module, lambda count: torch.ones(count, 1, N, N, dtype=torch.complex64), monkeypatch)
    empty = check_objects(module, dataset)[0]
    assert empty.is_blank
    assert empty.diffraction_error == pytest.approx(empty.constant_error)
    assert (empty.contrast, empty.saturated) == (pytest.approx(0, abs=1e-4), 1)
    collapsed = torch.from_numpy(crops[7])
    predicting(module, lambda count: collapsed.expand(count, 1, N, N), monkeypatch)
    assert check_objects(module, dataset)[0].is_blank


def test_every_scan_is_checked_with_its_own_patterns_and_probe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        path = write_scan(tmp_path / "scans" / f"{name}.npz", patterns=80 if name == "a" else 20)
        if name == "b":
            with np.load(path) as members:
                np.savez(path, **(dict(members) | {"probeGuess": members["probeGuess"] ** 4}))
    dataset = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=settings().data)
    groups = checked_groups(dataset)
    scans = dataset.experiment_ids[groups]
    assert [int((scans == number).sum()) for number in (0, 1)] == [CHECKED_PATTERNS, 20]
    assert len(groups.unique()) == len(groups)
    module = train.PtychoPINN.for_dataset(dataset, settings())
    checks = check_objects(module, dataset)
    assert checks.keys() == {0, 1}
    assert checks[0].constant_error != pytest.approx(checks[1].constant_error, rel=1e-3)


def test_training_and_inference_say_that_the_object_is_blank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan = write_scan(tmp_path / "a.npz")
    common: dict[str, Any] = {"data_dir": tmp_path / "map", "progress": False}
    for reconstruct in (False, True):
        caplog.clear()
        # At this rate nothing is learned.
        slow = settings(learning_rate=1e-30, max_epochs=2)
        result = train.main(scan, settings=slow, output_dir=tmp_path, overwrite=True, reconstruct=reconstruct, **common)
        during, after = [record.getMessage() for record in caplog.records if "is blank" in record.getMessage()]
        assert during.startswith("epoch 1/2: after 5 updates the object is blank")
        assert after.startswith("a.npz: the object is blank")
    caplog.clear()
    (inferred,) = inference.infer(result.checkpoint, scan, output_dir=tmp_path / "objects", **common)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == ["a.npz: the object is blank"]
    assert inferred.check.is_blank
    assert inferred.check.disagreement is not None
    with np.load(inferred.npz) as members:
        told = json.loads(str(members["provenance"]))
    assert told["object_check"] == inferred.check.numbers()


def test_an_object_that_turns_out_blank_and_recovers_is_said_once_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = (ObjectCheck(correlation, 0.05, 0.05, 0.1, 0.0) for correlation in (0.0, 0.5))
    coming = iter([{0: bad, 1: bad}, {0: good, 1: bad}, {0: good}])
    asked = []

    def check(module: Any, dataset: Any, groups: Any) -> dict[int, ObjectCheck]:
        asked.append(trainer.global_step)
        return next(coming)

    monkeypatch.setattr(training_callbacks, "check_objects", check)
    monkeypatch.setattr(training_callbacks, "checked_groups", lambda dataset: None)
    watch = training_callbacks.BlankWatch(None)  # type: ignore[arg-type]
    monkeypatch.setattr(training_callbacks, "_SHARE", math.inf)
    trainer = SimpleNamespace(is_global_zero=True, max_epochs=7, estimated_stepping_batches=700)
    for epoch in range(7):
        trainer.current_epoch, trainer.global_step = epoch, 100 * (epoch + 1)
        watch.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    # From half of the updates on, and not at the end, where the whole object is judged.
    assert asked == [400, 500, 600]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("epoch 4/7: after 400 updates the object is blank")
    assert second.startswith("epoch 5/7: the object is no longer blank")
    trainer.is_global_zero, trainer.global_step = False, 650
    watch.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert len(asked) == 3


def test_checks_take_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, asked=0)
    monkeypatch.setattr(training_callbacks, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def check(*_: Any) -> dict[int, ObjectCheck]:
        clock.now += 1
        clock.asked += 1
        return {0: ObjectCheck(0.5, 0.05, 0.05, 0.1, 0.0)}

    monkeypatch.setattr(training_callbacks, "check_objects", check)
    monkeypatch.setattr(training_callbacks, "checked_groups", lambda dataset: None)
    watch = training_callbacks.BlankWatch(None)  # type: ignore[arg-type]
    trainer = SimpleNamespace(
        is_global_zero=True, max_epochs=1000, estimated_stepping_batches=10**6, global_step=10**6 - 1, current_epoch=0
    )
    for _ in range(200):
        clock.now += 3
        watch.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert 5 <= clock.asked <= 0.025 * clock.now
