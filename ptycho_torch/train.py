"""Training with Lightning: ``main`` does all of it, with the module ``PtychoPINN``.

How to use it, on one device or many: <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>. How the parts hang
together: <doc-ref type="guide">docs/architecture.md</doc-ref>.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ptycho_torch import inference
from ptycho_torch.config_params import Settings, TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.files import folders
from ptycho_torch.importer.hints import heed_patterns, heed_scans
from ptycho_torch.training import checkpoint as checkpoints
from ptycho_torch.training import run_state
from ptycho_torch.training.blank import check_objects
from ptycho_torch.training.contact_sheet import ContactSheet
from ptycho_torch.training.data_module import PtychoDataModule, loaders
from ptycho_torch.training.freed_memory import keep_freed_memory
from ptycho_torch.training.lightning_module import ObjectPatches, PtychoPINN, accelerator, load_weights, quiet_lightning
from ptycho_torch.training.progress import ProgressBar, log_above_bars, shows_bars
from ptycho_torch.training.run_callbacks import BestCheckpoint, LastCheckpoint, RunRecord, SignalStop
from ptycho_torch.training.tracking import Tracker, print_auto_logged_info, track
from ptycho_torch.training.training_callbacks import BlankWatch, TrainingLog, write_history

__all__ = [
    "ObjectPatches", "PtychoPINN", "TrainingResult", "loaders", "main", "make_trainer", "print_auto_logged_info",
]  # fmt: skip

log = logging.getLogger(__name__)

RESUMABLE_WITH = (
    "device", "devices", "num_nodes", "strategy", "max_epochs", "num_workers", "checkpoint_every_n_steps", "tracking",
    "experiment_name", "run_name", "accept",
)  # fmt: skip
"""Training settings that a resumed run may change: they do not touch the weights that an epoch ends with."""


def make_trainer(
    training: TrainingSettings,
    output_dir: Path,
    *,
    validate: bool = True,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] | None = None,
    progress: bool | None = None,
    resume: Path | None = None,
) -> pl.Trainer:
    """Make the Lightning trainer of these settings; checkpoints go to ``output_dir/checkpoints``.

    The losses of each epoch go to ``output_dir/history.json`` and ``output_dir/history.png``, the state of the run to
    ``output_dir/run.json``. What another run has left in the folder is moved to ``output_dir/replaced-N`` when a new
    run begins. SIGTERM, SIGINT and SIGUSR1 end the training with a checkpoint and ``interruption.RunInterrupted``.

    Args:
        training: settings of the run.
        output_dir: see above.
        validate: whether there are validation groups, whose loss is watched then.
        callbacks: more of them; they run before those that save checkpoints.
        logger: one or several of Lightning's, which get every loss and the learning rate; None for none.
        progress: show progress bars; None shows them in a terminal, and elsewhere prints a line an epoch.
        resume: checkpoint that the run resumes from; the ``best.ckpt`` beside it is that of its epochs.

    Raises:
        ConfigError: the device is not there.
    """
    keep_freed_memory()
    folder = output_dir / folders.CHECKPOINTS
    record = RunRecord(output_dir, RESUMABLE_WITH)
    last = LastCheckpoint(folder / "last.ckpt", training.checkpoint_every_n_steps, record)
    # Lightning runs callbacks that save after all others, so that what the others decide is in the checkpoint.
    watching: list[Callback] = [
        record,
        BestCheckpoint(folder, "val_loss" if validate else "train_loss", resume),
        last,
        TrainingLog(output_dir, lines=progress is None and not shows_bars(None)),
        SignalStop(last.save),
    ]
    if shows_bars(progress):
        watching.append(ProgressBar())
    if training.early_stop_patience is not None:
        monitor = training.early_stop_monitor if validate else "train_loss"
        watching.insert(
            0,
            EarlyStopping(
                monitor,
                min_delta=0.0,
                patience=training.early_stop_patience,
                # A validation loss that is not finite did not improve, as for Keras; such a training loss
                # has ended the run already.
                check_finite=False,
                check_on_train_epoch_end=True,
            ),
        )
    adaptive = training.gradient_clip_algorithm == "adaptive"
    return pl.Trainer(
        accelerator=accelerator(training.device),
        devices="auto" if training.devices == -1 else training.devices,
        num_nodes=training.num_nodes,
        strategy=training.strategy,
        # The module makes and feeds a float64 network itself.
        precision="bf16-mixed" if training.precision == "bf16-mixed" else "32-true",
        max_epochs=training.max_epochs,
        accumulate_grad_batches=training.accumulate_grad_batches,
        # The module clips adaptively by itself; the Trainer knows of norm and value only.
        gradient_clip_val=None if adaptive else training.gradient_clip_val,
        gradient_clip_algorithm=None if adaptive else training.gradient_clip_algorithm,
        deterministic=training.deterministic or None,
        callbacks=[*callbacks, *watching],
        logger=False if logger is None else logger,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        enable_progress_bar=shows_bars(progress),
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[checkpoints.PlainCheckpointIO()],
        # Under SLURM Lightning takes up any hpc_ckpt_*.ckpt that it finds in this folder, whatever run it is of.
        default_root_dir=folder,
    )


_GIT_S = 5.0
_MOST_SCANS = 50
"""Scans whose digest an MLflow run has."""

GROUPS_SHOWN = 6_000
"""Groups that a run without ``max_epochs`` shows the network, each as often as the others."""

LEAST_EPOCHS, MOST_EPOCHS = 5, 200
"""Bounds of ``epochs_for``."""


def epochs_for(groups: int) -> int:
    """Return how many epochs a run over so many groups takes where ``max_epochs`` is None.

    epochs = GROUPS_SHOWN / groups, rounded up, within LEAST_EPOCHS … MOST_EPOCHS; so scans of all lengths get about as
    many updates.

    Args:
        groups: of the training scans.

    >>> epochs_for(320), epochs_for(100_000)
    (19, 5)
    """
    return min(max(math.ceil(GROUPS_SHOWN / groups), LEAST_EPOCHS), MOST_EPOCHS)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run left.

    Attributes:
        module: the trained module.
        checkpoint: ``last.ckpt``: where training stands; resuming and inference start from it.
        best_checkpoint: ``best.ckpt``: the weights of the lowest validation loss.
        history: name → value of each epoch.
        reconstructions: files of the objects of the training scans.
        run_id: of the MLflow run, or None where the run was not tracked.
        seconds: that everything took together.
    """

    module: PtychoPINN
    checkpoint: Path
    best_checkpoint: Path
    history: Mapping[str, list[float]]
    reconstructions: tuple[Path, ...]
    run_id: str | None
    seconds: float


def main(
    ptycho_dir: str | Path | PtychoDataset,
    probe_dir: str | Path | None = None,
    *,
    settings: Settings | None = None,
    output_dir: str | Path = "training_outputs",
    data_dir: str | Path | None = None,
    remake_map: bool = False,
    probe: Tensor | None = None,
    resume: str | Path | None = None,
    start_from: str | Path | None = None,
    overwrite: bool = False,
    reconstruct: bool = True,
    contact_sheet: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Train on a folder of scans: dataset, network, checkpoints, tracking, and a picture of the objects at the end.

    Args:
        ptycho_dir: folder of scans, one NPZ file an experiment, or a single scan; or a dataset, for example of scans in
            memory, which has its probe, its map and its data settings.
        probe_dir: folder of probes; None takes ``probeGuess`` of each scan.
        settings: of the run; None takes what the three singletons say now, or the checkpoint's when resuming.
        output_dir: where checkpoints, history, pictures and reconstructions go.
        data_dir: folder of the memory map; None takes the one that every command has for these scans
            (``folders.map_folder``).
        remake_map: build the map anew.
        probe: (N, N) or (modes, N, N) probe for every scan, in place of files.
        resume: checkpoint of a run that was interrupted; it resumes to the same weights. Into another ``output_dir``
            it brings the ``best.ckpt`` that lies beside it.
        start_from: checkpoint whose weights a new run starts with.
        overwrite: remove checkpoints, history and reconstructions of another run in ``output_dir``, right before
            training begins. Without it such a folder is refused.
        reconstruct: write the objects of the training scans at the end.
        contact_sheet: draw the object of the first scan after some epochs, into ``contact_sheet.png``.
        progress: show progress bars; None shows them in a terminal, and elsewhere prints a line an epoch. False also
            leaves out the line about what is trained, which comes first.
        callbacks: of Lightning, beside those of training.
        logger: one or several of Lightning's, beside the tracking with MLflow that the setting ``tracking`` decides.
        overrides: settings by name, whoever owns them: ``max_epochs``, ``devices``, ``gradient_clip_val`` …

    Raises:
        ConfigError: settings that do not fit together, ``output_dir`` holds another run, or a scan has a grave hint
            that the setting ``accept`` does not name.
        DataContractError: a scan or probe that breaks a clause.
        CheckpointError: a checkpoint that cannot be read or does not belong to these data or settings.
        TrainingError: the loss is not finite any more.

    Example:
        train.main("scans", "probes", max_epochs=60, gradient_clip_val=None)
    """
    begun_s = time.monotonic()
    if resume is not None and start_from is not None:
        raise ConfigError("resume continues a run and start_from begins a new one; give one of them.")
    output_dir = Path(output_dir)
    scans = () if isinstance(ptycho_dir, PtychoDataset) else folders.scan_paths(Path(ptycho_dir))
    probes = () if probe_dir is None else folders.probe_paths(scans, Path(probe_dir))
    folders.refuse_run(
        output_dir,
        resume=None if resume is None else folders.checkpoint_of(Path(resume)),
        overwrite=overwrite,
        inputs=[*scans, *probes, *([] if start_from is None else [Path(start_from)])],
    )
    saved = None if resume is None else checkpoints.read_checkpoint(resume)
    settings = _settings_of(saved, settings)
    if isinstance(ptycho_dir, PtychoDataset):
        settings = dataclasses.replace(settings, data=ptycho_dir.settings)
    settings = settings.override(overrides)
    if saved is not None:
        _same_run(saved, settings)
        _same_folder(saved, output_dir)
    accelerator(settings.training.device)
    accepted = settings.training.accept or ""
    looked_at = dict.fromkeys(ptycho_dir.sources) if isinstance(ptycho_dir, PtychoDataset) else scans
    heed_scans(looked_at, settings.data, accepted, batch_size=settings.training.batch_size)
    output_dir.mkdir(parents=True, exist_ok=True)
    data = PtychoDataModule(
        ptycho_dir, probe_dir, settings, data_dir=data_dir, remake_map=remake_map, probe=probe, progress=progress
    )
    heed_patterns(data.dataset, accepted)
    asked = settings.training.max_epochs
    epochs = asked or epochs_for(len(data.dataset))
    settings = settings.override({"max_epochs": epochs})
    module = PtychoPINN.for_dataset(data.dataset, settings)
    if saved is not None:
        _same_data(saved, module)
    if start_from is not None:
        _start_from(module, checkpoints.read_checkpoint(start_from))
    if settings.training.compile:
        module.network.compile()
    # What cannot train is refused before anything is removed.
    validate = bool(data.val_dataloader())
    if overwrite and folders.process_number() == 0:
        folders.clear_run(output_dir)
    # The environment decides where runs are tracked. To decide it here, uncomment:
    # import os
    # os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:5000"
    done = 0 if saved is None else len(saved.history.get("train_loss", ()))
    if progress is not False and folders.process_number() == 0:
        # Making MLflow's database and the first epoch take a minute on a slow machine, and show nothing.
        print(_start_line(data, module, output_dir, done, asked), file=sys.stderr, flush=True)  # noqa: T201
    state = None if saved is None else run_state.read_state(saved.path.parents[1])
    tags = _tags(scans) if settings.training.tracking and folders.process_number() == 0 else {}
    with (
        track(
            settings.training,
            parameters=_flat(module),
            output_dir=output_dir,
            tags=tags,
            continues=None if state is None or saved is None or state.run != saved.run else state.tracking,
        ) as tracker,
        quiet_lightning(),
        log_above_bars(shows_bars(progress)),
    ):
        sheet = (ContactSheet(data.dataset, output_dir, epochs),) if contact_sheet else ()
        trainer = make_trainer(
            settings.training,
            output_dir,
            validate=validate,
            callbacks=(*tracker.callbacks, BlankWatch(data.dataset), *sheet, *callbacks),
            logger=logger,
            progress=progress,
            resume=None if saved is None else saved.path,
        )
        (record,) = (each for each in trainer.callbacks if isinstance(each, RunRecord))  # type: ignore[attr-defined]
        if tracker.run_id is not None and tracker.uri is not None:
            record.tracking = {"uri": tracker.uri, "run_id": tracker.run_id}
        if saved is not None and _has_ended(saved, epochs):
            load_weights(module.network, saved, dict(saved.weights))
            module.history = {name: list(values) for name, values in saved.history.items()}
            module.run = saved.run
            if trainer.is_global_zero:
                write_history(module.history, output_dir)
                _note_end(module, output_dir)
        else:
            if saved is not None:
                _tell_differences(saved, settings.training, epochs)
            trainer.fit(module, datamodule=data, ckpt_path=None if saved is None else saved.path)
        return _finish(
            module, trainer, data.dataset, output_dir, tracker, begun_s, reconstruct=reconstruct, progress=progress
        )


def _start_line(data: PtychoDataModule, module: PtychoPINN, output_dir: Path, done: int, asked: int | None) -> str:
    """Return what a training is about to do, in one line.

    Args:
        data: of the run.
        module: to be trained; its settings have the number of epochs.
        output_dir: of the run.
        done: epochs that a resumed run has trained before.
        asked: ``max_epochs`` as the user has it; None lets the number of groups decide.
    """
    dataset, training = data.dataset, module.settings.training
    train, validation = loaders(dataset, training)
    counts = {
        "scan": len(dataset.names),
        "pattern": len(dataset.positions_px),
        "group": len(dataset),
    }
    counted = ", ".join(f"{number} {name}" + "s" * (number != 1) for name, number in counts.items())
    held_back = "" if validation is None else f", {len(validation.batch_sampler.groups)} of them for validation"
    epochs = f"{training.max_epochs} epochs" + ("" if asked else " (--max-epochs N for another number)")
    after = f" after {done} done" if done else ""
    parameters = sum(each.numel() for each in module.network.parameters())
    device = training.device if training.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return (
        f"training on {counted}{held_back}: {epochs}{after}, {len(train)} batches of {training.batch_size} each; "
        f"{parameters:,} parameters, on {device}; results go to {output_dir}"
    )


def _settings_of(saved: checkpoints.Checkpoint | None, settings: Settings | None) -> Settings:
    if settings is not None:
        return settings
    return Settings.current() if saved is None else saved.settings


def _has_ended(saved: checkpoints.Checkpoint, epochs: int) -> bool:
    """Whether nothing is left to train of a run, given so many epochs.

    A run that ended early has ended as well; only more epochs than it was given make it go on.
    """
    done = len(saved.history.get("train_loss", ()))
    given = saved.settings.training.max_epochs or done
    if saved.finished and epochs <= given:
        log.info("%s: training had come to its end", saved.path)
        return True
    if done < epochs:
        return False
    within = " and stands within another" if saved.within_epoch else ""
    log.warning(
        "%s: the run has done %d epochs%s, and max_epochs = %d asks for no more; nothing is trained.",
        saved.path, done, within, epochs,
    )  # fmt: skip
    return True


def _note_end(module: PtychoPINN, output_dir: Path) -> None:
    """Note a run as finished that had come to its end before."""
    state = run_state.read_state(output_dir)
    if state is not None and state.state != "finished":
        run_state.write_state(output_dir, dataclasses.replace(state, state="finished"))


def _tell_differences(saved: checkpoints.Checkpoint, training: TrainingSettings, epochs: int) -> None:
    """Say where a resumed run will not end with the weights of one that was never interrupted."""
    before = saved.settings.training
    given = before.max_epochs
    if given is not None and given != epochs and training.scheduler == "WarmupCosine":
        log.warning(
            "max_epochs = %d, and was %d: the learning rate follows the schedule of %d epochs from here on, so the "
            "weights will not be those of a run that had %d from its start.", epochs, given, epochs, epochs,
        )  # fmt: skip
    for name in ("device", "devices", "num_nodes", "strategy"):
        theirs, ours = getattr(before, name), getattr(training, name)
        if theirs != ours:
            log.warning(
                "%s = %s, and was %s: training continues, but its weights will not be bit by bit those of a run that "
                "was not interrupted.", name, ours, theirs,
            )  # fmt: skip


def _same_run(saved: checkpoints.Checkpoint, settings: Settings) -> None:
    """Raise where a resumed run would not be the run that was interrupted."""
    theirs, ours = saved.settings.as_dict(), settings.as_dict()
    for owner, values in ours.items():
        for name, value in values.items():
            if theirs[owner][name] != value and not (owner == "training" and name in RESUMABLE_WITH):
                raise CheckpointError(
                    f"{saved.path}: trained with {owner} setting {name} = {theirs[owner][name]!r}, now {value!r}. "
                    "Resume with the settings of the run, or begin a new one with start_from."
                )


def _same_folder(saved: checkpoints.Checkpoint, output_dir: Path) -> None:
    """Raise where a checkpoint is of another run than the one in the folder, which it would take the place of."""
    there = run_state.read_state(output_dir)
    if there is not None and saved.run not in (None, there.run):
        raise CheckpointError(
            f"{saved.path}: a checkpoint of run {saved.run}, and {output_dir} holds run {there.run}. Resume it into "
            "another output_dir."
        )


def _same_data(saved: checkpoints.Checkpoint, module: PtychoPINN) -> None:
    for name in ("scans", "groups", "patterns", "positions_sum_px", "nphotons"):
        theirs, ours = saved.statistics.get(name), module.statistics[name]
        if theirs != ours:
            raise CheckpointError(
                f"{saved.path}: trained on data with {name} = {theirs!r}, these have {ours!r}. Resume with the scans "
                "of the run, or begin a new one with start_from."
            )


def _start_from(module: PtychoPINN, content: checkpoints.Checkpoint) -> None:
    """Take the weights of a checkpoint; probe and scale stay those of the new data."""
    own = dict(module.network.state_dict())
    weights = dict(content.weights) | {name: own[name] for name in ("probe_parts", "log_scale")}
    load_weights(module.network, content, weights)


def _flat(module: PtychoPINN) -> dict[str, Any]:
    """Return every setting and statistic under one name, for tracking."""
    owners = module.settings.as_dict().items()
    flat = {f"{owner}.{name}": value for owner, values in owners for name, value in values.items()}
    flat |= {f"network.{name}": value for name, value in dataclasses.asdict(module.network.settings).items()}
    return flat | {f"statistics.{name}": value for name, value in module.statistics.items()}


def _tags(scans: Sequence[Path]) -> dict[str, str]:
    """Return what an MLflow run should say of its program and data: versions, commit, SHA-256 of the scans."""
    tags = {f"version.{name}": importlib.metadata.version(name) for name in ("ptycho-torch", "torch", "lightning")}
    tags["version.python"] = platform.python_version()
    repository = Path(__file__).parents[1]
    if (repository / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(
                ["git", "-C", str(repository), "rev-parse", "HEAD"],
                capture_output=True, text=True, timeout=_GIT_S, check=True,
            )  # fmt: skip
            tags["commit"] = found.stdout.strip()
    for scan in scans[:_MOST_SCANS]:
        with scan.open("rb") as file:
            tags[f"scan.{scan.stem}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return tags


def _finish(
    module: PtychoPINN,
    trainer: pl.Trainer,
    dataset: PtychoDataset,
    output_dir: Path,
    tracker: Tracker,
    begun_s: float,
    *,
    reconstruct: bool,
    progress: bool | None,
) -> TrainingResult:
    """Write objects and pictures and judge the objects, by the first process."""
    last, best = (output_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    files: tuple[Path, ...] = ()
    if trainer.is_global_zero:
        tracker.log_file(output_dir / "history.png", folder="pictures")
        for path in (last, best):
            if path.exists():
                tracker.log_file(path, folder="checkpoints")
        if reconstruct:
            objects = inference.reconstruct(module, dataset, progress=progress)
            results = inference.write_results(
                objects,
                module,
                dataset,
                output_dir / "reconstructions",
                source=last,
                geometries=inference.geometries_of(dataset),
                overwrite=True,
            )
            for result in results:
                for picture in result.pictures:
                    tracker.log_file(picture, folder="pictures")
            files = tuple(result.npz for result in results)
        else:
            for number, check in check_objects(module, dataset).items():
                inference.warn_of(dataset.names[number], check)
    seconds = time.monotonic() - begun_s
    return TrainingResult(module, last, best, module.history, files, tracker.run_id, seconds)
