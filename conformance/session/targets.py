"""Which tests a plan makes: one for each clause, stage, case, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from conformance.judge.measure import FLOAT64, FRESH, LOSS, NETWORK_CLAUSES, REFERENCE, TRAIN
from conformance.recordings.manifest import judged
from conformance.session.bench import Planned
from conformance.spec.loader import load_stages
from conformance.subjects.variants import subject_of, unavailable
from ptycho_tf_bridge import backend


@dataclass(frozen=True)
class Target:
    """What one test judges.

    Attributes:
        clause: judgement clause.
        stage: stage id, or ``loss`` or ``train``; empty for a whole recording.
        planned: the case.
        device: torch device; empty where none runs.
        dtype: of the candidate.
        stage_clause: id of the clause that the stage comes from; empty where it comes from none.
    """

    clause: str
    stage: str
    planned: Planned
    device: str = ""
    dtype: str = ""
    stage_clause: str = ""

    @property
    def id(self) -> str:
        """Test id: stage clause first, then judgement clause, case, device and dtype."""
        parts = (self.stage, self.clause, self.planned.name, self.device, self.dtype)
        return "-".join(part for part in parts if part)

    @property
    def clauses(self) -> tuple[str, ...]:
        """Ids of the clauses that the test judges; all of the network's where it would stand for a whole case."""
        return tuple(each for each in (self.clause, self.stage_clause) if each) or NETWORK_CLAUSES


def stage_targets(planned: Planned, device: str, dtype: str) -> Iterator[Target]:
    """Yield every stage of a case under every clause, then the losses, then recorded training."""
    stages = load_stages().expand(planned.settings)
    clause_of = {stage.id: stage.clause.id for stage in stages}
    for clause, stage in judged(stages):
        yield Target(clause, stage, planned, device, dtype, clause_of.get(stage, ""))
    if planned.training:
        yield Target(TRAIN, "train", planned, device, dtype)
    if planned.kind == "bundle" and dtype == "float64":
        yield Target(FLOAT64, "recording", planned, device, dtype)


def recording_targets(planned: Planned) -> Iterator[Target]:
    """Yield what is judged of a recording, or of an installed reference package, itself."""
    if planned.kind == "bundle":
        yield Target(FLOAT64, "", planned)
    if planned.kind == "bundle" or planned.package is not None:
        yield Target(REFERENCE, "", planned)
        if planned.dated:
            yield Target(FRESH, "", planned)


def variant_targets(plan: Sequence[Planned], devices: Sequence[str], rows: Sequence[str]) -> Iterator[Target]:
    """Yield what further rows can show of the recordings; one target for each row that cannot run at all.

    A graph takes a minute to compile, so compiled rows get one recording, the smallest.
    """
    recorded = [planned for planned in plan if planned.kind == "bundle"]
    smallest = sorted(recorded, key=lambda planned: planned.settings.N**2 * planned.settings.C)[:1]
    for device in devices:
        for row in rows:
            chosen = smallest if row.endswith("-compiled") else recorded
            if unavailable(device, row):
                yield from (Target("", "all_stages", planned, device, row) for planned in chosen[:1])
                continue
            subject = subject_of(device, row)
            for planned in chosen:
                for each in stage_targets(planned, device, row):
                    if each.clause != TRAIN and subject.shows((each.clause, _shown(each))):
                        yield each


def _shown(target: Target) -> str:
    """Name of a quantity by which a subject tells whether it can show a stage."""
    return "free" if target.clause == LOSS else target.stage


def targets(kind: str, plan: Sequence[Planned], devices: Sequence[str], dtypes: Sequence[str]) -> list[Target]:
    """List the targets of the test named ``kind``; for ``test_variant`` the dtypes are rows."""
    if kind == "test_variant":
        return list(variant_targets(plan, devices, dtypes))
    if kind == "test_recording":
        return [target for planned in plan for target in recording_targets(planned)]
    if not backend.is_available():
        # One test each that says why it is skipped, and not one for every stage.
        missing = [Target("", "all_stages", planned) for planned in plan if planned.kind == "live"]
        plan = [planned for planned in plan if planned.kind != "live"]
    else:
        missing = []
    return missing + [
        target
        for planned in plan
        for device in devices
        for dtype in dtypes
        for target in stage_targets(planned, device, dtype)
    ]
