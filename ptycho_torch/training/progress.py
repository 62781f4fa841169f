"""How commands show their progress: one kind of bar on standard error, where a terminal shows it.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_NUMBERS_S = 0.5
"""Seconds between two looks at the loss: on a GPU each one waits for the device."""


def shows_bars(progress: bool | None) -> bool:
    """Return whether to show bars: as asked for, or, for None, where standard output and error are a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty() if progress is None else progress


def log_above_bars(bars: bool) -> AbstractContextManager[None]:
    """Print what is logged inside above the bars, not into them."""
    return logging_redirect_tqdm() if bars else nullcontext()


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> [duration(seconds) for seconds in (0.4, 59.7, 192, 7500)]
    ['0.4 s', '1 min 0 s', '3 min 12 s', '2 h 5 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def planned_updates(trainer: pl.Trainer) -> int | None:
    """Return how many updates of the weights a training has from its first epoch on; None where nothing limits it."""
    updates = trainer.estimated_stepping_batches
    return int(updates) if math.isfinite(updates) else None


class ProgressBar(TQDMProgressBar):
    """Lightning's progress in bars as all other commands have them: tqdm's own format, on standard error.

    Training has one bar for all of its epochs, which counts updates of the weights, so that its remaining time is that
    of the whole training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, str] = {}
        self._looked_s = -math.inf

    def _bar(self, what: str, unit: str, **names: Any) -> Tqdm:
        return Tqdm(
            desc=what, unit=unit, disable=self.is_disabled, leave=False, dynamic_ncols=True, file=sys.stderr, **names
        )

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of the whole training."""
        done = self.trainer.global_step
        return self._bar("training", " updates", total=planned_updates(self.trainer), initial=done, smoothing=0)

    def init_predict_tqdm(self) -> Tqdm:
        """Return the bar of a prediction."""
        return self._bar("predicting", " batches")

    def init_test_tqdm(self) -> Tqdm:
        """Return the bar of a test."""
        return self._bar("testing", " batches")

    def init_sanity_tqdm(self) -> Tqdm:
        """Return the bar of the first look at the validation data."""
        return self._bar("checking", " batches")

    def init_validation_tqdm(self) -> Tqdm:
        """Return the bar of a validation; within a training it has none."""
        if self.trainer.state.fn == "fit":
            return Tqdm(disable=True)
        return self._bar("validating", " batches")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Show the number of the epoch."""
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self.train_progress_bar.set_description(f"training, epoch {trainer.current_epoch + 1}{of}", refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the updates; now and then show loss and learning rate."""
        bar = self.train_progress_bar
        if bar.disable:
            return
        if time.monotonic() - self._looked_s >= _NUMBERS_S:
            self._looked_s = time.monotonic()
            self._numbers |= {"loss": f"{float(outputs['loss']):.5g}"}
            self._show(trainer)
        bar.update(trainer.global_step - bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the losses of the epoch."""
        if not self.train_progress_bar.disable:
            names = {"train_loss": "loss", "val_loss": "validation loss"}
            metrics = trainer.callback_metrics
            self._numbers |= {short: f"{float(metrics[name]):.5g}" for name, short in names.items() if name in metrics}
            self._show(trainer)
            self.train_progress_bar.refresh()

    def _show(self, trainer: pl.Trainer) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        numbers = self._numbers | {"learning rate": f"{float(rate):.3g}"}
        self.train_progress_bar.set_postfix_str(
            ", ".join(f"{name} {value}" for name, value in numbers.items()), refresh=False
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar of the validation."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Give the bar its length."""
        if self.has_dataloader_changed(dataloader_idx):
            total = self.total_predict_batches_current_dataloader
            self.predict_progress_bar.reset(total if math.isfinite(total) else None)
