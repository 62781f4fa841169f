"""A stand-in package is driven as an installed reference is: read, isolated, and told when it is not the reference."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.draws import GRAPHS, draw_case
from conformance.errors import DriftError
from conformance.judge.measured import load_measured
from conformance.report.results import read_report
from conformance.session.bench import Bench, plan
from conformance.spec.drift import import_reference
from conformance.spec.loader import load_stages
from conformance.subjects.package import identify
from ptycho_tf_bridge import backend, live
from ptycho_tf_bridge.errors import LiveReferenceError
from ptycho_tf_bridge.reference_path import import_name
from ptycho_torch.config_params import NetworkSettings
from tests.support.archives.reference_package import Edit, write_package

if not backend.is_available():
    pytest.skip("TensorFlow is not installed, so no reference package can be driven", allow_module_level=True)

from conformance.subjects.keras import KerasSubject
from conformance.subjects.tensorflow import TensorFlowSubject
from ptycho_tf_bridge.live import LiveReference

REPOSITORY = Path(__file__).parents[2]
GOOD = "standin_reference"


@pytest.fixture(scope="module", autouse=True)
def importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("packages")
    sys.path.insert(0, str(folder))
    write_package(folder, GOOD)
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("standin_")]:
        del sys.modules[name]


def driven(settings: NetworkSettings) -> TensorFlowSubject:
    return TensorFlowSubject(settings, "float32", LiveReference(GOOD, settings))


LIVE = [name for name in GRAPHS if not GRAPHS[name].shared_amplitude_head and GRAPHS[name].N == 64]


@pytest.mark.parametrize("name", LIVE)
def test_every_stage_is_read_by_its_graph_role(name: str) -> None:
    settings = GRAPHS[name]
    live, own = driven(settings), KerasSubject(settings)
    case = draw_case(settings, seed=2, batch=2)
    found, expected = live.free(case), own.free(case)
    assert set(found.stages) == {stage.id for stage in load_stages().expand(settings)} == set(expected.stages)
    for stage, array in expected.stages.items():
        assert found.stages[stage].dtype == array.dtype
        np.testing.assert_allclose(found.stages[stage], array, rtol=0, atol=2e-5 * np.abs(array).max(), err_msg=stage)
    for weight, array in expected.gradients.items():
        assert np.abs(found.gradients[weight] - array).max() <= 2e-3 * np.abs(array).max(), weight


def test_stages_alone_have_the_inputs_of_the_specification() -> None:
    settings = GRAPHS["n64_g2"]
    case = draw_case(settings, seed=2, batch=1)
    own = KerasSubject(settings)
    truth = own.free(case)
    found = driven(settings).forced(case, truth.stages, truth.cotangents)
    expected = own.forced(case, truth.stages, truth.cotangents)
    assert {stage: set(by_input) for stage, by_input in found.pulled.items()} == {
        stage: set(by_input) for stage, by_input in expected.pulled.items()
    }


def test_a_large_batch_is_not_folded_into_one_canvas() -> None:
    settings = GRAPHS["n64_g2"]
    live = driven(settings)
    case = draw_case(settings, seed=2, batch=17)
    whole = live.free(case).stages
    last = dataclasses.replace(case, diffraction=case.diffraction[-1:], offsets_px=case.offsets_px[-1:])
    one = live.free(last).stages
    assert whole["object"].shape == (17, 64, 64, 1)
    np.testing.assert_allclose(whole["object"][-1:], one["object"], rtol=0, atol=1e-5)


def test_two_references_in_one_process_do_not_meet() -> None:
    cases = [
        draw_case(dataclasses.replace(GRAPHS["n64_g1_nopad"], intensity_scale=scale), seed=seed, batch=1)
        for scale, seed in ((3.0, 1), (700.0, 2))
    ]
    alone = [driven(case.settings).free(case).stages["predicted_amplitude"] for case in cases]
    subjects = [driven(case.settings) for case in cases]
    for index in (1, 0, 1):
        found = subjects[index].free(cases[index]).stages["predicted_amplitude"]
        assert np.array_equal(found, alone[index])


def test_the_package_is_left_as_it_was() -> None:
    params = importlib.import_module(f"{GOOD}.params")
    model = importlib.import_module(f"{GOOD}.model")
    model._lazy_cache.clear()
    before, state = dict(params.cfg), np.random.get_state()[1].copy()  # noqa: NPY002
    settings = GRAPHS["n64_g2_mask_blur"]
    driven(settings).free(draw_case(settings, seed=2, batch=1))
    assert params.cfg == before
    assert model._lazy_cache == {}
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


MODEL, CONFIG = "model.py", "config/config.py"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [(MODEL, "TrimReconstructionLayer", "Cut"), ("custom_layers.py", "TrimReconstructionLayer", "Cut")],
            "missing layers: TrimReconstructionLayer",
        ),
        (
            [
                (MODEL, "create_model_with_gridsize", "_hidden"),
                (MODEL, "def create_compiled_model", "def _compiled"),
                (MODEL, " = create_compiled_model()", " = _compiled()"),
            ],
            "0 functions that take gridsize and N (none), and none builds the model",
        ),
        ([(CONFIG, "    probe_mask: bool = False\n", "")], "ModelConfig has no field probe_mask"),
        ([(CONFIG, "def update_legacy_dict", "def to_legacy")], "config.config.update_legacy_dict is missing"),
        ([("params.py", "cfg =", "settings =")], "params.cfg is missing"),
        (
            [(MODEL, "self.w = tf.Variable(", "self.w = tf.constant("), (MODEL, "[None], trainable=False)", "[None])")],
            "(ProbeIllumination) holds no variable that is a complex probe of 64 × 64",
        ),
        (
            [(MODEL, 'params.cfg["intensity_scale"]', 'params.cfg["s"]')],
            "create_model_with_gridsize of standin_without_key.model raised KeyError: 's'",
        ),
        (
            [("params.py", "cfg =", 'raise ImportError("no such\\nsymbol")\ncfg =')],
            "importing standin_without_import.params raised ImportError: no such symbol",
        ),
        (
            [(CONFIG, "self.n_groups = 512", "raise ValueError(512)")],
            "TrainingConfig of standin_without_making.config.config raised ValueError: 512",
        ),
        (
            [(MODEL, "Conv(heads, 3, padding", "Conv(heads, 5, padding")],
            "kernel_size of 'conv2d_6' (decoder_amp.central) is [5, 5], the reference has [3, 3]",
        ),
    ],
    ids=["layer", "factory", "field", "update", "dictionary", "probe", "key", "import", "making", "kernels"],
)
def test_another_surface_is_refused_by_name(
    importable: Path, request: pytest.FixtureRequest, edits: list[Edit], message: str
) -> None:
    name = f"standin_without_{request.node.callspec.id}"
    write_package(importable, name, *edits)
    importlib.invalidate_caches()
    with pytest.raises(LiveReferenceError) as caught:
        LiveReference(name, GRAPHS["n64_g2"])
    assert message in str(caught.value), caught.value
    assert f"live:{name}: " in str(caught.value)


def test_the_function_that_builds_is_taken_and_the_one_that_wraps_it_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    live._BUILDERS.pop(importlib.import_module(f"{GOOD}.model"), None)
    driven = LiveReference(GOOD, GRAPHS["n64_g1_nopad"])
    assert str(driven.builder) == (f"{GOOD}.model.create_model_with_gridsize (create_compiled_model: the same model)")
    assert not driven.model.compiled
    assert f"live:{GOOD}: the model is built by {driven.builder}" in caplog.messages
    assert LiveReference(GOOD, GRAPHS["n64_g2"]).builder is driven.builder


COMPILED = "def create_compiled_model(gridsize=None, N=None):"
OTHER = "def another_model(gridsize, N):\n    params.cfg['object.big'] = False\n    return _models(gridsize, N)\n\n"
PART = "def encoder_alone(N, gridsize):\n    return keras.Sequential([keras.layers.Dense(1)])\n\n"
WRONG = "def resize(gridsize, N):\n    raise RuntimeError('no data')\n\n"
MORE = "def evaluate(gridsize, N, data):\n    raise RuntimeError('called without data')\n\n"


@pytest.mark.parametrize(
    "edits",
    [
        [(MODEL, COMPILED, f"{PART}{WRONG}{MORE}{COMPILED}")],
        [(MODEL, "create_model_with_gridsize", "make"), (MODEL, "create_compiled_model", "compiled")],
        [(MODEL, "def create_model_with_gridsize(gridsize: int, N: int, **kwargs)", "def f(*, N, gridsize, scale=1)"),
         (MODEL, ", **kwargs}", "}"), (MODEL, "create_model_with_gridsize(gridsize, N)", "f(gridsize=gridsize, N=N)"),
         (MODEL, 'create_model_with_gridsize(params.get("gridsize"), params.get("N"))', "f(gridsize=1, N=64)")],
        [(MODEL, "def create_model_with_gridsize(", "def _made("), (MODEL, "create_model_with_gridsize", "_made")],
    ],
    ids=["others beside", "other names", "other parameters", "compiled alone"],
)  # fmt: skip
def test_a_builder_is_found_by_what_it_gives(
    importable: Path, request: pytest.FixtureRequest, edits: list[Edit]
) -> None:
    name = write_package(importable, f"standin_{request.node.callspec.id.replace(' ', '_')}", *edits)
    importlib.invalidate_caches()
    assert LiveReference(name, GRAPHS["n64_g1_nopad"]).stages >= {"object", "predicted_intensity"}


def test_two_builders_of_different_models_are_named(importable: Path) -> None:
    name = write_package(importable, "standin_two_builders", (MODEL, COMPILED, f"{OTHER}{COMPILED}"))
    importlib.invalidate_caches()
    expected = r"3 functions that build .* not the same one \(create_model_with_gridsize, another_model, create_"
    with pytest.raises(LiveReferenceError, match=expected):
        LiveReference(name, GRAPHS["n64_g2"])


def test_what_the_package_does_at_import_is_done_once_and_its_singletons_are_never_built(importable: Path) -> None:
    model = importlib.import_module(f"{GOOD}.model")
    driven(GRAPHS["n64_g2"])
    assert not model._model_construction_done
    assert "autoencoder" not in model._lazy_cache


def test_a_package_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(LiveReferenceError, match=r"live:standin_nowhere: there is no module standin_nowhere"):
        LiveReference("standin_nowhere", GRAPHS["n64_g2"])


@pytest.mark.parametrize("package", ["", ".config"])
def test_a_name_that_cannot_be_imported_is_an_error_of_one_line(package: str) -> None:
    with pytest.raises(LiveReferenceError, match=rf"live:{package}: importing .*params raised TypeError"):
        LiveReference(package, GRAPHS["n64_g2"])


def test_what_a_package_warns_of_stops_nobody(importable: Path) -> None:
    warning = 'import warnings; warnings.warn("of old", DeprecationWarning)'
    edits = [("params.py", "cfg =", f"{warning}\ncfg ="), (MODEL, "wave = x *", f"{warning}\n        wave = x *")]
    name = write_package(importable, "standin_warning", *edits)
    settings = GRAPHS["n64_g1_nopad"]
    case = draw_case(settings, seed=2, batch=1)
    importlib.invalidate_caches()
    assert TensorFlowSubject(settings, "float32", LiveReference(name, settings)).free(case).losses["total"] > 0


def test_settings_of_older_eras_are_refused() -> None:
    with pytest.raises(LiveReferenceError, match="shared_amplitude_head"):
        LiveReference(GOOD, GRAPHS["n64_g2_shared_amplitude"])


FAULTS = {
    "conjugate": ("exit_wave", (MODEL, "x * tf.convert_to_tensor(self.w)", "x * tf.math.conj(self.w)")),
    "sign": ("merged", ("custom_layers.py", "q), -offsets)", "q), offsets)")),
    "mask": ("decoder_amp.output", (MODEL, "shown * CenterMaskLayer(N)(shown)", "shown")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reference_that_is_not_the_specified_one_is_named_at_its_stage(importable: Path, fault: str) -> None:
    stage, edit = FAULTS[fault]
    package = write_package(importable, f"standin_with_{fault}", edit)
    importlib.invalidate_caches()
    planned = plan(f"live:{package}", None, "quick")[0]
    record = Bench().record(planned)
    failed = [verdict.explain() for verdict in record.values() if not verdict.passed]
    assert failed[0].startswith(f"REFERENCE {stage} (FORWARD-FORCED): "), failed[:3]


def test_a_good_package_passes_and_is_the_reference_of_the_candidate() -> None:
    bench = Bench()
    planned = plan(f"live:{GOOD}", None, "quick")[0]
    record = bench.record(planned)
    assert all(verdict.passed for verdict in record.values())
    assert {clause for clause, _ in record} == {"REFERENCE"}
    report = bench.report(planned, "cpu", "float32")
    assert report.passed
    assert report.reference.startswith(f"{GOOD}, live: of unknown version, ")
    assert planned.package is not None
    assert planned.package.built_by.startswith(f"{GOOD}.model.create_model_with_gridsize")
    assert report.of("FORWARD-FORCED", "merged")[0].reference is not None


def test_a_package_that_has_moved_does_not_widen_the_budget(importable: Path) -> None:
    package = write_package(importable, "standin_moved", FAULTS["sign"][1])
    importlib.invalidate_caches()
    bench = Bench()
    planned = plan(f"live:{package}", None, "quick")[0]
    assert bench.gains(planned) == load_measured().gains
    assert bench.report(planned, "cpu", "float32").passed


def run(importable: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(importable), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "conformance", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip


def test_the_command_judges_a_package_and_the_candidate_against_it(importable: Path) -> None:
    report = importable / "report"
    options = ("--parity-dtype", "float32", "-k", "n64_g1_nopad", "--parity-report", str(report))
    found = run(importable, "--parity-reference", f"live:{GOOD}", *options)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"passed  {GOOD}_n64_g1_nopad on cpu in float32" in found.stdout
    assert f"passed  reference of {GOOD}_n64_g1_nopad" in found.stdout
    assert f"reference: {GOOD}, live: of unknown version, {importable / GOOD}, sha256 " in found.stdout
    content = read_report(report / "parity.json")
    package = content["package"]
    assert (package["name"], package["path"]) == (GOOD, str(importable / GOOD))
    assert package["sha256"] == identify(GOOD).sha256
    (note,) = [each for each in content["tests"]["notes"] if each.startswith(f"reference {GOOD}: ")]
    assert package["sha256"] in note
    assert note.endswith(f"model built by {package['built_by']}")
    assert note in found.stdout
    assert package["sha256"] in (report / "parity.html").read_text(encoding="utf-8")


def test_the_path_of_a_checkout_is_driven_and_its_rival_is_never_seen(importable: Path) -> None:
    checkout = importable / "checkout"
    write_package(checkout, "ptycho")
    (checkout / "ptycho_torch").mkdir()
    (checkout / "ptycho_torch" / "__init__.py").write_text("raise RuntimeError('the rival was imported')\n")
    commands = [
        ["git", "init", "-q"],
        ["git", "add", "."],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "All"],
        ["git", "rev-parse", "HEAD"],
    ]
    commit = [subprocess.run(each, cwd=checkout, capture_output=True, text=True, check=True) for each in commands][-1]
    options = ("--parity-dtype", "float32", "-k", "n64_g1_nopad")
    found = run(importable, "--parity-reference", f"live:{checkout}", *options)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "passed  ptycho_n64_g1_nopad on cpu in float32" in found.stdout
    assert f"reference ptycho: commit {commit.stdout.strip()}, {checkout / 'ptycho'}, sha256 " in found.stdout
    changed = checkout / "ptycho" / "params.py"
    changed.write_text(changed.read_text() + "# changed\n")
    drift = run(importable, "--parity-tf-config", str(checkout / "ptycho"))
    assert drift.returncode == 0, drift.stdout + drift.stderr
    assert f"reference ptycho: commit {commit.stdout.strip()}, with changes, {checkout / 'ptycho'}" in drift.stdout
    assert "ptycho.config.config: 0 drifts" in drift.stdout


@pytest.mark.parametrize("option", ["live", "config"])
@pytest.mark.parametrize(
    ("folder", "message"),
    [("nowhere", "there is no such folder"), ("empty", "it holds no package"), ("my-ptycho", "cannot be imported")],
)
def test_a_path_that_cannot_be_driven_is_refused(importable: Path, folder: str, message: str, option: str) -> None:
    (importable / "empty").mkdir(exist_ok=True)
    write_package(importable, "my-ptycho")
    path = str(importable / folder)
    with pytest.raises((LiveReferenceError, DriftError), match=message):
        import_reference(path) if option == "config" else LiveReference(path, GRAPHS["n64_g2"])


def test_a_second_package_of_a_name_is_refused(importable: Path) -> None:
    other = importable / "elsewhere"
    write_package(other, GOOD)
    importlib.import_module(f"{GOOD}.params")
    with pytest.raises(LiveReferenceError, match=f"{GOOD} is imported from .* in this process already"):
        LiveReference(str(other / GOOD), GRAPHS["n64_g2"])
    assert import_name(str(importable / GOOD)) == GOOD


def test_the_command_says_in_one_line_that_a_package_is_no_reference(importable: Path) -> None:
    write_package(importable, "standin_broken", ("params.py", "cfg =", "settings ="))
    found = run(importable, "--parity-reference", "live:standin_broken")
    assert found.returncode == 4
    (line,) = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("ERROR")]
    assert "live:standin_broken: standin_broken.params.cfg is missing" in line
