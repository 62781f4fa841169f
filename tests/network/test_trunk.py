"""The network as a file for other programs: whatever runs it gives the same patches, for any number of groups."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptycho_torch import inference
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.errors import ConfigError, PtychoError
from ptycho_torch.model import PtychoNet
from ptycho_torch.reconstruction.trunk import INPUT, OUTPUTS, Trunk, trunk_stages, write_trunk
from ptycho_torch.training.checkpoint import write_checkpoint

GRAPHS = {
    "g2": NetworkSettings(N=64, gridsize=2, n_filters_scale=1),
    "g1_nopad": NetworkSettings(N=64, gridsize=1, n_filters_scale=1, pad_object=False),
}


def run_pt2(content: bytes, scaled_amplitude: Tensor) -> list[Tensor]:
    program = torch.export.load(io.BytesIO(content))
    with torch.no_grad():
        return list(program.module()(scaled_amplitude))


def run_onnx(content: bytes, scaled_amplitude: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {INPUT: scaled_amplitude.numpy()})]


RUNS: dict[str, Any] = {".pt2": run_pt2, ".onnx": run_onnx}


def skip_without_onnx(ending: str) -> None:
    for module in ("onnxruntime", "onnxscript") if ending == ".onnx" else ():
        pytest.importorskip(module, reason=f"an ONNX file needs {module}: pip install onnxruntime onnxscript")


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("ending", RUNS)
def test_the_file_gives_the_patches_of_the_network(ending: str, graph: str) -> None:
    skip_without_onnx(ending)
    network, file = PtychoNet(GRAPHS[graph], generator=torch.Generator().manual_seed(1)).eval(), io.BytesIO()
    write_trunk(file, network, ending, {})
    for groups in (1, 5):
        scaled_amplitude = 20 * torch.rand(groups, network.settings.C, 64, 64)
        amplitude, phase = RUNS[ending](file.getvalue(), scaled_amplitude)
        with torch.no_grad():
            expected = network.predict_patches(scaled_amplitude)
        # Rounding of another library: some hundred operations in float32.
        torch.testing.assert_close(torch.polar(amplitude, phase).expand_as(expected), expected, rtol=1e-5, atol=1e-5)


def test_every_stage_of_the_trunk_can_be_given() -> None:
    network = PtychoNet(GRAPHS["g2"])
    scaled_amplitude = torch.rand(2, 4, 64, 64)
    stages = trunk_stages(network)
    with torch.no_grad():
        found = dict(zip(stages, Trunk(network, stages)(scaled_amplitude), strict=True))
        features = network.encoder(network.normalized_input(scaled_amplitude, network.log_scale))
    assert set(OUTPUTS) < set(stages)
    torch.testing.assert_close(found["encoder.2.pool"], features, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_checkpoint_becomes_a_file_that_says_what_it_is(tmp_path: Path) -> None:
    checkpoint, network = tmp_path / "last.ckpt", PtychoNet(GRAPHS["g2"])
    known = {"probe_modes": 1, "one_probe": True, "patches": 12}
    weights = network.state_dict()
    write_checkpoint(checkpoint, Settings.current(), network.settings, known, weights, overwrite=False)
    target = inference.export(checkpoint, tmp_path / "model.pt2")
    facts = {"facts.json": ""}
    torch.export.load(target, extra_files=facts)
    said = json.loads(facts["facts.json"])
    assert said["network"]["N"] == 64
    assert len(said["checkpoint_sha256"]) == 64
    with pytest.raises(ConfigError, match="overwrite"):
        inference.export(checkpoint, target)
    assert inference.export(checkpoint, target, overwrite=True) == target


def test_another_ending_and_a_missing_package_are_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'\.pth'; expected one of \.onnx, \.pt2"):
        inference.export(tmp_path / "none.ckpt", tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PtychoError, match="pip install onnxscript"):
        inference.export(tmp_path / "none.ckpt", tmp_path / "model.onnx")
