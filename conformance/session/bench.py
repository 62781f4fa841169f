"""What is to be judged, and the cached results of judging it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance.cases.case import NOT_GIVEN, NOTHING_FORCED, NOTHING_FREE, Case, ForcedRun, FreeRun
from conformance.cases.draws import GRAPHS, draw_case
from conformance.cases.scan import examined, feeds_network, scan_case
from conformance.checks.table import Check, Checked, checked
from conformance.errors import CandidateError
from conformance.judge.causes import cause_of, fed_with_truth, ranked_stages
from conformance.judge.gains import Gains, widest
from conformance.judge.measure import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FLOAT64,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    TRAIN,
    Key,
    Measurement,
    Quantity,
    envelope,
    judge,
)
from conformance.judge.measured import load_measured
from conformance.judge.rules import Errors, Verdict, compare
from conformance.judge.truth import Truth
from conformance.judge.worst import Place
from conformance.recordings.bundle import RECORDINGS, Bundle, read_bundle
from conformance.recordings.calibrate import reference_runs
from conformance.recordings.replay import (
    TrainingTruth,
    envelope_verdicts,
    fresh_verdicts,
    package_verdicts,
    recorded_errors,
    recorded_run,
    reference_verdicts,
    stored_truth_verdicts,
    train_verdicts,
)
from conformance.subjects.candidate import CandidateSubject, Factory
from conformance.subjects.package import ReferencePackage, identify
from conformance.subjects.torch import TorchSubject
from conformance.subjects.variants import subject_of
from conformance.suite import DTYPES
from ptycho_tf_bridge import backend
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import PtychoError
from ptycho_torch.files.folders import scan_paths

if TYPE_CHECKING:
    from conformance.subjects.tensorflow import TensorFlowSubject

NO_TENSORFLOW = 'TensorFlow is not installed, so nothing is compared live: pip install "ptycho-torch[tf]"'

LIVE = "live:"
"""What the name of an installed reference package follows."""

LIVE_GRAPHS = {
    "quick": ("n64_g2", "n64_g1_nopad"),
    "full": tuple(name for name, graph in GRAPHS.items() if graph.N < 256 and graph.n_filters_scale == 1),
    "study": tuple(GRAPHS),
}
"""Graphs whose float32 run is compared with nine of live Keras, by tier: the largest take a minute each."""


@dataclass(frozen=True)
class Planned:
    """One case to judge: a recording, a scan, or a draw judged against live Keras, or only the oracle.

    Attributes:
        name: how test ids and reports call it.
        kind: ``bundle``, ``live``, ``scan``, ``archive``, or ``drawn`` for a draw that the oracle alone stands beside.
        path: the file, for bundles, scans and archives.
        settings: known before anything is run, so that tests can be listed.
        training: whether it records training steps.
        case: of an archive, which has more to say than its file, and of a draw beside the oracle alone.
        dated: whether it says for which specification and code it holds.
        package: reference package that is judged live; None for our own Keras model.
        live: whether live Keras may stand beside it; if not, the measured gains of the specification do.
    """

    name: str
    kind: str
    path: Path | None
    settings: NetworkSettings
    training: bool = False
    case: Case | None = dataclasses.field(default=None, compare=False)
    dated: bool = False
    package: ReferencePackage | None = None
    live: bool = True


@dataclass(frozen=True)
class CaseReport:
    """All verdicts of one case on one device in one dtype.

    Attributes:
        planned: the case.
        device: torch device.
        dtype: of the candidate, or another row of ``conformance.subjects.variants``.
        reference: what stood for the reference.
        verdicts: by clause and quantity.
        stage_of: the stage each quantity belongs to.
        first_failing: first stage that fails when fed with the truth, or running free where a candidate is not fed with
            it; None if none does.
        first_free: where none does, the stage that the failures running free point to; None if there are none, or only
            missing gradients and losses.
        not_given: judgement clause → why a candidate cannot be judged by it.
        run_to_run: largest scale-free difference between two equal runs of the candidate.
        seconds: time it took.
        error: what the candidate raised; empty if nothing.
        places: where the worst quantities deviate most.
        cause: the known mistake that explains the first failing stage, why it cannot be compared, or that neither is
            known; empty if no stage fails.
    """

    planned: Planned
    device: str
    dtype: str
    reference: str
    verdicts: Mapping[Key, Verdict]
    stage_of: Mapping[Key, str]
    first_failing: str | None
    run_to_run: float
    seconds: float
    error: str = ""
    places: Mapping[Key, Place] = dataclasses.field(default_factory=dict)
    cause: str = ""
    first_free: str | None = None
    not_given: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every verdict holds."""
        return not self.error and not self.failed

    @property
    def failed(self) -> list[Verdict]:
        """The verdicts that do not hold."""
        return [verdict for verdict in self.verdicts.values() if not verdict.passed]

    def of(self, clause: str, stage: str) -> list[Verdict]:
        """Return the verdicts of one clause about one stage."""
        return [verdict for key, verdict in self.verdicts.items() if key[0] == clause and self.stage_of[key] == stage]


def plan(reference: str | None, scan: str | None, tier: str) -> tuple[Planned, ...]:
    """List the cases for the given options; every file is read and checked here.

    Raises:
        BundleError, DataContractError, ScanError: what is wrong with a file. A scan that breaks a clause is no
            case; its clauses are judged one by one.
        LiveReferenceError: a package that cannot be driven; it names what is missing.
    """
    live = tuple(Planned(f"keras_{name}", "live", None, GRAPHS[name]) for name in LIVE_GRAPHS[tier])
    if scan is not None:
        return tuple(
            Planned(path.stem, "scan", path, _scan_case(path).settings)
            for path in scan_paths(Path(scan))
            if feeds_network(examined(path))
        )
    if reference == "keras":
        return live
    if reference is not None and reference.startswith(LIVE):
        return _planned_package(reference.removeprefix(LIVE), tier)
    if reference not in (None, "recorded"):
        return (_planned_bundle(Path(reference)),)
    recorded = tuple(_planned_bundle(path) for path in sorted(RECORDINGS.glob("n*.npz")))
    return recorded if reference == "recorded" else (*recorded, *live)


def _planned_package(reference: str, tier: str) -> tuple[Planned, ...]:
    from ptycho_tf_bridge.live import LiveReference

    names = [name for name in LIVE_GRAPHS[tier] if not GRAPHS[name].shared_amplitude_head]
    # Whether it can be driven is said before any test is listed.
    driven = LiveReference(reference, GRAPHS[names[0]])
    package = identify(driven.package, str(driven.builder))
    return tuple(Planned(f"{package.name}_{name}", "live", None, GRAPHS[name], package=package) for name in names)


def _planned_bundle(path: Path) -> Planned:
    bundle = _bundle(path)
    return Planned(
        path.stem,
        "bundle",
        path,
        bundle.case.settings,
        training=bool(bundle.train_losses),
        dated=bundle.manifest is not None,
    )


# Read once: for the list of tests, where what is wrong with a file can be said in one line, and for the tests.
_bundle = cache(read_bundle)
_scan_case = cache(scan_case)


CANDIDATE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, PtychoError)
"""What a broken network raises. Anything else is no verdict about the network and ends the run."""


class _Work:
    """What all devices and dtypes of one case share."""

    def __init__(self, planned: Planned, on_run: Callable[[], None] = lambda: None) -> None:
        self.planned = planned
        self._on_run = on_run

    @cached_property
    def bundle(self) -> Bundle:
        assert self.planned.path is not None
        return _bundle(self.planned.path)

    @cached_property
    def measurement(self) -> Measurement:
        return Measurement(Truth(self._case()), load_measured().limits)

    @property
    def truth(self) -> Truth:
        return self.measurement.truth

    @cached_property
    def training(self) -> TrainingTruth:
        """The truth's training for as many steps as were recorded."""
        return TrainingTruth.of(self.truth, len(self.bundle.train_losses))

    def _case(self) -> Case:
        if self.planned.case is not None:
            return self.planned.case
        if self.planned.kind == "bundle":
            return self.bundle.case
        if self.planned.kind == "scan":
            assert self.planned.path is not None
            return _scan_case(self.planned.path)
        return dataclasses.replace(draw_case(self.planned.settings, seed=1), name=self.planned.name)

    @property
    def reference_label(self) -> str:
        if self.planned.kind == "bundle":
            recorded = self.bundle.envelope
            where = "specs/measured.yaml" if recorded is None else f"{recorded.runs} recorded runs"
            return f"recorded; envelope from {where}"
        if self.planned.kind == "drawn":
            return "the oracle"
        if self.planned.live and backend.is_available():
            package = self.planned.package
            return "Keras, live" if package is None else f"{package.name}, live: {package.label}"
        return "none; envelope from specs/measured.yaml"

    @cached_property
    def keras_runs(self) -> list[dict[Key, Quantity]] | None:
        """Runs of live float32 Keras on the case and on copies moved by an ulp; None where the spec stands in."""
        if self.planned.kind == "bundle" or not (self.planned.live and backend.is_available()):
            return None
        runs = []
        for run in reference_runs(self.measurement, self.live_subject):
            runs.append(run)
            self._on_run()
        return runs

    @cached_property
    def live_subject(self) -> TensorFlowSubject:
        """Live Keras, or an installed package."""
        from conformance.subjects.keras import KerasSubject
        from conformance.subjects.tensorflow import TensorFlowSubject
        from ptycho_tf_bridge.live import LiveReference

        package, settings = self.planned.package, self.planned.settings
        if package is None:
            return KerasSubject(settings)
        return TensorFlowSubject(settings, "float32", LiveReference(package.name, settings))

    @cached_property
    def reference_runs(self) -> list[dict[Key, Quantity]] | None:
        """What the reference's runs on this case show, recorded with it or live; None if neither."""
        if self.planned.kind == "bundle":
            return None if self.bundle.envelope is None else [recorded_run(self.bundle.envelope, self.measurement)]
        return self.keras_runs

    @cached_property
    def reference_gains(self) -> Gains | None:
        """What float32 costs the reference on this case; None if neither recorded nor live."""
        return None if self.reference_runs is None else widest(self.reference_runs)

    @cached_property
    def envelope_verdicts(self) -> Mapping[Key, Verdict]:
        """A recorded envelope against the ceilings of the spec (clause REFERENCE); empty where none was recorded."""
        if self.reference_runs is None:
            return {}
        return envelope_verdicts(self.reference_runs[0], self.truth, load_measured())

    @cached_property
    def package_verdicts(self) -> Mapping[Key, Verdict]:
        """An installed package against the ceilings of the spec, the stages alone first (clause REFERENCE)."""
        return package_verdicts(self.measurement.of(self.live_subject), load_measured())

    @cached_property
    def gains(self) -> Gains:
        """What float32 costs the reference, for budgets: on this case where that is believed, else in the spec."""
        spec = load_measured().gains
        is_recorded = self.planned.kind == "bundle"
        verdicts = self.envelope_verdicts if is_recorded else self.package_verdicts if self.planned.package else {}
        # A reference that is not what it was is a failure, and never a wider budget.
        if not all(verdict.passed for verdict in verdicts.values()):
            return spec
        return spec if self.reference_gains is None else self.reference_gains.widened_when_forced(spec)

    @cached_property
    def shown(self) -> dict[Key, Errors] | None:
        """The reference's own errors on this case, where it was run or recorded."""
        if self.planned.kind == "bundle":
            recorded = self.bundle.envelope
            return recorded_errors(self.bundle) if recorded is None else dict(recorded.own)
        return None if self.keras_runs is None else envelope(self.keras_runs)


class Bench:
    """Runs cases on demand and keeps what was found.

    Args:
        on_run: is called after each run of a live reference, which take long.
        factory: of the candidate.
    """

    def __init__(self, on_run: Callable[[], None] = lambda: None, factory: Factory = TorchSubject) -> None:
        self.factory = factory
        self.reports: dict[tuple[str, str, str], CaseReport] = {}
        self.records: dict[str, Mapping[Key, Verdict]] = {}
        self.checks: dict[str, Checked] = {}
        self._work = cache(lambda planned: _Work(planned, on_run))

    def record(self, planned: Planned) -> Mapping[Key, Verdict]:
        """Judge the reference itself: a recording's, with the oracle against its truth, or an installed package."""
        if planned.name not in self.records:
            work = self._work(planned)
            measured = load_measured()
            if planned.package:
                self.records[planned.name] = work.package_verdicts
                return work.package_verdicts
            self.records[planned.name] = {
                **stored_truth_verdicts(
                    work.bundle,
                    work.truth.stages,
                    work.truth.gradients.constants,
                    work.truth.losses,
                    work.measurement.condition,
                    measured.limits,
                ),
                **reference_verdicts(work.bundle, work.measurement, measured),
                **work.envelope_verdicts,
                **fresh_verdicts(work.bundle),
            }
        return self.records[planned.name]

    def report(self, planned: Planned, device: str, dtype: str) -> CaseReport:
        """Judge the candidate; ``dtype`` is a dtype or another row of ``conformance.subjects.variants``."""
        key = (planned.name, device, dtype)
        if key not in self.reports:
            # Nothing else asks for the truth of a draw beside the oracle, and the largest are large.
            work = _Work(planned) if planned.kind == "drawn" else self._work(planned)
            self.reports[key] = _judge(work, subject_of(device, dtype, self.factory))
        return self.reports[key]

    def judge(self, planned: Planned, subject: TorchSubject) -> CaseReport:
        """Judge a candidate that is not the network of the case's own weights."""
        return _judge(self._work(planned), subject)

    def check(self, check: Check) -> Checked:
        """Judge a check outside the network."""
        if check.id not in self.checks:
            self.checks[check.id] = checked(check)
        return self.checks[check.id]

    @property
    def failed_checks(self) -> list[Checked]:
        """Checks outside the network that failed, in the order in which they ran."""
        return [each for each in self.checks.values() if not each.passed]

    def gains(self, planned: Planned) -> Gains:
        """Return what float32 costs the reference, as the case's verdicts have it."""
        return self._work(planned).gains

    def truth(self, planned: Planned) -> Truth:
        """Return the truth of a case."""
        return self._work(planned).truth


PARTS = {
    BACKWARD_FREE: "FreeRun.cotangents",
    GRADIENT_FREE: "FreeRun.gradients",
    FORWARD_FORCED: "ForcedRun.stages",
    BACKWARD_FORCED: "ForcedRun.pulled",
    GRADIENT_FORCED: "ForcedRun.gradients",
    LOSS: "FreeRun.losses",
}
"""Judgement clause → what a candidate may leave out, and is then not judged by."""

GIVES_NO = "the candidate gives no "
"""How the reason begins why a clause was not judged; the part follows."""


def _not_given(subject: CandidateSubject | TorchSubject, free: FreeRun, forced: ForcedRun) -> dict[str, str]:
    """Return the judgement clauses for which a candidate offers nothing, with the reason."""
    runs = {"FreeRun": free, "ForcedRun": forced}
    found = {}
    for clause, part in PARTS.items():
        run, _, name = part.partition(".")
        if getattr(runs[run], name) is NOT_GIVEN:
            found[clause] = f"{GIVES_NO}{part}"
    if isinstance(subject, CandidateSubject) and not subject.is_ours:
        found[TRAIN] = "training is judged of this package's own network only"
        found[FLOAT64] = "the truth is computed here; that it is the recorded one is judged without a candidate"
    return found


def _judge(work: _Work, subject: CandidateSubject | TorchSubject) -> CaseReport:
    started = time.perf_counter()
    limits = load_measured().limits
    remembering = Remembering(subject)
    measured = work.measurement.of(remembering, locating=True)
    is_float32 = subject.dtype == "float32"
    gains = work.gains if is_float32 else load_measured().gains
    verdicts = judge(measured, gains.envelope, limits, subject.dtype, work.shown if is_float32 else None)
    not_given = _not_given(subject, remembering.last, remembering.last_forced)
    left_out = {*not_given} | ({(LOSS, "forced")} if remembering.last_forced.losses is NOT_GIVEN else set())
    verdicts = {
        key: verdict
        for key, verdict in verdicts.items()
        if subject.shows(key) and not left_out & {key[0], (key[0], key[1].partition(".")[0])}
    }
    stage_of = {key: quantity.stage for key, quantity in measured.items() if key in verdicts}
    if work.planned.training and subject.row in DTYPES and TRAIN not in not_given and not remembering.error:
        training = train_verdicts(work.bundle, work.truth, work.training, subject, load_measured())
        verdicts |= training
        stage_of |= dict.fromkeys(training, "train")
    if (
        work.planned.kind == "bundle"
        and subject.dtype == "float64"
        and not remembering.error
        and FLOAT64 not in not_given
    ):
        run = remembering.last
        stored = stored_truth_verdicts(
            work.bundle, run.stages, run.gradients, run.losses, work.measurement.condition, limits
        )
        verdicts |= stored
        stage_of |= dict.fromkeys(stored, "recording")
    # Where a candidate is not fed with the truth, the first stage that is wrong running free is all that can be named.
    is_fed = FORWARD_FORCED not in not_given
    # What a run that raised did not give says nothing of any stage.
    telling = {key: each for key, each in verdicts.items() if not (remembering.error and each.reason == MISSING)}
    inputs = work.truth.oracle.inputs
    first = next(ranked_stages(fed_with_truth(telling), stage_of, inputs), None) if is_fed else None
    free = None
    if first is None:
        # A gradient or loss that was forgotten is named as what it is, and blames no stage.
        telling = {key: each for key, each in telling.items() if each.reason != MISSING or key[0] == FORWARD_FREE}
        free = next(ranked_stages(telling, stage_of, inputs), None)
    named = first if is_fed else free
    cause = _cause(work.truth, remembering, verdicts, stage_of, named, is_fed=is_fed)
    return CaseReport(
        planned=work.planned,
        device=subject.device,
        dtype=subject.row,
        reference=work.reference_label,
        verdicts=verdicts,
        stage_of=stage_of,
        first_failing=named,
        run_to_run=remembering.run_to_run(work.truth.case),
        error=remembering.error,
        seconds=time.perf_counter() - started,
        places=_places(verdicts, measured, named),
        cause=cause,
        first_free=free,
        not_given=not_given,
    )


def _cause(
    truth: Truth,
    subject: Remembering,
    verdicts: Mapping[Key, Verdict],
    stage_of: Mapping[Key, str],
    stage: str | None,
    *,
    is_fed: bool,
) -> str:
    """Name the mistake that explains the first failing stage, else why it cannot be compared; empty if none failed."""
    if stage is None:
        return ""
    found = cause_of(truth, subject.last_forced, verdicts, stage) if is_fed else None
    if found is not None:
        return found.name
    reasons = (each.reason for key, each in verdicts.items() if stage_of[key] == stage and each.reason)
    return next(reasons, "no known cause" if is_fed else "")


def _places(verdicts: Mapping[Key, Verdict], measured: Mapping[Key, Quantity], first: str | None) -> dict[Key, Place]:
    """Return where quantities deviate most, one for each stage, that of the first failing stage before the worst."""

    def order(key: Key) -> tuple[bool, bool, float, Key]:
        is_first = measured[key].stage == first
        return not is_first, is_first and key[0].endswith("-FREE"), -verdicts[key].share, key

    found: dict[str, tuple[Key, Place]] = {}
    for key in sorted(measured.keys() & verdicts.keys(), key=order):
        place = measured[key].place
        if place is not None and place.cells.size > 1:
            found.setdefault(measured[key].stage, (key, place))
    return dict(list(found.values())[:_PLACES])


MISSING = "missing"
"""The reason of a verdict on what a candidate did not give."""

_PLACES = 4
"""How many quantities of a case are shown with the place of their largest deviation."""


@dataclass
class Remembering:
    """The candidate, with its last runs kept for comparison with another one, and for the search for a cause.

    A candidate that raises has given nothing: every quantity is then missing, and the error is kept for the report.
    """

    subject: CandidateSubject | TorchSubject
    last: FreeRun = NOTHING_FREE
    last_forced: ForcedRun = NOTHING_FORCED
    error: str = ""

    @property
    def dtype(self) -> str:
        """Of the candidate."""
        return self.subject.dtype

    @property
    def products(self) -> str:
        """What its convolutions run in."""
        return self.subject.products

    def free(self, case: Case) -> FreeRun:
        """Run end to end."""
        try:
            self.last = self.subject.free(case)
        except CANDIDATE_ERRORS as err:
            self.error = str(err) if isinstance(err, CandidateError) else f"{type(err).__name__}: {err}"
        return self.last

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run stage by stage on the truth's values."""
        try:
            self.last_forced = self.subject.forced(case, truth_stages, truth_cotangents)
        except CANDIDATE_ERRORS as err:
            self.error = str(err) if isinstance(err, CandidateError) else f"{type(err).__name__}: {err}"
            self.last_forced = NOTHING_FORCED
        return self.last_forced

    def run_to_run(self, case: Case) -> float:
        """Run once more; return the largest scale-free difference over all stages and gradients."""
        one, two = self.last, self.free(case)
        pairs = [(one.stages[name], two.stages[name]) for name in one.stages]
        pairs += [(one.gradients[name], two.gradients[name]) for name in one.gradients]
        differences = (compare(left, right.astype(np.result_type(right, np.float64))).m for left, right in pairs)
        return max(differences, default=0.0)
