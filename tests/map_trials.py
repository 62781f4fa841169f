"""Builds of a memory map that are killed, raced, or run out of disk, in processes that may die of it.

``python tests/map_trials.py FOLDER`` tries everything and prints what happened as JSON. Every trial is a fork of one
process that has imported what it needs, so that a trial takes milliseconds.
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
from scan_files import Tables, assert_tables_equal, expected_map, tables_of, write_scan

from ptycho_torch import memory_map
from ptycho_torch.config_params import DataSettings
from ptycho_torch.errors import MapError
from ptycho_torch.memory_map import Inputs, MemoryMap, open_map
from ptycho_torch.scan import scan_paths

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
    """Which step of a build a child is in, in memory that outlives it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 256)

    def set(self, name: str) -> None:
        self._memory[:] = name.encode().ljust(256)

    def get(self) -> str:
        return self._memory[:].decode().strip()


def slow_down(phase: Phase) -> None:
    """Make every step of a build say that it runs, and take a little longer."""

    def watch(step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **keywords: Any) -> Any:
            outer = phase.get()
            phase.set(f"{outer} > {name}" if outer.startswith("build_") else name)
            time.sleep(PAUSE_S)
            result = step(*arguments, **keywords)
            time.sleep(PAUSE_S)
            phase.set(outer if outer.startswith("build_") else "between steps")
            return result

        return watched

    memory_map._write = in_pieces(memory_map._write)
    for name in STEPS:
        setattr(memory_map, name, watch(getattr(memory_map, name), name.removeprefix("_")))
    Path.replace = watch(Path.replace, "rename of the manifest")  # type: ignore[method-assign]


def in_pieces(write: Callable[..., None]) -> Callable[..., None]:
    def pieces(file: Any, array: np.ndarray) -> None:
        for piece in np.array_split(array.reshape(-1), PIECES):
            if len(piece):
                write(file, piece)
                time.sleep(PAUSE_S)

    return pieces


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
        phase, draw = Phase(), random.Random(0)
        phases, kinds, attempts, killed = Counter[str](), Counter[str](), 0, 0
        duration = dict.fromkeys(before, 0.0)
        while killed < KILLS:
            kind = list(before)[attempts % len(before)]
            root = self.folder / f"killed-{attempts}"
            source = before[kind]
            if source is not None:
                shutil.copytree(source, root)
            phase.set("before")
            start = time.perf_counter()
            child = os.fork()
            if not child:
                slow_down(phase)
                build(root, self.one)
                phase.set("done")
                os._exit(0)
            if not duration[kind]:
                os.waitpid(child, 0)  # The first of each kind is left alone, and tells how long a build takes.
                duration[kind] = time.perf_counter() - start
                shutil.rmtree(root)
                attempts += 1
                continue
            time.sleep(draw.uniform(0, duration[kind]))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            attempts += 1
            assert attempts < 4 * KILLS
            if os.WIFSIGNALED(status):
                killed += 1
                phases[phase.get()] += 1
                kinds[kind] += 1

            def start_again(root: Path = root) -> str:
                self.right(build(root, self.one))
                return build(root, self.one).reason

            assert in_a_fork(start_again) == ""
            assert not leftovers(root), (phase.get(), leftovers(root))
            shutil.rmtree(root)
        return {"killed": killed, "phases": dict(phases), "kinds": dict(kinds), "build_s": duration}

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
