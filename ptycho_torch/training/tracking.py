"""Tracking of training with MLflow, which never stops training.

``track`` opens a run, has MLflow's autologging record what Lightning does inside, and ends the run. Where MLflow is
not installed, training continues without a record. What a server that is away misses is sent when it is back. How to
use it:
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ptycho_torch.config_params import TrainingSettings
from ptycho_torch.training.interruption import RunInterrupted

__all__ = ["Tracker", "print_auto_logged_info", "record_run", "track"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_URI = "MLFLOW_TRACKING_URI"
_NOWHERE = "closed://tracking"
"""An address that MLflow refuses at once, without a look at the network."""

_BOUNDS = {
    # Two tries of 3 s at most: MLflow's own defaults let a server that hangs hold training for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # MLflow prints links to standard output, and reports its own use to its makers.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its lines about the tables of a new database tell a user nothing.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""What the environment says to MLflow, unless the user has said otherwise."""

_FIRST_ANSWER_S = {"http": 10.0, "https": 10.0}
"""How long the first contact may take; name look-up and several addresses of one host come on top of the tries."""

_DATABASE_S = 180.0
"""The same for a database, which the first run fills with MLflow's tables: 10 s of work, more than 60 s on a busy
machine."""

_UPLOAD_S = 10.0
_UPLOAD_BYTES_PER_S = 5e6
"""A server answers an upload only when the file is where it belongs, often on a second machine."""

_LONGEST_FAILED_UPLOADS_S = 15.0
"""Seconds that uploads which fail may take together; no more are tried then."""

_RETRY_COSTS = 50
_RETRY_S = 5.0
"""A server that failed is tried again after this, and after so many times what the last try took."""

_BATCH = 100
_LONGEST_VALUE = 500
_LONGEST_NAME = 250
_LONGEST_REASON = 300
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_AUTOLOGGING_LOGGER = "mlflow.utils.autologging_utils"
_LATEST_CHECKPOINT = "mlflow.latest_checkpoint_artifact"
"""The tag by which ``mlflow.pytorch.load_checkpoint`` finds the file."""


class Tracker:
    """What a training run tells MLflow; without a run it does nothing.

    Attributes:
        run_id: of the MLflow run; None where nothing is tracked.
        uri: of the store that has the run; None where nothing is tracked.
        callbacks: to give to the Trainer, beside its others.
    """

    def __init__(self, link: _Link | None = None) -> None:
        self._link = link
        self.run_id: str | None = None if link is None else link.run_id
        self.uri: str | None = None if link is None else link.uri
        self.callbacks: list[Callback] = [] if link is None else [_Watch(link)]

    def log_file(self, path: Path | str, *, folder: str) -> None:
        """Copy one file to the run's artifacts, into ``checkpoints`` or ``pictures``.

        A file that does not exist is a warning, because a training that is done should not fail over its record.
        """
        path = Path(path)
        if self._link is None:
            return
        if not path.is_file():
            log.warning("%s is not there, so the MLflow run has no copy of it.", path)
            return
        self._link.upload(path, folder)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add one value to each metric; ``step`` is the epoch."""
        if self._link is not None:
            self._link.log_metrics(metrics, step)


@contextlib.contextmanager
def track(
    settings: TrainingSettings,
    *,
    parameters: Mapping[str, object],
    output_dir: Path | str,
    tags: Mapping[str, str] | None = None,
    continues: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """Open an MLflow run for the training inside, with autologging of Lightning's Trainer.

    The run goes to ``MLFLOW_TRACKING_URI``, or to ``mlruns`` in the working directory. It ends as FINISHED, as FAILED
    after an exception, or as KILLED after an interrupt. A file that the store does not take costs that file, and one
    warning names all of them. A server that fails is left alone, with one warning, and tried again now and then and at
    the end; what it missed is sent then. No model is logged: a checkpoint is a file of weights, given to
    ``Tracker.log_file``.

    Args:
        settings: whether to track, and the names of experiment and run.
        parameters: what the run is made with; values become text of at most 500 characters. Names have a prefix, as in
            ``training.weight_decay``: autologging takes the optimiser's bare names, and MLflow refuses a second value.
        output_dir: where training writes its files, noted with the run; the run has its name where the settings give
            none.
        tags: more of them, cut after 500 characters.
        continues: ``uri`` and ``run_id`` of the MLflow run that a resumed training continues, if it is still there.
            Parameters that are others now are tags ``resumed.NAME`` there, for MLflow lets none change.
    """
    reason = _why_not(settings)
    link = None if reason else _connect(settings, parameters, Path(output_dir), tags or {}, continues or {})
    if reason:
        log.info("This training is not tracked: %s", reason)
    if link is None:
        yield Tracker()
        return
    status = "FAILED"
    try:
        yield Tracker(link)
        status = "FINISHED"
    except BaseException as err:
        status = _status_after(err, link.interrupted)
        raise
    finally:
        link.end(status)


def record_run(
    experiment_name: str,
    run_name: str,
    *,
    parameters: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str | None:
    """Make one finished MLflow run of what is known already, and return its id.

    The run goes where ``track`` would put one. A store that is away costs seconds. It is a warning, as is MLflow that
    is not installed, and None is returned: results do not depend on their record.

    Args:
        experiment_name: made if there is none of this name.
        run_name: of the run.
        parameters: values are cut after 500 characters.
        metrics: one value each.
        tags: values are cut after 500 characters.
        files: copied to the run's artifacts.
    """
    with _environment(), _without_lines_on_retries():
        uri = os.environ.get(_URI, "")
        try:
            mlflow = _import_mlflow()
            uri = _store_uri(mlflow)
            seconds = _FIRST_ANSWER_S.get(uri.partition(":")[0], _DATABASE_S)
            seconds += sum(_UPLOAD_S + path.stat().st_size / _UPLOAD_BYTES_PER_S for path in files)
            make = partial(_make_run, mlflow, uri, experiment_name, run_name, parameters, metrics, tags, files)
            with _without_mlflow_deprecations():
                return _within(seconds, make)
        except ImportError as err:
            log.warning(
                "No MLflow run is made: MLflow cannot be imported (%s); pip install 'ptycho-torch[mlflow]'.", err
            )
        except Exception as err:
            log.warning(
                "No MLflow run is made: MLflow at %s failed (%s). Start the server or correct %s, and run this again.",
                _without_password(uri), _reason(err), _URI,
            )  # fmt: skip
    return None


def _make_run(
    mlflow: Any,
    uri: str,
    experiment_name: str,
    run_name: str,
    parameters: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    client, experiment_id = _open_experiment(mlflow, uri, experiment_name)
    short = {name: value[:_LONGEST_VALUE] for name, value in tags.items()}
    run_id = str(client.create_run(experiment_id, run_name=run_name, tags=short).info.run_id)
    entities, now_ms = mlflow.entities, int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[entities.Metric(name, value, now_ms, 0) for name, value in metrics.items()],
        params=[entities.Param(name, value[:_LONGEST_VALUE]) for name, value in parameters.items()],
    )
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def print_auto_logged_info(run: Any, *, uri: str | None = None) -> None:
    """Print id, artifacts, parameters, metrics and tags of a run, as a summary for interactive sessions.

    Args:
        run: an MLflow run, or its id.
        uri: of the store that has it; None takes the one that ``track`` would use.
    """
    with _environment():
        mlflow = _import_mlflow()
        store = uri or _store_uri(mlflow)
        with _without_mlflow_deprecations():
            client = mlflow.MlflowClient(store)
            run = client.get_run(run) if isinstance(run, str) else run
            artifacts = sorted(_artifacts(client, run.info.run_id, None))
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    print(f"run_id: {run.info.run_id}")  # noqa: T201
    print(f"artifacts: {artifacts}")  # noqa: T201
    print(f"params: {run.data.params}")  # noqa: T201
    print(f"metrics: {run.data.metrics}")  # noqa: T201
    print(f"tags: {tags}")  # noqa: T201


def _artifacts(client: Any, run_id: str, folder: str | None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _artifacts(client, run_id, entry.path)
        else:
            yield entry.path


def _why_not(settings: TrainingSettings) -> str | None:
    if not settings.tracking:
        return "the setting tracking is False; set it to True for an MLflow run."
    for name in _RANKS:
        rank = os.environ.get(name, "")
        if rank.isdigit() and int(rank) > 0:
            return f"this is process {rank} of several ({name}); process 0 has the MLflow run."
    return None


def _import_mlflow() -> Any:
    """Import MLflow with its autologging of Lightning, and leave everyone's logging as it was.

    The import gives the root logger a handler and the level ERROR, which would hide log lines. It imports Lightning
    a second time as well, under its older name, which then takes over the messages of the one in use.
    """
    rank_zero: Any = importlib.import_module("lightning_utilities.core.rank_zero")
    speaker = rank_zero.log
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with _without_mlflow_deprecations():
            mlflow = importlib.import_module("mlflow")
            importlib.import_module("mlflow.pytorch")
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
        root.setLevel(level)
        rank_zero.log = speaker
    return mlflow


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Bound MLflow's patience by environment variables, and restore every variable of MLflow afterwards."""

    def present() -> dict[str, str]:
        # MLflow removes the id of a run that it was told to continue, so that the next run is another one.
        ours = ("MLFLOW_", "_MLFLOW_")
        return {name: text for name, text in os.environ.items() if name.startswith(ours) and name != "MLFLOW_RUN_ID"}

    before = present()
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in present():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _without_lines_on_retries() -> Iterator[None]:
    logger = logging.getLogger("urllib3.connectionpool")
    level = logger.level
    # One warning of ours says it all.
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _without_mlflow_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        # MLflow's tables use a loader that newer SQLAlchemy deprecates.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(mlflow|sqlalchemy)(\.|$)")
        yield


def _local_store() -> Path:
    return Path("mlruns").absolute()


def _store_uri(mlflow: Any) -> str:
    uri = os.environ.get(_URI) or (mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None)
    return str(uri or f"sqlite:///{_local_store() / 'mlflow.db'}")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _reason(error: BaseException | str) -> str:
    """Return why a call failed, on one short line: MLflow wraps the cause into the addresses of several layers."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    _, wrapped, cause = text.rpartition("Caused by ")
    words = (cause.removesuffix(")") if wrapped else cause).split()
    return _without_password(" ".join(words))[:_LONGEST_REASON]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what ``call`` returns, or raise TimeoutError; a call that hangs is left behind in its thread."""
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as err:
            answers.put((None, err))

    threading.Thread(target=work, name="mlflow-first-contact", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _open_experiment(mlflow: Any, uri: str, name: str) -> tuple[Any, str]:
    """Return a client and the id of the experiment, made if need be."""
    folder = _local_store()
    is_ours = uri == f"sqlite:///{folder / 'mlflow.db'}"
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if is_ours:
        folder.mkdir(exist_ok=True)
        # Two trainings that begin together would both make the tables.
        lock = FileLock(folder / "mlflow.lock", timeout=_DATABASE_S)
    with lock:
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = (folder / "artifacts").as_uri() if is_ours else None
            try:
                return client, client.create_experiment(name, artifact_location=location)
            except mlflow.exceptions.MlflowException:
                # Another training may have made it in between.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(
            f"experiment {name!r} is deleted; run `mlflow experiments restore -x {experiment.experiment_id}` "
            "or set another experiment_name"
        )
    return client, experiment.experiment_id


def _connect(
    settings: TrainingSettings,
    parameters: Mapping[str, object],
    output_dir: Path,
    tags: Mapping[str, str],
    continues: Mapping[str, str],
) -> _Link | None:
    """Open the run and switch autologging on, or log why that cannot be."""
    restore = contextlib.ExitStack()
    restore.enter_context(_environment())
    restore.enter_context(_without_lines_on_retries())
    uri = os.environ.get(_URI, "")
    try:
        mlflow = _import_mlflow()
        uri = _store_uri(mlflow)
        pointer = restore.enter_context(contextlib.closing(_Pointer(mlflow)))
        pointer.point_to(uri)
        seconds = _FIRST_ANSWER_S.get(uri.partition(":")[0], _DATABASE_S)
        with _without_mlflow_deprecations():
            client, experiment_id = _within(seconds, partial(_open_experiment, mlflow, uri, settings.experiment_name))
            tags = {"output_dir": str(output_dir.absolute()), **tags}
            tags = {name: value[:_LONGEST_VALUE] for name, value in tags.items()}
            nested = mlflow.active_run() is not None
            if continues.get("uri") == uri and _is_there(client, continues["run_id"]):
                run = mlflow.start_run(run_id=continues["run_id"], nested=nested, tags=tags)
            else:
                run = mlflow.start_run(
                    experiment_id=experiment_id,
                    run_name=settings.run_name or output_dir.absolute().name,
                    nested=nested,
                    tags=tags,
                )
        link = _Link(mlflow, client, run.info.run_id, uri, pointer, restore)
    except Exception as err:
        restore.close()
        if isinstance(err, ImportError):
            log.info(
                "This training is not tracked: MLflow cannot be imported (%s); pip install 'ptycho-torch[mlflow]' to "
                "have a record of each run.", err,
            )  # fmt: skip
            return None
        log.warning(
            "This training is not tracked: MLflow at %s failed (%s). Start the server or correct %s, or unset it to "
            "have the run in %s; set tracking to False to do without.",
            _without_password(uri), _reason(err), _URI, _local_store(),
        )  # fmt: skip
        return None
    link.begin(parameters)
    if link.is_open:
        shown = _without_password(uri)
        look = f"at {shown}" if shown.startswith("http") else f"with: mlflow ui --backend-store-uri {shown}"
        log.info("MLflow run %s of experiment %r; look at it %s", link.run_id, settings.experiment_name, look)
    return link


def _is_there(client: Any, run_id: str) -> bool:
    """Whether a run can go on: a server answers, and the run was not deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except Exception as err:
        log.info("MLflow run %s cannot be continued (%s); there will be a new one.", run_id, _reason(err))
        return False


class _Pointer:
    """Where MLflow's global functions go, put back on close."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._set_in_code: str | None = None

    def point_to(self, uri: str) -> None:
        os.environ[_URI] = uri
        before = self._mlflow.get_tracking_uri()
        if before != uri:
            # Someone has called set_tracking_uri, which wins over the variable.
            self._set_in_code = self._set_in_code or before
            self._mlflow.set_tracking_uri(uri)

    def close(self) -> None:
        if self._set_in_code is not None:
            self._mlflow.set_tracking_uri(self._set_in_code)


class _Link:
    """One open run; a call that fails closes it, so that a dead server costs little, until it is tried again."""

    def __init__(
        self, mlflow: Any, client: Any, run_id: str, uri: str, pointer: _Pointer, restore: contextlib.ExitStack
    ) -> None:
        self._mlflow = mlflow
        self._client = client
        self._pointer = pointer
        self._restore = restore
        self._trainers: list[pl.Trainer] = []
        self.run_id = run_id
        self.uri = uri
        self.is_open = True
        self.interrupted = False
        self.autologs = False
        self._continued = False
        self._misses = False
        self._noted: dict[str, dict[int, float]] = {}
        self._waiting: list[tuple[Path, str]] = []
        self._refused: dict[str, str] = {}
        self._failed_uploads_s = 0.0
        self._retry_at_s = 0.0

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        """Make one call to MLflow, if none has failed before."""
        if not self.is_open:
            return
        begun_s = time.monotonic()
        try:
            with _without_mlflow_deprecations():
                call()
        except Exception as err:
            self.fail(what, _reason(err), time.monotonic() - begun_s)

    def fail(self, what: str, reason: str, took_s: float = 0.0) -> None:
        """Make no calls for now, neither from here nor from autologging, which is not switched on again."""
        if not self.is_open:
            return
        self.is_open = False
        again = self._retry_at_s > 0
        self._retry_at_s = time.monotonic() + max(_RETRY_S, _RETRY_COSTS * took_s)
        self._end_autologging()
        # What autologging still does at the end of fit fails there at once, without a look at the network.
        self._pointer.point_to(_NOWHERE)
        if not again:
            log.warning(
                "MLflow at %s failed %s (%s). Training continues; run %s gets what it misses when MLflow is back.",
                _without_password(self.uri), what, reason, self.run_id,
            )  # fmt: skip

    def fail_in_autologging(self, reason: str) -> None:
        """Record without autologging; what failed there may be a file of its own, which the store did not take."""
        if not self.is_open or not self.autologs:
            return
        log.info("MLflow's autologging failed (%s); the metrics of run %s are sent without it.", reason, self.run_id)
        self._end_autologging()
        self.attempt("to answer", partial(self._client.get_run, self.run_id))

    def _end_autologging(self) -> None:
        self.autologs, self._misses = False, True
        for _, callback in self._autologging_callbacks():
            for name in dir(Callback):
                if name.startswith("on_"):
                    # Lightning may be walking along its list of callbacks, so this one stays in it and does nothing.
                    setattr(callback, name, _do_nothing)

    def revive(self, *, now: bool = False) -> None:
        """Try a server again that has failed, and send the metrics that it misses."""
        if self.is_open or (not now and time.monotonic() < self._retry_at_s):
            return
        self.is_open = True
        self._pointer.point_to(self.uri)
        self.attempt("to answer", self._send_missing)

    def _send_missing(self) -> None:
        now_ms = int(time.time() * 1000)
        for name, values in self._noted.items():
            there = {metric.step for metric in self._client.get_metric_history(self.run_id, name)}
            missing = [
                self._mlflow.entities.Metric(name, value, now_ms, step)
                for step, value in values.items()
                if step not in there
            ]
            for first in range(0, len(missing), _BATCH):
                self._client.log_batch(self.run_id, metrics=missing[first : first + _BATCH])
        self._misses = False

    def begin(self, parameters: Mapping[str, object]) -> None:
        given = {name[:_LONGEST_NAME]: str(value)[:_LONGEST_VALUE] for name, value in parameters.items()}
        self.attempt("to take the parameters", partial(self._send_parameters, given))
        # Autologging gives the parameters of the optimiser and the epochs, which MLflow refuses where they are others.
        if not self._continued:
            self.attempt("to switch autologging on", self._switch_autologging_on)

    def _send_parameters(self, given: Mapping[str, str]) -> None:
        entities = self._mlflow.entities
        there = self._client.get_run(self.run_id).data.params
        self._continued = bool(there)
        tags = [
            entities.RunTag(f"resumed.{name}", value)
            for name, value in given.items()
            if there.get(name, value) != value
        ]
        params = [entities.Param(name, value) for name, value in given.items() if name not in there]
        for first in range(0, len(params), _BATCH):
            self._client.log_batch(self.run_id, params=params[first : first + _BATCH])
        for first in range(0, len(tags), _BATCH):
            self._client.log_batch(self.run_id, tags=tags[first : first + _BATCH])

    def _switch_autologging_on(self) -> None:
        integrations = importlib.import_module("mlflow.utils.autologging_utils").AUTOLOGGING_INTEGRATIONS
        before = dict(integrations.get("pytorch", {}))
        autolog = self._mlflow.pytorch.autolog

        def switch_back() -> None:
            autolog(disable=True)
            if not before.get("disable", True):
                autolog(**before)

        self._restore.callback(switch_back)
        logger, listener = logging.getLogger(_AUTOLOGGING_LOGGER), _Listener(self)
        logger.addFilter(listener)
        self._restore.callback(logger.removeFilter, listener)
        # Its checkpoints would write and send everything a second time after each good epoch, while training waits.
        autolog(log_models=False, log_datasets=False, checkpoint=False, silent=True)
        self.autologs = True

    def note(self, metrics: Mapping[str, float], step: int) -> None:
        """Remember metrics, for a server that misses them."""
        for name, value in metrics.items():
            self._noted.setdefault(name[:_LONGEST_NAME], {})[step] = float(value)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.note(metrics, step)
        now_ms = int(time.time() * 1000)
        batch = [
            self._mlflow.entities.Metric(name[:_LONGEST_NAME], float(value), now_ms, step)
            for name, value in metrics.items()
        ]
        self.attempt("to take metrics", partial(self._client.log_batch, self.run_id, metrics=batch))

    def upload(self, path: Path, folder: str) -> None:
        self.revive()
        # An upload has more time, which a server that is away should not cost.
        self.attempt("to answer", partial(self._client.get_run, self.run_id))
        if not self.is_open:
            self._waiting.append((path, folder))
            return
        if self._failed_uploads_s > _LONGEST_FAILED_UPLOADS_S:
            self._refused[path.name] = "others took too long"
            return
        patience = {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(_UPLOAD_S + path.stat().st_size / _UPLOAD_BYTES_PER_S)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        before = {name: os.environ[name] for name in patience}
        for name, value in patience.items():
            if before[name] == _BOUNDS[name]:
                os.environ[name] = value
        begun_s = time.monotonic()
        try:
            with _without_mlflow_deprecations():
                self._client.log_artifact(self.run_id, str(path), folder)
        except Exception as err:
            # The store of the files may be another machine than the server, which runs on.
            self._refused[path.name] = _reason(err)
            self._failed_uploads_s += time.monotonic() - begun_s
            return
        finally:
            os.environ.update(before)
        if folder == "checkpoints":
            tag = partial(self._client.set_tag, self.run_id, _LATEST_CHECKPOINT, f"{folder}/{path.name}")
            self.attempt("to take a tag", tag)

    def watch(self, trainer: pl.Trainer) -> None:
        if trainer not in self._trainers:
            self._trainers.append(trainer)

    def _autologging_callbacks(self) -> list[tuple[list[Any], Any]]:
        """Return each callback that autologging has put into a Trainer, with the list that it is in."""
        lists: list[list[Any]] = [trainer.callbacks for trainer in self._trainers]  # type: ignore[attr-defined]
        return [(there, one) for there in lists for one in there if type(one).__module__.startswith("mlflow.")]

    def flush(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Send the metrics that autologging holds back for larger batches; it does so itself when fit succeeds."""
        for _, callback in self._autologging_callbacks():
            callback.on_train_end(trainer, module)

    def end(self, status: str) -> None:
        self.revive(now=True)
        if self._misses:
            self.attempt("to take metrics", self._send_missing)
        waiting, self._waiting = self._waiting, []
        for path, folder in waiting if self.is_open else ():
            self.upload(path, folder)
        if self._refused:
            log.warning(
                "MLflow at %s did not take %s (%s); the files stay where they are.",
                _without_password(self.uri), ", ".join(self._refused), next(iter(self._refused.values())),
            )  # fmt: skip
        active = self._mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            # This takes the run off MLflow's stack first, and only then tells the store.
            self.attempt("to end the run", partial(self._mlflow.end_run, status))
            if not self.is_open:
                with contextlib.suppress(Exception):
                    self._mlflow.end_run(status)
        else:
            self.attempt("to end the run", partial(self._client.set_terminated, self.run_id, status))
        self.is_open, self._retry_at_s = False, math.inf
        for there, callback in self._autologging_callbacks():
            there.remove(callback)
        self._restore.close()


def _do_nothing(*_: object, **__: object) -> None:
    pass


class _Listener(logging.Filter):
    """Hears of what failed within autologging, which MLflow only logs, and keeps that line from the log."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith("Encountered unexpected error"):
            return True
        self._link.fail_in_autologging(_reason(message.partition(": ")[2]))
        return False


class _Watch(Callback):
    """Logs the seconds of each epoch, and so notices soon that the store is away."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._begun_s = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._link.watch(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun_s = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = {"epoch_seconds": time.monotonic() - self._begun_s}
        losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._link.revive()
        if self._link.autologs:
            self._link.note(losses, trainer.current_epoch)
        else:
            own |= losses
        self._link.log_metrics(own, trainer.current_epoch)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning turns an interrupt into SystemExit before it leaves fit.
        self._link.interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException | RunInterrupted)
        self._link.flush(trainer, pl_module)


def _status_after(error: BaseException, interrupted: bool) -> str:
    if interrupted or isinstance(error, KeyboardInterrupt | SIGTERMException | RunInterrupted):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and not error.code else "FAILED"
