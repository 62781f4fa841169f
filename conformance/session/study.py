"""End to end: both backends trained on one simulated scan, each seed from the same weights, and their ends compared.

It takes hours, so that every run leaves a file of its own, and a study that was interrupted resumes where it was.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.errors import DocumentError
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import Evidence, Goal, measured_here
from conformance.provenance.json_files import as_text, read_json, write_text
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import to_tensorflow, to_torch, torch_shapes
from ptycho_torch import simulate, train
from ptycho_torch.config_params import Settings
from ptycho_torch.data.specimens import draw_siemens_star, weaken
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
from ptycho_torch.evaluate import compare, read_truth, score
from ptycho_torch.inference import reconstruct

SCHEMA = "study.json"
_LARGEST_BYTES = 1 << 16

PATTERNS, STEP_PX, JITTER_PX, NPHOTONS = 900, 5.0, 1.5, 1e6
SPOKES, CONTRAST = 8, 0.3
"""A weak star with few spokes. Finer ones end below the correlation that is asked for, however many the epochs are, and
a stronger one can end as its own negative."""

NEEDED_CORRELATION = 0.9
"""Phase correlation with the known object that the reference has to reach before ends are compared."""

Say = Callable[[str], None]
EPOCHS = 20
RATE_FACTOR = 0.95
"""Of the learning rate, from one epoch to the next."""

BACKENDS = ("keras", "torch")
MEASURES = ("loss", "phase_correlation", "amplitude_error")

OVERRIDES: Mapping[str, Any] = {
    "gridsize": 1, "n_filters_scale": 1, "probe_big": False, "batch_size": 4, "gradient_clip_val": None,
    "early_stop_patience": None, "scheduler": "Exponential", "lr_gamma": RATE_FACTOR, "validation_fraction": 0.0,
    "tracking": False, "device": "cpu",
}  # fmt: skip
"""What differs from the settings of every run: a small network without border, no clipping, as the reference has it,
and a rate that falls a little every epoch, so that a training ends where it has come to rest. The reference's plateau
takes the noise of a loss of thousands for its end, and lowers the rate too early."""


@dataclass(frozen=True)
class Outcome:
    """Where one training ended.

    Attributes:
        backend: ``torch`` or ``keras``.
        seed: of initial weights and order of batches.
        epochs: how many.
        groups: of the scan.
        loss: mean training loss of the last epoch.
        phase_correlation: of the reconstruction with the known object.
        amplitude_error: relative.
        phase_error_rad: mean.
        seconds: it took.
        code: digest of the numerical sources that it is valid for.
    """

    backend: str
    seed: int
    epochs: int
    groups: int
    loss: float
    phase_correlation: float
    amplitude_error: float
    phase_error_rad: float
    seconds: float
    code: str


def write_study_scan(path: Path) -> Path:
    """Simulate the scan of the study; it is the same on every machine."""
    draw = np.random.default_rng(0)
    plan = simulate.plan_positions("raster", PATTERNS, 64, draw, step_px=STEP_PX, jitter_px=JITTER_PX)
    specimen = weaken(draw_siemens_star((plan.size_px, plan.size_px), draw, spokes=SPOKES), CONTRAST)
    probe = simulate.scale_probe(specimen, simulate.choose_probe("focused", 64), plan.positions_px, NPHOTONS)
    simulate.write_scan(path, specimen, probe, plan.positions_px, draw)
    return path


def run_study(folder: Path, seeds: int, epochs: int, say: Say, backends: Sequence[str] = BACKENDS) -> list[Outcome]:
    """Train what is not there yet; return all outcomes.

    Args:
        folder: of the study: the scan, and a file for each run.
        seeds: how many of each backend.
        epochs: of each run.
        say: is told how far it is.
        backends: which.

    Raises:
        DocumentError: a file of the folder is none of this study.
        BackendMissingError: no TensorFlow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scan = folder / "scan.npz"
    if not scan.exists():
        write_study_scan(scan)
    outcomes = []
    for seed in range(seeds):
        for backend in backends:
            path = folder / f"{backend}-{epochs}-{seed}.json"
            if path.exists():
                outcomes.append(_read(path))
            else:
                say(f"{backend}, seed {seed}: {epochs} epochs")
                run = _train_keras if backend == "keras" else _train_torch
                outcome = run(scan, folder / "map", seed, epochs, say)
                write_text(path, as_text(dataclasses.asdict(outcome)))
                outcomes.append(outcome)
            last = outcomes[-1]
            say(
                f"{backend}, seed {seed}: loss {last.loss:.2f}, phase correlation {last.phase_correlation:.3f}, "
                f"amplitude error {last.amplitude_error:.4f}, {last.seconds:.0f} s"
            )
    return outcomes


def _read(path: Path) -> Outcome:
    found = Outcome(**read_json(path, SCHEMA, largest_bytes=_LARGEST_BYTES))
    if path.name != f"{found.backend}-{found.epochs}-{found.seed}.json":
        raise DocumentError(f"{path}: holds seed {found.seed} of {found.backend}; delete it, and it is made again.")
    if found.code != numerical_digest("training"):
        raise DocumentError(f"{path}: was trained by other code than is here; begin the study anew in another folder.")
    return found


def _settings(seed: int, epochs: int) -> Settings:
    return Settings().override({**OVERRIDES, "seed": seed, "max_epochs": epochs})


def _train_torch(scan: Path, data_dir: Path, seed: int, epochs: int, say: Say) -> Outcome:
    """Train as users do."""
    settings, started = _settings(seed, epochs), time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        result = train.main(
            scan, settings=settings, output_dir=output, data_dir=data_dir, reconstruct=False, progress=False
        )
    seconds = time.perf_counter() - started
    dataset = PtychoDataset(scan, data_dir=data_dir, settings=settings.data)
    return _outcome("torch", seed, epochs, result.history["train_loss"][-1], result.module, dataset, scan, seconds)


def _train_keras(scan: Path, data_dir: Path, seed: int, epochs: int, say: Say) -> Outcome:
    """Train our Keras model of the reference by Keras' Adam.

    It starts at the weights, and takes the batches, that our training has with this seed.
    """
    from ptycho_tf_bridge import keras_reference
    from ptycho_tf_bridge.backend import tensorflow

    tf, settings, started = tensorflow(), _settings(seed, epochs), time.perf_counter()
    dataset = PtychoDataset(scan, data_dir=data_dir, settings=settings.data)
    module = train.PtychoPINN.for_dataset(dataset, settings)
    network, training = module.network.settings, settings.training
    model = keras_reference.build_reference(network, module.network.probe.detach().numpy())
    state = module.network.state_dict()
    initial = {name: state[name].numpy() for name in torch_shapes(network)}
    keras_reference.set_named_weights(model, to_tensorflow(initial, network))
    optimizer = keras_reference.adam(training.learning_rate)
    optimizer.build(model.trainable_variables)
    weights = training.loss_weights(settings.model.loss_function)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def update(amplitude: Any, offsets: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = keras_reference.run_stages(model, amplitude, offsets)
            total = keras_reference.losses(network, weights, outputs, amplitude)["total"]
        optimizer.apply_gradients(
            zip(tape.gradient(total, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return total

    loss = 0.0
    groups, _ = train.loaders(dataset, training)
    for epoch in range(epochs):
        optimizer.learning_rate = training.learning_rate * training.lr_gamma**epoch
        loss = _mean(update, groups, module.scale)
        say(f"  epoch {epoch + 1} of {epochs}: loss {loss:.2f}")
    seconds = time.perf_counter() - started
    trained = to_torch(keras_reference.named_weights(model), network)
    module.network.load_state_dict(
        dict(module.network.state_dict()) | {name: torch.from_numpy(array) for name, array in trained.items()}
    )
    return _outcome("keras", seed, epochs, loss, module, dataset, scan, seconds)


def _mean(loss_of: Callable[[Any, Any], Any], batches: Any, scale: float) -> float:
    """Return the mean over groups of what a loss gives for each batch."""
    total, groups = 0.0, 0
    for batch in batches:
        assert isinstance(batch, PtychoBatch)
        amplitude = LAYOUTS["channels"].to_tensorflow((batch.images * scale).numpy())
        offsets = LAYOUTS["offsets"].to_tensorflow(batch.coords.numpy())
        total += float(loss_of(amplitude, offsets)) * len(amplitude)
        groups += len(amplitude)
    return total / groups


def _outcome(
    backend: str,
    seed: int,
    epochs: int,
    loss: float,
    module: train.PtychoPINN,
    dataset: PtychoDataset,
    scan: Path,
    seconds: float,
) -> Outcome:
    """Reconstruct with the trained weights and score the object; both backends' weights by one program."""
    stitched = reconstruct(module.eval(), dataset, device="cpu", progress=False)[0]
    image, covered = stitched.object.numpy(), stitched.coverage.numpy()
    scores = score(compare(image, stitched.origin_px, read_truth(scan), region=covered))
    return Outcome(
        backend=backend,
        seed=seed,
        epochs=epochs,
        groups=len(dataset),
        loss=loss,
        phase_correlation=scores.phase_correlation,
        amplitude_error=scores.amplitude_error,
        phase_error_rad=scores.phase_error_rad,
        seconds=seconds,
        code=numerical_digest("training"),
    )


def as_evidence(outcomes: Sequence[Outcome], command: str) -> Evidence:
    """Return the study's numbers with their goals: the median of ours lies within the range of the reference's.

    Raises:
        DocumentError: a backend has no run.
    """
    ours, theirs = ([each for each in outcomes if each.backend == backend] for backend in ("torch", "keras"))
    if not ours or not theirs:
        raise DocumentError("a study needs runs of both backends; run it again without --backend.")
    numbers: dict[str, float] = {
        "seeds": min(len(ours), len(theirs)),
        "epochs": ours[0].epochs,
        "groups": ours[0].groups,
    }
    goals = {"groups": Goal(at_least=300), "seeds": Goal(at_least=5)}
    meanings = {"seeds": "trainings of each backend"}
    for measure in MEASURES:
        mine, reference = ([float(getattr(each, measure)) for each in side] for side in (ours, theirs))
        numbers[f"{measure}_median"] = statistics.median(mine)
        numbers[f"{measure}_lowest"], numbers[f"{measure}_highest"] = min(mine), max(mine)
        numbers[f"reference_{measure}_median"] = statistics.median(reference)
        numbers[f"reference_{measure}_lowest"] = min(reference)
        numbers[f"reference_{measure}_highest"] = max(reference)
        goals[f"{measure}_median"] = Goal(at_least=min(reference), at_most=max(reference))
        meanings[f"{measure}_median"] = f"median {measure.replace('_', ' ')} of ours, within the reference's range"
    goals["reference_phase_correlation_median"] = Goal(at_least=NEEDED_CORRELATION)
    return measured_here("training", command, numbers, goals=goals, meanings=meanings, case="study")
