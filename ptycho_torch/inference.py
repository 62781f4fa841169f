"""From a trained module to whole objects, and their files: NPZ, scores, HDF5 product and pictures.

Objects of groups are stitched as they are predicted, so memory does not grow with their number. How to use it:
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>; the files: clauses REC-01 and PRODUCT-01 of
<doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import multiprocessing
import pickle
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import violation
from ptycho_torch.data.photons import METADATA
from ptycho_torch.data.scan import open_scan
from ptycho_torch.data.scan_arrays import ScanArrays, ScanSource, path_of
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError
from ptycho_torch.files import folders
from ptycho_torch.files.json_numbers import write_numbers
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.importer.hints import heed_patterns, heed_scans
from ptycho_torch.reconstruction.cxi import write_cxi
from ptycho_torch.reconstruction.half_split import split_patterns
from ptycho_torch.reconstruction.pictures import plot_reconstruction, write_images
from ptycho_torch.reconstruction.products import Geometry, Reconstruction, write_product, write_reconstruction
from ptycho_torch.reconstruction.reassembly import (
    REFERENCE_CROP_PX,
    ExperimentStitcher,
    HalfStitcher,
    Stitched,
    Weighting,
)
from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores, score_reconstruction
from ptycho_torch.reconstruction.trunk import OUTPUTS, refuse_ending, write_trunk
from ptycho_torch.training.blank import ObjectCheck, check_objects
from ptycho_torch.training.freed_memory import keep_freed_memory
from ptycho_torch.training.lightning_module import ObjectPatches, PtychoPINN, accelerator, quiet_lightning
from ptycho_torch.training.progress import ProgressBar, log_above_bars, shows_bars

log = logging.getLogger(__name__)

BATCH_SIZE = 64
"""Groups predicted at once; the result does not depend on it (REF-01)."""

_SAME_DOSE = 0.01
"""Share by which the photon numbers of two scans of one dose may differ."""


NOTHING_GIVEN: Mapping[str, float | None] = MappingProxyType(
    dict.fromkeys(("wavelength_m", "detector_distance_m", "detector_pixel_m"))
)
"""The geometry is that of the scans."""


@dataclasses.dataclass(frozen=True)
class InferenceResult:
    """One reconstructed scan.

    Attributes:
        name: stem of the scan's name in the dataset.
        npz: the reconstruction, clause REC-01.
        pictures: overview, amplitude, phase and colour wheel as PNG.
        product: the HDF5 product, or None where the geometry is unknown.
        cxi: the CXI file, or None where it was not asked for.
        reconstruction: the same as values.
        scores: without a known object.
        json: the scores as a file.
        check: whether the object is blank; also in the provenance, as ``object_check``.
    """

    name: str
    npz: Path
    pictures: tuple[Path, ...]
    product: Path | None
    cxi: Path | None
    reconstruction: Reconstruction
    scores: ReconstructionScores
    json: Path
    check: ObjectCheck


class _Stitching(Callback):
    """Hands the objects of each batch to the stitchers, and keeps nothing else."""

    def __init__(self, stitcher: HalfStitcher) -> None:
        self.stitcher = stitcher

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, ObjectPatches)
        assert isinstance(batch, PtychoBatch)
        assert outputs.centres_px is not None
        assert outputs.experiment_ids is not None
        objects, centres, experiments = outputs.objects[:, 0].cpu(), outputs.centres_px.cpu(), outputs.experiment_ids
        self.stitcher.add(objects, centres, experiments.cpu(), batch.indices.cpu())


def reconstruct(
    module: PtychoPINN,
    dataset: PtychoDataset | Mapping[str, Any],
    *,
    batch_size: int = BATCH_SIZE,
    weighting: Weighting = "smooth",
    crop_px: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> dict[int, Stitched]:
    """Predict every group of a dataset and stitch the objects of each scan at the group centres.

    Two halves of the groups are stitched apart and compared before they are added up; see
    ``ptycho_torch.reconstruction.half_split``.

    Args:
        module: trained module.
        dataset: scans with the same N and gridsize; or the arrays of one scan, as ``PtychoDataset.from_arrays`` takes
            them, whose groups are then made as for the module's training.
        batch_size: groups predicted at once.
        weighting: ``uniform``, the reference's average of central squares, or ``smooth``, weighted by a Hann window.
        crop_px: M, side of the central square of each object that is used; None is 20 for ``uniform``, as the reference
            has it, and N/2 for ``smooth``.
        device: where to predict.
        progress: show a progress bar; None shows it in a terminal.

    Returns:
        Object by number of the scan.

    Raises:
        ConfigError: the dataset does not fit the network, or the device is not there.
        DataContractError: of ``Stitcher``.
    """
    if not isinstance(dataset, PtychoDataset):
        scan = ScanArrays("scan-0", dataset)
        dataset = PtychoDataset.from_arrays(scan, settings=within_points(module.settings.data, [scan]))
    how = _How(batch_size, weighting, crop_px, device, progress)
    return _predicted(module, dataset, how).results()


@dataclasses.dataclass(frozen=True)
class _How:
    """How groups are predicted and stitched: the arguments of ``reconstruct``."""

    batch_size: int
    weighting: Weighting
    crop_px: int | None
    device: str
    progress: bool | None


def _predicted(module: PtychoPINN, dataset: PtychoDataset, how: _How, share: tuple[int, int] = (0, 1)) -> HalfStitcher:
    """Predict and stitch every n-th batch, from batch r on.

    Args:
        module: trained module.
        dataset: of the groups.
        how: as the caller of ``reconstruct`` asks.
        share: (r, n). The batches are the same for every n, so that each group is predicted alike.
    """
    network, data = module.network.settings, dataset.settings
    if (data.N, data.gridsize) != (network.N, network.gridsize):
        raise ConfigError(
            f"The network has N = {network.N}, gridsize = {network.gridsize}; the dataset has N = {data.N}, "
            f"gridsize = {data.gridsize}. Make the dataset with the settings of the checkpoint."
        )
    crop_px = how.crop_px
    if crop_px is None:
        crop_px = REFERENCE_CROP_PX if how.weighting == "uniform" else network.N // 2
    centres, experiments = dataset.centres_px, dataset.experiment_ids
    positions = {int(number): centres[experiments == number] for number in experiments.unique()}
    stitcher = HalfStitcher(
        ExperimentStitcher(positions, network.N, crop_px, how.weighting),
        ExperimentStitcher(positions, network.N, crop_px, how.weighting),
        torch.from_numpy(split_patterns(len(dataset.positions_px))),
    )
    keep_freed_memory()
    rank, count = share
    batches = torch.arange(len(dataset)).split(how.batch_size)[rank::count]
    if not batches:
        return stitcher
    # Whatever processes have trained: here each has a loader of its own.
    loader = TensorDictDataLoader(
        dataset, how.batch_size, groups=torch.cat(batches), num_workers=1, rank=0, world_size=1
    )
    training = module.training
    bars = shows_bars(how.progress)
    with quiet_lightning(), log_above_bars(bars):
        trainer = pl.Trainer(
            accelerator=accelerator(how.device),
            devices=[rank] if count > 1 and _on_cuda(how.device) else 1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=bars,
            callbacks=[_Stitching(stitcher), *([ProgressBar()] if bars else [])],
            use_distributed_sampler=False,
        )
        trainer.predict(module, loader, return_predictions=False)
    module.train(training)
    return stitcher


def _on_cuda(device: str) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a process needs to open checkpoint and dataset by itself."""

    checkpoint: Path
    ptycho_dir: Path
    probe_dir: Path | None
    data_dir: Path | None
    data: DataSettings


def _in_processes(source: _Source, how: _How, devices: int) -> dict[int, Stitched]:
    """Predict in several processes, each on a device of its own or on its part of the cores, and add up their sums."""
    threads = max(1, torch.get_num_threads() // devices)
    jobs = [(source, how, (rank, devices), threads) for rank in range(devices)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(devices, mp_context=context) as pool:
        whole, *others = (pickle.loads(each) for each in pool.map(_share, jobs))
    for other in others:
        whole.absorb(other)
    return dict(whole.results())


def _share(job: tuple[_Source, _How, tuple[int, int], int]) -> bytes:
    """Predict one share in a process of its own; the stitcher is pickled whole, without shared memory."""
    source, how, share, threads = job
    torch.set_num_threads(threads)
    if share[0] > 0:
        # The first process speaks for all.
        logging.disable(logging.WARNING)
        how = dataclasses.replace(how, progress=False)
    module = PtychoPINN.from_checkpoint(source.checkpoint)
    dataset = PtychoDataset(source.ptycho_dir, source.probe_dir, source.data_dir, settings=source.data, progress=False)
    return pickle.dumps(_predicted(module, dataset, how, share))


def write_results(
    objects: Mapping[int, Stitched],
    module: PtychoPINN,
    dataset: PtychoDataset,
    output_dir: Path,
    *,
    source: Path,
    geometries: Mapping[int, Geometry] | None = None,
    weighting: Weighting = "smooth",
    cxi: bool = False,
    overwrite: bool = False,
) -> tuple[InferenceResult, ...]:
    """Write NPZ, scores, pictures and, where the geometry is known, the HDF5 product of each scan; warn of blank ones.

    Args:
        objects: object by number of the scan, of ``reconstruct``.
        module: what predicted them.
        dataset: what they were predicted from.
        output_dir: folder of the files, named after the scans.
        source: checkpoint; its digest goes into the provenance.
        geometries: by number of the scan.
        weighting: how they were stitched, for the provenance.
        cxi: also write a CXI file of each scan.
        overwrite: whether files may be there.

    Raises:
        DataContractError: PRODUCT-02, a CXI file of a scan whose geometry is unknown; before anything is written.
        ConfigError: a file is there and may not be overwritten.
    """
    if cxi:
        _refuse_cxi_without_metres(dataset, geometries)
    output_dir.mkdir(parents=True, exist_ok=True)
    program = f"ptycho-torch {importlib.metadata.version('ptycho-torch')}"
    common = {
        "program": program,
        "torch": torch.__version__,
        "checkpoint": source.name,
        "checkpoint_sha256": _sha256(source) if source.is_file() else None,
        "weighting": weighting,
        "settings": module.settings.as_dict(),
        "network": dataclasses.asdict(module.network.settings),
    }
    checks = check_objects(module, dataset)
    results = []
    for number, stitched in objects.items():
        scan = dataset.names[number]
        geometry = None if geometries is None else geometries.get(number)
        reconstruction = _reconstruction(stitched, dataset, number, geometry)
        check = checks[number].with_disagreement(reconstruction.relative_disagreement)
        warn_of(scan, check)
        photons, photons_source = _photons(module, dataset, number)
        provenance = common | {
            "scan": scan,
            "object_check": check.numbers(),
            "nphotons": photons,
            "nphotons_source": photons_source,
        }
        reconstruction = dataclasses.replace(reconstruction, provenance=provenance)
        stem = Path(scan).stem
        scores = score_reconstruction(reconstruction, stitched.half_split, dataset, number)
        npz, overview, numbers = (output_dir / f"{stem}.{suffix}" for suffix in ("npz", "png", "json"))
        write_reconstruction(npz, reconstruction, overwrite=overwrite)
        write_numbers(numbers, scores.numbers(), overwrite=overwrite)
        plot_reconstruction(reconstruction, overview, scores=scores)
        pictures = (overview, *write_images(reconstruction, output_dir, stem))
        metric = _write_metric(
            output_dir / stem, reconstruction, dataset, number, geometry,
            program=program, photons=photons, losses=module.history.get("train_loss", []), cxi=cxi, overwrite=overwrite,
        )  # fmt: skip
        results.append(InferenceResult(stem, npz, pictures, *metric, reconstruction, scores, numbers, check))
    return tuple(results)


def _write_metric(
    place: Path,
    reconstruction: Reconstruction,
    dataset: PtychoDataset,
    number: int,
    geometry: Geometry | None,
    *,
    program: str,
    photons: float | None,
    losses: Sequence[float],
    cxi: bool,
    overwrite: bool,
) -> tuple[Path | None, Path | None]:
    """Write the files of a scan that are in metres, and return the HDF5 product and the CXI file, if there are.

    ``place`` is folder and stem of both; the other arguments are those of ``write_results`` and ``write_product``.
    """
    product, file = (place.with_name(place.name + ending) for ending in (".h5", folders.CXI_ENDING))
    positions_px = dataset.positions_px[torch.from_numpy(dataset.rows[number])].numpy()
    indexes = dataset.pattern_numbers(number)
    if overwrite:
        # Files of an object that was there before would be taken for this one's.
        for path in (product, file):
            path.unlink(missing_ok=True)
    if geometry is not None:
        write_product(
            product, reconstruction, geometry, positions_px=positions_px, indexes=indexes, name=place.name,
            comments=program, photons=photons, losses=np.array(losses),
        )  # fmt: skip
    if cxi:
        write_cxi(
            file, reconstruction, geometry, positions_px=positions_px, indexes=indexes, name=place.name, program=program
        )
    return None if geometry is None else product, file if cxi else None


def _refuse_cxi_without_metres(dataset: PtychoDataset, geometries: Mapping[int, Geometry] | None) -> None:
    for number, name in enumerate(dataset.names):
        if number not in (geometries or {}):
            raise violation("PRODUCT-02", "a scan of unknown geometry", path=Path(name))


def _photons(module: PtychoPINN, dataset: PtychoDataset, number: int) -> tuple[float | None, str]:
    """Return the mean counts of a pattern of a scan, as it states them or the model was trained for, and who says so.

    Warns where the two are different numbers: objects do not depend on them, predicted counts do.
    """
    stated, trained = dataset.stated_nphotons[number], module.statistics.get("nphotons")
    if stated is None:
        return trained, "what the model was trained for"
    if trained is not None and not math.isclose(stated, trained, rel_tol=_SAME_DOSE):
        log.warning(
            "%s: nphotons = %.6g of its %s; the model was trained for %.6g. The object is the same, predicted counts "
            "are those of the model. To train for this dose: ptycho-torch train --nphotons %.6g.",
            dataset.names[number], stated, METADATA, trained, stated,
        )  # fmt: skip
    return stated, f"of {METADATA} in the scan"


def _reconstruction(
    stitched: Stitched, dataset: PtychoDataset, number: int, geometry: Geometry | None
) -> Reconstruction:
    """Return the reconstruction of a scan by its number, with everything but its provenance."""
    probe = dataset.probes[number].numpy()
    return Reconstruction(
        object=stitched.object.numpy().astype(np.complex64),
        coverage=stitched.coverage.numpy().astype(np.float32),
        origin_px=stitched.origin_px,
        positions_px=dataset.centres_px[dataset.experiment_ids == number].numpy(),
        probe=probe[0] if len(probe) == 1 else probe,
        provenance={},
        disagreement=stitched.disagreement.numpy().astype(np.float32),
        pixel_size_m=None if geometry is None else geometry.object_pixel_m,
    )


def warn_of(scan: str, check: ObjectCheck) -> None:
    """Log what is wrong with the object of a scan, and what to try; nothing where nothing is."""
    if warning := check.warning():
        log.warning("%s: %s", scan, warning)


def infer(
    checkpoint: str | Path,
    ptycho_dir: str | Path,
    *,
    output_dir: str | Path,
    probe_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    batch_size: int | None = None,
    weighting: Weighting = "smooth",
    crop_px: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
    overwrite: bool = False,
    wavelength_m: float | None = None,
    detector_distance_m: float | None = None,
    detector_pixel_m: float | None = None,
    group_seed: int | None = None,
    n_groups: int | None = None,
    K: int | None = None,
    devices: int = 1,
    cxi: bool = False,
) -> tuple[InferenceResult, ...]:
    """Reconstruct scans with a checkpoint, and write the objects.

    Groups are made as for the checkpoint's training, unless ``group_seed``, ``n_groups`` or ``K`` say otherwise.

    Args:
        checkpoint: of training, or converted from an archive.
        ptycho_dir: folder of scans, or one scan.
        output_dir: where objects and pictures go.
        probe_dir: folder of probes; None takes ``probeGuess`` of each scan.
        data_dir: folder of the memory map; None takes the one that every command has for these scans
            (``folders.map_folder``), so that the map of training is used.
        batch_size: groups predicted at once.
        weighting: see ``reconstruct``.
        crop_px: see ``reconstruct``.
        device: where to predict.
        progress: show a progress bar; None shows it in a terminal.
        overwrite: whether files may be there.
        wavelength_m: λ, where the scans do not say it.
        detector_distance_m: z, likewise.
        detector_pixel_m: p, likewise.
        group_seed: draws other groups, at random also where training took the scan points in sequence.
        n_groups: how many groups, for models whose groups are drawn by the sampler ``reference``; None takes the
            checkpoint's number, or one of each scan point where a scan has fewer.
        K: nearest neighbours that groups are drawn from.
        devices: processes that predict, each on a GPU of its own where there are GPUs. The objects are those of one,
            to the rounding of float64 sums. Python starts the processes anew, so a script calls this below
            ``if __name__ == "__main__":``.
        cxi: also write each object as a CXI file.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: a file is there and may not be overwritten, the device is not there, there are fewer GPUs than
            ``devices``, or ``n_groups`` is given for a model of another sampler.
        DataContractError: a scan or probe that breaks a clause; PRODUCT-02, CXI of a scan of unknown geometry.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    _refuse_devices(devices, device)
    scans = folders.scan_paths(Path(ptycho_dir))
    probes = () if probe_dir is None else folders.probe_paths(scans, Path(probe_dir))
    folders.refuse_results(output_dir, scans, overwrite=overwrite, inputs=(checkpoint, *probes))
    module = PtychoPINN.from_checkpoint(checkpoint)
    data = _with_groups(module.settings.data, scans, group_seed, n_groups, K)
    heed_scans(scans, data, None)
    output_dir.mkdir(parents=True, exist_ok=True)
    dataset = PtychoDataset(ptycho_dir, probe_dir, data_dir, settings=data, progress=progress)
    given = {
        "wavelength_m": wavelength_m,
        "detector_distance_m": detector_distance_m,
        "detector_pixel_m": detector_pixel_m,
    }
    heed_patterns(dataset, None)
    geometries = geometries_of(dataset, given)
    if cxi:
        _refuse_cxi_without_metres(dataset, geometries)
    how = _How(BATCH_SIZE if batch_size is None else batch_size, weighting, crop_px, device, progress)
    if devices == 1:
        objects = _predicted(module, dataset, how).results()
    else:
        probes_from, map_in = (None if path is None else Path(path) for path in (probe_dir, data_dir))
        objects = _in_processes(_Source(checkpoint, Path(ptycho_dir), probes_from, map_in, data), how, devices)
    return write_results(
        objects,
        module,
        dataset,
        output_dir,
        source=checkpoint,
        geometries=geometries,
        weighting=weighting,
        cxi=cxi,
        overwrite=overwrite,
    )


def export(
    checkpoint: str | Path, target: str | Path, *, stages: Sequence[str] = OUTPUTS, overwrite: bool = False
) -> Path:
    """Write the neural part of a trained network for programs that serve models.

    The file takes ``scaled_amplitude``, (groups, C, N, N) float32 s_I·X for any number of groups, and gives amplitude,
    (groups, A, N, N), and phase in radians, (groups, K, N, N), of their patches. With it go the settings of the network
    and the digest of the checkpoint: ``facts`` in the metadata of an ONNX model, else the extra file ``facts.json``.

    Args:
        checkpoint: of training, or converted from an archive.
        target: ``model.onnx``, or ``model.pt2`` for ``torch.export.load``.
        stages: whose outputs the file gives, by clause: the two of the patches, or more, for a judge.
        overwrite: whether the file may be there.

    Returns:
        The file.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: another ending, or the file is there and may not be overwritten.
        PtychoError: onnxscript is not installed.
    """
    checkpoint, target = Path(checkpoint), Path(target)
    refuse_ending(target)
    folders.refuse_outputs([target], [checkpoint], overwrite=overwrite)
    module = PtychoPINN.from_checkpoint(checkpoint)
    facts = {
        "program": f"ptycho-torch {importlib.metadata.version('ptycho-torch')}",
        "checkpoint_sha256": _sha256(checkpoint),
        "network": dataclasses.asdict(module.network.settings),
    }
    with replacing(target, overwrite=overwrite) as file:
        write_trunk(file, module.network, target.suffix, facts, stages)
    return target


def _refuse_devices(devices: int, device: str) -> None:
    if devices < 1:
        raise ConfigError(f"devices = {devices}; expected 1 or more.")
    if devices > 1 and _on_cuda(device) and devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices = {devices}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here; "
            "take as many, or device = 'cpu'."
        )


def _with_groups(
    data: DataSettings, scans: Iterable[ScanSource], group_seed: int | None, n_groups: int | None, K: int | None
) -> DataSettings:
    """Return settings that draw other groups, more or fewer of them, or from other neighbours."""
    if n_groups is not None and data.group_sampler != "reference":
        raise ConfigError(
            f"n_groups = {n_groups}: this model has group_sampler = {data.group_sampler!r}, which makes "
            f"n_subsample = {data.n_subsample} groups of every scan point. Leave n_groups out; it belongs to models "
            "converted from TensorFlow, or trained with group_sampler = 'reference'."
        )
    if group_seed is not None:
        data = dataclasses.replace(data, group_seed=group_seed, sequential_sampling=False)
    if K is not None:
        data = dataclasses.replace(data, K=K)
    return within_points(data, scans) if n_groups is None else dataclasses.replace(data, n_groups=n_groups)


def within_points(data: DataSettings, scans: Iterable[ScanSource]) -> DataSettings:
    """Return settings that draw no more groups than each scan has points, where a training drew more of its own scan.

    One group of each point is made then, of every scan, and a warning says so.

    Args:
        data: of the checkpoint.
        scans: to be reconstructed.

    Raises:
        DataContractError: a scan that breaks a clause.
    """
    if data.group_sampler != "reference" or data.n_groups is None or data.enable_oversampling or data.C == 1:
        return data
    for source in scans:
        scan = open_scan(source)
        points = int(np.unique(scan.scan_index, return_counts=True)[1].min())
        if points < data.n_groups:
            log.warning(
                "%s: %d scan points, and the checkpoint draws n_groups = %d. One group of each point is made; another "
                "number: --n-groups.", scan.path, points, data.n_groups,
            )  # fmt: skip
            return dataclasses.replace(data, n_groups=None)
    return data


def geometries_of(dataset: PtychoDataset, given: Mapping[str, float | None] = NOTHING_GIVEN) -> dict[int, Geometry]:
    """Return the geometry of each scan that has one, by number of the scan.

    Args:
        dataset: of the scans.
        given: name of a member of the scan → what stands in its place, or None.
    """
    scans = {path_of(source): open_scan(source) for source in set(dataset.sources)}
    geometries = {}
    for number, path in enumerate(dataset.paths):
        scan = scans[path]
        values = {name: value if value is not None else getattr(scan, name) for name, value in given.items()}
        if any(value is None for value in values.values()):
            missing = ", ".join(name for name, value in values.items() if value is None)
            log.info("%s: no %s, so its pixels have no size in metres", path, missing)
            continue
        # Binned detector pixels are b times as large, and there are N of them.
        geometries[number] = Geometry(
            wavelength_m=float(values["wavelength_m"]),
            detector_distance_m=float(values["detector_distance_m"]),
            detector_pixel_m=float(values["detector_pixel_m"]) * dataset.settings.detector_bin,
            frame_px=dataset.settings.N,
        )
    return geometries


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
