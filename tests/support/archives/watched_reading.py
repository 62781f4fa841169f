"""Reads damaged archives under a watch that sees every call of the system, and says what became of each.

    python -m tests.support.archives.watched_reading --part 0 --parts 2

The watch is one of Python's audit hooks, which cannot be taken away again; memory is only known of a process as a
whole. So this is a process of its own. Its last line of output is JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import pickle
import re
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_tf_bridge.archives.archive import Archive, read_archive
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import tensorflow_shapes
from tests.support.archives.archive_damage import (
    CANARY,
    GRAPH,
    H5,
    PARAMETERS,
    SAME,
    SOUND,
    TRACE,
    Damage,
    keras_members,
    packed,
    savedmodel_members,
)
from tests.support.archives.content_damage import draw_damage

_FORBIDDEN = re.compile(
    r"os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|remove|rename|mkdir|rmdir|link|symlink|truncate"
    r"|chmod|chown|putenv|utime|setxattr)|shutil\..*|socket\..*|ctypes\..*|pickle\.find_class|marshal\..*|webbrowser\..*"
    r"|urllib\..*|pty\.spawn|mmap\.__new__|code\.__new__|builtins\.breakpoint|sys\.(addaudithook|setprofile|settrace)"
)
_MEMBERS = (
    H5,
    GRAPH,
    "params.dill",
    "manifest.dill",
    "variables.index",
    "model.h5",
    "data.pkl",
    "model.keras",
    "model.pth",
)
_READER = ["-P", "-m", "ptycho_torch.files.hdf5_child"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes what is done while it is armed and should not be.

    Allowed are reading files, importing modules from files, starting the HDF5 reader, and what that needs: a file
    without a name in the folder for temporary files.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = str(scratch)
        self._armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._armed and self._is_forbidden(event, arguments):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            # A number is a file that is open already: the pipe to the reader.
            path, _, flags = arguments
            return bool(flags & _WRITES) and not isinstance(path, int) and not str(path).startswith(self._scratch)
        if event == "os.kill":
            return not is_child(arguments[0])
        if event == "subprocess.Popen":
            return arguments[0] != sys.executable or list(arguments[1])[1:] != _READER
        if event == "marshal.loads":
            # Compiled modules are read so when they are imported.
            return not sys._getframe(2).f_code.co_filename.startswith("<frozen importlib")
        if event == "exec":
            # Modules are executed when they are imported; what comes from no file comes from an archive.
            return not Path(arguments[0].co_filename).is_file()
        if event == "compile":
            return arguments[0] is not None
        if event in ("os.remove", "os.rmdir"):
            return not str(arguments[0]).startswith(self._scratch)
        return _FORBIDDEN.fullmatch(event) is not None


def is_child(pid: int) -> bool:
    """Whether a process is one that this process has started."""
    status = Path(f"/proc/{pid}/status")
    return not status.is_file() or f"PPid:\t{os.getpid()}\n" in status.read_text()


def is_sound(archive: Archive) -> bool:
    """Whether everything is as the reader promises."""
    shapes = {name: array.shape for name, array in archive.weights.items()}
    if shapes != dict(tensorflow_shapes(archive.network)):
        return False
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in archive.weights.values()):
        return False
    probe, scale, N = archive.probe, archive.intensity_scale, archive.network.N
    probe_fits = probe is None or (probe.shape == (N, N) and probe.dtype == np.complex64 and np.isfinite(probe).all())
    scale_fits = scale is None or (type(scale) is float and 0 < scale < math.inf)
    if not all(text.isprintable() for text in (archive.era, *archive.notes)):
        return False
    missing = {name for name, value in (("probe", probe), ("intensity_scale", scale)) if value is None}
    return bool(probe_fits and scale_fits and missing <= set(archive.missing)) and is_plain(archive.parameters)


def is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and is_plain(part) for key, part in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return type(value) in (int, float, complex, str, bytes, bool, type(None), np.ndarray)


def is_same(archive: Archive, intact: Archive) -> bool:
    """Whether nothing that was read differs, where the notes may."""
    arrays = [(archive.probe, intact.probe), *((archive.weights.get(name), a) for name, a in intact.weights.items())]
    if len(archive.weights) != len(intact.weights) or not all(np.array_equal(*pair) for pair in arrays):  # type: ignore[arg-type]
        return False
    plain = archive.parameters.keys() == intact.parameters.keys() and all(
        np.array_equal(value, intact.parameters[key]) for key, value in archive.parameters.items()
    )
    fields = ("layout", "network", "intensity_scale", "missing")
    return plain and all(getattr(archive, field) == getattr(intact, field) for field in fields)


def verdict(read: Callable[[Path], Archive], damage: Damage, path: Path, intact: list[Archive]) -> tuple[str, str]:
    """Read one archive; return what is wrong with the outcome, empty if nothing is, and the outcome."""
    try:
        archive = read(path)
    except ArchiveError as err:
        message = str(err)
        clear = message.isprintable() and message.startswith(str(path)) and 40 < len(message) < 2500
        return "" if clear else f"unclear: {message!r:.400}", f"refused: {innermost(message)}"
    except BaseException as err:
        # Whatever else an archive brings about is reported as it is.
        return f"{type(err).__name__}: {str(err)[:300]} {''.join(traceback.format_tb(err.__traceback__)[-2:])}", "error"
    if any(is_same(archive, other) for other in intact):
        return "" if damage.otherwise in (SAME, SOUND) else "read as if nothing were wrong", SAME
    if damage.otherwise == SOUND:
        return "" if is_sound(archive) else "read, and it is not sound", SOUND
    return "read, and it is another", "another"


def innermost(message: str) -> str:
    """Return the member that a refusal is about."""
    return next((name for name in _MEMBERS if f"{name}:" in message), "the file")


def unpickle(path: Path) -> Archive:
    """The broken subject: it opens what every careless reader opens."""
    with zipfile.ZipFile(path) as file:
        pickle.loads(file.read(PARAMETERS))
    raise ArchiveError(f"{path}: this reader only shows that the watch sees what it should see")


def peak_bytes() -> int | None:
    """The most memory that this process ever had, or None where that is not known.

    ``ru_maxrss`` will not do: it begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])


def peak_of_children_bytes() -> int:
    """The most memory that any child ever had; at least that of this process when it was started."""
    with contextlib.suppress(ImportError):
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 0


def cpu_s() -> float:
    """CPU time of this process and its children, which says more than the clock of a machine that others use too."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=0, help="which part of the archives to read")
    parser.add_argument("--parts", type=int, default=1, help="into how many parts they are divided")
    parser.add_argument("--careless", action="store_true", help="unpickle a few archives, to test the watch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch, here = Path(folder, "scratch"), Path(folder, "here")
        scratch.mkdir()
        here.mkdir()
        tempfile.tempdir = str(scratch)
        os.chdir(here)
        path = Path(folder, "wts.h5.zip")
        intact = []
        # Whatever is imported late is imported now.
        for members in (keras_members(), savedmodel_members()):
            path.write_bytes(packed(members))
            intact.append(read_archive(path))
        watch = Watch(scratch)
        read = unpickle if options.careless else read_archive
        damages: Iterator[Damage] = draw_damage()
        if options.careless:
            damages = iter([Damage("trace", packed(savedmodel_members() | {PARAMETERS: TRACE}))])
        kinds: collections.Counter[str] = collections.Counter()
        outcomes: collections.Counter[str] = collections.Counter()
        wrong, slowest = [], (0.0, "")
        for number, damage in enumerate(damages):
            if number % options.parts != options.part:
                continue
            path.write_bytes(damage.content)
            before = cpu_s()
            with watch.armed():
                found, outcome = verdict(read, damage, path, intact)
            slowest = max(slowest, (cpu_s() - before, damage.kind))
            left = [name for place in (scratch, here) for name in os.listdir(place)]
            kinds[damage.kind] += 1
            outcomes[outcome] += 1
            if found or watch.seen or left:
                wrong.append(
                    {"number": number, "kind": damage.kind, "found": found, "seen": watch.seen[:], "left": left}
                )
                watch.seen.clear()
        canary = (here / CANARY).exists()
        os.chdir(folder)
    result = {
        "read": kinds.total(),
        "kinds": kinds,
        "outcomes": outcomes,
        "wrong": wrong,
        "canary": canary,
        "slowest": slowest,
        "peak_bytes": peak_bytes(),
        "peak_of_children_bytes": peak_of_children_bytes(),
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
