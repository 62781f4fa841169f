"""The neural part of the network as one file that other programs run: ONNX, or a program of ``torch.export``.

Complex numbers are no part of ONNX, so the file ends where the patches are still amplitude and phase; what follows is
physics (<doc-ref type="guide">docs/equations.md</doc-ref>).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ptycho_torch.errors import ConfigError, PtychoError
from ptycho_torch.model import PtychoNet, Stage

ENDINGS = (".onnx", ".pt2")
OUTPUTS = ("decoder_amp.output", "decoder_phase.output")
INPUT = "scaled_amplitude"


class Trunk(nn.Module):
    """From scaled amplitude to amplitude and phase of the patches.

    Args:
        network: whose weights it has.
        stages: whose outputs it gives, by clause; of the encoder and the decoders.
    """

    def __init__(self, network: PtychoNet, stages: Sequence[str] = OUTPUTS) -> None:
        super().__init__()
        self.network, self.stages = network, tuple(stages)

    def forward(self, scaled_amplitude: Tensor) -> tuple[Tensor, ...]:
        """Return the output of each stage, (B, C, N, N) s_I·X in; (B, A, N, N) amplitude and (B, K, N, N) phase out."""
        network, found = self.network, dict[str, Tensor]()
        # Watched, a doubling is made before its convolution and not with it: exporters of ONNX get the transposed
        # convolution that does both at once wrong.
        hooks = [_keep(network.get_submodule(stage), stage, found) for stage in trunk_stages(network)]
        try:
            features = network.encoder(network.normalized_input(scaled_amplitude, network.log_scale))
            network.decoder_amp(features)
            network.decoder_phase(features)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found[stage] for stage in self.stages)


def _keep(module: nn.Module, stage: str, found: dict[str, Tensor]) -> Any:
    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found[stage] = output

    return module.register_forward_hook(keep)


def trunk_stages(network: PtychoNet) -> tuple[str, ...]:
    """Return the ids of all stages that ``Trunk`` can give."""
    names = (name for name, module in network.named_modules() if isinstance(module, Stage))
    return tuple(name for name in names if name.startswith(("normalized_input", "encoder.", "decoder_")))


def refuse_ending(path: Path) -> None:
    """Raise where a file cannot be written: an unknown ending, or a package that is missing.

    Raises:
        ConfigError: an ending that is neither ``.onnx`` nor ``.pt2``.
        PtychoError: ONNX without onnxscript.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(f"{path}: found the ending {path.suffix!r}; expected one of {', '.join(ENDINGS)}.")
    if path.suffix == ".onnx" and importlib.util.find_spec("onnxscript") is None:
        raise PtychoError(f"{path}: ONNX files are written by onnxscript: pip install onnxscript")


def write_trunk(
    file: BinaryIO, network: PtychoNet, ending: str, facts: Mapping[str, Any], stages: Sequence[str] = OUTPUTS
) -> None:
    """Write the trunk for any number of groups.

    Args:
        file: open for writing.
        network: whose trunk it is.
        ending: ``.onnx`` or ``.pt2``.
        facts: what goes with it as JSON: ``facts`` in the metadata of ONNX, else the extra file ``facts.json``.
        stages: whose outputs it gives.
    """
    N, C = network.settings.N, network.settings.C
    trunk = Trunk(network, stages).eval()
    # Two groups: of one, the exporter would take the number for fixed.
    example = torch.ones(2, C, N, N, dtype=network.log_scale.dtype, device=network.log_scale.device)
    shapes = {INPUT: {0: torch.export.Dim("groups", min=1)}}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # the exporter warns of its own parts
        program = torch.export.export(trunk, (example,), dynamic_shapes=shapes)
        if ending == ".pt2":
            torch.export.save(program, file, extra_files={"facts.json": json.dumps(facts)})
            return
        onnx = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=list(stages), verbose=False)
        assert onnx is not None
        onnx.model.metadata_props["facts"] = json.dumps(facts)
        file.write(onnx.model_proto.SerializeToString())
