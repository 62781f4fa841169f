"""Recording a bundle: one case, what a reference says about it at every stage, and the float64 truth.

The format is described in <doc-ref type="contract">specs/README.md</doc-ref>, "Bundles".
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.case import Case, FreeRun
from conformance.errors import RecordError
from conformance.judge.measure import Key, Measurement, Quantity, Subject, envelope
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.oracle.stages import rms
from conformance.recordings.bundle import read_bundle
from conformance.recordings.calibrate import RUNS, reference_runs
from conformance.recordings.manifest import RecordedErrors, envelope_member, manifest_member
from conformance.subjects.keras import KerasSubject
from conformance.subjects.package import identify
from conformance.subjects.tensorflow import TensorFlowSubject
from conformance.training.state import TrainingRun, Trajectory
from ptycho_tf_bridge.backend import keras, tensorflow
from ptycho_tf_bridge.live import LiveReference
from ptycho_torch.files.npz_writer import NpzWriter, replacing

SAMPLES = 1024
"""Elements kept of a larger tensor: enough to know it by, and small enough for a recording of 5 MB."""

STEPS = 3
"""Updates by Keras Adam(1e-3) that are recorded."""

WEIGHT_LEVELS = 16
"""Steps of the grid that coarse weights lie on."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recorder:
    """A reference, and what to say about where a recording of it comes from.

    Attributes:
        reference: float32.
        train: trains the same reference as a run says; None records no training.
        provenance: name → text, for the member ``provenance``.
    """

    reference: Subject
    train: Callable[[TrainingRun], Trajectory] | None
    provenance: Mapping[str, str]


def keras_recorder(case: Case) -> Recorder:
    """Return live Keras for a case.

    Raises:
        BackendMissingError: no TensorFlow.
    """
    subject = KerasSubject(case.settings, "float32")
    return Recorder(
        subject,
        subject.train,
        _provenance(f"ptycho_tf_bridge {metadata.version('ptycho-torch')}"),
    )


def live_recorder(case: Case, package: str) -> Recorder:
    """Return a reference package, by name or path, for a case. How it trains is its own affair, and is not recorded.

    Raises:
        BackendMissingError: no TensorFlow.
        LiveReferenceError: no such package, or one that cannot be driven.
    """
    driven = LiveReference(package, case.settings)
    about = identify(driven.package)
    reference = f"{about.name} {about.known_as}, sha256 {about.sha256}"
    return Recorder(TensorFlowSubject(case.settings, "float32", driven), None, _provenance(reference))


def _provenance(reference: str) -> dict[str, str]:
    return {
        "reference": reference,
        "tensorflow": str(tensorflow().__version__),
        "keras": str(keras().__version__),
        "device": "cpu",
        "dtype": "float32",
    }


def coarse_weights(case: Case) -> Case:
    """Round every weight to a grid of few steps, so that they pack to a fifth; as good as any for a comparison.

    The step is a power of two over ``WEIGHT_LEVELS``, so each weight is a float32 number that stays what it is.
    """

    def rounded(weight: np.ndarray) -> np.ndarray:
        largest = float(np.abs(weight).max())
        if largest == 0:
            return weight
        step = 2 * 2.0 ** np.ceil(np.log2(largest)) / WEIGHT_LEVELS
        return np.asarray(np.round(weight.astype(np.float64) / step) * step, dtype=weight.dtype)

    return dataclasses.replace(case, weights={name: rounded(weight) for name, weight in case.weights.items()})


def record(case: Case, recorder: Recorder, progress: Progress, *, samples: int = SAMPLES) -> dict[str, np.ndarray]:
    """Run the reference on a case and on copies moved by one ulp; return the members of the bundle.

    Args:
        case: inputs and weights, float32.
        recorder: the reference.
        progress: called with a line after each part.
        samples: elements kept of a larger tensor.

    Raises:
        RecordError: the reference is not comparable with the truth at all, so there is nothing to record.
        ValueError, WeightMapError: what the reference says to a case that it cannot run.
    """
    measurement = Measurement(Truth(case), load_measured().limits)
    run = recorder.reference.free(case)
    progress("the reference, run once from end to end")
    errors = _errors(measurement, recorder.reference, progress)
    truth = measurement.truth
    arrays = {
        "config": _json(dataclasses.asdict(case.settings) | dataclasses.asdict(case.loss_weights)),
        "provenance": _json(dict(recorder.provenance) | {"case": case.name}),
        "input/diffraction": case.diffraction,
        "input/offsets": case.offsets_px,
        "input/probe": case.probe,
        "envelope": envelope_member(errors),
    }
    arrays |= {f"weight/{name}": weight for name, weight in case.weights.items()}
    arrays |= {f"loss/{name}": np.array(value) for name, value in run.losses.items()}
    arrays |= {f"truth/loss/{name}": np.array(value) for name, value in truth.losses.items()}
    for key, recorded, true in _tensors(run, truth):
        arrays |= _sampled(key, recorded, samples)
        arrays |= {f"truth/{key}": _sampled(key, true, samples)[key], f"rms/{key}": np.array(rms(true))}
    if recorder.train is not None:
        training = recorder.train(TrainingRun.repeated(case, STEPS))
        progress(f"{STEPS} updates by Adam")
        arrays["train/loss"] = np.asarray(training.losses)
        for name in case.weights:
            arrays |= _sampled(f"trained/{name}", training.states[-1].weights[name], samples)
    return arrays | {"manifest": manifest_member(arrays)}


def write_bundle(path: Path, arrays: Mapping[str, np.ndarray], *, overwrite: bool) -> None:
    """Write a bundle that can be read back, in one rename; the same arrays make the same bytes.

    Raises:
        ConfigError: there is no such folder, or something is there that may not be overwritten.
        BundleError: the arrays are no bundle.
    """
    with replacing(path, overwrite=overwrite, check=read_bundle) as file, NpzWriter(file, compress=True) as npz:
        for key, array in arrays.items():
            npz.array(key, array)


def _errors(measurement: Measurement, reference: Subject, progress: Progress) -> RecordedErrors:
    case = measurement.truth.case
    runs: list[Mapping[Key, Quantity]] = []
    for found in reference_runs(measurement, reference):
        wrong = next((f"{key[1]} ({key[0]}): {each.mismatch}" for key, each in found.items() if each.mismatch), None)
        if wrong is not None:
            raise RecordError(f"case {case.name!r}: the reference cannot be compared with the truth at {wrong}.")
        progress(f"run {len(runs) + 1} of {RUNS + 1}, stage by stage" + (", moved by one ulp" if runs else ""))
        runs.append(found)
    own = {key: each.errors for key, each in runs[0].items()}
    return RecordedErrors(len(runs), own, envelope(runs))


def _tensors(run: FreeRun, truth: Truth) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield key, what the reference says and what is true, of every stage and every weight's gradient."""
    for name, array in truth.stages.items():
        yield f"stage/{name}", run.stages[name], array
    for name in truth.case.weights:
        yield f"grad/{name}", run.gradients[name], truth.gradients.constants[name]


def _sampled(key: str, array: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """Return a tensor's members: all of it, or elements drawn by its name, which are the same in every recording."""
    found = {key: array.reshape(-1), f"shape/{key}": np.array(array.shape, dtype=np.int64)}
    if array.size > samples:
        draw = np.random.default_rng(zlib.crc32(key.encode()))
        index = np.sort(draw.choice(array.size, samples, replace=False)).astype(np.int32)
        found |= {key: array.reshape(-1)[index], f"index/{key}": index}
    return found


def _json(content: Mapping[str, Any]) -> np.ndarray:
    return np.array(json.dumps(content))
