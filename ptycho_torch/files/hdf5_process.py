"""The one process that reads untrusted HDF5, as its parent sees it: it is asked, and nothing it says is believed.

``started`` runs ``ptycho_torch.files.hdf5_child``, which says how the two speak, and ends it with the block.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ptycho_torch.errors import PtychoError, one_line
from ptycho_torch.files.hdf5_child import MAX_JSON_BYTES, MESSAGE

_MAX_WORDS_BYTES = 2**16
_PART_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ChildLimits:
    """What the process may take.

    Attributes:
        memory_bytes: address space beyond what its imports take.
        cpu_s: CPU time for everything but the content of scans, which gets more.
        silence_s: how long it may keep its parent waiting.
    """

    memory_bytes: int
    cpu_s: int
    silence_s: float


@dataclass(frozen=True)
class Refusal:
    """Why something is not read, in single lines.

    Attributes:
        found: what is there.
        number: of the file.
        clause: CXI-01 or CXI-02.
        key: path in the file, or empty.
        expected: in place of what the clause says, or empty.
        remedy: in place of what the clause says, or empty; FILE stands for the file.
    """

    found: str
    number: int
    clause: str = "CXI-02"
    key: str = ""
    expected: str = ""
    remedy: str = ""


@contextlib.contextmanager
def started(
    source: Sequence[Path] | bytes, limits: ChildLimits, refuse: Callable[[Refusal], PtychoError]
) -> Iterator[Hdf5Process]:
    """Start the process for some files, or for one that lies in memory; it ends with the block.

    Args:
        source: the files, or the content of one.
        limits: what it may take.
        refuse: makes the error of a refusal.
    """
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        # No filter is ever loaded from a library of the file's or the user's choice.
        "HDF5_PLUGIN_PRELOAD": "::",
        # A file on a disk that knows no locks can be read all the same.
        "HDF5_USE_FILE_LOCKING": os.environ.get("HDF5_USE_FILE_LOCKING", "BEST_EFFORT"),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    # -P keeps modules of the current folder out.
    command = [sys.executable, "-P", "-m", "ptycho_torch.files.hdf5_child"]
    with tempfile.TemporaryFile() as words:
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, env=environment)
        try:
            yield Hdf5Process(source, child, words, limits, refuse)
        finally:
            child.kill()
            for end in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    end.close()  # type: ignore[union-attr]
            child.wait()


class Hdf5Process:
    """Asks one child, and believes nothing that it cannot check.

    Attributes:
        paths: the files that the child has; none for one in memory.
        closed: number of a file that it could not open → why.
    """

    def __init__(
        self,
        source: Sequence[Path] | bytes,
        child: subprocess.Popen[bytes],
        words: IO[bytes],
        limits: ChildLimits,
        refuse: Callable[[Refusal], PtychoError],
    ) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        image, self.paths = (source, ()) if isinstance(source, bytes) else (b"", tuple(source))
        self._child, self._words, self._limits, self._refuse = child, words, limits, refuse
        self._commands, self._answers = child.stdin, child.stdout
        self._asked = self._left = self._owed = 0
        self._silent = False
        request = {"memory_bytes": limits.memory_bytes, "cpu_s": limits.cpu_s, "image_bytes": len(image)}
        self._send({"paths": [str(path.resolve()) for path in self.paths], **request}, image)
        with self.understood():
            opened = json.loads(self._message(b"J"))["files"]
            if len(opened) != max(len(self.paths), 1):
                raise ValueError("files")
            self.closed: dict[int, Any] = {
                number: self._refusal(said, number) for number, said in enumerate(opened) if said is not None
            }

    def refuse_closed(self, number: int) -> None:
        """Raise where a file could not be opened."""
        if number in self.closed:
            raise self.closed[number]

    def ask(self, what: str, number: int, path: str) -> list[dict[str, Any]]:
        """Return what the child says of a path: list, check or sources."""
        return self._told({"do": what, "path": path}, number)

    def whole(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return what the child says of all that a file of plain arrays holds; ``content`` gives them in that order."""
        (said,) = self._told({"do": "whole", "limits": limits}, 0)
        return said

    def ask_rows(self, number: int, path: str, first: int, stop: int, content_bytes: int) -> None:
        """Ask for entries of the first axis of a dataset; ``content`` then gives them."""
        self._command({"do": "rows", "path": path, "first": first, "stop": stop}, number)
        self._owed = content_bytes

    def content(self, buffer: memoryview) -> None:
        """Fill a buffer from as many array messages as it takes."""
        filled = 0
        while filled < len(buffer):
            if not self._left:
                self._left = self._begin(b"A")
            part = buffer[filled : filled + self._left]
            self._fill(part)
            filled += len(part)
            self._left -= len(part)
        self._owed = max(self._owed - len(buffer), 0)

    def hostile(self, found: str) -> PtychoError:
        """Return the error for a child that cannot be believed, or that gave up."""
        return self._refuse(Refusal(one_line(found), self._asked))

    def _told(self, command: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        self._command(command, number)
        with self.understood():
            said = json.loads(self._message(b"J"))
            if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
                raise ValueError("list")
            return said

    def _command(self, command: Mapping[str, Any], number: int) -> None:
        # A reader that gave up half way has not taken all of what it asked for.
        rest = np.empty(min(self._owed, _PART_BYTES), np.uint8)
        while self._owed:
            self.content(rest[: self._owed].data)
        self._asked = number
        self._send({**command, "file": number})

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """Turn every way in which an answer can make no sense into the error of a child that cannot be believed."""
        try:
            yield
        except PtychoError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as err:
            raise self.hostile(f"an answer that cannot be understood ({err})") from err

    def _send(self, said: Mapping[str, Any], image: bytes = b"") -> None:
        # What a child said before it ended is still there to be read.
        with contextlib.suppress(OSError), self._watched():
            self._commands.write(json.dumps(said).encode() + b"\n")
            self._commands.write(image)
            self._commands.flush()

    def _message(self, letter: bytes) -> bytes:
        """Return the next message whole."""
        length = self._begin(letter)
        if length > MAX_JSON_BYTES:
            raise self.hostile(f"an answer of {length} bytes")
        content = bytearray(length)
        self._fill(memoryview(content))
        return bytes(content)

    def _begin(self, letter: bytes) -> int:
        head = bytearray(MESSAGE.size)
        self._fill(memoryview(head))
        got, length = MESSAGE.unpack(head)
        if got == b"E" and length <= MAX_JSON_BYTES:
            content = bytearray(length)
            self._fill(memoryview(content))
            with self.understood():
                refusal = self._refusal(json.loads(content), self._asked)
            raise refusal
        if got != letter or not length:
            raise self.hostile("an answer that cannot be understood")
        return int(length)

    def _fill(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            with self._watched():
                got = self._answers.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not got:
                raise self._ended()
            filled += got

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End the child if it keeps its parent waiting."""
        watch = threading.Timer(self._limits.silence_s, self._end_silence)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _end_silence(self) -> None:
        self._silent = True
        self._child.kill()

    def _refusal(self, said: Mapping[str, Any], number: int) -> PtychoError:
        found, key, expected, remedy = (one_line(said[name]) for name in ("found", "key", "expected", "remedy"))
        if said["clause"] is None:
            where = f"{self.paths[number]}: " if self.paths else ""
            return PtychoError(f"{where}HDF5 files need h5py ({found}): pip install h5py")
        clause = "CXI-01" if said["clause"] == "CXI-01" else "CXI-02"
        return self._refuse(Refusal(found, number, clause, key, expected, remedy))

    def _ended(self) -> PtychoError:
        """Say why no more bytes come."""
        # A child may close its pipe and live on.
        with self._watched():
            code = self._child.wait()
        if self._silent:
            return self.hostile(f"content that the HDF5 library did not read in {self._limits.silence_s:.0f} s")
        if code < 0:
            name = signal.Signals(-code).name
            if name == "SIGXCPU":
                return self.hostile("content that the HDF5 library did not read in the CPU time it had")
            return self.hostile(f"content that crashed the HDF5 library ({name})")
        self._words.seek(0)
        lines = self._words.read(_MAX_WORDS_BYTES).decode(errors="replace").strip().splitlines()
        return self.hostile(f"content that ended its reader ({one_line(lines[-1]) if lines else f'exit code {code}'})")
