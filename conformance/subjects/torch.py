"""The candidate: the PyTorch network on one device, in one dtype, seen through hooks on its stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.cases.case import Case, ForcedRun, FreeRun
from conformance.judge.measure import Key
from conformance.spec.loader import load_stages
from ptycho_tf_bridge.errors import WeightMapError
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import to_tensorflow, to_torch, weight_table
from ptycho_torch.losses import amplitude_mae, poisson_nll, total_loss
from ptycho_torch.model import Prediction, PtychoNet, Upsample

if TYPE_CHECKING:
    from ptycho_torch.training.checkpoint import Checkpoint

_NO_CONVOLUTION = {"log_scale", "probe_parts"}
"""Parameters that come from the case and not from its weights."""

Hook = Callable[[str, tuple[Any, ...], Tensor], Tensor | None]


@contextlib.contextmanager
def float32_means_float32(*, allow_tf32: bool = False) -> Iterator[None]:
    """Switch TensorFloat-32 off, and the choice of algorithms by timing, for the time of a comparison.

    ``allow_tf32`` keeps TensorFloat-32, where it is what is judged.
    One thread: how a sum is cut into parts depends on the number of threads, and a verdict must not.
    """
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def tapped(model: PtychoNet, stages: Collection[str], hook: Hook) -> Iterator[None]:
    """Call ``hook(stage id, arguments, output)`` at some stages; what it returns replaces the output."""

    def tap(stage: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        return lambda _, arguments, output: hook(stage, arguments, output)

    handles = [model.get_submodule(stage).register_forward_hook(tap(stage)) for stage in stages]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Loaded:
    """A case on the candidate's device."""

    model: PtychoNet
    scaled_amplitude: Tensor
    offsets_px: Tensor


@dataclass(frozen=True)
class TorchSubject:
    """The PyTorch network as the judge sees it.

    Attributes:
        device: torch device name.
        dtype: ``float32`` or ``float64``.
    """

    device: str = "cpu"
    dtype: str = "float32"

    @property
    def row(self) -> str:
        """How reports call dtype and way of running."""
        return self.dtype

    @property
    def products(self) -> str:
        """What the convolutions run in."""
        return self.dtype

    def shows(self, key: Key) -> bool:
        """Whether a quantity can be seen at all, run this way."""
        return True

    def _predict(self, model: PtychoNet, scaled_amplitude: Tensor, offsets_px: Tensor) -> Prediction:
        """Run the network."""
        prediction: Prediction = model(scaled_amplitude, offsets_px)
        return prediction

    def _load(self, case: Case) -> _Loaded:
        dtype: torch.dtype = getattr(torch, self.dtype)

        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device, dtype)

        amplitude = case.scaled_amplitude(self.dtype)
        return _Loaded(
            self.network(case),
            put(LAYOUTS["channels"].to_torch(amplitude)),
            put(LAYOUTS["offsets"].to_torch(case.offsets_px)),
        )

    def network(self, case: Case) -> PtychoNet:
        """Return the network of a case."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        model = PtychoNet(case.settings, torch.from_numpy(case.probe), device=self.device, dtype=dtype)
        weights = to_torch(case.weights, case.settings)
        state = {name: torch.from_numpy(array).to(self.device, dtype) for name, array in weights.items()}
        unmapped = model.load_state_dict(state, strict=False)
        if unmapped.unexpected_keys or set(unmapped.missing_keys) != _NO_CONVOLUTION:
            raise WeightMapError(
                f"The weight table and the network differ: without a weight {sorted(unmapped.missing_keys)}, without a "
                f"place {unmapped.unexpected_keys}."
            )
        return model

    def _losses(self, loaded: _Loaded, prediction: Prediction, case: Case) -> tuple[Tensor, dict[str, float]]:
        measured = loaded.scaled_amplitude
        terms = total_loss(
            prediction.object,
            prediction.amplitude,
            prediction.intensity,
            measured,
            case.loss_weights,
            probe_big=case.settings.probe_big,
        )
        with torch.no_grad():
            nll = poisson_nll(prediction.intensity, measured)
            mae = amplitude_mae(prediction.amplitude, measured)
        return terms.total, {"nll": nll.item(), "mae": mae.item(), "total": terms.total.item()}

    def free(self, case: Case) -> FreeRun:
        """Run end to end, forward and backward.

        Nobody looks at a doubling in use, and one that nobody looks at is not computed. So the doublings get a run of
        their own, and everything else is judged as users have it.
        """
        with float32_means_float32(allow_tf32=self.products == "tf32"):
            loaded = self._load(case)
            doublings = doublings_of(loaded.model)
            every = loaded.model.stage_ids()
            seen, seen_losses = self._run(loaded, case, every)
            outputs, losses = self._run(loaded, case, [stage for stage in every if stage not in doublings])
        outputs = {stage: (seen if stage in doublings else outputs)[stage] for stage in every}
        layouts = layouts_of(case)

        def cotangents(stages: Iterable[str]) -> dict[str, np.ndarray]:
            return {stage: to_numpy(_grad(outputs[stage]), layouts[stage]) for stage in stages}

        return FreeRun(
            stages={stage: to_numpy(output, layouts[stage]) for stage, output in outputs.items()},
            cotangents=cotangents(stage for stage in every if stage not in doublings),
            gradients=weight_gradients(loaded.model, case),
            losses=losses,
            watched=FreeRun(
                stages={stage: to_numpy(output, layouts[stage]) for stage, output in seen.items()},
                cotangents=cotangents(doublings),
                gradients={},
                losses=seen_losses,
            ),
        )

    def _run(self, loaded: _Loaded, case: Case, stages: Collection[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Run forward and backward; return the outputs of some stages, with their gradients, and the losses."""
        outputs: dict[str, Tensor] = {}

        def record(stage: str, _: tuple[Any, ...], output: Tensor) -> None:
            if stage in outputs:
                return
            if output.requires_grad:
                output.retain_grad()
            outputs[stage] = output

        loaded.model.zero_grad()
        # So that the first stage, too, has a cotangent to show.
        network_input = loaded.scaled_amplitude.clone().requires_grad_()
        # A network may compute stages again in the backward pass; hooks decide what is computed, and stay for it.
        with tapped(loaded.model, stages, record):
            prediction = self._predict(loaded.model, network_input, loaded.offsets_px)
            total, losses = self._losses(loaded, prediction, case)
            total.backward()
        return outputs, losses

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run once with every stage's output replaced by the truth's, so that each error has one owner.

        The network's own wiring feeds the stages, so a stage that listens to the wrong one is caught too.
        """
        layouts = layouts_of(case)
        outputs: dict[str, Tensor] = {}
        truth: dict[str, Tensor] = {}

        def force(stage: str, _: tuple[Any, ...], output: Tensor) -> Tensor:
            if stage not in outputs:
                outputs[stage] = output
                truth[stage] = self._to_device(truth_stages[stage], layouts[stage], case).requires_grad_()
            return truth[stage]

        with float32_means_float32(allow_tf32=self.products == "tf32"):
            loaded = self._load(case)
            with tapped(loaded.model, loaded.model.stage_ids(), force):
                prediction = self._predict(loaded.model, loaded.scaled_amplitude, loaded.offsets_px)
                total, losses = self._losses(loaded, prediction, case)
                pulled: dict[str, dict[str, np.ndarray]] = {}
                for stage, output in outputs.items():
                    cotangent = self._to_device(truth_cotangents[stage], layouts[stage], case)
                    pulled[stage] = _pull_back(output, cotangent, truth, loaded.model.get_submodule(stage), layouts)
                pulled["loss"] = _pull_back(total, torch.ones_like(total), truth, None, layouts)
        return ForcedRun(
            stages={stage: to_numpy(output, layouts[stage]) for stage, output in outputs.items()},
            pulled=pulled,
            gradients=weight_gradients(loaded.model, case),
            losses=losses,
        )

    def _to_device(self, array: np.ndarray, layout: str, case: Case) -> Tensor:
        tensor = torch.from_numpy(LAYOUTS[layout].to_torch(array, case.settings.C))
        dtype: torch.dtype = getattr(torch, self.dtype)
        return tensor.to(self.device, dtype.to_complex() if tensor.is_complex() else dtype)


@dataclass(frozen=True)
class CheckpointSubject(TorchSubject):
    """A checkpoint as the judge sees it: the case gives the inputs, and nothing else.

    Attributes:
        checkpoint: its settings, weights, probe and scale.
    """

    checkpoint: Checkpoint = field(kw_only=True)

    def network(self, case: Case) -> PtychoNet:
        """Return the network of the checkpoint."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        content = self.checkpoint
        probe = torch.view_as_complex(content.weights["probe_parts"].contiguous())
        model = PtychoNet(content.network, probe, device=self.device, dtype=dtype)
        # A float32 ln(s_I) is no float64 scale; the settings have it as it was given.
        exact = {"log_scale"} if self.dtype == "float64" else set()
        state = {name: tensor.to(dtype) for name, tensor in content.weights.items() if name not in exact}
        model.load_state_dict(state, strict=not exact)
        return model


def doublings_of(model: PtychoNet) -> set[str]:
    """Return the ids of the stages that are computed only where somebody looks at them."""
    return {name for name, module in model.named_modules() if isinstance(module, Upsample)}


def layouts_of(case: Case) -> dict[str, str]:
    """Return the name of every stage's layout."""
    return {stage.id: stage.layout for stage in load_stages().expand(case.settings)}


def to_numpy(tensor: Tensor, layout: str) -> np.ndarray:
    """Return a stage's tensor in TensorFlow's layout."""
    # NumPy has no bfloat16; float32 holds every one of them.
    wide = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return LAYOUTS[layout].to_tensorflow(wide.resolve_conj().cpu().numpy())


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _pull_back(
    output: Tensor,
    cotangent: Tensor,
    truth: Mapping[str, Tensor],
    module: nn.Module | None,
    layouts: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Pull a cotangent back to the stages that feed one, and leave the gradient of its weights in ``.grad``.

    Which stages feed it, the graph of the derivative says: values may be copied, cast or viewed on their way.

    Args:
        output: of the stage, or the loss.
        cotangent: of the output.
        truth: what replaces the output of each stage.
        module: the stage; None for the loss.
        layouts: of each stage.
    """
    parameters = [] if module is None else [p for p in module.parameters(recurse=False) if p.requires_grad]
    leaves = [*truth.values(), *parameters]
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    # An output of another shape has no cotangent; that it has another shape is what its forward clause says.
    if output.requires_grad and leaves and output.shape == cotangent.shape:
        found = torch.autograd.grad(output, leaves, cotangent.to(output.dtype), allow_unused=True)
    for parameter, gradient in zip(parameters, found[len(truth) :], strict=True):
        parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
    return {
        name: to_numpy(gradient, layouts[name])
        for name, gradient in zip(truth, found, strict=False)
        if gradient is not None
    }


def named(model: PtychoNet, case: Case, choose: Callable[[nn.Parameter], Tensor]) -> dict[str, np.ndarray]:
    """Return what belongs to each weight of a network, as a copy under its TensorFlow name and in its layout."""
    state = {
        key: choose(model.get_parameter(key)).detach().cpu().numpy().copy()
        for entry in weight_table(case.settings)
        for key in (entry.torch_kernel_name, entry.torch_bias_name)
    }
    return to_tensorflow(state, case.settings)


def weight_gradients(model: PtychoNet, case: Case) -> dict[str, np.ndarray]:
    """Return the gradient of every weight under its TensorFlow name and in its layout."""
    return named(model, case, _grad)
