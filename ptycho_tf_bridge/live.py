"""A TensorFlow reference package, driven as it is: its model is built, and every stage of it read.

Nothing of the package is copied, and it is imported only when its name is given. It keeps its settings in one
dictionary for the whole process, and its scale in a cache of its own; both are put back as they were after every use.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import logging
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ptycho_tf_bridge.archives.keras_graph import Graph, find_roles, read_graph
from ptycho_tf_bridge.backend import keras, tensorflow
from ptycho_tf_bridge.errors import ArchiveError, LiveReferenceError
from ptycho_tf_bridge.keras_reference import MAX_PATCHES_PER_CALL, OnStage, keep
from ptycho_tf_bridge.reference_path import import_name
from ptycho_tf_bridge.weights import check_weights, tensorflow_shapes, weight_table
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import one_line

_MODEL_FIELDS = (
    *("N", "gridsize", "n_filters_scale", "object_big", "probe_big", "pad_object", "probe_mask"),
    *("amp_activation", "gaussian_smoothing_sigma"),
)
"""Settings of the network that are fields of the package's ModelConfig, under the same names."""

_DICTIONARY_ALONE = ("offset", "max_position_jitter")
"""Settings that only its dictionary has; so have scale and probe, which ``load`` may change."""

_PHYSICS: Mapping[str, str] = {
    "normalized_input": "IntensityScaler",
    "patches": "CombineComplexLayer",
    "object": "TrimReconstructionLayer",
    "views": "ExtractPatchesPositionLayer",
    "exit_wave": "ProbeIllumination",
    "amplitude": "FlatToChannelLayer",
    "predicted_amplitude": "IntensityScaler_inv",
    "predicted_intensity": "SquareLayer",
}
"""Stage → class of the layer that gives it; each is there once."""

_SCALERS = ("IntensityScaler", "IntensityScaler_inv")
_PROBE = "ProbeIllumination"
_REASSEMBLY = "ReassemblePatchesLayer"
_INPUTS = ("input", "input_positions")

_ADVICE = "Name a package of the TensorFlow reference, at a commit since February 2026."


@dataclass(frozen=True)
class Builder:
    """The function of a package that builds its model.

    Attributes:
        call: of keywords ``gridsize`` and ``N``; returns Keras models.
        module: that it stands in.
        same: further functions there that give the same model, for example compiled.
    """

    call: Callable[..., Any]
    module: str
    same: tuple[str, ...]

    def __str__(self) -> str:
        """Name it, and what was not taken."""
        others = f" ({', '.join(self.same)}: the same model)" if self.same else ""
        return f"{self.module}.{self.call.__name__}{others}"


_BUILDERS: weakref.WeakKeyDictionary[ModuleType, Builder] = weakref.WeakKeyDictionary()
"""Model module → its builder, since each try builds a model."""

_LOGGER = logging.getLogger(__name__)


class LiveReference:
    """One model of a reference package.

    The package reads its dictionary while it builds, so the dictionary is filled first: the dataclasses through
    ``update_legacy_dict``, then what only the dictionary has, then the factory is called.

    From 64 patches a call on, the package folds the whole batch into one canvas (REF-01). Its layer that merges is
    therefore called for few groups at a time; every other layer sees the whole batch.

    Args:
        package: importable name, normally ``ptycho``, or the path of a checkout; ``package`` is then its name.
        settings: of the network.

    Raises:
        LiveReferenceError: no such package, one whose surface is not the reference's (the message names what is
            missing), or settings that it does not have.
        BackendMissingError: no TensorFlow.
    """

    max_patches: int | None = None

    def __init__(self, package: str, settings: NetworkSettings) -> None:
        if settings.shared_amplitude_head:
            raise LiveReferenceError(
                f"live:{package}: shared_amplitude_head is of archives older than the packages that can be driven; "
                "take settings without it."
            )
        tensorflow()
        package = import_name(package)
        self.package, self.settings = package, settings
        self._params = _module(package, "params")
        self._config = _module(package, "config.config")
        self._model_module = _module(package, "model")
        self._dictionary = _attribute(package, self._params, "cfg", dict)
        self._scale = settings.intensity_scale
        self._probe = np.ones((settings.N, settings.N), np.complex64)
        with self._configured():
            self.model = self._build()
        self._graph = self._read_graph()
        self._stage_of = self._name_stages()
        self._scales = [
            variable
            for kind in _SCALERS
            for variable in self._variables_of(
                kind, "a scalar", lambda each: not each.dtype.is_complex and each.shape.num_elements() == 1
            )
        ]
        side = settings.N
        self._probes = self._variables_of(
            _PROBE,
            f"a complex probe of {side} × {side}",
            lambda each: each.dtype.is_complex and each.shape.num_elements() == side**2,
        )

    # -------------------------------------------------------------------------------------------------- surface

    @contextlib.contextmanager
    def _configured(self) -> Iterator[None]:
        """Fill the package's dictionary for the time of the context; put back all dictionaries of its modules.

        What the package warns of is its own affair.
        """
        modules = [module for name, module in sys.modules.items() if name.split(".")[0] == self.package]
        kept = [
            (value, dict(value))
            for module in modules
            for name, value in vars(module).items()
            if type(value) is dict and not name.startswith("__")
        ]
        random = np.random.get_state()  # noqa: NPY002 - the package seeds the global generator
        try:
            with warnings.catch_warnings(action="ignore"):
                self._fill()
                yield
        finally:
            for dictionary, content in kept:
                dictionary.clear()
                dictionary.update(content)
            np.random.set_state(random)  # noqa: NPY002

    def _fill(self) -> None:
        model_class = _attribute(self.package, self._config, "ModelConfig", type)
        training_class = _attribute(self.package, self._config, "TrainingConfig", type)
        update = _attribute(self.package, self._config, "update_legacy_dict", Callable)
        model = self._made(model_class, {name: getattr(self.settings, name) for name in _MODEL_FIELDS})
        frozen = {"intensity_scale_trainable": False, "probe_trainable": False}
        training = self._made(training_class, {"model": model, **frozen})
        with _their_errors(self.package, f"{update.__name__} of {self._config.__name__}"):
            update(self._dictionary, training)
        for name in _DICTIONARY_ALONE:
            self._dictionary[name] = getattr(self.settings, name)
        self._dictionary["intensity_scale"] = self._scale
        self._dictionary["probe"] = tensorflow().constant(self._probe[..., None])

    def _made(self, made: Any, fields: Mapping[str, Any]) -> Any:
        taken = inspect.signature(made).parameters
        missing = [name for name in fields if name not in taken]
        if missing:
            raise self._lacks(f"{made.__module__}.{made.__name__} has no field {', '.join(missing)}")
        with _their_errors(self.package, f"{made.__name__} of {made.__module__}"):
            return made(**fields)

    def _build(self) -> Any:
        """Build the model by the function of the package's model module that does; the first time, find it."""
        if self._model_module not in _BUILDERS:
            return self._find_builder()
        return self._whole_model(_BUILDERS[self._model_module].call)

    def _find_builder(self) -> Any:
        """Try every public function that needs only gridsize and N; keep the one that gives the model.

        Of several that give the same graph, one that does not compile it is taken, the first in the file.

        Raises:
            LiveReferenceError: none gives it, or they give different ones.
        """
        module = self._model_module.__name__
        tried = list(dict.fromkeys(each for each in vars(self._model_module).values() if _may_build(each, module)))
        models, refused = {}, []
        for function in tried:
            try:
                # Each finds the dictionary as if it were the first.
                with self._configured():
                    models[function] = self._whole_model(function)
            except LiveReferenceError as err:
                refused.append(str(err).removesuffix(f". {_ADVICE}"))
        if not models:
            found = "; ".join(each.removeprefix(f"live:{self.package}: ") for each in refused)
            names = ", ".join(each.__name__ for each in tried) or "none"
            raise self._lacks(
                f"{module} has {len(tried)} functions that take gridsize and N ({names}), and none builds the model"
                f"{': ' if found else ''}{found}"
            )
        graphs = {function: _shape_of(model) for function, model in models.items()}
        if len(set(graphs.values())) > 1:
            names = ", ".join(each.__name__ for each in models)
            raise self._lacks(
                f"{module} has {len(models)} functions that build a model from diffraction to diffraction, and not the "
                f"same one ({names}); expected one model"
            )
        call = min(models, key=lambda each: bool(models[each].compiled))
        builder = Builder(call, module, tuple(each.__name__ for each in models if each is not call))
        _LOGGER.info("live:%s: the model is built by %s", self.package, builder)
        _BUILDERS[self._model_module] = builder
        return models[call]

    @property
    def builder(self) -> Builder:
        """The function that built the model."""
        return _BUILDERS[self._model_module]

    def _whole_model(self, build: Callable[..., Any]) -> Any:
        """Call a function of the package; return that of its Keras models that goes from diffraction to diffraction."""
        name = f"{build.__name__} of {self._model_module.__name__}"
        with _their_errors(self.package, name):
            made = build(gridsize=self.settings.gridsize, N=self.settings.N)
        models = [each for each in _flat(made) if isinstance(each, keras().Model)]
        whole = [each for each in models if _classes(each) >= {*_PHYSICS.values()}]
        if not whole:
            most = max((_classes(each) for each in models), key=len, default=set())
            missing = ", ".join(sorted({*_PHYSICS.values()} - most))
            raise self._lacks(
                f"{name} gave {len(models)} Keras models, none of which goes from diffraction to diffraction; missing "
                f"layers: {missing}"
            )
        return whole[0]

    def _read_graph(self) -> Graph:
        try:
            return read_graph(self.model.to_json().encode(), f"live:{self.package}")
        except (ArchiveError, TypeError, ValueError, NotImplementedError) as err:
            raise LiveReferenceError(f"live:{self.package}: the model's graph cannot be read ({err}).") from err

    def _name_stages(self) -> dict[str, str]:
        """Return layer → stage, by graph role and class and never by the numbers in a layer's name."""
        graph = self._graph
        try:
            found = dict(find_roles(graph).convolutions)
        except ArchiveError as err:
            raise LiveReferenceError(str(err)) from err
        for stage, kind in _PHYSICS.items():
            layers = graph.of_kind(kind)
            if len(layers) != 1:
                raise self._lacks(f"the model has {len(layers)} layers {kind}, expected one")
            found[stage] = layers[0].name
        found["merged"] = graph.layers[found["object"]].inputs[0]
        for decoder, end in zip(("amp", "phase"), graph.layers[found["patches"]].inputs, strict=True):
            found[f"decoder_{decoder}.output"] = end
        readers = {
            source: [layer for layer in graph.layers.values() if source in layer.inputs] for source in found.values()
        }
        for stage, name in list(found.items()):
            part, _, role = stage.rpartition(".")
            for follower, kinds, reader in (
                ("conv2", ("MaxPooling2D",), "pool"),
                ("conv2", ("UpSampling2D",), "up"),
                ("central", ("ActivationLayer",), "activation"),
                ("head", ("Silu",), "swish"),
            ):
                named = [layer.name for layer in readers[name] if layer.kind in kinds]
                if role == follower and len(named) == 1 and named[0] not in found.values():
                    found[f"{part}.{reader}"] = named[0]
        return {name: stage for stage, name in found.items()}

    @property
    def stages(self) -> frozenset[str]:
        """Ids of all stages that can be read."""
        return frozenset(self._stage_of.values())

    def _variables_of(self, kind: str, what: str, fits: Callable[[Any], bool]) -> list[Any]:
        """Return the variables of a layer: its own attributes, else what the module of its class keeps for all."""
        layer = self._operations()[self._graph.of_kind(kind)[0].name]
        shared = [
            *vars(sys.modules[type(layer).__module__]).values(),
            *vars(self._model_module).values(),
        ]
        for place in (list(vars(layer).values()), shared):
            variable = tensorflow().Variable
            found = [each for each in _flat(place) if isinstance(each, variable) and fits(each)]
            if found:
                return found
        raise self._lacks(f"layer {layer.name!r} ({kind}) holds no variable that is {what}")

    def _operations(self) -> dict[str, Any]:
        return {operation.name: operation for operation in self.model.operations}

    def _lacks(self, what: str) -> LiveReferenceError:
        return LiveReferenceError(f"live:{self.package}: {what}. {_ADVICE}")

    # ------------------------------------------------------------------------------------------------------ use

    def load(self, weights: Mapping[str, np.ndarray], intensity_scale: float, probe: np.ndarray) -> None:
        """Take weights, s_I and a probe, (N, N) or (1, N, N).

        Raises:
            WeightMapError: a weight that is unknown, missing or misshapen.
            LiveReferenceError: more than one probe mode.
        """
        modes = probe[None] if probe.ndim == 2 else probe
        if len(modes) != 1:
            raise LiveReferenceError(f"live:{self.package}: {len(modes)} probe modes; the reference has one.")
        check_weights(weights, tensorflow_shapes(self.settings), "TensorFlow")
        for name, variable in self.named_variables().items():
            if tuple(variable.shape) != weights[name].shape:
                raise self._lacks(f"{name} has shape {tuple(variable.shape)}, expected {weights[name].shape}")
            variable.assign(weights[name])
        self._scale, self._probe = intensity_scale, modes[0].astype(np.complex64)

    def named_variables(self) -> dict[str, Any]:
        """Name each convolution's variable: ``STAGE.kernel`` (3, 3, in, out) and ``STAGE.bias`` (out,)."""
        operations, layer_of = self._operations(), {stage: name for name, stage in self._stage_of.items()}
        variables = {}
        for entry in weight_table(self.settings):
            if entry.stage not in layer_of:
                raise self._lacks(f"no convolution plays the part of {entry.stage}")
            layer = operations[layer_of[entry.stage]]
            variables[entry.kernel_name], variables[entry.bias_name] = layer.kernel.value, layer.bias.value
        return variables

    def run_stages(self, scaled_amplitude: Any, offsets_px: Any, on_stage: OnStage = keep) -> tuple[Any, Any, Any]:
        """Compute every stage in the order of the package's own graph; as ``keras_reference.run_stages``."""
        values: dict[tuple[str, int], Any] = {}
        read: dict[str, Any] = {}
        given = dict(zip(_INPUTS, (scaled_amplitude, offsets_px), strict=True))
        with self._configured(), self._physics():
            for name, operation in self._in_order():
                if name in given:
                    outputs: list[Any] = [given[name]]
                else:
                    outputs = _flat(self._call(operation, values))
                if name in self._stage_of:
                    outputs[0] = on_stage(self._stage_of[name], outputs[0])
                    read[self._stage_of[name]] = outputs[0]
                for tensor, output in zip(_flat(operation.output), outputs, strict=True):
                    values[_key(tensor)] = output
        return read["object"], read["predicted_amplitude"], read["predicted_intensity"]

    @contextlib.contextmanager
    def _physics(self) -> Iterator[None]:
        """Set scale and probe for the time of the context: the package shares its variables between models."""
        kept = [(variable, variable.numpy()) for variable in (*self._scales, *self._probes)]
        try:
            for variable in self._scales:
                variable.assign(np.full(variable.shape, math.log(self._scale), variable.dtype.as_numpy_dtype))
            for variable in self._probes:
                variable.assign(self._probe.reshape(variable.shape))
            yield
        finally:
            for variable, value in kept:
                variable.assign(value)

    def _in_order(self) -> Iterator[tuple[str, Any]]:
        """Yield the operations so that each comes after all that it reads."""
        operations, done = self._operations(), set[str]()

        def visit(name: str) -> Iterator[tuple[str, Any]]:
            if name in done:
                return
            done.add(name)
            for source in self._graph.layers[name].inputs:
                yield from visit(source)
            yield name, operations[name]

        for end in self._graph.outputs:
            yield from visit(end)

    def _call(self, operation: Any, values: Mapping[Any, Any]) -> Any:
        node = operation._inbound_nodes[0]

        def call(choose: Callable[[Any], Any]) -> Any:
            found = {id(tensor): choose(values[_key(tensor)]) for tensor in node.input_tensors}
            arguments, named = node.arguments.fill_in(found)
            return operation(*arguments, **named)

        if type(operation).__name__ != _REASSEMBLY or not self.settings.object_big:
            return call(lambda value: value)
        groups = max(1, (MAX_PATCHES_PER_CALL - 1) // self.settings.C)
        batch = int(values[_key(node.input_tensors[0])].shape[0])
        if batch <= groups:
            return call(lambda value: value)
        parts = [call(lambda value, first=first: value[first : first + groups]) for first in range(0, batch, groups)]  # type: ignore[misc]
        return tensorflow().concat(parts, axis=0)


@contextlib.contextmanager
def _their_errors(package: str, what: str) -> Iterator[None]:
    """Turn whatever the package's code raises into one line that says which of it did."""
    try:
        yield
    except LiveReferenceError:
        raise
    except Exception as err:
        raise LiveReferenceError(
            f"live:{package}: {what} raised {type(err).__name__}: {one_line(str(err))}. {_ADVICE}"
        ) from err


def _module(package: str, name: str) -> ModuleType:
    full = f"{package}.{name}"
    with warnings.catch_warnings(action="ignore"), _their_errors(package, f"importing {full}"):
        try:
            return importlib.import_module(full)
        except ModuleNotFoundError as err:
            if err.name is None or not (full == err.name or full.startswith(f"{err.name}.")):
                raise LiveReferenceError(
                    f"live:{package}: importing {full} needs {err.name}, which is not installed."
                ) from err
            raise LiveReferenceError(
                f"live:{package}: there is no module {err.name}; expected the package of the TensorFlow reference, "
                f"with {package}.params, {package}.config.config and {package}.model. Install it, or check its name."
            ) from err


def _attribute(package: str, module: ModuleType, name: str, kind: Any) -> Any:
    value = getattr(module, name, None)
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"is {type(value).__name__}"
        raise LiveReferenceError(
            f"live:{package}: {module.__name__}.{name} {found}; expected the reference's. Check the package's version."
        )
    return value


def _may_build(value: Any, module: str) -> bool:
    """Whether a value of a module is a public function of its own that can be called with only gridsize and N."""
    if not inspect.isfunction(value) or value.__name__.startswith("_") or value.__module__ != module:
        return False
    parameters = inspect.signature(value).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(name in parameters and parameters[name].kind in named for name in ("gridsize", "N")) and all(
        each.default is not inspect.Parameter.empty or each.kind in optional or name in ("gridsize", "N")
        for name, each in parameters.items()
    )


def _shape_of(model: Any) -> str:
    """Return what a model is made of: kinds, arguments and connections of its layers, without their numbered names."""
    graph = read_graph(model.to_json().encode(), "model")
    numbers = {name: number for number, name in enumerate(graph.layers)}
    layers = [
        (each.kind, {**each.config, "name": ""}, [numbers[name] for name in each.inputs], each.slices)
        for each in graph.layers.values()
    ]
    return json.dumps([layers, [numbers[name] for name in graph.outputs]], sort_keys=True, default=str)


def _classes(model: Any) -> set[str]:
    return {type(layer).__name__ for layer in model.layers}


def _flat(value: Any) -> list[Any]:
    """Return what lies in lists, tuples and dictionaries, however deep."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [inner for each in value for inner in _flat(each)]
    return [value]


def _key(tensor: Any) -> tuple[str, int]:
    """Return the operation that gives a tensor of the graph, and which of its outputs it is."""
    operation, _, index = tensor._keras_history
    return operation.name, index
