"""Reads of settings are recorded where they happen, and a setting that nobody reads is found."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from conformance.judge import config_reads
from conformance.judge.config_reads import (
    Reads,
    findings,
    keras_reads,
    legacy_findings,
    live_reads,
    recorded,
    recorded_parameters,
    torch_reads,
)
from ptycho_tf_bridge import backend, keras_reference
from ptycho_torch.config_params import DataSettings, NetworkSettings, Settings, TrainingSettings
from ptycho_torch.contracts.config_schema import CONFIGURATION_FILE, load_schema, parse_schema
from ptycho_torch.contracts.contract import SpecError, read_yaml
from ptycho_torch.data.grouping import group_scan
from ptycho_torch.training import lightning_module
from tests.support.archives.reference_package import Edit, write_package

SCHEMA = load_schema()


@pytest.fixture
def content() -> Any:
    return copy.deepcopy(read_yaml(CONFIGURATION_FILE))


@pytest.fixture(scope="module")
def read_here(tmp_path_factory: pytest.TempPathFactory) -> Reads:
    return torch_reads(tmp_path_factory.mktemp("reads"))


# -------------------------------------------------------------------------------------------------------- recording


def test_nothing_is_read_by_checks_copies_comparisons_and_printing() -> None:
    with recorded() as reads:
        settings = Settings()
        assert settings == Settings.from_dict(settings.as_dict())
        dataclasses.replace(settings.training, max_epochs=3)
        copy.deepcopy(settings)
        repr(settings)
        hash(settings.model)
    assert reads.readers == {}


def test_a_read_in_a_property_counts_for_whoever_asks_for_it() -> None:
    import numpy as np

    with recorded() as reads:
        group_scan(np.random.default_rng(0).random((9, 2)), DataSettings(N=8, K=4))
    assert "ptycho_torch.data.grouping.group_scan" in reads.readers["DataSettings", "gridsize"]


def test_recording_ends_with_the_context() -> None:
    with pytest.raises(RuntimeError), recorded() as reads:
        raise RuntimeError
    lightning_module._schedule(None, TrainingSettings(scheduler="Default"))  # type: ignore[arg-type]
    assert reads.readers == {}
    assert "__getattribute__" not in vars(TrainingSettings)


# -------------------------------------------------------------------------------------------------------- this side


def test_all_settings_are_read_as_the_table_says(read_here: Reads) -> None:
    assert findings(SCHEMA, "torch", read_here) == {}


def test_a_setting_that_nobody_reads_is_found(read_here: Reads, content: Any) -> None:
    entry = {"name": "idle", "owner": "model", "type": "bool", "default": False, "meaning": "Does nothing at all."}
    content["settings"].append(entry)
    content["readers"][0]["names"].append("idle")
    assert list(findings(parse_schema(content), "torch", read_here)) == ["idle"]


def test_a_setting_that_is_read_against_the_table_is_found(read_here: Reads, content: Any) -> None:
    readers = next(each for each in content["readers"] if "compile" in each["names"])
    readers["names"].remove("compile")
    content["readers"].append({"names": ["compile"], "by": [], "reason": "Nobody needs to read it."})
    found = findings(parse_schema(content), "torch", read_here)
    assert list(found) == ["compile"]
    assert "ptycho_torch.train.main reads it" in found["compile"]


def test_a_read_that_is_removed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of today, but for the schedule of the learning rate, which nobody makes."""
    monkeypatch.setattr(lightning_module, "_schedule", lambda optimiser, training, epochs: None)
    found = set(findings(SCHEMA, "torch", torch_reads(tmp_path)))
    assert found == {
        "scheduler", "lr_gamma", "lr_warmup_epochs", "lr_min_ratio", "plateau_factor", "plateau_patience",
        "plateau_min_lr", "plateau_threshold",
    }  # fmt: skip


def test_a_setting_that_does_not_reach_the_network_is_not_read(read_here: Reads) -> None:
    lost = {place: by for place, by in read_here.readers.items() if place != ("NetworkSettings", "probe_mask")}
    assert list(findings(SCHEMA, "torch", Reads(lost))) == ["probe_mask"]
    lost = {place: by for place, by in read_here.readers.items() if place != ("TrainingSettings", "nll_weight")}
    assert list(findings(SCHEMA, "torch", Reads(lost))) == ["nll_weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda readers: readers[0]["names"].append("nothing"), "'nothing' under readers is no setting"),
        (lambda readers: readers[0]["names"].append("compile"), "'compile' under readers is twice"),
        (lambda readers: readers[0]["names"].remove("N"), "nothing is said about who reads 'N'"),
    ],
)
def test_a_table_that_leaves_readers_open_is_refused(content: Any, change: Any, message: str) -> None:
    change(content["readers"])
    with pytest.raises(SpecError, match=message):
        parse_schema(content)


# ------------------------------------------------------------------------------------------------------- other sides


@pytest.mark.skipif(not backend.is_available(), reason="needs TensorFlow; pip install 'ptycho-torch[tf]'")
def test_the_model_of_the_reference_reads_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(SCHEMA, "keras", keras_reads()) == {}
    monkeypatch.setattr(keras_reference, "_illuminate", lambda model, views: views)
    assert set(findings(SCHEMA, "keras", keras_reads())) == {"gaussian_smoothing_sigma", "probe_mask"}


def drive(params: Any, *, without: str = "", also: tuple[str, ...] = ()) -> None:
    """Read what a reference reads while its network is built, in the ways in which it does."""
    for name in NetworkSettings.field_names():
        key = SCHEMA.settings[name].there.get("legacy", "")
        if key and "tensorflow" in SCHEMA.readers[name].by and key != without:
            assert key in params.cfg
            params.cfg[key]
    for key in also:
        params.cfg.get(key)


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for the reference's module of parameters, and for one that holds its dictionary too."""
    module, other = types.ModuleType("their_params"), types.ModuleType("their_model")
    module.cfg = other.parameters = dict.fromkeys([*SCHEMA.counterparts["legacy"], "novelty"], 1)  # type: ignore[attr-defined]
    for each in (module, other):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return module


def test_a_live_reference_that_reads_as_the_table_says_has_no_findings(params: Any) -> None:
    before = params.cfg
    with recorded_parameters(params.cfg) as recording:
        drive(params, also=("probe.trainable", "h5_path"))
        params.cfg["bigN"] = 68
        sys.modules["their_model"].parameters["nphotons"]
    assert legacy_findings(SCHEMA, recording.reads) == {}
    assert {"nphotons", "h5_path"} <= recording.reads
    assert params.cfg is before
    assert before["bigN"] == 1


@pytest.mark.parametrize(
    ("without", "also", "key", "message"),
    [
        ("probe.mask", (), "probe.mask", "the reference does not read it"),
        ("", ("scheduler",), "scheduler", "tensorflow is not among the readers of scheduler"),
        ("", ("novelty",), "novelty", "the table does not know it"),
    ],
)
def test_a_live_reference_that_reads_otherwise_is_found(
    params: Any, without: str, also: tuple[str, ...], key: str, message: str
) -> None:
    with recorded_parameters(params.cfg) as recording:
        drive(params, without=without, also=also)
    found = legacy_findings(SCHEMA, recording.reads)
    assert list(found) == [key]
    assert message in found[key]


def test_a_value_that_is_read_is_noted_and_a_key_that_is_only_looked_for_is_not() -> None:
    recording = config_reads.RecordingParameters({"a": 1, "b": 2, "c": 3})
    assert recording["a"] + recording.get("b", 0) == 3
    assert "c" in recording
    recording["d"] = 4
    recording.update(e=5)
    assert recording.reads == {"a", "b"}


@pytest.mark.skipif(not backend.is_available(), reason="needs TensorFlow; pip install 'ptycho-torch[tf]'")
@pytest.mark.parametrize(
    ("edits", "found"),
    [
        ([], []),
        ([("model.py", 'cfg["pad_object"]', "True")], ["pad_object"]),
        ([("model.py", "cfg = params.cfg\n", 'cfg = params.cfg\n    cfg.get("optimizer")\n')], ["optimizer"]),
    ],
    ids=["as the table says", "a key less", "a key more"],
)
def test_an_installed_reference_is_seen_to_read_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edits: list[Edit], found: list[str]
) -> None:
    name = f"read_reference_{len(edits)}_{'_'.join(found)}"
    monkeypatch.syspath_prepend(tmp_path)
    write_package(tmp_path, name, *edits)
    try:
        assert list(legacy_findings(SCHEMA, live_reads(name))) == found
    finally:
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[module]
