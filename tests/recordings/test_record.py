"""Recording: what is written is read back, holds, says when it is stale, and judges the same everywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.draws import GRAPHS, draw_case
from conformance.cli import CONFORMANCE, main
from conformance.commands import make_recordings as recordings
from conformance.errors import BundleError, RecordError
from conformance.judge.gains import widest
from conformance.judge.measure import Measurement
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.recordings import manifest
from conformance.recordings.bundle import RECORDINGS, Bundle, read_bundle
from conformance.recordings.calibrate import reference_runs
from conformance.recordings.manifest import manifest_member
from conformance.recordings.record import Recorder, coarse_weights, record, write_bundle
from conformance.recordings.replay import fresh_verdicts, recorded_run
from conformance.report.results import headline
from conformance.session.bench import Bench, Planned, plan
from conformance.subjects.torch import TorchSubject
from conformance.subjects.torch_training import train_torch
from ptycho_torch.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
MAX_BYTES, MAX_BYTES_IN_ALL = 5_000_000, 10_000_000
Arrays = dict[str, np.ndarray]


def torch_recorder() -> Recorder:
    return Recorder(
        TorchSubject("cpu", "float32"), lambda run: train_torch(run, "cpu", "float32"), {"reference": "torch"}
    )


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """A recording of the PyTorch network, which stands in for Keras: what is recorded does not matter here."""
    case = dataclasses.replace(draw_case(GRAPHS["n64_g1"], seed=5, batch=2), name="small")
    lines: list[str] = []
    found = record(case, torch_recorder(), lines.append)
    assert sum("stage by stage" in line for line in lines) == 9
    return found


@pytest.fixture(scope="module")
def path(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "small.npz"
    write_bundle(path, arrays, overwrite=False)
    return path


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


def test_what_is_recorded_is_read_back(arrays: Arrays, bundle: Bundle, path: Path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    np.testing.assert_array_equal(
        bundle.case.weights["encoder.0.conv1.kernel"], arrays["weight/encoder.0.conv1.kernel"]
    )
    assert bundle.stages["merged"].values.size == 1024
    assert bundle.truth_stages["merged"].dtype == np.complex128
    assert len(bundle.train_losses) == 3
    assert bundle.envelope is not None
    assert bundle.envelope.runs == 9
    for key, own in bundle.envelope.own.items():
        assert bundle.envelope.widest[key].largest(own) == bundle.envelope.widest[key], key


def test_a_recording_holds_and_the_candidate_passes_against_its_own_envelope(path: Path) -> None:
    (planned,) = plan(str(path), None, "quick")
    bench = Bench()
    assert [verdict.explain() for verdict in bench.record(planned).values() if not verdict.passed] == []
    report = bench.report(planned, "cpu", "float32")
    assert report.passed, headline(report)
    assert report.reference == "recorded; envelope from 9 recorded runs"
    # The candidate is what was recorded, so its own errors are the recorded ones.
    for key, verdict in report.verdicts.items():
        if key[0] != "TRAIN":
            assert verdict.reference == verdict.candidate, key


def test_the_same_arrays_make_the_same_bytes(arrays: Arrays, path: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "again.npz", arrays, overwrite=False)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_nothing_is_left_of_what_cannot_be_read_back(arrays: Arrays, tmp_path: Path) -> None:
    broken = {key: array for key, array in arrays.items() if key != "stage/merged"}
    with pytest.raises(BundleError, match="stage/merged"):
        write_bundle(tmp_path / "broken.npz", broken, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(path: Path, arrays: Arrays) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="--overwrite"):
        write_bundle(path, arrays, overwrite=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["specification", "code"])
def test_a_stale_recording_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    assert all(verdict.passed for verdict in fresh_verdicts(bundle).values())
    monkeypatch.setattr(manifest, "digests_now", lambda: dict(bundle.manifest.digests) | {what: "0" * 64})
    (failed,) = (verdict for verdict in fresh_verdicts(bundle).values() if not verdict.passed)
    assert failed.stage == what
    assert f"the {what} changed" in failed.explain()
    assert "record` it again" in failed.explain()


def test_the_digest_of_the_code_sees_the_reference_and_not_the_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manifest.digests_now()
    sources = dict(manifest.python_sources())
    for name, seen in (("ptycho_tf_bridge/keras_reference.py", True), ("ptycho_torch/model.py", False)):
        changed = tmp_path / Path(name).name
        changed.write_bytes(sources[name].read_bytes() + b"\nX = 1\n")
        monkeypatch.setattr(manifest, "python_sources", lambda name=name, file=changed: sources | {name: file})
        assert (manifest.digests_now()[manifest.CODE] != before[manifest.CODE]) is seen, name


def rewritten(arrays: Arrays, **changes: object) -> np.ndarray:
    return np.array(json.dumps({**json.loads(str(arrays["manifest"])), **changes}))


def with_envelope(arrays: Arrays, change: Callable[[dict], object]) -> Arrays:
    envelope = json.loads(str(arrays["envelope"]))
    change(envelope)
    changed = {key: array for key, array in arrays.items() if key != "manifest"}
    changed["envelope"] = np.array(json.dumps(envelope))
    return changed | {"manifest": manifest_member(changed)}


def set_error(envelope: dict, value: object) -> None:
    envelope["errors"]["FORWARD-FORCED"]["merged"][2] = value


def without_head(envelope: dict) -> None:
    for kind in ("kernel", "bias"):
        envelope["errors"]["GRADIENT-FORCED"].pop(f"decoder_amp.central.{kind}", None)


DAMAGES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "a changed member": (lambda a: a | {"input/offsets": a["input/offsets"] + 1}, "'input/offsets' is not as it was"),
    "a changed dtype": (lambda a: a | {"train/loss": a["train/loss"].astype(np.float32)}, "'train/loss' is not as it"),
    "another format": (lambda a: a | {"manifest": rewritten(a, format=3)}, "found format 3; expected 2"),
    "no digests": (lambda a: a | {"manifest": rewritten(a, digests=None)}, "'digests' is no table"),
    "one digest": (lambda a: a | {"manifest": rewritten(a, digests={"code": "0" * 64})}, "expected the digests"),
    "a short digest": (lambda a: a | {"manifest": rewritten(a, members={"config": "00"})}, "'members' is no table"),
    "an optional member lost": (
        lambda a: {key: array for key, array in a.items() if key != "envelope"},
        "'envelope' of the manifest is missing",
    ),
    "infinite error": (lambda a: with_envelope(a, lambda e: set_error(e, float("inf"))), "not 4 finite numbers"),
    "negative error": (lambda a: with_envelope(a, lambda e: set_error(e, -1.0)), "not 4 finite numbers"),
    "text for an error": (lambda a: with_envelope(a, lambda e: set_error(e, "0")), "not 4 finite numbers"),
    "no runs": (lambda a: with_envelope(a, lambda e: e.pop("runs")), "'runs' is None"),
    "no error of a loss": (lambda a: with_envelope(a, lambda e: e["errors"].pop("LOSS")), "no error of loss (LOSS)"),
    "no error of a gradient": (lambda a: with_envelope(a, without_head), "no error of decoder_amp.central (GRADIENT-F"),
    "errors are a list": (lambda a: with_envelope(a, lambda e: e.update(errors=[])), "'errors' is no table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recording_is_refused_by_name(arrays: Arrays, tmp_path: Path, damage: str) -> None:
    change, expected = DAMAGES[damage]
    path = tmp_path / "damaged.npz"
    np.savez(path, **change(dict(arrays)))
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def failing_envelope(path: Path) -> tuple[list[str], Bench, Planned]:
    """Judge a recording; return which of its errors are not believed."""
    (planned,) = plan(str(path), None, "quick")
    bench = Bench()
    verdicts = bench.record(planned).values()
    return [each.stage for each in verdicts if not each.passed and "envelope" in each.stage], bench, planned


def test_an_envelope_too_wide_to_be_believed_fails_and_widens_nothing(arrays: Arrays, tmp_path: Path) -> None:
    """An envelope decides what a candidate may use: one that allows everything is a finding about the recording."""
    path = tmp_path / "wide.npz"
    np.savez(path, **with_envelope(arrays, lambda e: set_error(e, 1.0)))
    failed, bench, planned = failing_envelope(path)
    assert failed == ["envelope/FORWARD-FORCED/merged"]
    assert bench.gains(planned) == load_measured().gains


def test_gains_are_recorded_errors_over_the_condition(bundle: Bundle) -> None:
    measurement = Measurement(Truth(bundle.case), load_measured().limits)
    live = widest(reference_runs(measurement, TorchSubject("cpu", "float32"))).table
    assert bundle.envelope is not None
    found = widest([recorded_run(bundle.envelope, measurement)]).table
    assert found.keys() == live.keys()
    for clause, rows in live.items():
        assert found[clause].keys() == rows.keys()
        for stage, gain in rows.items():
            assert vars(found[clause][stage]) == pytest.approx(vars(gain), rel=1e-6), (clause, stage)


def test_a_gradient_that_moved_away_shows_in_the_envelope(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded from a reference with a wrong gradient, the envelope is too wide at its stage, forced and free."""
    whole = TorchSubject.forced

    def wrong(self: TorchSubject, *arguments: object) -> object:
        run = whole(self, *arguments)  # type: ignore[arg-type]
        name = "encoder.1.conv2.kernel"
        return dataclasses.replace(run, gradients={**run.gradients, name: run.gradients[name] * np.float32(1.001)})

    monkeypatch.setattr(TorchSubject, "forced", wrong)
    case = draw_case(GRAPHS["n64_g1"], seed=5, batch=1)
    target = path.with_name("wrong.npz")
    write_bundle(target, record(case, torch_recorder(), lambda line: None), overwrite=True)
    assert failing_envelope(target)[0] == ["envelope/GRADIENT-FORCED/encoder.1.conv2.kernel"]


def test_a_reference_that_cannot_be_compared_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(GRAPHS["n64_g1"], seed=5, batch=1)
    whole = TorchSubject.forced

    def without_a_stage(self: TorchSubject, *arguments: object) -> object:
        run = whole(self, *arguments)  # type: ignore[arg-type]
        return dataclasses.replace(run, stages={name: each for name, each in run.stages.items() if name != "views"})

    monkeypatch.setattr(TorchSubject, "forced", without_a_stage)
    with pytest.raises(RecordError, match="views"):
        record(case, torch_recorder(), lambda line: None)


def test_coarse_weights_are_few_values_and_none_is_lost() -> None:
    case = draw_case(GRAPHS["n64_g1"], seed=0)
    coarse = coarse_weights(case)
    for name, weight in coarse.weights.items():
        assert weight.dtype == np.float32
        assert len(np.unique(weight)) <= 17
        assert weight.shape == case.weights[name].shape
        assert np.abs(weight - case.weights[name]).max() <= np.abs(case.weights[name]).max() / 8


WRONG_USE: dict[str, tuple[list[str], str]] = {
    "a scan alone": (["--scan", "scan.npz"], "--scan goes with --archive"),
    "no archive": (["--archive", "nowhere.zip"], "nowhere.zip"),
    "another reference": (["--reference", "jax"], "--reference jax: found no such reference; expected keras"),
    "a folder that cannot be made": (["-o", "/dev/null/a.npz"], "/dev/null"),
}


@pytest.mark.parametrize("wrong", WRONG_USE)
def test_wrong_use_is_one_clear_line(
    wrong: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG_USE[wrong]
    assert main(["record", "-o", "a.npz", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--modes", "two"], ["--samples", "-1"], ["--seed", "-1"]])
def test_a_number_that_cannot_be_is_an_error_of_the_command_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["record", "-o", "a.npz", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {arguments[0]}: '{arguments[1]}' is no whole number" in line


def test_the_command_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = {"keras": lambda case: torch_recorder()}
    monkeypatch.setattr(recordings, "REFERENCES", stand_in)
    path = tmp_path / "g1.npz"
    arguments = ["record", "-o", str(path), "--graph", "n64_g1", "--batch", "1", "--modes", "2", "--samples", "64"]
    assert main(arguments) == 0
    assert read_bundle(path).case.probe.shape == (2, 64, 64)
    assert "verdicts hold" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_reference_that_does_not_train_is_recorded_without(tmp_path: Path) -> None:
    case = draw_case(GRAPHS["n64_g1"], seed=5, batch=1)
    recorder = dataclasses.replace(torch_recorder(), train=None)
    write_bundle(tmp_path / "still.npz", record(case, recorder, lambda line: None, samples=64), overwrite=False)
    assert read_bundle(tmp_path / "still.npz").train_losses == ()


def test_a_package_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["record", "-o", str(tmp_path / "a.npz"), "--reference", "live:no_such_package"]
    assert main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "no_such_package" in line or "TensorFlow" in line


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["record", "--help"])
    assert caught.value.code == 0
    assert CONFORMANCE.commands["record"].example in capsys.readouterr().out


@pytest.mark.parametrize("name", recordings.EMBEDDED)
def test_an_embedded_recording_is_small_and_fresh(name: str) -> None:
    """After a change to the reference or the stages: `python -m conformance record --embedded -o FOLDER`."""
    path = RECORDINGS / f"{name}.npz"
    assert path.stat().st_size <= MAX_BYTES
    bundle = read_bundle(path)
    assert bundle.case.settings == recordings.EMBEDDED[name].settings
    assert {verdict.stage: verdict.reason for verdict in fresh_verdicts(bundle).values()} == {
        "specification": "",
        "code": "",
    }


def test_all_recordings_together_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORDINGS.iterdir()) <= MAX_BYTES_IN_ALL


def verdicts_of_a_process(folder: Path, threads: int) -> str:
    """Replay an embedded recording in a process of its own; return its JSON but for times, folder and environment."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "conformance", "--parity-device", "cpu"]
    command += ["--parity-dtype", "float32", "--parity-reference", str(RECORDINGS / "n64_g1_nopad.npz")]
    command += ["--parity-report", str(folder)]
    # Threads that wait asleep leave the cores to other work.
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    report = json.loads((folder / "parity.json").read_text())
    assert report["environment"]["threads"] == str(threads)
    # The seal covers the environment, which names the threads.
    for key in ("command", "created_utc", "environment", "digest"):
        del report[key]
    for case in (*report["cases"], *report["results"]):
        del case["seconds"]
    return json.dumps(report)


def test_the_verdict_is_the_same_to_the_last_bit_on_one_thread_and_on_two(tmp_path: Path) -> None:
    one, two = (verdicts_of_a_process(tmp_path / str(threads), threads) for threads in (1, 2))
    assert one == two
