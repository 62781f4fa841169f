"""``ptycho-torch train``: settings of flags and YAML, training, and what came of it.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptycho_torch.arguments import add_probe_dir, add_progress
from ptycho_torch.config_params import PRESETS, Settings
from ptycho_torch.errors import ConfigError
from ptycho_torch.settings_options import add_setting_flags, config_text, settings_from

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_OUTPUT_DIR, _DATA_DIR = Path("training_outputs"), Path("data/memmap")
_AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``."""
    # The whole usage is as long as the list of settings.
    parser.usage = "%(prog)s [options] [settings] SCANS"
    parser.add_argument(
        "ptycho_dir", nargs="?", type=Path, metavar="SCANS", help="a folder of scans (.npz), or one scan"
    )
    add_probe_dir(parser)
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=_OUTPUT_DIR,
        metavar="DIR",
        help=f"checkpoints, losses, objects and pictures (default {_OUTPUT_DIR})",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=_DATA_DIR,
        metavar="DIR",
        help=f"folder of the memory map, built once for scans and settings (default {_DATA_DIR})",
    )
    parser.add_argument("--remake-map", action="store_true", help="build the memory map anew")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="settings under model:, training: and data:; flags win over the file, the file over the defaults",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings as a file for --config, and do nothing else"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings below file and flags: reference trains as the TensorFlow reference does (default: our own)",
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume",
        metavar="CKPT",
        help=f"go on with an interrupted run and its settings; {_AUTO} takes DIR/checkpoints/last.ckpt, and begins "
        "anew where it is not there",
    )
    begin.add_argument(
        "--start-from", type=Path, metavar="CKPT", help="begin a new run with the weights of this checkpoint"
    )
    parser.add_argument(
        "--reconstruct",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the objects of the scans at the end (default)",
    )
    add_progress(parser)
    add_setting_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Train; return 0, or 130 where the user interrupted it.

    Raises:
        PtychoError: settings, scans or checkpoints that do not fit, or a loss that is no number any more.
    """
    resume = _resumed(options)
    if options.print_config:
        print(config_text(_settings(options, resume)), end="")  # noqa: T201 - the command's answer
        return 0
    if options.ptycho_dir is None:
        raise ConfigError("SCANS is missing: name a folder of scans, or one scan (.npz).")
    settings = _settings(options, resume)
    from ptycho_torch import train

    try:
        result = train.main(
            options.ptycho_dir,
            options.probe_dir,
            settings=settings,
            output_dir=options.output_dir,
            data_dir=options.data_dir,
            remake_map=options.remake_map,
            resume=resume,
            start_from=options.start_from,
            reconstruct=options.reconstruct,
            progress=options.progress,
        )
    except (KeyboardInterrupt, SystemExit) as err:
        # Lightning makes a SystemExit of an interrupt.
        if isinstance(err, SystemExit) and not isinstance(err.__context__, KeyboardInterrupt):
            raise
        print(_advice(options), file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    # Of several processes the first one speaks.
    if result.module.global_rank == 0:
        for line in _outcome(result.history, result.module.settings.training.max_epochs, result.seconds):
            print(line)  # noqa: T201
        paths = [result.checkpoint, result.best_checkpoint, options.output_dir / "history.png", *result.reconstructions]
        for path in paths:
            print(f"  {path}")  # noqa: T201
        for path in result.reconstructions:
            print(f"  {path.with_suffix('.png')}")  # noqa: T201
        print(f"  {options.data_dir} (memory map)")  # noqa: T201
    return 0


def _resumed(options: argparse.Namespace) -> Path | None:
    if options.resume != _AUTO:
        return None if options.resume is None else Path(options.resume)
    last = _last_checkpoint(options)
    return last if last.is_file() else None


def _last_checkpoint(options: argparse.Namespace) -> Path:
    path: Path = options.output_dir / "checkpoints" / "last.ckpt"
    return path


def _settings(options: argparse.Namespace, resume: Path | None) -> Settings:
    """Return the settings: flags over file over preset over those of the checkpoint to resume, else the defaults."""
    base = Settings()
    if resume is not None:
        from ptycho_torch.checkpoint import read_checkpoint

        base = read_checkpoint(resume).settings
    # Given again with a resumed run, as a requeued script does, a preset changes nothing; another one is refused.
    base = base.override(PRESETS.get(options.preset, {}))
    return settings_from(options, options.config, base)


def _outcome(history: Mapping[str, Sequence[float]], max_epochs: int | None, seconds: float) -> list[str]:
    """Return what the losses say, and how long all of it took."""
    from ptycho_torch.progress import duration

    losses = history.get("train_loss", ())
    if not losses:
        return ["no epoch was trained"]
    early = " (early stop)" if max_epochs is not None and len(losses) < max_epochs else ""
    lines = [f"{len(losses)} epochs{early}, {duration(seconds)}: training loss {losses[0]:.6g} → {losses[-1]:.6g}"]
    if validation := history.get("val_loss", ()):
        lines[0] += f", validation loss {validation[0]:.6g} → {validation[-1]:.6g}"
    return lines


def _advice(options: argparse.Namespace) -> str:
    """Return how to go on after an interrupt."""
    if not _last_checkpoint(options).is_file():
        return "interrupted before the first checkpoint; begin anew, with --checkpoint-every-n-steps for earlier ones"
    words = ["ptycho-torch", "train", str(options.ptycho_dir), "-o", str(options.output_dir)]
    if options.probe_dir is not None:
        words += ["--probe-dir", str(options.probe_dir)]
    if options.data_dir != _DATA_DIR:
        words += ["--data-dir", str(options.data_dir)]
    return f"interrupted; go on with: {shlex.join([*words, '--resume', _AUTO])}"
