"""``ptycho-torch`` as a user types it: help, settings of flags and YAML, exit codes, one clear line on failure."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_torch.commands import cli
from ptycho_torch.commands.settings_options import (
    MAX_CONFIG_BYTES,
    add_setting_flags,
    config_text,
    read_config,
    setting_texts,
    settings_from,
)
from ptycho_torch.config_params import DataSettings, ModelSettings, Settings, TrainingSettings
from ptycho_torch.errors import ConfigError, TrainingError
from ptycho_torch.reconstruction.products import Reconstruction, write_reconstruction

HEAVY = {"torch", "lightning", "tensordict", "matplotlib", "scipy", "mlflow", "skimage", "h5py", "numpy"}
"""Packages that no help waits for."""

REPOSITORY = Path(__file__).parents[2]

Calls = list[dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; return exit code, standard output and standard error."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as err:
            code = int(str(err.code))
        return code, *capsys.readouterr()

    return command


Run = Callable[..., tuple[int, str, str]]


def replace(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module in the place of one of the package's."""
    full = f"ptycho_torch.{name}"
    package, _, last = full.rpartition(".")
    module = types.SimpleNamespace(**members)
    monkeypatch.setitem(sys.modules, full, module)
    monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)


def put(folder: Path, *names: str) -> None:
    """Make files, and their folders, with nothing in them but what tells a ZIP archive or a checkpoint."""
    tree = json.dumps({"__metadata__": {"ptycho_torch": "{}"}}).encode()
    content = {".npz": b"PK\5\6" + bytes(18), ".ckpt": len(tree).to_bytes(8, "little") + tree}
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.get(path.suffix, b""))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Work in a folder with scans, probes and checkpoints by name; nothing is in the files but what they begin with."""
    put(tmp_path, "scans/a.npz", "my scans/a.npz", "probes/a.npz", "old.ckpt", "last.ckpt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, place: Path) -> Calls:
    """Calls of ``train.main``, which trains nothing."""
    calls: Calls = []

    def main(ptycho_dir: Path, probe_dir: Path | None, **names: Any) -> Any:
        calls.append({"ptycho_dir": ptycho_dir, "probe_dir": probe_dir, **names})
        return types.SimpleNamespace(
            module=types.SimpleNamespace(
                global_rank=0,
                settings=names["settings"].override({"max_epochs": 50}),
                statistics={"nphotons": 5e4, "nphotons_source": "as given"},
            ),
            checkpoint=Path("run/checkpoints/last.ckpt"),
            best_checkpoint=Path("run/checkpoints/best.ckpt"),
            history={"train_loss": [3.0, 2.0], "val_loss": [3.5, 2.5]},
            reconstructions=(Path("run/reconstructions/a.npz"),),
            seconds=192.0,
        )

    replace(monkeypatch, "train", main=main)
    return calls


def fail(err: BaseException) -> Callable[..., Any]:
    def main(*_: Any, **__: Any) -> Any:
        raise err

    return main


# ----------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, run: Run) -> None:
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert f"example: {cli.COMMANDS[name].example}" in out.splitlines()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_is_a_command_line_of_its_command(name: str) -> None:
    program, *arguments = shlex.split(cli.COMMANDS[name].example)
    options = cli.parser().parse_args(arguments)
    assert (program, options.command) == ("ptycho-torch", name)


def test_the_help_of_all_lists_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.what in " ".join(out.split())


PROGRAMS = ("ptycho_torch", "ptycho_tf_bridge", "conformance")


def outcomes(package: str, lines: list[list[str]], folder: Path) -> tuple[list[tuple[Any, str, str]], set[str]]:
    """Run command lines one after the other in a process of its own.

    Returns:
        Code, standard output and standard error of each, and the packages that the process has imported by then.
    """
    module = "conformance.cli" if package == "conformance" else f"{package}.commands.cli"
    code = (
        "import contextlib, importlib, io, json, sys\n"
        f"main, found = importlib.import_module({module!r}).main, []\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try:\n            code = main(line)\n"
        "        except SystemExit as end:\n            code = end.code\n"
        "    found.append((code, out.getvalue(), err.getvalue()))\n"
        "print(json.dumps((found, list(sys.modules))))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, modules = json.loads(result.stdout)
    return [tuple(each) for each in found], {name.partition(".")[0] for name in modules}


def program_of(package: str) -> cli.Program:
    import conformance.cli
    import ptycho_tf_bridge.commands.cli

    return {
        "ptycho_torch": cli.PTYCHO_TORCH,
        "ptycho_tf_bridge": ptycho_tf_bridge.commands.cli.PTYCHO_BRIDGE,
        "conformance": conformance.cli.CONFORMANCE,
    }[package]


@pytest.mark.parametrize("package", PROGRAMS)
def test_no_help_imports_a_framework(package: str, tmp_path: Path) -> None:
    lines = [["--help"], *([name, "--help"] for name in program_of(package).commands)]
    found, modules = outcomes(package, lines, tmp_path)
    for line, (code, out, err) in zip(lines, found, strict=True):
        assert (code, err) == (0, ""), line
        assert out.startswith("usage: ")
    assert not modules & HEAVY


WRONG_PATHS = {
    "ptycho_torch": [
        "check-data no",
        "simulate -o scan.npz",
        "simulate -o new.npz --object star",
        "convert-scan no.npz -o new.npz",
        "train no",
        "train scans --probe-dir no",
        "train scans --resume no.ckpt",
        "train scans --start-from no.ckpt",
        "train scans --config no.yaml",
        "train scans -o run",
        "train scans -o last.ckpt/run",
        "train notes.npz",
        "check-data notes.npz",
        "infer last.ckpt notes.npz",
        "infer notes.txt scans",
        "infer scan.npz scans",
        "convert-scan notes.npz -o new.npz",
        "infer no scans",
        "infer last.ckpt no",
        "infer last.ckpt scans -o filled",
        "evaluate no.npz --truth no.npz",
        "plot no.npz",
        "plot no.json",
    ],
    "ptycho_tf_bridge": [
        "inspect no",
        "convert no",
        "export no",
        "config no --to torch",
        "config no.ckpt --to tf-yaml",
    ],
    "conformance": ["verify no -o new", "record --archive no -o new.npz", "gate no.json"],
}


@pytest.mark.parametrize("package", PROGRAMS)
def test_a_wrong_path_is_told_before_a_framework_loads(package: str, place: Path) -> None:
    put(place, "run/checkpoints/last.ckpt", "filled/a_phase.png", "scan.npz", "notes.npz", "notes.txt")
    (place / "notes.npz").write_text("x y\n1 2\n")
    lines = WRONG_PATHS[package]
    found, modules = outcomes(package, [line.split() for line in lines], place)
    for line, (code, out, err) in zip(lines, found, strict=True):
        assert code == 1, line
        assert (out + err).count("\n") <= 2, line
        assert err.startswith("error: ") or line.startswith("check-data")
    assert not modules & {"torch", "lightning", "tensordict", "matplotlib"}
    assert sorted(path.name for path in place.iterdir()) == [
        "filled", "last.ckpt", "my scans", "notes.npz", "notes.txt", "old.ckpt", "probes", "run", "scan.npz", "scans",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (bytes(5000), "zeros only"),
        ("x y\n1.5 2.5 µm\n".encode() * 900, "a text file"),
        (b'\xef\xbb\xbf {"scan": 3}\n', "a JSON file"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
        (b"MM\0*" + bytes(99), "a TIFF file"),
        (b"\x80\x04\x95" + bytes(99), "a pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (b"PK\3\4" + bytes(99), "perhaps truncated"),
        (b"\x01\x02\x03\xff" * 99, "no ZIP archive"),
    ],
)
def test_what_is_no_scan_is_told_by_its_first_bytes(content: bytes, words: str, run: Run, place: Path) -> None:
    (place / "x.npz").write_bytes(content)
    code, out, _ = run("check-data", "x.npz")
    assert code == 1
    assert words in out
    assert words == "perhaps truncated" or "truncated" not in out
    if words == "an HDF5 file":
        return
    for line in (("train", "x.npz"), ("infer", "last.ckpt", "x.npz"), ("convert-scan", "x.npz", "-o", "new.npz")):
        code, out, err = run(*line)
        assert (code, out) == (1, "")
        assert words in err


def test_a_checkpoint_that_is_not_there_is_told_with_what_to_give(run: Run, place: Path) -> None:
    put(place, "run/checkpoints/last.ckpt", "logs/version_0/checkpoints/epoch=3.ckpt", "begun/history.json")
    (place / "bare").mkdir()
    (place / "pickle.ckpt").write_bytes(b"PK\3\4" + bytes(99))
    told = {
        "rum": ("rum: no such checkpoint; did you mean run?", "ptycho-torch train"),
        "elsewhere": ("elsewhere: no such checkpoint; runs here: run.", "Give the folder of a run"),
        "bare": ("bare: a folder without a checkpoint", "runs here: run"),
        "logs": ("logs: a folder without checkpoints/last.ckpt", "logs/version_0/checkpoints/epoch=3.ckpt"),
        "begun": ("begun: a run without a checkpoint", "ptycho-torch train SCANS -o begun --resume auto"),
        "scans": ("scans: a folder of scans or objects", "runs here: run"),
        "scans/a.npz": ("scans/a.npz: a scan, where a checkpoint is needed", "runs here: run"),
        "pickle.ckpt": ("pickle.ckpt: an older checkpoint, or one of another program", "train one with"),
    }
    for given, words in told.items():
        code, out, err = run("infer", given, "scans")
        assert (code, out) == (1, "")
        assert all(each in err for each in words), err


@pytest.mark.parametrize("package", PROGRAMS)
def test_every_program_says_its_version_and_helps_where_nothing_is_asked(package: str, tmp_path: Path) -> None:
    import importlib.metadata

    (version, nothing), _ = outcomes(package, [["--version"], []], tmp_path)
    assert version == (0, f"{program_of(package).name} {importlib.metadata.version('ptycho-torch')}\n", "")
    code, out, err = nothing
    assert (code, out) == (2, "")
    assert err.startswith("usage: ")
    assert "--version" in err


def test_the_most_used_options_come_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    _, out, _ = run("train", "--help")
    places = [
        out.index(f"\n  {words}")
        for words in (
            "SCANS", "-o DIR", "--config", "--max-epochs", "--gridsize", "--N", "--device", "--resume", "--overwrite",
            "--data-dir", "--probe-mask", "--adam-eps", "--detector-flip", "-v, --verbose", "-h, --help",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    for name in ("max-epochs", "gridsize", "N", "device"):
        assert out.count(f"\n  --{name} ") == 1


def test_every_setting_has_a_flag_with_its_text_and_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Narrow lines break words at their hyphens.
    monkeypatch.setenv("COLUMNS", "1000")
    _, out, _ = run("train", "--help")
    words = " ".join(out.split())
    for kind in (ModelSettings, TrainingSettings, DataSettings):
        texts, defaults = setting_texts(kind), kind()
        assert list(texts) == list(kind.field_names())
        for name, text in texts.items():
            assert f"--{name.replace('_', '-')}" in words
            default = getattr(defaults, name)
            shown = str(default).lower() if default is None or isinstance(default, bool) else default
            assert f"{text.removesuffix('.')} (default {shown})" in words


# ------------------------------------------------------------------------------------------------------ settings


def flags(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


Config = Callable[[str], Path]


def test_flags_win_over_the_file_and_the_file_over_the_defaults(config: Config) -> None:
    path = config("training: {max_epochs: 7, batch_size: 8}\nmodel:\n  probe_mask: true\n")
    settings = settings_from(flags("--max-epochs", "3", "--no-probe-mask"), path)
    expected = Settings().override({"max_epochs": 3, "batch_size": 8, "probe_mask": False})
    assert settings == expected


def test_a_flag_may_say_the_default_against_the_file(config: Config) -> None:
    path = config("training: {max_epochs: 7, gradient_clip_val: none}\n")
    assert settings_from(flags(), path).training.gradient_clip_val is None
    assert settings_from(flags("--max-epochs", "none", "--gradient-clip-val", "3"), path) == Settings()


def test_every_setting_reaches_the_settings_by_its_flag() -> None:
    changed = {
        "model": dataclass_values(ModelSettings, amp_activation="relu", loss_function="MAE"),
        "training": dataclass_values(
            TrainingSettings, device="cpu", strategy="ddp", precision="64-true", optimizer="adamw", devices=-1,
            scheduler="Exponential", gradient_clip_algorithm="value", early_stop_monitor="val_loss",
            validation_selection="last", adam_beta1=0.5, adam_beta2=0.5, validation_fraction=0.5, lr_gamma=0.5,
            plateau_factor=0.25, lr_min_ratio=0.5, initial_amplitude="zero_bias", accept="static,one-place",
        ),
        "data": dataclass_values(
            DataSettings, N=128, group_sampler="reference", position_source="nominal", detector_flip="both",
            n_subsample=1,
        ),
    }  # fmt: skip
    arguments = []
    for values in changed.values():
        for name, value in values.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments.append(f"--{flag}={value}")
    assert settings_from(flags(*arguments), None).as_dict() == changed


def dataclass_values(kind: Any, **given: Any) -> dict[str, Any]:
    """Return a value for every setting that differs from its default, as far as ``given`` does not say otherwise."""
    values: dict[str, Any] = {}
    for name, default in kind().__dict__.items():
        if isinstance(default, bool):
            values[name] = not default
        elif default is None:
            values[name] = "text" if name == "run_name" else 2
        elif isinstance(default, int | float):
            values[name] = default + 1
        else:
            values[name] = "text"
    return values | given


def test_optional_settings_take_none_and_others_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_from(flags("--early-stop-patience", "none", "--run-name", "None", "--offset=none"), None)
    assert settings.training.early_stop_patience is None
    assert settings.training.run_name is None
    with pytest.raises(SystemExit):
        flags("--batch-size", "none")
    with pytest.raises(SystemExit):
        flags("--offset", "wide")
    assert "'wide' is neither int nor none" in capsys.readouterr().err


def test_underscores_do_for_dashes(trained: Calls, run: Run) -> None:
    code, _, err = run(
        "train", "my scans", "--max_epochs", "3", "--no-pad_object", "--run_name=a_b", "--output_dir", "o_"
    )
    assert (code, err) == (0, "")
    (call,) = trained
    assert call["ptycho_dir"] == Path("my scans")
    assert call["output_dir"] == Path("o_")
    assert call["settings"] == Settings().override({"max_epochs": 3, "pad_object": False, "run_name": "a_b"})


def test_the_effective_settings_can_be_fed_back(run: Run, tmp_path: Path) -> None:
    # A name that YAML would take for a number, and numbers that YAML 1.1 would take for text.
    given = ("--run-name", "1e-3", "--learning-rate", "3e-5", "--adam-eps=1e-8", "--no-normalize", "--offset", "6")
    code, out, err = run("train", "--print-config", *given)
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["training"]["max_epochs"] is None
    (tmp_path / "effective.yaml").write_text(out, encoding="utf-8")
    expected = Settings().override(
        {"run_name": "1e-3", "learning_rate": 3e-5, "adam_eps": 1e-8, "normalize": False, "offset": 6}
    )
    assert settings_from(flags(), tmp_path / "effective.yaml") == expected
    assert run("train", "--print-config", "--config", tmp_path / "effective.yaml") == (0, out, "")


def test_numbers_may_be_written_with_an_exponent_and_no_point(config: Config) -> None:
    assert read_config(config("training: {learning_rate: 1e-3, run_name: '1e-3'}")) == {
        "learning_rate": 1e-3,
        "run_name": "1e-3",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\ntraining: ~\n", "{}"])
def test_a_file_that_names_nothing_gives_the_defaults(text: str, config: Config) -> None:
    assert settings_from(flags(), config(text)) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  max_epoch: 3\n", ("line 2", "'max_epoch'", "'training'", "did you mean 'max_epochs'")),
        ("training:\n  gridsize: 1\n", ("line 2", "'gridsize'", "belongs into 'data'")),
        ("model:\n  grid_size: 1\n", ("'grid_size'", "here: gridsize (data)")),
        ("model:\n  gridsiz: 1\n", ("'gridsiz'", "did you mean 'gridsize' of section 'data'")),
        ("max_epochs: 3\n", ("line 1", "'max_epochs'", "belongs into 'training'")),
        ("trainings:\n  max_epochs: 3\n", ("line 1", "'trainings'", "did you mean 'training'")),
        ("xyz: 3\n", ("'xyz'", "known: model, training, data")),
        ("data:\n  N: 64\n  N: 128\n", ("line 3", "'N'", "twice")),
        ("data: {}\nmodel: {}\ndata: {}\n", ("line 3", "'data'", "twice")),
        ("data:\n  N: [64]\n", ("line 2", "'N'", "list")),
        ("data:\n  ? [1]\n  : 2\n", ("line 2", "'a list'")),
        ("data:\n  N:\n    64: 3\n", ("line 2", "'N'", "mapping")),
        ("- 1\n", ("line 1", "model, training, data")),
        ("data: 64\n", ("'data'", "names and values")),
        ("data: {N: sixty}\n", ("DataSettings.N", "'sixty'", "expected int")),
        ("training: {run_name: 2026-01-01}\n", ("TrainingSettings.run_name", "expected str")),
        ("training: {max_epochs: !!python/name:os.system x}\n", ("line 1", "no valid YAML")),
        ("training: {max_epochs: " + "9" * 5000 + "}\n", ("line 1", "'max_epochs'")),
        ("training: {max_epochs: 0x" + "f" * 5000 + "}\n", ("line 1", "'max_epochs'", "larger")),
        ("data: {N: 64\n", ("line 2", "no valid YAML")),
        ("a: 1\n---\nb: 2\n", ("no valid YAML",)),
        ("a: \x00\n", ("no valid YAML",)),
        ("model: " + "[" * 500, ("nested",)),
        ("#" * (MAX_CONFIG_BYTES + 1), ("256 KiB",)),
    ],
)  # fmt: skip
def test_a_file_with_an_error_is_named_with_line_key_and_nearest_name(
    text: str, words: tuple[str, ...], config: Config
) -> None:
    path = config(text)
    with pytest.raises(ConfigError) as caught:
        settings_from(flags(), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message
    assert len(message) < 600


def test_what_a_flag_breaks_is_not_blamed_on_the_file(config: Config) -> None:
    path = config("training: {optimizer: adamw, weight_decay: 0.1}\n")
    with pytest.raises(ConfigError, match=r"^TrainingSettings\.weight_decay"):
        settings_from(flags("--optimizer", "adam"), path)


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("data: {N: sixty}", ("--N", "128"), "DataSettings.N"),
        ("training: {max_epochs: 0}", ("--max-epochs", "3"), "TrainingSettings.max_epochs"),
        ("training: {optimizer: adma, max_epochs: 3}", ("--optimizer", "adamw"), "TrainingSettings.optimizer"),
    ],
)
def test_a_wrong_value_of_the_file_is_an_error_where_a_flag_overrides_it(
    text: str, given: tuple[str, ...], words: str, config: Config
) -> None:
    path = config(text)
    with pytest.raises(ConfigError) as caught:
        settings_from(flags(*given), path)
    assert str(caught.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("training: {optimizer: adamw, weight_decay: 0.1}", ("--weight-decay", "0.2")),
        ("training: {optimizer: adamw, weight_decay: 0.1}", ("--weight-decay", "0", "--optimizer", "adam")),
        ("training: {weight_decay: 0.1}", ("--weight-decay", "0.2", "--optimizer", "adamw")),
    ],
)
def test_a_value_that_fits_with_others_may_be_overridden(text: str, given: tuple[str, ...], config: Config) -> None:
    assert settings_from(flags(*given), config(text)).training.weight_decay == float(given[1])


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "learning_rate"), ("epochs", "max_epochs"), ("bs", "batch_size"), ("gpus", "devices"),
     ("workers", "num_workers"), ("patience", "early_stop_patience"), ("optim", "optimizer")],
)  # fmt: skip
def test_common_names_are_understood_everywhere(name: str, meant: str, config: Config, run: Run, place: Path) -> None:
    code, _, err = run("train", "scans", f"--{name}", "3")
    assert code == 2
    assert f"did you mean --{meant.replace('_', '-')}?" in err
    with pytest.raises(ConfigError, match=meant):
        settings_from(flags(), config(f"training: {{{name}: 3}}"))
    with pytest.raises(ConfigError, match=meant):
        Settings().override({name: 3})
    with pytest.raises(ConfigError, match=meant):
        TrainingSettings.from_mapping({name: 3})


def test_values_that_only_fit_together_may_come_from_both(config: Config) -> None:
    path = config("training: {weight_decay: 0.1}\n")
    assert settings_from(flags("--optimizer", "adamw"), path).training.weight_decay == 0.1


def test_a_file_that_is_not_there_is_named(run: Run, place: Path, tmp_path: Path) -> None:
    code, _, err = run("train", "scans", "--config", tmp_path / "no.yaml")
    assert code == 1
    assert err == f"error: {tmp_path / 'no.yaml'}: the configuration cannot be read (No such file or directory).\n"


def test_aliases_cannot_grow_a_file(config: Config) -> None:
    rows = [f"  b{level + 1}: &b{level + 1} [*b{level}, *b{level}]\n" for level in range(100)]
    with pytest.raises(ConfigError, match="'gridsize' is a list"):
        read_config(config(f"data:\n  gridsize: &b0 [1, 1]\n{''.join(rows)}"))


def test_the_printed_file_holds_every_setting() -> None:
    assert yaml.safe_load(config_text(Settings())).keys() == Settings().as_dict().keys()


# -------------------------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "scans", "--max-epoch", "3"), ("--max-epoch", "did you mean --max-epochs?", "train --help")),
        (("train", "scans", "--max-epochs", "three"), ("--max-epochs", "'three'")),
        (("infer", "last.ckpt", "scans", "--weighing", "smooth"), ("did you mean --weighting?",)),
        (("infer", "last.ckpt", "scans", "--output", "x"), ("did you mean --output-dir?",)),
        (("simulate", "-o", "a.npz", "--out", "x"), ("did you mean --output?",)),
        (("infer", "last.ckpt"), ("SCANS",)),
        (("infer", "last.ckpt", "scans", "--wavelength-m", "-1"), ("--wavelength-m", "above 0")),
        (("train", "scans", "--resume", "auto", "--start-from", "x.ckpt"), ("not allowed with",)),
        (("trian", "scans"), ("invalid choice: 'trian'",)),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_told_in_one_line(arguments: tuple[str, ...], words: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in ("error: ", *words):
        assert word in err


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (TrainingError("The loss is nan.\nLower it."), "error: The loss is nan. Lower it.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/a"),
            "error: run/a: No space left on device. Free some space, or write to another disk.\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "error: Too many open files. Allow more open files (ulimit -n 4096), or lower num_workers.\n",
        ),
        (OSError("no number"), "error: no number\n"),
        (KeyError("weights"), "error: unexpected KeyError: 'weights' (--debug shows the traceback)\n"),
        (MemoryError(), "error: unexpected MemoryError (--debug shows the traceback)\n"),
    ],
)
def test_a_command_that_fails_says_why_in_one_line(
    raised: Exception, line: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "train", main=fail(raised))
    assert run("train", "scans") == (1, "", line)
    with pytest.raises(type(raised)):
        run("train", "scans", "--debug")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ptycho_torch", "plot", str(tmp_path / "no.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    result = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")


def test_an_interrupt_ends_with_130(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "inference", infer=fail(KeyboardInterrupt()))
    assert run("infer", "last.ckpt", "scans") == (130, "", "interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m ptycho_torch train --print-config | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""


# ---------------------------------------------------------------------------------------------------------- train


def test_train_hands_over_what_was_asked_for(trained: Calls, run: Run) -> None:
    code, out, err = run(
        "train", "scans", "-o", "run", "--probe-dir", "probes", "--data-dir", "map", "--remake-map", "--progress",
        "--start-from", "old.ckpt", "--no-reconstruct", "--gridsize", "1",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert trained == [
        {
            "ptycho_dir": Path("scans"),
            "probe_dir": Path("probes"),
            "settings": Settings().override({"gridsize": 1}),
            "output_dir": Path("run"),
            "data_dir": Path("map"),
            "remake_map": True,
            "resume": None,
            "start_from": Path("old.ckpt"),
            "overwrite": False,
            "reconstruct": False,
            "contact_sheet": False,
            "progress": True,
        }
    ]
    lines = out.splitlines()
    assert lines[0] == "2 epochs (early stop), 3 min 12 s: training loss 3 → 2, validation loss 3.5 → 2.5"
    assert [line.strip() for line in lines[1:]] == [
        "nphotons = 50000 (as given)",
        "run/checkpoints/last.ckpt",
        "run/checkpoints/best.ckpt",
        "run/history.png",
        "run/reconstructions/a.npz",
        "run/reconstructions/a.png",
        "map (memory map; infer uses it too)",
    ]


def test_a_preset_lies_below_file_and_flags(trained: Calls, run: Run, config: Config) -> None:
    path = config("training: {max_epochs: 7, batch_size: 8}\n")
    assert run("train", "scans", "--preset", "reference", "--config", path, "--max-epochs", "3")[0] == 0
    assert trained[0]["settings"] == Settings.preset("reference").override({"max_epochs": 3, "batch_size": 8})
    code, _, err = run("train", "scans", "--preset", "referenc")
    assert code == 2
    assert "reference" in err


def test_training_decides_itself_where_bars_are_shown(trained: Calls, run: Run) -> None:
    run("train", "scans")
    run("train", "scans", "--no-progress")
    assert [call["progress"] for call in trained] == [None, False]


def test_train_needs_scans(trained: Calls, run: Run) -> None:
    code, _, err = run("train", "--max-epochs", "3")
    assert (code, trained) == (1, [])
    assert err == "error: SCANS is missing: name a folder of scans, or one scan (.npz).\n"


def test_resuming_takes_the_settings_of_the_run(
    trained: Calls, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = Settings().override({"gridsize": 1, "max_epochs": 9})
    read: list[Path] = []

    def read_checkpoint(path: Path) -> Any:
        read.append(path)
        return types.SimpleNamespace(settings=theirs)

    replace(monkeypatch, "training.checkpoint", read_checkpoint=read_checkpoint)
    assert run("train", "scans", "-o", "run", "--resume", "auto")[0] == 0
    # Nothing is there to resume from, so a new run begins.
    assert (trained[-1]["resume"], trained[-1]["settings"]) == (None, Settings())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert run("train", "scans", "-o", "run", "--resume", "auto", "--max-epochs", "12")[0] == 0
    assert trained[-1]["resume"] == Path("run/checkpoints/last.ckpt")
    assert trained[-1]["settings"] == theirs.override({"max_epochs": 12})
    assert run("train", "scans", "--resume", "old.ckpt")[0] == 0
    assert trained[-1]["resume"] == Path("old.ckpt")
    assert read == [Path("run/checkpoints/last.ckpt"), Path("old.ckpt")]
    # The folder of a run stands for where its training stands.
    assert run("train", "scans", "-o", "other", "--start-from", "run")[0] == 0
    assert trained[-1]["start_from"] == Path("run/checkpoints/last.ckpt")
    code, out, _ = run("train", "--print-config", "--resume", "old.ckpt")
    assert (code, out) == (0, config_text(theirs))


RUN = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "history.json", "reconstructions/a.npz")


def test_a_folder_with_a_run_is_refused_with_what_to_do(trained: Calls, run: Run, place: Path) -> None:
    put(place / "run", *RUN)
    code, out, err = run("train", "scans", "-o", "run", "--data-dir", "map")
    assert (code, out, trained) == (1, "", [])
    assert err == (
        "error: run holds a run already (checkpoints/best.ckpt, checkpoints/last.ckpt, history.json, …). "
        "Resume it: ptycho-torch train scans -o run --data-dir map --resume auto; replace it with --overwrite, or "
        "choose another folder with -o.\n"
    )
    assert run("train", "scans", "-o", "run", "--overwrite")[0] == 0
    assert trained[-1]["overwrite"] is True
    assert run("train", "scans", "-o", "run", "--print-config")[0] == 0
    assert run("train", "scans", "-o", "other")[0] == 0
    # What resumes is the run that --overwrite would remove.
    code, _, err = run("train", "scans", "-o", "run", "--overwrite", "--resume", "auto")
    assert code == 1
    assert "leave one of them out" in err
    # The checkpoint of another run would take this one's place.
    assert run("train", "scans", "-o", "run", "--resume", "old.ckpt")[0] == 1


def test_what_cannot_be_resumed_does_not_stop_a_run_that_begins_by_itself(
    trained: Calls, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place / "killed", "history.json")
    assert run("train", "scans", "-o", "killed")[0] == 1
    assert run("train", "scans", "-o", "killed", "--resume", "auto")[0] == 0
    assert (trained[-1]["resume"], trained[-1]["overwrite"]) == (None, True)
    # Killed between the two checkpoints of its first epoch.
    put(place / "early", "checkpoints/best.ckpt")
    replace(monkeypatch, "training.checkpoint", read_checkpoint=lambda _: types.SimpleNamespace(settings=Settings()))
    assert run("train", "scans", "-o", "early", "--resume", "auto")[0] == 0
    assert (trained[-1]["resume"], trained[-1]["overwrite"]) == (Path("early/checkpoints/best.ckpt"), False)
    put(place / "objects", "reconstructions/a.npz")
    assert run("train", "scans", "-o", "objects", "--resume", "auto")[0] == 1


def from_lightning(*_: Any, **__: Any) -> None:
    """Lightning turns an interrupt into the end of the process."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("main", [fail(KeyboardInterrupt()), from_lightning], ids=["interrupt", "lightning"])
def test_an_interrupted_run_says_how_to_go_on(
    main: Callable[..., Any], run: Run, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    replace(monkeypatch, "train", main=main)
    code, out, err = run("train", "my scans", "-o", "run")
    assert (code, out) == (130, "")
    assert err.startswith("interrupted before the first checkpoint")

    def interrupted(*arguments: Any, **names: Any) -> None:
        put(place / "run", "checkpoints/last.ckpt")
        main(*arguments, **names)

    replace(monkeypatch, "train", main=interrupted)
    code, _, err = run(
        "train", "my scans", "-o", "run", "--data-dir", "map", "--probe-dir", "probes", "--gridsize", "1"
    )
    assert (code, err.count("\n")) == (130, 1)
    advice = err.partition(": ")[2].strip()
    assert advice == "ptycho-torch train 'my scans' -o run --probe-dir probes --data-dir map --resume auto"
    options = cli.parser().parse_args(shlex.split(advice)[1:])
    assert (options.ptycho_dir, options.resume) == (Path("my scans"), "auto")


def test_an_exit_that_is_no_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    replace(monkeypatch, "train", main=fail(SystemExit(143)))
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "scans"])
    assert caught.value.code == 143


# ---------------------------------------------------------------------------------------------------------- infer


@pytest.fixture
def reconstruction() -> Reconstruction:
    draw = np.random.default_rng(0)
    return Reconstruction(
        object=(draw.random((12, 16)) * np.exp(1j * draw.random((12, 16)))).astype(np.complex64),
        coverage=np.ones((12, 16), np.float32),
        origin_px=(3.0, 4.0),
        positions_px=10 * draw.random((5, 2)),
        probe=np.ones((8, 8), np.complex64),
        provenance={"scan": "a.npz", "nphotons": 5e4, "nphotons_source": "of _metadata in the scan"},
    )


def test_infer_hands_over_what_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: Path, reconstruction: Reconstruction
) -> None:
    calls: Calls = []

    def infer(checkpoint: Path, ptycho_dir: Path, **names: Any) -> tuple[Any, ...]:
        calls.append({"checkpoint": checkpoint, "ptycho_dir": ptycho_dir, **names})
        result = types.SimpleNamespace(
            name="a",
            npz=Path("out/a.npz"),
            pictures=(Path("out/a.png"),),
            product=Path("out/a.h5"),
            cxi=None,
            reconstruction=reconstruction,
            scores=types.SimpleNamespace(describe=lambda: ("contrast 0.1", "R-factor 0.2")),
            json=Path("out/a.json"),
        )
        return (result,)

    replace(monkeypatch, "inference", infer=infer)
    put(place / "run", "checkpoints/last.ckpt")
    code, out, err = run(
        "infer", "run", "scans", "-o", "out", "--overwrite", "--probe-dir", "probes", "--data-dir", "map",
        "--batch-size", "8", "--weighting", "uniform", "--crop-px", "20", "--device", "cpu", "--wavelength-m", "1e-10",
        "--distance-m", "2", "--pixel-m", "75e-6", "--no-progress", "--group-seed", "45", "--n-groups", "80",
        "--K", "4",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "a: object of 16 × 12 pixels from 5 groups",
        "  contrast 0.1",
        "  R-factor 0.2",
        "  nphotons = 50000 (of _metadata in the scan)",
        "  out/a.npz",
        "  out/a.json",
        "  out/a.h5",
        "  out/a.png",
        "out holds the files of 1 scan, map the memory map",
    ]
    assert calls == [
        {
            # A folder of a run stands for where its training stands.
            "checkpoint": Path("run/checkpoints/last.ckpt"),
            "ptycho_dir": Path("scans"),
            "output_dir": Path("out"),
            "probe_dir": Path("probes"),
            "data_dir": Path("map"),
            "batch_size": 8,
            "weighting": "uniform",
            "crop_px": 20,
            "device": "cpu",
            "progress": False,
            "overwrite": True,
            "wavelength_m": 1e-10,
            "detector_distance_m": 2.0,
            "detector_pixel_m": 75e-6,
            "group_seed": 45,
            "n_groups": 80,
            "K": 4,
            "devices": 1,
            "cxi": False,
        }
    ]


def test_the_commands_call_the_functions_that_are_there() -> None:
    import inspect

    from ptycho_torch import inference, train

    named = {
        train.main: (
            "settings", "output_dir", "data_dir", "remake_map", "resume", "start_from", "overwrite", "reconstruct",
            "progress",
        ),
        inference.infer: (
            "output_dir", "probe_dir", "data_dir", "batch_size", "weighting", "crop_px", "device", "progress",
            "overwrite", "wavelength_m", "detector_distance_m", "detector_pixel_m", "group_seed", "n_groups", "K",
        ),
    }  # fmt: skip
    for function, names in named.items():
        inspect.signature(function).bind("a", "b", **dict.fromkeys(names))
        assert set(names) <= set(inspect.signature(function).parameters)
    assert {"module", "checkpoint", "best_checkpoint", "history", "reconstructions", "seconds"} <= set(
        train.TrainingResult.__dataclass_fields__
    )
    assert {"name", "npz", "pictures", "product", "reconstruction", "scores", "json"} <= set(
        inference.InferenceResult.__dataclass_fields__
    )


# ----------------------------------------------------------------------------------------------------------- plot


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_draws_what_it_is_given(run: Run, tmp_path: Path, reconstruction: Reconstruction) -> None:
    write_reconstruction(tmp_path / "object.npz", reconstruction)
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "scan.npz",
        diff3d=draw.random((12, 16, 16), np.float32),
        xcoords=20 + 6 * draw.random(12),
        ycoords=20 + 6 * draw.random(12),
        probeGuess=np.ones((16, 16), np.complex64),
        objectGuess=np.ones((40, 40), np.complex64),
    )
    (tmp_path / "history.json").write_text(json.dumps({"train_loss": [3, 2.5], "learning_rate": [1e-3, 1e-3]}))
    files = [tmp_path / name for name in ("object.npz", "scan.npz", "history.json")]
    code, out, err = run("plot", *files, "-o", tmp_path / "new" / "pictures", "--images")
    assert (code, err) == (0, "")
    pictures = [Path(line) for line in out.splitlines()]
    names = ["object", "object_amplitude", "object_phase", "object_colour", "scan", "history"]
    assert pictures == [tmp_path / "new" / "pictures" / f"{name}.png" for name in names]
    assert all(map(is_png, pictures))
    assert run("plot", tmp_path / "object.npz")[:2] == (0, f"{tmp_path / 'object.png'}\n")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", {"probe": np.ones(3), "other": np.ones(3)}, "neither a reconstruction"),
        ("a.npz", {"diff3d": np.ones((3, 3))}, "SCAN-"),
        ("a.npz", b"nothing", "NPZ-01"),
        ("a.json", b"[1]", "no history"),
        ("a.json", b'{"train_loss": 3}', "no history"),
        ("a.json", b"{", "no history"),
    ],
)
def test_plot_says_what_it_cannot_draw(
    name: str, content: dict[str, np.ndarray] | bytes, words: str, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    code, out, err = run("plot", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {path}")
    assert words in err
    assert list(tmp_path.iterdir()) == [path]
