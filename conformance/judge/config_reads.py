"""Which settings are really read, and by whom: clauses CONFIG-06 and CONFIG-07.

While ``recorded`` is in force, every read of a settings class is noted with the function that it comes from. The checks
that settings make of themselves do not count, nor do copies of all settings at once. A read in a property counts for
whoever asked for the property.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np

from conformance.judge.data_parity import draw_scan
from ptycho_torch import config_params
from ptycho_torch.config_params import (
    DataSettings,
    LossWeights,
    ModelSettings,
    NetworkSettings,
    Settings,
    TrainingSettings,
)
from ptycho_torch.contracts.config_schema import ConfigurationSchema, Setting

SIDES: Mapping[str, str] = types.MappingProxyType({"torch": "ptycho_torch", "keras": "ptycho_tf_bridge"})
"""Reader of the schema → the package whose code it is."""

_OWNERS: Mapping[str, type] = types.MappingProxyType(
    {"model": ModelSettings, "training": TrainingSettings, "data": DataSettings}
)
_CARRIERS: tuple[type, ...] = (NetworkSettings, LossWeights)
"""What settings are turned into on their way to the network and the loss."""

PATTERNS, SIDE_PX = 12, 64
"""Size of the scan that is trained on."""

_NEW = itertools.count(2)


@dataclasses.dataclass(frozen=True)
class Reads:
    """What was read.

    Attributes:
        readers: (name of the class, field) → the functions that read it, with their modules.
    """

    readers: Mapping[tuple[str, str], Collection[str]]

    def of(self, setting: Setting, side: str) -> tuple[str, ...]:
        """Return who reads a setting on one side; empty if it is not read, or does not arrive where it is used.

        On the side ``torch``, a setting that network or loss have too must be read there as well as where it is set.
        """
        places = [kind for kind in _CARRIERS if setting.name in _fields(kind)]
        if side == "torch":
            places.append(_OWNERS[setting.owner])
        found = [self._by(side, kind, setting.name) for kind in places]
        return tuple(sorted({name for names in found for name in names})) if found and all(found) else ()

    def _by(self, side: str, kind: type, name: str) -> list[str]:
        package = f"{SIDES[side]}."
        return [reader for reader in self.readers.get((kind.__name__, name), ()) if reader.startswith(package)]


def findings(schema: ConfigurationSchema, side: str, reads: Reads) -> dict[str, str]:
    """Say what is read otherwise than the schema says: setting → a sentence; empty where all is as specified."""
    found = {}
    for name, setting in schema.settings.items():
        readers, specified = reads.of(setting, side), side in schema.readers[name].by
        if specified and not readers:
            found[name] = f"{name} ({setting.owner}): {side} is among its readers, but nothing there reads it."
        elif readers and not specified:
            found[name] = (
                f"{name} ({setting.owner}): {', '.join(readers)} reads it, but {side} is not among its readers. "
                f"{schema.readers[name].reason}"
            )
    return found


@contextlib.contextmanager
def recorded() -> Iterator[Reads]:
    """Note every read of a setting for the time of the context."""
    readers: dict[tuple[str, str], set[str]] = {}
    kinds = (*_OWNERS.values(), *_CARRIERS)
    with contextlib.ExitStack() as undo:
        for kind in kinds:
            undo.enter_context(mock.patch.object(kind, "__getattribute__", _noting(kind, readers)))
        yield Reads(readers)


def _noting(kind: type, readers: dict[tuple[str, str], set[str]]) -> Any:
    fields = _fields(kind)

    def read(self: object, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in fields and (reader := _reader(sys._getframe(1))):
            readers.setdefault((kind.__name__, name), set()).add(reader)
        return value

    return read


def _reader(frame: FrameType | None) -> str:
    """Name the function that wants a value; empty where the settings look at themselves, or all are copied."""
    while frame is not None:
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        # Methods that dataclasses write, such as __eq__, have no file.
        if module == "dataclasses" or code.co_filename == "<string>":
            return ""
        if module == config_params.__name__ and code.co_name == "__post_init__":
            return ""
        # The note of a read stands between a property and whoever asked for it.
        if module not in (config_params.__name__, __name__):
            return f"{module}.{code.co_qualname}"
        frame = frame.f_back
    return ""


def _fields(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


# -------------------------------------------------------------------------------------------------- what is recorded


def torch_reads(folder: Path) -> Reads:
    """Return what this project reads from the file of a scan to a step of training, in an empty folder.

    A setting counts for something in some runs alone: each choice of optimiser, schedule and sampler is made once.
    """
    from ptycho_torch import train
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
    from ptycho_torch.training.tracking import track

    members = draw_scan(np.random.default_rng(0), M=PATTERNS, N=SIDE_PX)
    scan, probes = folder / "scans" / "scan.npz", folder / "probes"
    scan.parent.mkdir()
    np.savez(scan, **members)  # type: ignore[arg-type]
    probes.mkdir()
    np.savez(probes / "scan.npz", probe=members["probeGuess"])
    settings = Settings().override(
        {
            "n_filters_scale": 1, "gridsize": 1, "batch_size": PATTERNS, "max_epochs": 1, "device": "cpu",
            "tracking": False, "gaussian_smoothing_sigma": 0.7, "nll_weight": 1.0,
            "mae_weight": 0.1, "realspace_weight": 0.1, "tv_weight": 0.1, "scheduler": "ReduceLROnPlateau",
        }
    )  # fmt: skip
    with recorded() as reads:
        train.main(
            scan, probes, settings=settings, output_dir=folder / "run", data_dir=folder / "map", reconstruct=False,
            progress=False,
        )  # fmt: skip
        cropped = DataSettings(N=SIDE_PX // 2, detector_crop=True, group_sampler="reference")
        PtychoDataset(scan, data_dir=folder / "cropped", settings=cropped)
        for optimizer, scheduler in (("adam", "Exponential"), ("adamw", "WarmupCosine"), ("keras_adam", "Default")):
            chosen = settings.override({"optimizer": optimizer, "scheduler": scheduler, "nphotons": 1e4})
            train.PtychoPINN(chosen).configure_optimizers()
        with _mlflow_that_refuses():
            tracked = dataclasses.replace(settings.training, tracking=True)
            with track(tracked, parameters={}, output_dir=folder / "tracked"):
                pass
    return reads


def keras_reads() -> Reads:
    """Return what our Keras model of the reference reads when it is built and run, with all terms of the loss.

    Raises:
        BackendMissingError: no TensorFlow.
    """
    from ptycho_tf_bridge import keras_reference

    # Tables are kept for settings that were met before; these are new each time, so that they are read.
    settings = NetworkSettings(
        gridsize=2, n_filters_scale=1, gaussian_smoothing_sigma=0.7, probe_mask=True, intensity_scale=float(next(_NEW))
    )
    weights = LossWeights(nll_weight=1.0, mae_weight=1.0, realspace_weight=1.0, tv_weight=1.0)
    amplitude = np.ones((1, SIDE_PX, SIDE_PX, 4), np.float32)
    with recorded() as reads:
        model = keras_reference.build_reference(settings, np.ones((SIDE_PX, SIDE_PX), np.complex64))
        outputs = keras_reference.run_stages(model, amplitude, np.zeros((1, 1, 2, 4), np.float32))
        keras_reference.losses(settings, weights, outputs, amplitude)
    return reads


@contextlib.contextmanager
def _mlflow_that_refuses() -> Iterator[None]:
    """Stand in for MLflow, which need not be installed and would keep a record: it goes as soon as it knows the run."""
    stand_in = mock.MagicMock()
    stand_in.start_run.side_effect = ImportError("a stand-in that records nothing")
    with mock.patch.dict(sys.modules, {"mlflow": stand_in, "mlflow.pytorch": stand_in.pytorch}):
        yield


# ------------------------------------------------------------------------------------------------ the live reference


def live_reads(package: str) -> frozenset[str]:
    """Return the legacy keys that an installed reference reads while its network is built and run once.

    Patch side and grid size are arguments of the function that builds it, so they count as read.

    Args:
        package: importable name or path, as for ``--parity-reference live:PACKAGE``.

    Raises:
        LiveReferenceError: the package cannot be driven.
        BackendMissingError: no TensorFlow.
    """
    from ptycho_tf_bridge.live import LiveReference

    settings = NetworkSettings(gridsize=2, n_filters_scale=1)
    amplitude = np.ones((1, SIDE_PX, SIDE_PX, settings.C), np.float32)
    # The module is there once the package has been driven.
    package = LiveReference(package, settings).package
    with recorded_parameters(sys.modules[f"{package}.params"].cfg) as recording:
        LiveReference(package, settings).run_stages(amplitude, np.zeros((1, 1, 2, settings.C), np.float32))
    return frozenset(recording.reads) | {"N", "gridsize"}


class RecordingParameters(dict[str, Any]):
    """A legacy dictionary that notes which of its values are read.

    To ask whether a key is there is no read: whoever fills the dictionary asks that too.

    Attributes:
        reads: keys whose value was read, by name or by ``get``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.reads: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.reads.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value as ``dict.get`` does, and note the key."""
        self.reads.add(key)
        return super().get(key, default)


@contextlib.contextmanager
def recorded_parameters(parameters: dict[str, Any]) -> Iterator[RecordingParameters]:
    """Put a recording in the place of a live reference's dictionary for the time of the context.

    Every loaded module that holds the dictionary under some name gets the recording; what is written to it is gone
    afterwards.
    """
    recording = RecordingParameters(parameters)
    with contextlib.ExitStack() as undo:
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is parameters:
                    undo.enter_context(mock.patch.object(module, name, recording))
        yield recording


def legacy_findings(schema: ConfigurationSchema, reads: Collection[str]) -> dict[str, str]:
    """Say what a live reference reads otherwise than the schema says while its network is built and run.

    Args:
        schema: says which keys there are and who reads them.
        reads: keys that were read.

    Returns:
        key → a sentence: for a key of the network that is not read, for one that TensorFlow is said not to read, and
        for one that the schema does not know.
    """
    found = {}
    for setting in schema.settings.values():
        key, by = setting.there.get("legacy", ""), schema.readers[setting.name].by
        if not key:
            continue
        if setting.name in _fields(NetworkSettings) and {"keras", "tensorflow"} <= set(by) and key not in reads:
            found[key] = (
                f"{key}: tensorflow is among the readers of {setting.name}, but the reference does not read it."
            )
        elif "tensorflow" not in by and key in reads:
            found[key] = (
                f"{key}: the reference reads it, but tensorflow is not among the readers of {setting.name}. "
                f"{schema.readers[setting.name].reason}"
            )
    for key in reads:
        if key not in schema.counterparts["legacy"]:
            found[key] = f"{key}: the reference reads it, and the table does not know it."
    return found
