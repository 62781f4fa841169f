"""Is a converted model the archived one? Layer by layer, and against what the TensorFlow reference recorded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from conformance.cases.case import Case
from conformance.cases.draws import BOTH_LOSSES, draw_case
from conformance.cases.scan import GROUPS, measured_groups
from conformance.errors import ScanError
from conformance.judge.measure import worst
from conformance.judge.measured import load_measured
from conformance.judge.rules import compare
from conformance.judge.truth import Truth
from conformance.progress import Progress
from conformance.recordings.calibrate import RUNS
from conformance.session.bench import CANDIDATE_ERRORS, Bench, CaseReport, Planned
from conformance.subjects.torch import CheckpointSubject
from conformance.suite import DTYPES
from conformance.verify.predictions import Predictions, read_predictions, scan_amplitude
from conformance.verify.recorded import Recorded, judge_recorded, runs_of_the_oracle
from ptycho_tf_bridge import backend
from ptycho_tf_bridge.archives.archive import Archive
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import tensorflow_shapes, to_tensorflow
from ptycho_torch.data.scan import open_scan
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training.checkpoint import Checkpoint, read_checkpoint

_TRAINING_ALONE = ("intensity_scale_trainable", "probe_trainable")
"""Settings that change nothing until the model is trained further."""

_EXPLAINED = 1e-4
"""Largest relative difference that an explanation may leave: far above rounding, far below a wrong reading."""

_STAGES_UNITS = 60
"""What judging every stage in one dtype takes, and each run of live Keras, in units of the progress: runs of the oracle
over one group. Measured on a real archive; only the estimate of time stands on it."""


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        archive: what was converted.
        checkpoint: what it was converted to.
        scan: file of the inputs, if one was given.
        predictions: file of what was recorded, if one was given.
        inputs: where the inputs of the layer-by-layer comparison come from, in words.
        device: where the converted model ran.
        reports: one for each dtype.
        differences: what is not copied bit for bit, in words; empty for a faithful copy.
        recorded: every recorded quantity.
        cause: what would explain the first recorded quantity that differs, in words; empty if nothing does.
        not_compared: what could not be compared, and why.
        objects: (groups, N, N) complex objects of the judged groups: the float64 truth, and the converted model's.
        seconds: time it took.
    """

    archive: Archive
    checkpoint: Path
    scan: Path | None
    predictions: Path | None
    inputs: str
    device: str
    reports: tuple[CaseReport, ...]
    differences: tuple[str, ...]
    recorded: tuple[Recorded, ...]
    cause: str
    not_compared: tuple[str, ...]
    objects: tuple[np.ndarray, np.ndarray]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the copy is bit for bit, every stage holds, and every recorded quantity is given again."""
        verdicts = (verdict for each in self.recorded for verdict in each.verdicts)
        return (
            not self.differences
            and all(report.passed for report in self.reports)
            and all(verdict.passed for verdict in verdicts)
        )

    @property
    def reference(self) -> str:
        """What stood for the reference."""
        return self.reports[0].reference

    @property
    def sentence(self) -> str:
        """Say in one sentence what became of it."""
        name = self.archive.path.name
        for report in self.reports:
            if report.first_failing is not None:
                return self._failure(
                    f"fed with the truth, the first stage that differs is {report.first_failing}", report
                )
        for report in self.reports:
            if not report.passed:
                return self._failure(f"every stage alone holds, and {report.failed[0].explain()}", report)
        if self.differences:
            return f"The model converted from {name} is NOT the archived one: {'; '.join(self.differences)}."
        for each in self.recorded:
            failed = next((verdict for verdict in each.verdicts if not verdict.passed), None)
            if failed is not None:
                cause = f"; {self.cause}" if self.cause else ""
                return (
                    f"The model converted from {name} holds at every stage, but it is NOT what the predictions were "
                    f"recorded with: {failed.explain()}{cause}."
                )
        return self._success(name)

    def _failure(self, what: str, report: CaseReport) -> str:
        reasons = [*report.error.splitlines()[:1], *([report.cause] if report.cause else []), *self.differences]
        because = f"; {'; '.join(reasons)}" if reasons else ""
        name = self.archive.path.name
        return f"The model converted from {name} is NOT the archived one: in {report.dtype}, {what}{because}."

    def _success(self, name: str) -> str:
        verdicts = [verdict for report in self.reports for verdict in report.verdicts.values()]
        most = max((worst(report.verdicts) for report in self.reports), key=lambda each: each.share if each else 0.0)
        assert most is not None
        stages = len({stage for report in self.reports for stage in report.stage_of.values()} - {"loss"})
        said = (
            f"The model converted from {name} is the archived one: all {len(verdicts)} verdicts on {stages} stages, "
            f"forward and backward, hold in float64 and float32 (at most {most.share:.0%} of a budget used, by "
            f"{most.clause} {most.stage})"
        )
        if not self.recorded:
            return f"{said}; no recorded predictions were given."
        differs = ", ".join(f"{each.name} to {each.converted.candidate.e:.1e}" for each in self.recorded)
        return f"{said}, and what the reference recorded comes out again: {differs}."


def verify(
    archive: Archive,
    checkpoint: Path,
    *,
    scan: Path | None = None,
    predictions: Path | None = None,
    device: str = "cpu",
    quick: bool = False,
    shown: bool = False,
) -> Verification:
    """Hold a converted model against its archive.

    The truth has the archive's weights, probe and scale; the candidate is the checkpoint. Inputs are those of the
    predictions, else patterns and positions of the scan, else drawn at random. Live Keras stands for the reference
    where TensorFlow is installed, else the measured gains of the specification.

    Args:
        archive: what was converted. What it does not hold is taken from the checkpoint.
        checkpoint: what it was converted to.
        scan: scan file; with predictions, the one that they were made from.
        predictions: what the reference predicted with the archived model.
        device: torch device where the converted model runs.
        quick: leave out live Keras, and the whole object of the predictions.
        shown: whether to show progress, on standard error.

    Raises:
        CheckpointError: no checkpoint, or one whose weights do not fit its settings.
        PredictionsError, ScanError, DataContractError: what is wrong with the other files.
    """
    started = time.perf_counter()
    content = read_checkpoint(checkpoint)
    not_compared = []
    if archive.missing:
        names = ", ".join(archive.missing)
        not_compared.append(f"{names}: the archive holds none, so what the checkpoint was made with was taken")
        archive = _completed(archive, content)
    module = PtychoPINN.from_checkpoint(checkpoint).to(device)
    recorded = None if predictions is None else read_predictions(predictions, archive.network)
    case, inputs = archive_case(archive, scan, recorded)
    groups = None
    if recorded is not None and recorded.stitched is not None and scan is not None and not quick:
        groups = scan_amplitude(recorded, scan, archive.network)
    elif recorded is not None:
        missing = "left out by --quick" if quick else "it needs the scan that was predicted"
        missing = "the predictions hold none" if recorded.stitched is None else missing
        not_compared.append(f"the stitched object: {missing}")
    live = backend.is_available() and not quick
    oracle_runs = 0 if recorded is None else runs_of_the_oracle(recorded, whole=groups is not None)
    keras_runs = 1 + RUNS if live else 0
    progress = Progress(_STAGES_UNITS * (len(DTYPES) + keras_runs) + oracle_runs, shown=shown)
    bench = Bench(lambda: progress.advance(_STAGES_UNITS))
    planned = Planned(case.name, "archive", archive.path, case.settings, case=case, live=live)
    reports = []
    for dtype in DTYPES:
        beside = f", beside {keras_runs} runs of live Keras" if live and dtype == "float32" else ""
        progress.begin(f"every stage in {dtype}{beside}, {len(case.diffraction)} groups ({inputs})")
        reports.append(bench.judge(planned, CheckpointSubject(device, dtype, checkpoint=content)))
        progress.advance(_STAGES_UNITS)
    found: tuple[Recorded, ...] = ()
    if recorded is not None:
        found = judge_recorded(case, recorded, groups, module, bench.gains(planned), load_measured(), progress)
    progress.close()
    differs = any(not verdict.passed for each in found for verdict in each.verdicts)
    drawn = CheckpointSubject(device, "float32", checkpoint=content)
    return Verification(
        archive=archive,
        checkpoint=Path(checkpoint),
        scan=scan,
        predictions=predictions,
        inputs=inputs,
        device=device,
        reports=tuple(reports),
        differences=tuple(_differences(archive, content)),
        recorded=found,
        cause=_cause(case, recorded) if differs and recorded is not None else "",
        not_compared=tuple(not_compared),
        objects=(bench.truth(planned).stages["object"][..., 0], _objects(drawn, case)),
        seconds=time.perf_counter() - started,
    )


def _completed(archive: Archive, content: Checkpoint) -> Archive:
    """Return the archive with what it lacks taken from the checkpoint."""
    fields = [name for name in archive.missing if name not in ("probe", "intensity_scale")]
    network = dataclasses.replace(archive.network, **{name: getattr(content.network, name) for name in fields})
    found = dataclasses.replace(archive, network=network)
    if archive.probe is None:
        found = dataclasses.replace(found, probe=_probe(content)[0], probe_source="the checkpoint")
    if archive.intensity_scale is None:
        scale = content.network.intensity_scale
        found = dataclasses.replace(found, intensity_scale=scale, intensity_scale_source="the checkpoint")
    return found


def _probe(content: Checkpoint) -> np.ndarray:
    """Return the (modes, N, N) probe of a checkpoint."""
    probe: np.ndarray = torch.view_as_complex(content.weights["probe_parts"].contiguous()).numpy()
    return probe


def archive_case(archive: Archive, scan: Path | None, predictions: Predictions | None) -> tuple[Case, str]:
    """Build the case of an archive; say where its inputs come from.

    Raises:
        ArchiveError: an archive whose probe or scale is not known.
        DataContractError, ScanError: a scan that breaks a clause, or that this network cannot take.
    """
    if archive.probe is None or archive.intensity_scale is None:
        missing = " and ".join(archive.missing) or "probe or intensity_scale"
        raise ArchiveError(f"{archive.path}: the archive holds no {missing}; give what the model was trained with.")
    settings = dataclasses.replace(archive.network, intensity_scale=archive.intensity_scale)
    if predictions is not None:
        chosen = slice(GROUPS)
        diffraction, offsets = predictions.diffraction[chosen], predictions.offsets_px[chosen]
        inputs = f"the first groups of {predictions.path.name}"
    elif scan is not None:
        opened = open_scan(scan)
        if opened.stack.frame_px != settings.N:
            raise ScanError(
                f"{scan}: patterns have side {opened.stack.frame_px}; the archive's network takes N = {settings.N}. "
                "Give a scan of that size, or none."
            )
        groups = measured_groups(opened, settings.gridsize)
        diffraction, offsets, inputs = groups.diffraction, groups.offsets_px, f"groups spread over {scan.name}"
    else:
        drawn = draw_case(settings, seed=1)
        diffraction, offsets, inputs = drawn.diffraction, drawn.offsets_px, "drawn at random"
    case = Case(archive.path.name, settings, BOTH_LOSSES, diffraction, offsets, archive.probe[None], archive.weights)
    return case, inputs


def _objects(subject: CheckpointSubject, case: Case) -> np.ndarray:
    try:
        found = subject.free(case).stages["object"]
    except CANDIDATE_ERRORS:
        return np.full(case.diffraction.shape[:3], np.nan, np.complex64)
    return found[..., 0]


def _differences(archive: Archive, content: Checkpoint) -> list[str]:
    """Say what a checkpoint has otherwise than its archive, bit for bit."""
    said = []
    assert archive.intensity_scale is not None
    assert archive.probe is not None
    expected = dataclasses.replace(archive.network, intensity_scale=archive.intensity_scale)
    for name, value in dataclasses.asdict(expected).items():
        here = getattr(content.network, name)
        if name not in _TRAINING_ALONE and here != value:
            said.append(f"{name} is {here} and the archive's {value}")
    if tensorflow_shapes(content.network) != tensorflow_shapes(expected):
        return said
    state = {
        name: tensor.numpy() for name, tensor in content.weights.items() if name not in ("log_scale", "probe_parts")
    }
    for name, found in to_tensorflow(state, content.network).items():
        said += _unequal(f"weight {name}", found, archive.weights[name])
    probe = _probe(content)
    given = archive.probe if archive.probe.ndim == 3 else archive.probe[None]
    if probe.shape == given.shape and not np.array_equal(probe, given) and np.array_equal(probe, given.conj()):
        said.append("the probe is the archive's conjugated")
    else:
        said += _unequal("the probe", probe, given)
    log_scale = float(content.weights["log_scale"])
    if abs(log_scale - np.log(archive.intensity_scale)) > 2 * np.spacing(np.float32(abs(log_scale))):
        said.append(
            f"log_scale is of a scale of {np.exp(log_scale):.6g}, and the archive's is {archive.intensity_scale:.6g}"
        )
    return said


def _unequal(what: str, found: np.ndarray, given: np.ndarray) -> list[str]:
    if found.shape != given.shape:
        return [f"{what} has shape {found.shape} and the archive's {given.shape}"]
    # Bits are compared, so that 0 and −0 differ, and a NaN is one in both.
    same = found.tobytes() == np.ascontiguousarray(given.astype(found.dtype)).tobytes()
    if same:
        return []
    wrong = int((found != given).sum())
    return [f"{what} differs in {wrong} of {found.size} values, by {float(np.abs(found - given).max()):.2g} at most"]


def _cause(case: Case, predictions: Predictions) -> str:
    """Say which one change of the archive's physics makes the recorded predictions come out, if one does."""
    few = slice(GROUPS)
    given = {name: array[few] for name, array in predictions.recorded.items()}
    here = dataclasses.replace(case, diffraction=predictions.diffraction[few], offsets_px=predictions.offsets_px[few])

    def explains(changed: Case) -> bool:
        stages = Truth(changed).stages
        return all(compare(array, stages[name]).e < _EXPLAINED for name, array in given.items())

    if explains(here):
        return ""
    hypotheses: Mapping[str, Case] = {
        "they come out with the probe conjugated": dataclasses.replace(here, probe=here.probe.conj()),
        "they come out with the probe transposed": dataclasses.replace(here, probe=here.probe.swapaxes(1, 2)),
        "they come out with x and y of the offsets swapped": dataclasses.replace(
            here, offsets_px=here.offsets_px[:, :, ::-1]
        ),
        "they come out with the sign of the offsets turned": dataclasses.replace(here, offsets_px=-here.offsets_px),
    }
    for said, changed in hypotheses.items():
        if explains(changed):
            return said
    measured = given.get("predicted_amplitude")
    if measured is None:
        return ""
    ours = Truth(here).stages["predicted_amplitude"]
    factor = float((measured * ours).sum() / (ours**2).sum())
    if compare(measured, factor * ours).e < _EXPLAINED:
        return f"the recorded amplitude is {factor:.6g} times as large: another intensity scale or probe strength"
    return ""
