"""The letters used in shapes, defined once.

====== ==================================================================
letter meaning
====== ==================================================================
B      batch: groups of neighbouring scan points
C      channels: patches in one group, C = gridsize²; channel c is grid
       cell (row = c // gridsize, col = c % gridsize)
N      patch side in pixels: 64, 128 or 256
P      side in pixels of the canvas that holds one merged group
M      incoherent probe modes (one mode is a coherent probe)
n      any number of patches
K      output channels of a decoder head: C, or 1
====== ==================================================================

Everything in ``ptycho_torch`` is channels-first. Offsets are ``(B, C, 1, 2)`` with (x, y) last,
in pixels; x is the column and y the row.

<doc-ref type="contract">specs/stages.yaml</doc-ref>
"""

from jaxtyping import Complex, Float
from torch import Tensor

GroupAmplitude = Float[Tensor, "B C N N"]
"""Diffraction amplitude (square root of counts), zero frequency in the centre."""

OffsetsPx = Float[Tensor, "B C 1 2"]
"""Minus the position of each patch relative to its group's mean, (x, y), pixels."""

Patches = Complex[Tensor, "B K N N"]
"""Complex object patches predicted by the two decoders."""

Canvas = Complex[Tensor, "B 1 P P"]
"""One merged object canvas per group."""

GroupViews = Complex[Tensor, "B C N N"]
"""The part of a group's canvas that each of its C probe positions sees."""

ExitWave = Complex[Tensor, "B C M N N"]
"""Views multiplied by each probe mode."""

ProbeModes = Complex[Tensor, "M N N"]
"""Incoherent probe modes; their diffraction intensities add."""
