"""Scans as a ``LightningDataModule``: the loaders that training, validation, test and prediction take.

``train.main`` trains with it; a Trainer of one's own does likewise:
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ptycho_torch.config_params import Settings, TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import process_number


def loaders(
    dataset: PtychoDataset, training: TrainingSettings
) -> tuple[TensorDictDataLoader, TensorDictDataLoader | None]:
    """Return the loader of the training groups, and that of the validation groups if there are any.

    Raises:
        ConfigError: no group is left for training.
    """
    shuffle_seed = training.seed if training.validation_selection == "random" else None
    train_groups, val_groups = dataset.validation_split(training.validation_fraction, shuffle_seed=shuffle_seed)
    if not len(train_groups):
        raise ConfigError(
            f"{len(dataset)} groups leave none for training with validation_fraction = {training.validation_fraction}; "
            "lower it to 0, or give more patterns."
        )
    common = _common(training)
    train = TensorDictDataLoader(
        dataset, training.batch_size, groups=train_groups, shuffle=True, seed=training.seed, **common
    )
    if not len(val_groups):
        return train, None
    return train, TensorDictDataLoader(dataset, training.batch_size, groups=val_groups, **common)


def _common(training: TrainingSettings) -> dict[str, Any]:
    return {
        "num_workers": training.num_workers,
        "pin_memory": training.device in ("auto", "cuda") and torch.cuda.is_available(),
    }


class PtychoDataModule(pl.LightningDataModule):
    """The loaders of a folder of scans.

    Training and validation groups are split as the settings say. Test groups are the validation groups, the only ones
    that are not trained on; prediction takes all groups in order.

    Args:
        ptycho_dir: folder of scans, one NPZ file an experiment, or a single scan; or a dataset, with which the other
            arguments but ``settings`` stay away.
        probe_dir: folder of probes; None takes ``probeGuess`` of each scan.
        settings: ``data`` decides how groups are made, ``training`` how they are split and batched; None takes what the
            three singletons say now.
        data_dir: folder of the memory map; None is the one that every command has for these scans.
        remake_map: build the map anew, by the first process of several.
        probe: (N, N) or (modes, N, N) probe for every scan, in place of files.
        progress: show a bar while the map is built; None shows it in a terminal.

    Attributes:
        settings: see above.

    Raises:
        ConfigError: settings that do not fit together.

    Example:
        data = PtychoDataModule("scans", settings=settings)
        module = PtychoPINN.for_dataset(data.dataset, settings)
        pl.Trainer(max_epochs=20).fit(module, datamodule=data)
    """

    def __init__(
        self,
        ptycho_dir: str | Path | PtychoDataset,
        probe_dir: str | Path | None = None,
        settings: Settings | None = None,
        *,
        data_dir: str | Path | None = None,
        remake_map: bool = False,
        probe: np.ndarray | Tensor | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings.current() if settings is None else settings
        if isinstance(ptycho_dir, PtychoDataset):
            if any(given is not None for given in (probe_dir, data_dir, probe)) or remake_map:
                raise ConfigError(
                    "A dataset has its probe and map; leave out probe_dir, data_dir, probe and remake_map."
                )
            if self.settings.data != ptycho_dir.settings:
                raise ConfigError(
                    f"The dataset has {ptycho_dir.settings}; the run asks for {self.settings.data}. Make the dataset "
                    "with the data settings of the run."
                )
        self._ptycho_dir, self._probe_dir, self._data_dir = ptycho_dir, probe_dir, data_dir
        self._remake_map, self._probe, self._progress = remake_map, probe, progress

    @cached_property
    def dataset(self) -> PtychoDataset:
        """The groups of all scans; their map is opened, and built if need be, at the first look.

        Raises:
            DataContractError: a scan or probe that breaks a clause.
            MapError: no space, no right to write, or a damaged map.
        """
        if isinstance(self._ptycho_dir, PtychoDataset):
            return self._ptycho_dir
        # Processes that a launcher starts after the first one find the map that it made.
        remake = self._remake_map and process_number() == 0
        return PtychoDataset(
            self._ptycho_dir,
            self._probe_dir,
            self._data_dir,
            remake,
            settings=self.settings.data,
            probe=self._probe,
            progress=self._progress,
        )

    @property
    def batch_size(self) -> int:
        """Groups in a batch; what ``Tuner.scale_batch_size`` sets is that of the loaders made from then on."""
        return self.settings.training.batch_size

    @batch_size.setter
    def batch_size(self, groups: int) -> None:
        training = dataclasses.replace(self.settings.training, batch_size=int(groups))
        self.settings = dataclasses.replace(self.settings, training=training)

    def prepare_data(self) -> None:
        """Build the map, if need be; Lightning calls this in one process of each node, before the others look."""
        _ = self.dataset

    def train_dataloader(self) -> TensorDictDataLoader:
        """Return the loader of the training groups, in a new order each epoch.

        Raises:
            ConfigError: no group is left for training.
        """
        return loaders(self.dataset, self.settings.training)[0]

    def val_dataloader(self) -> TensorDictDataLoader | list[TensorDictDataLoader]:
        """Return the loader of the validation groups; an empty list where ``validation_fraction`` leaves none."""
        return loaders(self.dataset, self.settings.training)[1] or []

    def test_dataloader(self) -> TensorDictDataLoader:
        """Return the loader of the validation groups.

        Raises:
            ConfigError: there are none.
        """
        loader = loaders(self.dataset, self.settings.training)[1]
        if loader is None:
            raise ConfigError(
                f"validation_fraction = {self.settings.training.validation_fraction} holds back none of "
                f"{len(self.dataset)} groups for a test; raise it, or give trainer.test a loader of other scans."
            )
        return loader

    def predict_dataloader(self) -> TensorDictDataLoader:
        """Return the loader of all groups in order."""
        return TensorDictDataLoader(self.dataset, self.batch_size, **_common(self.settings.training))
