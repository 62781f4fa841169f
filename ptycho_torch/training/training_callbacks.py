"""Callbacks of training: losses on disk and on the way, and whether the object is blank.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint, Timer

from ptycho_torch.errors import PtychoError
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.reconstruction.pictures import plot_history
from ptycho_torch.training.blank import check_objects, checked_groups
from ptycho_torch.training.progress import duration, planned_updates

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

log = logging.getLogger(__name__)

_SHARE = 0.02
"""Part of the time that pictures, and checks of the object, may take each."""

_FIRST_PICTURE_S = 0.5
"""Seconds that the first picture is expected to take, with the import of Matplotlib."""

_PICTURES_APART_S = 5.0

_PLATEAU_UPDATES = 1000
"""Updates within which an object has appeared, where nobody says how many there will be. Strong objects take longest:
lines of full contrast appeared at update 950 of 2,375."""

History = Mapping[str, Sequence[float]]


def write_history(history: History, output_dir: Path) -> None:
    """Write ``history.json`` and ``history.png``, each in one rename."""
    _write_json(history, output_dir)
    plot_history(history, output_dir / "history.png")


def _write_json(history: History, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    with replacing(output_dir / "history.json", overwrite=True) as file:
        file.write(json.dumps(history, indent=1).encode())


class TrainingLog(Checkpoint):
    """Keep ``history.json`` and ``history.png`` current, and print a line an epoch where no bar shows the losses.

    It is a checkpoint for Lightning, which calls those after everything else that an epoch ends with.

    Args:
        output_dir: of the two files.
        lines: print a line to standard error after each epoch.
    """

    def __init__(self, output_dir: Path, *, lines: bool) -> None:
        self.output_dir, self.lines = output_dir, lines
        self._begun_s = self._drawn_s = time.monotonic()
        self._first_update = 0
        self._picture_s = _FIRST_PICTURE_S
        self._drawn_epochs = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begun_s = self._drawn_s = time.monotonic()
        self._first_update = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the losses of the epoch."""
        history = _history(pl_module)
        if not history or not trainer.is_global_zero:
            return
        _write_json(history, self.output_dir)
        if self.lines:
            print(self._line(trainer, history), file=sys.stderr, flush=True)  # noqa: T201 - in place of a bar
        if time.monotonic() - self._drawn_s >= max(_PICTURES_APART_S, self._picture_s / _SHARE):
            self._draw(history)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole history."""
        if trainer.is_global_zero:
            self._draw(_history(pl_module))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw what there is; the exception counts for more than a picture that fails."""
        if trainer.is_global_zero:
            with contextlib.suppress(PtychoError, OSError):
                self._draw(_history(pl_module))

    def _draw(self, history: History) -> None:
        epochs = max(map(len, history.values()), default=0)
        if epochs == self._drawn_epochs:
            return
        begun_s = time.monotonic()
        plot_history(history, self.output_dir / "history.png")
        self._drawn_epochs, self._drawn_s = epochs, time.monotonic()
        self._picture_s = self._drawn_s - begun_s

    def _line(self, trainer: pl.Trainer, history: History) -> str:
        names = {"train_loss": "loss", "val_loss": "validation loss", "learning_rate": "learning rate"}
        values = [f"{text} {history[name][-1]:.6g}" for name, text in names.items() if name in history]
        elapsed_s = time.monotonic() - self._begun_s
        left = self._left_s(trainer, elapsed_s)
        times = duration(elapsed_s) + (f", about {duration(left)} left" if left else "")
        return f"{_epoch(trainer)}: {', '.join(values)}; {times}"

    def _left_s(self, trainer: pl.Trainer, elapsed_s: float) -> float | None:
        """Return the seconds that training will still take at most, at the speed so far; None where nothing ends it."""
        planned, done = planned_updates(trainer), trainer.global_step - self._first_update
        limits = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]  # type: ignore[attr-defined]
        if planned is not None and done:
            limits.append(elapsed_s * max(planned - trainer.global_step, 0) / done)
        return min((limit for limit in limits if limit is not None), default=None)


class BlankWatch(Callback):
    """Say once when the object is still blank after half of the updates, and once when it no longer is.

    The same patterns of each scan are looked at after each epoch, or as often as takes 2 % of the time. Nothing of the
    training changes by it.

    Args:
        dataset: what is trained on.
    """

    def __init__(self, dataset: PtychoDataset) -> None:
        self._dataset, self._groups = dataset, checked_groups(dataset)
        self._checked_s, self._took_s = time.monotonic(), 0.0
        self.warned = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the object and say what changed."""
        planned = planned_updates(trainer)
        enough = _PLATEAU_UPDATES if planned is None else planned // 2
        begun_s = time.monotonic()
        soon = begun_s - self._checked_s < self._took_s / _SHARE
        # The last epoch's object is judged when training has ended.
        if not trainer.is_global_zero or trainer.global_step < enough or trainer.global_step == planned or soon:
            return
        checks = check_objects(pl_module, self._dataset, self._groups)
        self._checked_s = time.monotonic()
        self._took_s = self._checked_s - begun_s
        blank = all(check.is_blank for check in checks.values())
        if blank == self.warned:
            return
        self.warned = blank
        best = max(checks.values(), key=lambda check: check.pattern_correlation)
        if blank:
            log.warning("%s: after %d updates %s", _epoch(trainer), trainer.global_step, best.warning())
        else:
            log.warning("%s: the object is no longer blank (%s).", _epoch(trainer), best.describe())


def _history(module: Any) -> History:
    return getattr(module, "history", {})


def _epoch(trainer: pl.Trainer) -> str:
    """Return which epoch it is, counted from 1, and of how many."""
    of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of}"
