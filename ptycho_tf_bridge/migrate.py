"""From an archive of the TensorFlow reference to a checkpoint, settings and a report of what became of everything.

<doc-ref type="guide">README.md</doc-ref> has the way through it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ptycho_tf_bridge.archives.archive import Archive
from ptycho_tf_bridge.config import Finding, from_legacy
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import to_torch
from ptycho_torch.commands.settings_options import config_text
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.errors import one_line
from ptycho_torch.files.folders import refuse_outputs
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.model import PtychoNet
from ptycho_torch.training.checkpoint import write_checkpoint

CHECKPOINT = Path("checkpoints", "last.ckpt")
"""Where ``ptycho-torch infer DIR`` looks."""

_SETTINGS, _REPORT, _REPORT_JSON, _PICTURE = "settings.yaml", "migration.md", "migration.json", "probe.png"
_CELL_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True)
class Migration:
    """What a conversion has written.

    Attributes:
        checkpoint: for ``ptycho-torch infer`` and ``ptycho-torch train --start-from``.
        settings_file: for ``ptycho-torch train --config``.
        report: every field with its value there and here, what changed and why, as Markdown.
        report_json: the same as JSON.
        picture: amplitude and phase of the probe, as PNG.
        settings: of the run.
        network: of the model.
        findings: what became of every field.
    """

    checkpoint: Path
    settings_file: Path
    report: Path
    report_json: Path
    picture: Path
    settings: Settings
    network: NetworkSettings
    findings: tuple[Finding, ...]


def build_network(
    archive: Archive, network: NetworkSettings | None = None, probe: np.ndarray | None = None
) -> PtychoNet:
    """Return the archive's model in PyTorch: its weights bit for bit, and its probe as it is.

    Args:
        archive: with its weights.
        network: settings, complete; None for the archive's own.
        probe: (N, N) complex, used as it is; None for the archive's.

    Raises:
        ArchiveError: something is missing in the archive and not given.
    """
    network, probe = complete(archive, {}) if network is None else network, archive.probe if probe is None else probe
    if probe is None:
        raise _lacking(archive, ("probe",))
    model = PtychoNet(network, torch.from_numpy(np.ascontiguousarray(probe)))
    state = {name: torch.from_numpy(array) for name, array in to_torch(archive.weights, network).items()}
    model.load_state_dict(dict(model.state_dict()) | state)
    return model.eval()


def complete(archive: Archive, given: Mapping[str, Any]) -> NetworkSettings:
    """Return the archive's network with what was missing put in.

    Args:
        archive: says what it lacks.
        given: fields of the network, ``intensity_scale`` among them.

    Raises:
        ArchiveError: a field that is not missing, or one that still is.
        ConfigError: a value that no network has.
    """
    for name, value in given.items():
        if name not in archive.missing:
            held = getattr(archive.network, name, None)
            raise ArchiveError(
                f"{archive.path}: {name} = {value!r} was given, but the archive has its own"
                f"{'' if held is None else f' ({held!r})'}; leave it out."
            )
    lacking = tuple(name for name in archive.missing if name != "probe" and name not in given)
    if lacking:
        raise _lacking(archive, lacking)
    return dataclasses.replace(archive.network, **given)


def _lacking(archive: Archive, names: tuple[str, ...]) -> ArchiveError:
    flags = " ".join(f"--{name.replace('_', '-')}" for name in names)
    return ArchiveError(
        f"{archive.path}: the archive does not hold {', '.join(names)}, and nobody can guess it; give {flags}."
    )


def convert(
    archive: Archive,
    out_dir: Path,
    *,
    probe: np.ndarray | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
    overwrite: bool = False,
    inputs: Iterable[Path] = (),
) -> Migration:
    """Write checkpoint, settings and report of an archive; every file appears whole or not at all.

    Args:
        archive: of ``read_archive``.
        out_dir: folder of the files; it is made.
        probe: (N, N) complex, used as it is, where the archive has none.
        given: fields of the network that the archive does not say, by name, ``intensity_scale`` among them.
        overwrite: whether the files may be there.
        inputs: files beside the archive that must stay as they are: the one that ``probe`` was read from.

    Raises:
        ArchiveError: something is missing and not given, or given and not missing.
        ConfigError: saved parameters that cannot be here, or files that are there.
    """
    network = complete(archive, given)
    if probe is not None and archive.probe is not None:
        raise ArchiveError(f"{archive.path}: a probe was given, but the archive has its own ({archive.probe_source}).")
    probe = archive.probe if probe is None else probe
    model = build_network(archive, network, probe)
    assert probe is not None
    settings, findings = _settings(archive, network)
    out_dir = Path(out_dir)
    migration = Migration(
        checkpoint=out_dir / CHECKPOINT,
        settings_file=out_dir / _SETTINGS,
        report=out_dir / _REPORT,
        report_json=out_dir / _REPORT_JSON,
        picture=out_dir / _PICTURE,
        settings=settings,
        network=network,
        findings=findings,
    )
    files = (migration.checkpoint, migration.settings_file, migration.report, migration.report_json, migration.picture)
    refuse_outputs(files, [archive.path, *inputs], overwrite=overwrite)
    write_checkpoint(
        migration.checkpoint,
        settings,
        network,
        _statistics(archive, network, settings),
        model.state_dict(),
        overwrite=overwrite,
    )
    _write(migration.settings_file, _settings_text(archive, settings), overwrite)
    facts = _facts(archive, migration, given)
    _write(migration.report_json, json.dumps(facts, indent=1, ensure_ascii=False, default=str) + "\n", overwrite)
    _write(migration.report, _report(facts, migration.findings), overwrite)
    _draw(probe, migration.picture, archive)
    return migration


# ----------------------------------------------------------------------------------------------------------- settings


def _settings(archive: Archive, network: NetworkSettings) -> tuple[Settings, tuple[Finding, ...]]:
    """Return the settings of a run that resumes as the archive was trained, and what became of every field."""
    translation = from_legacy(archive.parameters, where=f"{archive.path}: params.dill", as_run=True)
    settings = translation.settings
    known = {*settings.model.field_names(), *settings.data.field_names()}
    # What may be trained is of a run, and no part of the model.
    fields = [name for name in network.field_names() if name in known and not name.endswith("_trainable")]
    values = {name: getattr(network, name) for name in fields}
    return settings.override(values), (*translation.report, *_taken(settings, values))


def _taken(before: Settings, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Report what the model itself decides, whatever the saved parameters say or leave open."""
    saved = {**dataclasses.asdict(before.model), **dataclasses.asdict(before.data)}
    for name, value in values.items():
        if saved[name] != value:
            yield Finding(
                field_there="",
                value_there=None,
                field_here=name,
                value_here=value,
                change="converted",
                reason="It follows from the model: its weights, its graph, or what was given for it.",
            )


def _statistics(archive: Archive, network: NetworkSettings, settings: Settings) -> dict[str, Any]:
    counts = settings.data.nphotons
    return {
        "probe_modes": 1,
        "one_probe": True,
        "nphotons": (network.intensity_scale * network.N / 2) ** 2 if counts is None else counts,
        "archive": archive.path.name,
        "archive_sha256": archive.digest,
    }


def _settings_text(archive: Archive, settings: Settings) -> str:
    head = f"# Settings of {archive.path.name} (SHA-256 {archive.digest}); {_REPORT} says where each comes from.\n"
    return head + config_text(settings)


# ------------------------------------------------------------------------------------------------------------- report


def _facts(archive: Archive, migration: Migration, given: Mapping[str, Any]) -> dict[str, Any]:
    with migration.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "program": f"ptycho-torch {importlib.metadata.version('ptycho-torch')}",
        "torch": torch.__version__,
        "archive": {
            "name": archive.path.name,
            "sha256": archive.digest,
            "layout": archive.layout,
            "era": archive.era,
            "arrays": len(archive.weights),
            "numbers": sum(array.size for array in archive.weights.values()),
        },
        "probe": archive.probe_source or "given",
        "intensity_scale": {
            "value": migration.network.intensity_scale,
            "source": archive.intensity_scale_source or "given",
        },
        "missing": list(archive.missing),
        "given": {**given, **({"probe": "given"} if archive.probe is None else {})},
        "notes": list(archive.notes),
        "network": dataclasses.asdict(migration.network),
        "checkpoint": {"name": CHECKPOINT.as_posix(), "sha256": digest},
        "fields": [dataclasses.asdict(finding) for finding in migration.findings],
    }


def _report(facts: Mapping[str, Any], findings: tuple[Finding, ...]) -> str:
    archive = facts["archive"]
    lines = [
        f"# Migration of {archive['name']}",
        "",
        f"- Archive: {archive['era']}; layout {archive['layout']}; SHA-256 {archive['sha256']}",
        f"- Weights: {archive['arrays']} arrays, {archive['numbers']} numbers, copied bit for bit",
        f"- Probe: {facts['probe']}, used as it is",
        f"- Intensity scale: {facts['intensity_scale']['value']!r} ({facts['intensity_scale']['source']})",
        f"- Checkpoint: {facts['checkpoint']['name']}; SHA-256 {facts['checkpoint']['sha256']}",
        f"- Written by {facts['program']}, torch {facts['torch']}",
        f"- Missing in the archive: {', '.join(facts['missing']) or 'nothing'}",
        "",
        *(f"> {note}\n" for note in facts["notes"]),
    ]
    kinds = (
        ("Changed", lambda each: each.change not in ("same", "renamed") and each.field_here),
        ("Taken over as it is", lambda each: each.change in ("same", "renamed")),
        ("Without a counterpart here", lambda each: each.change not in ("same", "renamed") and not each.field_here),
    )
    for title, belongs in kinds:
        rows = [each for each in findings if belongs(each)]
        if rows:
            lines += [f"## {title}", "", "| there | value | here | value | change | why |", "|---|---|---|---|---|---|"]
            lines += [_row(each) for each in rows]
            lines.append("")
    return "\n".join(lines)


def _row(finding: Finding) -> str:
    here = (finding.field_here, repr(finding.value_here)) if finding.field_here else ("", "")
    there = (finding.field_there, repr(finding.value_there)) if finding.field_there else ("", "")
    cells = (one_line(cell, _CELL_CHARACTERS) for cell in (*there, *here, finding.change, finding.reason))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _write(path: Path, text: str, overwrite: bool) -> None:
    with replacing(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _draw(probe: np.ndarray, path: Path, archive: Archive) -> None:
    from ptycho_torch.reconstruction.pictures import new_figure, save_figure
    from ptycho_torch.reconstruction.plots import draw_probe

    figure = new_figure(8, 3.6)
    amplitude, phase = figure.subplots(1, 2)
    draw_probe(amplitude, phase, probe[None])
    figure.suptitle(f"Probe of {archive.path.name}, used as it is")
    save_figure(figure, path)
