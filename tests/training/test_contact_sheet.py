"""The contact sheet of training: which epochs it shows, what a frame is, and that training does not change by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.training import contact_sheet
from ptycho_torch.training.contact_sheet import FRAMES, ContactSheet, Frame, frame_epochs, plot_frames
from tests.support.training_runs import SMALL, write_scan


@pytest.mark.parametrize("epochs", [1, 2, 3, 8, 60, 100_000])
def test_frames_begin_with_the_first_epoch_and_end_with_the_last(epochs: int) -> None:
    chosen = frame_epochs(epochs)
    assert chosen[0] == 1
    assert chosen[-1] == epochs
    assert len(chosen) == len(set(chosen)) <= FRAMES


def test_a_run_draws_its_frames_and_has_the_weights_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[Frame]] = []
    monkeypatch.setattr(contact_sheet, "plot_frames", lambda frames, path: kept.append(list(frames)))
    scan = write_scan(tmp_path / "scan.npz", patterns=8)
    settings = Settings().override(SMALL | {"max_epochs": 2})
    plain, drawn = (
        train.main(
            scan, settings=settings, output_dir=tmp_path / str(sheet), data_dir=tmp_path / "map", reconstruct=False,
            progress=False, contact_sheet=sheet,
        )
        for sheet in (False, True)
    )  # fmt: skip
    assert [frame.epochs for frame in kept[-1]] == [1, 2]
    first, last = kept[-1]
    assert np.isfinite(first.amplitude).any()
    assert np.nanmax(np.abs(first.amplitude - last.amplitude)) > 0
    for name, weight in plain.module.network.state_dict().items():
        assert torch.equal(weight, drawn.module.network.state_dict()[name]), name


def test_a_training_that_ended_early_has_its_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = ContactSheet.__new__(ContactSheet)
    sheet.frames, sheet._wanted = [], (1, 2, 10)
    monkeypatch.setattr(
        ContactSheet,
        "_add",
        lambda self, trainer, module, epochs: self.frames.append(Frame(epochs, np.ones((1, 1)), np.ones((1, 1)))),
    )

    class Stopped:
        current_epoch = 0

    trainer = Stopped()
    for trainer.current_epoch in range(4):
        sheet.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    trainer.current_epoch = 4
    sheet.on_train_end(trainer, None)  # type: ignore[arg-type]
    sheet.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert [frame.epochs for frame in sheet.frames] == [1, 2, 4]


def test_the_picture_has_every_frame(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 20 * 30).reshape(20, 30)
    ramp[0, 0] = np.nan
    for count in (1, 5):
        plot_frames([Frame(number + 1, ramp, ramp) for number in range(count)], tmp_path / f"{count}.png")
    heights = []
    for count in (1, 5):
        with Image.open(tmp_path / f"{count}.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 1.8 * heights[0]
