"""From the settings of ptychodus to ours and back, and into checkpoints.

<doc-ref type="guide">docs/ptychodus.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, get_args

import torch

from ptycho_torch.api.configs import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.api.rules import Ruled
from ptycho_torch.config_params import GraveHint, Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError
from ptycho_torch.reconstruction.reassembly import Weighting
from ptycho_torch.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)

KEY = "ptychodus"
"""Under which the statistics of a checkpoint keep the values that it was trained with."""


@dataclasses.dataclass(frozen=True)
class Configs:
    """The values of one run.

    Raises:
        ConfigError: values that do not go together.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    inference: InferenceConfig

    def __post_init__(self) -> None:
        data, model, training = self.data, self.model, self.training
        wrong = [
            f"ModelConfig.{name} = {number}, and DataConfig.C = {data.C}; give both the same."
            for name, number in (("C_model", model.C_model), ("C_forward", model.C_forward))
            if number != data.C
        ]
        if model.decoder_last_amp_channels not in (1, data.C):
            wrong.append(
                f"ModelConfig.decoder_last_amp_channels = {model.decoder_last_amp_channels} is refused: expected "
                f"DataConfig.C = {data.C}, or 1."
            )
        if model.edge_pad not in (data.N // 4, ModelConfig.edge_pad):
            wrong.append(f"ModelConfig.edge_pad = {model.edge_pad} is refused: for N = {data.N} it is {data.N // 4}.")
        if not training.nll and model.loss_function == "Poisson":
            wrong.append(
                "TrainingConfig.nll = False is refused with ModelConfig.loss_function = 'Poisson'; give 'MAE'."
            )
        if self.inference.middle_trim > data.N:
            wrong.append(f"InferenceConfig.middle_trim = {self.inference.middle_trim} is more than N = {data.N}.")
        if wrong:
            raise ConfigError(" ".join(wrong))

    @property
    def settings(self) -> Settings:
        """What these values are here; where ptychodus has no word for a setting, it has our default."""
        data, model, training = self.data, self.model, self.training
        own = {
            "gridsize": data.grid_size[0],
            "shared_amplitude_head": model.decoder_last_amp_channels < data.C and model.object_big,
            "gradient_clip_algorithm": "norm",
            # ptychodus has no word for accepting a hint, so that all are told and none stops.
            "accept": ",".join(get_args(GraveHint)),
            "intensity_scale": model.intensity_scale if model.intensity_scale_trainable else None,
        }
        if training.device == "cuda" and not torch.cuda.is_available():
            own["device"] = "cpu"
        return Settings().override(data.ours() | model.ours() | training.ours() | own)

    def settings_for(self, dataset: PtychoDataset) -> Settings:
        """Return what these values are for a dataset: on a canvas that clips no group [clause PREP-02].

        Raises:
            ConfigError: ``num_datasets`` is another number than that of the scans.
        """
        model, scans = self.model, len(dataset.names)
        if model.num_datasets != scans:
            raise ConfigError(
                f"ModelConfig.num_datasets = {model.num_datasets}, and there are {scans} scans; give {scans}."
            )
        needed = dataset.derived(offset=model.offset).max_position_jitter
        # The canvas is centred on the patch, so that the sum must be even (REF-03).
        odd = ((self.data.grid_size[0] - 1) * model.offset + model.max_position_jitter) % 2
        jitter = max(needed, model.max_position_jitter + odd)
        if jitter != model.max_position_jitter:
            log.warning(
                "ModelConfig.max_position_jitter = %d is raised to %d, so that the canvas holds every group",
                model.max_position_jitter, jitter,
            )  # fmt: skip
        return self.settings.override({"max_position_jitter": jitter})

    @property
    def weighting(self) -> Weighting:
        """How patches are weighted."""
        return "uniform" if self.inference.patch_weighting == "uniform" else "smooth"

    def replaced(self) -> list[str]:
        """Say which values are taken and replaced by what this network has."""
        return [line for each in self._values() for line in each.replaced()]

    def plain(self) -> dict[str, dict[str, Any]]:
        """Return names and values, for a checkpoint."""
        return {type(each).__name__: dataclasses.asdict(each) for each in self._values()}  # type: ignore[call-overload]

    def _values(self) -> tuple[Ruled, ...]:
        return (self.data, self.model, self.training, self.inference)

    @classmethod
    def of_checkpoint(cls, content: Checkpoint) -> Configs:
        """Return the values that a checkpoint was trained with, or those that say most of what it was trained with.

        Objects are made with the settings of the checkpoint, whether ptychodus has words for them or not.
        """
        kept = content.statistics.get(KEY)
        if kept is not None:
            read = {name: {key: _tuple(value) for key, value in values.items()} for name, values in kept.items()}
        else:
            read = _told(content.settings, content.network.gridsize)
        return cls(
            DataConfig(**read["DataConfig"]),
            ModelConfig(**read["ModelConfig"]),
            TrainingConfig(**read["TrainingConfig"]),
            InferenceConfig(**read["InferenceConfig"]),
        )


def _told(settings: Settings, gridsize: int) -> dict[str, dict[str, Any]]:
    """Say settings of ours in the words of ptychodus, where it has words for them."""
    ours: Mapping[str, Any] = {name: value for owner in settings.as_dict().values() for name, value in owner.items()}
    told: dict[str, dict[str, Any]] = {}
    for kind in (DataConfig, ModelConfig, TrainingConfig):
        values = told.setdefault(kind.__name__, {})
        for name, (default, rule) in kind.rules().items():
            if rule.setting:
                value = rule.theirs(ours[rule.setting], default)
                if not rule.complaint(value, default):
                    values[name] = value
    C = gridsize**2
    told["DataConfig"] |= {"C": C, "grid_size": (gridsize, gridsize)}
    told["ModelConfig"] |= {
        "C_model": C, "C_forward": C, "decoder_last_amp_channels": 1 if ours["shared_amplitude_head"] else C,
        "cbam_encoder": False, "edge_pad": ours["N"] // 4,
    }  # fmt: skip
    told["InferenceConfig"] = {"middle_trim": ours["N"] // 2, "patch_weighting": "smooth"}
    return told


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
