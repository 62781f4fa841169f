"""``ptycho-torch train``: settings of flags and YAML, training, and what came of it.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptycho_torch.commands.arguments import add_data_dir, add_probe_dir, add_progress
from ptycho_torch.commands.settings_options import (
    add_setting_flag,
    add_setting_flags,
    config_text,
    read_config,
    settings_from,
)
from ptycho_torch.config_params import PRESETS, Settings
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import (
    checkpoint_of,
    map_folder,
    probe_paths,
    process_number,
    refuse_damaged,
    refuse_run,
    run_files,
    scan_paths,
)  # fmt: skip
from ptycho_torch.training.interruption import RunInterrupted, ending_at_signals, is_requeued_at

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_OUTPUT_DIR = Path("training_outputs")
_AUTO = "auto"

_MOST_USED = (
    ("training", "max_epochs"),
    ("data", "gridsize"),
    ("data", "N"),
    ("training", "batch_size"),
    ("training", "learning_rate"),
    ("training", "device"),
)
"""Settings whose flags stand before all others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``: what most runs need first, then the rest by what it is about."""
    # The whole usage is as long as the list of settings.
    parser.usage = "%(prog)s [options] [settings] SCANS"
    parser.add_argument(
        "ptycho_dir", nargs="?", type=Path, metavar="SCANS", help="a folder of scans (.npz), or one scan"
    )
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=_OUTPUT_DIR,
        metavar="DIR",
        help=f"checkpoints, losses, objects and pictures (default {_OUTPUT_DIR})",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="settings under model:, training: and data:; flags win over the file, the file over the defaults",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings below file and flags: reference trains as the TensorFlow reference does (default: our own)",
    )
    for owner, name in _MOST_USED:
        add_setting_flag(parser, owner, name)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume",
        metavar="CKPT",
        help=f"resume an interrupted run with its settings: a checkpoint, the folder of a run, or {_AUTO} for the run "
        "in DIR, which begins where there is none yet",
    )
    begin.add_argument(
        "--start-from",
        type=Path,
        metavar="CKPT",
        help="begin a new run with the weights of this checkpoint, or of the run in this folder",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the run that is in DIR, right before training begins"
    )
    add_probe_dir(parser)
    parser.add_argument(
        "--reconstruct",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the objects of the scans at the end (default)",
    )
    parser.add_argument(
        "--contact-sheet",
        action="store_true",
        help="draw the object of the first scan after some epochs, in one picture: contact_sheet.png",
    )
    add_progress(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings as a file for --config, and do nothing else"
    )
    memory_map = parser.add_argument_group("memory map", "each pattern once, built once for scans and settings")
    add_data_dir(memory_map)
    memory_map.add_argument("--remake-map", action="store_true", help="build it again")
    add_setting_flags(parser, first=[name for _, name in _MOST_USED])


def run(options: argparse.Namespace) -> int:
    """Train; return 0 where training has come to its end, or 128 and the signal that interrupted it.

    Raises:
        PtychoError: settings, scans or checkpoints that do not fit, or a loss that is not finite any more.
    """
    resume = _resumed(options)
    if options.print_config:
        print(config_text(_settings(options, resume)), end="")  # noqa: T201 - the command's answer
        return 0
    if options.ptycho_dir is None:
        raise ConfigError("SCANS is missing: name a folder of scans, or one scan (.npz).")
    start_from = None if options.start_from is None else checkpoint_of(options.start_from)
    overwrite = _check_paths(options, resume)
    settings = _settings(options, resume)
    try:
        with ending_at_signals():
            from ptycho_torch import train

            result = train.main(
                options.ptycho_dir,
                options.probe_dir,
                settings=settings,
                output_dir=options.output_dir,
                data_dir=options.data_dir,
                remake_map=options.remake_map,
                resume=resume,
                start_from=start_from,
                overwrite=overwrite,
                reconstruct=options.reconstruct,
                contact_sheet=options.contact_sheet,
                progress=options.progress,
            )
    except (KeyboardInterrupt, SystemExit) as err:
        # Lightning makes a SystemExit of an interrupt that comes while it has no handler of ours.
        if not isinstance(err, KeyboardInterrupt | RunInterrupted) and not isinstance(
            err.__context__, KeyboardInterrupt
        ):
            raise
        if process_number() == 0:
            requeued = isinstance(err, RunInterrupted) and is_requeued_at(err.signal)
            print(_advice(options, requeued=requeued), file=sys.stderr)  # noqa: T201
        return 128 + err.signal if isinstance(err, RunInterrupted) else INTERRUPTED
    # Of several processes the first one speaks.
    if result.module.global_rank == 0:
        for line in _outcome(result.history, result.module.settings.training.max_epochs, result.seconds):
            print(line)  # noqa: T201
        if result.module.settings.model.intensity_scale is None:
            known = result.module.statistics
            print(f"nphotons = {known['nphotons']:.6g} ({known['nphotons_source']})")  # noqa: T201
        products = [path.with_suffix(".h5") for path in result.reconstructions]
        written = [*result.reconstructions, *filter(Path.exists, products)]
        for path in (result.checkpoint, result.best_checkpoint, options.output_dir / "history.png", *written):
            print(f"  {path}")  # noqa: T201
        for path in result.reconstructions:
            print(f"  {path.with_suffix('.png')}")  # noqa: T201
        print(f"  {map_folder(options.ptycho_dir, options.data_dir)} (memory map; infer uses it too)")  # noqa: T201
    return 0


def _resumed(options: argparse.Namespace) -> Path | None:
    """Return the checkpoint to resume, or None for a run that begins."""
    if options.resume is None:
        return None
    return checkpoint_of(Path(options.resume)) if options.resume != _AUTO else _own_checkpoint(options)


def _own_checkpoint(options: argparse.Namespace) -> Path | None:
    """Return the checkpoint that the run in the folder resumes from, if there is one."""
    from ptycho_torch.training.run_state import own_checkpoint

    return own_checkpoint(options.output_dir)


def _check_paths(options: argparse.Namespace, resume: Path | None) -> bool:
    """Check what needs no PyTorch, so that a wrong path is told at once; return whether the old run is to go.

    Raises:
        PtychoError: scans, probes or settings that are not there, or an output folder with another run in it.
    """
    scans = scan_paths(options.ptycho_dir)
    probes = () if options.probe_dir is None else probe_paths(scans, options.probe_dir)
    refuse_damaged((*scans, *probes))
    if options.config is not None:
        read_config(options.config)
    # A run that was interrupted before its first checkpoint leaves losses, which nobody can resume.
    remains = run_files(options.output_dir)
    overwrite = bool(options.overwrite)
    if options.resume == _AUTO and resume is None and remains:
        from ptycho_torch.training.run_state import read_state, set_aside

        state = read_state(options.output_dir)
        unfinished = state is not None and state.state != "finished"
        overwrite |= unfinished or all(path.name.startswith("history.") for path in remains)
        # Checkpoints are there, and none of them is of the run that was interrupted.
        if unfinished and any(path.suffix == ".ckpt" for path in remains) and process_number() == 0:
            set_aside(options.output_dir)
    how = f"Resume it: {_resuming(options)}; replace" if _own_checkpoint(options) is not None else "Replace"
    refuse_run(
        options.output_dir,
        resume=resume,
        overwrite=overwrite,
        inputs=[*scans, *probes, *(path for path in (options.config, options.start_from) if path is not None)],
        remedy=f"{how} it with --overwrite, or choose another folder with -o.",
    )
    return overwrite


def _settings(options: argparse.Namespace, resume: Path | None) -> Settings:
    """Return the settings: flags over file over preset over those of the checkpoint to resume, else the defaults."""
    base = Settings()
    if resume is not None:
        from ptycho_torch.training.checkpoint import read_checkpoint

        base = read_checkpoint(resume).settings
    # Given again with a resumed run, as a requeued script does, a preset changes nothing; another one is refused.
    base = base.override(PRESETS.get(options.preset, {}))
    return settings_from(options, options.config, base)


def _outcome(history: Mapping[str, Sequence[float]], max_epochs: int | None, seconds: float) -> list[str]:
    """Return what the losses say, and how long all of it took."""
    from ptycho_torch.training.progress import duration

    losses = history.get("train_loss", ())
    if not losses:
        return ["no epoch was trained"]
    early = " (early stop)" if max_epochs is not None and len(losses) < max_epochs else ""
    lines = [f"{len(losses)} epochs{early}, {duration(seconds)}: training loss {losses[0]:.6g} → {losses[-1]:.6g}"]
    if validation := history.get("val_loss", ()):
        lines[0] += f", validation loss {validation[0]:.6g} → {validation[-1]:.6g}"
    return lines


def _advice(options: argparse.Namespace, *, requeued: bool) -> str:
    """Return how to resume after an interrupt; SLURM starts a requeued job with the command in its script."""
    if requeued and options.resume is not None:
        return "interrupted; the run resumes when SLURM starts the job again"
    if requeued:
        return f"interrupted; to resume when SLURM starts it again, the job's script needs: {_resuming(options)}"
    if _own_checkpoint(options) is None:
        return "interrupted before the first checkpoint; restart, with --checkpoint-every-n-steps for earlier ones"
    return f"interrupted; resume with: {_resuming(options)}"


def _resuming(options: argparse.Namespace) -> str:
    """Return the command line that resumes the run."""
    words = ["ptycho-torch", "train", str(options.ptycho_dir), "-o", str(options.output_dir)]
    if options.probe_dir is not None:
        words += ["--probe-dir", str(options.probe_dir)]
    if options.data_dir is not None:
        words += ["--data-dir", str(options.data_dir)]
    return shlex.join([*words, "--resume", _AUTO])
