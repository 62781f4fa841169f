"""``ptycho-torch check-data``: scan files checked against the data contract.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_torch.commands.arguments import add_probe_dir
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.folders import distinct_stems, refuse_damaged, refuse_folder, refuse_outputs, scan_paths

if TYPE_CHECKING:
    from ptycho_torch.check import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``check-data``."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a scan (.npz), or a folder of scans")
    add_probe_dir(parser)
    parser.add_argument("--gridsize", type=int, default=2, help="g, for the derived settings (default 2)")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write a picture of each scan to DIR")
    parser.add_argument(
        "--hints", action=argparse.BooleanOptionalAction, default=True, help="look for wrong orientation, units, domain"
    )


def run(options: argparse.Namespace) -> int:
    """Judge every file; return 0 only if each holds every clause.

    Raises:
        ConfigError: the folder of the pictures cannot be made.
    """
    conclusion: list[str] = []
    scans: list[Path] = []
    for path in options.paths:
        try:
            found = scan_paths(path)
        except DataContractError as err:
            conclusion.append(f"  {err}")
            continue
        for scan in found:
            try:
                refuse_damaged((scan,))
                scans.append(scan)
            except DataContractError as err:
                conclusion.append(f"  {err}")
    pictures: dict[Path, Path] = {}
    if options.plot is not None:
        refuse_folder(options.plot)
        pictures = {scan: options.plot / f"{stem}.png" for scan, stem in distinct_stems(scans).items()}
        refuse_outputs(pictures.values(), scans, overwrite=True)
    passed, total, notices = 0, len(conclusion) + len(scans), 0
    if scans:
        from ptycho_torch import check
    for scan in scans:
        verdict = check.judge(scan, options.probe_dir, gridsize=options.gridsize, with_hints=options.hints)
        print(*verdict.details(every_clause=options.verbose), sep="\n", flush=True)  # noqa: T201 - the answer
        passed += verdict.examination.passed
        notices += sum(finding.state == "notice" for finding in verdict.examination.findings)
        conclusion += verdict.conclusion()
        if scan in pictures:
            _plot(verdict, pictures[scan])
    more = f" ({notices} notices: -v shows them)" if notices and not options.verbose else ""
    print(f"{passed} of {total} files hold every clause{more}", *conclusion, sep="\n")  # noqa: T201 - the verdict
    return 0 if passed == total else 1


def _plot(verdict: Verdict, picture: Path) -> None:
    """Write the picture of a scan whose patterns could be read."""
    from ptycho_torch.reconstruction.plots import plot_scan

    if verdict.examination.mean_counts is None:
        return
    plot_scan(verdict.examination, picture, [hint.text for hint in verdict.hints])
    print(f"  picture    {picture}", file=sys.stderr, flush=True)  # noqa: T201
