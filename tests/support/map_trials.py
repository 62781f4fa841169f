"""Builds of a memory map that are killed, raced, or run out of disk, in processes that may die of it.

``python -m tests.support.map_trials FOLDER`` tries everything and prints what happened as JSON. Every trial is a fork
of one process that has imported what it needs, so that a trial takes milliseconds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data import memory_map
from ptycho_torch.data.memory_map import Inputs, MemoryMap, open_map
from ptycho_torch.errors import MapError
from ptycho_torch.files.folders import scan_paths
from tests.support.scan_files import Tables, assert_tables_equal, expected_map, tables_of, write_scan

KILLS = 50
STEPS = ("_write_manifest", "_sweep", "build_patterns", "build_groups", "_describe", "_sync", "_write", "_open")
PAUSE_S = 0.0005
PIECES = 4
SETTINGS = DataSettings(N=32, n_subsample=2)
DISK_BYTES = 1536 * 1024


def in_a_fork(work: Callable[[], Any], *, timeout_s: float = 60) -> Any:
    """Run in a child and return what it returns; raises what it raised, and what it died of."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(int(timeout_s))
        try:
            answer = {"value": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.close(receive)
        with os.fdopen(send, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise AssertionError(f"The child ended with signal {os.WTERMSIG(status)}.")
    answer = json.loads(text)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["value"]


class Phase:
    """Which step of a build a child is in, in memory that outlives it, and at which of them it kills itself.

    Args:
        last: number of the step that is the child's last; None goes on to the end.
    """

    def __init__(self, last: int | None = None) -> None:
        self._memory = mmap.mmap(-1, 256)
        self.last, self.steps = last, list[str]()

    def set(self, name: str) -> None:
        self._memory[:] = name.encode().ljust(256)

    def get(self) -> str:
        return self._memory[:].decode().strip()

    def step(self) -> None:
        """Say that a step is under way."""
        time.sleep(PAUSE_S)
        if len(self.steps) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps.append(self.get())


def slow_down(phase: Phase) -> None:
    """Make every step of a build say that it runs, and take a little longer."""

    def watch(step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **keywords: Any) -> Any:
            outer = phase.get()
            phase.set(f"{outer} > {name}" if outer.startswith("build_") else name)
            phase.step()
            result = step(*arguments, **keywords)
            phase.step()
            phase.set(outer if outer.startswith("build_") else "between steps")
            return result

        return watched

    def in_pieces(write: Callable[..., None]) -> Callable[..., None]:
        def pieces(file: Any, array: np.ndarray) -> None:
            for piece in np.array_split(array.reshape(-1), PIECES):
                if len(piece):
                    write(file, piece)
                    phase.step()

        return pieces

    memory_map._write = in_pieces(memory_map._write)
    for name in STEPS:
        setattr(memory_map, name, watch(getattr(memory_map, name), name.removeprefix("_")))
    Path.replace = watch(Path.replace, "rename of the manifest")  # type: ignore[method-assign]


def build(root: Path, scans: Path, settings: DataSettings = SETTINGS) -> MemoryMap:
    return open_map(root, Inputs(scan_paths(scans)), settings)


def leftovers(root: Path) -> list[str]:
    """Names that an intact map does not have."""
    used = json.loads((root / "manifest.json").read_text()) if (root / "manifest.json").exists() else {}
    named = {used[part]["folder"] for part in ("patterns", "groups") if part in used}
    return sorted({path.name for path in root.iterdir()} - named - {"manifest.json", "map.lock"})


def refused(clear: str, work: Callable[[], object]) -> str:
    """Return what the MapError says that must come, and see that it says this."""
    with pytest.raises(MapError, match=clear) as caught:
        work()
    return str(caught.value)


class Trials:
    """The scans that all trials build maps of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one, self.two = folder / "one", folder / "two"
        first = {
            f"{name}.npz": write_scan(self.one / f"{name}.npz", M=40, N=32, seed=seed) for seed, name in enumerate("ab")
        }
        self.expected: Tables = expected_map(first, SETTINGS)
        write_scan(self.two / "a.npz", M=30, N=32, seed=7)

    def right(self, found: MemoryMap) -> None:
        assert_tables_equal(tables_of(found), self.expected)

    def prepare(self, root: Path, scans: Path, settings: DataSettings) -> str:
        return build(root, scans, settings).reason

    def kills(self) -> dict[str, Any]:
        """Kill builds of three kinds at random moments; the next start must always give the right map."""
        # What lies there before: nothing, a map of other groups, a map of another scan.
        before: dict[str, Path | None] = {"nothing": None}
        for name, scans, settings in (
            ("other groups", self.one, DataSettings(N=32, group_seed=5)),
            ("another scan", self.two, SETTINGS),
        ):
            root = before[name] = self.folder / name
            in_a_fork(functools.partial(self.prepare, root, scans, settings))
        steps, duration = dict[str, list[str]](), dict[str, float]()
        for kind, source in before.items():
            start = time.perf_counter()
            steps[kind] = in_a_fork(functools.partial(self.watched_build, self.place(kind, source), Phase()))
            duration[kind] = time.perf_counter() - start
        # Each step of a build of one kind, then each step of another kind, and so on.
        targets = [
            (kind, name) for kind in ("another scan", "nothing", "other groups") for name in sorted(set(steps[kind]))
        ]
        draw, landed, killed = random.Random(0), {"drawn step": Counter[str](), "drawn time": Counter[str]()}, 0
        for attempt in range(4 * KILLS):
            if killed == KILLS:
                break
            # Half of the kills go through the kinds of steps one by one, so that short ones are not spared.
            aimed = killed % 2 == 0
            kind, name = targets[killed // 2 % len(targets)] if aimed else (draw.choice(list(before)), "")
            root, phase = self.place(f"{kind}-{attempt}", before[kind]), Phase()
            if aimed:
                phase.last = draw.choice([number for number, step in enumerate(steps[kind]) if step == name])
            phase.set("before")
            child = os.fork()
            if not child:
                status = 1
                try:
                    self.watched_build(root, phase)
                    status = 0
                finally:
                    os._exit(status)
            if not aimed:
                time.sleep(draw.uniform(0, duration[kind]))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                killed += 1
                landed["drawn step" if aimed else "drawn time"][phase.get()] += 1
            assert os.WIFSIGNALED(status) or (os.WEXITSTATUS(status) == 0 and not aimed)

            def start_again(root: Path = root) -> str:
                self.right(build(root, self.one))
                return build(root, self.one).reason

            assert in_a_fork(start_again) == ""
            assert not leftovers(root), (phase.get(), leftovers(root))
            shutil.rmtree(root)
        return {"killed": killed, "landed": landed, "steps": steps, "build_s": duration}

    def place(self, name: str, source: Path | None) -> Path:
        """Return a folder for a map, with a copy of an earlier map if there is one."""
        root = self.folder / f"trial-{name}"
        if source is not None:
            shutil.copytree(source, root)
        return root

    def watched_build(self, root: Path, phase: Phase) -> list[str]:
        slow_down(phase)
        build(root, self.one)
        phase.set("done")
        return phase.steps

    def race(self) -> dict[str, Any]:
        """Two processes build the same map at once."""
        root, phase = self.folder / "race", Phase()

        def run() -> dict[str, Any]:
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
            memory_map.log.addHandler(handler)
            slow_down(phase)
            found = build(root, self.one)
            self.right(found)
            return {"reason": found.reason, "waited": any("waiting" in each for each in said)}

        def both() -> list[Any]:
            # A fork of a fork: the two run side by side while this process waits for each.
            receive, send = os.pipe()
            if not (other := os.fork()):
                with os.fdopen(send, "w") as pipe:
                    json.dump(run(), pipe)
                os._exit(0)
            os.close(send)
            mine = run()
            with os.fdopen(receive) as pipe:
                theirs = json.loads(pipe.read())
            os.waitpid(other, 0)
            return [mine, theirs]

        answers = in_a_fork(both)
        assert not leftovers(root)
        return {"answers": answers}

    def file_limit(self) -> dict[str, Any]:
        """No file may become larger than a limit below the size of the patterns."""
        root = self.folder / "limited"

        def run() -> str:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            told = refused("MiB are needed", lambda: build(root, self.one))
            assert leftovers(root) == []
            assert not (root / "manifest.json").exists()
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            self.right(build(root, self.one))
            return told

        return {"message": in_a_fork(run)}

    def file_limit_without_promises(self) -> dict[str, Any]:
        """The same on a file system that allocates nothing ahead: the write itself fails."""
        root = self.folder / "unpromised"

        def refuse(*_: int) -> None:
            raise OSError(95, os.strerror(95))

        def run() -> str:
            os.posix_fallocate = refuse
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            told = refused("cannot be written", lambda: build(root, self.one))
            assert leftovers(root) == []
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            self.right(build(root, self.one))
            return told

        return {"message": in_a_fork(run)}

    def small_disk(self) -> dict[str, Any]:
        """A disk of its own that is too small for the patterns, then for the groups, then for a manifest."""
        disk = self.folder / "disk"
        disk.mkdir()
        if shutil.which("mount") is None:
            return {"skip": "there is no mount command"}
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], capture_output=True, text=True
        )
        if mounted.returncode:
            return {"skip": f"no file system can be mounted: {mounted.stderr.strip()}"}
        try:
            told: dict[str, Any] = in_a_fork(lambda: self._on_small_disk(disk))
            return told
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def _on_small_disk(self, disk: Path) -> dict[str, Any]:
        root, told = disk / "map", dict[str, str]()
        others = DataSettings(N=32, group_seed=4)
        large = self.folder / "large"
        write_scan(large / "a.npz", M=500, N=32)
        told["patterns"] = refused("MiB are needed", lambda: build(root, large))
        assert leftovers(root) == []
        # Patterns fit beside this ballast and groups do not.
        patterns = 80 * 32 * 32 * 4
        (disk / "ballast").write_bytes(bytes(DISK_BYTES - patterns - 40_000))
        many = DataSettings(N=32, n_subsample=20)
        told["groups"] = refused("MiB are needed", lambda: build(root, self.one, many))
        assert leftovers(root) == []
        assert not (root / "manifest.json").exists()
        (disk / "ballast").unlink()
        self.right(build(root, self.one))
        # To the last byte: not even a new manifest has room.
        with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        told["manifest"] = refused("cannot be written", lambda: build(root, self.one, others))
        assert leftovers(root) == []
        self.right(build(root, self.one))
        (disk / "ballast").unlink()
        build(root, self.one, others)
        self.right(build(root, self.one))
        gc.collect()  # What caught errors still hold open keeps a disk writable.
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        found = build(root, self.one)
        assert found.reason == ""
        self.right(found)
        told["read only"] = refused("cannot be written to", lambda: build(root, self.one, others))
        self.right(build(root, self.one))
        return told


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("ptycho_torch").setLevel(logging.WARNING)
    logging.getLogger("ptycho_torch").addHandler(logging.NullHandler())
    trials, results = Trials(Path(sys.argv[1])), {}
    for trial in (trials.kills, trials.race, trials.file_limit, trials.file_limit_without_promises, trials.small_disk):
        start = time.perf_counter()
        try:
            results[trial.__name__] = trial()
        except Exception:
            results[trial.__name__] = {"error": traceback.format_exc()}
        results[trial.__name__]["wall_s"] = time.perf_counter() - start
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
