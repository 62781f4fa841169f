"""Kill runs at random moments, requeue them, and compare their weights with those of runs that nothing has killed.

    python benchmarks/killed_runs.py --runs 100            # prints a line for each run, and the count

Settings are drawn at random (accumulation, checkpoint interval, schedule, optimiser, validation, early stopping, and
with --ddp two processes), and so are the moments and the ways: SIGKILL, SIGTERM, SIGUSR1, and os._exit, as a power cut.
A killed run is started again with the same command, with ``--resume auto``, and may be killed again. It counts as equal
where weights, optimiser and history are those of the uninterrupted run, bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_torch.commands import cli
from ptycho_torch.training.checkpoint_file import KEY, read_content
from ptycho_torch.training.run_state import own_checkpoint, read_state

WAYS = ("SIGKILL", "SIGTERM", "SIGUSR1", "os._exit")
EXIT_CODES = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGUSR1": (138, -10), "os._exit": (9,)}
"""Negative where the signal comes before training takes signals."""

MOST_KILLS = 3
LONGEST_S = 300.0


def write_scan(path: Path, patterns: int = 10, N: int = 64) -> None:
    """Write a scan of smooth random patterns with a probe."""
    draw = np.random.default_rng(0)
    row, column = np.mgrid[:N, :N] - N / 2
    envelope = np.exp(-(row**2 + column**2) / (2 * (N / 8) ** 2))
    amplitude = envelope * (0.5 + draw.random((patterns, N, N)))
    amplitude *= np.sqrt(1e4 / np.square(amplitude).sum(axis=(1, 2)).mean())
    probe = np.exp(-(row**2 + column**2) / (2 * (N / 6) ** 2)) * np.exp(1j * row / N)
    np.savez(
        path,
        diff3d=amplitude.astype(np.float32),
        xcoords=N / 2 + 20 * draw.random(patterns),
        ycoords=N / 2 + 20 * draw.random(patterns),
        probeGuess=probe.astype(np.complex64),
    )


def draw_settings(draw: random.Random, ddp: float) -> dict[str, Any]:
    """Return settings of a run of seconds."""
    settings: dict[str, Any] = {
        "gridsize": 1,
        "n_filters_scale": 1,
        "device": "cpu",
        "max_epochs": draw.choice((2, 3)),
        "batch_size": draw.choice((1, 2, 3)),
        "accumulate_grad_batches": draw.randint(1, 4),
        "checkpoint_every_n_steps": draw.choice((0, 1, 1, 2, 3)),
        "validation_fraction": draw.choice((0.0, 0.2)),
        "scheduler": draw.choice(("Default", "Exponential", "WarmupCosine", "ReduceLROnPlateau")),
        "optimizer": draw.choice(("keras_adam", "adam", "adamw")),
        "early_stop_patience": draw.choice((None, 1, 5)),
        "num_workers": draw.choice((0, 0, 2)),
        "seed": draw.randint(0, 99),
    }
    if draw.random() < ddp:
        settings |= {"devices": 2, "strategy": "ddp", "batch_size": draw.choice((1, 2))}
    return settings


def command(scan: Path, folder: Path, settings: dict[str, Any]) -> list[str]:
    """Return the arguments of ``ptycho-torch`` for a run that resumes where it was."""
    flags = [f"--{name.replace('_', '-')}={'none' if value is None else value}" for name, value in settings.items()]
    paths = [str(scan), "-o", str(folder), "--data-dir", str(scan.parent / "map")]
    return ["train", *paths, *flags, "--no-tracking", "--no-reconstruct", "--no-progress", "--resume", "auto"]


def _changed_ns(folder: Path) -> int:
    path = folder / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _later(folder: Path, seconds: float, act: Callable[[], object]) -> None:
    """Do something so many seconds after the training in a folder has begun, or as many before, counted from now."""
    before = _changed_ns(folder)

    def wait() -> None:
        last_s = time.monotonic() + LONGEST_S
        while seconds >= 0 and _changed_ns(folder) == before and time.monotonic() < last_s:
            time.sleep(0.002)
        time.sleep(abs(seconds))
        act()

    threading.Thread(target=wait, daemon=True).start()


def run(arguments: list[str], folder: Path, forked: bool, kill: tuple[str, float] | None = None) -> int:
    """Run a command, killed some seconds after its training begins; return its exit code, negative for a signal."""
    way, after_s = kill or ("", LONGEST_S)
    if not forked:
        return _spawned(arguments, folder, way, after_s)
    process = os.fork()
    if process == 0:
        # PyTorch makes its pool of threads anew after a fork, and two loader threads at once would get none.
        torch.set_num_threads(torch.get_num_threads())
        if way == "os._exit":
            _later(folder, after_s, lambda: os._exit(9))
        code = 70
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), contextlib.suppress(BaseException):
            code = cli.main(arguments)
        if code not in (0, 143, 138):
            print(said.getvalue()[-2000:], file=sys.__stderr__, flush=True)
        os._exit(code)
    if way.startswith("SIG"):
        _later(folder, after_s, lambda: _kill(process, way))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _kill(process: int, way: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, getattr(signal, way))


def _kill_all(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _spawned(arguments: list[str], folder: Path, way: str, after_s: float) -> int:
    """Run a command in a group of its own; SIGKILL, as a machine that fails, is for all of its processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ptycho_torch", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if way in ("SIGTERM", "SIGUSR1"):
        _later(folder, after_s, lambda: _kill(process.pid, way))
    elif way:
        _later(folder, after_s, lambda: _kill_all(process.pid))
    _, said = process.communicate()
    _kill_all(process.pid)
    if process.returncode not in (0, 143, 138, -9, -15, -10):
        print(said[-2000:], file=sys.stderr)
    return process.returncode


def difference(whole: Path, killed: Path) -> str:
    """Return what of the last checkpoints differs; empty where nothing does."""
    ours, theirs = (read_content(folder / "checkpoints" / "last.ckpt") for folder in (whole, killed))
    for part in ("state_dict", "optimizer_states"):
        one, two = (torch.utils._pytree.tree_flatten(content[part])[0] for content in (ours, theirs))
        if len(one) != len(two) or not all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, two, strict=True)
        ):
            return part
    return "" if str(ours[KEY]["history"]) == str(theirs[KEY]["history"]) else "history"


def trial(number: int, draw: random.Random, scan: Path, root: Path, ddp: float) -> str:
    """Run once whole and once killed; return how it ended."""
    settings = draw_settings(draw, ddp)
    forked = "devices" not in settings
    whole, killed = root / f"{number}-whole", root / f"{number}-killed"
    begun: list[float] = []
    _later(whole, 0.0, lambda: begun.append(time.monotonic()))
    started_s = time.monotonic()
    if (code := run(command(scan, whole, settings), whole, forked)) != 0:
        return f"lost: exit code {code} without any kill {json.dumps(settings)}"
    seconds, start_s = time.monotonic() - begun[0], begun[0] - started_s
    story = []
    for _ in range(draw.randint(1, MOST_KILLS)):
        way = draw.choice(WAYS)
        # One in ten is killed before its training begins.
        moment_s = draw.uniform(0.0, seconds) if draw.random() < 0.9 else -draw.uniform(0.0, start_s)
        code = run(command(scan, killed, settings), killed, forked, (way, moment_s))
        path = own_checkpoint(killed)
        state = read_state(killed)
        story.append(f"{way}→{code} {'at step ' + str(read_content(path)['global_step']) if path else 'no checkpoint'}")
        if code == 0:
            break
        if forked and code not in EXIT_CODES[way]:
            return f"lost: {', '.join(story)}, state {state and state.state} {json.dumps(settings)}"
    code = run(command(scan, killed, settings), killed, forked)
    if code != 0:
        return f"lost: {', '.join(story)}, then exit code {code} {json.dumps(settings)}"
    differs = difference(whole, killed)
    state = read_state(killed)
    if state is None or state.state != "finished":
        return f"lost: {', '.join(story)}, state {state and state.state} {json.dumps(settings)}"
    shutil.rmtree(whole), shutil.rmtree(killed)
    return f"another {differs}: {', '.join(story)} {json.dumps(settings)}" if differs else f"equal: {', '.join(story)}"


def main() -> int:
    """Kill as many runs as asked for; return 1 where one was lost or has other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ddp", type=float, default=0.05, help="share of the runs with two processes (default 0.05)")
    parser.add_argument("--most-seconds", type=float, default=float("inf"), help="begin no run after so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    draw, begun_s = random.Random(options.seed), time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        scan = Path(name) / "scans" / "a.npz"
        scan.parent.mkdir()
        write_scan(scan)
        for number in range(options.runs):
            if time.monotonic() - begun_s > options.most_seconds:
                break
            ended = trial(number, draw, scan, Path(name), options.ddp)
            counts[ended.partition(":")[0]] += 1
            print(f"{number + 1:4d} {ended}", flush=True)
    total = sum(counts.values())
    print(f"{total} runs killed: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return int(counts["equal"] != total)


if __name__ == "__main__":
    sys.exit(main())
