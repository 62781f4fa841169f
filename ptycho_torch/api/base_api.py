"""The classes that ptychodus trains and reconstructs with.

What it hands over and gets back: counts (M, N, N) with the zero frequency at N // 2, the probe (modes, N, N), and
positions (row, column) in pixels of the object's array; an object on the pixels of that array.
<doc-ref type="guide">docs/ptychodus.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from lightning.pytorch.callbacks import Callback

from ptycho_torch import inference, train
from ptycho_torch.api.client_scans import object_on_frame, scan_of_arrays, scan_of_file
from ptycho_torch.api.configs import DataConfig, DatagenConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.api.installation import foreign_files
from ptycho_torch.api.translate import KEY, Configs
from ptycho_torch.data.scan_arrays import ScanArrays
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import scan_paths
from ptycho_torch.training.checkpoint import read_checkpoint
from ptycho_torch.training.lightning_module import PtychoPINN

log = logging.getLogger(__name__)


class ConfigManager:
    """The settings of one run, checked together.

    Raises:
        ConfigError: a value that is none of ``ptycho_torch.api.configs``, or values that do not go together.
    """

    def __init__(
        self,
        data_config: DataConfig | None = None,
        model_config: ModelConfig | None = None,
        training_config: TrainingConfig | None = None,
        inference_config: InferenceConfig | None = None,
        datagen_config: DatagenConfig | None = None,
    ) -> None:
        if line := foreign_files():
            log.warning("%s", line)
        self.data_config = _value(DataConfig, data_config)
        self.model_config = _value(ModelConfig, model_config)
        self.training_config = _value(TrainingConfig, training_config)
        self.inference_config = _value(InferenceConfig, inference_config)
        self.datagen_config = _value(DatagenConfig, datagen_config)
        _ = self.configs

    @property
    def configs(self) -> Configs:
        """The values as they are now, checked together."""
        return Configs(self.data_config, self.model_config, self.training_config, self.inference_config)

    @classmethod
    def from_loaded_model(cls, model: PtychoModel) -> Self:
        """Return the settings of a model that was made for a checkpoint."""
        return cls(model.data_config, model.model_config, model.training_config, model.inference_config)

    def validate_arch_compatibility(self, model: PtychoModel) -> None:
        """Compare N and C with those of a loaded model.

        Raises:
            ConfigError: they differ.
        """
        network = model.module.network.settings
        theirs, ours = (network.N, network.C), (self.data_config.N, self.data_config.C)
        if theirs != ours:
            raise ConfigError(f"The model has N, C = {theirs}; the settings say {ours}. Take those of the model.")


def _value(kind: type, given: Any) -> Any:
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise ConfigError(
            f"{given!r} is no {kind.__name__} with settings; give {kind.__name__}(name=value, …). Without arguments it "
            "is the singleton of this process."
        )
    return given


class DataloaderFormats(enum.Enum):
    """How a loader is used; what it loads is the same."""

    LIGHTNING_MODULE = "lightning_module"
    LIGHTNING_ONLY_MODULE = "lightning_only_module"
    TENSORDICT = "tensordict"
    NUMPY = "numpy"


class PtychoDataLoader:
    """Scans for training or reconstruction.

    Args:
        data_dir: training file of ptychodus, or a folder of them: NPZ with counts.
        config_manager: settings.
        data_format: see ``DataloaderFormats``.
        output_dir: folder in which a run gets one of its own, ``run_…``.

    Attributes:
        output_dir: folder of the run.

    Raises:
        DataContractError: a file that breaks a clause.
    """

    def __init__(
        self,
        data_dir: str | Path,
        config_manager: ConfigManager,
        data_format: DataloaderFormats = DataloaderFormats.LIGHTNING_ONLY_MODULE,
        output_dir: str | Path | None = None,
    ) -> None:
        data = config_manager.data_config
        scans = [scan_of_file(path, data.x_bounds, data.y_bounds) for path in scan_paths(Path(data_dir))]
        self._take(scans, config_manager, output_dir)

    @classmethod
    def from_np(
        cls,
        diff_patterns: np.ndarray,
        probe: np.ndarray,
        positions: np.ndarray,
        config_manager: ConfigManager,
        output_dir: str | Path | None = None,
    ) -> Self:
        """Make a loader of one scan in memory.

        Args:
            diff_patterns: (M, N, N) counts, zero frequency at N // 2.
            probe: (N, N) or (modes, N, N).
            positions: (M, 2) row and column of the middle of each patch, in pixels of the object's array.
            config_manager: settings.
            output_dir: folder in which a run gets one of its own.

        Raises:
            DataContractError: arrays that break a clause.
        """
        loader = cls.__new__(cls)
        loader._take([scan_of_arrays(diff_patterns, probe, positions)], config_manager, output_dir)
        return loader

    def _take(self, scans: list[ScanArrays], manager: ConfigManager, output_dir: str | Path | None) -> None:
        self._scans, self._settings = scans, manager.configs.settings.data
        name = time.strftime("run_%Y%m%d_%H%M%S")
        self.output_dir = Path("training_outputs" if output_dir is None else output_dir) / name

    @cached_property
    def dataset(self) -> PtychoDataset:
        """The groups of the scans, made as the settings say."""
        return PtychoDataset.from_arrays(*self._scans, settings=self._settings)

    def grouped_for(self, module: PtychoPINN) -> PtychoDataset:
        """Return the groups of the scans, made as for the training of a model."""
        settings = inference.within_points(module.settings.data, self._scans)
        return PtychoDataset.from_arrays(*self._scans, settings=settings)


@dataclasses.dataclass(frozen=True)
class NewModel:
    """A model before its training: its scale and canvas follow from the scans.

    Attributes:
        loss_name: under which training logs its loss.
        val_loss_name: likewise, of validation.
    """

    loss_name: str = "train_loss"
    val_loss_name: str = "val_loss"


class PtychoModel:
    """A model with its settings.

    Attributes:
        model: ``PtychoPINN`` once it is trained or loaded.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        data_config: DataConfig,
        training_config: TrainingConfig,
        inference_config: InferenceConfig,
    ) -> None:
        self.model_config, self.data_config = model_config, data_config
        self.training_config, self.inference_config = training_config, inference_config
        self.model: NewModel | PtychoPINN = NewModel()

    @property
    def module(self) -> PtychoPINN:
        """The trained model.

        Raises:
            ConfigError: it is not trained yet.
        """
        if not isinstance(self.model, PtychoPINN):
            raise ConfigError("The model is not trained yet; train it, or load a checkpoint.")
        return self.model

    @classmethod
    def _new_model(cls, model: type[PtychoPINN], config_manager: ConfigManager) -> Self:
        """Return a model that is to be trained."""
        manager = config_manager
        return cls(manager.model_config, manager.data_config, manager.training_config, manager.inference_config)

    @staticmethod
    def _extract_configs_from_checkpoint(
        path: str,
    ) -> tuple[DataConfig, ModelConfig, TrainingConfig, InferenceConfig]:
        """Return the settings in a checkpoint, of ptychodus or of this program.

        Raises:
            CheckpointError: it cannot be read.
        """
        found = Configs.of_checkpoint(read_checkpoint(path))
        return found.data, found.model, found.training, found.inference


class _KeepConfigs(Callback):
    """Keeps the settings of ptychodus in every checkpoint of a run."""

    def __init__(self, configs: Configs) -> None:
        self._configs = configs

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.statistics[KEY] = self._configs.plain()


@dataclasses.dataclass(frozen=True)
class RunCallbacks:
    """Callbacks of Lightning that a run will have."""

    callbacks: list[Callback]


class Trainer:
    """Trains a model on the scans of a loader: ``ptycho_torch.train.main``."""

    def __init__(self, model: PtychoModel, dataloader: PtychoDataLoader, config_manager: ConfigManager) -> None:
        self._model, self._loader, self._configs = model, dataloader, config_manager.configs
        self._trainer = RunCallbacks([_KeepConfigs(self._configs)])

    @classmethod
    def _from_lightning(
        cls, model: PtychoModel, dataloader: PtychoDataLoader, orchestration: str, config_manager: ConfigManager
    ) -> Self:
        """Return a trainer."""
        return cls(model, dataloader, config_manager)

    def train(self, orchestration: str = "lightning", experiment_name: str = "") -> train.TrainingResult:
        """Train, and give the model its trained module.

        Args:
            orchestration: ``orchestrator`` of the settings decides whether the run is tracked.
            experiment_name: of MLflow, where it is.

        Raises:
            ConfigError: settings that do not fit the scans.
            DataContractError: scans that break a clause.
            TrainingError: the loss is not finite any more.
        """
        for line in self._configs.replaced():
            log.warning("%s", line)
        dataset = self._loader.dataset
        named = {"experiment_name": experiment_name} if experiment_name else {}
        result = train.main(
            dataset,
            settings=self._configs.settings_for(dataset).override(named),
            output_dir=self._loader.output_dir,
            reconstruct=False,
            callbacks=self._trainer.callbacks,
        )
        self._model.model = result.module
        return result


class InferenceEngine:
    """Makes objects with a trained model."""

    def __init__(self, config_manager: ConfigManager, ptycho_model: PtychoModel) -> None:
        self._configs, self._model = config_manager.configs, ptycho_model

    def predict_and_stitch(self, data_loader: PtychoDataLoader) -> np.ndarray:
        """Return the (H, W) complex64 object of one scan, on the pixels that its positions count; 0 where unknown.

        It is the object of ``ptycho-torch infer`` with the checkpoint of the model.

        Raises:
            ConfigError: the model is not trained, does not fit the scan, or there is no such scan.
            DataContractError: a scan that breaks a clause.
        """
        module, wanted = self._model.module, self._configs.inference
        dataset = data_loader.grouped_for(module)
        if wanted.experiment_number >= len(dataset.names):
            raise ConfigError(
                f"InferenceConfig.experiment_number = {wanted.experiment_number}, and the scans are 0 … "
                f"{len(dataset.names) - 1}."
            )
        objects = inference.reconstruct(
            module,
            dataset,
            batch_size=wanted.batch_size,
            weighting=self._configs.weighting,
            crop_px=wanted.middle_trim,
            device=self._configs.settings.training.device,
        )
        number = wanted.experiment_number
        return object_on_frame(objects[number], dataset.positions_px.numpy()[dataset.rows[number]])
