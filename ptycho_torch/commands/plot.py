"""``ptycho-torch plot``: pictures of reconstructions, scans and training histories."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_torch.errors import DataContractError
from ptycho_torch.files.folders import PICTURE_ENDINGS, distinct_stems, refuse_outputs

if TYPE_CHECKING:
    from ptycho_torch.reconstruction.products import Reconstruction
    from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores

MAX_HISTORY_BYTES = 64 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``plot``."""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE", help="a reconstruction or scan (.npz), or history.json of a run"
    )
    parser.add_argument(
        "-o", "--output-dir", type=Path, metavar="DIR", help="folder of the pictures (default: beside each file)"
    )
    parser.add_argument(
        "--images", action="store_true", help="of a reconstruction also plain images, one pixel for each of its own"
    )


def run(options: argparse.Namespace) -> int:
    """Draw every file; return 0. Pictures that are there are replaced.

    Raises:
        DataContractError: a file that is neither, or that breaks a clause.
    """
    folder: Path | None = options.output_dir
    if folder is None:
        targets = {path: path.with_suffix("") for path in dict.fromkeys(options.paths)}
    else:
        targets = {path: folder / stem for path, stem in distinct_stems(options.paths).items()}
    endings = PICTURE_ENDINGS if options.images else PICTURE_ENDINGS[:1]
    pictures = [target.with_name(target.name + ending) for target in targets.values() for ending in endings]
    refuse_outputs(pictures, targets, overwrite=True)
    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        for picture in _draw(path, target, images=options.images):
            print(picture, flush=True)  # noqa: T201 - the command's answer
    return 0


def _draw(path: Path, target: Path, *, images: bool) -> tuple[Path, ...]:
    """Draw one file; return the pictures, whose names are that of the target and an ending."""
    picture = target.with_name(f"{target.name}.png")
    if path.suffix.lower() == ".json":
        history = _history(path)
        from ptycho_torch.reconstruction.pictures import plot_history

        plot_history(history, picture)
        return (picture,)
    from ptycho_torch.files.npz import NpzFile

    keys = NpzFile(path).keys
    if "object" in keys and "coverage" in keys:
        from ptycho_torch.reconstruction.pictures import plot_reconstruction, write_images
        from ptycho_torch.reconstruction.products import read_reconstruction

        reconstruction = read_reconstruction(path)
        plot_reconstruction(reconstruction, picture, scores=_scores(path, reconstruction))
        return (picture, *(write_images(reconstruction, target.parent, target.name) if images else ()))
    if "diff3d" in keys or "diffraction" in keys:
        from ptycho_torch.data.scan import examine
        from ptycho_torch.reconstruction.plots import plot_scan

        examination = examine(path)
        if examination.mean_counts is None:
            broken = (finding.text for finding in examination.findings if finding.state == "broken")
            raise DataContractError(next(broken, f"{path}: the patterns could not be read."))
        plot_scan(examination, picture)
        return (picture,)
    raise DataContractError(
        f"{path}: neither a reconstruction ('object', 'coverage') nor a scan ('diff3d'); it holds "
        f"{', '.join(sorted(keys)[:12])}."
    )


def _scores(path: Path, reconstruction: Reconstruction) -> ReconstructionScores | None:
    """Return the scores that ``infer`` has written beside a reconstruction, or None.

    Raises:
        DataContractError: they cannot be read.
    """
    from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores

    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        return ReconstructionScores.from_numbers(_json(beside), reconstruction.pixel_size_m)
    except (KeyError, ValueError, TypeError) as err:
        raise DataContractError(
            f"{beside}: no scores of {path.name} ({type(err).__name__}: {err}). Move it away, and the object is "
            "drawn without scores; `ptycho-torch infer` writes both."
        ) from err


def _json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MAX_HISTORY_BYTES + 1)
    read = json.loads(content) if len(content) <= MAX_HISTORY_BYTES else None
    if not isinstance(read, dict):
        raise ValueError("no names and values")
    return read


def _history(path: Path) -> dict[str, list[float]]:
    try:
        return {str(name): [float(value) for value in values] for name, values in _json(path).items()}
    except (ValueError, TypeError, RecursionError) as err:
        raise DataContractError(f"{path}: no history of a training run ({err}).") from err
