"""The benchmarks of speed: fair, refused on a busy machine, and run to their end."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.model import PtychoNet

ROOT = Path(__file__).parents[2]


def script(name: str) -> types.ModuleType:
    """Import a script of ``benchmarks``, which is no package."""
    path = ROOT / "benchmarks" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"no {path}: this is no checkout")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def stages_run(network: PtychoNet, act: object) -> set[str]:
    """Return the stages that an action computes."""
    seen: set[str] = set()
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
        for name in network.stage_ids()
    ]
    act()  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return seen


def test_inference_of_both_sides_gives_the_object_alone() -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    network_benchmark = script("network")
    settings = NetworkSettings(N=64, gridsize=1, n_filters_scale=1)
    network = PtychoNet(settings, generator=torch.Generator().manual_seed(0))
    batch = network_benchmark.Batch.draw(settings, 1)
    ours = network_benchmark.torch_actions(network, batch, bf16=False)
    theirs = network_benchmark.keras_actions(network, batch)
    outputs = [ours["inference"](), torch.from_numpy(theirs["inference"]()).movedim(-1, 1)]
    assert [(each.shape, each.dtype) for each in outputs] == [((1, 1, 64, 64), torch.complex64)] * 2
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-5)
    assert "object" in stages_run(network, ours["inference"])
    assert not {"views", "amplitude"} & stages_run(network, ours["inference"])


def test_operations_and_time_outside_convolutions_are_counted() -> None:
    features, kernel = torch.rand(1, 4, 16, 16), torch.rand(8, 4, 3, 3)
    operations, outside = script("network").inside(lambda: torch.conv2d(features, kernel, padding=1))
    assert operations == 2 * 9 * 4 * 8 * 16 * 16
    assert 0 <= outside < 1


def test_the_table_of_the_page_is_written_from_the_rows() -> None:
    network_benchmark = script("network")
    row = network_benchmark.Row(64, 2, "training", "float32", 90.0, 60.0, (1.5, 1.4, 1.6), 150.0, 200.0, 0.12, "1e-6")
    measured = json.loads(json.dumps({"where": "here", "rows": [network_benchmark.asdict(row)]}))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    once = network_benchmark.page_with(page, measured)
    assert "| 64 | 2 | training | float32 | 90.0 | 60.0 | 1.50 [1.40 … 1.60] | 150 | 200 | 75% | 12% | 1e-6 |" in once
    assert network_benchmark.page_with(once, measured) == once
    with pytest.raises(ValueError, match="no lines"):
        network_benchmark.page_with("a page", measured)


def test_cores_that_others_use_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network_benchmark, clock = script("network"), tmp_path / "stat"
    clock.write_text("cpu 100 0 0 100 0 0 0 0 0 0\n", encoding="ascii")
    later = "cpu 130 0 0 170 0 0 0 0 0 0\n"
    monkeypatch.setattr(network_benchmark.time, "sleep", lambda _: clock.write_text(later, encoding="ascii"))
    assert network_benchmark.share_of_others(clock=clock) == pytest.approx(0.3)


@pytest.mark.filterwarnings("ignore")
def test_the_run_for_a_gpu_runs_to_its_end_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "gpu.md"
    code = script("gpu").main(["--device", "cpu", "--small", "--evidence", str(tmp_path), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert code == 0, capsys.readouterr().out
    for heading in ("## Speed", "## The row furthest from its floor", "## Batches and runs", "## Recordings"):
        assert heading in text
    assert "left out" not in text
    (written,) = tmp_path.glob("*.json")
    numbers = json.loads(written.read_text(encoding="utf-8"))["numbers"]
    assert numbers["verdicts"] > 0
    assert numbers["faults"] == 1
    assert numbers["n64_training_float32_share_of_floor"] > 0


def test_mutants_are_of_modules_and_tests_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    judge, product = script("mutation"), script("product_mutation")
    monkeypatch.setitem(sys.modules, "mutation", judge)
    assert all((ROOT / name).is_file() for name in judge.TESTS)
    names = {mutant.name for module in judge.TARGETS for mutant in judge.mutants(module)}
    assert set(judge.EQUIVALENT) <= names
    for module, target in product.TARGETS.items():
        assert any(product.mutants(module)), module
        files = [name for arguments in target.conformance for name in arguments if name.startswith("conformance/")]
        assert all((ROOT / name).is_file() for name in [*files, *product._files(target)]), module
        assert all(product._lines(module, name) for name in target.ours)
    found = product.Result(
        "ptycho_torch.optim", product._lines("ptycho_torch.optim", "AdaptiveClip").start, "", False, True
    )
    assert found.is_killed
    assert not dataclasses.replace(found, line=1).is_killed
    names = {mutant.name for module in product.TARGETS for mutant in product.mutants(module)}
    assert set(product.EQUIVALENT) <= names


def test_a_test_that_fails_without_a_mutant_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    product = script("product_mutation")
    monkeypatch.setattr(product, "tests_pass", lambda mutant, tests, limit_s: "-k" not in tests)
    assert product.main(["-o", str(tmp_path / "mutants.json")]) == 2
    assert "fail without a mutant" in capsys.readouterr().out
    assert not (tmp_path / "mutants.json").exists()


def test_a_mutant_is_what_tests_with_an_import_hook_run(tmp_path: Path) -> None:
    judge = script("mutation")
    test = tmp_path / "test_mutant.py"
    test.write_text(
        "from jaxtyping import install_import_hook\n"
        "with install_import_hook('ptycho_torch.files.json_numbers', None):\n"
        "    from ptycho_torch.files.json_numbers import finite_or_none\n"
        "def test_list():\n"
        "    assert finite_or_none((1.0,)) == [1.0]\n"
    )
    module = "ptycho_torch.files.json_numbers"
    (mutant,) = [each for each in judge.mutants(module) if "list | tuple" in each.change and "if True" in each.change]
    assert judge.tests_pass(None, [str(test)], 60)
    assert not judge.tests_pass(mutant, [str(test)], 60)
