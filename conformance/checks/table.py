"""All checks outside the network, and what becomes of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from conformance.checks import (
    archives,
    bridge,
    configuration,
    conversion,
    data,
    export,
    light,
    masked_loss,
    optimiser,
    stitching,
    target,
    translation,
)
from conformance.judge.agreement import Compared, common_mistake, compare_arrays
from conformance.judge.causes import Cause
from conformance.judge.rules import Verdict
from ptycho_torch.errors import PtychoError

RAISED = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, PtychoError)
"""What broken code raises. Anything else is no verdict about a check and ends the run."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: area and name, ``data.path``; the id of its test. Areas are ``configuration``, ``bridge``, ``data``,
            ``forward`` and ``optimiser``.
        clauses: ids of the clauses that it judges.
        run: returns what is expected and what is found.
        needs: modules that it imports and that a bare installation may lack.
    """

    id: str
    clauses: tuple[str, ...]
    run: Callable[[], Compared]
    needs: tuple[str, ...] = ()

    @property
    def is_after_network(self) -> bool:
        """Whether a wrong network spoils the check; what comes before the network spoils the network."""
        return self.id.startswith("optimiser.")


@dataclass(frozen=True)
class Checked:
    """What became of one check.

    Attributes:
        check: which.
        verdicts: by name of what was compared.
        cause: the common mistake that explains a failure; None if none does.
        error: what it raised; empty if nothing.
    """

    check: Check
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    cause: Cause | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        return not self.error and bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts.values())

    @property
    def cause_name(self) -> str:
        """The mistake that explains a failure, or that none is known; empty if nothing failed."""
        if self.passed:
            return ""
        return self.cause.name if self.cause else "no known cause"

    def explain(self) -> str:
        """Return one line for people."""
        what = f"step {self.check.id}"
        if self.passed:
            return f"passed  {what}"
        failed = [verdict.explain() for verdict in self.verdicts.values() if not verdict.passed]
        why = self.error or (failed[0] if failed else "nothing was compared")
        return f"FAILED  {what}; cause: {self.cause_name}; {why}"


def checked(check: Check) -> Checked:
    """Run a check and judge it; one that raises has failed."""
    try:
        compared = check.run()
    except RAISED as err:
        return Checked(check, error=f"{type(err).__name__}: {err}".splitlines()[0])
    verdicts = compare_arrays(compared.expected, compared.found, compared.limit, check.id)
    return Checked(check, verdicts, common_mistake(compared.expected, compared.found, compared.limit))


CONFIGURATION, TRANSLATION = ("STEP-CONFIGURATION",), ("TRANSLATE-01",)
BRIDGE, ARCHIVE, DATA, OPTIMISER = ("STEP-BRIDGE",), ("ARCHIVE-01",), ("STEP-DATA",), ("STEP-OPTIMISER",)
TRAINING = ("lightning", "tensordict")

CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        Check("forward.probe", ("exit_wave",), light.normalised_probes),
        Check("configuration.defaults", CONFIGURATION, configuration.defaults),
        Check("configuration.intensity_scale", CONFIGURATION, configuration.intensity_scale_of_counts),
        Check("configuration.used", CONFIGURATION, configuration.used, ("lightning",)),
        Check("configuration.loss", CONFIGURATION, configuration.loss_weights),
        Check("configuration.unstated", TRANSLATION, translation.unstated),
        Check("configuration.stated", (*TRANSLATION, "CONFIG-08"), partial(translation.translated, as_run=False)),
        Check("configuration.as_run", TRANSLATION, partial(translation.translated, as_run=True)),
        Check("configuration.spelled", TRANSLATION, translation.spelled),
        Check("configuration.written", (*TRANSLATION, "CONFIG-08"), translation.written),
        Check("bridge.layouts", BRIDGE, bridge.layouts),
        Check("bridge.weights", BRIDGE, bridge.weights_to_torch),
        Check("bridge.weights_back", BRIDGE, bridge.weights_to_tensorflow),
        Check("bridge.weight_order", BRIDGE, bridge.weight_order),
        Check("bridge.weight_shapes", BRIDGE, bridge.weight_shapes),
        Check("bridge.probe", BRIDGE, bridge.stored_probe),
        Check("bridge.graphs", ARCHIVE, archives.graphs),
        Check("bridge.keras_archives", ARCHIVE, archives.keras_archives, ("h5py",)),
        Check("bridge.saved_models", ARCHIVE, archives.saved_models, ("google_crc32c",)),
        Check("bridge.converted", ARCHIVE, conversion.converted, ("lightning",)),
        Check("bridge.exported", ARCHIVE, export.exported_archives, ("h5py",)),
        Check("data.samplers", (*DATA, "GROUP-02", "REF-08"), data.samplers),
        Check(
            "data.path", (*DATA, "GROUP-02", "GROUP-03", "GROUP-04", "PROBE-01", "REF-08"), data.path, ("tensordict",)
        ),
        Check("forward.translate", ("merged", "views"), light.translated),
        Check("forward.stitch", ("STITCH-01",), stitching.stitched),
        Check("forward.illuminate", ("exit_wave",), light.illuminated),
        Check("forward.autocast", ("FORWARD-FORCED",), light.autocast),
        Check("forward.target", ("REF-04", "LOSS"), target.known_object),
        Check("optimiser.masked_loss", (*OPTIMISER, "BATCH-05", "LOSS"), masked_loss.masked_loss, TRAINING),
        Check("optimiser.clipping", (*OPTIMISER, "TRAIN-STATE"), optimiser.clipping, TRAINING),
        Check("optimiser.epoch_loss", OPTIMISER, optimiser.epoch_loss, TRAINING),
        Check("optimiser.initial_weights", ("RUN-01",), optimiser.initial_weights, TRAINING),
    )
}
"""Id → check, in the order in which a run goes through them: what a check takes from another comes after it."""
