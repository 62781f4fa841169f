"""The folders that commands read and fill: scans, probes, memory maps, runs and reconstructions.

Nothing heavy is imported here, so that a wrong path and a folder that is filled already are told before PyTorch loads.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import CheckpointError, ConfigError, DataContractError
from ptycho_torch.files.remedies import converting
from ptycho_torch.files.zip_reader import ZipReader

HDF5_ENDINGS = frozenset({".h5", ".hdf5", ".cxi", ".nxs", ".hdf", ".nx5", ".ptyd"})
"""Endings of files that ``convert-scan`` imports, in lower case."""

MAPS = Path("data/memmap")
"""Holds the memory maps that no ``data_dir`` was named for, one folder for each set of scans."""

CHECKPOINTS = Path("checkpoints")
"""Where a run has its checkpoints."""

RUN_FILES = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt", "history.json", "history.png", "contact_sheet.png", "run.json")
"""What a run leaves in its folder, beside the objects in ``reconstructions``."""

PICTURE_ENDINGS = (".png", "_amplitude.png", "_phase.png", "_colour.png")
"""Endings of the pictures of one reconstruction; before them comes the stem of its scan."""

# Not .cxi: the scan itself may have been imported from such a file in the same folder.
CXI_ENDING = "_object.cxi"

RESULT_ENDINGS = (".npz", ".h5", CXI_ENDING, ".json", *PICTURE_ENDINGS)
"""Endings of the files of one reconstruction; before them comes the stem of its scan."""

_OF_KERAS = frozenset({"wts.h5.zip", "model.keras", "saved_model.pb", "model.weights.h5"})
"""Names of files that a model of the TensorFlow program is in, or is."""


def process_number() -> int:
    """Return the number of this process among those of a launcher; 0 where there is none."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


# ---------------------------------------------------------------------------------------------------------- input


def scan_paths(folder: Path) -> tuple[Path, ...]:
    """Return the scans of a folder in the order of their names; a single file is its own folder.

    Raises:
        DataContractError: SCAN-14.
    """
    folder = Path(folder)
    if _is_file(folder, "SCAN-14"):
        return (folder,)
    return _npz_files(folder, "SCAN-14")


def refuse_damaged(files: Iterable[Path]) -> None:
    """Raise where a file of a scan or a probe is no NPZ file, or a damaged one; its members are not read.

    Raises:
        DataContractError: NPZ-01 or NPZ-03.
    """
    from ptycho_torch.files.npz import NpzFile

    for path in dict.fromkeys(files):
        NpzFile(path)


def probe_paths(scans: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    """Return the probe file of each scan: the folder's only one, or the one of the scan's stem.

    Raises:
        DataContractError: PROBE-02.
    """
    folder = Path(folder)
    if _is_file(folder, "PROBE-02"):
        return (folder,) * len(scans)
    files = _npz_files(folder, "PROBE-02")
    if len(files) == 1:
        return files * len(scans)
    by_stem = {path.stem: path for path in files}
    for scan in scans:
        if scan.stem not in by_stem:
            names = ", ".join(path.name for path in files[:8])
            raise violation("PROBE-02", f"no probe {scan.stem}.npz; there are {names}", path=folder)
    return tuple(by_stem[scan.stem] for scan in scans)


def _is_file(path: Path, clause: str) -> bool:
    try:
        return path.is_file()
    except OSError as err:
        raise violation(clause, f"a path that cannot be read ({err.strerror})", path=path) from err


def _npz_files(folder: Path, clause: str) -> tuple[Path, ...]:
    if not folder.is_dir():
        near = _nearest_path(folder)
        raise violation(clause, "no such file or folder", path=folder, remedy=f"Check the path{near or '.'}")
    try:
        entries = list(folder.iterdir())
    except OSError as err:
        raise violation(clause, f"a folder that cannot be read ({err.strerror})", path=folder) from err
    seen = sorted(path for path in entries if not path.name.startswith("."))
    files = tuple(path for path in seen if path.suffix.lower() == ".npz")
    if not files:
        hdf5 = [path for path in seen if path.suffix.lower() in HDF5_ENDINGS]
        remedy = f"Import the HDF5 files, for example {converting(hdf5[0])}" if hdf5 else ""
        found = f"no .npz file, but {hdf5[0].name}" if hdf5 else "no .npz file"
        raise violation(clause, found, path=folder, remedy=remedy)
    for path, count in Counter(path.stem for path in files).items():
        if count > 1:
            found = f"{count} files that are both called {path}"
            raise violation(clause, found, path=folder, remedy="Rename one: what is made of each is called like it.")
    return files


def _nearest_path(path: Path) -> str:
    """Return what was probably meant by a path that is not there."""
    with contextlib.suppress(OSError):
        names = [each.name for each in itertools.islice(path.absolute().parent.iterdir(), 1024)]
        if near := difflib.get_close_matches(path.name, names, 1):
            return f"; did you mean {path.with_name(near[0])}?"
    return ""


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint that a path means: the file, or the last one of a run's folder.

    Raises:
        CheckpointError: there is no such file, or it is a scan or a model of the TensorFlow program.
    """
    path = Path(path)
    found = path / CHECKPOINTS / "last.ckpt" if path.is_dir() else path
    if not (path.is_dir() and found.is_file()) and _holds_keras_model(path):
        raise CheckpointError(
            f"{path}: a model of the TensorFlow program; expected a checkpoint of ptycho-torch. Make one with "
            f"`ptycho-bridge convert {path} -o converted` and give 'converted' here, or let `ptycho-bridge migrate` "
            "convert, reconstruct and verify in one."
        )
    if not found.is_file():
        raise CheckpointError(_without_checkpoint(path))
    if found.suffix.lower() == ".npz":
        raise CheckpointError(f"{path}: a scan, where a checkpoint is needed. {_GIVE_RUN}{_runs_near(path)}.")
    return found


_GIVE_RUN = "Give the folder of a run, or a .ckpt file"
_MOST_LISTED = 3


def _without_checkpoint(path: Path) -> str:
    """Return what is where a checkpoint was looked for, and what to do."""
    if not path.exists():
        near = _nearest_path(path) or _runs_near(path)
        end = "" if near.endswith("?") else "."
        return f"{path}: no such checkpoint{near}{end} {_GIVE_RUN}; `ptycho-torch train` makes one."
    if not path.is_dir():
        return f"{path}: neither a file nor a folder. {_GIVE_RUN}."
    levels = ("*.ckpt", "*/*.ckpt", "*/*/*.ckpt", "*/*/*/*.ckpt")
    there = itertools.chain.from_iterable(path.glob(level) for level in levels)
    found = sorted(itertools.islice(there, 1024), key=lambda each: (len(each.parts), each.name != "last.ckpt", each))
    if found:
        names = ", ".join(str(each) for each in found[:_MOST_LISTED]) + (", …" if len(found) > _MOST_LISTED else "")
        return f"{path}: a folder without checkpoints/last.ckpt. Give one of those that it holds: {names}."
    if run_files(path):
        return (
            f"{path}: a run without a checkpoint, which ended within its first epoch. Train again: `ptycho-torch train "
            f"SCANS -o {shlex.quote(str(path))} --resume auto`."
        )
    if any(each.suffix.lower() == ".npz" for each in itertools.islice(path.iterdir(), 1024)):
        return f"{path}: a folder of scans or objects, and no checkpoint in it. {_GIVE_RUN}{_runs_near(path)}."
    return f"{path}: a folder without a checkpoint. {_GIVE_RUN}{_runs_near(path)}; `ptycho-torch train` makes one."


def _runs_near(path: Path) -> str:
    """Return the runs with a checkpoint in the working directory and beside a path; nothing where there are none."""
    runs: dict[Path, None] = {}
    for folder in dict.fromkeys((Path(), path.parent)):
        with contextlib.suppress(OSError):
            runs |= dict.fromkeys(each.parents[1] for each in sorted(folder.glob(f"*/{CHECKPOINTS}/last.ckpt")))
    if not runs:
        return ""
    return "; runs here: " + ", ".join(str(each) for each in itertools.islice(runs, _MOST_LISTED))


def _holds_keras_model(path: Path) -> bool:
    """Return True for an archive of the TensorFlow program, packed or not, and for a folder with one in it."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # whatever is wrong with a ZIP file, it is no model then
        if path.is_dir():
            names = [each.name for each in itertools.islice(itertools.chain(path.iterdir(), path.glob("*/*")), 1024)]
        else:
            reader = ZipReader(lambda: path.open("rb", buffering=0), max_members=1024, max_directory_bytes=2**20)
            names = [member.filename.rpartition("/")[2] for member in reader.members]
    return not _OF_KERAS.isdisjoint(names)


def object_names(scan: Path, indices: Sequence[int]) -> tuple[str, ...]:
    """Name each scan of a file: by the name of the file, where it holds several with their ``scan_index``.

    >>> object_names(Path("scans/star.npz"), [0]), object_names(Path("star.npz"), [0, 7])
    (('star.npz',), ('star_0.npz', 'star_7.npz'))
    """
    if len(indices) < 2:
        return (scan.name,)
    return tuple(f"{scan.stem}_{index}{scan.suffix}" for index in indices)


def names_in(scan: Path) -> tuple[str, ...]:
    """Return ``object_names`` of a file as its ``scan_index`` tells them; only that member is read.

    A file that breaks a clause has the name of the file: it is refused when it is opened.
    """
    from ptycho_torch.files.npz import NpzFile

    key = "scan_index"
    with contextlib.suppress(DataContractError):
        npz = NpzFile(scan)
        if key in npz and npz.header(key).dtype.kind in "iu":
            return object_names(scan, sorted(set(npz.read(key).ravel().tolist())))
    return (scan.name,)


def map_folder(ptycho_dir: str | Path, data_dir: str | Path | None = None) -> Path:
    """Return the folder of the memory map of these scans, the same one for every command.

    Args:
        ptycho_dir: folder of scans, or one scan.
        data_dir: the folder as the caller names it; None is one of ``MAPS``, named after the scans and their path.

    >>> map_folder("/data/star.npz").as_posix()
    'data/memmap/star-6778b2b1'
    """
    if data_dir is not None:
        return Path(data_dir)
    path = Path(ptycho_dir).resolve()
    return MAPS / f"{path.stem or 'scans'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


# --------------------------------------------------------------------------------------------------------- output

_REMEDY = (
    "Resume it with resume = its checkpoints/last.ckpt, replace it with overwrite = True, or choose another output_dir."
)
_ENDINGS = tuple(sorted({Path(f"a{ending}").suffix for ending in RESULT_ENDINGS}))


def refuse_folder(folder: Path) -> None:
    """Raise where a folder is not there and cannot be made, or where nothing can be written in it.

    Raises:
        ConfigError: what stands in the way.
    """
    there = existing_folder(folder)
    if not there.is_dir():
        raise ConfigError(f"{folder}: {there} is a file, so there can be no such folder; choose another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: nothing can be written in {there}; choose a folder of your own.")


def refuse_target(target: Path, *, overwrite: bool) -> None:
    """Raise ``ConfigError`` where a file must not be written.

    Raises:
        ConfigError: its folder is not there and cannot be made, or something is there that may not be overwritten.
    """
    refuse_folder(target.parent)
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise ConfigError(f"{target} is there and is no file; choose another name.")
    if not overwrite:
        raise ConfigError(f"{target} is there already; choose another name, or give --overwrite to replace it.")


def refuse_outputs(outputs: Iterable[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Raise where a command must not write one of its files; before it begins.

    Args:
        outputs: files that it will write.
        inputs: files that it reads. None of them may be replaced, whatever the name or link it goes by.
        overwrite: whether other files may be.

    Raises:
        ConfigError: as ``refuse_target``; or an output is an input; or two outputs have one name.
    """
    refuse_inputs(outputs := tuple(outputs), inputs)
    for path in outputs:
        refuse_target(path, overwrite=overwrite)
    places = Counter(path.resolve() for path in outputs)
    for path in outputs:
        if places[path.resolve()] > 1:
            raise ConfigError(f"{path}: two outputs of this command would have this name; give each its own.")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise where a file that a command writes or removes is one that it reads, whatever the name or link it goes by.

    Raises:
        ConfigError: which one.
    """
    read = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    for path in outputs:
        identity = _identity(path)
        if identity is not None and (source := read.get(identity)) is not None:
            same = "" if path == source else f" ({source})"
            raise ConfigError(f"{path} is an input of this command{same} and stays as it is; choose another output.")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what a file is on its disk, whatever the name or link it goes by; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def distinct_stems(paths: Iterable[Path]) -> dict[Path, str]:
    """Name what is made of each file: its stem, where others have that too with the folders before it.

    >>> list(distinct_stems([Path("run1/history.json"), Path("run2/history.json"), Path("a.npz")]).values())
    ['run1_history', 'run2_history', 'a']
    """
    places = {path: path.absolute().with_suffix("").parts[1:] for path in dict.fromkeys(paths)}
    names = dict.fromkeys(places, "")
    for depth in range(1, 1 + max(map(len, places.values()), default=0)):
        counts = Counter(names.values())
        names = {
            path: name if name and counts[name] == 1 else "_".join(places[path][-depth:])
            for path, name in names.items()
        }
    return names


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there; it is on the same disk.

    >>> existing_folder(Path("/no/such/folder")).as_posix()
    '/'
    """
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


def run_files(output_dir: Path) -> tuple[Path, ...]:
    """Return what a run has left in a folder: checkpoints, history, and the objects in ``reconstructions``."""
    found = [path for pattern in RUN_FILES for path in output_dir.glob(pattern)]
    found += [
        path for path in (output_dir / "reconstructions").glob("*") if path.is_file() and path.name.endswith(_ENDINGS)
    ]
    return tuple(sorted(found))


def refuse_run(
    output_dir: Path, *, resume: Path | None, overwrite: bool, inputs: Iterable[Path] = (), remedy: str = _REMEDY
) -> None:
    """Raise where a new run would mix with what another run has left in its folder.

    Args:
        output_dir: folder of the new run.
        resume: checkpoint that it resumes, or None.
        overwrite: whether the files of the other run are to be removed.
        inputs: other files that the run reads, which are not to be removed.
        remedy: what to do where another run is there.

    Raises:
        ConfigError: another run is there; overwrite would remove the checkpoint to resume or another input; or the
            folder cannot be made.
    """
    refuse_folder(output_dir)
    own = resume is not None and output_dir.resolve() in resume.resolve().parents
    if own and overwrite:
        raise ConfigError(
            f"{resume}: overwrite removes the run in {output_dir}, which is the one to resume; leave one of them out."
        )
    found = run_files(output_dir)
    refuse_inputs(found, inputs)
    if own or overwrite or not found:
        return
    names = ", ".join(str(path.relative_to(output_dir)) for path in found[:3]) + (", …" if len(found) > 3 else "")
    raise ConfigError(f"{output_dir} holds a run already ({names}). {remedy}")


def clear_run(output_dir: Path) -> None:
    """Remove what a run has left in a folder, and nothing else.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in (*run_files(output_dir), *(output_dir / CHECKPOINTS).glob(".*.part")):
        path.unlink(missing_ok=True)


def result_files(output_dir: Path, scans: Iterable[Path]) -> tuple[Path, ...]:
    """Return all files that the reconstructions of these scan files may have."""
    stems = [Path(name).stem for scan in scans for name in names_in(scan)]
    return tuple(output_dir / f"{stem}{ending}" for stem in stems for ending in RESULT_ENDINGS)


def refuse_results(output_dir: Path, scans: Iterable[Path], *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise where files of the reconstructions of these scans are there already, or cannot be written.

    Args:
        output_dir: folder of the files.
        scans: to be reconstructed.
        overwrite: whether files of other reconstructions may be replaced.
        inputs: what is read beside the scans: probes and the checkpoint.

    Raises:
        ConfigError: as ``refuse_outputs``.
    """
    scans = tuple(scans)
    refuse_outputs(result_files(output_dir, scans), (*scans, *inputs), overwrite=overwrite)
