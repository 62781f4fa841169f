"""Callbacks that keep a run: its checkpoints, ``run.json``, and its end at a signal.

<doc-ref type="guide">docs/workflows/resuming.md</doc-ref>
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ptycho_torch.errors import CheckpointError, PtychoError
from ptycho_torch.files.folders import CHECKPOINTS, process_number
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.training.checkpoint import KEY, read_checkpoint
from ptycho_torch.training.checkpoint_file import run_of
from ptycho_torch.training.interruption import SIGNALS, RunInterrupted, handlers_of_users, requeue_at
from ptycho_torch.training.lightning_module import PtychoPINN, ended_early, of_each_process
from ptycho_torch.training.run_state import RunState, State, read_state, set_aside, settings_digest, write_state

log = logging.getLogger(__name__)


def is_cut_short(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends has batches left: a budget of time or steps is used up."""
    return not trainer.is_last_batch and trainer.fit_loop.batch_idx + 1 < trainer.num_training_batches


class RunRecord(Checkpoint):
    """Keep ``run.json`` current, and what another run left out of the way of a new one.

    Args:
        output_dir: folder of the run.
        free: settings of training that do not decide the weights.

    Attributes:
        tracking: ``uri`` and ``run_id`` of the MLflow run; empty without one.
    """

    def __init__(self, output_dir: Path, free: Sequence[str]) -> None:
        self._folder, self._free = output_dir, free
        self._resumed = False
        self.tracking: Mapping[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the run for a new one, until a checkpoint is loaded."""
        self._resumed = False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note that a run resumes, and make room for it where it comes from another folder."""
        self._resumed = True
        there = read_state(self._folder)
        fits = trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING
        if fits and there is not None and there.run != checkpoint.get(KEY, {}).get("run"):
            self._make_room()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make room for a new run, and say that it runs."""
        if not trainer.is_global_zero:
            return
        for part in (self._folder / CHECKPOINTS).glob(".*.part"):
            part.unlink(missing_ok=True)
        if not self._resumed:
            self._make_room()
        self.write(trainer, "running")

    def _make_room(self) -> None:
        if (place := set_aside(self._folder)) is not None:
            log.warning("%s: held another run, whose files are in %s now.", self._folder, place)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the losses of the epoch."""
        self.write(trainer, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how training ended: by itself, or because a budget was used up."""
        ended = trainer.current_epoch == trainer.max_epochs or (ended_early(trainer) and not is_cut_short(trainer))
        self.write(trainer, "finished" if ended else "stopped by budget")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Note what broke training; the exception counts for more than a record that fails."""
        interrupts = KeyboardInterrupt | RunInterrupted | SIGTERMException
        with contextlib.suppress(PtychoError, OSError):
            self.write(trainer, "interrupted" if isinstance(exception, interrupts) else "failed")

    def write(self, trainer: pl.Trainer, state: State) -> None:
        """Write ``run.json``."""
        module = trainer.lightning_module
        if not trainer.is_global_zero or not isinstance(module, PtychoPINN) or module.run is None:
            return
        run, history = module.run, module.history
        new = RunState(
            run=run,
            settings=settings_digest(module.settings.as_dict(), self._free),
            state=state,
            epochs=len(history.get("train_loss", ())),
            updates=trainer.global_step,
            history={name: list(values) for name, values in history.items()},
            tracking=self.tracking,
        )
        write_state(self._folder, new)


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``; a resumed run takes along the one that lies beside the checkpoint that it resumes.

    Only that of the same run counts, with the loss that the run remembers: an older run, or epochs that are trained
    again, may have left another.
    """

    def __init__(self, folder: Path, monitor: str, resume: Path | None) -> None:
        super().__init__(folder, "best", monitor, enable_version_counter=False, save_on_train_epoch_end=True)
        self._own = folder / "best.ckpt"
        self._beside = self._own if resume is None else resume.with_name("best.ckpt")
        self._run: str | None = None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note which run resumes."""
        self._run = checkpoint.get(KEY, {}).get("run")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the lowest loss so far, where its checkpoint is there."""
        score = state_dict.get("best_model_score")
        if score is None or not self._is_that_of(float(score)):
            return
        if self._beside.resolve() != self._own.resolve() and process_number() == 0:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            with self._beside.open("rb") as theirs, replacing(self._own, overwrite=True) as ours:
                shutil.copyfileobj(theirs, ours)
        # Lightning restores the lowest loss only where the folder is called as it was.
        path = str(Path(self.dirpath or "", "best.ckpt"))
        own = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict | own | {"best_k_models": {path: score}})

    def _is_that_of(self, score: float) -> bool:
        if not self._beside.is_file() or run_of(self._beside) != self._run:
            return False
        try:
            losses = read_checkpoint(self._beside).history.get(str(self.monitor), [])
        except CheckpointError:
            return False
        return bool(losses) and bool(np.float32(losses[-1]) == np.float32(score))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a lower loss; that of an epoch that is cut short is none, for the run continues within it."""
        if not is_cut_short(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` current: at the end of each epoch, and every so many steps within one.

    Where a budget ends training within an epoch, the checkpoint is that of the last batch, so that a resumed run ends
    the epoch as if nothing had happened.
    """

    def __init__(self, path: Path, every_n_steps: int, record: RunRecord) -> None:
        self.path, self.every_n_steps, self._record = path, every_n_steps, record
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which steps were made before."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save within an epoch, where it is time to; validation, and what it decides, belong to the whole epoch."""
        step, before = trainer.global_step, self._seen
        self._seen = step
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        due = self.every_n_steps > 0 and step != before and step % self.every_n_steps == 0
        if due or (isinstance(pl_module, PtychoPINN) and pl_module.stops_within_epoch()):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the whole epoch."""
        if not is_cut_short(trainer):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save what stands."""
        trainer.save_checkpoint(self.path)
        self._record.write(trainer, "running")


class SignalStop(Checkpoint):
    """End training behind the batch in which a signal comes; the epoch's end counts as behind its last batch.

    It is a checkpoint for Lightning, which calls those last: what the batch or the epoch ends with is saved then.

    Args:
        save: saves a checkpoint of what stands, and returns where it is.
    """

    def __init__(self, save: Callable[[pl.Trainer], object]) -> None:
        self._save = save
        self._asked: int | None = None
        self._others: dict[int, list[Callable[..., Any]]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals. Lightning, which has taken them before, restores what was there before both."""
        self._asked = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._others[number] = handlers_of_users(signal.getsignal(number))
            signal.signal(number, lambda number, frame: self._on_signal(trainer, number, frame))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end, unless the epoch ends now, with what it decides."""
        if batch_idx + 1 < trainer.num_training_batches and (number := self._agreed(trainer)) is not None:
            self._save(trainer)
            self._end(trainer, number)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End behind the checkpoint of the epoch."""
        if (number := self._agreed(trainer)) is not None:
            self._end(trainer, number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End where a signal came after the last epoch."""
        self.on_train_epoch_end(trainer, pl_module)

    def _on_signal(self, trainer: pl.Trainer, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            os._exit(128 + number)
        self._asked = number
        for handler in self._others[number]:
            handler(number, frame)

    def _agreed(self, trainer: pl.Trainer) -> int | None:
        """Return the signal that some process has got; all of them have to end behind the same batch."""
        if trainer.world_size == 1:
            return self._asked
        asked = torch.tensor(self._asked or 0, device=trainer.strategy.root_device)
        number = int(of_each_process(trainer, asked).max())
        return number or None

    def _end(self, trainer: pl.Trainer, number: int) -> None:
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            log.warning("%s: training ends after update %d, which is saved.", name, trainer.global_step)
            requeue_at(number)
        raise RunInterrupted(number)
