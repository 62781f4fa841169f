"""A candidate for tests: encoder and decoders as ``inference.export`` writes them; then the physics."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from conformance.cases.case import Case, FreeRun
from conformance.subjects.torch import TorchSubject, layouts_of, tapped, to_numpy
from ptycho_torch.reconstruction.trunk import trunk_stages, write_trunk


class OnnxTrunk(TorchSubject):
    """Free runs only: a graph that is exported as a whole cannot be fed in between."""

    forced = None

    def free(self, case: Case) -> FreeRun:
        loaded = self._load(case)
        model, file = loaded.model.eval(), io.BytesIO()
        stages = trunk_stages(model)
        write_trunk(file, model, ".onnx", {}, stages)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        outputs = session.run(None, {taken.name: loaded.scaled_amplitude.numpy()})
        found = {stage: torch.from_numpy(np.array(each)) for stage, each in zip(stages, outputs, strict=True)}
        behind: dict[str, Tensor] = {}
        others = [stage for stage in model.stage_ids() if stage not in stages]
        with torch.no_grad(), tapped(model, others, lambda stage, _, output: behind.__setitem__(stage, output)):
            patches = model.patches(found["decoder_amp.output"], found["decoder_phase.output"])
            canvas = model.merged(patches, loaded.offsets_px)
            model.object(canvas)
            wave = model.exit_wave(model.views(canvas, loaded.offsets_px), model.probe)
            model.predicted_intensity(model.predicted_amplitude(model.amplitude(wave), model.log_scale))
        layouts = layouts_of(case)
        return FreeRun({stage: to_numpy(each, layouts[stage]) for stage, each in (found | behind).items()})
