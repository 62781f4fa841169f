"""``ptycho-bridge inspect``: what an archive of the reference holds, and what it lacks."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ptycho_torch.errors import one_line

_SHOWN_PARAMETERS = ("nphotons", "nepochs", "batch_size", "probe_scale", "mae_weight", "nll_weight", "timestamp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``inspect``."""
    add_archive(parser)
    parser.add_argument("--weights", action="store_true", help="list every array with its shape, mean and spread")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def add_archive(parser: argparse.ArgumentParser) -> None:
    """Add the archive, and which of its models to take."""
    parser.add_argument(
        "archive",
        type=Path,
        metavar="ARCHIVE",
        help="wts.h5.zip of a training or the folder that holds it, a .keras file, or the folder of a SavedModel; "
        "recognised by its content",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="which stored model to take, where they differ (default diffraction_to_obj)"
    )


def run(options: argparse.Namespace) -> int:
    """Print what the archive holds; return 0.

    Raises:
        ArchiveError: it cannot be read or converted; the message says what it is.
    """
    from ptycho_tf_bridge.archives.archive import read_archive

    archive = read_archive(options.archive, model=options.model)
    network = dataclasses.asdict(archive.network)
    weights = [
        {"name": name, "shape": list(array.shape), "mean": float(array.mean()), "std": float(array.std())}
        for name, array in archive.weights.items()
    ]
    plain = {
        key: value if isinstance(value, bool | int | float | str | None) else type(value).__name__
        for key, value in archive.parameters.items()
    }
    if options.json:
        facts: dict[str, Any] = {
            "archive": str(archive.path),
            "sha256": archive.digest,
            "layout": archive.layout,
            "era": archive.era,
            "network": network,
            "probe": archive.probe_source,
            "intensity_scale": archive.intensity_scale_source,
            "missing": list(archive.missing),
            "notes": list(archive.notes),
            "parameters": plain,
            "weights": weights,
        }
        print(json.dumps(facts, indent=1))  # noqa: T201 - the command's answer
        return 0
    lines = [
        f"{archive.path}",
        f"  era              {archive.era}",
        f"  layout           {archive.layout}",
        f"  SHA-256          {archive.digest}",
        f"  weights          {len(weights)} arrays, {sum(array.size for array in archive.weights.values())} numbers",
        f"  probe            {archive.probe_source or 'missing'}",
        f"  intensity scale  {_scale(archive.intensity_scale, archive.intensity_scale_source)}",
        f"  missing          {', '.join(archive.missing) or 'nothing'}",
        "network",
        *(f"  {name:24} {'?' if name in archive.missing else value}" for name, value in network.items()),
        "saved parameters" + ("" if plain else ": none"),
        # Text of an archive stays one line, whatever it would do to a terminal.
        *(f"  {name:24} {one_line(str(plain[name]))}" for name in _SHOWN_PARAMETERS if name in plain),
    ]
    if plain:
        lines.append(f"  … {len(plain)} in all; --json prints them")
    if options.weights:
        lines.append("weights")
        lines += [
            f"  {each['name']:32} {each['shape']!s:20} {each['mean']:+.3e} ± {each['std']:.3e}" for each in weights
        ]
    lines += [f"note: {note}" for note in archive.notes]
    lines += [f"missing: convert needs --{name.replace('_', '-')}" for name in archive.missing]
    print("\n".join(lines))  # noqa: T201
    return 0


def _scale(value: float | None, source: str) -> str:
    return "missing" if value is None else f"{value!r} ({source})"
