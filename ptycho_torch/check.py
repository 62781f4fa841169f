"""``ptycho-torch check-data``: scan files held against the data contract, and what a user should know of them.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ptycho_torch.arguments import add_probe_dir
from ptycho_torch.config_params import DataSettings
from ptycho_torch.contract import load_contract
from ptycho_torch.errors import DataContractError
from ptycho_torch.grouping import group_scan
from ptycho_torch.preparation import derive, median_step
from ptycho_torch.scan import Examination, Finding, Scan, examine, probe_paths, read_probe, scan_paths

CHECKED = tuple(clause.id for clause in load_contract().of("npz", "scan") if clause.id != "SCAN-14")
"""Clauses that are judged of each file."""

_WORDS = {"holds": "holds", "broken": "BROKEN", "notice": "notice", "not judged": "not judged"}


def describe(examination: Examination, hints: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines that tell what became of every clause of one file."""
    clauses = load_contract().clauses
    scan = examination.scan
    header = str(examination.path)
    if scan is not None:
        side = scan.stack.frame_px
        header += f": {scan.stack.count} patterns of {side} × {side} pixels, {examination.mean_energy:.6g} counts each"
    yield header
    for finding in examination.findings:
        text = f": {finding.text}" if finding.state == "notice" else ""
        yield f"  {_WORDS[finding.state]:<11}{finding.clause:<9}{clauses[finding.clause].title}{text}"
        if finding.state == "broken":
            yield f"             {finding.text}"
    for hint in hints:
        yield f"  hint       {hint}"


def scan_numbers(scan: Scan, mean_energy: float, gridsize: int) -> tuple[str, ...]:
    """Return the settings that follow from a scan, as lines [clause PREP-02]; a scan without groups has none."""
    settings = DataSettings(gridsize=gridsize)
    positions = scan.positions_px
    members = positions[group_scan(positions, settings)]  # (L, C, 2)
    reach = np.abs(members - members.mean(axis=1, keepdims=True)).max(axis=(1, 2))
    derived = derive(
        mean_counts=mean_energy, step_px=median_step(positions), reach_px=reach, gridsize=settings.gridsize
    )
    return derived.describe()


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
    """Judge every file; return 0 only if each holds every clause."""
    if options.plot is not None:
        options.plot.mkdir(parents=True, exist_ok=True)
    passed = total = 0
    for path in options.paths:
        try:
            scans = scan_paths(path)
        except DataContractError as err:
            total += 1
            print(f"{path}\n  {_WORDS['broken']:<11}{err.clause:<9}{err}", flush=True)  # noqa: T201
            continue
        for scan in scans:
            total += 1
            passed += _judge(scan, options)
    print(f"{passed} of {total} files hold every clause")  # noqa: T201 - the command's answer
    return 0 if passed == total else 1


def _judge(path: Path, options: argparse.Namespace) -> bool:
    """Print what became of one file, and say whether it passed."""
    examination = examine(path)
    if options.probe_dir is not None:
        examination = _with_probe(examination, options.probe_dir)
    hints: tuple[str, ...] = ()
    scan = examination.scan
    if scan is not None and examination.mean_counts is not None and options.hints:
        from ptycho_torch.hints import scan_hints

        hints = tuple(scan_hints(scan, examination.mean_counts))
    lines = list(describe(examination, hints))
    if scan is not None and examination.mean_energy is not None:
        try:
            numbers = scan_numbers(scan, examination.mean_energy, options.gridsize)
        except DataContractError as err:
            numbers = (str(err),)
        lines += [f"  {f'g = {options.gridsize}':<11}{line}" for line in numbers]
    print("\n".join(lines), flush=True)  # noqa: T201
    if options.plot is not None and examination.mean_counts is not None:
        from ptycho_torch.plots import plot_scan

        picture = options.plot / f"{path.stem}.png"
        plot_scan(examination, picture, hints)
        print(f"  picture    {picture}", file=sys.stderr, flush=True)  # noqa: T201
    return examination.passed


def _with_probe(examination: Examination, probe_dir: Path) -> Examination:
    """Judge the probe that a scan would get from a probe folder, and put it in the scan's place for one."""
    if examination.scan is None:
        return examination
    scan: Scan | None = examination.scan
    findings = []
    try:
        (probe,) = probe_paths((examination.path,), probe_dir)
        scan = dataclasses.replace(examination.scan, probe=read_probe(probe, examination.scan.stack.frame_px))
        findings.append(Finding("PROBE-01", "notice", str(probe)))
    except DataContractError as err:
        scan = None
        findings.append(Finding(err.clause or "PROBE-01", "broken", str(err), err))
    return dataclasses.replace(examination, scan=scan, findings=(*examination.findings, *findings))
