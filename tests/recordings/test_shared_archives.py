"""The real archives that are at hand but no part of the repository: what they predicted comes out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.cli import main
from ptycho_tf_bridge import backend


def verified(output: Path, archive: Path, *more: str) -> dict:
    assert main(["verify", str(archive), *more, "-o", str(output)]) == 0
    content: dict = json.loads((output / "certificate.json").read_text(encoding="utf-8"))
    return content


def existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def test_the_star_is_predicted_and_stitched_again_without_tensorflow(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "is_available", lambda: False)
    folder = existing(shared / "archives" / "star_g2")
    scan = existing(shared / "data" / "siemens_star_n64.npz")
    content = verified(
        tmp_path, folder / "wts.h5.zip", "--predictions", str(folder / "prediction.npz"), "--scan", str(scan)
    )
    assert content["reference"] == "none; envelope from specs/measured.yaml"
    errors = {each["quantity"]: each["converted"]["errors"]["e"] for each in content["recorded"]}
    assert list(errors) == ["object", "predicted_amplitude", "stitched"]
    # The reference's own float32 rounding; placing whole pictures costs it more than predicting them.
    assert errors["object"] < 1e-6
    assert errors["predicted_amplitude"] < 1e-6
    assert errors["stitched"] < 2e-5
    assert content["not_compared"] == []


def test_the_archive_of_the_savedmodel_era_is_verified(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "is_available", lambda: False)
    archive = existing(shared / "archives" / "savedmodel_era" / "wts.h5.zip")
    content = verified(tmp_path, archive)
    assert content["network"]["shared_amplitude_head"] is True
    assert content["recorded"] == []
