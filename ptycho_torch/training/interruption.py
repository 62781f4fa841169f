"""Signals that end a run, the exit code that tells which, and SLURM's requeueing. Nothing heavy is imported here.

What training does at a signal is in ``ptycho_torch.training.run_callbacks``.
<doc-ref type="guide">docs/workflows/resuming.md</doc-ref>.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ptycho_torch.files.folders import process_number

log = logging.getLogger(__name__)

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1.

_SCONTROL_S = 30


class RunInterrupted(SystemExit):
    """A signal ended the run; a program that does not catch it ends with ``code``, which is 128 + the signal.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class _Interrupter:
    """A handler that interrupts whatever runs."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if process_number() == 0:
            requeue_at(number)
        raise RunInterrupted(number)


@contextlib.contextmanager
def ending_at_signals() -> Iterator[None]:
    """Raise ``RunInterrupted`` where a signal comes outside of training, which has handlers of its own.

    A SLURM job that SIGUSR1 reaches while it builds the memory map, or reconstructs, is queued again as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, _Interrupter())
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def handlers_of_users(handler: Any) -> list[Callable[..., Any]]:
    """Return the handlers that a user's program has set, of a handler or several that Lightning has put together."""
    handlers = getattr(handler, "signal_handlers", [handler])
    return [
        each
        for each in handlers
        if callable(each)
        and each is not signal.default_int_handler
        and not isinstance(each, _Interrupter)
        and not type(getattr(each, "__self__", None)).__module__.startswith(("lightning.", "pytorch_lightning."))
    ]


def is_requeued_at(number: int) -> bool:
    """Return True where a signal asks for this job to be queued again: SIGUSR1 under SLURM."""
    return signal.Signals(number).name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ


def requeue_at(number: int) -> None:
    """Have SLURM queue this job again where the signal asks for it."""
    if not is_requeued_at(number):
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        log.warning("SLURM job %r is not a number and is not requeued; submit it again.", job)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SCONTROL_S)
        trouble = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as err:
        trouble = str(err)
    if trouble:
        log.warning("SLURM job %s could not be requeued (%s); submit it again, with --resume auto.", job, trouble)
    else:
        log.warning("SLURM job %s is requeued.", job)
