"""The preset ``reference`` is what the TensorFlow program trains with where nobody says anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptycho_tf_bridge.config import from_yaml
from ptycho_torch.config_params import PRESETS, Settings
from ptycho_torch.errors import ConfigError

LEFT_ALONE = {"N", "gridsize", "n_groups", "nphotons", "seed", "nll_weight", "mae_weight"}
"""What the scan decides, the seed, and weights that are written out there and follow from loss_function here."""


def test_the_reference_preset_is_what_an_empty_configuration_of_the_reference_means(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    theirs = from_yaml(tmp_path / "empty.yaml", as_run=True).settings.as_dict()
    ours = Settings.preset("reference").as_dict()
    differing = {
        name: (value, ours[owner][name])
        for owner, values in theirs.items()
        for name, value in values.items()
        if ours[owner][name] != value and name not in LEFT_ALONE
    }
    assert differing == {}


def test_a_preset_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of reference"):
        Settings.preset("tensorflow")


def test_a_preset_says_nothing_that_is_the_default_anyway() -> None:
    for name, values in PRESETS.items():
        defaults = Settings()
        idle = [each for each, value in values.items() if defaults.override({each: value}) == defaults]
        assert idle == [], name
