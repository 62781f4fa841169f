"""``ptycho-bridge convert``: an archive becomes a checkpoint, settings and a migration report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tf_bridge.commands.inspect import add_archive
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.commands.settings_options import add_setting_flags, given_flags

if TYPE_CHECKING:
    import numpy as np

    from ptycho_tf_bridge.archives.archive import Archive
    from ptycho_tf_bridge.migrate import Migration

_DEFAULT = "default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert``."""
    parser.usage = "%(prog)s [options] [missing settings] ARCHIVE"
    add_archive(parser)
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path("converted"),
        metavar="DIR",
        help="checkpoint, settings.yaml, migration.md and .json, probe.png (default converted)",
    )
    parser.add_argument(
        "--probe",
        metavar="FILE",
        help="where the archive has none: a scan or probe file (.npz), normalised with probe_scale as the reference "
        f"does, or {_DEFAULT!r} for the reference's default disk. Objects do not depend on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_setting_flags(parser, ("model",))


def run(options: argparse.Namespace) -> int:
    """Convert; return 0.

    Raises:
        PtychoError: an archive that cannot be converted, something that it lacks, or files that are there.
    """
    from ptycho_tf_bridge.archives.archive import read_archive
    from ptycho_torch.files.folders import refuse_folder

    refuse_folder(options.output_dir)
    archive = read_archive(options.archive, model=options.model)
    migration = converted(archive, options)
    network = migration.network
    print(  # noqa: T201 - the command's answer
        f"{archive.path}: N = {network.N}, gridsize = {network.gridsize}, {len(archive.weights)} arrays; {archive.era}"
    )
    for path in (
        migration.checkpoint,
        migration.settings_file,
        migration.report,
        migration.report_json,
        migration.picture,
    ):
        print(f"  {path}")  # noqa: T201
    for note in archive.notes:
        print(f"note: {note}")  # noqa: T201
    return 0


def converted(archive: Archive, options: argparse.Namespace) -> Migration:
    """Convert an archive as the options of the command say.

    Raises:
        PtychoError: as ``run``.
    """
    # This one loads PyTorch.
    from ptycho_tf_bridge.migrate import convert

    given = given_flags(options)
    # The reference's normalisation of a given probe is a setting, and no part of the model.
    probe_scale = given.pop("probe_scale", None)
    if options.probe is None and probe_scale is not None:
        raise ArchiveError("--probe-scale normalises the probe of --probe; give both, or leave it out.")
    probe = None if options.probe is None else _probe(options.probe, archive, probe_scale)
    inputs = [] if options.probe in (None, _DEFAULT) else [Path(options.probe)]
    return convert(archive, options.output_dir, probe=probe, given=given, overwrite=options.overwrite, inputs=inputs)


def _probe(source: str, archive: Archive, probe_scale: float | None) -> np.ndarray:
    """Return the given probe as the reference would have used it."""
    import torch

    from ptycho_tf_bridge.archives.stored_model import as_probe
    from ptycho_torch.data.probe import default_probe, normalise_probe
    from ptycho_torch.data.scan import read_probe

    N = archive.network.N
    if source == _DEFAULT:
        modes = default_probe(N)[None].to(torch.complex64)
    else:
        modes = torch.from_numpy(read_probe(Path(source), N))
    if len(modes) > 1:
        raise ArchiveError(f"{source}: {len(modes)} probe modes; the reference has one.")
    probe_scale = archive.parameters.get("probe_scale") if probe_scale is None else probe_scale
    if not isinstance(probe_scale, int | float) or not probe_scale > 0:
        raise ArchiveError(f"{archive.path}: nothing says how the probe was normalised; give --probe-scale.")
    return as_probe(normalise_probe(modes[0], probe_scale).numpy(), N, f"{source}: the normalised probe")
