"""A candidate for tests: encoder and decoders exported to ONNX, under ONNX Runtime; then the physics in PyTorch."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from conformance.cases.case import Case, FreeRun
from conformance.subjects.torch import TorchSubject, layouts_of, tapped, to_numpy

TRUNK = ("normalized_input", "encoder.", "decoder_")


class Trunk(nn.Module):
    """The network up to its two heads, with the output of every stage."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.stages = [stage for stage in model.stage_ids() if stage.startswith(TRUNK)]

    def forward(self, scaled_amplitude: Tensor) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = {}
        with tapped(self.model, self.stages, lambda stage, _, output: found.__setitem__(stage, output)):
            features = self.model.encoder(self.model.normalized_input(scaled_amplitude, self.model.log_scale))
            self.model.decoder_amp(features)
            self.model.decoder_phase(features)
        return tuple(found[stage] for stage in self.stages)


class OnnxTrunk(TorchSubject):
    """Free runs only: a graph that is exported as a whole cannot be fed in between."""

    forced = None

    def free(self, case: Case) -> FreeRun:
        loaded = self._load(case)
        model, file = loaded.model.eval(), io.BytesIO()
        trunk = Trunk(model).eval()
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            # The exporter warns of its own parts.
            program = torch.onnx.export(
                trunk, (loaded.scaled_amplitude,), dynamo=True, output_names=trunk.stages, verbose=False
            )
        program.save(file)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        outputs = session.run(None, {taken.name: loaded.scaled_amplitude.numpy()})
        found = {stage: torch.from_numpy(np.array(each)) for stage, each in zip(trunk.stages, outputs, strict=True)}
        behind: dict[str, Tensor] = {}
        others = [stage for stage in model.stage_ids() if stage not in trunk.stages]
        with torch.no_grad(), tapped(model, others, lambda stage, _, output: behind.__setitem__(stage, output)):
            patches = model.patches(found["decoder_amp.output"], found["decoder_phase.output"])
            canvas = model.merged(patches, loaded.offsets_px)
            model.object(canvas)
            wave = model.exit_wave(model.views(canvas, loaded.offsets_px), model.probe)
            model.predicted_intensity(model.predicted_amplitude(model.amplitude(wave), model.log_scale))
        layouts = layouts_of(case)
        return FreeRun({stage: to_numpy(each, layouts[stage]) for stage, each in (found | behind).items()})
