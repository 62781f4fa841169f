"""End to end: both backends trained in pairs, from the same weights on the same batches, and their ends compared.

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
from conformance.judge.equivalence import ALPHA, compare_pairs
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

JITTER_PX, NPHOTONS = 1.5, 1e6
SPOKES, CONTRAST = 8, 0.3
"""A weak star with few spokes: finer ones are not found in so short a training, and a stronger star can end as its own
negative."""

Say = Callable[[str], None]
LAST_RATE = 0.05
"""Part of the learning rate that it falls to, epoch by epoch."""

BACKENDS = ("keras", "torch")
NEEDED_PAIRS = 20
NEEDED_CORRELATION = 0.9
"""Phase correlation with the known object that the reference has to reach on the average before ends are compared."""

MARGINS: Mapping[str, Callable[[float], float]] = {
    "amplitude_error": lambda mean: 0.01 * mean,
    "phase_correlation": lambda mean: 0.01,
}
"""Measure → mean of the reference → largest mean difference that is none."""

OVERRIDES: Mapping[str, Any] = {
    "n_filters_scale": 1, "probe_big": False, "batch_size": 4, "gradient_clip_val": None,
    "early_stop_patience": None, "scheduler": "Exponential", "validation_fraction": 0.0, "tracking": False,
    "device": "cpu",
}  # fmt: skip
"""What differs from the settings of every run: a small network without border, no clipping, as the reference has it,
and a rate that falls a little every epoch, so that a training ends where it has come to rest. The reference's plateau
takes the noise of a loss of thousands for its end, and lowers the rate too early."""


@dataclass(frozen=True)
class Point:
    """One network and the scan that it is trained on.

    Attributes:
        N: pixels a side of a pattern.
        gridsize: g; g² patterns in a group.
        probe: of the scan, as ``simulate.choose_probe`` has it.
        patterns: of the scan.
        step_px: between its neighbours.
        epochs: of each training.
    """

    N: int
    gridsize: int
    probe: str
    patterns: int
    step_px: float
    epochs: int

    def settings(self, seed: int) -> Settings:
        """Return the settings of one training."""
        of_point = {"N": self.N, "gridsize": self.gridsize, "max_epochs": self.epochs}
        return Settings().override({**OVERRIDES, **of_point, "lr_gamma": LAST_RATE ** (1 / self.epochs), "seed": seed})


POINTS: Mapping[str, Point] = {
    "n64_g1": Point(N=64, gridsize=1, probe="focused", patterns=400, step_px=5.0, epochs=24),
    "n64_g2": Point(N=64, gridsize=2, probe="default", patterns=225, step_px=8.0, epochs=32),
    "n128_g2": Point(N=128, gridsize=2, probe="default", patterns=100, step_px=16.0, epochs=30),
}
"""Name → point."""


@dataclass(frozen=True)
class Outcome:
    """Where one training ended.

    Attributes:
        point: name of its point.
        backend: ``torch`` or ``keras``.
        seed: of initial weights and order of batches; the two backends of a seed are a pair.
        loss: mean training loss of the last epoch.
        phase_correlation: of the reconstruction with the known object.
        amplitude_error: relative.
        phase_error_rad: mean.
        cpu_seconds: that it took, of all threads.
        code: digest of the numerical sources that it is valid for.
    """

    point: str
    backend: str
    seed: int
    loss: float
    phase_correlation: float
    amplitude_error: float
    phase_error_rad: float
    cpu_seconds: float
    code: str

    @property
    def file_name(self) -> str:
        """What its file is called."""
        return f"{self.point}-{self.backend}-{self.seed}.json"


def write_study_scan(path: Path, point: Point) -> Path:
    """Simulate the scan of a point; it is the same on every machine, so that whoever comes second changes nothing."""
    draw = np.random.default_rng(0)
    plan = simulate.plan_positions("raster", point.patterns, point.N, draw, step_px=point.step_px, jitter_px=JITTER_PX)
    specimen = weaken(draw_siemens_star((plan.size_px, plan.size_px), draw, spokes=SPOKES), CONTRAST)
    probe = simulate.scale_probe(specimen, simulate.choose_probe(point.probe, point.N), plan.positions_px, NPHOTONS)
    simulate.write_scan(path, specimen, probe, plan.positions_px, draw, overwrite=True)
    return path


def run_study(
    folder: Path, pairs: int, say: Say, points: Sequence[str] = tuple(POINTS), backends: Sequence[str] = BACKENDS
) -> list[Outcome]:
    """Train what is not there yet; return all outcomes.

    Other processes may train other points, or the other backend, in the same folder.

    Args:
        folder: of the study: scans, and a file for each run.
        pairs: how many trainings of each backend at each point.
        say: is told how far it is.
        points: names, from ``POINTS``.
        backends: which.

    Raises:
        DocumentError: a file of the folder is none of this study.
        BackendMissingError: no TensorFlow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in points:
        scan = folder / f"{name}.npz"
        if not scan.exists():
            write_study_scan(scan, POINTS[name])
        for seed in range(pairs):
            for backend in backends:
                path = folder / f"{name}-{backend}-{seed}.json"
                if path.exists():
                    last = _read(path)
                else:
                    say(f"{name}, {backend}, seed {seed}: {POINTS[name].epochs} epochs")
                    last = _train(name, backend, seed, scan, folder / f"map-{name}")
                    write_text(path, as_text(dataclasses.asdict(last)))
                outcomes.append(last)
                say(
                    f"{name}, {backend}, seed {seed}: loss {last.loss:.2f}, phase correlation "
                    f"{last.phase_correlation:.4f}, amplitude error {last.amplitude_error:.5f}, "
                    f"{last.cpu_seconds:.0f} CPU-seconds"
                )
    return outcomes


def _read(path: Path) -> Outcome:
    found = Outcome(**read_json(path, SCHEMA, largest_bytes=_LARGEST_BYTES))
    if path.name != found.file_name:
        raise DocumentError(f"{path}: holds {found.file_name}; delete it, and it is made again.")
    if found.code != numerical_digest("training"):
        raise DocumentError(f"{path}: was trained by other code than is here; begin the study anew in another folder.")
    return found


def _train(name: str, backend: str, seed: int, scan: Path, data_dir: Path) -> Outcome:
    """Train, reconstruct and score the object; both backends' weights by one program."""
    settings, started = POINTS[name].settings(seed), time.process_time()
    dataset = PtychoDataset(scan, data_dir=data_dir, settings=settings.data)
    loss, module = (_train_keras if backend == "keras" else _train_torch)(dataset, settings)
    stitched = reconstruct(module.eval(), dataset, device="cpu", progress=False)[0]
    image, covered = stitched.object.numpy(), stitched.coverage.numpy()
    scores = score(compare(image, stitched.origin_px, read_truth(scan), region=covered))
    return Outcome(
        point=name,
        backend=backend,
        seed=seed,
        loss=loss,
        phase_correlation=scores.phase_correlation,
        amplitude_error=scores.amplitude_error,
        phase_error_rad=scores.phase_error_rad,
        cpu_seconds=time.process_time() - started,
        code=numerical_digest("training"),
    )


def _train_torch(dataset: PtychoDataset, settings: Settings) -> tuple[float, train.PtychoPINN]:
    """Train as users do; return the mean loss of the last epoch, and the module."""
    with tempfile.TemporaryDirectory() as output:
        result = train.main(dataset, settings=settings, output_dir=output, reconstruct=False, progress=False)
    return result.history["train_loss"][-1], result.module


def _train_keras(dataset: PtychoDataset, settings: Settings) -> tuple[float, train.PtychoPINN]:
    """Train our Keras model of the reference by Keras' Adam; return what ``_train_torch`` does.

    It starts at the weights, and takes the batches, that our training has with this seed.
    """
    from ptycho_tf_bridge import keras_reference
    from ptycho_tf_bridge.backend import tensorflow

    tf, training = tensorflow(), settings.training
    module = train.PtychoPINN.for_dataset(dataset, settings)
    network = module.network.settings
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
    assert training.max_epochs is not None  # every point has its number
    for epoch in range(training.max_epochs):
        optimizer.learning_rate = training.learning_rate * training.lr_gamma**epoch
        loss = _mean(update, groups, module.scale)
    trained = to_torch(keras_reference.named_weights(model), network)
    module.network.load_state_dict(
        dict(module.network.state_dict()) | {name: torch.from_numpy(array) for name, array in trained.items()}
    )
    return loss, module


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


def as_evidence(outcomes: Sequence[Outcome], command: str) -> Evidence:
    """Return the study's numbers with their goals: at each point the ends of both backends are equivalent.

    Raises:
        DocumentError: a run has no partner, or a point fewer than two pairs.
    """
    numbers: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    meanings: dict[str, str] = {}
    values: dict[str, tuple[float, ...]] = {}
    for name in POINTS:
        ends = {(each.backend, each.seed): each for each in outcomes if each.point == name}
        seeds = sorted({seed for _, seed in ends})
        if not ends or len(ends) != len(BACKENDS) * len(seeds):
            raise DocumentError(
                f"{name}: found runs without their pairs; run the study without --points and --backend."
            )
        for measure, margin_of in MARGINS.items():
            theirs, ours = (
                tuple(float(getattr(ends[backend, seed], measure)) for seed in seeds) for backend in BACKENDS
            )
            values |= {f"{name} {measure} torch": ours, f"{name} {measure} keras": theirs}
            found = compare_pairs(ours, theirs, margin_of(statistics.mean(theirs)))
            about, words = f"{name}_{measure}", f"{name}, {measure.replace('_', ' ')}"
            told = {
                "reference_mean": (statistics.mean(theirs), "mean of the reference"),
                "mean_difference": (found.mean, "mean of ours − the reference's"),
                "sd": (found.sd, "σ of the differences"),
                "margin": (found.margin, "margin"),
                "p": (found.p, "p of the two one-sided tests; equivalent up to 0.05"),
                "power": (found.power, "power, were there no difference"),
                "smallest_effect": (found.smallest_effect, "smallest difference that a t test finds 4 times in 5"),
            }
            numbers |= {f"{about}_{key}": number for key, (number, _) in told.items()}
            meanings |= {f"{about}_{key}": f"{words}: {meaning}" for key, (_, meaning) in told.items()}
            goals[f"{about}_p"] = Goal(at_most=ALPHA)
        goals[f"{name}_phase_correlation_reference_mean"] = Goal(at_least=NEEDED_CORRELATION)
        numbers[f"{name}_pairs"], goals[f"{name}_pairs"] = len(seeds), Goal(at_least=NEEDED_PAIRS)
        meanings[f"{name}_pairs"] = f"{name}: pairs n of trainings"
    return measured_here("training", command, numbers, goals=goals, meanings=meanings, case="study", values=values)
