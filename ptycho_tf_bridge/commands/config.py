"""``ptycho-bridge config``: settings between the TensorFlow reference and this project, with a report.

<doc-ref type="contract">specs/configuration.yaml</doc-ref> is the table that it reads.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from ptycho_tf_bridge.config_values import Change, Finding, shown_as
from ptycho_torch.config_params import Settings
from ptycho_torch.contracts.config_schema import load_schema, same_value
from ptycho_torch.errors import ConfigError, one_line

FORMATS = ("torch", "tf-yaml")

_TITLES: tuple[tuple[Change, str], ...] = (
    ("unknown", "Not read: the reference drops such keys without a word"),
    ("collision", "A name that has another meaning too"),
    ("ignored", "Stated, but the reference does something else"),
    ("default", "Stated only on one side; the other has its default"),
    ("converted", "Spelled differently"),
    ("renamed", "Another name, the same value"),
    ("not here", "No counterpart here"),
    ("not there", "No counterpart there"),
    ("same", "The same"),
)
"""Every change with its heading, in the order of the report."""

_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``config``."""
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="to torch: a YAML file of the reference, or a legacy dictionary as YAML or JSON; to tf-yaml: a YAML file "
        "of ptycho-torch, or a checkpoint (.ckpt)",
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        required=True,
        help="torch: settings for ptycho-torch train --config; tf-yaml: for the reference's --config",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="YAML file to write (default: standard output)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--as-run",
        action="store_true",
        help="to torch: take what the reference really ran with, where it does not read a field or a flag wins over it",
    )
    parser.add_argument("--full", action="store_true", help="report fields that stay the same as well")


def run(options: argparse.Namespace) -> int:
    """Translate one file; return 0. The report goes to standard error where the translation takes standard output.

    Raises:
        ConfigError: a file or a setting that cannot be; it names file, line and field.
    """
    from ptycho_torch.files.folders import refuse_outputs
    from ptycho_torch.files.npz_writer import replacing

    if options.output is not None:
        refuse_outputs([options.output], [options.file], overwrite=options.overwrite)
    if options.as_run and options.to != "torch":
        raise ConfigError(f"--as-run belongs to --to torch, not to --to {options.to}; leave it out.")
    text, report = _translated(options.file, options.to, as_run=options.as_run)
    lines = "\n".join(report_lines(report, full=options.full))
    if options.output is None:
        sys.stdout.write(text)
        print(lines, file=sys.stderr)  # noqa: T201 - the command's report
        return 0
    with replacing(options.output, overwrite=options.overwrite) as file:
        file.write(text.encode())
    print(f"{lines}\n\n  {options.output}")  # noqa: T201 - the command's answer
    return 0


def _translated(path: Path, to: str, *, as_run: bool) -> tuple[str, tuple[Finding, ...]]:
    from ptycho_tf_bridge.config import from_yaml, to_tensorflow_yaml
    from ptycho_torch.commands.settings_options import config_text, read_config

    if to == "torch":
        translation = from_yaml(path, as_run=as_run)
        return config_text(translation.settings), translation.report
    if path.suffix == ".ckpt":
        from ptycho_torch.files.folders import checkpoint_of

        checkpoint_of(path)
        from ptycho_torch.training.checkpoint import read_checkpoint

        return to_tensorflow_yaml(read_checkpoint(path).settings)
    return to_tensorflow_yaml(Settings().override(read_config(path)))


def report_lines(report: Sequence[Finding], *, full: bool = False) -> Iterator[str]:
    """Yield a report for the terminal: what changed by kind of change, each with its reason, and a count of the rest.

    Args:
        report: findings of a translation.
        full: also what stays the same, and settings at their default that have no counterpart.
    """
    hidden = 0
    for change, title in _TITLES:
        rows = [finding for finding in report if finding.change == change]
        shown = [finding for finding in rows if full or _matters(finding)]
        hidden += len(rows) - len(shown)
        if not shown:
            continue
        yield from ("", title)
        width = min(max(len(_side(finding, "there")) for finding in shown), _WIDTH // 2)
        # What has one reason is said once.
        for reason in dict.fromkeys(finding.reason for finding in shown):
            for finding in (each for each in shown if each.reason == reason):
                idle = "" if finding.in_effect else "   (not in effect there)"
                yield f"  {_side(finding, 'there'):<{width}}  →  {_side(finding, 'here')}{idle}"
            yield from textwrap.wrap(reason, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    yield ""
    yield f"{len(report)} findings, {hidden} of them without news" + (" (--full shows them)" if hidden else "")


def _matters(finding: Finding) -> bool:
    """Whether somebody who changes sides has to know it."""
    if finding.change == "same":
        return not finding.in_effect
    if finding.change == "not there":
        setting = load_schema().settings[finding.field_here]
        return not same_value(finding.value_here, setting.default) or "differs" in finding.reason
    return True


def _side(finding: Finding, side: str) -> str:
    name: str = getattr(finding, f"field_{side}")
    value = getattr(finding, f"value_{side}")
    if name:
        return one_line(f"{name} = {shown_as(value)}")
    return "—" if value is None else f"({shown_as(value)})"
