"""Configurations of the reference become settings, and settings become configurations: three routes, by hand."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conformance.judge.agreement import Compared
from ptycho_torch.config_params import Settings

Values = dict[str, Any]

ROWS: tuple[tuple[str, Any, str, str, Any], ...] = (
    ("n_filters_scale", 3, "model.n_filters_scale", "n_filters_scale", 3),
    ("object_big", False, "model.object_big", "object.big", False),
    ("probe_big", False, "model.probe_big", "", False),
    ("probe_big", True, "", "probe.big", True),
    ("pad_object", False, "model.pad_object", "pad_object", False),
    ("probe_mask", True, "model.probe_mask", "", True),
    ("probe_mask", False, "", "probe.mask", False),
    ("probe_scale", 7.0, "model.probe_scale", "probe_scale", 7.0),
    ("amp_activation", "softplus", "model.amp_activation", "amp_activation", "softplus"),
    ("gaussian_smoothing_sigma", 0.6, "model.gaussian_smoothing_sigma", "gaussian_smoothing_sigma", 0.6),
    ("offset", 6, "", "offset", 6),
    ("max_position_jitter", 12, "", "max_position_jitter", 12),
    ("intensity_scale", 21.5, "", "intensity_scale", 21.5),
    ("probe_trainable", True, "training.probe_trainable", "probe.trainable", True),
    ("loss_function", "MAE", "training.torch_loss_mode", "torch_loss_mode", "mae"),
    ("device", "cuda", "execution.accelerator", "", "cuda"),
    ("devices", -1, "execution.devices", "", "auto"),
    ("strategy", "ddp", "execution.strategy", "", "ddp"),
    ("precision", "bf16-mixed", "execution.precision", "", "bf16-mixed"),
    ("accumulate_grad_batches", 3, "execution.accum_steps", "", 3),
    ("learning_rate", 3e-4, "execution.learning_rate", "", 3e-4),
    ("early_stop_patience", 8, "execution.early_stop_patience", "", 8),
    ("num_workers", 2, "execution.num_workers", "", 2),
    ("max_epochs", 7, "training.nepochs", "nepochs", 7),
    ("batch_size", 8, "training.batch_size", "batch_size", 8),
    ("optimizer", "adamw", "training.optimizer", "optimizer", "adamw"),
    ("weight_decay", 0.02, "training.weight_decay", "weight_decay", 0.02),
    ("adam_beta1", 0.8, "training.adam_beta1", "adam_beta1", 0.8),
    ("adam_beta2", 0.95, "training.adam_beta2", "adam_beta2", 0.95),
    ("scheduler", "Exponential", "training.scheduler", "scheduler", "Exponential"),
    ("lr_warmup_epochs", 3, "training.lr_warmup_epochs", "lr_warmup_epochs", 3),
    ("lr_min_ratio", 0.2, "training.lr_min_ratio", "lr_min_ratio", 0.2),
    ("plateau_factor", 0.7, "training.plateau_factor", "plateau_factor", 0.7),
    ("plateau_patience", 5, "training.plateau_patience", "plateau_patience", 5),
    ("plateau_min_lr", 2e-5, "training.plateau_min_lr", "plateau_min_lr", 2e-5),
    ("plateau_threshold", 3e-3, "training.plateau_threshold", "plateau_threshold", 3e-3),
    ("gradient_clip_val", 0.3, "training.gradient_clip_val", "gradient_clip_val", 0.3),
    ("gradient_clip_algorithm", "value", "training.gradient_clip_algorithm", "gradient_clip_algorithm", "value"),
    ("nll_weight", 0.4, "training.nll_weight", "nll_weight", 0.4),
    ("mae_weight", 0.75, "training.mae_weight", "mae_weight", 0.75),
    ("realspace_weight", 0.25, "training.realspace_weight", "realspace_weight", 0.25),
    ("tv_weight", 0.1, "", "tv_weight", 0.1),
    ("seed", 17, "", "npseed", 17),
    ("N", 128, "model.N", "", 128),
    ("N", 256, "", "N", 256),
    ("gridsize", 3, "model.gridsize", "gridsize", 3),
    ("K", 9, "training.neighbor_count", "neighbor_count", 9),
    ("n_groups", 100, "training.n_groups", "n_groups", 100),
    ("sequential_sampling", True, "training.sequential_sampling", "sequential_sampling", True),
    ("enable_oversampling", True, "training.enable_oversampling", "enable_oversampling", True),
    ("neighbor_pool_size", 11, "training.neighbor_pool_size", "neighbor_pool_size", 11),
    ("nphotons", 4096.0, "training.nphotons", "nphotons", 4096.0),
)
"""Setting and value here; dataclass field, legacy key and value there. No value is a default of its side."""

OF_BOTH: Values = {
    "n_filters_scale": 2, "offset": 4, "max_position_jitter": 10, "batch_size": 16, "max_epochs": 50,
    "lr_warmup_epochs": 0, "lr_min_ratio": 0.1, "gradient_clip_val": None, "gradient_clip_algorithm": "norm",
    "seed": 42, "K": 4, "nphotons": 1e9,
}  # fmt: skip
"""What the TensorFlow side and the reference's PyTorch side both have where nothing is stated."""

CODE: Values = {
    **OF_BOTH, "group_sampler": "reference", "early_stop_patience": 3, "validation_selection": "last",
    "scheduler": "ReduceLROnPlateau", "initial_amplitude": "zero_bias", "nll_weight": 1.0, "mae_weight": 0.0,
}  # fmt: skip
"""What TensorFlow has where nothing is stated, whatever the route; what is here by default is left out."""

UNSTATED: Mapping[str, Values] = {
    "legacy": {**CODE, "N": 128, "probe_big": False, "probe_mask": True, "probe_scale": 10.0, "max_epochs": 60},
    "dataclass": {**CODE, "gridsize": 1, "n_groups": 512, "num_workers": 0},
    "yaml": {**CODE, "gridsize": 1, "n_groups": 512},
}
"""The same for each route: the legacy dictionary and the dataclass have other defaults."""

OF_PYTORCH: Values = {
    **OF_BOTH, "intensity_scale_trainable": True, "scheduler": "Default", "plateau_min_lr": 5e-5,
    "plateau_threshold": 0.0, "gridsize": 1,
}  # fmt: skip
"""What the reference's PyTorch side has where a file states nothing but that it is meant."""

NOT_FOLLOWED: Values = {
    "probe_trainable": False, "loss_function": "Poisson", "optimizer": "keras_adam", "weight_decay": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "scheduler": "ReduceLROnPlateau", "plateau_factor": 0.5,
    "plateau_patience": 2, "plateau_min_lr": 1e-4, "plateau_threshold": 1e-4, "gradient_clip_val": None,
    "devices": 1, "precision": "32-true", "accumulate_grad_batches": 1, "learning_rate": 1e-3,
    "early_stop_patience": 3,
}  # fmt: skip
"""What TensorFlow does whatever is stated."""

FLAGS_WIN: Values = {
    "max_epochs": 50, "batch_size": 16, "nll_weight": 1.0, "mae_weight": 0.0, "realspace_weight": 0.0, "K": 4,
    "sequential_sampling": False, "enable_oversampling": False, "nphotons": 1e9,
}  # fmt: skip
"""Defaults of the flags of the reference's command, which win over lines of a file outside ``model:``."""


def every_setting(settings: Settings) -> dict[str, Any]:
    """Return all settings by name."""
    return {name: value for owner in settings.as_dict().values() for name, value in owner.items()}


def texts(prefix: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return values as they are written, type and all, under names with a prefix."""
    return {f"{prefix}{name}": np.array(repr(value)) for name, value in values.items()}


def stated(route: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a route states, by its names, and the settings that it means."""
    column = 3 if route == "legacy" else 2
    rows = [row for row in ROWS if row[column] and not (route == "yaml" and row[2].startswith("execution."))]
    return {row[column]: row[4] for row in rows}, {row[0]: row[1] for row in rows}


def _instances(fields: Values) -> list[Any]:
    """Make instances of the reference's dataclasses, with some of their fields."""
    names = {"model": "ModelConfig", "training": "TrainingConfig", "execution": "PyTorchExecutionConfig"}
    # A dataclass is known by its fields; these two are no settings.
    sections: dict[str, dict[str, Any]] = {
        "model": {"fno_modes": 12},
        "training": {},
        "execution": {"pin_memory": False},
    }
    for name, value in fields.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    made: dict[str, Any] = {}
    for section, values in sections.items():
        if section == "training":
            values = {"model": made["model"], **values}
        made[section] = dataclasses.make_dataclass(names[section], values)(**values)
    return [made["training"], made["execution"]]


def _file(fields: Values) -> str:
    content: dict[str, Any] = {"model": {}}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        (content["model"] if section == "model" else content)[field] = value
    return yaml.safe_dump(content)


def _read(route: str, given: Values, *, as_run: bool = False) -> dict[str, Any]:
    """Translate what a route states, and return every setting."""
    from ptycho_tf_bridge.config import from_dataclass, from_legacy, from_yaml

    if route == "legacy":
        translation = from_legacy(given, as_run=as_run)
    elif route == "dataclass":
        translation = from_dataclass(*_instances(given), as_run=as_run)
    else:
        with tempfile.TemporaryDirectory(prefix="conformance-configuration-") as folder:
            path = Path(folder) / "reference.yaml"
            path.write_text(_file(given), encoding="utf-8")
            translation = from_yaml(path, as_run=as_run)
    return every_setting(translation.settings)


def unstated() -> Compared:
    """Translate configurations that state nothing: every setting has the reference's default."""
    here = every_setting(Settings())
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for route, defaults in UNSTATED.items():
        expected |= texts(f"{route}: ", here | defaults)
        found |= texts(f"{route}: ", _read(route, {}))
    return Compared(expected, found)


def translated(as_run: bool) -> Compared:
    """Translate configurations that state everything, none of it a default, and a file that is meant for PyTorch.

    As TensorFlow ran, it follows some of what is stated, and flags win over lines of a file outside ``model:``, one of
    which is the backend.
    """
    here = every_setting(Settings())
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for route, defaults in UNSTATED.items():
        given, meant = stated(route)
        right = here | defaults | meant
        if as_run:
            right |= {name: value for name, value in NOT_FOLLOWED.items() if name in meant}
            right |= FLAGS_WIN if route == "yaml" else {}
        expected |= texts(f"{route}: ", right)
        found |= texts(f"{route}: ", _read(route, given, as_run=as_run))
    expected |= texts("file for PyTorch: ", here | (UNSTATED["yaml"] if as_run else OF_PYTORCH))
    found |= texts("file for PyTorch: ", _read("yaml", {"training.backend": "pytorch"}, as_run=as_run))
    return Compared(expected, found)


SPELLED: tuple[tuple[str, str, Values, str, Any], ...] = (
    *(("legacy", name, {"amp_activation": name}, "amp_activation", meant)
      for name, meant in (("sigmoid", "sigmoid"), ("swish", "swish"), ("silu", "swish"), ("SiLU", "swish"),
                          ("softplus", "softplus"), ("relu", "relu"))),
    *(("yaml", name, {"model.amp_activation": name}, "amp_activation", "swish") for name in ("swish", "silu", "SiLU")),
    *(("dataclass", name, {"execution.accelerator": name}, "device", meant)
      for name, meant in (("gpu", "cuda"), ("cuda", "cuda"), ("cpu", "cpu"), ("mps", "mps"))),
    ("legacy", "poisson", {"torch_loss_mode": "poisson"}, "loss_function", "Poisson"),
    ("legacy", "adam", {"optimizer": "adam"}, "optimizer", "keras_adam"),
    ("legacy", "a pair", {"gridsize": (3, 3)}, "gridsize", 3),
    ("legacy", "a NumPy scalar", {"intensity_scale": np.float32(19.25)}, "intensity_scale", 19.25),
    ("legacy", "text", {"nphotons": "2e5"}, "nphotons", 2e5),
    ("legacy", "whole weight", {"mae_weight": 1}, "mae_weight", 1.0),
    ("legacy", "None", {"batch_size": None}, "batch_size", 16),
    ("legacy", "other meaning", {"n_subsample": 4}, "n_subsample", 1),
    ("yaml", "former name", {"training.n_images": 300}, "n_groups", 300),
    ("legacy", "flag without effect", {"intensity_scale.trainable": True}, "intensity_scale_trainable", False),
    ("legacy", "weight that counts for nothing", {"tv_weight": 0.5}, "tv_weight", 0.0),
)  # fmt: skip
"""Route, what is told apart, what is stated, and the setting with its value here."""


def spelled() -> Compared:
    """Translate values that the reference spells in its own ways."""
    expected, found = {}, {}
    for route, what, given, setting, value in SPELLED:
        name = f"{route}: {what}: {setting}"
        expected[name] = np.array(repr(value))
        found[name] = np.array(repr(_read(route, given)[setting]))
    return Compared(expected, found)


FLAGS = (
    "--batch_size 8", "--enable_oversampling True", "--mae_weight 0.75", "--neighbor_count 9", "--nepochs 7",
    "--nll_weight 0.4", "--nphotons 4096.0", "--realspace_weight 0.25", "--sequential_sampling True",
)  # fmt: skip
"""What the reference's command has to be given beside a file of ``ROWS``, sorted."""


def _written_by(settings: Settings) -> dict[str, dict[str, Any]]:
    """Write settings on every route, and return names there → values; of a file, also the flags it asks for."""
    from ptycho_tf_bridge.config import to_dataclass_fields, to_legacy, to_tensorflow_yaml

    sections = to_dataclass_fields(settings)[0]
    text = to_tensorflow_yaml(settings)[0]
    content = yaml.safe_load(text)
    file = {f"model.{name}": value for name, value in content.pop("model").items()}
    file |= {f"training.{name}": value for name, value in content.items()}
    line = next((line for line in text.splitlines() if line.startswith("#   ptycho_train --config FILE")), "")
    return {
        "legacy": to_legacy(settings)[0],
        "dataclass": {f"{section}.{name}": value for section, each in sections.items() for name, value in each.items()},
        "yaml": file,
        "flags": {"flags": tuple(sorted(f"--{flag.strip()}" for flag in line.split(" --")[2:]))},
    }


IMPLIED: Mapping[str, Values] = {
    "Poisson": {"torch_loss_mode": "poisson", "nll_weight": 1.0, "mae_weight": 0.0},
    "MAE": {"torch_loss_mode": "mae", "nll_weight": 0.0, "mae_weight": 1.0},
}
"""What is written of the loss where its weights are left to ``loss_function``."""


def written() -> Compared:
    """Write settings as legacy dictionary, as fields of dataclasses and as a file."""
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for route in UNSTATED:
        given, meant = stated(route)
        # Of a setting with two values the route's own one is written; fixed words say what TensorFlow does anyway.
        chosen = {"group_sampler": "reference", "intensity_scale_trainable": True, **stated("dataclass")[1], **meant}
        written = _written_by(Settings().override(chosen))
        also = {"execution.deterministic": False} if route == "dataclass" else {}
        expected |= texts(f"{route}: ", {**given, **also, "number of names": len(given) + len(also)})
        found |= texts(f"{route}: ", {**written[route], "number of names": len(written[route])})
        if route == "yaml":
            expected |= texts(f"{route}: ", {"flags": FLAGS})
            found |= texts(f"{route}: ", written["flags"])
    for loss, values in IMPLIED.items():
        written = _written_by(Settings().override({"loss_function": loss}))
        for route in UNSTATED:
            section = "" if route == "legacy" else "training."
            expected |= texts(f"{loss}, {route}: ", {f"{section}{name}": value for name, value in values.items()})
            found |= texts(f"{loss}, {route}: ", written[route])
    return Compared(expected, found)
