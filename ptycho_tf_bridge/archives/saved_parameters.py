"""What an archive's saved parameters say, checked against its weights and its graph.

The reference saves its whole dictionary of parameters beside a model. It is global there, so it may be that of another
model; weights and graph never are. Where both speak, they have to agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptycho_tf_bridge.archives.stored_model import StoredModel, as_probe
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.contracts.config_schema import load_schema
from ptycho_torch.errors import ConfigError, one_line

SAVED_FIELDS = (
    "N",
    "gridsize",
    "n_filters_scale",
    "object_big",
    "probe_big",
    "pad_object",
    "probe_mask",
    "amp_activation",
    "gaussian_smoothing_sigma",
    "offset",
    "max_position_jitter",
)
"""Fields of the network that the parameters decide, or repeat."""

SCALE_KEY = "intensity_scale"
PROBE_KEY = "probe"

_SCALE_RTOL = 1e-6
"""The same number in float32 and float64 differs by less."""


def legacy_key(field: str) -> str:
    """Return the reference's key of a field of the network.

    >>> legacy_key("object_big")
    'object.big'
    """
    return load_schema().settings[field].there["legacy"]


def settle(stored: StoredModel, parameters: Mapping[str, Any], where: str) -> tuple[NetworkSettings, tuple[str, ...]]:
    """Return the network that the weights belong to, and the fields that nothing says.

    Args:
        stored: the model.
        parameters: that were saved with it; empty for none.
        where: file and member of the parameters, for errors.

    Raises:
        ArchiveError: parameters and weights contradict each other, or the network did what none here does.
    """
    keys = {field: legacy_key(field) for field in SAVED_FIELDS}
    saved = {field: parameters[key] for field, key in keys.items() if parameters.get(key) is not None}
    for field, value in saved.items():
        if not isinstance(value, bool | int | float | str):
            raise ArchiveError(
                f"{where}: {keys[field]} is {type(value).__name__}; expected a number, a word or a truth."
            )
    if saved.get("amp_activation") in ("silu", "SiLU"):
        saved["amp_activation"] = "swish"
    seen = dict(stored.network.decided)
    if stored.amp_activation is not None:
        seen["amp_activation"] = stored.amp_activation
    differing = [field for field in seen if field in saved and saved[field] != seen[field]]
    if differing:
        both = "; ".join(f"{keys[field]} {one_line(repr(saved[field]))}, but {seen[field]!r}" for field in differing)
        raise ArchiveError(
            f"{where}: the saved parameters and the model contradict each other: {both} in the model. The parameters "
            "are those of another model; find the params.dill that belongs to these weights."
        )
    _refuse_unmasked(stored, parameters, where)
    values = saved | seen
    unknown = tuple(field for field in SAVED_FIELDS if field not in values and not _is_idle(field, values))
    if stored.canvas_px is not None and unknown:
        values |= _canvas_fields(values, stored.canvas_px)
    try:
        network = NetworkSettings(**values)
    except (ConfigError, TypeError) as err:
        raise ArchiveError(f"{where}: no network has the saved parameters. {one_line(str(err))}") from err
    if stored.canvas_px is not None and network.object_big and network.canvas_px != stored.canvas_px:
        raise ArchiveError(
            f"{where}: {keys['offset']} {network.offset} and {keys['max_position_jitter']} "
            f"{network.max_position_jitter} make a canvas of {network.canvas_px} pixels, the model has "
            f"{stored.canvas_px}. The parameters are those of another model."
        )
    return network, tuple(field for field in unknown if field not in values)


def _is_idle(field: str, values: Mapping[str, Any]) -> bool:
    """Whether a field makes no difference to this network."""
    return field == "probe_big" and values.get("pad_object") is False


def _canvas_fields(values: Mapping[str, Any], canvas_px: int) -> dict[str, int]:
    """Return offset and jitter that make the canvas; only their sum counts."""
    margin = canvas_px - values["N"]
    steps = values["gridsize"] - 1
    offset = NetworkSettings().offset if margin >= steps * NetworkSettings().offset else 0
    made = {"offset": offset, "max_position_jitter": margin - steps * offset}
    return {field: value for field, value in made.items() if field not in values}


def _refuse_unmasked(stored: StoredModel, parameters: Mapping[str, Any], where: str) -> None:
    """Refuse models that add the border everywhere: their weights are the same, and their function is not."""
    settings = stored.network.settings
    if not (settings.pad_object and settings.has_outer_path):
        return
    # The border mask and the switch pad_object came on the same day.
    before = stored.amp_activation is None and legacy_key("pad_object") not in parameters
    if stored.masks_border is False or before:
        raise ArchiveError(
            f"{where}: this model is from before 2024-08-20, when the reference added the outer path everywhere "
            "and not only in the border. No network here does that, so it would predict something else. Train anew, "
            "or load the weights with a reference of that time."
        )


# ------------------------------------------------------------------------------------------------------ probe, scale


def choose_scale(found: Sequence[tuple[str, Any]], where: str, notes: list[str]) -> tuple[float | None, str]:
    """Return the intensity scale and where it was; sources that disagree are noted, and the first one counts.

    Args:
        found: source and value, the one that counts first.
        where: the archive, for errors.
        notes: for the report.

    Raises:
        ArchiveError: a value that is not a number above 0.
    """
    for source, value in found:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            shown = repr(value) if number else type(value).__name__
            raise ArchiveError(f"{where}: {source}: intensity_scale is {shown}; expected a number above 0.")
    if not found:
        return None, ""
    source, value = found[0]
    for other, another in found[1:]:
        if not math.isclose(value, another, rel_tol=_SCALE_RTOL):
            notes.append(f"intensity_scale is {value!r} in {source} and {another!r} in {other}; the first is taken.")
    return float(value), source


def choose_probe(
    stored: StoredModel, stored_source: str, parameters: Mapping[str, Any], source: str, where: str, notes: list[str]
) -> tuple[np.ndarray | None, str]:
    """Return the probe and where it was: that of the checkpoint, which may have been trained, else the saved one.

    Raises:
        ArchiveError: a probe of a shape or type that none has.
    """
    N = stored.network.settings.N
    saved = parameters.get(PROBE_KEY)
    if saved is not None and not isinstance(saved, np.ndarray):
        raise ArchiveError(f"{where}: {source}: probe is {type(saved).__name__}; expected an array.")
    if saved is not None and saved.shape[:1] != (N,):
        notes.append(
            f"The saved probe has shape {saved.shape}, and N is {N}. The reference then illuminates with its default "
            "disk; '--probe default' does the same."
        )
        saved = None
    probe = None if saved is None else as_probe(saved, N, f"{where}: {source}: probe")
    if stored.probe is None:
        return probe, source if probe is not None else ""
    if probe is not None and not np.array_equal(probe, stored.probe):
        change = np.abs(probe - stored.probe).max() / np.abs(stored.probe).max()
        notes.append(
            f"The probe of the checkpoint differs from that of {source} by up to {change:.3g} of its maximum, as after "
            "training it; the checkpoint's is taken, which the model predicts with."
        )
    return stored.probe, stored_source


# --------------------------------------------------------------------------------------------------------------- era


def era_of(layout: str, stored: StoredModel, network: NetworkSettings) -> str:
    """Say when such archives were written."""
    if stored.writer:
        return f"exported by {stored.writer}" + (f", {stored.saved}" if stored.saved else "")
    if layout.startswith("savedmodel"):
        when = "in a zip, December 2024 to July 2025" if layout == "savedmodel" else "in a folder, until December 2024"
        return f"Keras 2 SavedModel ({when})"
    if network.shared_amplitude_head:
        what = "one amplitude channel for a group, July 2025 to February 2026"
    elif network.phase_channels > 1:
        what = "an amplitude channel for each pattern, since February 2026"
    else:
        what = "since July 2025"
    return f"Keras 3 ({what})" + (f", saved {stored.saved}" if stored.saved else "")


def peculiarities(layout: str, network: NetworkSettings) -> list[str]:
    """Return what a user of this era's models has to know."""
    notes = []
    if network.shared_amplitude_head:
        notes.append(
            f"One amplitude channel serves the {network.C} patches of a group (shared_amplitude_head), as the "
            "reference had it before 2026-02-10. The reference of today refuses such weights."
        )
    if layout.startswith("savedmodel") and network.C > 1:
        notes.append(
            "The reference placed the patches of a group with the opposite sign of their offsets until 2025-07-18. A "
            "model trained before that date expects offsets of that sign, which positions_flip_x with positions_flip_y "
            "makes; compare with a known object."
        )
    return notes
