"""``python -m conformance verify``: is a converted model the archived one?"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="archive of the TensorFlow reference")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="certificate.json and certificate.html go here"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="what `ptycho-bridge convert` made of the archive: its folder or a .ckpt file; needed where the archive "
        "lacks something (default: the archive is converted here)",
    )
    parser.add_argument("--scan", type=Path, metavar="FILE", help="scan that the inputs are taken from")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="what the reference predicted with this model (.npz, specs/README.md); with --scan, which then is the "
        "predicted scan, the whole object is compared too",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out live Keras, whose place the measured numbers of the specification take, and the whole object",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the converted model runs (default cpu)"
    )


def run(options: argparse.Namespace) -> int:
    """Verify, and write the certificate; return 0 if the model is the same, else 1.

    Raises:
        PtychoError: a file that cannot be read or does not fit, or a device that is not there.
    """
    from ptycho_tf_bridge.archives.archive import read_archive
    from ptycho_tf_bridge.errors import ArchiveError
    from ptycho_torch.files.folders import checkpoint_of, refuse_folder

    archive = read_archive(options.archive)
    given = None if options.checkpoint is None else checkpoint_of(options.checkpoint)
    refuse_folder(options.output)
    if archive.missing and options.checkpoint is None:
        raise ArchiveError(
            f"{archive.path}: the archive does not hold {', '.join(archive.missing)}. Give that to "
            "`ptycho-bridge convert`, and its folder here with --checkpoint."
        )
    # These load PyTorch.
    from conformance.verify.certificate import write_certificate
    from conformance.verify.verification import verify
    from ptycho_tf_bridge.migrate import convert
    from ptycho_torch.training.lightning_module import accelerator

    accelerator(options.device)
    with tempfile.TemporaryDirectory(prefix="ptycho-verify-") as folder:
        checkpoint = convert(archive, Path(folder)).checkpoint if given is None else given
        found = verify(
            archive,
            checkpoint,
            scan=options.scan,
            predictions=options.predictions,
            device=options.device,
            quick=options.quick,
            shown=True,
        )
        written = write_certificate(options.output, found)
    print(found.sentence)  # noqa: T201 - the command's answer
    for path in written:
        print(f"wrote {path}")  # noqa: T201
    return 0 if found.passed else 1
