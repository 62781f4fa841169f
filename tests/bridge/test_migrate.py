"""A converted archive predicts what it predicted, without TensorFlow; what is missing is asked for by name."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_tf_bridge.archives.archive import read_archive
from ptycho_tf_bridge.commands.cli import main
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.migrate import build_network, convert
from ptycho_torch.commands import cli as torch_cli
from ptycho_torch.commands.settings_options import read_config
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.data.probe import default_probe, normalise_probe
from ptycho_torch.errors import ConfigError
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training.checkpoint import read_checkpoint
from tests.support.archives.reference_archives import (
    Graph,
    draw_probe,
    draw_weights,
    keras_file,
    write_reference_archive,
)
from tests.support.training_runs import write_scan

SETTINGS = NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=20.5)

WITHOUT_TENSORFLOW = """
import sys
for name in ("tensorflow", "keras", "tf_keras", "dill"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
from ptycho_tf_bridge.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bridge_without_tensorflow(*arguments: str | Path) -> str:
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def predict(model: PtychoPINN, recorded: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    """What a model says about the recorded groups, laid out as they are."""
    amplitude, offsets = (
        torch.from_numpy(np.moveaxis(recorded[name], -1, 1).astype(np.float32)) for name in ("X", "offsets")
    )
    with torch.no_grad():
        said = model.network(amplitude * model.scale, offsets)
    return {name: np.moveaxis(getattr(said, name).numpy(), 1, -1) for name in ("object", "amplitude")}


def errors(said: dict[str, np.ndarray], recorded: np.lib.npyio.NpzFile) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(value - recorded[name]) / np.linalg.norm(recorded[name]))
        for name, value in said.items()
    }


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The real archive, converted where TensorFlow cannot be imported."""
    folder = tmp_path_factory.mktemp("star")
    bridge_without_tensorflow("convert", shared / "archives" / "star_g2" / "wts.h5.zip", "-o", folder)
    return folder


# Two float32 programs that add in another order: about 2e-7 was measured for the norm of the difference.
PREDICTION_RTOL = 1e-6


def test_the_real_archive_predicts_what_it_predicted(star: Path, shared: Path) -> None:
    recorded = np.load(shared / "archives" / "star_g2" / "prediction.npz")
    model = PtychoPINN.from_checkpoint(star / "checkpoints" / "last.ckpt")
    found = errors(predict(model, recorded), recorded)
    print(f"relative errors of the converted model: {found}")  # noqa: T201 - what was measured
    assert max(found.values()) <= PREDICTION_RTOL


def swap_decoders(model: PtychoPINN) -> None:
    """Exchange the trunks of amplitude and phase, which have the same shapes."""
    net = model.network
    for block in ("0", "1"):
        one, other = net.decoder_amp.get_submodule(block), net.decoder_phase.get_submodule(block)
        first, second = dict(one.state_dict()), dict(other.state_dict())
        copies = {name: tensor.clone() for name, tensor in first.items()}
        one.load_state_dict(second)
        other.load_state_dict(copies)


def flip_kernel(model: PtychoPINN) -> None:
    weight = model.network.encoder.get_submodule("0.conv1").weight
    weight.data = weight.data.transpose(-1, -2).contiguous()


def normalise_again(model: PtychoPINN) -> None:
    parts = model.network.probe_parts
    parts.data = torch.view_as_real(normalise_probe(torch.view_as_complex(parts.data), 2.0))


def shift_scale(model: PtychoPINN) -> None:
    model.network.log_scale.data += 1e-4


@pytest.mark.parametrize("fault", [swap_decoders, flip_kernel, normalise_again, shift_scale])
def test_a_wrong_conversion_predicts_something_else(
    fault: Callable[[PtychoPINN], None], star: Path, shared: Path
) -> None:
    recorded = np.load(shared / "archives" / "star_g2" / "prediction.npz")
    model = PtychoPINN.from_checkpoint(star / "checkpoints" / "last.ckpt")
    fault(model)
    assert max(errors(predict(model, recorded), recorded).values()) > 10 * PREDICTION_RTOL


def test_the_archive_of_the_savedmodel_era_converts(tmp_path: Path, shared: Path) -> None:
    said = bridge_without_tensorflow(
        "convert", shared / "archives" / "savedmodel_era" / "wts.h5.zip", "-o", tmp_path / "old"
    )
    assert "One amplitude channel" in said
    archive = read_archive(shared / "archives" / "savedmodel_era" / "wts.h5.zip")
    model = PtychoPINN.from_checkpoint(tmp_path / "old" / "checkpoints" / "last.ckpt")
    assert model.network.settings.shared_amplitude_head
    assert archive.probe is not None
    assert np.array_equal(torch.view_as_complex(model.network.probe_parts.data).numpy()[0], archive.probe)
    with torch.no_grad():
        objects = model.network.reconstruct(torch.rand(2, 4, 64, 64), torch.zeros(2, 4, 1, 2))
    assert bool(objects.isfinite().all())


# ------------------------------------------------------------------------------------------------------ what is written


def test_settings_and_report_say_what_became_of_every_field(tmp_path: Path) -> None:
    path = write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS, n_subsample=512)
    archive = read_archive(path)
    migration = convert(archive, tmp_path / "out")
    settings = Settings().override(read_config(migration.settings_file))
    assert settings == migration.settings
    assert (settings.training.max_epochs, settings.model.intensity_scale, settings.data.gridsize) == (7, 20.5, 1)
    facts = json.loads(migration.report_json.read_text(encoding="utf-8"))
    assert facts["archive"]["sha256"] == archive.digest
    fields = {each["field_there"]: each for each in facts["fields"]}
    assert set(archive.parameters) - {"_version"} <= set(fields)
    assert fields["nepochs"]["value_there"] == fields["nepochs"]["value_here"] == 7
    assert fields["n_subsample"]["change"] == "collision"
    report = migration.report.read_text(encoding="utf-8")
    for words in (archive.digest, "| nepochs | 7 | max_epochs | 7 | renamed |", "| n_subsample | 512 |"):
        assert words in report
    assert migration.picture.read_bytes().startswith(b"\x89PNG")


def test_files_that_are_there_stay_unless_asked_for(tmp_path: Path) -> None:
    archive = read_archive(write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        convert(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["probe.png"]
    convert(archive, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "probe.png").read_bytes() != b"mine"


def test_results_do_not_depend_on_the_order_of_archives(tmp_path: Path) -> None:
    for name, scale in (("a", 5.0), ("b", 1119.79)):
        settings = NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=scale)
        write_reference_archive(tmp_path / name, settings, draw_weights(settings, seed=int(scale)))
    amplitude, offsets = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 1, 2)
    said: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    for order in itertools.permutations("ab"):
        models = {name: build_network(read_archive(tmp_path / name)) for name in order}
        with torch.no_grad():
            said[order] = {name: model(amplitude, offsets).amplitude for name, model in models.items()}
    first, second = said.values()
    assert all(torch.equal(first[name], second[name]) for name in "ab")
    assert not torch.allclose(first["a"], first["b"])


# --------------------------------------------------------------------------------------------------------- in one go


def test_one_command_converts_reconstructs_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    archive = write_reference_archive(tmp_path / "theirs" / "wts.h5.zip", SETTINGS)
    scan = write_scan(tmp_path / "scans" / "star.npz")
    command = ["migrate", str(archive.parent), str(scan.parent), "-o", "migrated", "--quick", "--no-progress"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for words in (
        f"archive    {archive}",
        "network    N = 64",
        "object     migrated",
        "is the archived one",
    ):
        assert words in said
    named = [word.strip(":") for word in said.split() if word.startswith("migrated")]
    assert {Path(name).name for name in named} >= {
        *("last.ckpt", "settings.yaml", "migration.md", "star.npz", "certificate.json", "certificate.html"),
    }
    assert all(Path(name).is_file() for name in named)
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err


def test_an_archive_in_the_place_of_a_run_is_named_with_what_converts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    archive = write_reference_archive(tmp_path / "theirs" / "wts.h5.zip", SETTINGS)
    scan = write_scan(tmp_path / "star.npz")
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "model.keras"
    alone.write_bytes(keras_file(Graph(SETTINGS), draw_weights(SETTINGS)))
    for given in (archive, archive.parent, alone, alone.parent):
        assert torch_cli.main(["infer", str(given), str(scan), "-o", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert f"`ptycho-bridge convert {given} -o converted`" in said
        assert "ptycho-bridge migrate" in said
        assert said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------ missing


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A ``.keras`` file alone: no probe, no scale, no parameters."""
    path = tmp_path / "model.keras"
    path.write_bytes(keras_file(Graph(SETTINGS), draw_weights(SETTINGS)))
    return path


def test_what_is_missing_is_asked_for_by_name(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(bare), "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    for flag in ("--intensity-scale", "--probe-mask", "--gaussian-smoothing-sigma", "--object-big"):
        assert flag in said
    assert said.count("\n") == 1
    arguments += ["--intensity-scale", "20.5", "--no-probe-mask", "--gaussian-smoothing-sigma", "0", "--object-big"]
    assert main(arguments) == 1
    assert "--probe" in capsys.readouterr().err
    arguments += ["--probe", "default"]
    assert main(arguments) == 1
    assert "--probe-scale" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--probe-scale", "4"]) == 0
    content = read_checkpoint(tmp_path / "out" / "checkpoints" / "last.ckpt")
    assert content.network == SETTINGS
    disk = normalise_probe(default_probe(64), 4.0).numpy().astype(np.float32)
    assert np.abs(content.weights["probe_parts"][0, ..., 0].numpy() - disk).max() <= 1e-6
    report = (tmp_path / "out" / "migration.md").read_text(encoding="utf-8")
    assert "Missing in the archive: probe, intensity_scale" in report


def test_a_probe_comes_from_a_scan_normalised_as_the_reference_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS)
    scan = write_scan(tmp_path / "scan.npz")
    with pytest.raises(ArchiveError, match="has its own"):
        convert(read_archive(path), tmp_path / "out", probe=draw_probe(64))
    with pytest.raises(ArchiveError, match="has its own"):
        convert(read_archive(path), tmp_path / "out", given={"intensity_scale": 3.0})
    assert main(["convert", str(path), "-o", str(tmp_path / "out"), "--probe-scale", "4"]) == 1
    assert "give both" in capsys.readouterr().err
    lacking = write_reference_archive(tmp_path / "lacking.zip", SETTINGS, probe=draw_probe(128))
    assert main(["convert", str(lacking), "-o", str(tmp_path / "out"), "--probe", str(scan)]) == 0
    content = read_checkpoint(tmp_path / "out" / "checkpoints" / "last.ckpt")
    expected = normalise_probe(torch.from_numpy(np.load(scan)["probeGuess"]), 4.0)
    assert torch.equal(torch.view_as_complex(content.weights["probe_parts"])[0], expected)


# -------------------------------------------------------------------------------------------------------------- onward


def test_inference_fine_tuning_and_export_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS, neighbor_count=3, n_groups=20)
    write_scan(tmp_path / "scans" / "a.npz")
    assert main(["convert", "wts.h5.zip", "-o", "converted"]) == 0
    assert torch_cli.main(["infer", "converted", "scans", "-o", "objects", "--no-progress", "--device", "cpu"]) == 0
    assert (tmp_path / "objects" / "a.png").is_file()
    # A rate of nearly nothing leaves the weights where they were, so it is they that training began with.
    train = ["train", "scans", "--no-tracking", "--no-reconstruct", "--no-progress", "--device", "cpu"]
    begin = ["--config", "converted/settings.yaml", "--max-epochs", "1", "--learning-rate", "1e-12"]
    assert torch_cli.main([*train, *begin, "-o", "tuned", "--start-from", "converted/checkpoints/last.ckpt"]) == 0
    before, after = (read_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("converted", "tuned"))
    assert after.network == before.network
    for name, tensor in before.weights.items():
        if name != "probe_parts":
            assert torch.allclose(after.weights[name], tensor, rtol=0, atol=1e-9)
    capsys.readouterr()
    assert torch_cli.main([*train, "--resume", "converted/checkpoints/last.ckpt", "-o", "resumed"]) == 1
    assert "begin a new one with start_from" in capsys.readouterr().err
    assert main(["export", "tuned", "-o", "exported/wts.h5.zip"]) == 0
    assert main(["export", "tuned", "-o", "exported/wts.h5.zip"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert read_archive(tmp_path / "exported" / "wts.h5.zip").network == SETTINGS


def test_inspect_says_era_network_and_what_is_missing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bare), "--weights"]) == 0
    said = capsys.readouterr().out
    for words in (
        "since July 2025",
        "44 arrays",
        "probe            missing",
        "encoder.0.conv1.kernel",
        "convert needs",
    ):
        assert words in said
    assert main(["inspect", str(bare), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["missing"][:2] == ["probe", "intensity_scale"]
    assert facts["network"]["N"] == 64
    assert main(["inspect", str(bare.parent / "nothing.zip")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_text_of_an_archive_does_nothing_to_terminal_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_reference_archive(
        tmp_path / "wts.h5.zip", SETTINGS, timestamp="now\x1b[2J\nthen \udc80", **{"a\n| b": "\x9b1m"}
    )
    for option in ([], ["--json"]):
        assert main(["inspect", str(path), *option]) == 0
        assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    report = convert(read_archive(path), tmp_path / "out").report.read_text(encoding="utf-8")
    assert all(line.isprintable() for line in report.splitlines())
    assert r"| a \| b | '\x9b1m' |" in report
