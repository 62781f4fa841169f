"""Recordings of what a reference computes: which, of which cases, and whether they hold."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from conformance.cases.case import Case
from conformance.cases.draws import GRAPHS, draw_case
from conformance.errors import RecordError
from conformance.recordings.record import Recorder, coarse_weights, keras_recorder, live_recorder, record, write_bundle
from conformance.session.bench import LIVE, Bench, plan
from conformance.verify.verification import archive_case
from ptycho_tf_bridge.archives.archive import read_archive
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.files.folders import refuse_target

REFERENCES: dict[str, Callable[[Case], Recorder]] = {"keras": keras_recorder}
"""What ``--reference`` takes beside ``live:PACKAGE``, with the recorder of a case."""


@dataclass(frozen=True)
class Drawn:
    """A drawn case, small enough to come with the package."""

    settings: NetworkSettings
    batch: int = 1
    modes: int = 1
    samples: int = 256

    def case(self) -> Case:
        """Draw it; the weights are coarse, since they are most of a recording."""
        return coarse_weights(draw_case(self.settings, seed=0, batch=self.batch, modes=self.modes))


EMBEDDED = MappingProxyType(
    {
        "n64_g1_nopad": Drawn(dataclasses.replace(GRAPHS["n64_g1_nopad"], object_big=False), batch=3),
        "n64_g2_modes": Drawn(
            dataclasses.replace(
                GRAPHS["n64_g2_mask_blur"], probe_big=False, shared_amplitude_head=True, amp_activation="swish"
            ),
            modes=2,
        ),
        "n128_g2": Drawn(GRAPHS["n128_g2"]),
    }
)
"""Recordings that come with the package, beside those of the reference's own code."""


def run(options: argparse.Namespace) -> int:
    """Record; return 0, or 1 where the reference is not what the specification says.

    Raises:
        PtychoError: what is wrong with the arguments, the archive, the scan or the reference.
    """
    if options.graph not in GRAPHS:
        raise RecordError(f"--graph {options.graph}: found no such case; expected {', '.join(GRAPHS)}.")
    recorder_of = _recorder_of(options.reference)
    if recorder_of is None:
        known = ", ".join([*REFERENCES, "live:PACKAGE"])
        raise RecordError(f"--reference {options.reference}: found no such reference; expected {known}.")
    failed = 0
    for path, case, samples in _cases(options):
        refuse_target(path, overwrite=options.overwrite)
        _say(f"{path}: case {case.name}")
        write_bundle(path, record(case, recorder_of(case), _say, samples=samples), overwrite=options.overwrite)
        failed += _examine(path)
    return 1 if failed else 0


def _recorder_of(reference: str) -> Callable[[Case], Recorder] | None:
    if reference.startswith(LIVE):
        return lambda case: live_recorder(case, reference.removeprefix(LIVE))
    return REFERENCES.get(reference)


def _cases(options: argparse.Namespace) -> Iterator[tuple[Path, Case, int]]:
    """Yield file, case and number of samples."""
    if options.embedded:
        for name, drawn in EMBEDDED.items():
            yield options.output / f"{name}.npz", dataclasses.replace(drawn.case(), name=name), drawn.samples
    elif options.archive is not None:
        case, inputs = archive_case(read_archive(options.archive), options.scan, None)
        _say(f"inputs: {inputs}")
        yield options.output, dataclasses.replace(case, name=options.output.stem), options.samples
    else:
        case = draw_case(GRAPHS[options.graph], options.seed, batch=options.batch, modes=options.modes)
        yield options.output, dataclasses.replace(case, name=options.graph), options.samples


def _examine(path: Path) -> int:
    """Judge the recording that was written; say what came of it, and return how many verdicts failed."""
    (planned,) = plan(str(path), None, "quick")
    verdicts = Bench().record(planned)
    failed = [verdict for verdict in verdicts.values() if not verdict.passed]
    for verdict in failed:
        _say(f"FAILED {verdict.explain()}")
    size = path.stat().st_size / 1e6
    _say(
        f"{path}: {size:.1f} MB; "
        + (f"{len(failed)} of {len(verdicts)} verdicts about it fail" if failed else f"{len(verdicts)} verdicts hold")
    )
    return len(failed)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command shows its progress
