"""A Trainer, loader and logger of one's own: what Lightning offers works, and the history of a run stays right."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.support.training_runs import SMALL, write_scan

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.training.data_module import PtychoDataModule, loaders

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning"),
]

SETTINGS = Settings().override({**SMALL, "batch_size": 2})
"""9 training groups in 5 batches, the last of 1, and 1 validation group."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PtychoDataModule:
    folder = tmp_path_factory.mktemp("scans")
    return PtychoDataModule(write_scan(folder / "a.npz", patterns=10), settings=SETTINGS, data_dir=folder / "map")


def module_of(data: PtychoDataModule, settings: Settings = SETTINGS) -> train.PtychoPINN:
    return train.PtychoPINN.for_dataset(data.dataset, settings)


def trainer_of(folder: Path, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(**quiet | {"default_root_dir": folder, "enable_checkpointing": False} | options)


class Witness(Callback):
    """Sees every batch, and what the history has when an epoch ends."""

    def __init__(self) -> None:
        self.epochs: list[list[tuple[float, int]]] = []
        self.groups: list[list[int]] = []
        self.validated: list[float] = []
        self.at_the_end: list[dict[str, list[float]]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append([])
        self.groups.append([])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1].append((float(outputs["loss"]), len(batch.groups)))
        self.groups[-1] += batch.groups.tolist()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(float(trainer.callback_metrics["val_loss"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.at_the_end.append({name: list(values) for name, values in pl_module.history.items()})

    @property
    def means(self) -> list[float]:
        return [sum(loss * n for loss, n in each) / sum(n for _, n in each) for each in self.epochs]


class StopsAt(Callback):
    """Ends training behind a batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize(
    ("options", "batches", "validations"),
    [
        ({"max_epochs": 2}, [5, 5], [0, 1]),
        ({"max_steps": 7}, [5, 2], [0, None]),
        ({"max_steps": 10}, [5, 5], [0, 1]),
        ({"max_epochs": 2, "num_sanity_val_steps": 2, "val_check_interval": 0.5}, [5, 5], [1, 3]),
        ({"max_epochs": 3, "val_check_interval": 3, "check_val_every_n_epoch": None}, [5, 5, 5], [0, 2, 4]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [5, 5, 5], [None, 0, None]),
        ({"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}, [2, 2], [0, 1]),
        ({"max_epochs": 2, "limit_train_batches": 0.5, "limit_val_batches": 0}, [2, 2], []),
        ({"max_epochs": 2, "overfit_batches": 1}, [1, 1], [0, 1]),
        ({"fast_dev_run": True}, [1], [0]),
        # Lightning validates once more where a callback ends training.
        ({"max_epochs": 3, "callbacks": [StopsAt(7)]}, [5, 2], [0, 1]),
        ({"max_epochs": 3, "min_steps": 9, "callbacks": [StopsAt(7)]}, [5, 4], [0, 1]),
        ({"max_epochs": 4, "min_epochs": 2, "callbacks": [StopsAt(3)]}, [5, 5], [0, 1]),
        (
            {"max_epochs": 5, "val_check_interval": 2, "callbacks": [EarlyStopping("val_loss", 1e9, patience=1)]},
            [4],
            [1],
        ),
    ],
)
def test_history_has_one_entry_an_epoch(
    data: PtychoDataModule,
    tmp_path: Path,
    options: dict[str, Any],
    batches: list[int],
    validations: list[int | None],
) -> None:
    """The training loss is the mean over the samples of the epoch, the validation loss that of its last validation."""
    witness, module = Witness(), module_of(data)
    callbacks = [*options.get("callbacks", []), witness]
    trainer_of(tmp_path, **options | {"callbacks": callbacks}).fit(module, datamodule=data)
    assert [len(each) for each in witness.epochs] == batches
    assert module.history["train_loss"] == pytest.approx(witness.means, rel=1e-6)
    assert len(module.history["learning_rate"]) == len(batches)
    expected = [math.nan if number is None else witness.validated[number] for number in validations]
    assert module.history.get("val_loss", []) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    # Callbacks that record an epoch find it in the history when it ends.
    for number, seen in enumerate(witness.at_the_end, 1):
        assert seen["train_loss"] == module.history["train_loss"][:number]
        assert seen["learning_rate"] == module.history["learning_rate"][:number]


@pytest.mark.parametrize(("precision", "remedy"), [("64-true", '"precision": "64-true"'), ("bf16-true", "bf16-mixed")])
def test_a_precision_that_converts_batches_is_refused_with_what_to_do(
    data: PtychoDataModule, tmp_path: Path, precision: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf'precision="{precision}".*Leave it out.*{remedy}'):
        trainer_of(tmp_path, precision=precision, max_epochs=1).fit(module_of(data), datamodule=data)


def test_time_ends_an_epoch(data: PtychoDataModule, tmp_path: Path) -> None:
    witness, module = Witness(), module_of(data)
    trainer = trainer_of(tmp_path, max_epochs=-1, max_time={"seconds": 1}, callbacks=[witness])
    trainer.fit(module, datamodule=data)
    assert module.history["train_loss"] == pytest.approx(witness.means, rel=1e-6)


def test_a_plateau_waits_for_epochs_that_are_validated(data: PtychoDataModule, tmp_path: Path) -> None:
    # Nothing improves by 1e9: the validations behind epochs 2, 4 and 6 are the best one and two without improvement.
    settings = SETTINGS.override({"scheduler": "ReduceLROnPlateau", "plateau_threshold": 1e9, "plateau_patience": 2})
    module = module_of(data, settings)
    trainer_of(tmp_path, max_epochs=7, check_val_every_n_epoch=2).fit(module, datamodule=data)
    assert module.history["learning_rate"] == [1e-3] * 6 + [5e-4]


def test_overfitting_takes_the_same_batches_in_every_epoch(data: PtychoDataModule, tmp_path: Path) -> None:
    witness = Witness()
    trainer_of(tmp_path, max_epochs=3, overfit_batches=2, callbacks=[witness]).fit(module_of(data), datamodule=data)
    first = witness.groups[0]
    assert len(first) == 4
    assert witness.groups == [first] * 3


def test_test_and_validation_outside_training_are_no_part_of_the_history(
    data: PtychoDataModule, tmp_path: Path
) -> None:
    module, trainer = module_of(data), trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    noted = {name: list(values) for name, values in module.history.items()}
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    assert tested["test_loss"] == pytest.approx(noted["val_loss"][0], rel=1e-6)
    assert validated["val_loss"] == pytest.approx(noted["val_loss"][0], rel=1e-6)
    assert module.history == noted


@pytest.mark.parametrize("scheduler", ["ReduceLROnPlateau", "WarmupCosine", "Exponential"])
def test_a_rate_that_was_found_is_trained_with(data: PtychoDataModule, tmp_path: Path, scheduler: Any) -> None:
    settings = SETTINGS.override({"scheduler": scheduler})
    options = {"max_epochs": 3, "limit_val_batches": 0}

    def trained(update: bool) -> tuple[train.PtychoPINN, float]:
        module, trainer = module_of(data, settings), trainer_of(tmp_path, **options)
        finder = Tuner(trainer).lr_find(
            module, datamodule=data, num_training=14, max_lr=0.01, early_stop_threshold=None, update_attr=update
        )
        assert len(finder.results["lr"]) == 14
        assert module.history == {}
        trainer.fit(module, datamodule=data)
        return module, finder.suggestion()

    module, rate = trained(True)
    assert rate != settings.training.learning_rate
    assert module.settings.training.learning_rate == rate == module.hparams["settings"]["training"]["learning_rate"]
    given = settings.override({"learning_rate": rate})
    plain = module_of(data, given)
    trainer_of(tmp_path, **options).fit(plain, datamodule=data)
    assert module.history == plain.history
    assert len(plain.history["train_loss"]) == 3
    # A search alone leaves no trace in what follows.
    searched, _ = trained(False)
    plain = module_of(data, settings)
    trainer_of(tmp_path, **options).fit(plain, datamodule=data)
    assert searched.history == plain.history
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".lr_find")]


def test_a_batch_size_that_was_found_is_trained_with(data: PtychoDataModule, tmp_path: Path) -> None:
    own = PtychoDataModule(data._ptycho_dir, settings=SETTINGS, data_dir=data._data_dir)
    module, witness = module_of(own), Witness()
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[witness])
    found = Tuner(trainer).scale_batch_size(module, datamodule=own, init_val=2, max_trials=3)
    assert found == own.batch_size == 8
    assert module.history == {}
    trainer.fit(module, datamodule=own)
    assert [groups for _, groups in witness.epochs[-1]] == [8, 1]
    assert len(module.history["train_loss"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 3},
        {"every_n_train_steps": 5},
        {"monitor": "val_loss"},
        {"save_on_train_epoch_end": True},
    ],
    ids=str,
)
def test_any_checkpoint_of_lightning_resumes(data: PtychoDataModule, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = SETTINGS.override({"scheduler": "Exponential", "lr_gamma": 0.5})
    keeper = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1, **options)
    whole = module_of(data, settings)
    trainer_of(tmp_path, max_epochs=3, callbacks=[keeper], enable_checkpointing=True).fit(whole, datamodule=data)
    kept = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(kept) >= 3
    for path in kept:
        if path.name == "step=15.ckpt" and "every_n_train_steps" in options:
            continue  # Lightning does not train on, and so ends no epoch.
        resumed = module_of(data, settings)
        trainer_of(tmp_path, max_epochs=3).fit(resumed, datamodule=data, ckpt_path=path)
        for name in ("train_loss", "learning_rate"):
            assert resumed.history[name] == whole.history[name], path.name
        for name, weight in whole.network.state_dict().items():
            assert torch.equal(resumed.network.state_dict()[name], weight), path.name


def test_loggers_and_callbacks_of_one_s_own_stand_beside_ours(data: PtychoDataModule, tmp_path: Path) -> None:
    witness = Witness()
    result = train.main(
        data._ptycho_dir,
        settings=SETTINGS,
        output_dir=tmp_path / "run",
        data_dir=data._data_dir,
        reconstruct=False,
        progress=False,
        callbacks=[witness],
        logger=CSVLogger(tmp_path, name="csv", version=0),
    )
    assert len(witness.at_the_end) == 3
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "val_loss", "learning_rate"):
        logged = [(int(row["step"]), int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        assert [(step, epoch) for step, epoch, _ in logged] == [(4, 0), (9, 1), (14, 2)]
        assert [value for _, _, value in logged] == pytest.approx(result.history[name], rel=1e-6)
    assert "learning_rate: 0.001" in (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def plain(dataset: PtychoDataset) -> TensorDataset:
    return TensorDataset(*(part.contiguous() for part in dataset[:]))


def test_plain_tuples_train_as_batches_do(data: PtychoDataModule, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "limit_val_batches": 0}
    module, other = module_of(data), module_of(data)
    trainer_of(tmp_path, **options).fit(module, DataLoader(plain(data.dataset), batch_size=4))
    trainer_of(tmp_path, **options).fit(other, TensorDictDataLoader(data.dataset, 4))
    assert module.history == other.history
    batch = data.dataset[:3]
    assert torch.equal(module.validation_step(tuple(batch)), module.validation_step(batch))
    with pytest.raises(DataContractError, match=r"found list of 3 parts"):
        module.training_step([batch.images, batch.coords, batch.probe])
    from tensordict import TensorDict

    with pytest.raises(DataContractError, match="found TensorDict"):
        module.training_step(TensorDict({"images": batch.images, "coords": batch.coords}, batch_size=[3]))


def test_a_trainer_of_one_s_own_predicts(data: PtychoDataModule, tmp_path: Path) -> None:
    module = module_of(data)
    trainer = trainer_of(tmp_path)
    patches = trainer.predict(module, datamodule=data)
    assert torch.cat([each.experiment_ids for each in patches]).tolist() == [0] * 10
    torch.testing.assert_close(torch.cat([each.centres_px for each in patches]), data.dataset.centres_px)
    objects = torch.cat([each.objects for each in patches])
    bare = trainer.predict(module, DataLoader(plain(data.dataset), batch_size=20))
    torch.testing.assert_close(bare[0].objects, objects, rtol=0, atol=2e-6 * float(objects.abs().max()))
    assert bare[0].centres_px is bare[0].experiment_ids is None
    module.predict = True
    with torch.inference_mode():
        torch.testing.assert_close(module(*data.dataset[:4]), objects[:4])


def test_the_data_module_has_the_loaders_of_training(data: PtychoDataModule) -> None:
    training, validation = loaders(data.dataset, SETTINGS.training)
    ours = data.train_dataloader()
    assert ours.state_dict() == training.state_dict()
    assert torch.equal(ours.batch_sampler.groups, training.batch_sampler.groups)
    assert validation is not None
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert isinstance(loader, TensorDictDataLoader)
        assert torch.equal(loader.batch_sampler.groups, validation.batch_sampler.groups)
    assert torch.cat([batch.groups for batch in data.predict_dataloader()]).tolist() == list(range(10))
    everything = SETTINGS.override({"validation_fraction": 0.0})
    without = PtychoDataModule(data._ptycho_dir, settings=everything, data_dir=data._data_dir)
    assert without.val_dataloader() == []
    with pytest.raises(ConfigError, match=r"validation_fraction = 0\.0 holds back none of 10 groups"):
        without.test_dataloader()


def test_dataset_and_loader_say_what_is_in_them(data: PtychoDataModule) -> None:
    dataset = repr(data.dataset)
    for said in ("1 scans: a.npz", "10 patterns", "10 groups", "N = 64", "gridsize = 1", str(data.dataset.map.root)):
        assert said in dataset
    # 10 patterns of 64² float32.
    assert 0.16 < float(dataset.rpartition(", ")[2].removesuffix(" MB)")) < 0.3
    loader = repr(data.train_dataloader())
    assert "5 batches of 2: 9 groups, shuffled with seed 0, of PtychoDataset(" in loader
    assert "in order" in repr(data.predict_dataloader())


@pytest.mark.parametrize("part", ["network", "objects"])
@pytest.mark.filterwarnings("ignore:.*(is_compiling|deprecated).*")
def test_network_and_module_can_be_exported(part: str) -> None:
    """The exported program takes batches of any size and computes the same to the last bit."""
    module = train.PtychoPINN(SETTINGS.override({"gridsize": 2, "nphotons": 1e4})).eval()
    module.predict = part == "objects"
    subject: torch.nn.Module = module.network if part == "network" else module
    generator = torch.Generator().manual_seed(0)

    def batch(groups: int) -> tuple[Tensor, Tensor]:
        images = torch.rand(groups, 4, 64, 64, generator=generator)
        return images, 5 * torch.randn(groups, 4, 1, 2, generator=generator)

    groups = torch.export.Dim("groups", min=1, max=1024)
    program = torch.export.export(subject, batch(3), dynamic_shapes=({0: groups}, {0: groups}), strict=False)
    given = batch(5)
    with torch.no_grad():
        found, expected = program.module()(*given), subject(*given)
    for one, other in zip(found, expected, strict=True) if part == "network" else [(found, expected)]:
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_example_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, but for the length of the run and the width of the network."""
    text = (Path(__file__).parents[2] / "docs" / "workflows" / "pytorch.md").read_text(encoding="utf-8")
    section = text.partition("### With your own Trainer")[2]
    (example,) = [each for each in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if "pl.Trainer" in each]
    for printed, smaller in (
        ("max_epochs=20", "max_epochs=3"),
        ('"gridsize": 1', '"gridsize": 1, "n_filters_scale": 1'),
    ):
        assert example.count(printed) == 1
        example = example.replace(printed, smaller)
    write_scan(tmp_path / "scans" / "a.npz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "pytorch.md", "exec"), names)
    assert len(names["module"].history["train_loss"]) == 3
    assert "torch.Size([8, 1, 64, 64]) torch.Size([8, 2])" in capsys.readouterr().out
    assert list(tmp_path.glob("logs/**/metrics.csv"))
