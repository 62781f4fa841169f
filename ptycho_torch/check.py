"""Scan files checked against the data contract, and what a user should know of them.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.data.grouping import group_file
from ptycho_torch.data.photons import METADATA, normalised_notice
from ptycho_torch.data.preparation import derive, median_step
from ptycho_torch.data.scan import Examination, Finding, Scan, examine, open_scan, read_probe, sample_patterns
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.folders import probe_paths
from ptycho_torch.importer.hints import Hint, ScanView, hint_orientation, scan_hints
from ptycho_torch.importer.orientation import judge_orientation

CHECKED = tuple(clause.id for clause in load_contract().of("npz", "scan") if clause.id != "SCAN-14")
"""Clauses that are judged of each file."""

_WORDS = {"holds": "holds", "broken": "BROKEN", "notice": "notice", "not judged": "not judged"}


def describe(examination: Examination, *, every_clause: bool = True) -> Iterator[str]:
    """Yield the lines that tell what became of one file: of every clause, or of the broken ones only."""
    clauses = load_contract().clauses
    scan = examination.scan
    header = str(examination.path)
    if scan is not None:
        side = scan.stack.frame_px
        header += f": {scan.stack.count} patterns of {side} × {side} pixels, {examination.mean_energy:.6g} counts each"
    yield header
    for finding in examination.findings:
        if not (every_clause or finding.state == "broken"):
            continue
        text = f": {finding.text}" if finding.state == "notice" else ""
        yield f"  {_WORDS[finding.state]:<11}{finding.clause:<9}{clauses[finding.clause].title}{text}"
        if finding.state == "broken":
            yield f"             {finding.text}"


def scan_numbers(scan: Scan, mean_energy: float, gridsize: int) -> tuple[str, ...]:
    """Return the settings that follow from a scan, as lines [clause PREP-02]; a scan without groups has none."""
    settings = DataSettings(gridsize=gridsize)
    positions = scan.positions_px
    members = positions[np.concatenate(list(group_file(scan, positions, settings).values()))]  # (L, C, 2)
    reach = np.abs(members - members.mean(axis=1, keepdims=True)).max(axis=(1, 2))
    derived = derive(
        mean_counts=mean_energy,
        step_px=median_step(positions),
        reach_px=reach,
        gridsize=settings.gridsize,
        nphotons=scan.nphotons,
        nphotons_source=f"of {METADATA} in the scan",
    )
    return derived.describe()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one file.

    Attributes:
        path: the file.
        examination: what was found, clause by clause.
        hints: what looks wrong in it though it holds every clause.
        numbers: the settings that follow from it, as lines.
    """

    path: Path
    examination: Examination
    hints: tuple[Hint, ...]
    numbers: tuple[str, ...]

    def details(self, *, every_clause: bool) -> Iterator[str]:
        """Yield the header, the clauses that are broken, or all of them, and the settings that follow."""
        yield from describe(self.examination, every_clause=every_clause)
        yield from (f"  {line}" for line in self.numbers)

    def conclusion(self) -> Iterator[str]:
        """Yield what is wrong with the file, and what looks wrong; nothing where all is well."""
        broken = [finding.clause for finding in self.examination.findings if finding.state == "broken"]
        if broken:
            yield f"  {self.path}: breaks {', '.join(broken)}"
        yield from (f"  {self.path}: {hint}" for hint in self.hints)
        if grave := ",".join(dict.fromkeys(hint.kind for hint in self.hints if hint.grave)):
            yield f"  {self.path}: train stops at these, unless --accept {grave}"


def judge(path: Path, probe_dir: Path | None = None, *, gridsize: int = 2, with_hints: bool = True) -> Verdict:
    """Judge one file.

    Args:
        path: the scan.
        probe_dir: folder of probes that takes the place of its own probe; None for its own.
        gridsize: g, for the settings that follow.
        with_hints: whether to look for hints, which takes most of the time.
    """
    examination = examine(path)
    if probe_dir is not None:
        examination = _with_probe(examination, probe_dir)
    scan = examination.scan
    hints: tuple[Hint, ...] = ()
    if scan is not None and with_hints:
        hints = _hints(examination, scan, DataSettings(gridsize=gridsize))
    numbers: tuple[str, ...] = ()
    if scan is not None and examination.mean_energy is not None:
        try:
            numbers = scan_numbers(scan, examination.mean_energy, gridsize)
        except DataContractError as err:
            numbers = (str(err),)
    return Verdict(path, examination, hints, tuple(f"{f'g = {gridsize}':<11}{line}" for line in numbers))


def _hints(examination: Examination, scan: Scan, settings: DataSettings) -> tuple[Hint, ...]:
    """Return what looks wrong in a scan that holds every clause."""
    view = ScanView.of_scan(scan, settings, examination.sample)
    hints = scan_hints(view)
    # A defect would be taken for the diffraction of another domain or orientation.
    if _MISLEADING.isdisjoint(hint.kind for hint in hints):
        hints += tuple(hint_orientation(judge_orientation(scan), view.mending))
    if examination.are_counts is False and scan.nphotons is None and examination.mean_energy is not None:
        hints += (Hint("photons", normalised_notice(examination.mean_energy)),)
    return hints


def hints_of(path: Path) -> tuple[Hint, ...]:
    """Return what looks wrong in a scan that was just written, from a few of its patterns.

    Raises:
        DataContractError: the file has been damaged since.
    """
    scan = open_scan(path)
    return scan_hints(ScanView.of_scan(scan, DataSettings(), sample_patterns(scan)))


_MISLEADING = frozenset({"hot-pixel", "static", "position-unit"})
"""Hints about what keeps a short reconstruction from telling anything."""


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
