"""Drift between an installed reference and the table of settings is found, whatever its kind, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from conformance.errors import DriftError
from conformance.spec.drift import CLAUSES, Drift, compare, has_legacy_names

SOURCE = (Path(__file__).parents[1] / "support" / "archives" / "stand_in_config.py").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[2]

Write = Callable[[str], ModuleType]


def drifts(module: ModuleType) -> tuple[Drift, ...]:
    return compare(module).drifts


def changed(old: str, new: str, *, times: int = 1) -> str:
    assert SOURCE.count(old) >= 1, old
    return SOURCE.replace(old, new, times)


def test_a_faithful_reference_has_no_drift(import_config: Write) -> None:
    assert drifts(import_config(SOURCE)) == ()


@pytest.mark.parametrize(
    ("old", "new", "kind", "field"),
    [
        ("    nepochs: int", "    restarts: int = 3\n    nepochs: int", "new", "TrainingConfig.restarts"),
        ("    pad_object: bool = True\n", "", "vanished", "ModelConfig.pad_object"),
        ("    debug: bool = False\n", "", "vanished", "InferenceConfig.debug"),
        ("nphotons: float = 1e9", "nphotons: float = 1e5", "default", "TrainingConfig.nphotons"),
        ("probe_mask: bool = False", "probe_mask: bool = True", "default", "ModelConfig.probe_mask"),
        ('Path("training_outputs")', 'Path("outputs")', "default", "TrainingConfig.output_dir"),
        ("self.n_groups = 512", "self.n_groups = 1024", "default", "TrainingConfig.n_groups"),
        ("test_data_file: Path\n", "test_data_file: Path = Path()\n", "default", "InferenceConfig.test_data_file"),
        ("num_workers: int = 0", "num_workers: int = 4", "default", "PyTorchExecutionConfig.num_workers"),
        ("Literal[64, 128, 256]", "Literal[64, 128, 256, 512]", "choices", "ModelConfig.N"),
        ('Literal["adam", "adamw", "sgd"]', 'Literal["adam", "adamw"]', "choices", "TrainingConfig.optimizer"),
        ("gridsize: int = 1", 'gridsize: Literal[1, 2] = 1', "choices", "ModelConfig.gridsize"),
        ("batch_size: int = 16", "batch_size: str = 16", "choices", "TrainingConfig.batch_size"),
        ('"object.big"', '"object.large"', "legacy name", "ModelConfig.object_big"),
        ('    "probe_mask": "probe.mask",\n', "", "legacy name", "ModelConfig.probe_mask"),
        ("    renamed = {}", '    renamed = {}\n    flat.pop("nepochs", 0)', "legacy name", "TrainingConfig.nepochs"),
    ],
)  # fmt: skip
def test_a_drift_is_found_and_named(import_config: Write, old: str, new: str, kind: str, field: str) -> None:
    found = drifts(import_config(changed(old, new)))
    assert (kind, field) in {(drift.kind, drift.field) for drift in found}
    # The same field of another dataclass may follow, and nothing else.
    assert {drift.field.partition(".")[2] for drift in found} == {field.partition(".")[2]}
    (drift,) = [each for each in found if each.field == field]
    assert str(drift).startswith(f"{CLAUSES[kind]} {kind}: {field}: expected ")


def test_every_drift_is_listed(import_config: Write) -> None:
    source = changed("probe_scale: float = 4.0", "probe_scale: float = 10.0")
    source = source.replace("    momentum: float = 0.9\n", "").replace('"output_prefix"', '"output"')
    source = source.replace("    plateau_patience: int = 2\n", "    plateau_patience: int = 2\n    cooldown: int = 0\n")
    source = source.replace('Literal["poisson", "mae"]', 'Literal["poisson", "mae", "huber"]')
    found = {(drift.kind, drift.field) for drift in drifts(import_config(source))}
    assert found == {
        ("default", "ModelConfig.probe_scale"),
        ("vanished", "TrainingConfig.momentum"),
        ("legacy name", "TrainingConfig.output_dir"),
        ("legacy name", "InferenceConfig.output_dir"),
        ("new", "TrainingConfig.cooldown"),
        ("choices", "TrainingConfig.torch_loss_mode"),
    }


def test_a_dataclass_that_is_new_or_gone_is_a_drift(import_config: Write) -> None:
    source = changed("class PyTorchExecutionConfig", "class ExecutionConfig")
    found = {(drift.kind, drift.field) for drift in drifts(import_config(source))}
    assert found == {("vanished", "PyTorchExecutionConfig"), ("new", "ExecutionConfig")}


def test_legacy_names_come_from_the_table_of_the_module_where_it_has_no_function(import_config: Write) -> None:
    head, _, _ = SOURCE.partition("def dataclass_to_legacy_dict")
    assert drifts(import_config(head)) == ()
    found = drifts(import_config(head.replace('"probe.big"', '"probe.large"')))
    assert [(drift.kind, drift.field) for drift in found] == [("legacy name", "ModelConfig.probe_big")]
    bare, _, _ = head.partition("KEY_MAPPINGS")
    module = import_config(bare)
    assert not has_legacy_names(module)
    assert drifts(module) == ()


def test_a_dataclass_that_cannot_be_made_is_a_drift_and_no_error(import_config: Write) -> None:
    source = changed(
        "        if self.n_groups is None:\n", "        raise RuntimeError('no')\n        if self.n_groups is None:\n"
    )
    assert [drift.field for drift in drifts(import_config(source))] == ["TrainingConfig"]


def test_a_value_that_the_dataclass_checks_is_a_drift_and_no_error(import_config: Write) -> None:
    check = '        if self.batch_size != 16:\n            raise ValueError("a power\\nof two")\n'
    module = import_config(
        changed("        if self.n_groups is None:\n", f"{check}        if self.n_groups is None:\n")
    )
    (drift,) = drifts(module)
    assert str(drift).startswith(
        "CONFIG-05 legacy name: TrainingConfig.batch_size: expected batch_size, found ValueError: a power of two. "
    )


@pytest.mark.parametrize(
    "source", ["x = 1\n", "raise RuntimeError('broken\\ninstall')\n", "import nothing_of_this_name\n"]
)
def test_a_module_that_is_no_reference_is_refused_in_one_line(import_config: Write, source: str) -> None:
    with pytest.raises(DriftError, match=r"their_config_\d+ (cannot be imported|holds none)") as caught:
        import_config(source)
    assert "\n" not in str(caught.value)


def run(tmp_path: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "their_config.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "-q", "-p", "no:cacheprovider", *arguments]
    path = f"{ROOT}:{tmp_path}"
    return subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_option_passes_a_faithful_reference_and_lists_the_drifts_of_another(tmp_path: Path) -> None:
    good = run(tmp_path, SOURCE, "--parity-tf-config", "their_config")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "5 passed" in good.stdout
    assert "their_config: 0 drifts from specs/configuration.yaml in 115 fields" in good.stdout
    source = changed("nphotons: float = 1e9", "nphotons: float = 1e5").replace('"object.big"', '"object.large"')
    bad = run(tmp_path, source, "--parity-tf-config", "their_config")
    assert bad.returncode == 1
    assert "2 drifts from specs/configuration.yaml" in bad.stdout
    assert f"reference their_config: of unknown version, {tmp_path}/their_config.py, sha256 " in bad.stdout
    assert (
        "CONFIG-03 default: TrainingConfig.nphotons: expected default 1000000000.0, found default 100000.0"
        in bad.stdout
    )
    assert "CONFIG-05 legacy name: ModelConfig.object_big: expected object.big, found object.large" in bad.stdout
    missing = run(tmp_path, SOURCE, "--parity-tf-config", "nobody.has.this")
    assert missing.returncode == 4
    assert "nobody.has.this cannot be imported" in missing.stderr
