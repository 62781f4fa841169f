"""Gives readers one damaged file after another, and notes what is no refusal.

``atheris`` guides the damage by the lines that it reaches, where it is installed (pip install atheris: Linux, CPython
3.11 to 3.13); elsewhere, and in the short run of the tests, files are damaged at random. A reader may return, or raise
an error of ours with a clause; any other error is a crash, and more than ``HANG_S`` of CPU time a hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import re
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ptycho_torch.errors import PtychoError
from ptycho_torch.files import hdf5_child, hdf5_process
from tests.fuzz.corpus import ROWS, safetensors
from tests.fuzz.readers import LENGTH_BYTES, READERS
from tests.support.archives.zip_files import archive, deflated, npy_bytes, stored
from tests.support.checkpoint_files import checkpoint, tensor

HANG_S = 2.0
LARGEST_SEED_BYTES = 2**16
STATUS = Path("/proc/self/status")

Harness = tuple[str, tuple[str, ...]]
HARNESSES: Mapping[str, Harness] = MappingProxyType(
    {
        "zip": ("zip", ("zip", "npz", "archive")),
        "npy": ("npy", ("npy",)),
        "npz": ("npz", ("npz", "zip")),
        "pickle": ("pickle", ("pickle",)),
        "graph": ("graph", ("graph",)),
        "keras_hdf5": ("keras_hdf5", ("keras_hdf5", "scan_hdf5")),
        "scan_hdf5": ("scan_hdf5", ("scan_hdf5", "keras_hdf5")),
        "tf_checkpoint": ("tf_checkpoint", ("tf_checkpoint",)),
        "checkpoint": ("checkpoint", ("checkpoint",)),
        "report": ("report", ("report",)),
        "settings": ("settings", ("settings",)),
    }
)
"""Harness → the reader it calls, and the readers whose rows of the corpus it begins with."""


@dataclasses.dataclass
class Tally:
    """What one harness has seen.

    Attributes:
        executions: files that were read.
        refused: of these.
        crashes: place and words of an error that is no refusal → a file that shows it.
        hangs: CPU time in seconds → a file that took it.
        slowest_s: CPU time of the slowest file.
        peak_bytes: most memory of the process; 0 where that is not known.
        cpu_s: CPU time in all.
    """

    executions: int = 0
    refused: int = 0
    crashes: dict[str, bytes] = dataclasses.field(default_factory=dict)
    hangs: dict[str, bytes] = dataclasses.field(default_factory=dict)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    cpu_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values; files are written in hexadecimal."""
        files = {
            name: {key: content.hex() for key, content in getattr(self, name).items()} for name in ("crashes", "hangs")
        }
        return dataclasses.asdict(self) | files


def seeds(name: str) -> list[bytes]:
    """Return the files that a harness begins with: those of the corpus, and some that are as they should be."""
    readers = HARNESSES[name][1]
    made = [row.build() for row in ROWS if row.reader in readers]
    return [content for content in [*honest(name), *made] if len(content) <= LARGEST_SEED_BYTES]


def honest(name: str) -> list[bytes]:
    """Return small files that a harness's reader takes."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    entry, packed = stored("array", npy_bytes(array)), deflated("packed", npy_bytes(array))
    if name in ("zip", "npz"):
        return [archive([entry, packed])]
    if name == "npy":
        return [npy_bytes(array), npy_bytes(np.array(["a", "bc"])), npy_bytes(np.asfortranarray(array), (2, 0))]
    if name == "tf_checkpoint":
        index, data = checkpoint({"a": tensor(array), "b/c": tensor(array[0])})
        return [len(index).to_bytes(LENGTH_BYTES, "little") + index + data]
    if name == "checkpoint":
        tree = json.dumps({"a": {"$tensor": "a"}, "b": [1, {"$tuple": [2.5, None]}], "c": {"$items": [[1, "x"]]}})
        place = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
        return [safetensors({"__metadata__": {"ptycho_torch": tree}, "a": place}, array.tobytes())]
    if name == "settings":
        return [b"model:\n  N: 64\n  object_big: true\ntraining:\n  max_epochs: 3\n  lr: 1e-3\ndata:\n  C: 4\n"]
    return []


@contextlib.contextmanager
def forked_hdf5() -> Iterator[None]:
    """Fork the process that reads HDF5 in place of starting it, which costs milliseconds: its imports are there."""
    for name in ("h5py", "hdf5plugin", "ptycho_torch.files.hdf5_whole"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What is there is not looked at again, and so not copied into each child.
    gc.freeze()
    popen = hdf5_process.subprocess.Popen

    class Forked:
        """What the parent uses of a ``Popen``."""

        def __init__(self, command: Sequence[str], *, stderr: Any, **options: Any) -> None:
            (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
            self.returncode: int | None = None
            with warnings.catch_warnings(action="ignore"):
                # Python warns where other threads run, those of BLAS among them; the child uses none of their locks.
                self.pid = os.fork()
            if not self.pid:
                code = 70
                try:
                    for end, number in ((read_in, 0), (write_out, 1), (stderr.fileno(), 2)):
                        os.dup2(end, number)
                    os.closerange(3, 4096)
                    sys.stdin = os.fdopen(0)
                    code = hdf5_child.main()
                finally:
                    os._exit(code)
            os.close(read_in)
            os.close(write_out)
            self.stdin, self.stdout = os.fdopen(write_in, "wb"), os.fdopen(read_out, "rb")

        def kill(self) -> None:
            if self.returncode is None:
                os.kill(self.pid, 9)

        def wait(self) -> int:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode

    hdf5_process.subprocess.Popen = Forked  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        hdf5_process.subprocess.Popen = popen  # type: ignore[misc]
        gc.unfreeze()


class Fuzzing:
    """One harness.

    Args:
        name: key of ``HARNESSES``.
        folder: for files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.tally = Tally()
        self._read, self._folder = READERS[HARNESSES[name][0]], folder
        self._start_s = cpu_s()

    def read(self, content: bytes) -> None:
        """Read one file, and note what becomes of it."""
        used_s = self._timed(content)
        if used_s > HANG_S:
            # The first file that is refused pays for what is loaded once.
            used_s = min(used_s, self._timed(content))
        if used_s > HANG_S:
            self.tally.hangs.setdefault(f"{used_s:.1f}", content)
        self.tally.slowest_s = max(self.tally.slowest_s, used_s)
        self.tally.cpu_s = cpu_s() - self._start_s

    def _timed(self, content: bytes) -> float:
        before_s = cpu_s()
        self.tally.executions += 1
        try:
            self._read(content, self._folder)
        except PtychoError as err:
            self.tally.refused += 1
            if err.clause is None or not str(err).isprintable():
                self.tally.crashes.setdefault(f"unclear: {str(err)[:200]!r}", content)
        except (Exception, SystemExit) as err:
            place = traceback.extract_tb(err.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.tally.crashes.setdefault(f"{type(err).__name__} at {where}: {str(err)[:100]}", content)
        return cpu_s() - before_s

    def at_random(
        self,
        begin: Sequence[bytes],
        seconds: float,
        *,
        executions: int | None = None,
        seed: int = 0,
        result: Path | None = None,
    ) -> None:
        """Read the first files, then damaged ones, for so long or so many."""
        rng = np.random.default_rng(seed)
        for content in begin:
            self.read(content)
        end = time.monotonic() + seconds
        while time.monotonic() < end and (executions is None or self.tally.executions < executions):
            self.read(damaged(rng, begin))
        self.tally.peak_bytes = peak_bytes()
        if result is not None:
            result.write_text(json.dumps(self.tally.as_json()))

    def guided(self, begin: Sequence[bytes], seconds: float, *, result: Path) -> None:
        """Let atheris choose; it ends the process, so the tally is written again and again."""
        import atheris

        files = self._folder / "seeds"
        files.mkdir()
        for number, content in enumerate(begin):
            (files / str(number)).write_bytes(content)
        written = 0.0

        def one(content: bytes) -> None:
            nonlocal written
            self.read(content)
            if time.monotonic() > written + 0.5:
                written = time.monotonic()
                self.tally.peak_bytes = peak_bytes()
                result.write_text(json.dumps(self.tally.as_json()))

        options = [f"-max_total_time={max(int(seconds), 1)}", f"-max_len={LARGEST_SEED_BYTES}", "-rss_limit_mb=4096"]
        options += ["-verbosity=0", "-timeout=60", f"-artifact_prefix={self._folder}/"]
        atheris.Setup(["fuzz", *options, str(files)], one)
        atheris.Fuzz()


def damaged(rng: np.random.Generator, begin: Sequence[bytes]) -> bytes:
    """Return one of some files with a few changes: bits, bytes, numbers at their limits, parts of it or of another."""
    content = bytearray(begin[int(rng.integers(len(begin)))])
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(content) + 1))
        length = int(rng.integers(1, 33))
        match int(rng.integers(7)):
            case 0 if at < len(content):
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at : at + length] = rng.bytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * int(rng.integers(1, 40))
            case 4:
                value = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1], 1)[0])
                content[at : at + 8] = struct.pack("<Q", value)[: int(rng.choice([1, 2, 4, 8]))]
            case 5:
                other = begin[int(rng.integers(len(begin)))]
                start = int(rng.integers(len(other) + 1))
                content[at : at + length] = other[start : start + 4 * length]
            case _:
                del content[at:]
    return bytes(content)


def cpu_s() -> float:
    """CPU time of this process and its children."""
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """The most memory that this process ever had, or 0 where that is not known."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return 1024 * int(found[1]) if found else 0


def fuzz(name: str, seconds: float, executions: int | None = None, *, seed: int = 0) -> Tally:
    """Give one reader files that are damaged at random, for so long or so many."""
    forked = forked_hdf5() if "hdf5" in name else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, forked:
        fuzzing = Fuzzing(name, Path(folder))
        fuzzing.at_random(seeds(name), seconds, executions=executions, seed=seed)
        return fuzzing.tally
