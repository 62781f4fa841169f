from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_utilities.core import rank_zero
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ptycho_torch.config_params import TrainingSettings
from ptycho_torch.training import tracking
from tests.support.training_runs import SMALL, write_scan

pytestmark = [
    # Lightning calls what newer versions of torch deprecate, and recommends more workers for the loader.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches.*"),
    # MLflow's tables, where a test is the first to look at a store of its own.
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]

EPOCHS = 4
PARAMETERS: dict[str, object] = {"learning_rate": 0.01, "scheduler": "Default", **{f"p{n}": n for n in range(120)}}

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")


class Line(pl.LightningModule):
    """y = a·x + b, with the metrics that PtychoPINN logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("learning_rate", 0.01, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Hook(pl.Callback):
    """Does something at the end of one epoch, and counts epochs."""

    def __init__(self, epoch: int, act: Callable[[], object]) -> None:
        self.epoch, self.act, self.epochs = epoch, act, 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        if trainer.current_epoch == self.epoch:
            self.act()


class Server:
    """A real `mlflow server` on loopback, started again on the same store after it was killed."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options or ("--artifacts-destination", str(folder / "artifacts"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        # Without its job runner the server is there in a third of the time.
        extra = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log.txt").open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'store.db'}"),
                    *self.options,
                ],
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env={**os.environ, **extra},
                start_new_session=True,
            )

    def wait(self) -> None:
        self.start()
        assert self.process is not None
        last = time.monotonic() + 120
        while time.monotonic() < last and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.1)
        pytest.fail(f"mlflow server did not start:\n{(self.folder / 'log.txt').read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Listener:
    """Takes the place of a server: accepts and never answers, or hangs up at once; counts what comes."""

    def __init__(self, *, hangs_up: bool, port: int = 0) -> None:
        self.hangs_up = hangs_up
        self.connections: list[socket.socket] = []
        last = time.monotonic() + 10
        while True:
            try:
                self._socket = socket.create_server(("127.0.0.1", port))
                break
            except OSError:
                # A killed server leaves its port a moment later.
                assert time.monotonic() < last
                time.sleep(0.05)
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections.append(connection)
                if self.hangs_up:
                    connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # Closing alone does not end an accept that waits.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, alive, as MLFLOW_TRACKING_URI."""
    one_server.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    return one_server


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No run of MLflow's, in an empty folder; and nothing of MLflow's state is different afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")] + ["RANK", "LOCAL_RANK", "SLURM_PROCID"]:
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO, logger="ptycho_torch.training.tracking")
    fit = pl.Trainer.fit
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    speaker = rank_zero.log
    yield
    assert pl.Trainer.fit is fit
    assert rank_zero.log is speaker
    assert list(root.handlers) == handlers
    assert root.level == level


def mlflow_state() -> tuple[object, ...]:
    import mlflow
    from mlflow.utils.autologging_utils import autologging_is_disabled

    variables = {name: text for name, text in os.environ.items() if "MLFLOW_" in name}
    return (
        variables,
        mlflow.is_tracking_uri_set(),
        mlflow.get_tracking_uri(),
        mlflow.active_run(),
        autologging_is_disabled("pytorch"),
    )


def client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def settings(**changes: Any) -> TrainingSettings:
    return dataclasses.replace(TrainingSettings(), **changes)


def fit(tracker: tracking.Tracker, *callbacks: pl.Callback, epochs: int = EPOCHS) -> pl.Trainer:
    x = torch.linspace(-1, 1, 8)[:, None]
    batches: DataLoader = DataLoader(TensorDataset(x, 2 * x + 1), batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *tracker.callbacks],
    )
    trainer.fit(Line(), batches, batches)
    return trainer


def artifacts(mlflow_client: Any, run_id: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in mlflow_client.list_artifacts(run_id, folder):
        found |= artifacts(mlflow_client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "ptycho_torch.training.tracking" and r.levelno == level]


def check_whole_run(uri: str, run_id: str) -> None:
    mlflow_client = client(uri)
    run = mlflow_client.get_run(run_id)
    assert mlflow_client.get_experiment(run.info.experiment_id).name == "PtychoPINN vanilla"
    assert run.info.status == "FINISHED"
    assert {name: run.data.params[name] for name in PARAMETERS} == {k: str(v) for k, v in PARAMETERS.items()}
    assert run.data.params["optimizer_name"] == "SGD"
    for name in ("train_loss", "val_loss", "learning_rate", "epoch_seconds"):
        steps = [metric.step for metric in mlflow_client.get_metric_history(run_id, name)]
        assert sorted(steps) == list(range(EPOCHS)), name
    assert mlflow_client.get_metric_history(run_id, "frc")[0].step == 3
    found = artifacts(mlflow_client, run_id)
    # Nothing but these: no MLmodel, no python_model.pkl, no model.pth.
    assert found == {"checkpoints/last.ckpt", "pictures/object.png", "model_summary.txt"}
    assert run.data.tags["mlflow.latest_checkpoint_artifact"] == "checkpoints/last.ckpt"


def run_whole_training(tmp_path: Path, **changes: Any) -> tracking.Tracker:
    checkpoint, picture = tmp_path / "last.ckpt", tmp_path / "object.png"
    torch.save({"layer.weight": torch.ones(1)}, checkpoint)
    picture.write_bytes(b"\x89PNG")
    with tracking.track(settings(**changes), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
        trainer = fit(tracker)
        tracker.log_file(checkpoint, folder="checkpoints")
        tracker.log_file(picture, folder="pictures")
        tracker.log_metrics({"frc": 0.5}, step=3)
    assert trainer.current_epoch == EPOCHS
    assert not [callback for callback in trainer.callbacks if type(callback).__module__.startswith("mlflow")]
    # Afterwards it does nothing.
    tracker.log_file(picture, folder="elsewhere")
    return tracker


@needs_mlflow
@pytest.mark.usefixtures("one_server")  # It starts up in the meantime.
def test_the_default_store_is_in_mlruns_of_the_working_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mlflow_state()
    tracker = run_whole_training(tmp_path)
    assert mlflow_state() == before
    assert tracker.uri == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert tracker.run_id is not None
    check_whole_run(tracker.uri, tracker.run_id)
    assert list(tmp_path.glob("mlruns/artifacts/*/artifacts/checkpoints/last.ckpt"))
    [line] = messages(caplog, logging.INFO)
    assert f"mlflow ui --backend-store-uri {tracker.uri}" in line
    assert not messages(caplog, logging.WARNING)
    capsys.readouterr()
    tracking.print_auto_logged_info(tracker.run_id)
    shown = capsys.readouterr().out
    assert f"run_id: {tracker.run_id}" in shown
    assert "checkpoints/last.ckpt" in shown
    assert "'scheduler': 'Default'" in shown
    assert "'val_loss': " in shown
    assert "mlflow." not in shown.split("tags:")[1].replace("mlflow.db", "")
    assert mlflow_state() == before


@needs_mlflow
def test_a_server_has_parameters_metrics_checkpoint_and_pictures(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mlflow_state()
    tracker = run_whole_training(tmp_path, run_name="siemens star")
    assert mlflow_state() == before
    assert tracker.uri == server.uri
    assert tracker.run_id is not None
    check_whole_run(server.uri, tracker.run_id)
    run = client(server.uri).get_run(tracker.run_id)
    assert run.info.run_name == "siemens star"
    assert not (tmp_path / "mlruns").exists()
    assert not messages(caplog, logging.WARNING)
    assert capsys.readouterr().out == ""
    tracking.print_auto_logged_info(run)
    assert "pictures/object.png" in capsys.readouterr().out


@needs_mlflow
@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FINISHED")]
)
def test_the_run_ends_as_training_did(error: type[BaseException], status: str, server: Server, tmp_path: Path) -> None:
    before = mlflow_state()
    with pytest.raises(error), tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
        raise error
    assert client(server.uri).get_run(tracker.run_id).info.status == status
    assert mlflow_state() == before


@needs_mlflow
@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_training_that_is_broken_off_keeps_the_metrics_of_its_epochs(
    error: type[BaseException], status: str, server: Server, tmp_path: Path
) -> None:
    def stop() -> None:
        raise error

    handler = signal.getsignal(signal.SIGINT)
    try:
        with (
            pytest.raises((error, SystemExit)),
            tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker,
        ):
            fit(tracker, Hook(2, stop))
    finally:
        # Lightning leaves the process deaf to interrupts.
        signal.signal(signal.SIGINT, handler)
    run = client(server.uri).get_run(tracker.run_id)
    assert run.info.status == status
    history = client(server.uri).get_metric_history(tracker.run_id, "train_loss")
    assert sorted(metric.step for metric in history) == [0, 1]


@needs_mlflow
def test_a_server_that_never_answers_is_left_alone_after_its_first_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking._BOUNDS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    listener = Listener(hangs_up=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", listener.uri)
    before = mlflow_state()
    with tracking.track(settings(), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
        assert tracker.run_id is None
        assert tracker.uri is None
        assert fit(tracker).current_epoch == EPOCHS
    listener.close()
    assert len(listener.connections) == 2
    [line] = messages(caplog, logging.WARNING)
    assert "This training is not tracked" in line
    assert "Start the server or correct MLFLOW_TRACKING_URI" in line
    assert mlflow_state() == before


@needs_mlflow
def test_a_server_that_stops_answering_is_left_alone_after_one_call(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from requests.adapters import HTTPAdapter

    monkeypatch.setitem(tracking._BOUNDS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    requests: list[str] = []
    send = HTTPAdapter.send

    def counted(self: HTTPAdapter, request: Any, *args: Any, **kwargs: Any) -> Any:
        requests.append(request.url)
        return send(self, request, *args, **kwargs)

    def hang() -> None:
        server.signal(signal.SIGSTOP)
        monkeypatch.setattr(HTTPAdapter, "send", counted)

    hook = Hook(0, hang)
    try:
        with tracking.track(settings(), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
            fit(tracker, hook)
            tracker.log_metrics({"frc": 0.5})
    finally:
        server.signal(signal.SIGCONT)
    assert hook.epochs == EPOCHS
    # One call while training runs, and one more try when it ends.
    assert len(requests) == 2
    assert len(messages(caplog, logging.WARNING)) == 1


@needs_mlflow
def test_what_fails_within_autologging_is_sent_without_it(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.utils.autologging_utils import BatchMetricsLogger

    calls: list[int] = []

    def refuse(self: BatchMetricsLogger, metrics: object, step: int) -> None:
        calls.append(step)
        raise OSError("the disk is full")

    monkeypatch.setattr(BatchMetricsLogger, "record_metrics", refuse)
    with tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
        assert fit(tracker).current_epoch == EPOCHS
    assert calls == [0]
    # What autologging did not send is sent without it.
    assert messages(caplog, logging.WARNING) == []
    assert any("autologging failed (the disk is full)" in line for line in messages(caplog, logging.INFO))
    run = client(server.uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client(server.uri).get_metric_history(tracker.run_id, "train_loss")]
    assert sorted(steps) == list(range(EPOCHS))


@needs_mlflow
@pytest.mark.parametrize("uri", ["nonsense://nowhere", "http://user:secret@127.0.0.1:9", "http://"])
def test_an_address_that_cannot_be_used_is_a_warning_without_its_password(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = mlflow_state()
    with tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
        assert tracker.callbacks == []
    [line] = messages(caplog, logging.WARNING)
    assert "not tracked" in line
    assert "secret" not in line
    assert mlflow_state() == before


@needs_mlflow
def test_a_first_contact_without_end_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(tracking, "_open_experiment", lambda *_: never.wait())
    monkeypatch.setitem(tracking._FIRST_ANSWER_S, "http", 0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
        assert tracker.run_id is None
    never.set()
    assert "no answer within 0.1 s" in messages(caplog, logging.WARNING)[0]


@needs_mlflow
def test_what_the_user_has_set_stays(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "17")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(server.uri)
    try:
        mlflow.pytorch.autolog(log_every_n_epoch=2, log_models=False, silent=True)
        before = mlflow_state()
        with tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
            assert tracker.uri == server.uri
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "17"
        assert mlflow_state() == before
        assert mlflow.get_tracking_uri() == server.uri
    finally:
        mlflow.pytorch.autolog(disable=True)
        mlflow.set_tracking_uri(None)


@needs_mlflow
def test_a_file_that_is_not_there_is_a_warning(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.track(settings(), parameters={"long": "x" * 900}, output_dir=tmp_path) as tracker:
        tracker.log_file(tmp_path / "no.png", folder="pictures")
        tracker.log_metrics({"frc": 1.0})
    assert "no.png is not there" in messages(caplog, logging.WARNING)[0]
    run = client(server.uri).get_run(tracker.run_id)
    assert run.data.metrics == {"frc": 1.0}
    assert run.data.params == {"long": "x" * 500}


def test_training_works_without_mlflow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with tracking.track(settings(), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
        assert fit(tracker).current_epoch == EPOCHS
        tracker.log_file(tmp_path / "no.png", folder="pictures")
        tracker.log_metrics({"frc": 0.5}, step=3)
    assert (tracker.run_id, tracker.uri, tracker.callbacks) == (None, None, [])
    [line] = messages(caplog, logging.INFO)
    assert "pip install 'ptycho-torch[mlflow]'" in line
    assert not list(tmp_path.iterdir())


def test_tracking_can_be_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracking.track(settings(tracking=False), parameters={}, output_dir=tmp_path) as tracker:
        assert tracker.run_id is None
    assert "set it to True" in messages(caplog, logging.INFO)[0]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_of_several_processes_tracks(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with tracking.track(settings(), parameters={}, output_dir=tmp_path) as tracker:
        assert tracker.run_id is None
    assert f"process 1 of several ({name})" in messages(caplog, logging.INFO)[0]


@needs_mlflow
def test_training_ends_although_the_server_is_killed(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = mlflow_state()
    listeners: list[Listener] = []

    def kill() -> None:
        server.kill()
        listeners.append(Listener(hangs_up=True, port=server.port))

    hook = Hook(1, kill)
    try:
        with tracking.track(settings(max_epochs=9), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
            trainer = fit(tracker, hook, epochs=9)
            checkpoint = tmp_path / "last.ckpt"
            checkpoint.write_bytes(b"weights")
            tracker.log_file(checkpoint, folder="checkpoints")
            tracker.log_metrics({"frc": 0.5})
    finally:
        for listener in listeners:
            listener.close()
    assert not [callback for callback in trainer.callbacks if type(callback).__module__.startswith("mlflow")]
    assert hook.epochs == 9
    # One call with its one retry, in place of a call in each of the epochs that are left; and the same at the end.
    assert len(listeners[0].connections) == 4
    [line] = messages(caplog, logging.WARNING)
    assert f"MLflow at {server.uri} failed" in line
    assert "Training continues" in line
    assert mlflow_state() == before
    assert tracker.run_id is not None
    run = client(f"sqlite:///{server.folder / 'store.db'}").get_run(tracker.run_id)
    assert run.data.params["learning_rate"] == "0.01"
    assert "train_loss" in run.data.metrics


@needs_mlflow
@pytest.mark.parametrize("killed", [False, True])
def test_the_whole_of_training_is_on_the_server_or_goes_on_without_it(
    killed: bool, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    from ptycho_torch import train
    from ptycho_torch.config_params import Settings

    ends = train.PtychoPINN.on_train_epoch_end

    def kill(module: train.PtychoPINN) -> None:
        ends(module)
        if killed and module.current_epoch == 1:
            server.kill()

    monkeypatch.setattr(train.PtychoPINN, "on_train_epoch_end", kill)
    scan = write_scan(tmp_path / "scans" / "star.npz")
    result = train.main(
        scan,
        settings=Settings().override(SMALL | {"tracking": True, "max_epochs": 4}),
        output_dir="out",
        progress=False,
    )
    assert len(result.history["train_loss"]) == 4
    assert result.checkpoint.is_file()
    assert len(messages(caplog, logging.WARNING)) == int(killed)
    assert result.run_id is not None
    if killed:
        return
    found = client(server.uri)
    run = found.get_run(result.run_id)
    assert found.get_experiment(run.info.experiment_id).name == "PtychoPINN vanilla"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.max_epochs"] == "4"
    assert run.data.params["network.n_filters_scale"] == "1"
    for name in ("train_loss", "val_loss", "learning_rate"):
        values = [metric.value for metric in found.get_metric_history(result.run_id, name)]
        assert values == pytest.approx(result.history[name], rel=1e-6)
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= artifacts(found, result.run_id, "checkpoints")
    pictures = artifacts(found, result.run_id, "pictures")
    assert {"pictures/star.png", "pictures/star_colour.png", "pictures/history.png"} <= pictures


# ------------------------------------------------------------------------------------------------- what a store misses


@pytest.fixture(scope="module")
def storeless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose files go to a store that this client cannot write to."""
    server = Server(
        tmp_path_factory.mktemp("storeless"), "--no-serve-artifacts", "--default-artifact-root", "s3://no/x"
    )
    server.start()
    yield server
    server.kill()


@needs_mlflow
@pytest.mark.parametrize("store", ["s3 without boto3", "a path that is not there", "a full disk"])
def test_a_file_that_is_not_taken_costs_that_file(
    store: str,
    storeless: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    storeless.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", storeless.uri)
    if store != "s3 without boto3":
        error = PermissionError("/srv/artifacts") if "path" in store else OSError(28, "No space left on device")

        def refuse(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    files = [tmp_path / name for name in ("last.ckpt", "best.ckpt", "history.png")]
    with tracking.track(settings(), parameters=PARAMETERS, output_dir=tmp_path / "my run") as tracker:
        fit(tracker)
        for file in files:
            file.write_bytes(b"content")
            tracker.log_file(file, folder="checkpoints")
            tracker.log_metrics({"after": 1.0}, step=files.index(file))
    [line] = messages(caplog, logging.WARNING)
    assert "did not take last.ckpt, best.ckpt, history.png (" in line
    run = client(storeless.uri).get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "my run")
    assert run.info.end_time is not None
    for name, steps in (("train_loss", EPOCHS), ("epoch_seconds", EPOCHS), ("after", 3)):
        history = client(storeless.uri).get_metric_history(tracker.run_id, name)
        assert sorted(metric.step for metric in history) == list(range(steps)), name


@needs_mlflow
@pytest.mark.parametrize("back", ["while it trains", "before the end"])
def test_a_server_that_is_back_has_all_of_the_run(
    back: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_S", 0.0 if back == "while it trains" else 1000.0)
    monkeypatch.setattr(tracking, "_RETRY_COSTS", 0)

    def restart() -> None:
        server.wait()
        seen.append(len(client(server.uri).get_metric_history(tracker.run_id, "train_loss")))

    seen: list[int] = []
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    with tracking.track(settings(), parameters=PARAMETERS, output_dir=tmp_path) as tracker:
        fit(tracker, Hook(0, server.kill), Hook(1, restart))
        tracker.log_file(checkpoint, folder="checkpoints")
        tracker.log_metrics({"frc": 0.5}, step=3)
    assert len(messages(caplog, logging.WARNING)) == 1
    check = client(server.uri)
    run = check.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["frc"]) == ("FINISHED", 0.5)
    for name in ("train_loss", "val_loss", "epoch_seconds"):
        steps = [metric.step for metric in check.get_metric_history(tracker.run_id, name)]
        assert sorted(steps) == list(range(EPOCHS)), name
    assert "checkpoints/last.ckpt" in artifacts(check, tracker.run_id)


@needs_mlflow
def test_a_resumed_training_goes_on_in_its_mlflow_run(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    from ptycho_torch import train
    from ptycho_torch.config_params import Settings

    scan = write_scan(tmp_path / "scans" / "star.npz", patterns=12)
    names: dict[str, Any] = {"output_dir": "night 7", "progress": False, "reconstruct": False}
    own = Settings().override(SMALL | {"tracking": True, "max_epochs": 1, "scheduler": "Default"})
    first = train.main(scan, settings=own, **names)
    again = train.main(scan, resume=first.checkpoint, max_epochs=2, **names)
    assert again.run_id == first.run_id
    assert messages(caplog, logging.WARNING) == []
    run = client(server.uri).get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "night 7")
    assert run.data.params["training.max_epochs"] == "1"
    assert run.data.tags["resumed.training.max_epochs"] == "2"
    for name in ("train_loss", "val_loss", "learning_rate", "epoch_seconds"):
        steps = [metric.step for metric in client(server.uri).get_metric_history(first.run_id, name)]
        assert sorted(steps) == [0, 1], name
    assert run.data.tags["scan.star"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert run.data.tags["version.torch"] == torch.__version__
    # A run that is gone is replaced.
    client(server.uri).delete_run(first.run_id)
    third = train.main(scan, resume=first.checkpoint, max_epochs=3, **names)
    assert third.run_id not in (None, first.run_id)


def test_mlflow_says_no_more_than_warnings_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    with tracking._environment():
        assert os.environ["MLFLOW_LOGGING_LEVEL"] == "WARNING"
    assert "MLFLOW_LOGGING_LEVEL" not in os.environ
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "DEBUG")
    with tracking._environment():
        assert os.environ["MLFLOW_LOGGING_LEVEL"] == "DEBUG"
