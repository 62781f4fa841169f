"""The object of a scan while training runs, in one picture.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from ptycho_torch.reconstruction.pictures import new_figure, save_figure
from ptycho_torch.reconstruction.reassembly import Stitched, Stitcher

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
    from ptycho_torch.training.lightning_module import PtychoPINN

SHEET = "contact_sheet.png"
FRAMES = 8
"""Most frames of a sheet: two rows of four, amplitude above phase."""

_IN_A_ROW = 4
_GROUPS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Frame:
    """The object after so many epochs.

    Attributes:
        epochs: that were trained.
        amplitude: (H, W), NaN where no patch reaches.
        phase: (H, W) radians, the mean taken off; likewise.
    """

    epochs: int
    amplitude: np.ndarray
    phase: np.ndarray


def frame_epochs(epochs: int, frames: int = FRAMES) -> tuple[int, ...]:
    """Return after which epochs a frame is taken: the first, the last, and between them in equal factors.

    >>> frame_epochs(100)
    (1, 2, 4, 7, 14, 27, 52, 100)
    """
    return tuple(sorted({round(epochs ** (step / (frames - 1))) for step in range(frames)}))


class ContactSheet(Callback):
    """Draw the object of the first scan after some epochs, each in a frame of ``contact_sheet.png``.

    A frame costs a reconstruction of the scan. Nothing of the training changes by it. A resumed run has the frames
    since it was resumed.

    Args:
        dataset: what is trained on.
        output_dir: folder of the picture.
        epochs: how many will be trained.
    """

    def __init__(self, dataset: PtychoDataset, output_dir: Path, epochs: int) -> None:
        self._dataset, self._path, self._wanted = dataset, output_dir / SHEET, frame_epochs(epochs)
        self.frames: list[Frame] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a frame, if this epoch has one."""
        if trainer.current_epoch + 1 in self._wanted:
            self._add(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the last epoch of a training that ended early."""
        if not self.frames or self.frames[-1].epochs < trainer.current_epoch:
            self._add(trainer, pl_module, trainer.current_epoch)

    def _add(self, trainer: pl.Trainer, module: pl.LightningModule, epochs: int) -> None:
        if trainer.is_global_zero:
            self.frames.append(_frame(_object(module, self._dataset), epochs))  # type: ignore[arg-type]
            plot_frames(self.frames, self._path)


def plot_frames(frames: list[Frame], path: Path) -> None:
    """Draw the frames in order, each with the limits of all; replace the file."""
    rows = -(-len(frames) // _IN_A_ROW)
    height, width = frames[0].amplitude.shape
    figure = new_figure(3.2 * _IN_A_ROW, rows * (2 * 3.2 * min(height / width, 2.0) + 0.4))
    grid = figure.subplots(2 * rows, _IN_A_ROW, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for name, cmap, offset in (("amplitude", "viridis", 0), ("phase", "cividis", 1)):
        values = [getattr(frame, name) for frame in frames]
        low, high = np.nanpercentile(np.stack(values), (1, 99))
        for number, (frame, image) in enumerate(zip(frames, values, strict=True)):
            row, column = divmod(number, _IN_A_ROW)
            axes = grid[2 * row + offset, column]
            axes.imshow(image, cmap=cmap, vmin=low, vmax=high)
            if name == "amplitude":
                axes.set_title(f"{frame.epochs} epoch" + "s" * (frame.epochs != 1))
    figure.suptitle("Amplitude above phase; every frame has the same colours")
    save_figure(figure, path)


@torch.no_grad()
def _object(module: PtychoPINN, dataset: PtychoDataset) -> Stitched:
    """Return the object of the first scan, with the weights as they are."""
    number, N = int(dataset.experiment_ids[0]), module.network.settings.N
    groups = torch.nonzero(dataset.experiment_ids == number).flatten()
    stitcher = Stitcher(dataset.centres_px[groups], N, N // 2, "smooth")
    for some in groups.split(_GROUPS_AT_ONCE):
        predicted = module.predict_step(dataset[some].to(module.device))
        assert predicted.centres_px is not None
        stitcher.add(predicted.objects[:, 0].cpu(), predicted.centres_px.cpu())
    return stitcher.result()


def _frame(stitched: Stitched, epochs: int) -> Frame:
    values, weight = stitched.object.numpy(), stitched.coverage.numpy()
    mean = (values * weight).sum()
    step = -(-max(values.shape) // 512)
    shown = np.where(weight > 0, values, np.nan)[::step, ::step]
    return Frame(epochs, np.abs(shown), np.angle(shown * np.conj(mean)))
