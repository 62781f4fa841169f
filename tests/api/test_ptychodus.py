"""ptychodus, unmodified, trains and reconstructs with this package; and the classes that it does so with."""

from __future__ import annotations

import logging
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ptycho_torch import train
from ptycho_torch.api.base_api import ConfigManager, InferenceEngine, NewModel, PtychoDataLoader, PtychoModel, Trainer
from ptycho_torch.api.client_scans import object_on_frame, scan_of_arrays, scan_of_file
from ptycho_torch.commands import cli
from ptycho_torch.config_params import DataConfig, InferenceConfig, ModelConfig, Settings, TrainingConfig
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.reconstruction.products import read_reconstruction
from ptycho_torch.reconstruction.reassembly import Stitched
from ptycho_torch.training.checkpoint import read_checkpoint
from tests.support.document_blocks import blocks
from tests.support.training_runs import SMALL

N = 64
WIDTH, HEIGHT = 101, 90
PIXEL_M = 1e-8
ALL = (0.0, 1.0)
PAGE = Path(__file__).parents[2] / "docs" / "ptychodus.md"


def draw_arrays() -> SimpleNamespace:
    """Draw an object, a probe, and positions in its pixels: (row, column) of the middle of each patch."""
    draw = np.random.default_rng(0)
    row, column = np.mgrid[:N, :N] - (N - 1) / 2
    probe = 30 * np.exp(-(row**2 + 2 * column**2) / (2 * 8**2) + 1j * row / N)
    modulus, phase = 0.7 + 0.3 * draw.random((HEIGHT, WIDTH)), 0.5 * draw.random((HEIGHT, WIDTH))
    corners = draw.uniform(0, (HEIGHT - N, WIDTH - N), (12, 2))
    corners[:4] = [(0, 0), (HEIGHT - N, WIDTH - N), (7, 3), (2, 21)]
    return SimpleNamespace(object=modulus * np.exp(1j * phase), probe=probe, positions=corners + (N - 1) / 2)


def write_training_file(path: Path, **members: Any) -> Path:
    """Write what ptychodus exports."""
    drawn, draw = draw_arrays(), np.random.default_rng(1)
    y, x = drawn.positions.T
    content = {
        "xcoords": x, "ycoords": y, "xcoords_start": x, "ycoords_start": y,
        "diff3d": draw.poisson(40.0, (12, N, N)).astype(np.uint16), "bad_pixels": np.eye(N, dtype=bool),
        "probeGuess": drawn.probe[None], "objectGuess": drawn.object, "scan_index": np.zeros(12, int),
    } | members  # fmt: skip
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


class LossesAtTheEnd(Callback):
    """Looks at the losses where ptychodus does."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen["train"] = float(trainer.callback_metrics["train_loss"])

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen["val"] = float(trainer.callback_metrics["val_loss"])


def small_manager(**training: Any) -> ConfigManager:
    return ConfigManager(
        DataConfig(N=N, n_subsample=1, x_bounds=ALL, y_bounds=ALL),
        ModelConfig(n_filters_scale=1),
        TrainingConfig(epochs=1, device="cpu", **training),
        InferenceConfig(),
    )


# ------------------------------------------------------------------------------------------------- what is handed over


def test_a_training_file_becomes_amplitude_half_a_pixel_further(tmp_path: Path) -> None:
    path = write_training_file(tmp_path / "training.npz")
    with np.load(path) as file:
        theirs = dict(file)
    ours = scan_of_file(path, ALL, ALL)
    assert ours.name == "training.npz"
    assert set(ours.keys) == {*theirs} - {"bad_pixels", "objectGuess"}
    np.testing.assert_array_equal(ours.read("diff3d"), np.sqrt(theirs["diff3d"].astype(np.float64)).astype(np.float32))
    for name in ("xcoords", "ycoords", "xcoords_start", "ycoords_start"):
        np.testing.assert_array_equal(ours.read(name), theirs[name] + 0.5)
    np.testing.assert_array_equal(ours.read("probeGuess"), theirs["probeGuess"])


def test_arrays_and_training_file_are_the_same_scan(tmp_path: Path) -> None:
    path, drawn = write_training_file(tmp_path / "training.npz"), draw_arrays()
    filed = scan_of_file(path, ALL, ALL)
    held = scan_of_arrays(np.load(path)["diff3d"], drawn.probe[None], drawn.positions)
    for name in held.keys:
        np.testing.assert_array_equal(held.read(name), filed.read(name), err_msg=name)


def test_each_pattern_has_a_row_and_a_column() -> None:
    drawn = draw_arrays()
    for positions in (drawn.positions[:5], drawn.positions[:, 0]):
        with pytest.raises(DataContractError, match="SCAN-06"):
            scan_of_arrays(np.ones((12, N, N)), drawn.probe, positions)


def test_bounds_take_the_patterns_within_them(tmp_path: Path) -> None:
    path = write_training_file(tmp_path / "training.npz")
    with np.load(path) as file:
        x, y, patterns = file["xcoords"], file["ycoords"], file["diff3d"]
    u, v = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
    within = (u >= 0.1) & (u <= 0.6) & (v >= 0.2) & (v <= 1.0)
    assert 0 < within.sum() < 12
    found = scan_of_file(path, (0.1, 0.6), (0.2, 1.0))
    np.testing.assert_array_equal(found.read("xcoords"), x[within] + 0.5)
    np.testing.assert_array_equal(np.square(found.read("diff3d")).round(), patterns[within])
    assert len(found.read("scan_index")) == within.sum()


@pytest.mark.parametrize(
    ("members", "clause"),
    [
        ({"diff3d": None}, "SCAN-01"),
        ({"measurement_domain": np.array("amplitude")}, "SCAN-05"),
        ({"ycoords": None}, "SCAN-06"),
        ({"xcoords": np.zeros(3)}, "SCAN-06"),
        ({"diff3d": np.full((12, N, N), -1.0)}, "SCAN-04"),
        ({"diff3d": np.full((12, N, N), np.nan)}, "SCAN-04"),
    ],
)
def test_a_training_file_that_breaks_a_clause_is_refused(tmp_path: Path, members: dict[str, Any], clause: str) -> None:
    path = write_training_file(tmp_path / "training.npz", **members)
    with pytest.raises(DataContractError, match=r"training\.npz") as caught:
        scan_of_file(path, ALL, ALL)
    assert caught.value.clause == clause


def test_bounds_without_a_pattern_are_refused(tmp_path: Path) -> None:
    x = np.repeat([0.0, 100.0], 6)
    path = write_training_file(tmp_path / "training.npz", xcoords=x)
    with pytest.raises(DataContractError, match="no position within x_bounds"):
        scan_of_file(path, (0.4, 0.6), ALL)


def test_an_object_comes_back_on_the_pixels_of_the_array(caplog: pytest.LogCaptureFixture) -> None:
    # Positions of ours; the array of ptychodus has lowest + highest + 1 pixels, less the half pixels.
    positions = np.array([[32.0, 33.0], [69.0, 58.0]])
    whole = torch.arange(40 * 50, dtype=torch.float64).reshape(40, 50) + 1j
    stitched = Stitched(whole, whole.abs(), whole.abs(), origin_px=(16.0, -7.0))
    found = object_on_frame(stitched, positions)
    assert (found.shape, found.dtype) == ((91, 101), np.complex64)
    np.testing.assert_array_equal(found[:33, 16:66], whole[7:].numpy().astype(np.complex64))
    assert not found[33:].any()
    assert not found[:, :16].any()
    assert not caplog.messages
    object_on_frame(stitched, positions + np.array([[0, 0], [0.4, 0]]))
    assert "not centred on the scan" in caplog.text


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (code for language, code in blocks(PAGE) if language == "python")
    exec(compile(code, str(PAGE), "exec"), {})
    height, width = (int(each) for each in capsys.readouterr().out.splitlines()[-1].strip("()").split(","))
    assert 60 < height < 80
    assert 60 < width < 80


def test_a_run_of_its_own_keeps_the_settings_and_returns_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_best_checkpoint(tmp_path) is None
    path = write_training_file(tmp_path / "training.npz")
    manager = small_manager(notes="beamline 2")
    model = PtychoModel._new_model(PtychoPINN_Lightning, manager)
    loader = PtychoDataLoader(path, manager, output_dir=tmp_path / "out")
    engine = InferenceEngine(manager, model)
    with pytest.raises(ConfigError, match="not trained yet"):
        engine.predict_and_stitch(loader)
    trainer, watch = Trainer._from_lightning(model, loader, "lightning", manager), LossesAtTheEnd()
    trainer._trainer.callbacks.append(watch)
    assert isinstance(model.model, NewModel)
    names = (model.model.loss_name, model.model.val_loss_name)
    with caplog.at_level(logging.WARNING):
        trainer.train("lightning", "")
    history = model.module.history
    assert watch.seen == pytest.approx({"train": history[names[0]][0], "val": history[names[1]][0]})
    assert len([line for line in caplog.messages if "takes the place of" in line]) == 3
    found = find_best_checkpoint(loader.output_dir)
    assert found == loader.output_dir / "checkpoints" / "best.ckpt"
    data, _, training, inference = PtychoModel._extract_configs_from_checkpoint(str(found))
    assert (data, training, inference) == (manager.data_config, manager.training_config, manager.inference_config)
    assert (data.x_bounds, training.notes) == (ALL, "beamline 2")
    manager.inference_config.experiment_number = 1
    with pytest.raises(ConfigError, match="experiment_number = 1"):
        InferenceEngine(manager, model).predict_and_stitch(loader)
    found.unlink()
    assert find_best_checkpoint(loader.output_dir) == loader.output_dir / "checkpoints" / "last.ckpt"


# --------------------------------------------------------------------------------------------------- ptychodus itself


@pytest.fixture(scope="module")
def client() -> SimpleNamespace:
    """The parts of ptychodus that are used; its settings are those that it has at its start, where none are named."""
    pytest.importorskip("ptychodus", reason="ptychodus is not installed: pip install ptychodus==1.7.0")
    from ptychodus.api import geometry, object, probe, probe_positions, product, reconstruct, settings
    from ptychodus.api.simulate import diffraction
    from ptychodus.model.ptychopinn_torch import _payload, _subprocess, core

    drawn, pixel = draw_arrays(), geometry.PixelGeometry(width_m=PIXEL_M, height_m=PIXEL_M)
    metres = (drawn.positions - (np.array([HEIGHT, WIDTH]) - 1) / 2) * PIXEL_M
    metadata = product.ProductMetadata("star", "", 1.0, 8000.0, 1e5, 0.1, 0.0, 0.0)

    def product_of(modes: np.ndarray) -> Any:
        return product.Product(
            metadata,
            probe_positions.ProbePositionSequence(
                [probe_positions.ProbePosition(number, x, y) for number, (y, x) in enumerate(metres)]
            ),
            probe.ProbeSequence(modes, None, pixel),
            object.Object(drawn.object, pixel, object.ObjectCenter(0.0, 0.0)),
            [],
        )

    mean = diffraction.generate_diffraction_data(product_of(drawn.probe)).get_patterns().sum(axis=(1, 2)).mean()
    simulated = product_of(drawn.probe * np.sqrt(1e5 / mean))
    exact = diffraction.generate_diffraction_data(simulated).get_patterns()
    counts = np.random.default_rng(2).poisson(exact).astype(np.uint16)
    registry = settings.SettingsRegistry()
    library = core.PtychoPINNTorchReconstructorLibrary(registry, False)
    library.data_settings.model_size.set_value(N)
    library.data_settings.coordinate_subsampling_factor.set_value(1)
    library.data_settings.x_upper_bound.set_value(1.0)
    library.model_settings.num_filters_scale.set_value(1)
    library.training_settings.epochs.set_value(2)
    given = reconstruct.ReconstructInput(counts, np.zeros((N, N), bool), simulated)
    return SimpleNamespace(
        exact=exact, counts=counts, drawn=drawn, given=given, library=library, payload=_payload, child=_subprocess
    )


@pytest.fixture(scope="module")
def trained(client: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Train on the training file that ptychodus exports, in the process that it starts, and reconstruct in another."""
    folder = tmp_path_factory.mktemp("ptychodus")
    reconstructor = next(iter(client.library))
    assert reconstructor.name == "Unsupervised"
    reconstructor.export_training_data(folder / "training.npz", client.given)
    (output,) = reconstructor.train(folder / "training.npz", folder / "models")
    reconstructor.save_model(folder / "model.ckpt")
    (found,) = reconstructor.reconstruct(client.given)
    return SimpleNamespace(output=output, object=found.product.object_, checkpoint=folder / "model.ckpt", folder=folder)


def test_what_ptychodus_simulates_is_what_the_positions_here_say(client: SimpleNamespace) -> None:
    """A patch at (x, y) has its first pixel at (x − N/2, y − N/2); those with whole corners need no interpolation."""
    scan = scan_of_arrays(
        client.exact, client.given.product.probes.get_probe_no_opr().get_array(), client.drawn.positions
    )
    amplitude, (probe,) = scan.read("diff3d"), scan.read("probeGuess")
    ratios = []
    for number in range(4):
        left, top = (round(float(scan.read(name)[number])) - N // 2 for name in ("xcoords", "ycoords"))
        wave = probe * client.drawn.object[top : top + N, left : left + N]
        predicted = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(wave))))
        ratio = (predicted * amplitude[number]).sum() / np.square(predicted).sum()
        np.testing.assert_allclose(amplitude[number], ratio * predicted, atol=1e-4 * amplitude[number].max())
        ratios.append(ratio)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def test_ptychodus_trains(trained: SimpleNamespace) -> None:
    assert trained.output.progress == 2
    for losses in (trained.output.training_loss, trained.output.validation_loss):
        assert [loss.epoch for loss in losses] == [0, 1]
        assert np.isfinite([loss.value for loss in losses]).all()
    content = read_checkpoint(trained.checkpoint)
    assert content.history["val_loss"] == pytest.approx([loss.value for loss in trained.output.validation_loss])
    assert content.settings.training.max_epochs == 2
    # A tenth of the scan's width and height on either side is left out, but on the right.
    assert 0 < content.statistics["patterns"] < 12


def test_the_object_in_ptychodus_is_that_of_infer(client: SimpleNamespace, trained: SimpleNamespace) -> None:
    scan = trained.folder / "scan.npz"
    np.savez(
        scan,
        diff3d=np.sqrt(client.counts.astype(np.float64)).astype(np.float32),
        xcoords=client.drawn.positions[:, 1] + 0.5,
        ycoords=client.drawn.positions[:, 0] + 0.5,
        probeGuess=client.given.product.probes.get_probe_no_opr().get_array().astype(np.complex64),
    )
    words = ["infer", trained.checkpoint, scan, "-o", trained.folder / "objects", "--data-dir", trained.folder / "map"]
    assert cli.main([str(word) for word in words]) == 0
    theirs, ours = trained.object.get_array(), read_reconstruction(trained.folder / "objects" / "scan.npz")
    assert theirs.shape == (1, HEIGHT, WIDTH)
    left, top = (int(each) for each in ours.origin_px)
    height, width = ours.object.shape
    np.testing.assert_array_equal(theirs[0, top : top + height, left : left + width], ours.object)
    assert np.count_nonzero(theirs) == np.count_nonzero(ours.object) > 0


def test_ptychodus_reconstructs_with_a_checkpoint_of_ptycho_torch_train(
    client: SimpleNamespace, trained: SimpleNamespace, tmp_path: Path
) -> None:
    settings = Settings().override(SMALL | {"N": N, "gridsize": 2, "max_epochs": 1})
    result = train.main(
        trained.folder / "scan.npz", settings=settings, output_dir=tmp_path / "run", data_dir=tmp_path / "map",
        reconstruct=False, progress=False,
    )  # fmt: skip
    answers: queue.Queue[Any] = queue.Queue()
    client.child.run_reconstruct(
        client.payload.ReconstructPayload("Unsupervised", result.checkpoint, client.given), answers
    )
    assert answers.get()[0] == "output"


def test_a_refused_setting_reaches_the_user_of_ptychodus(client: SimpleNamespace, tmp_path: Path) -> None:
    batch_norm = client.library.model_settings.use_batch_normalization
    batch_norm.set_value(True)
    try:
        with pytest.raises(ConfigError, match=r"ModelConfig\.batch_norm = True is refused: only False"):
            list(next(iter(client.library)).train(tmp_path / "training.npz", tmp_path))
    finally:
        batch_norm.set_value(False)


def test_ptychodus_supervised_is_refused(client: SimpleNamespace, tmp_path: Path) -> None:
    supervised = list(client.library)[1]
    with pytest.raises(ConfigError, match=r"ModelConfig\.mode = 'Supervised' is refused"):
        list(supervised.train(tmp_path / "training.npz", tmp_path))


def test_a_manager_compares_its_groups_with_those_of_a_model() -> None:
    manager = small_manager()
    network = SimpleNamespace(N=N, C=4)
    model: Any = SimpleNamespace(module=SimpleNamespace(network=SimpleNamespace(settings=network)))
    manager.validate_arch_compatibility(model)
    network.C = 1
    with pytest.raises(ConfigError, match=r"N, C = \(64, 1\); the settings say \(64, 4\)"):
        manager.validate_arch_compatibility(model)
