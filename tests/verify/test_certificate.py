"""Certificates follow their schema, need nothing beside them, and show text from strangers as text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from conformance.cases.draws import draw_case
from conformance.cli import main
from conformance.progress import Progress
from conformance.verify.certificate import certificate, certificate_page, pictures, write_certificate
from conformance.verify.verification import Verification, verify
from ptycho_tf_bridge import backend
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.contracts.contract import specs_dir
from tests.support.archives.archive_models import archive_of, checkpoint_of, predictions_of
from tests.support.archives.reference_archives import draw_weights, write_reference_archive
from tests.support.html_pages import HOSTILE, check, hostile

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.75)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    folder = tmp_path_factory.mktemp("verified")
    case = draw_case(SETTINGS, seed=3, batch=1)
    archive = dataclasses.replace(archive_of(case), era=HOSTILE, notes=(HOSTILE,), probe_source=HOSTILE)
    predictions = predictions_of(case, folder / "prediction.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "is_available", lambda: False)
        return verify(archive, checkpoint_of(archive, folder / "model.ckpt"), predictions=predictions)


@pytest.fixture(scope="module")
def written(found: Verification, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificate(tmp_path_factory.mktemp("certificate") / "new", found)


def test_the_json_says_what_was_found_and_follows_its_schema(found: Verification, written: tuple[Path, Path]) -> None:
    content = json.loads(written[0].read_text(encoding="utf-8"))
    schema = json.loads((specs_dir() / "schema" / "certificate.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(content)
    assert content["passed"] is True
    assert content["verdict"] == found.sentence
    assert {case["dtype"]: case["verdicts"] for case in content["cases"]} == {
        report.dtype: len(report.verdicts) for report in found.reports
    }
    forced = {each["stage"]: each["margins"] for each in content["cases"][1]["stages"]}["merged"]["FORWARD-FORCED"]
    (verdict,) = found.reports[1].of("FORWARD-FORCED", "merged")
    assert forced["share"] == verdict.share
    for change in ({"passed": "yes"}, {"archive": {}}, {"stranger": 1}, {"numerical_digest": "0"}, {"cases": []}):
        assert not validator.is_valid(content | change)


def test_the_page_loads_nothing_and_shows_strangers_text_as_text(written: tuple[Path, Path]) -> None:
    page = written[1].read_text(encoding="utf-8")
    reader = check(page)
    assert reader.text.count(HOSTILE) == 2
    assert any(text.endswith(f", {HOSTILE}") for text in reader.text)
    assert page.count("data:image/png") == 6


def test_a_certificate_of_hostile_text_is_safe(found: Verification, written: tuple[Path, Path]) -> None:
    """Every field of a certificate, those of a failed one too."""
    content = json.loads(written[0].read_text(encoding="utf-8"))
    file = {"file": "x", "sha256": "x"}
    content |= {"checkpoint": file, "scan": file, "cause": "x", "differences": ["x"], "not_compared": ["x"]}
    content["cases"] = [each | {"error": "x", "first_failing_stage": "x"} for each in content["cases"]]
    content = hostile(content)
    content |= {"versions": {HOSTILE: HOSTILE}, "network": {HOSTILE: HOSTILE}}
    reader = check(certificate_page(content, pictures(found)))
    assert reader.tags.count("script") == 1
    assert reader.tags.count("img") == 6
    assert reader.text.count(HOSTILE) > 50
    assert set(reader.tags) <= set(check(written[1].read_text(encoding="utf-8")).tags) | {"ul", "li"}


def test_the_page_names_every_stage_every_digest_and_the_verdict(
    found: Verification, written: tuple[Path, Path]
) -> None:
    text = "".join(check(written[1].read_text(encoding="utf-8")).text)
    content = json.loads(written[0].read_text(encoding="utf-8"))
    for said in (
        found.sentence,
        content["archive"]["sha256"],
        content["numerical_digest"],
        content["spec_digest"],
        content["predictions"]["sha256"],
        "encoder.0.conv1",
        "predicted_intensity",
        "Not compared: the stitched object",
    ):
        assert said in text
    assert len(re.findall(r'class="margin passed"', written[1].read_text(encoding="utf-8"))) > 200


def test_a_failure_is_shown_as_one(found: Verification) -> None:
    failed = dataclasses.replace(found, differences=("the probe is the archive's conjugated",))
    content = certificate(failed)
    assert content["passed"] is False
    page = certificate_page(content, pictures(failed))
    assert 'class="verdict failed"' in page
    assert "conjugated" in page
    assert "the archive's weights are all that was compared" not in page
    page = certificate_page(content | {"recorded": []}, pictures(failed))
    assert "the archive&#39;s weights" not in page
    assert "the archive's weights are all that was compared" in page


def test_pictures_are_drawn_of_objects_that_are_no_numbers(found: Verification) -> None:
    nothing = np.full_like(found.objects[1], np.nan)
    drawn = pictures(dataclasses.replace(found, recorded=(), objects=(found.objects[0], nothing)))
    page = certificate_page(certificate(found), drawn)
    assert "amplitude, float64 truth" in page
    assert "of the first group. Left what was given (float64 truth)" in page


def test_objects_of_other_sizes_are_told_apart(found: Verification) -> None:
    drawn = pictures(dataclasses.replace(found, recorded=(), objects=(found.objects[0], found.objects[1][:, 1:])))
    page = certificate_page(certificate(found), drawn)
    assert "pixels and the float64 truth" in page
    assert "data:image" not in page


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS, draw_weights(SETTINGS))


def test_the_command_verifies_and_fails(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptycho_tf_bridge.archives.archive import read_archive

    monkeypatch.setattr(backend, "is_available", lambda: False)
    assert main(["verify", str(archive), "-o", str(tmp_path / "good")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("The model converted from wts.h5.zip is the archived one")
    assert "every stage in float64" in said.err
    assert json.loads((tmp_path / "good" / "certificate.json").read_text())["passed"] is True

    def touch(weights: dict) -> None:
        weights["encoder.1.conv2.weight"][3, 2, 1, 0] *= 1.01

    wrong = checkpoint_of(read_archive(archive), tmp_path / "wrong.ckpt", touch)
    assert main(["verify", str(archive), "--checkpoint", str(wrong), "-o", str(tmp_path / "bad")]) == 1
    assert "first stage that differs is encoder.1.conv2" in capsys.readouterr().out
    assert json.loads((tmp_path / "bad" / "certificate.json").read_text())["passed"] is False


def test_quick_leaves_keras_and_the_whole_object_out_and_says_so(tmp_path: Path) -> None:
    case = draw_case(SETTINGS, seed=3, batch=1)
    archive = archive_of(case)
    C = SETTINGS.C
    whole = {
        "nn_indices": np.zeros((1, C), np.int64),
        "coords_offsets": np.zeros((1, 1, 2, 1)),
        "coords_relative": np.zeros((1, 1, 2, C)),
        "stitched": np.zeros((20, 20, 1), np.complex64),
        "M": np.int64(20),
    }
    predictions = predictions_of(case, tmp_path / "prediction.npz", **whole)
    checkpoint = checkpoint_of(archive, tmp_path / "model.ckpt")
    found = verify(archive, checkpoint, scan=tmp_path / "unread.npz", predictions=predictions, quick=True)
    assert found.passed, found.sentence
    assert found.reference == "none; envelope from specs/measured.yaml"
    assert [each.name for each in found.recorded] == ["object", "predicted_amplitude"]
    assert found.not_compared == ("the stitched object: left out by --quick",)


def test_progress_is_lines_with_the_time_left_off_a_terminal_and_a_bar_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0.0, 6.0)
    monkeypatch.setattr("conformance.progress.time.monotonic", lambda: next(now))
    progress = Progress(4)
    progress.begin("the first half")
    progress.advance()
    progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  0% after 00:06: the first half"
    assert lines[-1].startswith(" 50% after ")
    assert lines[-1].endswith(" left: the first half")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = Progress(4)
    bar.begin("the whole object")
    bar.advance(2)
    bar.close()
    said = capsys.readouterr().err
    assert "the whole object" in said
    assert "50%" in said
    assert "\r" in said


def test_the_command_says_in_one_line_what_it_cannot_do(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["verify", str(tmp_path / "nothing.zip"), "-o", str(tmp_path)],
        ["verify", str(archive), "--predictions", str(tmp_path / "nothing.npz"), "-o", str(tmp_path)],
        ["verify", str(archive), "--checkpoint", str(tmp_path / "nothing.ckpt"), "-o", str(tmp_path)],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert "nothing" in said.err
