"""An archive becomes a checkpoint with the settings of its run."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import yaml

from conformance.checks.archive_files import Stored, draw_stored
from conformance.checks.archives import OLD, TODAY, saved_parameters
from conformance.checks.bridge import as_torch, stages_in_order
from conformance.checks.light import draw_wave
from conformance.checks.translation import NOT_FOLLOWED, UNSTATED, every_setting, stated, texts
from conformance.judge.agreement import Arrays, Compared
from ptycho_torch.config_params import NetworkSettings, Settings

if TYPE_CHECKING:
    from ptycho_tf_bridge.archives.archive import Archive

COUNTS = 6e5
"""Mean counts of a pattern, to which the intensity scale of ``TODAY`` does not belong, so that either can be told."""


def _archive(stored: Stored, parameters: Mapping[str, Any], missing: tuple[str, ...] = ()) -> Archive:
    """Return an archive as it is read, of a model and parameters."""
    from ptycho_tf_bridge.archives.archive import Archive

    scale = stored.settings.intensity_scale
    return Archive(
        path=Path("elsewhere", "wts.h5.zip"),
        digest="ab" * 32,
        layout="keras",
        era="since then",
        parameters=parameters,
        network=stored.settings,
        weights=stored.weights,
        probe=None if "probe" in missing else stored.probe,
        probe_source="",
        intensity_scale=None if "intensity_scale" in missing else scale,
        intensity_scale_source="",
        missing=missing,
        notes=(),
    )


def checkpoint_of(prefix: str, path: Path) -> dict[str, np.ndarray]:
    """Return what a checkpoint holds: biases first, which are zero in a network that was just made."""
    from ptycho_torch.training.checkpoint_file import read_content

    content = read_content(path)
    state = {name.removeprefix("network."): tensor.numpy() for name, tensor in content["state_dict"].items()}
    own = content["ptycho_torch"]
    parts = state.pop("probe_parts")
    log_scale = state.pop("log_scale")
    return _held(
        prefix,
        state,
        (parts[..., 0] + 1j * parts[..., 1]).astype(np.result_type(parts.dtype, np.complex64)),
        log_scale,
        own["network"],
        {name: value for owner in own["settings"].values() for name, value in owner.items()},
    ) | texts(f"{prefix}: known of the data: ", own["statistics"])


def _held(
    prefix: str, state: Arrays, probe: np.ndarray, log_scale: np.ndarray, network: Any, settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Name everything that a checkpoint holds."""
    ordered = sorted(state, key=lambda name: (not name.endswith(".bias"), name))
    arrays = {f"{prefix}: {name}": state[name] for name in ordered}
    arrays[f"{prefix}: dtypes"] = np.array([f"{name} {state[name].dtype}" for name in ordered])
    arrays |= {f"{prefix}: probe": probe, f"{prefix}: log_scale": np.asarray(log_scale)}
    dtypes = {"probe dtype": str(probe.dtype), "log_scale dtype": str(np.asarray(log_scale).dtype)}
    return (
        arrays
        | texts(f"{prefix}: ", dtypes)
        | texts(f"{prefix}: network ", network)
        | texts(f"{prefix}: setting ", settings)
    )


def held_by(
    prefix: str, stored: Stored, probe: np.ndarray, network: NetworkSettings, settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return what a checkpoint of a model has to hold."""
    log_scale = np.array(math.log(network.intensity_scale), np.float32)
    return _held(prefix, as_torch(stored.weights), probe[None], log_scale, dataclasses.asdict(network), settings)


def of_network(network: NetworkSettings) -> dict[str, Any]:
    """Return the settings that the model itself decides."""
    known = every_setting(Settings())
    return {name: value for name, value in dataclasses.asdict(network).items() if name in known}


def migrated(prefix: str, archive: Archive, **more: Any) -> dict[str, np.ndarray]:
    """Convert, and return what was written: the checkpoint, the settings beside it and the facts of the report.

    Of the picture, which takes longer than all else, the probe that it would show is returned.
    """
    from ptycho_tf_bridge import migrate

    drawn: list[np.ndarray] = []
    with (
        tempfile.TemporaryDirectory(prefix="conformance-conversion-") as folder,
        mock.patch.object(migrate, "_draw", lambda probe, *_: drawn.append(probe)),
    ):
        written = migrate.convert(archive, Path(folder), **more)
        found = checkpoint_of(prefix, Path(folder, "checkpoints", "last.ckpt"))
        sections = yaml.safe_load(written.settings_file.read_text(encoding="utf-8"))
        facts = json.loads(written.report_json.read_text(encoding="utf-8"))
    beside = {name: value for section in sections.values() for name, value in section.items()}
    found |= texts(f"{prefix}: file ", beside) | {f"{prefix}: drawn probe": drawn[0][None]}
    reported = {field["field_there"]: field["value_there"] for field in facts["fields"] if field["field_there"]}
    found |= texts(f"{prefix}: reported ", reported)
    scale, arrays = facts["intensity_scale"]["value"], facts["archive"]["arrays"]
    return found | texts(f"{prefix}: ", {"reported scale": scale, "arrays": arrays})


def converted() -> Compared:
    """Convert an archive with everything in it, and one that lacks probe, scale and parameters."""
    whole, bare = draw_stored(TODAY, 11), draw_stored(OLD, 12)
    said, meant = _saved()
    here, legacy = every_setting(Settings()), UNSTATED["legacy"]
    run = {name: value for name, value in NOT_FOLLOWED.items() if name in meant}
    settings = here | legacy | meant | run | of_network(TODAY)
    given = dataclasses.replace(OLD, intensity_scale=9.5, probe_mask=False)
    lit = draw_wave(np.random.default_rng(13), 64, 64).astype(np.complex64)
    defaults = here | legacy | of_network(given)
    expected = held_by("whole", whole, whole.probe, TODAY, settings) | held_by("bare", bare, lit, given, defaults)
    for name, values, network in (("whole", settings, TODAY), ("bare", defaults, given)):
        expected |= texts(f"{name}: file ", values)
        facts = {"reported scale": network.intensity_scale, "arrays": 2 * len(stages_in_order(network))}
        expected |= texts(f"{name}: ", facts)
        data = {"probe_modes": 1, "one_probe": True, "nphotons": values["nphotons"], "archive": "wts.h5.zip"}
        expected |= texts(f"{name}: known of the data: ", data | {"archive_sha256": "ab" * 32})
    expected |= texts("whole: reported ", said)
    expected |= {"whole: drawn probe": whole.probe[None], "bare: drawn probe": lit[None]}
    lacking = _archive(
        dataclasses.replace(bare, settings=dataclasses.replace(OLD, intensity_scale=1.0)),
        {},
        ("probe", "intensity_scale", "probe_mask"),
    )
    found = migrated("whole", _archive(whole, said))
    found |= migrated("bare", lacking, probe=lit, given={"intensity_scale": 9.5, "probe_mask": False})
    return Compared(expected, found)


def _saved() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return saved parameters of which none is a default, and the settings that they state."""
    given, meant = stated("legacy")
    model = saved_parameters(TODAY, intensity_scale=TODAY.intensity_scale, nphotons=COUNTS)
    model.pop("_version")
    return {**given, **model}, {**meant, "nphotons": COUNTS}
