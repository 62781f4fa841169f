"""The memory map of one or many scans: each pattern once, groups as rows of indices.

Clauses MAP-01 … MAP-03 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>. A map is a folder:

    manifest.json          what is in use, and what it was made from
    patterns-<id>/         TensorDict (M,): amplitude, energy
    groups-<id>/scan/      TensorDict (M,): positions_px, scan_index
    groups-<id>/groups/    TensorDict (L,): nn_indices, coords_relative, coords_center, experiment_id
    groups-<id>/experiments/  TensorDict (E,): file, scan_index, probe, good_pixels, scale, first_row

Renaming ``manifest.json`` is the one moment at which a build comes into use; folders that it does not name are left
over from builds that were killed, and the next build removes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import mmap
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import load_contract, violation
from ptycho_torch.data.grouping import group_file
from ptycho_torch.data.preparation import FramePreparation
from ptycho_torch.data.scan import Scan, chosen_positions, open_scan, probe_modes, read_probe
from ptycho_torch.data.scan_arrays import ScanSource, open_members, path_of
from ptycho_torch.errors import MapError
from ptycho_torch.files.folders import object_names
from ptycho_torch.files.system_errors import explain

if TYPE_CHECKING:
    from tensordict import TensorDict

log = logging.getLogger(__name__)

MAP_FORMAT = 1
GROUPS_FORMAT = 3
"""Rises when the same settings make other groups, so that those of an older map are made anew."""

MANIFEST = "manifest.json"
_LOCK = "map.lock"
_TABLES = {"patterns": {"patterns": ""}, "groups": {name: name for name in ("scan", "groups", "experiments")}}
"""The tables of each part of a map (``map_…`` of the contract), and where they lie in its folder."""

_PARTS = tuple(_TABLES)
_TABLE_FILE = "meta.json"
_FOLDER = re.compile(r"(patterns|groups)-[0-9a-f]{12}")
_PATTERN_MEMBERS = ("diff3d", "diffraction", "bad_pixels", "measurement_domain")
_LARGEST_MANIFEST_BYTES = 64 * 2**20
_LONGEST_REASON = 400

_NO_PROMISE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

# Python names this flag from 3.13 on; without it, Linux refuses a private map that is larger than the memory.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_WAIT_MESSAGE_S = 10.0
_GROUPS_AT_ONCE = 2**18
_FLUSH_BYTES = 128 * 2**20

Fingerprint = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a map is made from.

    Attributes:
        scans: files or arrays, in the order of the map.
        probes: the probe file of each scan, or None where the scans or the caller bring it.
        probe: (N, N) or (modes, N, N) of the caller for every scan, or None.
    """

    scans: tuple[ScanSource, ...]
    probes: tuple[Path, ...] | None = None
    probe: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class MemoryMap:
    """An open map; every tensor is memory-mapped.

    Attributes:
        root: the folder.
        names: name of each scan (``folders.object_names``).
        patterns: (M,) amplitude, energy.
        scan: (M,) positions_px, scan_index.
        groups: (L,) nn_indices, coords_relative, coords_center, experiment_id.
        experiments: (E,) file, scan_index, probe, good_pixels, scale, first_row.
        reason: why the map was built now, or the empty string where it was there.
    """

    root: Path
    names: tuple[str, ...]
    patterns: TensorDict
    scan: TensorDict
    groups: TensorDict
    experiments: TensorDict
    reason: str


def fingerprint(inputs: Inputs, settings: DataSettings) -> dict[str, dict[str, Any]]:
    """Return what the two parts of a map are made from, out of ZIP directories and settings alone [clause MAP-02].

    Raises:
        DataContractError: NPZ-01 or NPZ-03 for a file without a directory.
    """
    detector = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name == "N" or name.startswith("detector_")
    }
    # nphotons is handed on to the network and changes nothing in the map.
    everything = {name: value for name, value in dataclasses.asdict(settings).items() if name != "nphotons"}
    scans = {scan.name: _members(scan) for scan in inputs.scans}
    frames = {
        name: {key: value for key, value in members.items() if key in _PATTERN_MEMBERS}
        for name, members in scans.items()
    }
    probes = None
    if inputs.probes is not None:
        # Each probe file is read once, however many scans share it.
        contents = {path: _members(path) for path in set(inputs.probes)}
        probes = {scan.name: contents[probe] for scan, probe in zip(inputs.scans, inputs.probes, strict=True)}
    probe = None
    if inputs.probe is not None:
        probe = hashlib.sha256(np.ascontiguousarray(inputs.probe, np.complex64).tobytes()).hexdigest()
    return {
        "patterns": {"format": MAP_FORMAT, "settings": detector, "scans": frames},
        "groups": {
            "format": GROUPS_FORMAT,
            "settings": everything,
            "scans": scans,
            "probe files": probes,
            "probe": probe,
        },
    }


def _members(source: ScanSource) -> dict[str, list[int]]:
    digests = open_members(source).digest()
    return {digest.key: [digest.crc32, digest.content_bytes, digest.packed_bytes] for digest in digests}


def open_map(
    root: Path, inputs: Inputs, settings: DataSettings, *, remake: bool = False, progress: bool | None = None
) -> MemoryMap:
    """Open the map of these inputs and settings, and build first what is missing or out of date.

    Args:
        root: folder of the map, made if it is not there.
        inputs: scans and probes.
        settings: how frames are prepared and groups are made.
        remake: build everything anew.
        progress: show a progress bar; None shows it in a terminal.

    Raises:
        DataContractError: an input breaks a clause.
        MapError: no space, no right to write, or a map that cannot be read.
    """
    root, wanted = Path(root), fingerprint(inputs, settings)
    with _locked(root) as writable:
        manifest, trouble = _read_manifest(root)
        stale = {part: _why_stale(root, manifest, part, wanted[part], trouble, remake) for part in _PARTS}
        if stale["patterns"] and not stale["groups"]:
            stale["groups"] = stale["patterns"]
        reason = stale["patterns"] or stale["groups"]
        if reason:
            if not writable:
                raise MapError(f"{root}: {reason}, and this folder cannot be written to. Choose another data_dir.")
            first_build = not (root / MANIFEST).exists()
            what = "patterns and groups" if stale["patterns"] else "groups"
            log.log(logging.INFO if first_build else logging.WARNING, "%s: building %s (%s)", root, what, reason)
            manifest = {part: manifest[part] for part in _PARTS if not stale[part]}
            manifest = _build(root, inputs, settings, manifest, wanted, progress)
        return _open(root, tuple(path_of(scan) for scan in inputs.scans), manifest, reason)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Lock the map; yields whether the folder can be written to. A folder that cannot be is shared."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / _LOCK)
    except OSError as err:
        raise MapError(f"{root}: no folder can be made there ({err}). Choose another data_dir.") from err
    if not os.access(root, os.W_OK):
        yield False
        return
    waiting = False
    while True:
        try:
            lock.acquire(timeout=_WAIT_MESSAGE_S if waiting else 0)
            break
        except Timeout:
            if not waiting:
                log.warning("%s: another process is building this map; waiting for it", root)
            waiting = True
        except OSError as err:
            raise MapError(f"{root}: cannot be locked ({err}). Choose another data_dir.") from err
    try:
        yield True
    finally:
        lock.release()


def _read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest's parts, and why there are none where it cannot be used."""
    path = root / MANIFEST
    if not path.exists():
        return {}, "there is no map yet"
    try:
        if path.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: content[part] for part in _PARTS if part in content}
        for part, entry in parts.items():
            if not (_FOLDER.fullmatch(entry["folder"]) and entry["folder"].startswith(part)):
                raise ValueError(f"folder {entry['folder']!r}")
            if entry["files"].keys() != _file_names(part):
                raise ValueError(f"other {part} files than those of a map")
            entry["fingerprint"]["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        return {}, f"{MANIFEST} cannot be used ({type(err).__name__}: {err})"[:_LONGEST_REASON]
    return parts, ""


def _why_stale(
    root: Path, manifest: Mapping[str, Any], part: str, wanted: Fingerprint, trouble: str, remake: bool
) -> str:
    """Say why a part of the map cannot be used; the empty string where it can."""
    if remake and not trouble:
        return "remake_map = True"
    if part not in manifest:
        return trouble or f"there are no {part} yet"
    entry = manifest[part]
    for name, size in entry["files"].items():
        path = root / entry["folder"] / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path.relative_to(root)} is missing or has another length"
    changes = list(_differences(entry["fingerprint"], json.loads(json.dumps(wanted))))
    if changes:
        more = f"; and {len(changes) - 4} more changes" if len(changes) > 4 else ""
        return "; ".join(change[:_LONGEST_REASON] for change in changes[:4]) + more
    try:
        _open_part(root / entry["folder"], part)
    except _UNREADABLE as err:
        return f"{entry['folder']} is damaged ({type(err).__name__}: {err})"[:_LONGEST_REASON]
    return ""


def _file_names(part: str) -> set[str]:
    """Return the names of all files of a part, relative to its folder."""
    names = set[str]()
    for table, place in _TABLES[part].items():
        fields = load_contract().tensors[f"map_{table}"]["fields"]
        files = (_TABLE_FILE, *(f"{field['name']}.memmap" for field in fields))
        names.update(f"{place}/{file}" if place else file for file in files)
    return names


def _differences(old: Any, new: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Say in words where two fingerprints differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), (*place, name))
    elif old != new:
        area, *rest = place
        what = ": ".join(rest) if rest else area
        if area == "settings":
            yield f"{what} was {old}, is {new}"
        elif old is None or new is None:
            yield f"{what} is {'new' if old is None else 'gone'}"
        else:
            yield f"{what} has changed"


def _build(
    root: Path,
    inputs: Inputs,
    settings: DataSettings,
    kept: dict[str, Any],
    wanted: Mapping[str, Fingerprint],
    progress: bool | None,
) -> dict[str, Any]:
    """Build the parts that are not kept, and put them into use."""
    scans = [open_scan(path) for path in inputs.scans]
    preparations = [FramePreparation(scan.stack.frame_px, settings, scan.path) for scan in scans]
    # All that headers and small arrays can break breaks here, before an old map goes and patterns are written.
    groups = prepare_groups(inputs, settings, scans, preparations)
    manifest, made = dict(kept), list[Path]()
    try:
        if (root / MANIFEST).exists():
            # What is out of date goes first, so that the disk need not hold both.
            _write_manifest(root, kept)
        _sweep(root, kept)
        for part in _PARTS:
            if part in manifest:
                continue
            folder = root / f"{part}-{secrets.token_hex(6)}"
            made.append(folder)
            folder.mkdir()
            if part == "patterns":
                build_patterns(folder, scans, preparations, progress=progress)
            else:
                (patterns,) = _open_part(root / manifest["patterns"]["folder"], "patterns").values()
                build_groups(folder, settings, scans, groups, patterns["energy"].numpy())
            _sync(folder)
            files = {name: (folder / name).stat().st_size for name in sorted(_file_names(part))}
            manifest[part] = {"folder": folder.name, "files": files, "fingerprint": wanted[part]}
        _write_manifest(root, manifest)
    except BaseException as err:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(err, OSError) and not isinstance(err, MapError):
            raise MapError(f"{root}: the map cannot be written. {explain(err)} Another folder: data_dir.") from err
        raise
    return manifest


def build_patterns(
    folder: Path, scans: Sequence[Scan], preparations: Sequence[FramePreparation], *, progress: bool | None = None
) -> None:
    """Write the patterns of all scans, each once [clause MAP-01].

    Nothing is written through a map: on a full disk a write is an error, and a page of a map is a crash.
    """
    count, N = sum(scan.stack.count for scan in scans), preparations[0].settings.N
    energies = np.empty(count)
    row = 0
    unflushed, flushed = 0, Future[None]()
    flushed.set_result(None)
    # None lets tqdm decide, by whether its output is a terminal.
    hidden = None if progress is None else not progress
    with (
        _allocated(folder / "amplitude.memmap", count * N * N * 4) as file,
        ThreadPoolExecutor(1, thread_name_prefix="flush-patterns") as flusher,
        tqdm(total=count, desc="memory map", unit=" patterns", disable=hidden, leave=False) as bar,
    ):
        for scan, preparation in zip(scans, preparations, strict=True):
            for _, amplitude, energy in scan.stack.chunks(scan.stack.audit()):
                if not preparation.is_identity:
                    amplitude = preparation.frames(amplitude)
                    energy = np.square(amplitude, dtype=np.float64).sum(axis=(1, 2))
                _write(file, amplitude)
                unflushed += amplitude.nbytes
                if unflushed >= _FLUSH_BYTES and flushed.done():
                    # The disk writes while the next patterns are read, and not all at the end.
                    flushed.result()
                    unflushed, flushed = 0, flusher.submit(os.fsync, file.fileno())
                energies[row : row + len(energy)] = energy
                row += len(energy)
                bar.update(len(energy))
    _write_array(folder / "energy.memmap", energies)
    _describe(folder, count, {"amplitude": (torch.float32, (count, N, N)), "energy": (torch.float64, (count,))})


@dataclasses.dataclass(frozen=True)
class ScanGroups:
    """What the small arrays of one file say of its groups.

    Attributes:
        positions_px: (M, 2) positions of the prepared frames.
        members: ``scan_index`` → (L, C) patterns of each group, counted in the file.
        probe: (modes, N, N) complex64, prepared.
        good_pixels: (N, N) bool, prepared.
    """

    positions_px: np.ndarray
    members: Mapping[int, np.ndarray]
    probe: np.ndarray
    good_pixels: np.ndarray


def prepare_groups(
    inputs: Inputs, settings: DataSettings, scans: Sequence[Scan], preparations: Sequence[FramePreparation]
) -> list[ScanGroups]:
    """Make the groups of every scan, and read its probe [clauses GROUP-01, GROUP-02, PROBE-01, PROBE-02]."""
    prepared = []
    for number, (scan, preparation) in enumerate(zip(scans, preparations, strict=True)):
        places = preparation.positions(chosen_positions(scan, settings))
        searched = places
        if settings.group_sampler == "reference":
            # The reference searches corrected positions for neighbours, and only then takes the nominal ones.
            corrected = dataclasses.replace(settings, position_source="corrected")
            searched = preparation.positions(chosen_positions(scan, corrected))
        good = scan.stack.good_pixels
        prepared.append(
            ScanGroups(
                positions_px=places,
                members=group_file(scan, searched, settings),
                probe=preparation.probe(_probe(scan, number, inputs)),
                good_pixels=preparation.good_pixels(
                    np.ones((scan.stack.frame_px,) * 2, bool) if good is None else good
                ),
            )
        )
    return prepared


def build_groups(
    folder: Path, settings: DataSettings, scans: Sequence[Scan], prepared: Sequence[ScanGroups], energy: np.ndarray
) -> None:
    """Write positions, groups, and what belongs to each scan [clauses GROUP-03, GROUP-04, MAP-01].

    Args:
        folder: where to write.
        settings: how groups are made.
        scans: the open scans.
        prepared: groups and probe of each.
        energy: (M,) Σ amplitude² of every prepared pattern.
    """
    row_dtype = np.int32 if len(energy) < 2**31 else np.int64
    firsts = np.cumsum([0, *(scan.stack.count for scan in scans)])
    most = max(len(each.probe) for each in prepared)
    experiments = [
        _Experiment(number, index, members, each)
        for number, each in enumerate(prepared)
        for index, members in each.members.items()
    ]
    coordinates = [_coordinates(each.of_file.positions_px, each.members) for each in experiments]
    tables: dict[str, dict[str, np.ndarray]] = {
        "scan": {
            "positions_px": np.concatenate([each.positions_px for each in prepared]),
            "scan_index": np.concatenate([scan.scan_index for scan in scans]),
        },
        "groups": {
            "nn_indices": np.concatenate(
                [(each.members + firsts[each.file]).astype(row_dtype) for each in experiments]
            ),
            "coords_relative": np.concatenate([relative for _, relative in coordinates]),
            "coords_center": np.concatenate([centre for centre, _ in coordinates]),
            "experiment_id": np.concatenate(
                [np.full(len(each.members), number, np.int32) for number, each in enumerate(experiments)]
            ),
        },
        "experiments": {
            "file": np.array([each.file for each in experiments], np.int32),
            "scan_index": np.array([each.scan_index for each in experiments], np.int64),
            "probe": np.stack([_padded(each.of_file.probe, most) for each in experiments]),
            "good_pixels": np.stack([each.of_file.good_pixels for each in experiments]),
            "scale": np.array(
                [_scale(scans[each.file], energy[firsts[each.file] + each.members], settings) for each in experiments],
                np.float32,
            ),
            "first_row": np.array(
                [firsts[each.file] + np.argmax(scans[each.file].scan_index == each.scan_index) for each in experiments],
                np.int64,
            ),
        },
    }
    for name, content in tables.items():
        table = folder / name
        table.mkdir()
        for key, array in content.items():
            _write_array(table / f"{key}.memmap", array)
        fields = {key: (torch.from_numpy(array[:0]).dtype, array.shape) for key, array in content.items()}
        _describe(table, len(next(iter(content.values()))), fields)


@dataclasses.dataclass(frozen=True)
class _Experiment:
    """One scan of a file: all patterns of one ``scan_index``.

    Attributes:
        file: number of the file.
        scan_index: of its patterns.
        members: (L, C) patterns of each group, counted in the file.
        of_file: what all scans of the file share.
    """

    file: int
    scan_index: int
    members: np.ndarray
    of_file: ScanGroups


def _padded(probe: np.ndarray, modes: int) -> np.ndarray:
    """Return (modes, N, N) of a probe with as many modes or fewer; the others are zeros."""
    return np.pad(probe, ((0, modes - len(probe)), (0, 0), (0, 0)))


def _coordinates(positions_px: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return r̄ (L, 1, 1, 2) float64 and o_c = −(r_c − r̄) (L, C, 1, 2) float32 of groups [clause GROUP-03]."""
    L, C = members.shape
    centres, coords = np.empty((L, 1, 1, 2)), np.empty((L, C, 1, 2), np.float32)
    for first in range(0, L, _GROUPS_AT_ONCE):
        part = slice(first, first + _GROUPS_AT_ONCE)
        # NumPy adds the C numbers of a contiguous axis in the reference's order, from 9 patterns on another than here.
        places = np.ascontiguousarray(positions_px[members[part]].swapaxes(1, 2))  # (l, 2, C)
        mean = places.mean(axis=2, keepdims=True)
        centres[part] = mean[:, None, :, :].swapaxes(2, 3)
        coords[part] = (mean - places).swapaxes(1, 2)[:, :, None]
    return centres, coords


def _probe(scan: Scan, number: int, inputs: Inputs) -> np.ndarray:
    """Return the (modes, frame, frame) probe of a scan: from its probe file, the caller, or the scan."""
    frame = scan.stack.frame_px
    if inputs.probes is not None:
        return read_probe(inputs.probes[number], frame)
    if inputs.probe is not None:
        probe = np.asarray(inputs.probe)
        if probe.ndim not in (2, 3) or probe.shape not in (
            (frame, frame),
            (frame, frame, 1),
            (len(probe), frame, frame),
        ):
            raise violation(
                "PROBE-02",
                f"a given probe of shape {probe.shape} for frames of {frame} × {frame}",
                path=scan.path,
                expected="(N, N) or (modes, N, N) of the scan's frames",
            )
        return probe_modes(probe, frame, "PROBE-02", scan.path, "the given probe")
    if scan.probe is None:
        raise violation(
            "PROBE-02",
            "no probe",
            path=scan.path,
            key="probeGuess",
            remedy="Give one with --probe-dir, or store 'probeGuess' in the scan; docs/file_formats.md has an example.",
        )
    return scan.probe


def _scale(scan: Scan, energy: np.ndarray, settings: DataSettings) -> float:
    """Return √((N/2)² / mean Σ_xy amplitude²) over (L, C) energies, or 1 [clause GROUP-04]."""
    mean = float(energy.mean())
    if not mean > 0:
        raise violation("GROUP-04", "groups of only dark patterns", path=scan.path, key=scan.stack.key)
    return settings.N / 2 / math.sqrt(mean) if settings.normalize else 1.0


@contextlib.contextmanager
def _allocated(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a new file whose space on the disk is already there."""
    with path.open("wb", buffering=0) as file:
        allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
        if allocate is not None and size:
            try:
                allocate(file.fileno(), 0, size)
            except OSError as err:
                # Where a file system cannot promise space, a write that finds none is an error as well.
                if err.errno not in _NO_PROMISE:
                    free = shutil.disk_usage(path.parent).free
                    raise MapError(
                        f"{path}: {size / 2**20:.3g} MiB are needed and {free / 2**20:.3g} MiB are free "
                        f"({err.strerror}). Free some space, or choose another data_dir."
                    ) from err
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write(file: BinaryIO, array: np.ndarray) -> None:
    """Write all bytes of an array; one write to a disk may take only a part."""
    left = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    while left:
        left = left[file.write(left) :]


def _write_array(path: Path, array: np.ndarray) -> None:
    with _allocated(path, array.nbytes) as file:
        _write(file, array)


def _describe(folder: Path, count: int, fields: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> None:
    """Make the files of a folder one memory-mapped TensorDict."""
    from tensordict import MemoryMappedTensor, TensorDict

    tensors = {
        name: MemoryMappedTensor.from_filename(folder / f"{name}.memmap", dtype, torch.Size(shape))
        for name, (dtype, shape) in fields.items()
    }
    TensorDict(tensors, batch_size=[count]).memmap_(str(folder))


def _open(root: Path, scans: tuple[Path, ...], manifest: Mapping[str, Any], reason: str) -> MemoryMap:
    try:
        tables = {
            table: content
            for part in _PARTS
            for table, content in _open_part(root / manifest[part]["folder"], part).items()
        }
    except _UNREADABLE as err:
        raise MapError(f"{root}: the map cannot be opened ({err}). Build it again with remake_map=True.") from err
    return MemoryMap(root=root, names=_names(scans, tables["experiments"]), reason=reason, **tables)


def _names(scans: tuple[Path, ...], experiments: TensorDict) -> tuple[str, ...]:
    """Return the name of each scan; no two are the same."""
    files, indices = experiments["file"].numpy(), experiments["scan_index"].numpy()
    names = [name for file, path in enumerate(scans) for name in object_names(path, indices[files == file].tolist())]
    for name in names:
        if names.count(name) > 1:
            raise violation(
                "SCAN-10", f"two scans that would both be called {name}", path=scans[0].parent, remedy="Rename a file."
            )
    return tuple(names)


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What reading the tables of a damaged map may raise."""


def _open_part(folder: Path, part: str) -> dict[str, TensorDict]:
    """Open the tables of one part of a map."""
    return {table: _open_table(folder / place, table) for table, place in _TABLES[part].items()}


def _open_table(folder: Path, table: str) -> TensorDict:
    """Open one table, if it is what the contract says.

    ``TensorDict.load_memmap`` opens it as well, but unpickles and lengthens files where a damaged description asks
    for it, and lets whoever writes to a tensor change the map. Here pages are copied when they are written to, and a
    folder that cannot be written to is opened in the same way.
    """
    from tensordict import TensorDict

    description = json.loads((folder / _TABLE_FILE).read_text(encoding="utf-8"))
    tensors, lengths = {}, dict[str, int]()
    for field in load_contract().tensors[f"map_{table}"]["fields"]:
        name, letters = field["name"], field["shape"].split()
        shape, stored = tuple(map(int, description[name]["shape"])), description[name]["dtype"].removeprefix("torch.")
        expected = [int(letter) if letter.isdigit() else lengths.setdefault(letter, length)
                    for letter, length in zip(letters, shape, strict=True)]  # fmt: skip
        # Rows are counted in 64 bits where 32 do not suffice.
        if list(shape) != expected or stored not in {field["dtype"], *(["int64"] if name == "nn_indices" else [])}:
            raise ValueError(f"{name} is {stored} of shape {shape}")
        dtype = getattr(torch, stored)
        with (folder / f"{name}.memmap").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if min(shape) < 1 or math.prod(shape) * dtype.itemsize != size:
                raise ValueError(f"{name} of shape {shape} has {size} bytes")
            memory = mmap.mmap(
                file.fileno(), size, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        tensors[name] = torch.frombuffer(memory, dtype=dtype).view(shape)
    return TensorDict(tensors, batch_size=[len(next(iter(tensors.values())))])


def _write_manifest(root: Path, parts: Mapping[str, Any]) -> None:
    """Put parts into use, by one rename."""
    new = root / f"{MANIFEST}.new"
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump({"format": MAP_FORMAT, **parts}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(root / MANIFEST)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(root)


def _sweep(root: Path, parts: Mapping[str, Any]) -> None:
    """Remove folders that no manifest names. Whoever still has one open keeps it until the end."""
    used = {entry["folder"] for entry in parts.values()}
    for path in root.iterdir():
        if _FOLDER.fullmatch(path.name) and path.name not in used and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush the directory entries of a folder and its folders to the disk."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
