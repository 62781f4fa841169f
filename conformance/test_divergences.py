"""What the reference and its ports disagree about: each finding that could occur here, shown not to.

The findings are in ``specs/divergences.yaml``; other tests catch the rest of them.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.cases.draws import draw_case
from conformance.provenance.clauses import catalogue
from conformance.spec.divergences import load_divergences, missing_tests
from ptycho_torch import helper, losses
from ptycho_torch.commands.settings_options import add_setting_flags, settings_from
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.data.probe import disk_mask, normalise_probe
from ptycho_torch.evaluate import compare, score
from ptycho_torch.model import PtychoNet
from ptycho_torch.reconstruction.alignment import Alignment

HERE = Path(__file__).parent
SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=30.0)


def _network(settings: NetworkSettings = SETTINGS, seed: int = 0, probe: torch.Tensor | None = None) -> PtychoNet:
    return PtychoNet(settings, probe, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _points(positions_px: torch.Tensor, N: int = 64) -> torch.Tensor:
    """Return (1, C, N, N) patches of zeros, each with one bright pixel at its centre [N/2, N/2]."""
    patches = torch.zeros(1, len(positions_px), N, N, dtype=torch.complex128)
    patches[..., N // 2, N // 2] = 1
    return patches


@pytest.mark.parity_clause("DATA-PATH")
def test_every_finding_has_its_clause_and_its_tests() -> None:
    """Each number is there once, each clause is one, and each test exists."""
    divergences, data_path = load_divergences()
    clauses = catalogue()
    strangers = [each.number for each in divergences if each.clause and each.clause not in clauses]
    assert not strangers, f"findings {strangers} name clauses that are none"
    assert set(data_path.stricter) <= set(clauses)
    assert all(each.cannot_occur or (each.clause and each.tests) for each in divergences)
    folders = [HERE, *(path for path in [HERE.parent / "tests"] if path.is_dir())]
    missing = [test for folder in folders for test in missing_tests(divergences, folder)]
    assert not missing, f"tests that are not there: {missing}"


@pytest.mark.parity_clause("normalized_input", "predicted_amplitude")
def test_networks_do_not_share_their_scale() -> None:
    """A second network with another scale leaves the first one's results alone (3)."""
    first = _network()
    amplitude, offsets = torch.rand(1, 4, 64, 64, dtype=torch.float64), torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        before = first(amplitude, offsets).amplitude
        second = _network(NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=5.0))
        other = second(amplitude, offsets).amplitude
        after = first(amplitude, offsets).amplitude
    assert torch.equal(before, after)
    assert not torch.allclose(before, other)
    assert math.exp(second.log_scale.item()) == pytest.approx(5.0)


@pytest.mark.parity_clause("merged", "GROUP-03", "BATCH-02")
def test_patches_lie_at_their_positions_on_the_canvas() -> None:
    """One bright pixel a patch, asymmetric positions: each is found where its position says, x in columns (4, 35)."""
    positions = torch.tensor([[10.0, 20.0], [13.0, 20.0], [10.0, 25.0], [15.0, 27.0]], dtype=torch.float64)
    centre = positions.mean(0)
    offsets = helper.relative_offsets(positions[None, :, None])
    canvas = helper.merge_patches(_points(positions), offsets, 84)[0, 0].abs()
    columns, rows = torch.meshgrid(torch.arange(84), torch.arange(84), indexing="xy")
    for x, y in (positions - centre + 42).tolist():
        near = ((columns - x).abs() < 1) & ((rows - y).abs() < 1)
        assert canvas[near].sum() > 0.2, (x, y)
    found = torch.stack([(canvas * columns).sum(), (canvas * rows).sum()]) / canvas.sum()
    torch.testing.assert_close(found, torch.full((2,), 42.0, dtype=torch.float64), rtol=0, atol=0.5)


@pytest.mark.parity_clause("merged", "views")
def test_translation_moves_content_along_its_offset() -> None:
    """A positive offset moves to larger x and y, and what leaves the image is gone (7, 44)."""
    image = torch.zeros(1, 32, 32, dtype=torch.float64)
    image[0, 16, 16] = 1
    moved = helper.translate(image, torch.tensor([[3.0, 5.0]], dtype=torch.float64))
    assert torch.nonzero(moved[0]).tolist() == [[21, 19]]
    ones = helper.translate(torch.ones(1, 32, 32, dtype=torch.float64), torch.tensor([[4.0, 0.0]], dtype=torch.float64))
    assert not ones[0, :, :4].any()
    assert (ones[0, :, 4:] == 1).all()


@pytest.mark.parity_clause("merged")
def test_the_canvas_has_offset_and_jitter() -> None:
    """P = N + (gridsize − 1)·offset + max_position_jitter (8)."""
    assert NetworkSettings(N=64, gridsize=2).canvas_px == 78
    assert NetworkSettings(N=64, gridsize=3, offset=5, max_position_jitter=8).canvas_px == 64 + 10 + 8


@pytest.mark.parity_clause("merged")
def test_equal_patches_make_an_even_canvas() -> None:
    """Patches that are constant where the mask is give that constant, but for the 0.001; beyond it is finite (9)."""
    patches = helper.central_mask(64, dtype=torch.float64).expand(1, 4, 64, 64) * torch.tensor(2.0 + 1.0j)
    offsets = helper.relative_offsets(torch.tensor([[[[0.0, 0.0]], [[4.0, 0.0]], [[0.0, 4.0]], [[4.0, 4.0]]]]).double())
    canvas = helper.merge_patches(patches, offsets, 78)[0, 0]
    middle = canvas[30:48, 30:48]
    torch.testing.assert_close(middle, torch.full_like(middle, (2 + 1j) * 4 / 4.001), rtol=1e-6, atol=0)
    assert canvas.isfinite().all()


@pytest.mark.parity_clause("exit_wave")
def test_training_lights_the_object_with_the_normalised_probe() -> None:
    """A probe of any strength becomes mean|disk·probe| = 1 / probe_scale, once, and lights as it is (17, 18)."""
    train = pytest.importorskip("ptycho_torch.train", reason="training needs lightning; pip install lightning")
    from ptycho_torch.config_params import Settings

    axis = torch.arange(64) - 31.5
    probe = torch.exp(-(axis[:, None] ** 2 + axis**2) / 200) * torch.exp(0.2j * axis)
    settings = Settings().override({"n_filters_scale": 1, "gridsize": 1, "intensity_scale": 1.0, "probe_scale": 4.0})
    for strength in (1.0, 37.0):
        network = train.PtychoPINN(settings, probe=strength * probe).network
        own = network.probe[0]
        assert (own.abs() * disk_mask(64)).mean().item() == pytest.approx(1 / 4, rel=1e-6)
        torch.testing.assert_close(own, normalise_probe(probe, 4.0).to(own.dtype))
        views = torch.ones(1, 1, 64, 64, dtype=own.dtype)
        torch.testing.assert_close(network.exit_wave(views, network.probe)[0, 0, 0], own)


@pytest.mark.parity_clause("LOSS")
def test_a_perfect_prediction_has_the_least_loss() -> None:
    """Prediction equal to measurement is a minimum of both losses, whatever factor is tried (25)."""
    measured = 5 * torch.rand(2, 4, 16, 16, dtype=torch.float64) + 0.1
    for factor in (0.5, 0.99, 1.01, 2.0):
        wrong = factor * measured
        assert losses.poisson_nll(wrong.square(), measured) > losses.poisson_nll(measured.square(), measured)
        assert losses.amplitude_mae(wrong, measured) > losses.amplitude_mae(measured, measured)


@pytest.mark.parity_clause("LOSS")
def test_the_loss_does_not_depend_on_the_size_of_the_batch() -> None:
    """The same groups twice have the loss that they have once (26)."""
    predicted, measured = torch.rand(2, 3, 4, 16, 16, dtype=torch.float64).unbind(0)
    for loss, intensity in ((losses.poisson_nll, True), (losses.amplitude_mae, False)):
        once = loss(predicted.square() if intensity else predicted, measured)
        doubled = torch.cat([predicted, predicted]), torch.cat([measured, measured])
        twice = loss(doubled[0].square() if intensity else doubled[0], doubled[1])
        torch.testing.assert_close(twice, once)


@pytest.mark.parity_clause("GROUP-03")
def test_moving_the_whole_scan_changes_nothing() -> None:
    """Offsets are relative to the group, so a constant added to every position has no influence (55)."""
    positions = torch.rand(3, 4, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = helper.relative_offsets(positions + torch.tensor([1e5, -3e5]))
    torch.testing.assert_close(shifted, helper.relative_offsets(positions), rtol=0, atol=1e-9)


@pytest.mark.parity_clause("GRADIENT-FREE")
def test_initial_weights_are_glorot_uniform_with_zero_biases() -> None:
    """Kernels fill ±√(6 / (fan in + fan out)) evenly, biases are zero, and nothing else is trained (49, 50)."""
    for N in (64, 128):
        network = _network(NetworkSettings(N=N, gridsize=1, n_filters_scale=1))
        trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
        assert all(name.endswith((".weight", ".bias")) for name in trained)
        for name, parameter in trained.items():
            if name.endswith(".bias"):
                assert not parameter.any(), name
                continue
            outputs, inputs = parameter.shape[:2]
            limit = math.sqrt(6 / (9 * (inputs + outputs)))
            assert parameter.abs().max() <= limit, name
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1), name


@pytest.mark.parity_clause("WEIGHT-01")
@pytest.mark.parametrize("damage", ["renamed", "missing", "shape"])
def test_weights_that_do_not_fit_are_an_error(damage: str) -> None:
    """A name or shape that does not fit is refused on both ways into the network (57)."""
    from ptycho_tf_bridge.errors import WeightMapError
    from ptycho_tf_bridge.weights import to_torch

    weights, key = dict(draw_case(SETTINGS, 1, batch=1).weights), "encoder.0.conv1.bias"
    state, torch_key = dict(_network().state_dict()), "encoder.0.conv1.bias"
    if damage == "shape":
        weights[key], state[torch_key] = weights[key][:-1], state[torch_key][:-1]
    else:
        weights["other"], state["other"] = weights.pop(key), state.pop(torch_key)
        if damage == "missing":
            del weights["other"], state["other"]
    with pytest.raises(WeightMapError, match=r"conv1|other"):
        to_torch(weights, SETTINGS)
    with pytest.raises(RuntimeError, match="conv1"):
        _network().load_state_dict(state)


_IMPORTS = """
import importlib, pathlib, sys
import numpy, torch
numpy.random.seed(5); torch.manual_seed(5)
before = numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
folder = pathlib.Path(sys.argv[1])
paths = (path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py") if path.stem != "__main__")
for name in sorted(".".join(path.parts) for path in paths if path.stem != "__init__"):
    for loaded in [each for each in sys.modules if each.split(".")[0] == "ptycho_torch"]:
        del sys.modules[loaded]
    importlib.import_module(name)
assert before == (numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()), "random state moved"
heavy = {"tensorflow", "keras", "mlflow"} & set(sys.modules)
assert not heavy, heavy
assert not torch.cuda.is_initialized(), "a device was touched"
"""


@pytest.mark.parity_clause("IMPORT-01")
def test_every_module_can_be_imported_first_and_does_nothing(tmp_path: Path) -> None:
    """Each module of ptycho_torch as the first one: no circle, no random number, no framework, no file (40, 41)."""
    pytest.importorskip("lightning", reason="one of the modules is a LightningModule; pip install lightning")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", _IMPORTS, str(HERE.parent / "ptycho_torch")]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parity_clause("SETTING-01")
def test_settings_count_as_they_were_written(tmp_path: Path) -> None:
    """A file wins over defaults, a flag over the file even where it says the default; N is a number, no is no (51)."""
    file = tmp_path / "settings.yaml"
    file.write_text("training: {max_epochs: 5, batch_size: 32}\ndata: {N: 128}\nmodel: {probe_mask: true}\n")
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    found = settings_from(parser.parse_args(["--batch-size", "16"]), file)
    assert (found.training.max_epochs, found.training.batch_size, found.data.N) == (5, 16, 128)
    assert found.model.probe_mask
    assert not settings_from(parser.parse_args(["--no-probe-mask"]), file).model.probe_mask
    assert settings_from(parser.parse_args(["--N", "128"]), None).data.N == 128


@pytest.mark.parity_clause("SCORE-01")
def test_a_flat_phase_has_no_correlation() -> None:
    """The correlation of a flat phase is undefined; that of a broken object is worse than that of the true one (54)."""
    draw = np.random.default_rng(0)
    smooth = draw.standard_normal((96, 96)).cumsum(0).cumsum(1)
    truth = np.exp(0.5j * smooth / np.abs(smooth).max()) * (1 + 0.2 * np.abs(smooth) / np.abs(smooth).max())
    right, wrong = (score(_aligned(image, truth)) for image in (truth, truth.conj()))
    assert right.phase_correlation == pytest.approx(1)
    assert wrong.phase_correlation < right.phase_correlation
    assert math.isnan(score(_aligned(truth, np.abs(truth) + 0j)).phase_correlation)


def _aligned(image: np.ndarray, truth: np.ndarray) -> Alignment:
    return compare(image, (0.0, 0.0), truth)
