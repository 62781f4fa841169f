"""What to do about a scan that breaks a clause: the command that mends what was found, as one types it.

Commands stand in backquotes, and so do options that are to be added to the command that failed.
``tests/importer/test_remedies.py`` takes them out of the messages and runs them.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import difflib
import itertools
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_torch.errors import one_line

if TYPE_CHECKING:
    import numpy as np

Mending = Callable[..., str]
"""Returns options of ``convert-scan`` as the whole command (``converting``), or as what is to be added to it."""

REPAIRED = Path("repaired")
"""Folder that repaired scans go to, so that they do not lie among the ones that they replace."""

MOST_PIXELS = 64
"""Pixels that a command names."""

_FEW_SURPLUS, _FEW_SHARE = 3, 0.05
"""Patterns or positions that may be surplus at the end of a scan; more of them have another cause."""

MOST_WRONG = 0.5
"""Share of values from which on a stack is no stack of amplitudes."""

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PRODUCT_MARK = b"ptychodus.product"
_LOOKED_AT_BYTES = 2**20
_USER_BLOCKS = (0, 512, 1024, 2048, 4096)


def converting(path: Path | None, *options: str) -> str:
    """Return the command that writes a repaired copy of a scan under a name that is free.

    Args:
        path: the scan; None for one that came from memory, and has no name.
        options: of ``convert-scan``.

    >>> converting(Path("scans/a b.h5"), "--from-intensity")
    "`ptycho-torch convert-scan 'scans/a b.h5' -o 'repaired/a b.npz' --from-intensity`"
    """
    source = Path("FILE.npz") if path is None else path
    words = ["ptycho-torch", "convert-scan", str(source), "-o", str(_free(REPAIRED / f"{source.stem}.npz")), *options]
    return f"`{shlex.join(words)}`"


def adding(*options: str) -> str:
    """Return options that are to be added to the command that failed.

    >>> adding("--bad-pixels", "3,5;7,:")
    "`--bad-pixels '3,5;7,:'`"
    """
    return f"`{shlex.join(options)}`"


def rewriting(path: Path, change: str) -> str:
    r"""Return the command that writes a copy of an NPZ file in which a line of Python has changed the members ``a``.

    >>> print(rewriting(Path("x.npz"), "del a['Y']"))
    `python -c "import numpy as np; a = dict(np.load('x.npz')); del a['Y']; np.savez('x_repaired.npz', **a)"`
    """
    target = str(_free(Path(f"{path.stem}_repaired.npz")))
    change = f"{change}; " if change else ""
    code = f"import numpy as np; a = dict(np.load({str(path)!r})); {change}np.savez({target!r}, **a)"
    return f'`python -c "{code}"`' if not set('"`$\\!') & set(code) else f"`{shlex.join(['python', '-c', code])}`"


def _free(path: Path) -> Path:
    """Return the path, or the first with a number behind it that is not there."""
    names = itertools.chain([path], (path.with_name(f"{path.stem}_{number}.npz") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def kept(left_out: Sequence[int], count: int) -> str:
    """Return 0 … count − 1 without some numbers, as ``convert-scan --select`` takes it.

    >>> kept([3, 4, 9], 10), kept([0], 5)
    ('0:3,5:9', '1:5')
    """
    first, parts = 0, []
    for number in [*sorted(left_out), count]:
        if number > first:
            parts.append(f"{first}:{number}")
        first = number + 1
    return ",".join(parts)


def pixels(places: Sequence[Sequence[int]], side: int) -> str:
    """Return pixels as ``convert-scan --bad-pixels`` takes them; whole rows and columns in one piece.

    >>> pixels([(0, 3), (1, 0), (1, 1), (1, 2), (1, 3)], 4)
    '1,:;0,3'
    """
    found = {(int(row), int(column)) for row, column in places}
    rows = [row for row in range(side) if all((row, column) in found for column in range(side))]
    columns = [column for column in range(side) if all((row, column) in found for row in range(side))]
    single = sorted((row, column) for row, column in found if row not in rows and column not in columns)
    parts = [*(f"{row},:" for row in rows), *(f":,{column}" for column in columns)]
    return ";".join(parts + [f"{row},{column}" for row, column in single[:MOST_PIXELS]])


def copying(path: Path) -> str:
    """Return what to do about a damaged archive."""
    return (
        f"Copy or write the file again; `python -m zipfile -t {shlex.quote(str(path))}` tells whether a copy is whole."
    )


def unpacking(path: Path) -> str:
    """Return what to do about an archive that is packed too well to be trusted."""
    return f"If the file is what it should be, store it without compression: {rewriting(path, '')}"


def no_archive(path: Path) -> tuple[str, str]:
    """Return what a file is that is no NPZ file, and what to do; empty strings where its first bytes do not tell."""
    try:
        with path.open("rb") as file:
            head = file.read(_USER_BLOCKS[-1] + len(_HDF5_SIGNATURE))
            is_hdf5 = any(head.startswith(_HDF5_SIGNATURE, start) for start in _USER_BLOCKS)
            more = file.read(_LOOKED_AT_BYTES) if is_hdf5 else b""
        is_zip = zipfile.is_zipfile(path)
    except OSError:
        return "", ""
    if is_hdf5:
        if _PRODUCT_MARK in head + more:
            return (
                "an HDF5 product, which holds a reconstruction and no patterns",
                _of_reconstruction(path.with_suffix(".npz")),
            )
        return "an HDF5 file, where an NPZ file is needed", f"Import it: {converting(path)}"
    quoted = shlex.quote(str(path))
    images = "Store the frames and their positions as one NPZ file, or import the HDF5 file of the detector."
    kinds: Mapping[bytes, tuple[str, str]] = {
        b"\x93NUMPY": (
            "a single array (.npy), where a scan has several members",
            'Store it with the positions: `python -c "import numpy as np; help(np.savez)"` tells how.',
        ),
        b"MATLAB 5.0": ("a MATLAB file of the older kind", "Save it again with -v7.3, which is HDF5, and import that."),
        b"\x1f\x8b": ("a gzip file", f"Unpack it: `gunzip -k {quoted}`"),
        b"BZh": ("a bzip2 file", f"Unpack it: `bunzip2 -k {quoted}`"),
        b"\xfd7zXZ": ("an xz file", f"Unpack it: `unxz -k {quoted}`"),
        b"7z\xbc\xaf": ("a 7z archive", "Unpack it, and give the scan that is in it."),
        b"II*\0": ("a TIFF file", images),
        b"MM\0*": ("a TIFF file", images),
        b"\x89PNG": ("a PNG picture", images),
        b"\xff\xd8\xff": ("a JPEG picture", images),
        b"%PDF": ("a PDF document", "Give the scan itself."),
        b"###CBF": ("a CBF frame", images),
        **{
            bytes((0x80, protocol)): ("a pickle, which is not read", "Store its arrays with numpy.savez.")
            for protocol in (2, 3, 4, 5)
        },
    }
    told = next((told for magic, told in kinds.items() if head.startswith(magic)), None)
    if told is not None or is_zip:
        return told or ("", "")
    if not head.strip(b"\0"):
        found = "an empty file" if not head else "a file that begins with zeros only, as after a copy that failed"
        return found, "Copy or write it again."
    if (text := _as_text(head)) is not None:
        kind = "a JSON file" if text.startswith(("{", "[")) else "a web page" if text.startswith("<") else "a text file"
        return f"{kind}, no scan", f"Give the scan itself, one NPZ file with patterns and positions{_beside(path)}."
    return "", ""


def _as_text(head: bytes) -> str | None:
    """Return the first characters of a text, or None where bytes are none."""
    try:
        # The last character may be cut.
        text = head.decode("utf-8-sig", "ignore" if len(head) > _USER_BLOCKS[-1] else "strict")
    except UnicodeDecodeError:
        return None
    return text.lstrip() if all(letter.isprintable() or letter.isspace() for letter in text) else None


def _beside(path: Path) -> str:
    """Return which scan lies in the folder of a file; nothing where none does."""
    scan = next((each for each in sorted(path.parent.glob("*.npz")) if zipfile.is_zipfile(each)), None)
    return "; docs/file_formats.md has an example" if scan is None else f", for example {scan}"


def _of_reconstruction(npz: Path) -> str:
    """Return what to do with a reconstruction that was given for a scan."""
    draw = f" `ptycho-torch plot {shlex.quote(str(npz))}` draws it." if npz.is_file() else ""
    return f"Give the scan that it was made from.{draw}"


Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Name of a member → shape and kind of its numbers."""


def without_patterns(path: Path, members: Shapes, mending: Mending) -> str:
    """Return what to do about an NPZ file with neither ``diff3d`` nor ``diffraction``.

    Args:
        path: the file.
        members: of the file.
        mending: see ``Mending``.
    """
    if "patterns" in members and "xcoords" not in members:
        return _of_ptychodus(path, mending)
    if {"object", "coverage"} <= members.keys() or {"object", "probe_position_x_m"} <= members.keys():
        ours = "coverage" in members
        return "It is a reconstruction. " + (
            _of_reconstruction(path) if ours else "Give the scan that it was made from."
        )
    if members.keys() <= {"probe", "probeGuess"}:
        return f"It is a probe; give it beside a scan: `--probe-dir {shlex.quote(str(path))}`"
    stacks = [name for name, (shape, kind) in members.items() if len(shape) in (3, 4) and kind in "fiu"]
    if not stacks:
        listing = f"`python -m zipfile -l {shlex.quote(str(path))}`"
        return f"No member has the shape of patterns; {listing} shows what is there."
    largest = max(stacks, key=lambda name: _size(members[name][0]))
    renamed = {largest: "diff3d"}
    if not {"xcoords", "ycoords"} <= members.keys():
        renamed |= positions_by_name(members, members[largest][0][0])
    return f"If {largest!r} holds the patterns, say so: {_renaming(mending, renamed)}"


def _of_ptychodus(path: Path, mending: Mending) -> str:
    """Return what to do about diffraction data of ptychodus, which keeps positions in a product file."""
    products = (other for other in sorted(path.parent.glob("*.npz")) if other != path and _is_product(other))
    if (product := next(products, None)) is not None:
        option = mending("--positions-file", str(product))
        return f"It is diffraction data of ptychodus. Take the positions of its product: {option}"
    return (
        "It is diffraction data of ptychodus, whose product file has the positions: ptycho-torch convert-scan FILE -o "
        "NEW.npz --positions-file PRODUCT.npz"
    )


def _is_product(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "probe_position_x_m.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def without_positions(path: Path, members: Shapes, count: int, mending: Mending) -> str:
    """Return what to do about a scan without positions.

    Args:
        path: the file.
        members: of the file.
        count: M.
        mending: see ``Mending``.
    """
    if "patterns" in members and "xcoords" not in members:
        return _of_ptychodus(path, mending)
    if renamed := positions_by_name(members, count):
        what = "are the positions" if len(renamed) > 1 else f"is {next(iter(renamed.values()))!r}"
        return f"If {' and '.join(map(repr, renamed))} {what}, say so: {_renaming(mending, renamed)}"
    for name, (shape, kind) in members.items():
        if kind in "fiu" and shape in ((count, 2), (2, count)) and name.isidentifier():
            columns = f"a[{name!r}].T" if shape == (count, 2) else f"a[{name!r}]"
            change = f"a['xcoords'], a['ycoords'] = {columns}"
            return f"If {name!r} holds (x, y) in object pixels: {rewriting(path, change)}"
    return (
        f"No member holds {count} positions: store x and y of each pattern, in object pixels, as 'xcoords' and "
        "'ycoords'; docs/file_formats.md has an example."
    )


def positions_by_name(members: Shapes, count: int) -> dict[str, str]:
    """Return members that look like x and y of the patterns, and the names that they need; empty where none do.

    >>> positions_by_name({"pos_x": ((5,), "f"), "pos_y": ((5,), "f")}, 5)
    {'pos_x': 'xcoords', 'pos_y': 'ycoords'}
    >>> positions_by_name({"xcoords": ((5,), "f"), "y_coords": ((5,), "f")}, 5)
    {'y_coords': 'ycoords'}
    """
    for name, (shape, kind) in members.items():
        other = name.replace("x", "y").replace("X", "Y")
        if (
            other != name
            and {name, other} != {"xcoords", "ycoords"}
            and shape == (count,) == members.get(other, ((), ""))[0]
            and kind in "fiu"
        ):
            return {name: "xcoords", other: "ycoords"}
    rows = [name for name, (shape, kind) in members.items() if shape == (count,) and kind in "fiu"]
    near = {
        name: difflib.get_close_matches(name, [row for row in rows if row not in ("xcoords", "ycoords")], 1)
        for name in ("xcoords", "ycoords")
        if name not in members
    }
    return {found[0]: name for name, found in near.items() if found}


def _renaming(mending: Mending, names: Mapping[str, str]) -> str:
    return mending("--rename", ",".join(f"{one_line(old)}={new}" for old, new in names.items() if old != new))


def of_counts(mending: Mending) -> str:
    """Return what to do about patterns that are counts, or look like them."""
    return f"Take the root: {mending('--from-intensity')}; if it is amplitude, say so: {mending('--declare-amplitude')}"


def of_type(path: Path, key: str, kind: str) -> str:
    """Return what to do about patterns that are no real numbers; empty where the clause says it best."""
    if kind == "c":
        return f"If their modulus is the amplitude, store that: {rewriting(path, f'a[{key!r}] = np.abs(a[{key!r}])')}"
    if kind == "b":
        change = f"a[{key!r}] = a[{key!r}].astype(np.float32)"
        return f"If they are amplitudes of 0 and 1, store them as numbers: {rewriting(path, change)}"
    return ""


def of_frames(path: Path, key: str, shape: tuple[int, ...], mending: Mending) -> str:
    """Return what to do about a stack of patterns of another shape; empty where the clause says it best."""
    if len(shape) == 3 and min(shape) >= 2 and shape[1] != shape[2]:
        return f"Keep a square around the middle: {mending('--crop', str(min(shape[1:]) // 2 * 2))}"
    if len(shape) == 2 and shape[0] == shape[1]:
        change = f"a[{key!r}] = a[{key!r}][None]"
        return f"If it is a single pattern, make it a stack of one: {rewriting(path, change)}"
    if len(shape) > 3:
        change = f"a[{key!r}] = a[{key!r}].reshape(-1, {shape[-2]}, {shape[-1]})"
        return f"If the last two axes are those of a frame, join the others: {rewriting(path, change)}"
    return ""


def of_faint(path: Path, key: str, largest: float) -> str:
    """Return what to do about patterns without light, or almost none."""
    if largest == 0:
        return "No pattern holds a count: read them again."
    if not zipfile.is_zipfile(path):  # The counts of an HDF5 file, whose root the largest is.
        return f"Any scale will do: store them divided by {largest**2:.3g}, for example."
    change = f"a[{key!r}] = a[{key!r}].astype(np.float64) / {largest!r}"
    return f"Any scale will do, a larger one for example: {rewriting(path, change)}"


def of_values(first: int, wrong: np.ndarray, mending: Mending) -> str:
    """Return what to do about values that are no amplitudes; empty where the clause says it best.

    Args:
        first: number of the first pattern.
        wrong: (n, N, N) bool of some patterns, at least one of them True.
        mending: see ``Mending``.
    """
    if wrong.mean() > MOST_WRONG:
        return "Most values are no amplitudes: read the patterns again."
    if len(places := _places(wrong)) <= MOST_PIXELS:
        return f"If these pixels measure nothing, say so: {mending('--bad-pixels', pixels(places, wrong.shape[1]))}"
    number = first + int(wrong.any(axis=(1, 2)).argmax())
    before = f"0:{number}," if number else ""
    return f"Leave the pattern out: {mending('--select', f'{before}{number + 1}:')}"


def _places(wrong: np.ndarray) -> list[tuple[int, int]]:
    """Return (row, column) of all pixels that are True in some pattern."""
    import numpy as np

    rows, columns = np.nonzero(wrong.any(axis=0))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def is_few(found: int, count: int) -> bool:
    """Return whether numbers of positions and patterns differ so little that the last ones may be surplus.

    >>> is_few(22, 25), is_few(7, 49)
    (True, False)
    """
    return abs(found - count) <= max(_FEW_SURPLUS, _FEW_SHARE * max(found, count))


def of_raster(columns: int, rows: int, npz: Path | None) -> str:
    """Return what to do about x and y that are the axes of a raster; an HDF5 scan has its positions in any file."""
    what = f"If x and y are those of the {columns} columns and {rows} rows of a raster"
    if npz is None:
        return (
            f"{what}, write x, y and z of each of the {columns * rows} patterns, with their unit, as "
            f"sample/translation ({columns * rows}, 3) of another HDF5 file, and name it: --positions-file FILE"
        )
    change = "x, y = np.meshgrid(a['xcoords'], a['ycoords']); a['xcoords'], a['ycoords'] = x.ravel(), y.ravel()"
    return f"{what}, patterns row by row, give each pattern its place: {rewriting(npz, change)}"


def of_positions(
    found: int,
    count: int,
    mending: Mending,
    *,
    npz: Path | None,
    raster: tuple[int, int] | None = None,
    last_axis: int | None = None,
) -> str:
    """Return what to do about another number of positions than of patterns.

    Args:
        found: positions.
        count: M.
        mending: see ``Mending``.
        npz: the file, or None for an HDF5 file.
        raster: (rows, columns) of a stack of four axes.
        last_axis: length of the last axis of square frames' stack, where that may be M.
    """
    each, rest = divmod(count, found) if found else (0, 1)
    if last_axis is not None and is_few(found, last_axis) and abs(found - last_axis) < abs(found - count):
        return f"If patterns lie along the last axis, turn it: {mending('--axes', 'hwm')}"
    if is_few(found, count):
        few, many = sorted((found, count))
        what = "patterns" if count == many else "positions"
        return f"If the last {many - few} {what} are surplus, leave them out: {mending('--select', f'0:{few}')}"
    if found > 1 and found**2 == count:
        return of_raster(found, found, npz)
    if found > 1 and not rest and raster == (each, found):
        what = f"If {each} stacks of the same {found} positions follow one another"
        return f"{what}, take the first: {mending('--select', f'0:{found}')}"
    if found > 1 and not rest:
        what = f"If {each} patterns of each position follow one another, as of several thresholds"
        return f"{what}, take the first of each: {mending('--select', f'0::{each}')}"
    readings = f", such as the mean of {found // count} readings of an encoder" if found and not found % count else ""
    where = "as 'xcoords' and 'ycoords'" if npz is not None else "with --positions-path PATH or --positions-file FILE"
    return f"Give one position for each of the {count} patterns{readings}, {where}."


def of_member(path: Path, name: str, shape: tuple[int, ...], kind: str, count: int, mending: Mending) -> str:
    """Return what to do about a small member whose shape or type is wrong; empty where the clause says it best.

    Args:
        path: the file.
        name: of the member.
        shape: of the member.
        kind: of its numbers.
        count: M.
        mending: see ``Mending``.
    """
    if name in ("xcoords", "ycoords"):
        if kind in "fiu" and len(shape) == 1:
            return of_positions(shape[0], count, mending, npz=path)
        if kind in "fiu" and _size(shape) == count:
            return f"Make it one row: {rewriting(path, f'a[{name!r}] = a[{name!r}].ravel()')}"
        if kind == "c":
            return f"Take the real part: {rewriting(path, f'a[{name!r}] = a[{name!r}].real')}"
        return ""
    names = f"{name.removesuffix('_start')}_start"
    dropped = "xcoords_start,ycoords_start" if names in ("xcoords_start", "ycoords_start") else name
    told = {
        "probeGuess": "Leave it out, and give a probe of these frames with --probe-dir",
        "scan_index": "Leave it out where all patterns belong to one scan",
        "bad_pixels": "Leave it out where all pixels are good",
    }
    return f"{told.get(name, 'Leave it out')}: {mending('--drop', dropped)}"
