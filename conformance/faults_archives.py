"""Seeded faults of archives and configurations on their way between the sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.seeding import Body, Fault, after, argument, instead, of_area, only
from conformance.steps_bridge import other_decoder
from ptycho_tf_bridge import archive, config, config_export, export, keras_graph, migrate, stored_model
from ptycho_tf_bridge.keras_file import _Network
from ptycho_tf_bridge.layout import Layout


def _as_written(original: Body) -> Body:
    """Return the activation by the name that the graph has for it."""

    def wrong(graph: Any, end: str, head: str) -> tuple[str, float]:
        name, factor = original(graph, end, head)
        spelled = {
            layer.config.get("activation_name", layer.config.get("activation")) for layer in graph.layers.values()
        }
        return ("silu" if name == "swish" and "silu" in spelled else name), factor

    return wrong


def _decoders_exchanged(roles: keras_graph.Roles) -> keras_graph.Roles:
    names = roles.convolutions
    return dataclasses.replace(roles, convolutions={stage: names[other_decoder(stage)] for stage in names})


def _saved_probe_first(original: Body) -> Body:
    def wrong(stored: Any, stored_source: str, parameters: Any, *rest: Any) -> Any:
        probe, source = original(stored, stored_source, parameters, *rest)
        saved = parameters.get("probe")
        return (probe if saved is None else saved.reshape(np.shape(probe))), source

    return wrong


def _without_as_run(original: Body) -> Body:
    return lambda mapping, *, where="", as_run=False: original(mapping, where=where)


def _exchanged_on_files(original: Body) -> Body:
    """Read each weight of the loss under the name of the other, in files and dataclasses."""

    def wrong(setting: Any, stated: Any, source: str, *rest: Any, **named: Any) -> Any:
        names = ("training.nll_weight", "training.mae_weight")
        if source == "tensorflow" and all(name in stated for name in names):
            stated = {**stated, names[0]: stated[names[1]], names[1]: stated[names[0]]}
        return original(setting, stated, source, *rest, **named)

    return wrong


def _run_is(as_run: bool) -> Callable[[Body], Body]:
    def build(original: Body) -> Body:
        return lambda given, source, where, **named: original(given, source, where, as_run=as_run)

    return build


def _implied_by_the_other(original: Body) -> Body:
    """Take the weights of the loss from the loss that was not chosen."""

    def wrong(setting: Any, value: Any, settings: Any, *rest: Any) -> Any:
        if setting.name in ("nll_weight", "mae_weight") and value is None:
            other = {"Poisson": "MAE", "MAE": "Poisson"}[settings.model.loss_function]
            settings = settings.override({"loss_function": other})
        return original(setting, value, settings, *rest)

    return wrong


_bridge, _setting = of_area("bridge"), of_area("configuration")


ARCHIVED: tuple[Fault, ...] = (
    _bridge(
        "exit waves transposed",
        "layouts",
        Layout,
        "to_torch",
        only(lambda layout: bool(layout.name == "flat_modes"), after(lambda waves: waves.swapaxes(-2, -1).copy())),
        "rows and columns exchanged",
    ),
    _bridge(
        "modes taken for patterns of a group",
        "layouts",
        Layout,
        "to_torch",
        only(lambda layout: bool(layout.name == "flat_modes"), after(lambda waves: waves.swapaxes(1, 2).copy())),
        "modes and channels exchanged",
    ),
    _bridge(
        "silu of newer Keras no swish", "graphs", keras_graph, "_activation", _as_written, "activation not understood"
    ),
    _bridge(
        "decoders of a graph exchanged",
        "graphs",
        keras_graph,
        "find_roles",
        after(_decoders_exchanged),
        "amplitude and phase decoder exchanged",
    ),
    _bridge("canvas of a graph not read", "graphs", keras_graph, "_canvas", instead(lambda graph: None), None),
    _bridge(
        "scale of model.h5 before that of the parameters",
        "keras_archives",
        archive,
        "_scales",
        after(lambda found: list(found)[::-1]),
        "intensity scale of model.h5",
    ),
    _bridge(
        "kernels of a weights file turned",
        "keras_archives",
        stored_model,
        "_convolution",
        after(lambda pair: (pair[0][::-1, ::-1].copy(), pair[1])),
        "kernels flipped",
    ),
    _bridge(
        "saved probe before the trained one",
        "saved_models",
        archive,
        "choose_probe",
        _saved_probe_first,
        "the saved probe in place of the trained one",
    ),
    _bridge(
        "kernels of a checkpoint transposed in space",
        "saved_models",
        stored_model,
        "read_tf_checkpoint",
        after(lambda variables: {n: a.swapaxes(0, 1) if a.shape[:2] == (3, 3) else a for n, a in variables.items()}),
        "kernels transposed in space",
    ),
    _bridge(
        "converted network keeps its first weights",
        "converted",
        migrate,
        "to_torch",
        instead(lambda weights, network: {}),
        "weights of a network that was just made",
    ),
    _bridge(
        "parameters of an archive as stated",
        "converted",
        migrate,
        "from_legacy",
        _without_as_run,
        "parameters as stated, not as TensorFlow ran",
    ),
    _bridge(
        "probe transposed in conversion",
        "converted",
        migrate,
        "build_network",
        argument(2, np.transpose),
        "spatial transpose",
    ),
    _bridge(
        "trained scale not exported",
        "exported",
        export,
        "_scale",
        instead(lambda content: content.network.intensity_scale),
        "trained intensity scale lost",
    ),
    _bridge(
        "probe transposed in export",
        "exported",
        export,
        "_probe",
        after(lambda probe: probe.transpose(1, 0, 2)),
        "spatial transpose",
    ),
    _bridge("phase exported without π", "exported", _Network, "_activate", argument(4, lambda factor: 1.0), None),
    _bridge(
        "border of an exported graph not recognised",
        "round_trip",
        keras_graph,
        "_BORDERS",
        instead(("CenterMaskLayer",)),
        None,
    ),
)

TRANSLATED: tuple[Fault, ...] = (
    _setting(
        "what is not stated at this project's default",
        "unstated",
        config,
        "_absent",
        instead(lambda setting, *rest: (setting.default, "")),
        "this project's default in place of the reference's",
    ),
    _setting(
        "dictionary with the defaults of the dataclass",
        "unstated",
        config,
        "_absent",
        argument(1, lambda source: "tensorflow"),
        "the default of the dataclass",
    ),
    _setting(
        "weights of the loss exchanged in files",
        "stated",
        config,
        "_setting_finding",
        _exchanged_on_files,
        "weights of the loss exchanged",
    ),
    _setting(
        "fields that TensorFlow does not follow ignored",
        "stated",
        config,
        "_translate",
        _run_is(True),
        "as TensorFlow runs, not as stated",
    ),
    _setting(
        "defaults of fields that the PyTorch side does not read",
        "stated",
        config,
        "is_unread",
        lambda right: lambda setting, backend: backend == "tensorflow" and right(setting, backend),
        None,
    ),
    _setting(
        "a run taken as its configuration says",
        "as_run",
        config,
        "_translate",
        _run_is(False),
        "as stated, not as TensorFlow runs",
    ),
    _setting(
        "flags that never win",
        "as_run",
        config,
        "flag_wins",
        instead(lambda field, value: ("", None)),
        "as stated, not as TensorFlow runs",
    ),
    _setting(
        "Keras' Adam taken for PyTorch's",
        "spelled",
        config,
        "spelled_here",
        lambda original: lambda setting, value: value if value == "adam" else original(setting, value),
        "the reference's word taken as it is",
    ),
    _setting(
        "implied weights of the loss exchanged",
        "written",
        config_export,
        "_export_finding",
        _implied_by_the_other,
        "weights of the loss exchanged",
    ),
)
