"""``ptycho-torch infer``: scans and a checkpoint become objects, pictures and HDF5 products.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ptycho_torch.commands.arguments import add_data_dir, add_probe_dir, add_progress, positive, seed, whole
from ptycho_torch.config_params import Device
from ptycho_torch.files.folders import (
    checkpoint_of,
    map_folder,
    probe_paths,
    refuse_damaged,
    refuse_results,
    scan_paths,
)

WEIGHTINGS = ("smooth", "uniform")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``infer``."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .ckpt file of training, or the folder of a run for its checkpoints/last.ckpt",
    )
    parser.add_argument("ptycho_dir", type=Path, metavar="SCANS", help="a folder of scans (.npz), or one scan")
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path("reconstructions"),
        metavar="DIR",
        help="objects, pictures and products, named after the scans (default reconstructions)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--device", choices=get_args(Device), default="auto", help="auto takes a GPU if there is one (default auto)"
    )
    parser.add_argument(
        "--devices",
        type=whole,
        default=1,
        metavar="INT",
        help="processes that predict, each on a GPU of its own where there are GPUs (default 1)",
    )
    parser.add_argument(
        "--cxi",
        action="store_true",
        help="also write each object as CXI, with NeXus classes; it needs the geometry",
    )
    add_probe_dir(parser)
    parser.add_argument("--batch-size", type=whole, metavar="INT", help="groups predicted at once (default 64)")
    parser.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        default="smooth",
        help="smooth: objects of groups are weighted by a Hann window; uniform: the plain average of their middles, as "
        "the reference has it (default smooth)",
    )
    parser.add_argument(
        "--crop-px",
        type=whole,
        metavar="PX",
        help="side of the middle of each object that is used (default: N/2 for smooth, 20 for uniform)",
    )
    add_data_dir(parser)
    add_progress(parser)
    groups = parser.add_argument_group("groups", "as in training, unless these say otherwise")
    groups.add_argument(
        "--group-seed", type=seed, metavar="INT", help="seed of the draw of groups; TensorFlow's inference has 45"
    )
    groups.add_argument(
        "--n-groups",
        type=whole,
        metavar="INT",
        help="how many groups, for models of TensorFlow's sampler; its inference makes patterns // gridsize²",
    )
    geometry = parser.add_argument_group("geometry", "where the scans do not say it; products need it")
    geometry.add_argument("--wavelength-m", type=positive, metavar="METRES", help="wavelength")
    geometry.add_argument("--distance-m", type=positive, metavar="METRES", help="from object to detector")
    geometry.add_argument("--pixel-m", type=positive, metavar="METRES", help="side of a detector pixel, before binning")
    groups.add_argument(
        "--K", type=whole, metavar="INT", help="neighbours that groups are drawn from; TensorFlow's inference has 4"
    )


def run(options: argparse.Namespace) -> int:
    """Reconstruct; return 0.

    Raises:
        PtychoError: a checkpoint or scan that cannot be read or does not fit, or files that are there.
    """
    checkpoint, scans = checkpoint_of(options.checkpoint), scan_paths(options.ptycho_dir)
    from ptycho_torch.training.checkpoint_file import read_tree

    read_tree(checkpoint)
    probes = () if options.probe_dir is None else probe_paths(scans, options.probe_dir)
    refuse_damaged((*scans, *probes))
    refuse_results(options.output_dir, scans, overwrite=options.overwrite, inputs=(checkpoint, *probes))
    from ptycho_torch import inference

    results = inference.infer(
        checkpoint,
        options.ptycho_dir,
        output_dir=options.output_dir,
        probe_dir=options.probe_dir,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        weighting=options.weighting,
        crop_px=options.crop_px,
        device=options.device,
        progress=options.progress,
        overwrite=options.overwrite,
        wavelength_m=options.wavelength_m,
        detector_distance_m=options.distance_m,
        detector_pixel_m=options.pixel_m,
        group_seed=options.group_seed,
        n_groups=options.n_groups,
        K=options.K,
        devices=options.devices,
        cxi=options.cxi,
    )
    for result in results:
        height, width = result.reconstruction.object.shape
        groups = len(result.reconstruction.positions_px)
        print(f"{result.name}: object of {width} × {height} pixels from {groups} groups")  # noqa: T201
        for line in result.scores.describe():
            print(f"  {line}")  # noqa: T201
        if (photons := result.reconstruction.provenance["nphotons"]) is not None:
            print(f"  nphotons = {photons:.6g} ({result.reconstruction.provenance['nphotons_source']})")  # noqa: T201
        products = tuple(path for path in (result.product, result.cxi) if path is not None)
        for path in (result.npz, result.json, *products, *result.pictures):
            print(f"  {path}")  # noqa: T201
    used = map_folder(options.ptycho_dir, options.data_dir)
    counted = f"{len(results)} scan" + ("s" if len(results) > 1 else "")
    print(f"{options.output_dir} holds the files of {counted}, {used} the memory map")  # noqa: T201
    return 0
