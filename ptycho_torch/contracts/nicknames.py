"""What people call settings and options elsewhere, for "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

NICKNAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lr": ("learning_rate",),
        "epochs": ("max_epochs",),
        "epoch": ("max_epochs",),
        "num_epochs": ("max_epochs",),
        "n_epochs": ("max_epochs",),
        "bs": ("batch_size",),
        "batch": ("batch_size",),
        "batchsize": ("batch_size",),
        "gpu": ("device", "devices"),
        "gpus": ("devices", "device"),
        "cuda": ("device",),
        "cpu": ("device",),
        "accelerator": ("device",),
        "nodes": ("num_nodes",),
        "workers": ("num_workers",),
        "n_workers": ("num_workers",),
        "patience": ("early_stop_patience",),
        "early_stopping": ("early_stop_patience",),
        "optim": ("optimizer",),
        "opt": ("optimizer",),
        "clip": ("gradient_clip_val",),
        "grad_clip": ("gradient_clip_val",),
        "clip_grad": ("gradient_clip_val",),
        "wd": ("weight_decay",),
        "decay": ("weight_decay",),
        "warmup": ("lr_warmup_epochs",),
        "sched": ("scheduler",),
        "lr_scheduler": ("scheduler",),
        "loss": ("loss_function",),
        "val_split": ("validation_fraction",),
        "val_fraction": ("validation_fraction",),
        "width": ("n_filters_scale",),
        "filters": ("n_filters_scale",),
        "group_size": ("gridsize",),
        "photons": ("nphotons",),
        "size": ("N",),
        "output": ("output_dir", "output"),
        "out": ("output_dir", "output"),
        "outdir": ("output_dir", "output"),
        "out_dir": ("output_dir", "output"),
        "save_dir": ("output_dir", "output"),
        "force": ("overwrite",),
        "yes": ("overwrite",),
        "ckpt": ("resume", "checkpoint"),
        "checkpoint": ("resume",),
        "restart": ("resume",),
        "continue": ("resume",),
        "pretrained": ("start_from",),
        "finetune": ("start_from",),
        "init_from": ("start_from",),
        "probe": ("probe_dir",),
        "map_dir": ("data_dir",),
        "memmap": ("data_dir",),
        "ground_truth": ("truth",),
        "quiet": ("no_progress",),
    }
)
"""Another name → names here, the likeliest first."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant, as ``known`` spells it, with dashes or underscores; None for no guess.

    >>> nearest("lr", ["learning-rate", "lr-gamma"])
    'learning-rate'
    >>> nearest("max_epoch", ["max_epochs"])
    'max_epochs'
    """
    spelled = {each.replace("-", "_"): each for each in known}
    plain = name.replace("-", "_")
    for meant in NICKNAMES.get(plain.lower(), ()):
        if meant in spelled:
            return spelled[meant]
    near = difflib.get_close_matches(plain, spelled, n=1)
    return spelled[near[0]] if near else None
