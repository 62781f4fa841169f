"""``ptycho-torch convert-scan``: a scan repaired, or imported from a CXI or other HDF5 file.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Literal

from ptycho_torch.commands.arguments import positive, whole, zero_or_more
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import refuse_damaged, refuse_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert-scan``."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a scan (.npz), or a CXI or other HDF5 file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NEW.npz", help="the scan to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--compress", action="store_true", help="deflate the members; smaller and slower")
    parser.add_argument(
        "--rename",
        type=_names,
        action="extend",
        default=[],
        metavar="OLD=NEW[,…]",
        help="names of members (.npz): frames=diff3d",
    )
    parser.add_argument(
        "--drop",
        type=_listed,
        action="extend",
        default=[],
        metavar="NAME[,…]",
        help="leave out members (.npz), for example scan_index",
    )
    parser.add_argument("--patterns", choices=("diff3d", "diffraction"), help="which to keep where both are there")
    parser.add_argument(
        "--axes",
        choices=("mhw", "mwh", "hwm", "whm", "mhw1"),
        help="how the axes of the patterns lie: M patterns, H rows, W columns (default mhw, in MATLAB files mwh; a "
        "raster of four axes is taken row by row)",
    )
    parser.add_argument("--drop-pickles", action="store_true", help="leave out members that only unpickling could read")
    domain = parser.add_mutually_exclusive_group()
    domain.add_argument("--from-intensity", action="store_true", help="patterns are counts: take the root")
    domain.add_argument(
        "--declare-amplitude", action="store_true", help="patterns are amplitude, though they look like counts"
    )
    _add_choice(parser)
    _add_frames(parser)
    _add_positions(parser)
    _add_geometry(parser)
    _add_hdf5(parser)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about which patterns are taken, and which pixels count."""
    chosen = parser.add_argument_group("patterns", "in this order: mark bad pixels, select, drop, merge")
    chosen.add_argument(
        "--bad-pixels",
        type=_pixels,
        action="extend",
        default=[],
        metavar="ROW,COLUMN[;…]",
        help="pixels of the file's frames without measurement, beside those that the file marks; 20,: is a row",
    )
    chosen.add_argument(
        "--select",
        type=_ranges,
        action="append",
        default=[],
        metavar="FROM:TO[:STEP][,…]",
        help="keep these patterns, counted from 0, for example 0:60,61:121; a second one counts what is left",
    )
    chosen.add_argument(
        "--drop-nan-positions", action="store_true", help="leave out patterns without a finite position"
    )
    chosen.add_argument("--drop-dark", action="store_true", help="leave out patterns of less than 1 %% of the counts")
    chosen.add_argument(
        "--merge-repeats",
        type=zero_or_more,
        nargs="?",
        const=0.5,
        metavar="PX",
        help="add the counts of all exposures of one place, to PX object pixels (default 0.5)",
    )
    chosen.add_argument("--clip-negative", action="store_true", help="set negative values to 0")
    chosen.add_argument(
        "--saturated",
        type=_saturated,
        metavar="VALUE|auto|keep",
        help="pixels that reach VALUE in any pattern are bad; auto: 2^b − 1 of unsigned whole numbers; keep: take such "
        "values as they are",
    )
    chosen.add_argument(
        "--accept-mask", action="store_true", help="accept bad pixels that hide more than 10 %% of the counts"
    )


def _add_frames(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about what is made of each frame."""
    frames = parser.add_argument_group("frames", "in this order: crop, bin, transpose, flip (clause PREP-01)")
    frames.add_argument(
        "--crop", type=_even, metavar="N", help="keep what becomes N × N pixels, N·B × N·B with --bin B"
    )
    frames.add_argument("--bin", type=whole, default=1, metavar="B", help="add the counts of B × B pixels")
    frames.add_argument(
        "--centre",
        type=_centre,
        metavar="ROW,COLUMN",
        help="pixel of the zero frequency, or auto: centre of mass of the mean counts (default the middle)",
    )
    frames.add_argument(
        "--fftshift", action="store_true", help="shift patterns and probe that are centred on the corner to the middle"
    )
    frames.add_argument("--transpose", action="store_true", help="swap rows and columns of the frames")
    frames.add_argument(
        "--flip", choices=("vertical", "horizontal", "both"), help="turn frames upside down, left to right, or both"
    )


def _add_positions(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about positions."""
    positions = parser.add_argument_group("positions", "in this order: swap, flip, scale")
    positions.add_argument("--positions-swap-xy", action="store_true", help="swap x and y")
    positions.add_argument("--positions-flip-x", action="store_true", help="count x the other way")
    positions.add_argument("--positions-flip-y", action="store_true", help="count y the other way")
    positions.add_argument(
        "--positions-scale", type=positive, default=1.0, metavar="FACTOR", help="multiply x and y by FACTOR"
    )
    positions.add_argument(
        "--positions-file",
        type=Path,
        metavar="FILE",
        help="where the positions are: for an HDF5 scan another HDF5 file, for NPZ of ptychodus its product (.npz)",
    )


def _add_geometry(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about geometry."""
    geometry = parser.add_argument_group("geometry", "in place of what the file says, or where it says nothing")
    geometry.add_argument("--wavelength-m", type=positive, metavar="METRES", help="wavelength")
    geometry.add_argument("--distance-m", type=positive, metavar="METRES", help="from object to detector")
    geometry.add_argument("--pixel-m", type=positive, metavar="METRES", help="side of a detector pixel, before binning")


def _add_hdf5(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about where things are in an HDF5 file."""
    hdf5 = parser.add_argument_group("HDF5", "patterns are taken for counts and their root is taken")
    hdf5.add_argument(
        "--data-path",
        nargs="+",
        metavar="PATH",
        help="patterns in the file, one dataset behind the other (default: where CXI, NeXus and Eiger have them)",
    )
    hdf5.add_argument(
        "--positions-path",
        nargs="+",
        metavar="PATH",
        help="translations of the sample: one dataset (M, 2), (M, 3), (2, M) or (3, M), or two, of x and of y; PATH:K "
        "is column K of a table",
    )
    hdf5.add_argument(
        "--positions-units", metavar="UNIT", help="unit of the positions: m, mm, um, nm, … (default: as stated, or m)"
    )
    hdf5.add_argument("--mask-path", metavar="PATH", help="mask in the file, or none to leave masks out")
    hdf5.add_argument(
        "--mask-bits",
        type=_mask_bits,
        metavar="BITS|zero",
        help="bits that make a pixel bad, as a number (0x5), in place of those of CXI or NeXus; zero: 0 is bad",
    )
    hdf5.add_argument("--dark-path", metavar="PATH", help="dark frames to take off, or none (default: those of CXI)")
    hdf5.add_argument("--white-path", metavar="PATH", help="flat field to divide by")
    hdf5.add_argument("--probe-path", metavar="PATH", help="probe in the file, or none")


def run(options: argparse.Namespace) -> int:
    """Check paths and options, and convert; return 0.

    Raises:
        PtychoError: as ``ptycho_torch.convert.run``, or the new file is there already.
    """
    target: Path = options.output
    if target.suffix.lower() != ".npz":
        raise ConfigError(f"{target}: a scan has the suffix .npz; write to `-o {shlex.quote(str(target))}.npz`")
    if not options.source.exists():
        raise ConfigError(f"{options.source}: there is no such file.")
    if options.centre is not None and options.crop is None:
        raise ConfigError("--centre says around which pixel frames are cut; say to what side: --crop N.")
    refuse_outputs([target], [options.source, *filter(None, [options.positions_file])], overwrite=options.overwrite)
    from ptycho_torch.files.hdf5_files import is_hdf5

    if not is_hdf5(options.source):
        refuse_damaged((options.source,))
    from ptycho_torch import convert

    code = convert.run(options)
    from ptycho_torch import check

    for hint in check.hints_of(target):
        print(f"{target}: {hint}", file=sys.stderr)  # noqa: T201
    return code


def _even(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no even number of pixels above 0")
    return number


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _names(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.rpartition("=") for part in _listed(text)]
    if not all(old and new for old, _, new in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names, OLD=NEW with commas between")
    return tuple((old, new) for old, _, new in pairs)


def _pixels(text: str) -> tuple[tuple[int | None, int | None], ...]:
    pairs = [part.split(",") for part in text.split(";")]
    if not all(len(pair) == 2 and all(number == ":" or number.isdecimal() for number in pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of pixels, ROW,COLUMN with semicolons between")
    return tuple((None if row == ":" else int(row), None if column == ":" else int(column)) for row, column in pairs)


def _ranges(text: str) -> tuple[slice, ...]:
    parts = [part.split(":") for part in text.split(",")]
    fits = all(len(part) in (2, 3) and all(not end or end.isdecimal() for end in part) for part in parts)
    if not fits or any(part[2:] and int(part[2] or 1) == 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ranges, FROM:TO with commas between")
    return tuple(slice(*(int(end) if end else None for end in part)) for part in parts)


def _centre(text: str) -> tuple[int, int] | Literal["auto"]:
    if text == "auto":
        return "auto"
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither ROW,COLUMN nor auto")
    return int(parts[0]), int(parts[1])


def _saturated(text: str) -> float | str:
    return text if text in ("auto", "keep") else positive(text)


def _mask_bits(text: str) -> int | str:
    if text == "zero":
        return text
    try:
        bits = int(text, 0)
    except ValueError:
        bits = 0
    if not 0 < bits < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of 32 bits, such as 0x5, nor zero")
    return bits
