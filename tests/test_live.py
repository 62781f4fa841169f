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
from reference_package import Edit, write_package

from conformance.bench import Bench, plan
from conformance.draws import GRAPHS, draw_case
from conformance.measured import load_measured
from conformance.spec import load_stages
from ptycho_tf_bridge import backend
from ptycho_tf_bridge.errors import LiveReferenceError
from ptycho_torch.config_params import NetworkSettings

if not backend.is_available():
    pytest.skip("TensorFlow is not installed, so no reference package can be driven", allow_module_level=True)

from conformance.keras_subject import KerasSubject
from conformance.tensorflow_subject import TensorFlowSubject
from ptycho_tf_bridge.live import LiveReference

REPOSITORY = Path(__file__).parents[1]
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
        ([(MODEL, "def create_model_with_gridsize", "def _hidden")], "0 functions that take gridsize and N (none)"),
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
    assert report.reference == f"{GOOD}, live"
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
    found = run(importable, "--parity-reference", f"live:{GOOD}", "--parity-dtype", "float32", "-k", "n64_g1_nopad")
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"passed  {GOOD}_n64_g1_nopad on cpu in float32" in found.stdout
    assert f"passed  reference of {GOOD}_n64_g1_nopad" in found.stdout
    assert f"reference: {GOOD}, live" in found.stdout


def test_the_command_says_in_one_line_that_a_package_is_no_reference(importable: Path) -> None:
    write_package(importable, "standin_broken", ("params.py", "cfg =", "settings ="))
    found = run(importable, "--parity-reference", "live:standin_broken")
    assert found.returncode == 4
    (line,) = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("ERROR")]
    assert "live:standin_broken: standin_broken.params.cfg is missing" in line
