"""``ptycho-torch simulate``: the scan of a known object."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptycho_torch.commands.arguments import positive, seed, whole, zero_or_more
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import refuse_outputs

OBJECTS = ("lines", "grf", "dead_leaves", "siemens_star")
POSITIONS = ("raster", "spiral", "random")
MAX_FRAME_PX = 8192
"""The choices and the bound of ``ptycho_torch.data.specimens`` and ``ptycho_torch.simulate``, which load PyTorch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``simulate``."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SCAN.npz", help="the scan to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a picture of the scan to PNG")
    parser.add_argument("--seed", type=seed, default=0, help="the same seed makes the same file (default 0)")
    specimen = parser.add_argument_group("object")
    specimen.add_argument(
        "--object",
        default="lines",
        help=f"{', '.join(OBJECTS)}, or image:NAME_OR_PATH, a file or an image of scikit-image's such as "
        "image:camera (default lines)",
    )
    specimen.add_argument(
        "--contrast",
        type=zero_or_more,
        default=1.0,
        metavar="C",
        help="multiplies absorption and optical path; weak objects are easier (default 1)",
    )
    specimen.add_argument(
        "--size", type=whole, metavar="PX", help="side of the object (default: the least that holds the positions)"
    )
    positions = parser.add_argument_group("positions", "in object pixels")
    positions.add_argument("--positions", choices=POSITIONS, default="raster", help="how they lie (default raster)")
    positions.add_argument("--patterns", type=whole, default=500, metavar="M", help="how many (default 500)")
    positions.add_argument(
        "--step", type=positive, default=8.0, metavar="PX", help="between neighbours on a raster (default 8)"
    )
    positions.add_argument(
        "--jitter",
        type=zero_or_more,
        default=0.0,
        metavar="PX",
        help="move each by up to PX along x and y (default 0)",
    )
    light = parser.add_argument_group("light")
    light.add_argument("--N", type=_frame, default=64, help="side of the patterns in pixels, even (default 64)")
    light.add_argument(
        "--probe",
        default="default",
        help="default (a flat disk), focused, zone_plate, or an NPZ file with 'probe' or 'probeGuess'",
    )
    light.add_argument("--nphotons", type=positive, default=1e6, help="mean counts of a pattern (default 1e6)")
    light.add_argument(
        "--noise", action=argparse.BooleanOptionalAction, default=True, help="draw photons (default), or leave it out"
    )


def run(options: argparse.Namespace) -> int:
    """Check the paths, and simulate; return 0.

    Raises:
        PtychoError: as ``ptycho_torch.simulate.run``, or the scan is there already.
    """
    target: Path = options.output
    if target.suffix != ".npz":
        raise ConfigError(f"{target}: a scan has the suffix .npz.")
    # A name that is no file is refused later, as no probe and no object.
    inputs = [Path(options.probe), Path(options.object.removeprefix("image:"))]
    outputs = [target] if options.plot is None else [target, options.plot]
    refuse_outputs(outputs, inputs, overwrite=options.overwrite)
    from ptycho_torch.data.specimens import refuse_choice

    refuse_choice(options.object)
    from ptycho_torch import simulate

    return simulate.run(options)


def _frame(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 8 or number % 2 or number > MAX_FRAME_PX:
        raise argparse.ArgumentTypeError(f"{text!r} is no even number from 8 to {MAX_FRAME_PX}")
    return number
