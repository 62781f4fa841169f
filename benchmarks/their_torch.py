"""Judge the PyTorch side of the TensorFlow project, as it is, by the clauses that this package is judged by.

    python benchmarks/their_torch.py CHECKOUT --parity-dtype float32 --parity-report their_torch

CHECKOUT is a checkout of that project. What stands behind it goes to ``pytest conformance``, whose candidate this is.
With ``--weights`` it only says into which of its networks the weights of a TensorFlow model fit.
Its package has the name of ours, so it runs in a process of its own, with ``--python`` in an environment that has what
it imports. Its modules run unchanged: hooks read every stage and, for the forced run, put the truth in its place.

Its settings are those of the case, but for ``cbam_encoder``: its default adds attention to every encoder block, whose
weights no TensorFlow model has, and here it is off. Its batch holds s_I·X, and 1/s_I scales it, in and out; its losses
are those of its ``compute_loss``, once for each ``torch_loss_mode``, weighted as the case says.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from conformance.cases.case import Case, ForcedRun, FreeRun
    from ptycho_torch.config_params import NetworkSettings

CHECKOUT, PYTHON = "THEIR_CHECKOUT", "THEIR_PYTHON"
"""Variables by which the program tells the candidate where the project and its interpreter are."""

Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------------------- before the judge


@dataclass(frozen=True)
class Port:
    """The candidate: sends cases to the other process, and reads what comes back."""

    device: str
    dtype: str

    def free(self, case: Case) -> FreeRun:
        """Run end to end; whatever reads a stage whose weights do not fit is left out."""
        from conformance.cases.case import FreeRun

        parts = self._ask(case, {})
        lost = _lost(case, parts["unfit"])
        kept = {kind: _without(parts[kind], lost) for kind in ("stages", "cotangents", "gradients")}
        return FreeRun(**kept, losses={} if lost else parts["losses"])

    def forced(self, case: Case, stages: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]) -> ForcedRun:
        """Run stage by stage; a stage whose weights do not fit is left out."""
        from conformance.cases.case import ForcedRun

        truth = {f"stages/{name}": each for name, each in stages.items()}
        parts = self._ask(case, truth | {f"cotangents/{name}": each for name, each in cotangents.items()})
        lost = set(parts["unfit"])
        pulled: dict[str, Arrays] = {}
        for name, each in parts["pulled"].items():
            stage, _, read = name.partition("<-")
            pulled.setdefault(stage, {})[read] = each
        return ForcedRun(
            stages=_without(parts["stages"], lost),
            pulled=_without(pulled, lost),
            gradients=_without(parts["gradients"], lost),
            losses=parts["losses"],
        )

    def _ask(self, case: Case, truth: Arrays) -> dict[str, Any]:
        arrays = {"input": case.scaled_amplitude(self.dtype), "offsets_px": case.offsets_px, "probe": case.probe}
        losses = {"poisson": case.loss_weights.nll_weight, "mae": case.loss_weights.mae_weight}
        found = _answer(_network(case.settings, case.weights, self.dtype, losses) | arrays | truth)
        said = json.loads(str(found.pop("words")))
        if "error" in said:
            raise RuntimeError(said["error"])
        parts: dict[str, Any] = {"stages": {}, "cotangents": {}, "gradients": {}, "pulled": {}, **said}
        # It has stages that a case may not have, such as a central head without pad_object.
        known = set(_inputs(case)) | set(case.weights)
        for key, each in found.items():
            kind, _, name = key.partition("/")
            if kind == "pulled" or name in known:
                parts[kind][name] = each
        return parts


def _network(
    settings: NetworkSettings, weights: Mapping[str, np.ndarray], dtype: str, losses: Mapping[str, float]
) -> Arrays:
    words = {"dtype": dtype, "canvas_px": settings.canvas_px, "settings": asdict(settings), "losses": losses}
    return {"words": np.array(json.dumps(words)), **{f"weights/{name}": each for name, each in weights.items()}}


def weights_that_fit() -> None:
    """Print, for every size of the network, the stages whose weights have other shapes there."""
    from ptycho_tf_bridge.weights import tensorflow_shapes
    from ptycho_torch.config_params import PATCH_SIDES_PX, NetworkSettings

    print("| N | g | s | object_big | other shapes |\n|---|---|---|---|---|")
    for N, g, s, object_big in itertools.product(PATCH_SIDES_PX, (1, 2, 3), (1, 2), (True, False)):
        settings = NetworkSettings(N=N, gridsize=g, n_filters_scale=s, object_big=object_big)
        zeros = {name: np.zeros(shape, np.float32) for name, shape in tensorflow_shapes(settings).items()}
        said = json.loads(str(_answer(_network(settings, zeros, "float32", {}))["words"]))
        shown = ", ".join(sorted({stage.replace("_amp", "").replace("_phase", "") for stage in said["unfit"]}))
        print(f"| {N} | {g} | {s} | {object_big} | {shown or 'none'} |", flush=True)


def _inputs(case: Case) -> dict[str, tuple[str, ...]]:
    from conformance.spec.loader import load_stages

    return {stage.id: stage.inputs for stage in load_stages().expand(case.settings)}


def _lost(case: Case, unfit: Iterable[str]) -> set[str]:
    """Return stages that do not fit, and all that read them."""
    lost = set(unfit)
    for stage, read in _inputs(case).items():
        if lost & set(read):
            lost.add(stage)
    return lost


def _without(values: Mapping[str, Any], lost: set[str]) -> dict[str, Any]:
    """Leave out stages, and weights of stages."""
    return {name: each for name, each in values.items() if not {name, name.rpartition(".")[0]} & lost}


@functools.cache
def _process() -> subprocess.Popen[str]:
    variables = os.environ | {"PYTHONPATH": os.environ[CHECKOUT]}
    command = [os.environ[PYTHON], str(Path(__file__).resolve()), "serve"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)


def _answer(question: Arrays) -> Arrays:
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("question.npz", "answer.npz")]
        np.savez(paths[0], **question)
        process.stdin.write("\t".join(map(str, paths)) + "\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise RuntimeError("the other process has ended; its last words are above")
        with np.load(paths[1]) as found:
            return dict(found)


# ---------------------------------------------------------------------------------------------- in the other process


def serve() -> None:
    """Answer questions until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        question, answer = line.rstrip("\n").split("\t")
        with np.load(question) as given:
            try:
                found = Theirs(dict(given)).run()
            except Exception as err:
                found = {"words": np.array(json.dumps({"error": f"{type(err).__name__}: {err}"}))}
        np.savez(answer, **found)
        print("done", file=answers, flush=True)


class Taps:
    """Reads the stages as they pass, and feeds the truth where there is one."""

    def __init__(self, truth: Mapping[str, Any]) -> None:
        self._truth = truth
        self.values: dict[str, Any] = {}
        self.fed: dict[str, Any] = {}

    def __call__(self, stage: str, value: Any) -> Any:
        """Keep what a stage gave, and return what its readers get."""
        value = value if value.requires_grad else value.detach().requires_grad_()
        self.values[stage] = value
        truth = self._truth.get(stage)
        if truth is None or truth.shape != value.shape:
            return value
        self.fed[stage] = truth.to(value.dtype).detach().requires_grad_()
        return self.fed[stage]


class Theirs:
    """Their model with the settings and weights of a question."""

    def __init__(self, given: Arrays) -> None:
        import torch

        from ptycho_torch import config_params, model

        self._words = json.loads(str(given["words"]))
        self._given = given
        settings = self._words["settings"]
        g, C = settings["gridsize"], settings["gridsize"] ** 2
        self._data = config_params.DataConfig(
            N=settings["N"],
            C=C,
            grid_size=(g, g),
            probe_scale=1.0,  # the probe of a case is used as it is
            max_neighbor_distance=(self._words["canvas_px"] - settings["N"]) / max(g - 1, 1),  # sizes its canvas
            scale_contract_version="legacy_v1",
            measurement_domain="normalized_amplitude",
        )
        shared = ("n_filters_scale", "object_big", "probe_big", "pad_object", "probe_mask", "amp_activation", "offset")
        self._model_config = config_params.ModelConfig(
            C_model=C,
            C_forward=C,
            cbam_encoder=False,
            gaussian_smoothing_sigma=settings["gaussian_smoothing_sigma"],
            max_position_jitter=settings["max_position_jitter"],
            **{name: settings[name] for name in shared},
        )
        torch.manual_seed(0)
        training, inference = config_params.TrainingConfig(device="cpu"), config_params.InferenceConfig()
        self._modules = {
            mode: model.PtychoPINN_Lightning(
                replace(self._model_config), self._data, replace(training, torch_loss_mode=mode), inference
            )
            for mode in ("poisson", "mae")
        }
        self._modules["mae"].model = self._modules["poisson"].model
        self.model = self._modules["poisson"].model
        self.configs = (self._data, self._model_config)
        if self._words["dtype"] == "float64":
            self.model.double()
        self._weights = dict(self._weight_table())
        self._unfit = sorted({name.rpartition(".")[0] for name in self._take_weights()})

    def _convolutions(self) -> dict[str, Any]:
        network = self.model.autoencoder
        found: dict[str, Any] = {}
        for i, block in enumerate(network.encoder.blocks):
            found |= {f"encoder.{i}.conv1": block.conv1, f"encoder.{i}.conv2": block.conv2}
        for name, decoder, head in self.decoders():
            for i, block in enumerate(decoder.blocks):
                found |= {f"{name}.{i}.conv1": block.conv1, f"{name}.{i}.conv2": block.conv2}
            outer = head.conv_up_block
            found |= {f"{name}.central": head.conv1, f"{name}.outer.conv1": outer.conv1}
            found |= {f"{name}.outer.conv2": outer.conv2, f"{name}.outer.head": head.conv2}
        return found

    def decoders(self) -> list[tuple[str, Any, Any]]:
        """Return name, decoder and its last part."""
        network = self.model.autoencoder
        return [
            ("decoder_amp", network.decoder_amp, network.decoder_amp.amp),
            ("decoder_phase", network.decoder_phase, network.decoder_phase.phase),
        ]

    def _weight_table(self) -> Iterable[tuple[str, Any]]:
        for stage, convolution in self._convolutions().items():
            yield f"{stage}.kernel", convolution.weight
            yield f"{stage}.bias", convolution.bias

    def _take_weights(self) -> list[str]:
        """Load what fits; return the names of weights that the case has and that do not fit."""
        import torch

        unfit = []
        for key in (key for key in self._given if key.startswith("weights/")):
            name = key.removeprefix("weights/")
            array = torch.from_numpy(self._given[key])
            array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array
            parameter = self._weights.get(name)
            if parameter is None or parameter.shape != array.shape:
                theirs = "none" if parameter is None else tuple(parameter.shape)
                print(f"{name}: {tuple(array.shape)}, but {theirs} there", file=sys.stderr)
                unfit.append(name)
            else:
                parameter.data.copy_(array)
        return unfit

    # ------------------------------------------------------------------------------------------------------ layouts

    def _here(self, stage: str, array: np.ndarray) -> Any:
        """Return an array of the judge in their layout."""
        if stage == "exit_wave":
            return self._tensor(np.moveaxis(array.reshape(-1, self._data.C, *array.shape[1:]), -1, 2))
        if stage == "views":
            return self._tensor(array.reshape(-1, self._data.C, *array.shape[1:3]))
        return self._tensor(np.moveaxis(array, -1, 1))

    def _tensor(self, array: np.ndarray) -> Any:
        import torch

        dtype = getattr(torch, self._words["dtype"])
        tensor = torch.from_numpy(array.copy())
        return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)

    @staticmethod
    def _there(stage: str, tensor: Any) -> np.ndarray:
        """Return a tensor of theirs in the judge's layout."""
        array = tensor.detach().resolve_conj().numpy()
        if stage == "exit_wave":
            return np.moveaxis(array, 2, -1).reshape(-1, *array.shape[-2:], array.shape[2])
        if stage == "views":
            return array.reshape(-1, *array.shape[-2:], 1)
        return np.moveaxis(array, 1, -1)

    def _gradient(self, name: str, tensor: Any) -> np.ndarray:
        array: np.ndarray = tensor.detach().numpy()
        return array.transpose(2, 3, 1, 0) if name.endswith(".kernel") else array

    # --------------------------------------------------------------------------------------------------------- runs

    def run(self) -> Arrays:
        """Return everything under its kind and name; without an input, what does not fit."""
        if "input" not in self._given:
            return {"words": np.array(json.dumps({"unfit": self._unfit}))}
        truth = {
            name: {key.partition("/")[2]: each for key, each in self._given.items() if key.startswith(f"{name}/")}
            for name in ("stages", "cotangents")
        }
        stages = {name: self._here(name, each) for name, each in truth["stages"].items()}
        found: Arrays = {}
        losses: dict[str, float] = {}
        sums: Arrays = {}
        for mode, weight in self._words["losses"].items():
            taps = Taps(stages)
            with tapped(self, taps):
                loss = self._modules[mode].compute_loss(self._batch())
            losses["nll" if mode == "poisson" else "mae"] = float(loss.detach())
            found |= {f"stages/{name}": self._there(name, each) for name, each in taps.values.items()}
            for key, each in self._loss_gradients(loss, taps, is_forced=bool(stages)).items():
                sums[key] = sums.get(key, 0) + weight * each
            if mode == "poisson" and stages:
                found |= self._pulled(taps, truth["cotangents"])
        losses["total"] = sum(
            weight * losses["nll" if mode == "poisson" else "mae"] for mode, weight in self._words["losses"].items()
        )
        return {**found, **sums, "words": np.array(json.dumps({"losses": losses, "unfit": self._unfit}))}

    def _batch(self) -> tuple[dict[str, Any], Any, Any]:
        import torch

        scale = self._words["settings"]["intensity_scale"]
        images = self._here("input", self._given["input"])
        ones = torch.ones(len(images), 1, 1, 1, dtype=images.dtype)
        fields = {
            "images": images,
            "coords_relative": self._tensor(np.moveaxis(self._given["offsets_px"], -1, 1)),
            "experiment_id": torch.zeros(len(images), dtype=torch.long),
            "rms_scaling_constant": ones / scale,
            "physics_scaling_constant": ones,
        }
        probe = self._tensor(self._given["probe"])[None, None]
        return fields, probe, ones

    def _loss_gradients(self, loss: Any, taps: Taps, *, is_forced: bool) -> Arrays:
        """Return the gradient of a loss by stages and weights; of a forced run, by what feeds the loss."""
        import torch

        if is_forced:
            read = {name: each for name, each in taps.fed.items() if name.startswith("predicted_")}
            found = torch.autograd.grad(loss, list(read.values()), retain_graph=True, allow_unused=True)
            return {
                f"pulled/loss<-{name}": self._there(name, each)
                for name, each in zip(read, found, strict=True)
                if each is not None
            }
        wanted = {f"cotangents/{name}": each for name, each in taps.values.items()}
        wanted |= {f"gradients/{name}": each for name, each in self._weights.items()}
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        arrays: Arrays = {}
        for (key, value), each in zip(wanted.items(), found, strict=True):
            gradient = torch.zeros_like(value) if each is None else each
            kind, _, name = key.partition("/")
            arrays[key] = self._gradient(name, gradient) if kind == "gradients" else self._there(name, gradient)
        return arrays

    def _pulled(self, taps: Taps, cotangents: Mapping[str, np.ndarray]) -> Arrays:
        """Pull the truth's cotangent of every stage back to what it reads and to its weights."""
        import torch

        found: Arrays = {}
        for stage, value in taps.values.items():
            weights = {name: each for name, each in self._weights.items() if name.rpartition(".")[0] == stage}
            cotangent = self._here(stage, cotangents[stage]).to(value.dtype) if stage in cotangents else None
            if cotangent is None or cotangent.shape != value.shape or value.is_leaf:
                continue
            leaves = [*taps.fed.values(), *weights.values()]
            back = torch.autograd.grad(value, leaves, cotangent, retain_graph=True, allow_unused=True)
            for name, each in zip(taps.fed, back, strict=False):
                if each is not None:
                    found[f"pulled/{stage}<-{name}"] = self._there(name, each)
            for name, each in zip(weights, back[len(taps.fed) :], strict=True):
                if each is not None:
                    found[f"gradients/{name}"] = self._gradient(name, each)
        return found


@contextlib.contextmanager
def tapped(theirs: Theirs, taps: Taps) -> Iterator[None]:
    """Read, and feed, every stage of their model while it runs."""
    from torch import distributions

    from ptycho_torch import helper

    with contextlib.ExitStack() as stack:

        def before(stage: str, module: Any) -> None:
            stack.callback(module.register_forward_pre_hook(lambda _, read: (taps(stage, read[0]),)).remove)

        def after(stage: str, module: Any) -> None:
            stack.callback(module.register_forward_hook(lambda _, read, given: taps(stage, given)).remove)

        def instead(owner: Any, name: str, changed: Callable[[Any], Any]) -> None:
            original = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, lambda *a, **k: changed(original(*a, **k))))

        network, physics = theirs.model.autoencoder, theirs.model.forward_model
        before("normalized_input", network.encoder)
        for i, block in enumerate(network.encoder.blocks):
            before(f"encoder.{i}.conv1", block.conv2)
            before(f"encoder.{i}.conv2", block.pool)
            after(f"encoder.{i}.pool", block.pool)
        for name, decoder, head in theirs.decoders():
            for i, block in enumerate(decoder.blocks):
                before(f"{name}.{i}.conv1", block.conv2)
                before(f"{name}.{i}.conv2", block.up)
                after(f"{name}.{i}.up", block.up)
            before(f"{name}.central", head.activation)
            after(f"{name}.activation", head.activation)
            before(f"{name}.outer.conv1", head.conv_up_block.conv2)
            before(f"{name}.outer.conv2", head.conv_up_block.up)
            after(f"{name}.outer.up", head.conv_up_block.up)
            after(f"{name}.outer.head", head.conv2)
            after(f"{name}.output", decoder)
        after("patches", theirs.model.combine_complex)
        stack.enter_context(_swish(taps))

        def merged(given: Any) -> Any:
            canvas = taps("merged", given[0][:, None])
            taps("object", helper.trim_reconstruction(canvas, *theirs.configs))
            return (canvas[:, 0], *given[1:])

        instead(helper, "reassemble_patches_position_real", merged)
        instead(helper, "extract_channels_from_region", lambda given: taps("views", given))
        lit = physics.probe_illumination.register_forward_hook(
            lambda _, read, given: (taps("exit_wave", given[0]), *given[1:])
        )
        stack.callback(lit.remove)
        instead(helper, "pad_and_diffract", lambda given: (taps("amplitude", given[0]), *given[1:]))
        instead(physics.scaler, "inv_scale", lambda given: taps("predicted_amplitude", given))
        poisson = distributions.Poisson
        stack.enter_context(
            mock.patch.object(
                distributions, "Poisson", lambda rate, **k: poisson(taps("predicted_intensity", rate), **k)
            )
        )
        yield


def _swish(taps: Taps) -> Any:
    """Return a context that reads the function behind the outer head, which is no module there."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Swish(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = func(*args, **(kwargs or {}))
            if func is torch.nn.functional.silu:
                for name in ("decoder_amp", "decoder_phase"):
                    head = f"{name}.outer.head"
                    if args[0] is taps.fed.get(head, taps.values.get(head)):
                        return taps(f"{name}.outer.swish", given)
            return given

    return Swish()


# ------------------------------------------------------------------------------------------------------- the program


def port(device: str, dtype: str) -> Port:
    """Make the candidate, as ``--parity-candidate their_torch:port`` asks for it."""
    return Port(device, dtype)


def main() -> int:
    """Judge; return what pytest returns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter for the project (default: this one)")
    parser.add_argument("--weights", action="store_true", help="say into which of its networks the weights fit")
    options, rest = parser.parse_known_args()
    os.environ |= {CHECKOUT: str(options.checkout.resolve()), PYTHON: options.python}
    if options.weights:
        weights_that_fit()
        return 0
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parent)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "pytest", "--pyargs", "conformance", "--parity-candidate", "their_torch:port"]
    return subprocess.run([*command, *rest], env=variables, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        sys.exit(main())
