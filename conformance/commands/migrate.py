"""``ptycho-bridge migrate``: inspect, convert, reconstruct and verify in one, with one summary at the end.

It stands here and not in the bridge because it verifies: imports go from this package to the bridge, never back.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ptycho_tf_bridge.commands import convert as command_convert
from ptycho_torch.commands.arguments import add_data_dir, add_progress

_OBJECTS, _CERTIFICATE = "reconstructions", "certificate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``convert`` takes, the scans, and what ``verify`` takes."""
    command_convert.add_arguments(parser)
    parser.usage = "%(prog)s [options] [missing settings] ARCHIVE SCANS"
    parser.add_argument("ptycho_dir", type=Path, metavar="SCANS", help="a folder of scans (.npz), or one scan")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="what the reference predicted with this model for the first scan (.npz, specs/README.md)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="verify without live Keras and without the whole object of predictions"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default cpu)")
    add_data_dir(parser)
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Migrate; return 0 if the converted model is the archived one, else 1.

    Raises:
        PtychoError: an archive, scan or device that will not do, something that the archive lacks, or files that are
            there.
    """
    from ptycho_tf_bridge.archives.archive import read_archive
    from ptycho_torch.files.folders import refuse_folder, refuse_results, scan_paths

    folder = options.output_dir
    refuse_folder(folder)
    scans = scan_paths(options.ptycho_dir)
    archive = read_archive(options.archive, model=options.model)
    read = [archive.path, *([] if options.predictions is None else [options.predictions])]
    refuse_results(folder / _OBJECTS, scans, overwrite=options.overwrite, inputs=read)
    # These load PyTorch.
    from conformance.verify.certificate import write_certificate
    from conformance.verify.verification import verify
    from ptycho_torch import inference
    from ptycho_torch.training.lightning_module import accelerator

    accelerator(options.device)
    migration = command_convert.converted(archive, options)
    results = inference.infer(
        migration.checkpoint,
        options.ptycho_dir,
        output_dir=folder / _OBJECTS,
        data_dir=options.data_dir,
        weighting="uniform",
        device=options.device,
        progress=options.progress,
        overwrite=options.overwrite,
    )
    found = verify(
        archive,
        migration.checkpoint,
        scan=scans[0],
        predictions=options.predictions,
        device=options.device,
        quick=options.quick,
        shown=options.progress is not False,
    )
    written = write_certificate(folder / _CERTIFICATE, found)
    network = migration.network
    changed = sum(each.change not in ("same", "renamed") for each in migration.findings)
    lines = [
        f"archive    {archive.path}: {archive.era}",
        f"network    N = {network.N}, gridsize = {network.gridsize}, n_filters_scale = {network.n_filters_scale}, "
        f"{network.amp_activation}; {len(archive.weights)} arrays",
        f"converted  {migration.checkpoint}",
        f"settings   {migration.settings_file}",
        f"report     {migration.report}: every field; of {len(migration.findings)}, {changed} are not simply the same",
    ]
    for result in results:
        height, width = result.reconstruction.object.shape
        groups = len(result.reconstruction.positions_px)
        lines.append(f"object     {result.npz}: {width} × {height} pixels from {groups} groups, as TensorFlow stitches")
        lines += [f"picture    {path}" for path in result.pictures[:1]]
        lines += [f"           {line}" for line in result.scores.describe()]
    lines += [f"note       {note}" for note in archive.notes]
    lines += [f"verdict    {found.sentence}", *(f"           not compared: {each}" for each in found.not_compared)]
    lines += [f"proof      {path}" for path in written]
    print("\n".join(lines))  # noqa: T201 - the command's answer
    return 0 if found.passed else 1
